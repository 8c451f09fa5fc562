"""Method `lossless`: every tensor bit for bit, NaN payloads, −0.0 and denormals included.

A float's exponent varies little and its mantissa a lot: the exponent with the first mantissa bits, which are not
uniform either, is coded under a frequency table, and the rest is kept as it is. Where the size of weights differs from
row to row and column to column of a matrix, each row and column has a scale, and an exponent is coded relative to its
row's and column's scale.

The section, for each coded tensor in row order: varint length, and a *unit* of so many bytes; an empty tensor's unit is
empty. A tensor is its elements in row-major order as unsigned little-endian *words*: a complex number is two floats,
real part first; other elements are one word each, of the dtype's size. A reader MUST refuse a unit whose tensor has
more than 32,768 times its bytes, or, unless it is of form 0 or 1, more than 1,024 times.

A unit is an array of the tensor's n words of w bytes in one of the forms 0 to 5, as `entropy.arrays` defines arrays,
or, only for floats, in form 6, as `codec.fields` defines it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import entry_dtype
from wcompress.codec.storage.fields import FIELDS, Layout, pack_fields, unpack_fields, words_of
from wcompress.entropy.arrays import (
    MAX_GROWTH,
    PALETTE,
    STORED,
    ZSTD,
    Kind,
    Words,
    pack_array,
    pack_palettes,
    pack_zstd,
    pieces,
    quick_zstd_bytes,
    runs_repeat,
    unpack_array,
    unpack_palette,
)
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes
from wcompress.wire import ByteCursor, encode_varint

_MAX_CODED_GROWTH = 1024
_MUCH = 1 << 18  # bytes of which pieces are looked at first
_FAR_FROM_IT = 1.12
"""How much longer zstd's haste may be than a unit for zstd or a palette to be worth a closer look."""


def encode_lossless(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The section of the tensors, in order.

    Args:
        tensors: contiguous CPU tensors of any dtype that fills whole bytes; floats and complex numbers gain most.
    """
    parts: list[bytes] = []
    for tensor in tensors.values():
        unit = _pack_tensor(tensor) if tensor.numel() else b""
        parts += [encode_varint(len(unit)), unit]
    return b"".join(parts)


class LosslessReader:
    """Restores tensors from the section of method `lossless`.

    Args:
        entries: the coded tensors, in order.
        data: the section.

    Raises:
        ArchiveError: the section does not hold what the entries say.
    """

    def __init__(self, entries: Sequence[TensorEntry], data: bytes) -> None:
        cursor = ByteCursor(data, "lossless")
        self._units: dict[str, tuple[TensorEntry, bytes]] = {}
        for entry in entries:
            unit = cursor.take(cursor.varint())
            n_bytes = entry.numel * entry_dtype(entry).itemsize
            growth = MAX_GROWTH if unit[:1] in (b"\0", b"\1") else _MAX_CODED_GROWTH
            if n_bytes > growth * len(unit):
                raise ArchiveError(
                    f"tensor {entry.name!r}: {n_bytes} bytes cannot come from {len(unit)}; the archive is damaged"
                )
            self._units[entry.name] = entry, unit
        cursor.finish()

    def restore(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named, or all; the others are not decoded.

        Damaged bytes may restore to wrong values: checksums are the caller's business.

        Args:
            names: of the entries given.

        Raises:
            ArchiveError: a tensor's unit is malformed.
        """
        return {name: _unpack_tensor(*self._units[name]) for name in (self._units if names is None else names)}


def pack_unit(
    words: Words, layout: Layout | None, shape: tuple[int, ...], max_growth: int = _MAX_CODED_GROWTH
) -> bytes:
    """Words as a unit, in the smallest of the forms 0 to 6.

    Args:
        words: little-endian words `[n]`, n at least 1.
        layout: their fields, where they are floats.
        shape: of the tensor whose elements they are.
        max_growth: how many times a unit's length the words may be, unless it is of form 0 or 1.
    """
    n_bytes = words.nbytes
    best = pack_array(words) if layout is None else pack_fields(words, layout, shape)
    repeats = runs_repeat(words)
    if n_bytes >= _MUCH and not repeats and best[0] != ZSTD and n_bytes <= max_growth * len(best):
        some = pieces(words)
        if quick_zstd_bytes(some) * n_bytes > _FAR_FROM_IT * len(best) * len(some):
            return best if len(best) <= n_bytes else bytes([STORED]) + words.tobytes()
    data = words.tobytes()
    quick = quick_zstd_bytes(data)
    units = [best]
    if quick < 1.1 * len(best) or repeats:
        units += pack_palettes(words)
    allowed = [unit for unit in units if unit[0] == ZSTD or n_bytes <= max_growth * len(unit)]
    best = min([*allowed, bytes([STORED]) + data], key=len)
    packed = pack_zstd(data, len(best), quick)
    return min(best, packed, key=len) if packed else best


def unpack_unit(cursor: ByteCursor, n_words: int, kind: Kind, layout: Layout | None) -> Words:
    """Undo `pack_unit`; the result may be read-only.

    Args:
        cursor: at the unit.
        n_words: its words; memory for a few times as many is used, whatever the bytes say.
        kind: little-endian unsigned dtype of a word.
        layout: the fields of a word, where it is a float.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    form = cursor.take(1)[0]
    if form == PALETTE:
        return unpack_palette(cursor, n_words, kind)
    if form == FIELDS and layout is not None:
        return unpack_fields(cursor, n_words, kind, layout)
    cursor.position -= 1
    return unpack_array(cursor, n_words, kind)


def _pack_tensor(tensor: torch.Tensor) -> bytes:
    kind, layout = words_of(tensor.dtype)
    return pack_unit(as_bytes(tensor).numpy().view(kind), layout, tuple(tensor.shape))


def _unpack_tensor(entry: TensorEntry, unit: bytes) -> torch.Tensor:
    dtype = entry_dtype(entry)
    if entry.numel == 0:
        return torch.empty(entry.shape, dtype=dtype)
    kind, layout = words_of(dtype)
    cursor = ByteCursor(unit, f"tensor {entry.name!r}")
    words = unpack_unit(cursor, entry.numel * dtype.itemsize // kind.itemsize, kind, layout)
    cursor.finish()
    flat = torch.from_numpy(np.array(words, dtype=kind).view(np.uint8))
    return flat.view(dtype).reshape(entry.shape)
