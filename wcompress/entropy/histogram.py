"""Frequency tables over a range of whole numbers, symbols coded under them, and arrays of words in their best form.

A table gives each symbol a *level*, −4·log₂ of its relative frequency. In the archive a level is written as its
difference from the level before it; where the symbols are the leading bits of floats (`octave` > 0), the level is first
expected to fall by 4 where a symbol starts a new octave, because there each symbol covers twice the range of values.

Layout of a table, in bits (`entropy.bits`): if the table has a *special* symbol, its level in 7 bits; Exp-Golomb
(k = 3) number of symbols m; if m > 0, Exp-Golomb (k = 5) of the zigzagged first symbol, 7 bits the first level, and for
each further symbol the Exp-Golomb (k = 0) of the zigzagged difference between its level and the expected one. The
expected level is the one before, less 4 if `octave` divides the symbol, and at least 0. A level is at most 80. The
weight of a symbol of level l is round(2^20 · 2^(−(l mod 4)/4)) ≫ ⌊l / 4⌋. The special symbol comes first.

An *array* of n words of w bytes is a byte, its form, and:

    0 stored    n·w bytes, words little-endian
    1 zstd      varint length, a zstd frame of so many bytes that restores to the bytes of form 0; if the frame states
                its content's size, it states n·w; n·w is at most 32,768 times the length
    2 fill      one word, n times
    3 planes    w > 1: w arrays of n bytes, the words' lowest bytes first
    4 coded     w = 1: varint length; so many bytes: a table (no special symbol, octave 0) filled with zero bits to
                whole bytes, then a stream of the n symbols under it, each a byte's value
    5 palette   only where stated: u8 s, 0 or 1; varint m, 1 to 65,536 and at most n; array of m words of w bytes; array
                of n indices into the m words, of 1 byte if m ≤ 256 and of 2 otherwise; if s is 1, array of bits: the
                signs of the n words. A word is the one at its index, with its highest bit set if its sign is 1.

An *array of bits* is an array of ⌈n/8⌉ bytes: eight bits a byte, the highest bit first, filled with zeros. An *array of
numbers of v bits* is ⌊v/8⌋ arrays of n bytes, the numbers' lowest bytes first, and, unless 8 divides v, an array of
bits: the v mod 8 highest bits of each number, one number after the other.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt
import zstandard

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]
Kind = np.dtype[np.unsignedinteger]

STORED, ZSTD, FILL, PLANES, CODED, PALETTE = range(6)
MAX_GROWTH = 32768  # a zstd block of at least 4 bytes restores at most 128 KiB
_MAX_PALETTE = 1 << 16
_THOROUGH_ZSTD = 1 << 16  # bytes up to which zstd may take its time
_PATIENT_ZSTD = 1 << 21  # and up to which it may where nothing else does
_BYTE: Kind = np.dtype(np.uint8)

MAX_SYMBOLS = 4096  # of a table
_STEPS = 4
_MAX_LEVEL = 20 * _STEPS
_FIRST_BOUND = 1 << 24
_MAX_CODED = 1 << 31
# round(2^20 · 2^(−f/4)); part of the format.
_FRACTIONS = np.array([1048576, 881744, 741455, 623487], dtype=np.int64)


@dataclass(frozen=True)
class Histogram:
    """Relative frequencies of the symbols `first`, `first` + 1, … and of a special one.

    Attributes:
        first: the lowest symbol.
        levels: for each symbol, −4·log₂ of its relative frequency, 0 to 80.
        special: level of the special symbol; None where there is none.
    """

    first: int
    levels: tuple[int, ...]
    special: int | None = None

    @functools.cached_property
    def weights(self) -> Longs:
        """Relative frequencies, whole numbers from 1 to 2^20, the special symbol's first, `[1 + m]` or `[m]`."""
        head = () if self.special is None else (self.special,)
        levels = np.array(head + self.levels, dtype=np.int64)
        weights: Longs = _FRACTIONS[levels & 3] >> (levels >> 2)
        return weights

    @property
    def shift(self) -> int:
        """What to add to an index into `weights` to get the symbol."""
        return self.first - (self.special is not None)

    def write(self, out: BitWriter, octave: int = 0) -> None:
        """Write the table; see the module's docstring."""
        if self.special is not None:
            out.write(self.special, 7)
        out.write_exp_golomb(len(self.levels), 3)
        if self.levels:
            out.write_exp_golomb(zigzag(self.first), 5)
            out.write(self.levels[0], 7)
        for index in range(1, len(self.levels)):
            expected = _expected(self.levels[index - 1], self.first + index, octave)
            out.write_exp_golomb(zigzag(self.levels[index] - expected), 0)

    @classmethod
    def read(cls, data: BitReader, octave: int = 0, *, special: bool = False) -> Histogram:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        special_level = _checked(data.read(7)) if special else None
        n_symbols = data.read_exp_golomb(3)
        if n_symbols > MAX_SYMBOLS:
            raise ArchiveError(f"frequency table: {n_symbols} symbols are too many; the archive is damaged")
        if n_symbols == 0:
            return cls(0, (), special_level)
        first = unzigzag(data.read_exp_golomb(5))
        if abs(first) > _FIRST_BOUND:
            raise ArchiveError(f"frequency table: symbol {first} is impossible; the archive is damaged")
        levels = [_checked(data.read(7))]
        for index in range(1, n_symbols):
            levels.append(_checked(_expected(levels[-1], first + index, octave) + unzigzag(data.read_exp_golomb(0))))
        return cls(first, tuple(levels), special_level)


