"""The cache of compiled kernels never stands in the way, and never loads what was not written whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wcompress
from wcompress import kernel_files
from wcompress.compiled import compiled
from wcompress.kernel_files import Folder

PACKAGE = Path(wcompress.__file__).parent
OFFSET = 7


def fresh() -> Callable[[int], int]:
    """A kernel that this process has not compiled."""

    @compiled()
    def kernel(x: int) -> int:
        return 3 * x + OFFSET

    return kernel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kernels"

    def folders() -> Iterator[Folder]:
        yield Folder(path, private=True)

    monkeypatch.setattr(kernel_files, "_folders", folders)
    return path


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def hits(kernel: Callable[[int], int]) -> int:
    return sum(kernel.stats.cache_hits.values())  # type: ignore[attr-defined]


def test_a_second_process_need_not_compile(folder: Path) -> None:
    first, second = fresh(), fresh()
    assert first(5) == second(5) == 22
    assert (hits(first), hits(second)) == (0, 1)
    assert folder.stat().st_mode & 0o077 == 0


def damage_everywhere(content: bytes) -> Iterator[bytes]:
    yield b""
    step = max(1, len(content) // 12)
    for place in range(0, len(content), step):
        yield content[:place]
        yield content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]
        yield content[:place] + bytes(len(content) - place)  # a file system's idea of a file it had no time to write
    yield content + b"\0"


def test_damaged_files_are_ignored_and_written_anew(folder: Path) -> None:
    fresh()(5)
    path = only_file(folder)
    whole = path.read_bytes()
    for damaged in damage_everywhere(whole):
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        assert kernel_files.load(path.name) is None
    kernel = fresh()
    assert kernel(5) == 22
    assert hits(kernel) == 0
    healed = fresh()
    assert healed(5) == 22
    assert hits(healed) == 1


def test_a_whole_file_of_something_else_is_ignored(folder: Path) -> None:
    fresh()(5)
    path = only_file(folder)
    for content in (b"", b"no pickle", b"cos\nno_such_function\n."):
        kernel_files.save(path.name, content)
        assert fresh()(5) == 22


def test_a_constant_that_changes_changes_the_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh()(5) == 22
    before = only_file(folder).name
    monkeypatch.setitem(globals(), "OFFSET", 8)
    assert fresh()(5) == 23
    assert only_file(folder).name != before  # the older one is removed


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("decorator", ["compiled()", "part", "inlined"])
def test_a_called_kernel_that_changes_changes_the_caller(decorator: str) -> None:
    def outer(inner_adds: int) -> Callable[[int], int]:
        source = (
            "from wcompress.compiled import compiled, inlined, part\n"
            f"@{decorator}\ndef inner(x):\n    return x + {inner_adds}\n"
            "@compiled()\ndef outer(x):\n    return 2 * inner(x)\n"
        )
        names = {"__name__": "some_module"}
        exec(source, names)
        return names["outer"]  # type: ignore[return-value]

    assert outer(1)(5) == 12
    assert outer(2)(5) == 14


@pytest.mark.parametrize("open_to", [0o020, 0o002])
def test_a_folder_that_others_may_write_to_is_not_believed(folder: Path, open_to: int) -> None:
    fresh()(5)
    folder.chmod(0o700 | open_to)
    kernel = fresh()
    assert kernel(5) == 22
    assert hits(kernel) == 0


def test_a_link_to_a_folder_is_not_believed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert fresh()(5) == 22
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_no_file_is_left_where_the_disk_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    assert fresh()(5) == 22
    assert list(folder.iterdir()) == []


NO_PACKAGE = "(package / '__pycache__').write_text('')\n"
NO_HOME = "os.environ['HOME'] = str(block)\n"
NO_TEMPORARY_FOLDER = "tempfile.tempdir = str(block)\n"
BLOCKED = {
    "nothing": "",
    "package": NO_PACKAGE,
    "package and home": NO_PACKAGE + NO_HOME,
    "package, home and temporary folder": NO_PACKAGE + NO_HOME + NO_TEMPORARY_FOLDER,
    "no home": NO_PACKAGE + "del os.environ['HOME']\nos.environ['XDG_CACHE_HOME'] = 'here'\n",
    "chosen folder": "os.environ['NUMBA_CACHE_DIR'] = str(block)\n",
    "everything": NO_PACKAGE
    + NO_HOME
    + NO_TEMPORARY_FOLDER
    + "os.environ['NUMBA_CACHE_DIR'] = str(block / 'deeper')\n",
}


@pytest.mark.parametrize("blocked", BLOCKED)
def test_an_installation_that_cannot_be_written_to_works(tmp_path: Path, blocked: str) -> None:
    package = tmp_path / "site" / "wcompress"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    block = tmp_path / "file"
    block.write_text("")
    code = (
        "import os, sys, tempfile; from pathlib import Path; import numpy as np\n"
        "sys.dont_write_bytecode = True\n"
        f"package, block = Path({str(package)!r}), Path({str(block)!r})\n"
        f"{BLOCKED[blocked]}"
        "import wcompress, wcompress.codec.quantiser.viterbi\n"
        "assert Path(wcompress.__file__).parent == package\n"
        "from wcompress.entropy.arrays import _join_bits\n"
        "_join_bits(np.array([1, 2], np.uint8), 4, out := np.zeros(1, np.uint8))\nassert out[0] == 0x12\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    environment |= {"PYTHONPATH": str(package.parent), "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert block.read_text() == ""
    assert not (tmp_path / "here").exists()
    kept = [path for path in tmp_path.rglob("*.kernel") if path.is_file()]
    assert bool(kept) == ("temporary" not in blocked and blocked != "everything")


def test_every_kernel_is_under_this_cache() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "compiled.py":
            assert not re.search(r"\b(njit|vectorize|guvectorize|cfunc)\(|\bnumba\.jit\b", path.read_text()), path
