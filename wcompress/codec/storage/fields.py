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

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

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
    entropy_bits,
    fit_histogram,
)
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FIELDS = 6
_MAX_TOP_BITS = 4
_MAX_SCALE = 40  # octaves; sums of products of two such scales stay in float32
_SAMPLE = 1 << 16  # elements that suffice to choose how to code a tensor


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


@dataclass(frozen=True)
class _Scales:
    # Scales in steps of 1/P octave: of rows of `width` elements, and of columns; None where absent.
    width: int
    n_classes: int
    rows: Longs | None
    columns: Longs | None

    def split(self, n_words: int) -> tuple[Ints, npt.NDArray[np.int8]]:
        """Octave and class of each element."""
        scale = np.zeros((-(-n_words // self.width), self.width), np.int32)
        if self.rows is not None:
            scale += self.rows.astype(np.int32)[:, None]
        if self.columns is not None:
            scale += self.columns.astype(np.int32)[None, :]
        flat = scale.reshape(-1)[:n_words]
        return flat >> (self.n_classes.bit_length() - 1), (flat & (self.n_classes - 1)).astype(np.int8)

    def sides(self) -> list[Longs]:
        """The arrays of scales."""
        return [side for side in (self.rows, self.columns) if side is not None]


_NO_SCALES = _Scales(1, 1, None, None)


@dataclass(frozen=True)
class _Heads:
    # Exponent and first mantissa bits of elements.
    values: Ints
    top: int  # mantissa bits in `values`
    special: Mask | None

    def sample(self, width: int, picked: npt.NDArray[np.intp]) -> _Heads:
        """The elements of some rows of `width` elements."""
        special = None if self.special is None else _rows(self.special, width)[picked].reshape(-1)
        return _Heads(_rows(self.values, width)[picked].reshape(-1), self.top, special)

    def counts(self, octave: Ints, cls: npt.NDArray[np.int8], n_classes: int) -> tuple[int, Longs, Longs]:
        """Lowest symbol, occurrences of symbols by class `[P, …]`, occurrences of the special symbol `[P]`."""
        symbols = self.values - (octave << self.top)
        rare = np.zeros(n_classes, np.int64)
        if self.special is not None:
            rare = np.bincount(cls[self.special], minlength=n_classes)
            symbols, cls = symbols[~self.special], cls[~self.special]
        first = int(symbols.min(initial=1 << 24)) >> self.top << self.top
        width = ((int(symbols.max(initial=first)) - first >> self.top) + 1) << self.top
        symbols -= np.int32(first)
        if n_classes > 1:
            symbols = symbols + cls * np.int64(width)
        return first, np.bincount(symbols, minlength=n_classes * width).reshape(-1, width), rare


def _rows(array: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    return array[: len(array) // width * width].reshape(-1, width)


def pack_fields(words: Words, layout: Layout, shape: tuple[int, ...]) -> bytes:
    """Floats `[n]` in form 6, or as an array where their exponents are too many for a table.

    Args:
        words: little-endian words, n at least 1.
        layout: their fields.
        shape: of the tensor whose elements they are.
    """
    n_mantissa = layout.mantissa
    top = min(_MAX_TOP_BITS, n_mantissa)
    sign_at = words.dtype.type(layout.exponent + n_mantissa)
    magnitudes = words & words.dtype.type((1 << int(sign_at)) - 1)
    values = (magnitudes >> words.dtype.type(n_mantissa - top)).astype(np.int32)
    tiny: Mask = values < 1 << top
    zero_mode = 0
    if tiny.any() and not magnitudes[tiny].any():
        zero_mode = 1 if words[tiny].any() else 2
    special = tiny if zero_mode else None
    used = int(np.bitwise_or.reduce(words)) | 1 << n_mantissa
    n_zeros = (used & -used).bit_length() - 1
    heads = _Heads(values, top, special)
    scales, n_top = _choose(heads, _candidates(values, top, layout, shape), n_zeros, n_mantissa)
    octave, cls = scales.split(len(words))
    heads = _Heads(values >> (top - n_top), n_top, special)
    first, counts, rare = heads.counts(octave, cls, scales.n_classes)
    if counts.shape[1] > MAX_SYMBOLS:  # the sample did not show it
        return pack_array(words)
    n_zeros = min(n_zeros, n_mantissa - n_top)
    out = BitWriter()
    parts: list[tuple[npt.NDArray[np.integer], Histogram]] = []
    for side in scales.sides():
        lowest = int(side.min())
        table = fit_histogram(np.bincount(side - lowest), lowest)
        table.write(out)
        parts.append((side - table.shift, table))
    symbols = heads.values - (octave << n_top)
    for number in range(scales.n_classes):
        table = fit_histogram(counts[number], first, 1 << n_top, int(rare[number]) if zero_mode else None)
        table.write(out, 1 << n_top)
        index = symbols - table.shift
        if special is not None:
            index[special] = 0
        parts.append((index if scales.n_classes == 1 else index[cls == number], table))
    head = bytes([FIELDS, n_top | zero_mode << 3 | (scales.n_classes.bit_length() - 1) << 5, n_zeros])
    if scales.sides():
        which = (scales.rows is not None) + 2 * (scales.columns is not None)
        head = bytes([head[0], head[1] | 0x80, head[2], which]) + encode_varint(scales.width)
    ordinary = words if special is None else words[~special]
    signs = (ordinary if zero_mode == 2 else words) >> sign_at != 0
    rest = ordinary >> words.dtype.type(n_zeros)
    tail = pack_numbers(rest, n_mantissa - n_top - n_zeros)
    body = out.to_bytes() + encode_arrays(parts)
    return b"".join([head, encode_varint(len(body)), body, pack_bits(signs), tail])


def _candidates(values: Ints, top: int, layout: Layout, shape: tuple[int, ...]) -> Iterable[_Scales]:
    yield _NO_SCALES
    n_words = len(values)
    width = n_words // shape[0] if len(shape) > 1 else 64
    if n_words < 256 or width < 8:
        return
    exponents = values >> top
    usable = (exponents > 0) & (exponents < (1 << layout.exponent) - 1)
    if not usable.any():
        return
    middle = int(np.median(exponents[usable][:_SAMPLE]))
    # The same magnitudes, over 2^middle, as float32.
    heads = np.clip(values - (middle << top), -_MAX_SCALE << top, _MAX_SCALE << top) + np.int32(127 << top)
    sizes = (heads << np.int32(23 - top)).view(np.float32) * usable
    n_rows = -(-n_words // width)
    missing = n_rows * width - n_words
    grid = np.pad(sizes, (0, missing)).reshape(n_rows, width)
    known = np.pad(usable.astype(np.float32), (0, missing)).reshape(n_rows, width)
    rows = rows_alone = _log_ratio(grid.sum(1), known.sum(1))
    columns = np.zeros(width, np.float32)
    for _ in range(3 if n_rows >= 8 else 0):
        columns = _log_ratio(np.exp2(-rows) @ grid, known.sum(0))
        columns = np.clip(columns - np.rint(columns.mean()), -_MAX_SCALE, _MAX_SCALE)
        rows = _log_ratio(grid @ np.exp2(-columns), known.sum(1))
    for n_classes in (1, 2, 4, 8):
        steps = [np.rint(n_classes * side).astype(np.int64) for side in (rows_alone, rows, columns)]
        yield _Scales(width, n_classes, steps[0], None)
        if n_rows >= 8 and len(shape) > 1:
            yield _Scales(width, n_classes, steps[1], steps[2])


def _log_ratio(sums: Floats, counts: Floats) -> Floats:
    # log₂(sum / count), and 0 where there is nothing.
    ratio: Floats = np.log2(np.where(sums > 0, sums, 1) / np.where(sums > 0, counts, 1))
    return np.clip(ratio, -_MAX_SCALE, _MAX_SCALE)


def _choose(heads: _Heads, candidates: Iterable[_Scales], n_zeros: int, n_mantissa: int) -> tuple[_Scales, int]:
    # Which scales, and how many mantissa bits with the exponent: by entropy, on a sample of rows.
    n_words = len(heads.values)
    best = float("inf"), _NO_SCALES, 0
    for scales in candidates:
        sample, some = heads, scales
        if n_words >= 2 * _SAMPLE:
            width = scales.width if scales.sides() else 64
            n_rows = n_words // width
            picked = np.arange(0, n_rows, max(min(n_words // _SAMPLE, n_rows // 8), 1))
            sample = heads.sample(width, picked)
            some = scales if scales.rows is None else replace(scales, rows=scales.rows[picked])
        _, counts, rare = sample.counts(*some.split(len(sample.values)), scales.n_classes)
        side_bits = sum(sum(entropy_bits(np.bincount(side - side.min()))) for side in scales.sides())
        for n_top in range(heads.top, -1, -1):
            # The special symbol's occurrences are the last column.
            coded = [entropy_bits(row) for row in np.column_stack([counts, rare])]
            kept = max(n_mantissa - n_top - n_zeros, 0) * int(counts.sum())
            bits = sum(symbols for symbols, _ in coded) + kept
            bits = bits * n_words / len(sample.values) + sum(table for _, table in coded) + side_bits
            if bits < best[0] and counts.shape[1] <= MAX_SYMBOLS:
                best = bits, scales, n_top
            if n_top:
                counts = counts.reshape(len(counts), -1, 2).sum(2)
    return best[1:]


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
    width = cursor.varint() if has_scales else 1
    if not 1 <= width <= n_words or which > 3 or (has_scales and not which):
        raise ArchiveError(f"lossless: scales {which} of rows of {width} elements; the archive is damaged")
    body = cursor.take(cursor.varint())
    bits = BitReader(body, "lossless")
    side_tables = [Histogram.read(bits) for side in (1, 2) if which & side]
    tables = [Histogram.read(bits, 1 << n_top, special=zero_mode > 0) for _ in range(n_classes)]
    decoder = ArrayDecoder(body[-(-bits.position // 8) :], "lossless")
    sizes = [size for side, size in ((1, -(-n_words // width)), (2, width)) if which & side]
    sides = [
        decoder.take(size, table).astype(np.int64) + table.shift for size, table in zip(sizes, side_tables, strict=True)
    ]
    scales = _Scales(width, n_classes, sides[0] if which & 1 else None, sides[-1] if which & 2 else None)
    octave, cls = scales.split(n_words)
    symbols = np.empty(n_words, np.int32)
    special = np.zeros(n_words, np.bool_)
    for number, table in enumerate(tables):
        inside = cls == number
        index = decoder.take(int(np.count_nonzero(inside)), table)
        symbols[inside] = index + table.shift
        if zero_mode:
            special[inside] = index == 0
    # Sums stay far below 2^63: scales and symbols are below 2^25, b at most 7.
    values = symbols.astype(np.int64) + (octave.astype(np.int64) << n_top)
    values[special] = 0
    if values.min() < 0 or values.max() >= 1 << (layout.exponent + n_top):
        raise ArchiveError("lossless: an exponent is out of range; the archive is damaged")
    words = values.astype(kind) << kind.type(layout.mantissa - n_top)
    sign_at, ordinary = kind.type(layout.exponent + layout.mantissa), ~special
    if zero_mode == 2:
        words[ordinary] |= unpack_bits(cursor, int(np.count_nonzero(ordinary))).astype(kind) << sign_at
    else:
        words |= unpack_bits(cursor, n_words).astype(kind) << sign_at
    words[ordinary] |= unpack_numbers(cursor, int(np.count_nonzero(ordinary)), n_low, kind) << kind.type(n_zeros)
    return words
