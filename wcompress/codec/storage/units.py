"""Units of words that are no ordinary weights: integers, tables, masks, few values (docs/format.md, "Raw tensors").

To the forms 0 to 6 of method `lossless` come five more. A unit is:

    7 numbers       one word, the base; varint length; so many bytes: a table (no special symbol, octave 0, from 0 on)
                    filled with zero bits to whole bytes, and a stream of n symbols under it. A word is base + symbol.
    8 differences   varint L, the lag, 1 to n − 1; a unit of L words, the first ones; a unit of n − L words: each later
                    word less the word L places before it
    9 offset        one word, the base; a unit of n words. A word is base + the unit's word.
    10 whole        only for floats: a unit of n words that are signed integers; each word is the float of that integer
    11 palette      varint m, 1 to 4,096 and at most n; a unit of m words; a unit of n words of 1 byte, or of 2 if m is
                    larger than 256: each word's place among the m, from 0

Sums wrap at the size of a word. Words of units within units are no floats, whatever the dtype; a unit lies in at most
four others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wcompress.codec.methods.lossless import pack_unit, unpack_unit
from wcompress.codec.storage.fields import Layout
from wcompress.entropy.arrays import Kind, Words, pack_array, quick_zstd_bytes
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

MAX_GROWTH = 1 << 17
"""How many times its unit's length what a unit restores to may be."""

NUMBERS, DIFFERENCES, OFFSET, WHOLE, PALETTE = range(7, 12)
_MAX_DEPTH = 4
_SAMPLE = 1 << 16  # words that suffice to choose
_PIECES = 4  # of a sample
_SMALL = 1 << 12  # words that may be coded in every way
_WORTH = 0.97  # an estimate must be so much lower to be believed
_FLOATS: dict[Layout, type[np.floating]] = {
    Layout(11, 52): np.float64,
    Layout(8, 23): np.float32,
    Layout(5, 10): np.float16,
}
_BRAIN = Layout(8, 7)


def pack_words(words: Words, layout: Layout | None, shape: tuple[int, ...]) -> bytes:
    """Words as a unit in a form that suits them.

    Args:
        words: little-endian words `[n]`, n at least 1.
        layout: their fields, where they are floats.
        shape: of the tensor whose elements they are.
    """
    return _pack(words, layout, shape, 0)


