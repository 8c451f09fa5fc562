"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wcompress import interrupts
from wcompress.errors import OutputError, UnsupportedCheckpoint, WCompressError
from wcompress.files import atomic_output, output_folder


def test_the_output_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_output(path, force=False) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_output(path, force=True) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_outputs_need_force(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), atomic_output(path, force=False):
        raise AssertionError("not reached")
    with atomic_output(path, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_the_source_is_kept_even_with_force(tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(b"model")
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(OutputError, match="source"), atomic_output(link, force=True, source=source):
        raise AssertionError("not reached")


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_output(link, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("path", "expected"), [("missing/out", "does not exist"), (".", "folder"), ("/dev/null", "regular")]
)
def test_impossible_places(tmp_path: Path, path: str, expected: str) -> None:
    with pytest.raises(OutputError, match=expected), atomic_output(tmp_path / path, force=True):
        raise AssertionError("not reached")


def test_folders(tmp_path: Path) -> None:
    with output_folder(tmp_path / "a" / "b", force=False) as folder:
        (folder / "file").write_text("x")
    with pytest.raises(OutputError, match="not empty"), output_folder(tmp_path / "a" / "b", force=False):
        raise AssertionError("not reached")
    with output_folder(tmp_path / "a" / "b", force=True):
        pass
    with pytest.raises(OutputError, match="is a file"), output_folder(tmp_path / "a" / "b" / "file", force=True):
        raise AssertionError("not reached")


@pytest.mark.parametrize("name", ["m" * 251 + ".wcz", "ü" * 125 + ".wcz", "模" * 83 + ".wcz", ".wcz", "a b[*].wcz"])
def test_every_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    with atomic_output(tmp_path / name, force=False) as temporary:
        temporary.write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["m" * 300, "ü" * 130, "folder/" * 1000 + "m"])
def test_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError), atomic_output(tmp_path / name, force=False):
        raise AssertionError("not reached")


def write_below(path: Path) -> None:
    (path / "below").write_bytes(b"")


def fail_to_move(path: Path) -> None:
    path.replace(path / "missing" / "folder")


def fail_in_words(path: Path) -> None:
    raise UnsupportedCheckpoint(f"{path}: a tensor that no format holds; leave out {path.name}")


@pytest.mark.parametrize("fail", [write_below, fail_to_move, fail_in_words])
@pytest.mark.parametrize("place", ["out", "link/out", "./out"])
def test_no_error_names_the_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Path], None], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def work() -> None:
        with atomic_output(place, force=False) as temporary:
            temporary.write_bytes(b"half")
            fail(temporary)

    with pytest.raises(WCompressError) as caught:
        work()
    assert str(caught.value).startswith(f"{place}: ")
    assert ".part" not in str(caught.value)
    assert caught.value.exit_code in (2, 3)
    assert not list(tmp_path.rglob("*.part"))


def test_an_error_about_another_file_names_that_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_output(tmp_path / "out", force=False):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_that_vanishes_while_the_work_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def work() -> None:
        with atomic_output(folder / "out", force=False) as temporary:
            temporary.write_bytes(b"new")
            temporary.unlink()
            folder.rmdir()

    with pytest.raises(OutputError, match="out: "):
        work()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    def leave(name: str, age_s: float) -> Path:
        path = tmp_path / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    old, young = leave(".wcompress-0123.part", 2 * 86400), leave(".wcompress-4567.part", 60)
    strange = leave(".other.part", 2 * 86400)
    with atomic_output(tmp_path / "out", force=False) as temporary:
        temporary.write_bytes(b"new")
    assert not old.exists()
    assert young.exists()
    assert strange.exists()


def test_interrupted_work_makes_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts._state, "number", 2)
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "out", force=False) as temporary:
        temporary.write_bytes(b"whole, but not asked for any more")
    assert list(tmp_path.iterdir()) == []
    assert not interrupts.unfinished
