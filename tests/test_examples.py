"""The examples and the documents' code blocks run, and the documents show what is committed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import tables as benchmark_tables
from benchmarks.common import RESULTS
from benchmarks.refine_figure import texts
from wcompress.cli import _COMMANDS

ROOT = Path(__file__).parent.parent


def run_example(*command: str, folder: Path, path: Sequence[Path] = ()) -> str:
    places = os.pathsep.join([*map(str, path), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": places, "EFFORT": "1", "GOMP_SPINCOUNT": "10000"}
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


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks to run, in order: those without `<!-- not run: WHY -->` above them."""
    pattern = r"(<!-- not run: [^\n]+ -->\n)?^```(bash|python)\n(.*?)^```$"
    found = re.findall(pattern, document.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for skipped, language, text in found if not skipped]


def test_blocks_are_found_and_few_are_left_out() -> None:
    blocks = code_blocks(ROOT / "README.md")
    assert [language for language, _ in blocks] == ["bash", "bash", "bash", "python"]
    everything = "".join(document.read_text() for document in DOCUMENTS)
    assert everything.count("<!-- not run: ") <= 3


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if code_blocks(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_code_blocks_run(document: Path, tmp_path: Path) -> None:
    # As in a clone of the repository. What takes long is packing, which therefore has the least effort here.
    shutil.copytree(ROOT / "examples", tmp_path / "clone" / "examples")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "wcompress"
    command.write_text(
        f'#!/bin/sh\n[ "$1" = pack ] && set -- "$@" --effort 1\nexec {sys.executable} -m wcompress "$@"\n'
    )
    command.chmod(0o755)
    for language, text in code_blocks(document):
        program = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        run_example(*program, text, folder=tmp_path / "clone", path=[tmp_path / "bin"])


def test_readme_is_short_and_says_first_what_is_lost() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    beginning = "\n".join(lines[:20])
    assert "lossy" in beginning
    assert "--method lossless" in beginning
    assert "not for" in beginning


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_readme_names_every_command(command: str) -> None:
    assert f"wcompress {command}" in (ROOT / "README.md").read_text()


def test_documents_link_to_files_that_exist() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize("name", benchmark_tables.DOCUMENTS)
def test_documents_show_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- table:" in text
    assert benchmark_tables.filled(text) == text, "run: python -m benchmarks.tables"


def test_every_table_is_shown_and_none_judges_itself() -> None:
    texts = {name: (ROOT / name).read_text() for name in benchmark_tables.DOCUMENTS}
    shown = [name for text in texts.values() for name in re.findall(r"<!-- table: (\S+) -->", text)]
    assert sorted(shown) == sorted(benchmark_tables.TABLES)
    assert not re.search(r"\b(wanted|met|missed)\b", texts["docs/benchmarks.md"])


def test_the_figure_of_refinement_is_drawn_from_the_committed_results() -> None:
    for name, text in texts(RESULTS).items():
        assert (RESULTS / name).read_text() == text, f"{name}: run: python -m benchmarks.refine --figure-only"
    assert (RESULTS / "refine.png").read_bytes().startswith(b"\x89PNG")
