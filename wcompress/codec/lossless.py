"""Method `lossless`: every tensor bit for bit, NaN payloads, −0.0 and denormals included.

A float's exponent varies little and its mantissa a lot: the exponent with the first mantissa bits, which are not
uniform either, is coded under a frequency table, and the rest is kept as it is. Where the size of weights differs from
row to row and column to column of a matrix, each row and column has a scale, and an exponent is coded relative to its
row's and column's scale.

The section, for each coded tensor in row order: varint length, and a *unit* of so many bytes; an empty tensor's unit is
empty. A tensor is its elements in row-major order as unsigned little-endian *words*: a complex number is two floats,
real part first; other elements are one word each, of the dtype's size. A reader MUST refuse a unit whose tensor has
more than 32,768 times its bytes, or, unless it is of form 0 or 1, more than 1,024 times.

A unit is an array of the tensor's n words of w bytes in one of the forms 0 to 5, as `entropy.histogram` defines arrays,
tables and streams; or, only for floats, of one sign bit, E exponent bits and M mantissa bits, the byte 6 and:

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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.manifest import TensorEntry
from wcompress.codec.raw import entry_dtype
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.histogram import (
    MAX_GROWTH,
    MAX_SYMBOLS,
    PALETTE,
    STORED,
    ZSTD,
    ArrayDecoder,
    Histogram,
    Kind,
    Words,
    encode_arrays,
    entropy_bits,
    fit_histogram,
    pack_array,
    pack_bits,
    pack_numbers,
    pack_palettes,
    pack_zstd,
    quick_zstd_bytes,
    runs_repeat,
    unpack_array,
    unpack_bits,
    unpack_numbers,
    unpack_palette,
)
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_FIELDS = 6
_MAX_CODED_GROWTH = 1024
_MAX_TOP_BITS = 4
_MAX_SCALE = 40  # octaves; sums of products of two such scales stay in float32
_SAMPLE = 1 << 16  # elements that suffice to choose how to code a tensor


class _Layout(NamedTuple):
    exponent: int
    mantissa: int


_LAYOUTS = {
    "float64": _Layout(11, 52),
    "float32": _Layout(8, 23),
    "float16": _Layout(5, 10),
    "bfloat16": _Layout(8, 7),
    "float8_e4m3fn": _Layout(4, 3),
    "float8_e4m3fnuz": _Layout(4, 3),
    "float8_e5m2": _Layout(5, 2),
    "float8_e5m2fnuz": _Layout(5, 2),
}
_COMPONENTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}


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


def _words_of(dtype: torch.dtype) -> tuple[Kind, _Layout | None]:
    name = str(dtype).removeprefix("torch.")
    n_parts = 2 if name in _COMPONENTS else 1
    return np.dtype(f"<u{dtype.itemsize // n_parts}"), _LAYOUTS.get(_COMPONENTS.get(name, name))


def _pack_tensor(tensor: torch.Tensor) -> bytes:
    kind, layout = _words_of(tensor.dtype)
    words = as_bytes(tensor).numpy().view(kind)
    data = words.tobytes()
    quick = quick_zstd_bytes(data)
    units = [pack_array(words) if layout is None else _pack_fields(words, layout, tuple(tensor.shape))]
    if quick < 1.1 * len(units[0]) or runs_repeat(words):
        units += pack_palettes(words)
    allowed = [unit for unit in units if unit[0] == ZSTD or len(data) <= _MAX_CODED_GROWTH * len(unit)]
    best = min([*allowed, bytes([STORED]) + data], key=len)
    packed = pack_zstd(data, len(best), quick)
    return min(best, packed, key=len) if packed else best


def _unpack_tensor(entry: TensorEntry, unit: bytes) -> torch.Tensor:
    dtype = entry_dtype(entry)
    if entry.numel == 0:
        return torch.empty(entry.shape, dtype=dtype)
    kind, layout = _words_of(dtype)
    n_words = entry.numel * dtype.itemsize // kind.itemsize
    form = unit[0]
    special_form = form == PALETTE or (form == _FIELDS and layout is not None)
    cursor = ByteCursor(unit[special_form:], f"tensor {entry.name!r}")
    if form == PALETTE:
        words = unpack_palette(cursor, n_words, kind)
    elif form == _FIELDS and layout is not None:
        words = _unpack_fields(cursor, n_words, kind, layout)
    else:
        words = unpack_array(cursor, n_words, kind)
    cursor.finish()
    flat = torch.from_numpy(np.array(words, dtype=kind).view(np.uint8))
    return flat.view(dtype).reshape(entry.shape)


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


def _pack_fields(words: Words, layout: _Layout, shape: tuple[int, ...]) -> bytes:
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
    head = bytes([_FIELDS, n_top | zero_mode << 3 | (scales.n_classes.bit_length() - 1) << 5, n_zeros])
    if scales.sides():
        which = (scales.rows is not None) + 2 * (scales.columns is not None)
        head = bytes([head[0], head[1] | 0x80, head[2], which]) + encode_varint(scales.width)
    ordinary = words if special is None else words[~special]
    signs = (ordinary if zero_mode == 2 else words) >> sign_at != 0
    rest = ordinary >> words.dtype.type(n_zeros)
    tail = pack_numbers(rest, n_mantissa - n_top - n_zeros)
    body = out.to_bytes() + encode_arrays(parts)
    return b"".join([head, encode_varint(len(body)), body, pack_bits(signs), tail])


def _candidates(values: Ints, top: int, layout: _Layout, shape: tuple[int, ...]) -> Iterable[_Scales]:
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


def _unpack_fields(cursor: ByteCursor, n_words: int, kind: Kind, layout: _Layout) -> Words:
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
