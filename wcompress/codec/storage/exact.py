"""Tensors kept bit for bit: integers, booleans, complex numbers, and floats that no quantiser may touch."""

from __future__ import annotations

from collections.abc import Container, Iterable

import numpy as np
import torch
import zstandard

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import entry_dtype, tensor_bytes, tensor_from_bytes
from wcompress.codec.storage.fields import words_of
from wcompress.codec.storage.units import MAX_GROWTH, pack_words, unpack_words
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

_STORED, _ZSTD, _UNIT, _SHORT = range(4)
_ZSTD_MAX_GROWTH = 32768  # a zstd block of at least 4 bytes restores at most 128 KiB
_FIRST_UNIT_VERSION = 5


def encode_raw(tensors: Iterable[torch.Tensor], *, stored: bool = False) -> bytes:
    """The `raw` section: each tensor in the form that suits its content. Sections of parts of the tensors add up to it.

    Args:
        tensors: contiguous CPU tensors of any dtype.
        stored: leave their bytes as they are.
    """
    parts: list[bytes] = []
    for tensor in tensors:
        coder, payload = (_STORED, tensor_bytes(tensor)) if stored else _encode(tensor)
        parts += [bytes([coder]), encode_varint(len(payload)), payload]
    return b"".join(parts)


def exact_bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes in the `raw` section, bytes; found by encoding it."""
    return len(encode_raw([tensor]))


def _encode(tensor: torch.Tensor) -> tuple[int, bytes]:
    data = tensor_bytes(tensor)
    short = data.rstrip(b"\0")
    if len(data) <= 16:
        return (_SHORT, short) if len(short) < len(data) else (_STORED, data)
    kind, layout = words_of(tensor.dtype)
    shape = tuple(tensor.shape) if kind.itemsize == tensor.element_size() else (*tensor.shape, 2)
    unit = pack_words(np.frombuffer(data, kind), layout, shape)
    unit += bytes(max(0, -(-len(data) // MAX_GROWTH) - 1 - len(unit)))
    return (_UNIT, unit) if len(unit) < len(data) else (_STORED, data)


def decode_raw(
    data: bytes, entries: Iterable[TensorEntry], version: int = 5, only: Container[str] | None = None
) -> dict[str, torch.Tensor]:
    """Undo `encode_raw`.

    Args:
        data: the section.
        entries: the raw tensors, in order.
        version: of the archive's format.
        only: names of the tensors to restore; all by default.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """
    cursor = ByteCursor(data, "raw")
    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        dtype = entry_dtype(entry)
        coder = cursor.take(1)[0]
        payload = cursor.take(cursor.varint())
        if only is not None and entry.name not in only:
            continue
        content = _decode(entry, coder if coder <= _ZSTD or version >= _FIRST_UNIT_VERSION else -1, payload)
        tensors[entry.name] = tensor_from_bytes(content, dtype, entry.shape)
    cursor.finish()
    return tensors


def _decode(entry: TensorEntry, coder: int, payload: bytes) -> bytes:
    dtype = entry_dtype(entry)
    n_bytes = entry.numel * dtype.itemsize
    if coder == _ZSTD and n_bytes <= _ZSTD_MAX_GROWTH * len(payload):
        try:
            # A frame that states its size is believed by the decompressor, whatever limit it is given.
            if zstandard.frame_content_size(payload) not in (-1, n_bytes):
                raise zstandard.ZstdError("it states another size")
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=n_bytes)
        except zstandard.ZstdError as error:
            raise ArchiveError(f"tensor {entry.name!r}: {error}; the archive is damaged") from error
    elif coder == _UNIT and 0 < n_bytes <= MAX_GROWTH * (len(payload) + 1):
        cursor = ByteCursor(payload, f"tensor {entry.name!r}")
        kind, layout = words_of(dtype)
        words = unpack_words(cursor, n_bytes // kind.itemsize, kind, layout)
        if cursor.take(cursor.remaining).strip(b"\0"):
            raise ArchiveError(f"tensor {entry.name!r}: bytes behind its last; the archive is damaged")
        payload = words.tobytes()
    elif coder == _SHORT and len(payload) < n_bytes <= 16:
        payload += bytes(n_bytes - len(payload))
    elif coder != _STORED:
        raise ArchiveError(f"tensor {entry.name!r}: its bytes cannot be restored; the archive is damaged")
    if len(payload) != n_bytes:
        raise ArchiveError(
            f"tensor {entry.name!r}: {n_bytes} bytes expected, {len(payload)} found; the archive is damaged"
        )
    return payload
