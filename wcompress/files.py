"""Outputs that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from wcompress import interrupts
from wcompress.errors import OutputError, WCompressError

_TEMPORARY_NAME = ".wcompress-{}.part"
_STALE_S = 24 * 3600.0
"""A temporary file that nobody has written to for so long belongs to a process that was killed."""


def archive_path(source: str | os.PathLike[str]) -> str:
    """The archive's path where none is given: the model's with `.wcz` added; of a folder, beside the folder."""
    path = os.fspath(source)
    has_name = Path(path).name not in ("", "..")
    return f"{path.rstrip('/') if has_name else Path(path).resolve()}.wcz"


def check_output(path: str | os.PathLike[str], *, force: bool, source: str | os.PathLike[str] | None = None) -> Path:
    """The file an output will replace, after every check that can be made before the work starts.

    Args:
        path: where the output is to appear; a symbolic link is followed.
        force: an existing file may be replaced.
        source: the file the output is made from, which is never replaced, `force` or not.

    Raises:
        OutputError: the output exists and `force` is off, is the source, is no regular file, or its folder is
            missing or not writable.
    """
    try:
        target = Path(os.path.realpath(path))
        if source is not None and target == Path(os.path.realpath(source)):
            raise OutputError(f"{path}: this is the source file, which is kept; name another output with -o")
        if target.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: is not a regular file and cannot be replaced; name another output")
        if target.exists() and not force:
            raise OutputError(f"{path}: exists already; use -f to replace it, or name another output with -o")
        if not target.parent.is_dir():
            raise OutputError(f"{path}: the folder {target.parent} does not exist; create it first")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(f"{path}: the folder {target.parent} cannot be written to; choose another")
    except OSError as error:  # such as a name too long for the file system
        raise not_written(path, error) from error
    return target


@contextlib.contextmanager
def atomic_output(
    path: str | os.PathLike[str], *, force: bool, source: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise.

    Args:
        path, force, source: as in `check_output`.

    Yields:
        The temporary path, in the same folder, not yet existing.

    Raises:
        OutputError: as in `check_output`, or the file cannot be written.
    """
    target = check_output(path, force=force, source=source)
    _remove_stale(target.parent)
    temporary = target.with_name(_TEMPORARY_NAME.format(secrets.token_hex(8)))
    interrupts.unfinished.add(str(temporary))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        interrupts.check()
        # Looked at again: the file may have appeared while a long job ran.
        check_output(path, force=force, source=source)
        temporary.replace(target)
    except WCompressError as error:
        # Whoever wrote to the temporary file named it; the user asked for another.
        error.args = tuple(_named(argument, temporary, path) for argument in error.args)
        raise
    except OSError as error:
        if error.filename is not None:
            named = Path(os.fsdecode(error.filename))
            if temporary not in (named, *named.parents) and named not in (target, target.parent):
                raise  # of some other file
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        interrupts.unfinished.discard(str(temporary))


def not_written(path: str | os.PathLike[str], error: BaseException) -> OutputError:
    """The error for an output that the system, or a library that writes, did not take."""
    reason = error.strerror if isinstance(error, OSError) else None
    if reason is None:
        # A library in Rust says "…: I/O error: No space left on device (os error 28)".
        found = re.search(r"([^:]+) \(os error \d+\)", str(error))
        reason = found[1].strip() if found else " ".join(str(error).split())[:200] or type(error).__name__
    return OutputError(f"{path}: cannot be written ({reason}); free space or choose another place")


def _named(text: object, temporary: Path, path: str | os.PathLike[str]) -> object:
    if not isinstance(text, str):
        return text
    return text.replace(str(temporary), os.fspath(path)).replace(temporary.name, Path(path).name)


def _remove_stale(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.glob(_TEMPORARY_NAME.format("*")):
            if time.time() - path.lstat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def output_folder(path: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """A folder for several outputs: created when missing; one that holds files already needs `force`.

    Raises:
        OutputError: the folder is not empty and `force` is off, is a file, or cannot be written.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{path}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputError(f"{path}: is not empty; use -f to write into it, or name another folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise not_written(error.filename or path, error) from error
