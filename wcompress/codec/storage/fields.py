"""Floats by their fields: exponents and first mantissa bits under frequency tables, the rest as it is.

Form 6 of a unit (`codec.lossless`) of n floats of one sign bit, E exponent bits and M mantissa bits: the byte 6 and,
with arrays as `entropy.arrays`, tables and streams as `entropy.histogram` defines them,

    u8          bits 0–2: b, how many mantissa bits are coded with the exponent, at most M
                bits 3–4: z, see below; 0, 1 or 2
                bits 5–6: log₂ of P, the number of classes; 0 if there are no scales
                bit 7: 1 if there are scales
    u8          t, low bits that are 0 in every mantissa, at most M − b
    if scales   u8: 1 for scales of rows, 2 of columns, 3 of both; varint B, the length of a row, 1 to n
    varint      length of tables and stream together
    tables      of the rows' scales if any, of the columns' scales if any (neither with a special symbol, octave 0),
                then P tables (with a special symbol if z > 0, octave 2^b); together filled with 0 bits to whole bytes
    stream      the rows' scales, the columns' scales, then for each class from 0 the symbols of its elements in order,
                each array under its table
    signs       array of bits, of all elements or, if z = 2, of all but those with the special symbol
    mantissas   array of numbers of M − b − t bits, what is left of a mantissa without its first b and last t bits; of
                all but the elements with the special symbol

Element i has the scale S = r(⌊i/B⌋) + c(i mod B), with 0 for what is absent; its class is S mod P, from 0 to P − 1, and
its octave ⌊S / P⌋. A symbol u stands for the exponent and the first b mantissa bits u + octave · 2^b, which MUST be in
[0, 2^(E+b)). The special symbol stands for an exponent and a mantissa of 0; if z = 2, for a sign of 0, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.storage.field_scales import SPECIAL, chosen_scales, class_sizes, counted, gathered, placed
from wcompress.entropy.arrays import (
    Kind,
    Words,
    pack_array,
    pack_bits,
    pack_numbers,
    unpack_bits,
    unpack_numbers,
)
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.histogram import (
    MAX_SYMBOLS,
    ArrayDecoder,
    Histogram,
    encode_arrays,
    fit_histogram,
)
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

Mask = npt.NDArray[np.bool_]

FIELDS = 6
_MAX_TOP_BITS = 4
_ROW = 1 << 10  # elements that are looked at together where rows mean nothing


class Layout(NamedTuple):
    """Bits of a float's fields, besides its sign."""

    exponent: int
    mantissa: int


_LAYOUTS = {
    "float64": Layout(11, 52),
    "float32": Layout(8, 23),
    "float16": Layout(5, 10),
    "bfloat16": Layout(8, 7),
    "float8_e4m3fn": Layout(4, 3),
    "float8_e4m3fnuz": Layout(4, 3),
    "float8_e5m2": Layout(5, 2),
    "float8_e5m2fnuz": Layout(5, 2),
}
_COMPONENTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}


def words_of(dtype: torch.dtype) -> tuple[Kind, Layout | None]:
    """The words that a dtype's elements are made of, and the fields of each if it is a float."""
    name = str(dtype).removeprefix("torch.")
    n_parts = 2 if name in _COMPONENTS else 1
    return np.dtype(f"<u{dtype.itemsize // n_parts}"), _LAYOUTS.get(_COMPONENTS.get(name, name))


