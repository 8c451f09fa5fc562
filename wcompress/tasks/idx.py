"""Reads idx files, the format MNIST comes in, plain or gzipped.

An idx file is a big-endian uint32 (0x0800 + number of dimensions, for bytes), a uint32 for each dimension, and
the bytes.
Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from wcompress.errors import TaskError

_UINT8_MAGIC = 0x0800
_MAX_ITEMS = 1_000_000
"""Bounds what a hostile header can make us allocate; MNIST has 60,000."""


def read_idx(path: Path, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Reads an idx file of bytes.

    Args:
        path: the file; gzipped where its name ends in `.gz`.
        item_shape: what each item must be: (28, 28) for images, () for labels.

    Returns:
        uint8 [n, *item_shape], writable, n at least 1.

    Raises:
        TaskError: the file cannot be read, or is not such a file from first to last byte.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(file, path, item_shape)
    except (OSError, EOFError, zlib.error) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else _one_line(error)
        raise TaskError(f"{path}: cannot be read as an idx file ({reason}); fetch it again") from error


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Reads header and items, and makes sure that nothing follows them."""
    n_dims = 1 + len(item_shape)
    header = file.read(4 + 4 * n_dims)
    if len(header) < 4 + 4 * n_dims:
        raise TaskError(f"{path}: an idx header of {4 + 4 * n_dims} bytes expected, got {len(header)}; fetch it again")
    magic, n_items, *shape = struct.unpack(f">{1 + n_dims}I", header)
    if magic != _UINT8_MAGIC + n_dims:
        raise TaskError(
            f"{path}: idx magic 0x{_UINT8_MAGIC + n_dims:08x} expected, got 0x{magic:08x}; "
            f"it should hold bytes in {n_dims} dimensions"
        )
    if tuple(shape) != item_shape or not 1 <= n_items <= _MAX_ITEMS:
        wanted = " x ".join(["n", *map(str, item_shape)])
        got = " x ".join(map(str, [n_items, *shape]))
        raise TaskError(f"{path}: items of size {wanted} expected (n from 1 to {_MAX_ITEMS:,}), the header says {got}")
    n_bytes = n_items * int(np.prod(item_shape, dtype=np.int64))
    payload = file.read(n_bytes)
    if len(payload) < n_bytes:
        raise TaskError(f"{path}: {n_bytes:,} bytes of items expected, got {len(payload):,}; fetch it again")
    # Reading on also makes gzip compare its checksum, which it does only at the end.
    if file.read(1):
        raise TaskError(f"{path}: bytes follow the {n_bytes:,} that its header announces; fetch it again")
    return np.frombuffer(bytearray(payload), dtype=np.uint8).reshape(n_items, *item_shape)


def _one_line(error: BaseException) -> str:
    """Gives an exception's message without line breaks, or its type where it has none."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
