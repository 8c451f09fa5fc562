"""One-line errors, and the warnings of torch that are no news to a user."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wcompress.errors import CheckpointError, UnsafeCheckpoint, UnsupportedCheckpoint

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LISTED = 12
_LINE_CHARS = 200

# Each of these says that a feature is experimental or deprecated, which a reader of old files cannot change.
_NO_NEWS = (
    r"TypedStorage is deprecated",
    r"ComplexHalf support is experimental",
    r"Detected pickle protocol",
    r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation",
    r"Sparse (CSR|CSC|BSR|BSC) tensor support is in beta",
    r"The PyTorch API of nested tensors is in prototype stage",
)


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Ignores the listed warnings of torch, and only those, inside a `with` block."""
    with warnings.catch_warnings():
        for message in _NO_NEWS:
            warnings.filterwarnings("ignore", message=message)
        yield


def shown(text: object) -> str:
    """Returns `text` on one line: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def condensed(text: object) -> str:
    """Returns the first line of `text` that says something, without colours, at most 200 characters long."""
    lines = (line.strip() for line in _ANSI.sub("", str(text)).splitlines())
    line = shown(next((line for line in lines if line), ""))
    return line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…"


def listed(names: Iterable[object]) -> str:
    """Returns the quoted names, comma-separated; of many only the first 12."""
    quoted = [f"'{shown(name)}'" for name in names]
    more = f" and {len(quoted) - _LISTED} more" if len(quoted) > _LISTED else ""
    return ", ".join(quoted[:_LISTED]) + more


def damaged(where: str, why: str) -> CheckpointError:
    """Returns the error for a file whose content contradicts its own format."""
    return CheckpointError(f"{where}: {why}")


def unsafe(where: str, why: str) -> UnsafeCheckpoint:
    """Returns the error for a file that would run code."""
    return UnsafeCheckpoint(f"{where}: {why}")


def unsupported(where: str, why: str) -> UnsupportedCheckpoint:
    """Returns the error for another kind of file, or for content that is not kept."""
    return UnsupportedCheckpoint(f"{where}: {why}")


def usage(error: CheckpointError) -> CheckpointError:
    """Marks an error as a mistake in the call, for which the command line exits with 2."""
    error.exit_code = 2
    return error