def unpack_words(cursor: ByteCursor, n_words: int, kind: Kind, layout: Layout | None, depth: int = 0) -> Words:
    """Undo `pack_words`; the result may be read-only.

    Args:
        cursor: at the unit.
        n_words: its words, at least 1; memory for a few times as many is used, whatever the bytes say.
        kind: little-endian unsigned dtype of a word.
        layout: the fields of a word, where it is a float.
        depth: how many units this one lies in.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    form = cursor.take(1)[0]
    if form == NUMBERS:
        return _base(cursor, kind) + _unpack_numbers(cursor, n_words).astype(kind)
    if form in (DIFFERENCES, OFFSET, WHOLE, PALETTE) and depth == _MAX_DEPTH:
        raise ArchiveError("unit: too many units in each other; the archive is damaged")
    if form == DIFFERENCES:
        lag = cursor.varint()
        if not 1 <= lag < n_words:
            raise ArchiveError(f"unit: a lag of {lag} in {n_words} words; the archive is damaged")
        first = unpack_words(cursor, lag, kind, None, depth + 1)
        return _sums(first, unpack_words(cursor, n_words - lag, kind, None, depth + 1))
    if form == OFFSET:
        base = _base(cursor, kind)
        return unpack_words(cursor, n_words, kind, None, depth + 1) + base
    if form == WHOLE and layout in (*_FLOATS, _BRAIN):
        return _floats(unpack_words(cursor, n_words, kind, None, depth + 1), layout)
    if form == PALETTE:
        return _unpack_palette(cursor, n_words, kind, depth)
    cursor.position -= 1
    return unpack_unit(cursor, n_words, kind, layout)


def _pack(words: Words, layout: Layout | None, shape: tuple[int, ...], depth: int) -> bytes:
    if (words == words[0]).all() or words.nbytes <= 16:
        return pack_array(words)
    as_they_are = _estimate(_sample(words, 0))
    units = list(_changed(words, layout, shape, depth, as_they_are)) if depth < _MAX_DEPTH else []
    # Forms 0 to 6 take the longest to try, and give what was estimated.
    if not units or len(words) < _SMALL or 8 * min(map(len, units)) > 1.02 * as_they_are * len(words):
        units.append(pack_unit(words, layout, shape, words.nbytes))
    return min(units, key=len)


def _changed(
    words: Words, layout: Layout | None, shape: tuple[int, ...], depth: int, as_they_are: float
) -> Iterator[bytes]:
    # The words in those of the forms 7 to 11 that look worth while.
    whole = None if layout is None else _whole(words, layout)
    if whole is not None:
        yield bytes([WHOLE]) + _pack(whole, None, shape, depth + 1)
        return
    lag = _best_lag(words, shape, as_they_are)
    if lag:
        head = bytes([DIFFERENCES]) + encode_varint(lag)
        differences = words[lag:] - words[:-lag]
        first = _pack(words[:lag].copy(), None, (lag,), depth + 1)
        yield head + first + _pack(differences, None, (len(differences),), depth + 1)
        return
    if words.itemsize == 1:
        return
    signed = words.view(f"<i{words.itemsize}")
    low, high = int(signed.min()), int(signed.max())
    base = words.dtype.type(low % (1 << 8 * words.itemsize))
    if high - low < MAX_SYMBOLS:
        yield bytes([NUMBERS]) + base.tobytes() + _pack_numbers((words - base).astype(np.int32))
    elif low < 0 < high and high - low < 1 << (8 * words.itemsize - 8):
        yield bytes([OFFSET]) + base.tobytes() + _pack(words - base, None, shape, depth + 1)
        return
    sample = _sample(words, 0)
    if len(np.unique(sample)) <= min(MAX_SYMBOLS, len(sample) // 4):
        palette = np.unique(words)
        if len(palette) <= min(MAX_SYMBOLS, len(words) // 4):
            index = np.searchsorted(palette, words).astype(np.uint8 if len(palette) <= 256 else "<u2")
            head = bytes([PALETTE]) + encode_varint(len(palette))
            values = _pack(palette, None, (len(palette),), depth + 1)
            yield head + values + _pack(index, None, shape, depth + 1)


def _best_lag(words: Words, shape: tuple[int, ...], as_they_are: float) -> int:
    # The lag at which differences are cheapest, 0 if words are cheaper still; by a sample.
    lags = {1}
    if math.prod(shape) == len(words):
        lags |= {math.prod(shape[axis:]) for axis in range(1, len(shape))}
    best, best_lag = as_they_are * _WORTH, 0
    for lag in sorted(lag for lag in lags if 0 < lag <= len(words) // 2):
        estimate = _estimate(_sample(words, lag))
        if estimate < best:
            best, best_lag = estimate, lag
    return best_lag


def _sample(words: Words, lag: int) -> Words:
    # Pieces of the words, or of their differences.
    n_words, size = len(words) - lag, _SAMPLE // _PIECES
    if n_words <= _SAMPLE:
        return words[lag:] - words[:-lag] if lag else words
    starts = [lag + k * (n_words - size) // (_PIECES - 1) for k in range(_PIECES)]
    pieces = [
        words[at : at + size] - words[at - lag : at - lag + size] if lag else words[at : at + size] for at in starts
    ]
    return np.concatenate(pieces)


def _estimate(words: Words) -> float:
    # About the bits of a word under forms 0 to 4, and 7 and 11, in which no word knows of another.
    planes = words.view(np.uint8).reshape(-1, words.itemsize)
    best = float(sum(sum(entropy_bits(np.bincount(planes[:, k], minlength=256))) for k in range(words.itemsize)))
    if words.itemsize > 1:
        counts = np.unique(words, return_counts=True)[1]
        if len(counts) <= MAX_SYMBOLS:
            best = min(best, sum(entropy_bits(counts)))
    return min(best, 8 * quick_zstd_bytes(words.tobytes()) or best) / len(words)


def _pack_numbers(symbols: npt.NDArray[np.int32]) -> bytes:
    table = fit_histogram(np.bincount(symbols), 0)
    out = BitWriter()
    table.write(out)
    body = out.to_bytes() + encode_arrays([(symbols - table.shift, table)])
    return encode_varint(len(body)) + body


def _unpack_palette(cursor: ByteCursor, n_words: int, kind: Kind, depth: int) -> Words:
    n_values = cursor.varint()
    if not 1 <= n_values <= min(MAX_SYMBOLS, n_words):
        raise ArchiveError(f"unit: a palette of {n_values}; the archive is damaged")
    palette = unpack_words(cursor, n_values, kind, None, depth + 1)
    index = unpack_words(cursor, n_words, np.dtype(np.uint8 if n_values <= 256 else "<u2"), None, depth + 1)
    if index.max() >= n_values:
        raise ArchiveError(f"unit: a place beyond a palette of {n_values}; the archive is damaged")
    return palette[index]


def _unpack_numbers(cursor: ByteCursor, n_words: int) -> npt.NDArray[np.int32]:
    body = cursor.take(cursor.varint())
    bits = BitReader(body, "unit")
    table = Histogram.read(bits)
    if table.first < 0:
        raise ArchiveError(f"unit: a table from {table.first}; the archive is damaged")
    decoder = ArrayDecoder(body[-(-bits.position // 8) :], "unit")
    return decoder.take(n_words, table) + np.int32(table.shift)


def _base(cursor: ByteCursor, kind: Kind) -> np.unsignedinteger:
    base: np.unsignedinteger = np.frombuffer(cursor.take(kind.itemsize), kind)[0]
    return base


def _sums(first: Words, differences: Words) -> Words:
    lag, n_words = len(first), len(first) + len(differences)
    grid = np.zeros((-(-n_words // lag), lag), first.dtype)
    flat = grid.reshape(-1)
    flat[:lag], flat[lag:n_words] = first, differences
    np.cumsum(grid, axis=0, dtype=grid.dtype, out=grid)
    return flat[:n_words]


def _whole(words: Words, layout: Layout) -> Words | None:
    """The signed integers that floats are, as words of the same size; None unless all are, and none is −0."""
    if layout not in (*_FLOATS, _BRAIN):
        return None
    step = -(-len(words) // 256)
    for some in (words[::step], words):
        values = _values(some, layout)
        limit = 2.0 ** (8 * words.itemsize - 1)
        with np.errstate(invalid="ignore"):
            inside = (values >= -limit) & (values < limit) & (values == np.rint(values))
        if not inside.all():
            return None
        integers = values.astype(f"<i{words.itemsize}")
        if not np.array_equal(_floats(integers.view(words.dtype), layout), some):
            return None
    return integers.view(words.dtype)


def _values(words: Words, layout: Layout) -> npt.NDArray[np.floating]:
    if layout == _BRAIN:
        return (words.astype("<u4") << np.uint32(16)).view(np.float32)
    return words.view(_FLOATS[layout])


def _floats(words: Words, layout: Layout) -> Words:
    """Signed integers as floats, rounded to nearest, ties to even; bfloat16 by the upper half of float32."""
    with np.errstate(over="ignore"):
        integers = words.view(f"<i{words.itemsize}")
        if layout == _BRAIN:
            return (integers.astype(np.float32).view("<u4") >> np.uint32(16)).astype("<u2")
        return integers.astype(_FLOATS[layout]).view(words.dtype)
