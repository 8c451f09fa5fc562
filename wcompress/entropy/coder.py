"""Arrays of symbols under frequency tables, coded as constriction does (asymmetric numeral systems).

What is written is what constriction's `AnsCoder` would write, but made here: several times as fast, and threads do not
wait for each other (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.ans import SLOT_BITS, opened, put, take
from wcompress.entropy.tables import FrequencyTable
from wcompress.errors import ArchiveError
from wcompress.fidelity import farthest

Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]
_MAX_SYMBOLS = 1 << 31
_TOGETHER = 4


@dataclass(frozen=True)
class _Coded:
    # Symbols from `lowest` on, each with its range among 2^24 places.
    symbols: Ints
    lowest: int
    bounds: Words


@dataclass(frozen=True)
class _Uniform:
    # Numbers below `size`.
    values: Ints
    size: int


class Encoder:
    """Collects arrays, and codes them into one stream."""

    def __init__(self) -> None:
        self._parts: list[_Coded | _Uniform] = []

    def add(self, symbols: Ints, table: FrequencyTable) -> None:
        """Append symbols, int32, each within the table's ±limit; they are not to change before they are coded.

        Raises:
            ValueError: one is not.
        """
        if not len(symbols) or not table.limit:
            return
        if farthest(symbols) > table.limit:
            raise ValueError(f"a symbol is beyond ±{table.limit}")
        self._parts.append(_Coded(np.ascontiguousarray(symbols, dtype=np.int32), -table.limit, table.bounds))

    def add_bits(self, values: Ints, n_bits: int) -> None:
        """Append numbers of so many bits, 1 to 16, as they are."""
        self._parts.append(_Uniform(np.ascontiguousarray(values, np.int32), 1 << n_bits))

    def add_uniform(self, values: Sequence[int], sizes: Sequence[int]) -> None:
        """Append numbers 0 ≤ value < size, each size at most 2^24."""
        for value, size in zip(values, sizes, strict=True):
            if size > 1:
                self._parts.append(_Uniform(np.array([value], np.int32), size))

    def to_bytes(self) -> bytes:
        """The stream."""
        return streams_of([self])[0]


def streams_of(encoders: Sequence[Encoder]) -> list[bytes]:
    """The streams of several encoders; four of them whose arrays match are coded together, which is faster."""
    alike = len(encoders) == _TOGETHER and len({len(encoder._parts) for encoder in encoders}) == 1
    n_words = 2 + max((sum(_n_symbols(part) for part in encoder._parts) for encoder in encoders), default=0)
    words = np.empty((len(encoders), n_words), np.uint32)
    at = np.zeros((len(encoders), 2), np.uint64)
    if alike:
        for parts in zip(*(reversed(encoder._parts) for encoder in encoders), strict=True):
            if not all(isinstance(part, _Coded) for part in parts):
                for number, part in enumerate(parts):
                    _put_part(part, at[number], words[number])
                continue
            a, b, c, d = (part for part in parts if isinstance(part, _Coded))
            n = min(len(part.symbols) for part in (a, b, c, d))
            for number, part in enumerate((a, b, c, d)):
                put(part.symbols[n:], part.lowest, part.bounds, at[number], words[number])
            lowest = np.array([part.lowest for part in (a, b, c, d)], np.int64)
            _put_together(
                a.symbols[:n],
                b.symbols[:n],
                c.symbols[:n],
                d.symbols[:n],
                lowest,
                a.bounds,
                b.bounds,
                c.bounds,
                d.bounds,
                at,
                words,
            )
    else:
        for number, encoder in enumerate(encoders):
            for some in reversed(encoder._parts):
                _put_part(some, at[number], words[number])
    streams = []
    for row, (state, n_put) in zip(words, at.tolist(), strict=True):
        row[n_put], row[n_put + 1] = state & 0xFFFFFFFF, state >> 32
        # The last word's leading zero bytes need not be kept.
        streams.append(row[: n_put + 2].astype("<u4", copy=False).tobytes().rstrip(b"\0"))
    return streams


def _n_symbols(part: _Coded | _Uniform) -> int:
    return len(part.symbols) if isinstance(part, _Coded) else len(part.values)


def _put_part(part: _Coded | _Uniform, at: npt.NDArray[np.uint64], words: Words) -> None:
    if isinstance(part, _Coded):
        put(part.symbols, part.lowest, part.bounds, at, words)
    else:
        _put_uniform(part.values, part.size, at, words)


@compiled()
def _put_uniform(values: Ints, size: int, at: npt.NDArray[np.uint64], words: Words) -> None:
    # As `_take_uniform` takes them.
    state, n = at[0], np.int64(at[1])
    width = np.uint64((1 << 24) // size)
    for i in range(len(values) - 1, -1, -1):
        low = np.uint64(values[i]) * width
        own = np.uint64(1 << 24) - low if values[i] == size - 1 else width
        if state >> np.uint64(40) >= own:
            words[n] = np.uint32(state & np.uint64(0xFFFFFFFF))
            n += 1
            state >>= np.uint64(32)
        whole = state // own
        state = (whole << np.uint64(24)) | (state - whole * own + low)
    at[0], at[1] = state, np.uint64(n)


@compiled()
def _put_together(
    a: Ints,
    b: Ints,
    c: Ints,
    d: Ints,
    lowest: npt.NDArray[np.int64],
    bounds_a: Words,
    bounds_b: Words,
    bounds_c: Words,
    bounds_d: Words,
    at: npt.NDArray[np.uint64],
    words: Words,
) -> None:
    # Four streams as `put` makes them, so that the processor works at one while another's division is under way.
    # Written out: with one function for a symbol, here and in `put`, a symbol takes two to three times as long.
    state_a, state_b, state_c, state_d = at[0, 0], at[1, 0], at[2, 0], at[3, 0]
    n_a, n_b, n_c, n_d = np.int64(at[0, 1]), np.int64(at[1, 1]), np.int64(at[2, 1]), np.int64(at[3, 1])
    lowest_a, lowest_b, lowest_c, lowest_d = lowest[0], lowest[1], lowest[2], lowest[3]
    words_a, words_b, words_c, words_d = words[0], words[1], words[2], words[3]
    one, mask = np.uint64(1), np.uint64(0xFFFFFFFF)
    for i in range(len(a) - 1, -1, -1):
        symbol = np.uint64(a[i] - lowest_a)
        low = np.uint64(bounds_a[symbol])
        size = np.uint64(bounds_a[symbol + one]) - low
        if state_a >> np.uint64(40) >= size:
            words_a[n_a] = np.uint32(state_a & mask)
            n_a += 1
            state_a >>= np.uint64(32)
        whole = state_a // size
        state_a = (whole << np.uint64(24)) | (state_a - whole * size + low)
        symbol = np.uint64(b[i] - lowest_b)
        low = np.uint64(bounds_b[symbol])
        size = np.uint64(bounds_b[symbol + one]) - low
        if state_b >> np.uint64(40) >= size:
            words_b[n_b] = np.uint32(state_b & mask)
            n_b += 1
            state_b >>= np.uint64(32)
        whole = state_b // size
        state_b = (whole << np.uint64(24)) | (state_b - whole * size + low)
        symbol = np.uint64(c[i] - lowest_c)
        low = np.uint64(bounds_c[symbol])
        size = np.uint64(bounds_c[symbol + one]) - low
        if state_c >> np.uint64(40) >= size:
            words_c[n_c] = np.uint32(state_c & mask)
            n_c += 1
            state_c >>= np.uint64(32)
        whole = state_c // size
        state_c = (whole << np.uint64(24)) | (state_c - whole * size + low)
        symbol = np.uint64(d[i] - lowest_d)
        low = np.uint64(bounds_d[symbol])
        size = np.uint64(bounds_d[symbol + one]) - low
        if state_d >> np.uint64(40) >= size:
            words_d[n_d] = np.uint32(state_d & mask)
            n_d += 1
            state_d >>= np.uint64(32)
        whole = state_d // size
        state_d = (whole << np.uint64(24)) | (state_d - whole * size + low)
    at[0, 0], at[1, 0], at[2, 0], at[3, 0] = state_a, state_b, state_c, state_d
    at[0, 1], at[1, 1], at[2, 1], at[3, 1] = np.uint64(n_a), np.uint64(n_b), np.uint64(n_c), np.uint64(n_d)


class Decoder:
    """Takes arrays from a stream, in the order in which they were added.

    A damaged stream decodes to wrong symbols without a sign: checksums come first.

    Args:
        data: the stream.
        place: what it is, for error messages.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self._place = place
        self._words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        if len(self._words) and self._words[-1] == 0:
            raise ArchiveError(f"{place}: the stream ends in a zero word; the archive is damaged")
        # The coder's state, and how many words are left.
        self._at = opened(self._words)

    def take(self, n_symbols: int, table: FrequencyTable) -> Ints:
        """The next symbols.

        Raises:
            ArchiveError: more than the format allows.
        """
        if not 0 <= n_symbols < _MAX_SYMBOLS:
            raise ArchiveError(f"{self._place}: {n_symbols} symbols; the archive is damaged")
        if n_symbols == 0 or table.limit == 0:
            return np.zeros(n_symbols, np.int32)
        symbols = np.empty(n_symbols, np.int32)
        take(self._words, self._at, table.bounds, table.first_of_slot, -table.limit, symbols)
        return symbols

    @staticmethod
    def take_together(decoders: Sequence[Decoder], n_symbols: int, table: FrequencyTable) -> list[Ints]:
        """The next symbols of several decoders, as many of each; of four together, which is faster.

        Raises:
            ArchiveError: more than the format allows.
        """
        if len(decoders) != _TOGETHER or not 0 < n_symbols < _MAX_SYMBOLS or not table.limit:
            return [decoder.take(n_symbols, table) for decoder in decoders]
        a, b, c, d = decoders
        symbols = np.empty((_TOGETHER, n_symbols), np.int32)
        _take_together(
            a._words,
            b._words,
            c._words,
            d._words,
            a._at,
            b._at,
            c._at,
            d._at,
            table.bounds,
            table.first_of_slot,
            -table.limit,
            symbols,
        )
        return list(symbols)

    def take_bits(self, n_values: int, n_bits: int) -> Ints:
        """The next numbers of so many bits, 1 to 16."""
        values = np.empty(n_values, np.int32)
        _take_uniform(self._words, self._at, 1 << n_bits, values)
        return values

    def take_uniform(self, sizes: Sequence[int]) -> Iterator[int]:
        """The next numbers below their sizes."""
        value = np.zeros(1, np.int32)
        for size in sizes:
            if not 0 < size <= 1 << 24:
                raise ArchiveError(f"{self._place}: a range of {size}; the archive is damaged")
            if size > 1:
                _take_uniform(self._words, self._at, size, value)
            yield int(value[0]) if size > 1 else 0


