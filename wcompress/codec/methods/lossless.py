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
or, only for floats, in form 6 as `codec.storage.fields` or form 12 as `codec.storage.quick_fields` define them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import entry_dtype
from wcompress.codec.storage.fields import FIELDS, Layout, pack_fields, unpack_fields, words_of
from wcompress.codec.storage.quick_fields import QUICK_FIELDS, pack_quick, unpack_quick
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
_LITTLE = 1 << 12  # bytes that are never written for speed
_FEW = 1 << 14  # words that show whether runs repeat where there is no time for more
_FAR_FROM_IT = 1.12
"""How much longer zstd's haste may be than a unit for zstd or a palette to be worth a closer look."""


def encode_lossless(tensors: Mapping[str, torch.Tensor], *, quick: bool = False) -> bytes:
    """The section of the tensors, in order.

    Args:
        tensors: contiguous CPU tensors of any dtype that fills whole bytes; floats and complex numbers gain most.
        quick: large tensors are written for speed.
    """
    parts: list[bytes] = []
    for tensor in tensors.values():
        unit = _pack_tensor(tensor, quick=quick) if tensor.numel() else b""
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
    words: Words,
    layout: Layout | None,
    shape: tuple[int, ...],
    max_growth: int = _MAX_CODED_GROWTH,
    *,
    quick: bool = False,
) -> bytes:
    """Words as a unit, in the smallest of the forms 0 to 6 by what it takes to choose.

    Args:
        words: little-endian words `[n]`, n at least 1.
        layout: their fields, where they are floats.
        shape: of the tensor whose elements they are.
        max_growth: how many times a unit's length the words may be, unless it is of form 0 or 1.
        quick: many floats that have nothing but their exponents to gain from are written in form 12.
    """
    n_bytes = words.nbytes
    # Of 8-bit floats, the mantissa is as much worth coding as the exponent.
    quick = quick and words.itemsize > 1 and n_bytes > _LITTLE and not runs_repeat(words[:_FEW])
    if quick and layout is not None:
        unit = pack_quick(words, layout)
        if unit is not None and len(unit) <= n_bytes and not _zstd_is_near(words, len(unit), hurried=True):
            return unit
    best = pack_array(words) if layout is None else pack_fields(words, layout, shape)
    repeats = runs_repeat(words)
    is_usual = n_bytes >= _MUCH and not repeats and best[0] != ZSTD and n_bytes <= max_growth * len(best)
    if is_usual and not _zstd_is_near(words, len(best)):
        return best if len(best) <= n_bytes else bytes([STORED]) + words.tobytes()
    data = words.tobytes()
    hasty = quick_zstd_bytes(data)
    units = [best]
    if hasty < 1.1 * len(best) or repeats:
        units += pack_palettes(words)
    allowed = [unit for unit in units if unit[0] == ZSTD or n_bytes <= max_growth * len(unit)]
    best = min([*allowed, bytes([STORED]) + data], key=len)
    packed = pack_zstd(data, len(best), hasty)
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
    if form == QUICK_FIELDS and layout is not None:
        return unpack_quick(cursor, n_words, kind, layout)
    if form == FIELDS and layout is not None:
        return unpack_fields(cursor, n_words, kind, layout)
    cursor.position -= 1
    return unpack_array(cursor, n_words, kind)


def _zstd_is_near(words: Words, n_bytes: int, *, hurried: bool = False) -> bool:
    # Whether zstd, or a palette under it, may do better than a unit of so many bytes; by pieces of the words.
    some = pieces(words, hurried=hurried)
    return quick_zstd_bytes(some) * words.nbytes < (1.0 if hurried else _FAR_FROM_IT) * n_bytes * len(some)


def _pack_tensor(tensor: torch.Tensor, *, quick: bool) -> bytes:
    kind, layout = words_of(tensor.dtype)
    return pack_unit(as_bytes(tensor).numpy().view(kind), layout, tuple(tensor.shape), quick=quick)


def _unpack_tensor(entry: TensorEntry, unit: bytes) -> torch.Tensor:
    dtype = entry_dtype(entry)
    if entry.numel == 0:
        return torch.empty(entry.shape, dtype=dtype)
    kind, layout = words_of(dtype)
    cursor = ByteCursor(unit, f"tensor {entry.name!r}")
    words = unpack_unit(cursor, entry.numel * dtype.itemsize // kind.itemsize, kind, layout)
    cursor.finish()
    own = words if words.flags.writeable and words.flags.c_contiguous else np.array(words, dtype=kind)
    flat = torch.from_numpy(own.view(np.uint8))
    return flat.view(dtype).reshape(entry.shape)
