"""Floats by their fields, for speed: exponents under one frequency table by four coders in turn, the rest as it is.

Form 12 of a unit (`codec.methods.lossless`) of n floats of one sign bit, E exponent bits and M mantissa bits:

    u8          12
    varints     f, the lowest exponent; m, from 1 to 256, f + m at most 2^E; m frequencies, which add up to 4096
    4 u32       the coders' states
    varint      k, the number of words, at most n
    k u16       the words
    rest        array of numbers of 1 + M bits (`entropy.arrays`): the sign above the mantissa

Exponent i comes from the state x of coder i mod 4. The frequencies divide 0 to 4095 into ranges, the first symbol's
first. Symbol s is the one in whose range x mod 4096 lies; b is where that begins, g the frequency. The exponent is
f + s, and x becomes g · ⌊x / 4096⌋ + x mod 4096 − b. If that is less than 2^15, it is multiplied by 2^16, and the first
word that no coder has taken is added. In the end all words are taken and every state is 2^15.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.codec.storage.fields import Layout
from wcompress.compiled import compiled, part
from wcompress.entropy.arrays import Kind, Words, pack_numbers, unpack_numbers
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

QUICK_FIELDS = 12
_TOTAL_BITS = 12
_TOTAL = 1 << _TOTAL_BITS
_LEAST_STATE = 1 << 15
_MAX_SYMBOLS = 256
_N_CODERS = 4
_MOST_ZEROS = 1 / 64

Longs = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


def pack_quick(words: Words, layout: Layout) -> bytes | None:
    """Floats `[n]` in form 12; None where another form suits them better.

    Args:
        words: little-endian words, n at least 1.
        layout: their fields.
    """
    n, kind = len(words), words.dtype.type
    base = 0
    if layout.exponent > 8:
        exponents = words >> kind(layout.mantissa) & kind((1 << layout.exponent) - 1)
        base = int(exponents.min())
        if int(exponents.max()) - base >= _MAX_SYMBOLS:
            return None
    symbols, rest = np.empty(n, np.uint8), np.empty(n, words.dtype)
    used_bits = _split(words, layout.mantissa, layout.exponent, base, symbols, rest)
    counted = np.zeros((4, 256), np.int64)
    _count(symbols, counted)
    counts = counted.sum(0)
    # Zeros, and bits that are 0 everywhere, are what form 6 knows of.
    if (base == 0 and counts[0] > _MOST_ZEROS * n) or not int(used_bits) & 1:
        return None
    frequencies = _frequencies(counts)
    used = np.flatnonzero(frequencies)
    first, stop = int(used[0]), int(used[-1]) + 1
    states, stream = np.full(_N_CODERS, _LEAST_STATE, np.uint64), np.empty(n, np.uint16)
    at = _encode(symbols, _encoder(frequencies), states, stream)
    return b"".join(
        [
            bytes([QUICK_FIELDS]),
            *(encode_varint(int(number)) for number in (base + first, stop - first, *frequencies[first:stop])),
            states.astype("<u4").tobytes(),
            encode_varint(n - at),
            stream[at:].astype("<u2", copy=False).tobytes(),
            pack_numbers(rest, 1 + layout.mantissa, hurried=True),
        ]
    )


def unpack_quick(cursor: ByteCursor, n_words: int, kind: Kind, layout: Layout) -> Words:
    """Undo `pack_quick`; the form is behind the cursor.

    Args:
        cursor: at what follows the form.
        n_words: how many floats.
        kind: dtype of their words.
        layout: the fields of each.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    first, n_symbols = cursor.varint(), cursor.varint()
    if not 1 <= n_symbols <= _MAX_SYMBOLS or first + n_symbols > 1 << layout.exponent:
        raise ArchiveError(f"lossless: {n_symbols} exponents from {first}; the archive is damaged")
    frequencies = [cursor.varint() for _ in range(n_symbols)]
    if sum(frequencies) != _TOTAL:
        raise ArchiveError(f"lossless: frequencies of {sum(frequencies)} in all; the archive is damaged")
    states = np.frombuffer(cursor.take(4 * _N_CODERS), "<u4").astype(np.uint64)
    n_stream = cursor.varint()
    if n_stream > n_words:
        raise ArchiveError(f"lossless: {n_stream} words for {n_words} exponents; the archive is damaged")
    stream = np.frombuffer(cursor.take(2 * n_stream) + b"\0\0", "<u2").astype(np.uint16)
    symbols = np.empty(n_words, np.uint8)
    n_taken = _decode(stream, states, _decoder(np.array(frequencies)), symbols)
    if n_taken != n_stream or (states != _LEAST_STATE).any():
        raise ArchiveError("lossless: its exponents cannot be decoded; the archive is damaged")
    words = unpack_numbers(cursor, n_words, 1 + layout.mantissa, kind)
    _join(words, symbols, layout.mantissa, layout.exponent, first)
    return words


