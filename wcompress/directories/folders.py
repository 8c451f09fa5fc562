"""Digests, copies, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from wcompress import interrupts
from wcompress.checkpoint.messages import listed, shown
from wcompress.errors import OutputError
from wcompress.files import atomic_output, not_written

_CHUNK_BYTES = 1 << 20
_STALE_S = 24 * 3600.0
_TEMPORARY = ".wcompress-folder-"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def copy_file(source: Path, target: Path) -> str:
    """Copies a file's bytes, with all folders above it; the copy appears whole or not at all.

    Returns:
        SHA-256 of what was copied, hexadecimal.

    Raises:
        OutputError: the copy cannot be written.
        OSError: the source cannot be read.
    """
    sha = hashlib.sha256()
    with source.open("rb") as file:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(target, force=True) as temporary, temporary.open("wb") as copy:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
                copy.write(chunk)
    return sha.hexdigest()


def write_bytes(target: Path, content: bytes) -> None:
    """Writes a file, with all folders above it, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(target, force=True) as temporary:
        temporary.write_bytes(content)


def files_in(folder: Path) -> set[str]:
    """Relative names, with `/`, of all that is in a folder and is no folder itself."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def check_folder(path: str | os.PathLike[str], *, force: bool, source: Path) -> Path:
    """The folder that an output will be, after every check that can be made before the work starts.

    Args:
        path: where the output is to appear; a symbolic link is followed.
        force: an existing folder may be replaced; see `place_folder`.
        source: the folder the output is made from, which is never changed.

    Raises:
        OutputError: the output exists and `force` is off, is a file, lies in the source or holds it, or the folder it
            is to appear in is missing or not writable.
    """
    try:
        target, origin = Path(os.path.realpath(path)), Path(os.path.realpath(source))
        if target == origin:
            raise OutputError(f"{path}: this is the source, which is kept; name another output with -o")
        if origin in target.parents or target in origin.parents:
            raise OutputError(f"{path}: one of source and output would lie in the other; name another output with -o")
        if target.exists() and not target.is_dir():
            raise OutputError(f"{path}: is a file, and a folder is to be made; name another output with -o")
        if target.is_dir() and any(target.iterdir()) and not force:
            raise OutputError(f"{path}: exists already; use -f to replace it, or name another output with -o")
        if not target.parent.is_dir():
            raise OutputError(f"{path}: the folder {target.parent} does not exist; create it first")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(f"{path}: the folder {target.parent} cannot be written to; choose another")
    except OSError as error:
        raise not_written(path, error) from error
    return target


def check_replaceable(target: Path, replaced: set[str]) -> None:
    """Checks that a folder may be replaced: it holds nothing but what was made here, or will be made again.

    Args:
        target: the folder, existing or not.
        replaced: names, with `/`, of the files that may go.

    Raises:
        OutputError: it holds anything else.
    """
    if not target.is_dir():
        return
    try:
        others = sorted(files_in(target) - replaced)
    except OSError as error:
        raise not_written(target, error) from error
    if others:
        raise OutputError(
            f"{shown(target)}: holds {listed(others)}, which would be lost; move that away, or name another output"
        )


def place_folder(folder: Path, target: Path, replaced: set[str]) -> None:
    """Renames a finished folder, on the same file system, to its final name.

    Args:
        folder: the finished one.
        target: its final name. A folder that is there already is removed.
        replaced: as in `check_replaceable`.

    Raises:
        OutputError: it cannot be renamed, or the target holds something else.
    """
    interrupts.check()
    check_replaceable(target, replaced)
    aside = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        if target.is_dir():
            target.rename(aside)
        try:
            folder.rename(target)
        except OSError:
            if aside.is_dir():
                aside.rename(target)
            raise
    except OSError as error:
        raise not_written(target, error) from error
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, removed when the block ends unless it was renamed.

    Raises:
        OutputError: it cannot be made.
    """
    for old in target.parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.lstat().st_mtime > _STALE_S:
                shutil.rmtree(old, ignore_errors=True)
    folder = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        folder.mkdir()
    except OSError as error:
        raise not_written(target, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