def pack_fields(words: Words, layout: Layout, shape: tuple[int, ...]) -> bytes:
    """Floats `[n]` in form 6, or as an array where their exponents are too many for a table.

    Args:
        words: little-endian words, n at least 1.
        layout: their fields.
        shape: of the tensor whose elements they are.
    """
    n_mantissa = layout.mantissa
    top = min(_MAX_TOP_BITS, n_mantissa)
    kind = words.dtype.type
    sign_at = kind(layout.exponent + n_mantissa)
    heads = (words >> kind(n_mantissa - top)).astype(np.uint16) & np.uint16((1 << (layout.exponent + top)) - 1)
    zero_mode, special = 0, None
    if heads.min() < 1 << top:
        tiny: Mask = heads < 1 << top
        if not (words[tiny] << kind(1)).any():
            zero_mode = 1 if words[tiny].any() else 2
            special = tiny
    used = int(np.bitwise_or.reduce(words)) | 1 << n_mantissa
    n_zeros = (used & -used).bit_length() - 1
    scales, n_top = chosen_scales(heads, shape, layout.exponent, n_mantissa, top, n_zeros, zero_mode > 0)
    heads >>= np.uint16(top - n_top)
    rows, columns = scales.of(0, -(-len(words) // scales.width))
    first, counts = counted(heads, rows, columns, scales.n_classes, n_top, zero_mode > 0)
    if counts.shape[1] - 1 > MAX_SYMBOLS:  # the sample did not show it
        return pack_array(words)
    symbols, bounds = placed(heads, scales, n_top, zero_mode > 0, first, counts)
    n_zeros = min(n_zeros, n_mantissa - n_top)
    out = BitWriter()
    parts: list[tuple[npt.NDArray[np.integer], Histogram]] = []
    for side in scales.sides():
        lowest = int(side.min())
        table = fit_histogram(np.bincount(side - lowest), lowest)
        table.write(out)
        parts.append((side - table.shift, table))
    for number in range(scales.n_classes):
        own = symbols[bounds[number] : bounds[number + 1]]
        rare = int(counts[number, -1]) if zero_mode else None
        table = fit_histogram(counts[number, :-1], first, 1 << n_top, rare)
        table.write(out, 1 << n_top)
        index = own + np.uint16((first - table.shift) & 0xFFFF)
        if rare:
            index[own == SPECIAL] = 0
        parts.append((index, table))
    head = bytes([FIELDS, n_top | zero_mode << 3 | (scales.n_classes.bit_length() - 1) << 5, n_zeros])
    if scales.sides():
        which = (scales.rows is not None) + 2 * (scales.columns is not None)
        head = bytes([head[0], head[1] | 0x80, head[2], which]) + encode_varint(scales.width)
    ordinary = words if special is None else words[~special]
    signs = (ordinary if zero_mode == 2 else words) >> sign_at != 0
    rest = ordinary >> kind(n_zeros) if n_zeros else ordinary
    tail = pack_numbers(rest, n_mantissa - n_top - n_zeros)
    body = out.to_bytes() + encode_arrays(parts)
    return b"".join([head, encode_varint(len(body)), body, pack_bits(signs), tail])


def unpack_fields(cursor: ByteCursor, n_words: int, kind: Kind, layout: Layout) -> Words:
    """Undo `pack_fields`; the form is behind the cursor.

    Args:
        cursor: at what follows the form.
        n_words: how many floats.
        kind: dtype of their words.
        layout: the fields of each.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    flags, n_zeros = cursor.take(2)
    n_top, zero_mode, n_classes = flags & 7, flags >> 3 & 3, 1 << (flags >> 5 & 3)
    n_low = layout.mantissa - n_top - n_zeros
    has_scales = flags >> 7
    if zero_mode == 3 or n_low < 0 or (n_classes > 1 and not has_scales):
        raise ArchiveError("lossless: fields of impossible widths; the archive is damaged")
    which = cursor.take(1)[0] if has_scales else 0
    width = cursor.varint() if has_scales else min(n_words, _ROW)
    if not 1 <= width <= n_words or which > 3 or (has_scales and not which):
        raise ArchiveError(f"lossless: scales {which} of rows of {width} elements; the archive is damaged")
    body = cursor.take(cursor.varint())
    bits = BitReader(body, "lossless")
    side_tables = [Histogram.read(bits) for side in (1, 2) if which & side]
    tables = [Histogram.read(bits, 1 << n_top, special=zero_mode > 0) for _ in range(n_classes)]
    decoder = ArrayDecoder(body[-(-bits.position // 8) :], "lossless")
    n_rows = -(-n_words // width)
    rows, columns = np.zeros(n_rows, np.int64), np.zeros(width, np.int64)
    coded = [side for side, bit in ((rows, 1), (columns, 2)) if which & bit]
    for side, table in zip(coded, side_tables, strict=True):
        side[:] = decoder.take(len(side), table)
        side += table.shift
    sizes = np.empty(n_classes, np.int64)
    class_sizes(n_words, rows, columns, sizes)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    symbols = np.empty(n_words, np.int32)
    for table, start, stop in zip(tables, bounds[:-1], bounds[1:], strict=True):
        decoder.take_into(symbols[start:stop], table)
    shifts = np.array([table.shift for table in tables])
    heads = np.empty(n_words, np.int32)
    limit = 1 << (layout.exponent + n_top)
    if not gathered(symbols, bounds[:-1], shifts, rows, columns, n_top, zero_mode > 0, limit, heads):
        raise ArchiveError("lossless: an exponent is out of range; the archive is damaged")
    special = heads < 0 if zero_mode else None
    if special is not None:
        heads[special] = 0
    words = heads.astype(kind) << kind.type(layout.mantissa - n_top)
    sign_at = kind.type(layout.exponent + layout.mantissa)
    ordinary = slice(None) if special is None else ~special
    n_ordinary = n_words if special is None else n_words - int(np.count_nonzero(special))
    if zero_mode == 2:
        words[ordinary] |= unpack_bits(cursor, n_ordinary).astype(kind) << sign_at
    else:
        words |= unpack_bits(cursor, n_words).astype(kind) << sign_at
    words[ordinary] |= unpack_numbers(cursor, n_ordinary, n_low, kind) << kind.type(n_zeros)
    return words