def _checked(level: int) -> int:
    if not 0 <= level <= _MAX_LEVEL:
        raise ArchiveError(f"frequency table: level {level} is impossible; the archive is damaged")
    return level


def _expected(before: int, symbol: int, octave: int) -> int:
    return max(before - _STEPS, 0) if octave and symbol % octave == 0 else before


@functools.cache
def _transition_bits(fall: int) -> Floats:
    # Bits of writing level l after level k, `[l, k]`.
    levels = np.arange(_MAX_LEVEL + 1)
    difference = levels[:, None] - np.maximum(levels[None, :] - fall, 0)
    head = np.where(difference >= 0, 2 * difference, -2 * difference - 1) + 1
    bits: Floats = 2.0 * np.floor(np.log2(head)) + 1.0
    return bits


def fit_histogram(counts: Longs, first: int, octave: int = 0, special: int | None = None) -> Histogram:
    """The table that makes symbols and table together smallest.

    Args:
        counts: occurrences of the symbols `first`, `first` + 1, …, `[n]`.
        first: see `counts`.
        octave: symbols in an octave; 0 where symbols are no floats.
        special: occurrences of the special symbol; None for a table without.
    """
    total = int(counts.sum()) + (special or 0)
    special_level = None if special is None else _MAX_LEVEL
    if special:
        special_level = min(round(-_STEPS * math.log2(special / total)), _MAX_LEVEL)
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return Histogram(0, (), special_level)
    first, counts = first + int(used[0]), counts[used[0] : used[-1] + 1]
    # No level beyond what a single occurrence has is worth a look.
    levels = np.arange(min(_MAX_LEVEL, math.ceil(_STEPS * math.log2(total)) + 4 * _STEPS) + 1)
    # Bits under frequencies that need not add up to 1: log Z ≤ Z − 1, with equality for those that do.
    filling = total * np.exp2(-levels / _STEPS) / np.log(2)
    best = counts[0] * levels / _STEPS + filling
    costs = counts[:, None] * (levels / _STEPS) + filling
    choices = np.zeros((len(counts), len(levels)), dtype=np.int64)
    paths = np.empty((len(levels), len(levels)))
    for index in range(1, len(counts)):
        fall = _STEPS if octave and (first + index) % octave == 0 else 0
        np.add(_transition_bits(fall)[: len(levels), : len(levels)], best, out=paths)
        choice = paths.argmin(1)
        choices[index] = choice
        best = paths[levels, choice] + costs[index]
    chosen = [int(best.argmin())]
    for index in range(len(counts) - 1, 0, -1):
        chosen.append(int(choices[index, chosen[-1]]))
    return Histogram(first, tuple(reversed(chosen)), special_level)