@compiled()
def _take_together(
    words_a: Words,
    words_b: Words,
    words_c: Words,
    words_d: Words,
    at_a: npt.NDArray[np.uint64],
    at_b: npt.NDArray[np.uint64],
    at_c: npt.NDArray[np.uint64],
    at_d: npt.NDArray[np.uint64],
    bounds: npt.NDArray[np.uint32],
    first_of_slot: npt.NDArray[np.uint16],
    lowest: int,
    out: Ints,
) -> None:
    # Four streams as `take` reads them, so that the processor works at one while it waits for what another looks up.
    # Written out for the same reason.
    state_a, state_b, state_c, state_d = at_a[0], at_b[0], at_c[0], at_d[0]
    left_a, left_b, left_c, left_d = np.int64(at_a[1]), np.int64(at_b[1]), np.int64(at_c[1]), np.int64(at_d[1])
    out_a, out_b, out_c, out_d = out[0], out[1], out[2], out[3]
    full, mask = np.uint64(1 << 32), np.uint64(0xFFFFFF)
    one, slot, above = np.uint64(1), np.uint64(SLOT_BITS), np.uint64(24)
    for i in range(out.shape[1]):
        place = state_a & mask
        symbol = np.uint64(first_of_slot[place >> slot])
        while bounds[symbol + one] <= place:
            symbol += one
        low = np.uint64(bounds[symbol])
        state_a = (state_a >> above) * (np.uint64(bounds[symbol + one]) - low) + (place - low)
        if state_a < full and left_a > 0:
            left_a -= 1
            state_a = (state_a << np.uint64(32)) | np.uint64(words_a[left_a])
        out_a[i] = np.int64(symbol) + lowest
        place = state_b & mask
        symbol = np.uint64(first_of_slot[place >> slot])
        while bounds[symbol + one] <= place:
            symbol += one
        low = np.uint64(bounds[symbol])
        state_b = (state_b >> above) * (np.uint64(bounds[symbol + one]) - low) + (place - low)
        if state_b < full and left_b > 0:
            left_b -= 1
            state_b = (state_b << np.uint64(32)) | np.uint64(words_b[left_b])
        out_b[i] = np.int64(symbol) + lowest
        place = state_c & mask
        symbol = np.uint64(first_of_slot[place >> slot])
        while bounds[symbol + one] <= place:
            symbol += one
        low = np.uint64(bounds[symbol])
        state_c = (state_c >> above) * (np.uint64(bounds[symbol + one]) - low) + (place - low)
        if state_c < full and left_c > 0:
            left_c -= 1
            state_c = (state_c << np.uint64(32)) | np.uint64(words_c[left_c])
        out_c[i] = np.int64(symbol) + lowest
        place = state_d & mask
        symbol = np.uint64(first_of_slot[place >> slot])
        while bounds[symbol + one] <= place:
            symbol += one
        low = np.uint64(bounds[symbol])
        state_d = (state_d >> above) * (np.uint64(bounds[symbol + one]) - low) + (place - low)
        if state_d < full and left_d > 0:
            left_d -= 1
            state_d = (state_d << np.uint64(32)) | np.uint64(words_d[left_d])
        out_d[i] = np.int64(symbol) + lowest
    at_a[0], at_b[0], at_c[0], at_d[0] = state_a, state_b, state_c, state_d
    at_a[1], at_b[1], at_c[1], at_d[1] = np.uint64(left_a), np.uint64(left_b), np.uint64(left_c), np.uint64(left_d)


@compiled()
def _take_uniform(words: Words, at: npt.NDArray[np.uint64], size: int, out: Ints) -> None:
    # The last number has what the division leaves over.
    state, left = at[0], np.int64(at[1])
    width = np.uint64((1 << 24) // size)
    last = np.uint64(size - 1)
    for i in range(len(out)):
        place = state & np.uint64(0xFFFFFF)
        value = min(place // width, last)
        low = value * width
        own = np.uint64(1 << 24) - low if value == last else width
        state = (state >> np.uint64(24)) * own + (place - low)
        if state < np.uint64(1 << 32) and left > 0:
            left -= 1
            state = (state << np.uint64(32)) | np.uint64(words[left])
        out[i] = np.int64(value)
    at[0], at[1] = state, np.uint64(left)
