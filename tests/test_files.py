"""Outputs appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from wcompress.errors import OutputError
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