def entropy_bits(counts: Longs) -> tuple[float, float]:
    """About the bits of symbols that occur so often, and of their table."""
    used = counts[counts > 0].astype(np.float64)
    return float(-(used * np.log2(used / used.sum())).sum()), 2.0 * len(used) + 20.0


def _model(weights: Longs) -> constriction.stream.model.Categorical:
    # Whole numbers below 2^53 make the same model on every machine; `perfect` is a search that need not.
    return constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)


def encode_arrays(parts: list[tuple[npt.NDArray[np.integer], Histogram]]) -> bytes:
    """One stream of arrays of indices into their tables' weights; tables of one symbol take no room."""
    coder = constriction.stream.stack.AnsCoder()
    for indices, table in reversed(parts):
        if len(indices) and len(table.weights) > 1:
            coder.encode_reverse(np.ascontiguousarray(indices, dtype=np.int32), _model(table.weights))
    # The last word's leading zero bytes need not be kept.
    return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class ArrayDecoder:
    """Takes arrays from a stream, in the order in which they were given to `encode_arrays`.

    A damaged stream decodes to wrong indices without a sign, though never to one outside a table.

    Args:
        data: the stream.
        place: what it is, for error messages.

    Raises:
        ArchiveError: it ends in a zero byte.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self._place = place
        if data.endswith(b"\0"):
            raise ArchiveError(f"{place}: the stream ends in a zero byte; the archive is damaged")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)

    def take(self, n_symbols: int, table: Histogram) -> Ints:
        """The next indices into the table's weights, int32 `[n_symbols]`.

        Raises:
            ArchiveError: the table is empty, or they are more than any stream holds.
        """
        if not 0 <= n_symbols < _MAX_CODED or (n_symbols and not len(table.weights)):
            n_kinds = len(table.weights)
            raise ArchiveError(f"{self._place}: {n_symbols} symbols of {n_kinds} kinds; the archive is damaged")
        if n_symbols == 0 or len(table.weights) == 1:
            return np.zeros(n_symbols, np.int32)
        try:
            indices: Ints = self._coder.decode(_model(table.weights), n_symbols)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic in constriction is no Exception
            raise ArchiveError(f"{self._place}: its symbols cannot be decoded; the archive is damaged") from error
        return indices


def pack_array(words: Words) -> bytes:
    """Words as an array, in the smallest form.

    Args:
        words: little-endian uint8, uint16, uint32 or uint64 `[n]`.
    """
    data, size = words.tobytes(), words.itemsize
    best = bytes([STORED]) + data
    if len(words) > 1 and (words == words[0]).all():
        return bytes([FILL]) + data[:size]
    if size > 1:
        planes = np.frombuffer(data, np.uint8).reshape(-1, size)
        best = min(best, bytes([PLANES]) + b"".join(pack_array(planes[:, k].copy()) for k in range(size)), key=len)
    elif len(words):
        counts = np.bincount(words, minlength=256)
        if sum(entropy_bits(counts)) / 8 < len(words):
            table = fit_histogram(counts, 0)
            out = BitWriter()
            table.write(out)
            body = out.to_bytes() + encode_arrays([(words.astype(np.int32) - table.shift, table)])
            best = min(best, bytes([CODED]) + encode_varint(len(body)) + body, key=len)
    packed = pack_zstd(data, len(best), quick_zstd_bytes(data))
    return min(best, packed, key=len) if packed else best


def pack_zstd(data: bytes, limit: int, quick: int) -> bytes | None:
    """An array in form 1, or None where it is unlikely to be shorter than `limit` bytes.

    Args:
        data, limit, quick: the words' bytes; see above; what `quick_zstd_bytes` says of the data.
    """
    if len(data) > 4096 and (quick > 0.995 * len(data) or quick > 1.05 * limit):
        return None
    frame = _zstd(data, 19) if len(data) <= _THOROUGH_ZSTD else None
    if frame is None:
        middle = len(data) // 2
        piece = data[middle : middle + _THOROUGH_ZSTD]
        if quick * len(_zstd(piece, 12)) > limit * len(_zstd(piece, 3)):
            return None
        frame = _zstd(data, 12)
        if len(frame) < 0.95 * limit and len(data) <= _PATIENT_ZSTD:
            frame = min(frame, _zstd(data, 19), key=len)
    return bytes([ZSTD]) + encode_varint(len(frame)) + frame


def _zstd(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_content_size=False).compress(data)


def quick_zstd_bytes(data: bytes) -> int:
    """Length of a zstd frame made in haste, 0 for little data."""
    return len(zstandard.ZstdCompressor(level=3).compress(data)) if len(data) > 4096 else 0


def unpack_array(cursor: ByteCursor, n_words: int, kind: Kind) -> Words:
    """Undo `pack_array`; the result may be read-only.

    Args:
        cursor: at the array.
        n_words: its words; memory for a few times as many is used, whatever the bytes say.
        kind: little-endian unsigned dtype of a word.

    Raises:
        ArchiveError: the bytes are malformed.
    """
    form, size = cursor.take(1)[0], kind.itemsize
    if form == STORED:
        return np.frombuffer(cursor.take(n_words * size), kind)
    if form == ZSTD:
        return np.frombuffer(_unpack_frame(cursor.take(cursor.varint()), n_words * size), kind)
    if form == FILL:
        return np.full(n_words, np.frombuffer(cursor.take(size), kind)[0], kind)
    if form == PLANES and size > 1:
        planes = np.empty((n_words, size), np.uint8)
        for k in range(size):
            planes[:, k] = unpack_array(cursor, n_words, _BYTE)
        return planes.reshape(-1).view(kind)
    if form == CODED and size == 1:
        body = cursor.take(cursor.varint())
        bits = BitReader(body, "array")
        table = Histogram.read(bits)
        if table.first < 0 or table.first + len(table.levels) > 256:
            raise ArchiveError(f"array: {len(table.levels)} values from {table.first}; the archive is damaged")
        decoder = ArrayDecoder(body[-(-bits.position // 8) :], "array")
        return (decoder.take(n_words, table) + table.shift).astype(np.uint8)
    raise ArchiveError(f"array: unknown form {form} of {size}-byte words; the archive is damaged")


def _unpack_frame(frame: bytes, n_bytes: int) -> bytes:
    try:
        # zstandard would allocate what the frame states, however much.
        stated = zstandard.frame_content_size(frame)
        if n_bytes > MAX_GROWTH * len(frame) or stated not in (-1, n_bytes):
            raise ArchiveError(f"array: {n_bytes} bytes cannot be restored; the archive is damaged")
        data = bytes(zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes)) if n_bytes else b""
    except zstandard.ZstdError as error:
        raise ArchiveError(f"array: {error}; the archive is damaged") from error
    if len(data) != n_bytes:
        raise ArchiveError(f"array: {n_bytes} bytes expected, {len(data)} found; the archive is damaged")
    return data


def pack_bits(bits: npt.NDArray[np.bool_]) -> bytes:
    """Booleans `[n]` as an array of bits."""
    return pack_array(np.packbits(bits))


def unpack_bits(cursor: ByteCursor, n_bits: int) -> Bytes:
    """Undo `pack_bits`: 0 or 1, uint8 `[n_bits]`; errors as for `unpack_array`."""
    return np.unpackbits(unpack_array(cursor, -(-n_bits // 8), _BYTE).astype(np.uint8, copy=False), count=n_bits)


def pack_numbers(values: Words, n_bits: int) -> bytes:
    """The lowest `n_bits` bits of each word `[n]`, as an array of numbers."""
    raw = values.view(np.uint8).reshape(-1, values.itemsize)
    parts = [pack_array(raw[:, k].copy()) for k in range(n_bits // 8)]
    if n_bits % 8:
        bits = np.unpackbits(raw[:, n_bits // 8].copy()[:, None], axis=1)[:, 8 - n_bits % 8 :]
        parts.append(pack_array(np.packbits(bits)))
    return b"".join(parts)


def unpack_numbers(cursor: ByteCursor, n_words: int, n_bits: int, kind: Kind) -> Words:
    """Undo `pack_numbers`: words `[n_words]` of dtype `kind`; errors as for `unpack_array`."""
    raw = np.zeros((n_words, kind.itemsize), np.uint8)
    for k in range(n_bits // 8):
        raw[:, k] = unpack_array(cursor, n_words, _BYTE)
    if n_bits % 8:
        bits = unpack_bits(cursor, n_words * (n_bits % 8)).reshape(n_words, n_bits % 8)
        raw[:, n_bits // 8] = np.packbits(bits, axis=1)[:, 0] >> (8 - n_bits % 8)
    return raw.reshape(-1).view(kind)


def _n_distinct(values: Words) -> int:
    return 1 + int(np.count_nonzero(np.diff(np.sort(values))))


def runs_repeat(words: Words) -> bool:
    """Whether many runs of three magnitudes occur more than once in the words `[n]`."""
    some = words[: 1 << 17] & words.dtype.type((1 << (8 * words.itemsize - 1)) - 1)
    hashed = some.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    runs = hashed[:-2] ^ hashed[1:-1] >> np.uint64(9) ^ hashed[2:] >> np.uint64(21)
    return len(runs) > 0 and _n_distinct(runs) < 0.8 * len(runs)


def pack_palettes(words: Words) -> list[bytes]:
    """The words `[n]` in form 5, in none, one or several ways that look worth while."""
    size, most = words.itemsize, _MAX_PALETTE if words.itemsize > 2 else _MAX_PALETTE // 8
    sample = words[:: -(-len(words) // (1 << 15))]
    if size == 1 or len(words) < 16 or _n_distinct(sample) > min(0.6 * len(sample), most):
        return []
    sign = words >> (8 * size - 1) != 0
    magnitudes = words & words.dtype.type((1 << (8 * size - 1)) - 1)
    units: list[bytes] = []
    n_found = most + 1
    for signed, values in ((False, words), (True, magnitudes)):
        palette = np.unique(values)
        if len(palette) > min(most, 0.8 * len(words)) or len(palette) > 0.8 * n_found:
            continue
        n_found = len(palette)
        index = np.searchsorted(palette, values)
        orders = [np.arange(len(palette))]
        if len(palette) > 256:
            first = np.empty(len(palette), np.int64)
            first[index[::-1]] = np.arange(len(values) - 1, -1, -1)
            orders.append(np.argsort(first))  # repeated runs show better in order of first occurrence
        for order in orders:
            rank = np.empty(len(order), np.uint8 if len(order) <= 256 else "<u2")
            rank[order] = np.arange(len(order))
            head = bytes([PALETTE, signed]) + encode_varint(len(palette))
            tail = pack_bits(sign) if signed else b""
            units.append(head + pack_array(palette[order]) + pack_array(rank[index]) + tail)
    return units


def unpack_palette(cursor: ByteCursor, n_words: int, kind: Kind) -> Words:
    """Undo one of `pack_palettes`; arguments and errors as for `unpack_array`, but the form is behind the cursor."""
    signed, n_values = cursor.take(1)[0], cursor.varint()
    if signed > 1 or not 1 <= n_values <= min(_MAX_PALETTE, n_words):
        raise ArchiveError(f"palette: {n_values} values; the archive is damaged")
    values = unpack_array(cursor, n_values, kind)
    index = unpack_array(cursor, n_words, np.dtype(np.uint8 if n_values <= 256 else "<u2"))
    if index.max() >= n_values:
        raise ArchiveError(f"palette: an index beyond {n_values} values; the archive is damaged")
    words: Words = values[index]
    if signed:
        words |= unpack_bits(cursor, n_words).astype(kind) << kind.type(8 * kind.itemsize - 1)
    return words
