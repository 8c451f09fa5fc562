"""Tensors kept bit for bit: integers, booleans, complex numbers, and floats that no quantiser may touch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from wcompress.checkpoint import dtype_from_name
from wcompress.codec.manifest import TensorEntry
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes
from wcompress.wire import ByteCursor, encode_varint

_STORED, _ZSTD = 0, 1
_ZSTD_MAX_GROWTH = 32768  # a zstd block of at least 4 bytes restores at most 128 KiB


def encode_raw(tensors: Iterable[torch.Tensor]) -> bytes:
    """The `raw` section: each tensor's little-endian bytes, under zstd where that is smaller.

    Args:
        tensors: contiguous CPU tensors of any dtype.
    """
    parts: list[bytes] = []
    for tensor in tensors:
        data = tensor_bytes(tensor)
        packed = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(data)
        coder, payload = (_ZSTD, packed) if len(packed) < len(data) else (_STORED, data)
        parts += [bytes([coder]), encode_varint(len(payload)), payload]
    return b"".join(parts)


def decode_raw(data: bytes, entries: Iterable[TensorEntry]) -> dict[str, torch.Tensor]:
    """Undo `encode_raw`.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """
    cursor = ByteCursor(data, "raw")
    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        dtype = entry_dtype(entry)
        n_bytes = entry.numel * dtype.itemsize
        coder = cursor.take(1)[0]
        payload = cursor.take(cursor.varint())
        if coder == _ZSTD and n_bytes <= _ZSTD_MAX_GROWTH * len(payload):
            try:
                # A frame that states its size is believed by the decompressor, whatever limit it is given.
                if zstandard.frame_content_size(payload) not in (-1, n_bytes):
                    raise zstandard.ZstdError("it states another size")
                payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=n_bytes)
            except zstandard.ZstdError as error:
                raise ArchiveError(f"tensor {entry.name!r}: {error}; the archive is damaged") from error
        elif coder != _STORED:
            raise ArchiveError(f"tensor {entry.name!r}: its bytes cannot be restored; the archive is damaged")
        if len(payload) != n_bytes:
            raise ArchiveError(
                f"tensor {entry.name!r}: {n_bytes} bytes expected, {len(payload)} found; the archive is damaged"
            )
        tensors[entry.name] = tensor_from_bytes(payload, dtype, entry.shape)
    cursor.finish()
    return tensors


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A contiguous CPU tensor's elements in row-major order, little-endian."""
    return as_bytes(tensor).numpy().tobytes() if tensor.numel() else b""


def tensor_from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Undo `tensor_bytes`; `data` has as many bytes as shape and dtype need."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


def round_to_dtype(values: npt.NDArray[np.float64], dtype: torch.dtype) -> torch.Tensor:
    """float64 → a float dtype: clamped to its finite range, rounded to float32 first, then to the dtype.

    The order of the steps is part of the format: it makes the result the same everywhere.
    """
    if dtype == torch.float64:
        return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))
    limit = np.float32(torch.finfo(dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.array(values, dtype=np.float32, order="C")
    # By numpy, since torch in a thread of ours would have threads of its own, which wait busily.
    # The limit is a float32, so that it makes no difference which comes first, clamping or rounding to float32.
    return torch.from_numpy(np.clip(single, -limit, limit, out=single)).to(dtype)


def entry_dtype(entry: TensorEntry) -> torch.dtype:
    """The dtype of a manifest entry.

    Raises:
        ArchiveError: this torch has no such dtype.
    """
    try:
        return dtype_from_name(entry.dtype)
    except (KeyError, ValueError) as error:
        raise ArchiveError(
            f"tensor {entry.name!r}: unknown dtype {entry.dtype!r}; update torch or wcompress"
        ) from error