def _frequencies(counts: Longs) -> Longs:
    # Of 4096 in all, at least 1 for what occurs; the rounding is settled where it costs least, with the most frequent.
    shares = counts * _TOTAL / counts.sum()
    frequencies = np.where(counts > 0, np.maximum(np.rint(shares).astype(np.int64), 1), 0)
    while (excess := int(frequencies.sum()) - _TOTAL) != 0:
        most = int(frequencies.argmax())
        frequencies[most] -= min(excess, int(frequencies[most]) // 2) if excess > 0 else excess
    return frequencies


def _encoder(frequencies: Longs) -> Table:
    """For each symbol: the state from which on a word is written; how to divide by the frequency, a factor and a shift;
    where its range begins; and what is left of 4096."""
    rows = []
    start = 0
    for frequency in frequencies.tolist():
        if frequency < 2:
            factor, shift, bias = (1 << 32) - 1, 32, start + _TOTAL - 1
        else:
            n_bits = (frequency - 1).bit_length()
            factor, shift, bias = -(-(1 << (n_bits + 31)) // frequency), n_bits + 31, start
        rows.append((frequency << (31 - _TOTAL_BITS), factor, shift, bias, _TOTAL - frequency))
        start += frequency
    return np.array(rows, np.uint64)


def _decoder(frequencies: Longs) -> npt.NDArray[np.uint32]:
    # For each of 4096 places: the frequency less 1, the place in the range, the symbol.
    symbols = np.repeat(np.arange(len(frequencies)), frequencies)
    starts = np.cumsum(frequencies) - frequencies
    places = np.arange(_TOTAL) - starts[symbols]
    return ((frequencies[symbols] - 1) << 20 | places << 8 | symbols).astype(np.uint32)


@compiled()
def _split(words: Words, n_mantissa: int, n_exponent: int, base: int, symbols: Bytes, rest: Words) -> int:
    # Exponents less `base`, and signs above mantissas; the bits that are 1 in any word.
    at, sign_by = np.uint64(n_mantissa), np.uint64(n_exponent)
    mantissa, sign = (np.uint64(1) << at) - np.uint64(1), np.uint64(1) << at
    exponent = (np.uint64(1) << sign_by) - np.uint64(1)
    used = np.uint64(0)
    for i in range(len(words)):
        word = np.uint64(words[i])
        used |= word
        symbols[i] = (word >> at & exponent) - np.uint64(base)
        rest[i] = (word & mantissa) | (word >> sign_by & sign)
    return int(used & mantissa)


@compiled()
def _join(words: Words, symbols: Bytes, n_mantissa: int, n_exponent: int, first: int) -> None:
    # Undo `_split`; the words hold signs above mantissas.
    at, sign_by = np.uint64(n_mantissa), np.uint64(n_exponent)
    mantissa, sign = (np.uint64(1) << at) - np.uint64(1), np.uint64(1) << at
    for i in range(len(words)):
        rest = np.uint64(words[i])
        exponent = np.uint64(symbols[i]) + np.uint64(first)
        words[i] = (rest & mantissa) | (rest & sign) << sign_by | exponent << at


@compiled()
def _count(symbols: Bytes, counts: Longs) -> None:
    # In four rows, so that equal neighbours do not wait for each other.
    for i in range(len(symbols)):
        counts[i & 3, symbols[i]] += 1


@compiled()
def _encode(symbols: Bytes, table: Table, states: Table, stream: npt.NDArray[np.uint16]) -> int:
    # From the last symbol to the first, and the stream from its end; where it begins. No symbol writes more than one
    # word, so that there is room.
    i, end = len(symbols) - 1, np.uint64(len(stream))
    while i >= 0 and i & 3 != 3:
        states[i & 3], end = _put(states[i & 3], symbols[i], table, stream, end)
        i -= 1
    a, b, c, d = states[0], states[1], states[2], states[3]
    while i >= 3:
        d, end = _put(d, symbols[i], table, stream, end)
        c, end = _put(c, symbols[i - 1], table, stream, end)
        b, end = _put(b, symbols[i - 2], table, stream, end)
        a, end = _put(a, symbols[i - 3], table, stream, end)
        i -= 4
    states[0], states[1], states[2], states[3] = a, b, c, d
    return int(end)


@part
def _put(
    state: np.uint64, symbol: np.uint8, table: Table, stream: npt.NDArray[np.uint16], end: np.uint64
) -> tuple[np.uint64, np.uint64]:
    # Written in any case, and kept where the state says so: a branch would be guessed wrong too often.
    full = state >= table[symbol, 0]
    stream[end - np.uint64(1)] = np.uint16(state & np.uint64(0xFFFF))
    end -= np.uint64(full)
    state = state >> np.uint64(16) if full else state
    quotient = state * table[symbol, 1] >> table[symbol, 2]
    return state + table[symbol, 3] + quotient * table[symbol, 4], end


@compiled()
def _decode(stream: npt.NDArray[np.uint16], states: Table, table: npt.NDArray[np.uint32], symbols: Bytes) -> int:
    # How many words of the stream were taken. One more lies behind them, so that the next may be read, and no place
    # beyond it is looked at.
    n, i, last = len(symbols), 0, np.uint64(len(stream) - 1)
    at = np.uint64(0)
    a, b, c, d = states[0], states[1], states[2], states[3]
    while i + 3 < n:
        a, at, symbols[i] = _next(a, table, stream, at, last)
        b, at, symbols[i + 1] = _next(b, table, stream, at, last)
        c, at, symbols[i + 2] = _next(c, table, stream, at, last)
        d, at, symbols[i + 3] = _next(d, table, stream, at, last)
        i += 4
    states[0], states[1], states[2], states[3] = a, b, c, d
    while i < n:
        states[i & 3], at, symbols[i] = _next(states[i & 3], table, stream, at, last)
        i += 1
    return int(at)


@part
def _next(
    state: np.uint64, table: npt.NDArray[np.uint32], stream: npt.NDArray[np.uint16], at: np.uint64, last: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint8]:
    entry = np.uint64(table[state & np.uint64(0xFFF)])
    word = np.uint64(stream[min(at, last)])
    frequency, place = (entry >> np.uint64(20)) + np.uint64(1), entry >> np.uint64(8) & np.uint64(0xFFF)
    state = frequency * (state >> np.uint64(12)) + place
    low = state < np.uint64(_LEAST_STATE)
    state = state << np.uint64(16) | word if low else state
    return state, at + np.uint64(low), np.uint8(entry & np.uint64(0xFF))
