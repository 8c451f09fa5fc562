"""A first run has a second process compile kernels; a program that uses the library has none, nor has a later run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import wcompress
from wcompress import ahead, kernel_files
from wcompress.cli import run
from wcompress.compiled import compiled
from wcompress.kernel_files import Folder

PACKAGE = Path(wcompress.__file__).parent


def fresh() -> Any:
    """A kernel that this process has not compiled."""

    @compiled()
    def kernel(x: int) -> int:
        return 5 * x + 1

    return kernel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kernels"

    def folders() -> Iterator[Folder]:
        yield Folder(path, private=True)

    monkeypatch.setattr(kernel_files, "_folders", folders)
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[Sequence[str]]]:  # noqa: ARG001
    """Commands that were started, in a process that may start some."""
    commands: list[Sequence[str]] = []

    class Helper:
        def __init__(self, command: Sequence[str]) -> None:
            commands.append(command)

        def end(self) -> None:
            pass

    monkeypatch.setattr(ahead, "_Helper", Helper)
    monkeypatch.setattr(ahead, "_state", ahead._State())
    monkeypatch.setattr(ahead, "_n_processors", lambda: 2)
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    ahead.allow()
    yield commands
    ahead.finish()


@pytest.fixture
def help_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Starts a process that runs some code, and is believed to compile."""
    monkeypatch.setattr(ahead, "_state", ahead._State())

    def start(code: str) -> Any:
        ahead._state.helper = ahead._Helper([sys.executable, "-c", code])
        return ahead._state.helper

    yield start
    ahead.finish()


def is_at(helper: Any, name: str | None) -> None:
    deadline = time.monotonic() + 30
    while helper.at != name:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hits(kernel: Any) -> int:
    return sum(kernel.stats.cache_hits.values())


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A kernel's file as another process makes it, at first somewhere else; and where it is looked for."""
    assert fresh()(2) == 11
    (there,) = folder.iterdir()
    return there.rename(tmp_path / "made"), there


def test_what_the_other_process_makes_is_waited_for(made: tuple[Path, Path], help_by: Callable[[str], Any]) -> None:
    elsewhere, there = made
    move = f"time.sleep(1); os.rename({str(elsewhere)!r}, {str(there)!r})"
    helper = help_by(f"import os, time; print({there.name!r}, flush=True); {move}; print('next', flush=True); input()")
    is_at(helper, there.name)
    kernel = fresh()
    assert kernel(2) == 11
    assert hits(kernel) == 1
    assert helper.at == "next"


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), 9)", "print('next', flush=True); input()"])
def test_what_the_other_process_fails_to_make_is_compiled_here(
    made: tuple[Path, Path], help_by: Callable[[str], Any], end: str
) -> None:
    _, there = made
    helper = help_by(f"import os, sys, time; print({there.name!r}, flush=True); time.sleep(1); {end}")
    is_at(helper, there.name)
    kernel = fresh()
    assert kernel(2) == 11
    assert hits(kernel) == 0
    assert there.exists()
    helper.end()


def test_what_the_other_process_is_not_at_is_not_waited_for(
    made: tuple[Path, Path], help_by: Callable[[str], Any]
) -> None:
    _, there = made
    helper = help_by("print('another', flush=True); input()")
    is_at(helper, "another")
    kernel = fresh()
    assert kernel(2) == 11
    assert there.exists()
    assert helper.at == "another"


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from wcompress import ahead\n"
        "ahead._n_processors, ahead.marker = lambda: 2, lambda: 'first-run.kernel'; ahead.allow(); ahead.start()\n"
        "print(ahead._state.helper._process.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    places = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | places, capture_output=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(tmp_path.rglob("*.part"))
    assert done.stderr == b""


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked how


def test_one_process_is_started_for_a_first_run(started: list[Sequence[str]]) -> None:
    ahead.start()
    ahead.start()
    assert [command[-1] for command in started] == ["wcompress.first_kernels"]


@pytest.mark.parametrize("why", ["warm", "library", "one processor", "nothing compiled", "frozen", "no Python", "-O"])
def test_none_is_started_where_it_is_of_no_use(
    started: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "warm":
        kernel_files.save(ahead.marker(), b"")
    elif why == "library":
        monkeypatch.setattr(ahead, "_state", ahead._State())
    elif why == "one processor":
        monkeypatch.setattr(ahead, "_n_processors", lambda: 1)
    elif why == "nothing compiled":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    elif why == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif why == "no Python":
        monkeypatch.setattr(sys, "executable", "/usr/bin/blender")
    else:
        flags = type("flags", (), {"optimize": 1})
        monkeypatch.setattr(sys, "flags", flags)
    ahead.start()
    assert started == []


def test_none_is_started_where_nothing_can_be_kept(
    started: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kernel_files, "_folders", lambda: iter([Folder(tmp_path / "file" / "kernels", private=True)]))
    ahead.start()
    assert started == []


@pytest.mark.parametrize(("arguments", "n"), [([], 1), (["--method", "lossless"], 0)])
def test_packing_by_the_context_model_starts_one(
    started: list[Sequence[str]], tmp_path: Path, arguments: list[str], n: int
) -> None:
    save_file({"w": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    assert run(["pack", str(tmp_path / "model.safetensors"), "-q", *arguments]) == 0
    assert len(started) == n


def test_packing_needs_what_was_made_ahead_and_finds_it(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "wcompress", ignore=shutil.ignore_patterns("__pycache__"))
    kept = {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_DISABLE_JIT"}
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    first = [sys.executable, "-P", "-m", "wcompress.first_kernels"]
    with subprocess.Popen(
        first, env=environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        names = process.stdout.read().decode().split()  # its input stays open until it has ended
    assert process.returncode == 0
    assert names[0] == ahead.FIRST
    assert names[1].startswith(ahead.FIRST)
    code = (
        "import importlib, torch, wcompress; from wcompress import ahead, kernel_files\n"
        "from wcompress.first_kernels import KERNELS; from wcompress.entropy.context.unit import run_unit\n"
        "assert kernel_files.load(ahead.marker()) is not None\n"
        "weights = {'w': torch.randn(256, 256, generator=torch.Generator().manual_seed(0))}\n"
        "for method in ('vae', 'lossless'):\n"
        "    wcompress.pack(weights, f'{method}.wcz', method=method)\n"
        "for place in [name for name, _ in KERNELS] + ['wcompress.entropy.context.unit:run_unit']:\n"
        "    module, name = place.split(':')\n"
        "    stats = getattr(importlib.import_module(module), name).stats\n"
        "    print(place, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert all(int(n_hits) > 0 and n_misses == "0" for _, n_hits, n_misses in rows), done.stdout
