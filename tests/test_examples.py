"""The examples run, and the documents tell of every command and error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import RESULTS
from benchmarks.readme_tables import filled
from benchmarks.refine_figure import texts
from wcompress.cli import _COMMANDS

ROOT = Path(__file__).parent.parent


def run_example(*command: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "EFFORT": "1", "GOMP_SPINCOUNT": "10000"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_walkthrough(tmp_path: Path) -> None:
    out = run_example("bash", str(ROOT / "examples" / "walkthrough.sh"), folder=tmp_path)
    assert "exit code 4" in out
    assert "ratio" in out


def test_python_api(tmp_path: Path) -> None:
    out = run_example(sys.executable, str(ROOT / "examples" / "python_api.py"), folder=tmp_path)
    assert "Truncated" in out
    assert "torch.Size([10, 128])" in out


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_readme_tells_of_every_command(command: str) -> None:
    assert f"wcompress {command}" in (ROOT / "README.md").read_text()


def test_documents_link_to_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_readme_shows_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!-- table:" in text
    assert filled(text) == text, "run: python -m benchmarks.readme_tables"


def test_the_figure_of_refinement_is_drawn_from_the_committed_results() -> None:
    for name, text in texts(RESULTS).items():
        assert (RESULTS / name).read_text() == text, f"{name}: run: python -m benchmarks.refine --figure-only"
    assert (RESULTS / "refine.png").read_bytes().startswith(b"\x89PNG")
