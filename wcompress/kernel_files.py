"""Where the machine code of compiled kernels is kept: a convenience, which no folder has to take.

A file that is missing or damaged is ignored, and a folder that cannot be written is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"WCK1"
_DIGEST_BYTES = 32
SUFFIX = ".kernel"

saving = threading.Lock()
"""Held while a file is being written, which is not to be left half done."""


@dataclass(frozen=True)
class Folder:
    """A place for cache files.

    Attributes:
        path: it need not exist.
        private: what is in it is only loaded when the folder is this user's, and nobody else may write to it.
    """

    path: Path
    private: bool

    def make(self) -> None:
        """Create it where it is missing.

        Raises:
            OSError: that is not possible.
        """
        if self.private:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)

    def is_trusted(self) -> bool:
        """Whether only those can have written to it whom the user trusts anyway.

        Raises:
            OSError: it is not there.
        """
        if not self.private or not hasattr(os, "geteuid"):
            return True
        status = self.path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _folders() -> Iterator[Folder]:
    """Where cache files may lie, first choice first."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Folder(Path(chosen) / "wcompress", private=False)
    yield Folder(Path(__file__).parent / "__pycache__", private=False)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    if user_cache.is_absolute():
        yield Folder(user_cache / "wcompress" / "kernels", private=True)
    owner = os.geteuid() if hasattr(os, "geteuid") else "user"
    yield Folder(Path(tempfile.gettempdir()) / f"wcompress-kernels-{owner}", private=True)


def _usable_folders() -> Iterator[Folder]:
    # Without a home, or without a folder for temporary files, the list ends early.
    with contextlib.suppress(OSError, RuntimeError):
        yield from _folders()


def load(name: str) -> bytes | None:
    """What `save` kept under a name; None where no folder holds it whole."""
    for folder in _usable_folders():
        with contextlib.suppress(OSError):
            if not folder.is_trusted():
                continue
            content = (folder.path / name).read_bytes()
            head = len(_MAGIC) + _DIGEST_BYTES
            if content[:head] == _MAGIC + hashlib.sha256(content[head:]).digest():
                return content[head:]
    return None


def save(name: str, data: bytes) -> None:
    """Keep bytes under a name in the first folder that takes them, whole or not at all."""
    content = _MAGIC + hashlib.sha256(data).digest() + data
    for folder in _usable_folders():
        temporary = folder.path / f".{secrets.token_hex(8)}{SUFFIX}.part"
        try:
            folder.make()
            if not folder.is_trusted():
                continue
            with saving:
                temporary.write_bytes(content)
                temporary.replace(folder.path / name)
            _forget_older(folder.path, name)
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return


def can_save() -> bool:
    """Whether a folder takes files, as far as can be told without writing one."""
    for folder in _usable_folders():
        with contextlib.suppress(OSError):
            folder.make()
            if folder.is_trusted() and os.access(folder.path, os.W_OK):
                return True
    return False


def _forget_older(folder: Path, name: str) -> None:
    # The same function for the same arguments in the same environment, from other source code.
    same = name.rpartition("-")[0]
    for path in folder.glob(f"{same}-*{SUFFIX}"):
        if path.name != name:
            path.unlink(missing_ok=True)
