"""Frequency tables over a range of whole numbers, and symbols coded under them.

A table gives each symbol a *level*, −4·log₂ of its relative frequency. In the archive a level is written as its
difference from the level before it; where the symbols are the leading bits of floats (`octave` > 0), the level is first
expected to fall by 4 where a symbol starts a new octave, because there each symbol covers twice the range of values.

Layout of a table, in bits (`entropy.bits`): if the table has a *special* symbol, its level in 7 bits; Exp-Golomb
(k = 3) number of symbols m; if m > 0, Exp-Golomb (k = 5) of the zigzagged first symbol, 7 bits the first level, and for
each further symbol the Exp-Golomb (k = 0) of the zigzagged difference between its level and the expected one. The
expected level is the one before, less 4 if `octave` divides the symbol, and at least 0. A level is at most 80. The
weight of a symbol of level l is round(2^20 · 2^(−(l mod 4)/4)) ≫ ⌊l / 4⌋. The special symbol comes first.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled, part
from wcompress.entropy.ans import Bounds, Slots, bounds_of, first_of_slot, opened, put, take
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


MAX_SYMBOLS = 4096  # of a table
_STEPS = 4
_MAX_LEVEL = 20 * _STEPS
_FIRST_BOUND = 1 << 24
_NEAR, _NOT_RARE = 8, 4
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

    @functools.cached_property
    def bounds(self) -> Bounds:
        """Where the weights' ranges begin among 2^24 places, and where the last ends, `[n_weights + 1]`."""
        return bounds_of(self.weights)

    @functools.cached_property
    def slots(self) -> Slots:
        """The index of the weight that the first of each 2^12 places belongs to, `[2^12]`."""
        return first_of_slot(self.bounds)

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
        before = np.array(self.levels[:-1], np.int64)
        if octave:
            starts = (self.first + 1 + np.arange(len(before))) % octave == 0
            before[starts] = np.maximum(before[starts] - _STEPS, 0)
        out.write_exp_golombs(zigzag(change) for change in (np.array(self.levels[1:]) - before).tolist())

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
        levels = np.empty(n_symbols, np.int64)
        levels[0] = _checked(data.read(7))
        position = _read_levels(np.frombuffer(data.data, np.uint8), data.position, first, octave, levels)
        if position < 0:
            raise ArchiveError(f"frequency table: its {n_symbols} levels cannot be read; the archive is damaged")
        data.position = position
        return cls(first, tuple(levels.tolist()), special_level)


def _checked(level: int) -> int:
    if not 0 <= level <= _MAX_LEVEL:
        raise ArchiveError(f"frequency table: level {level} is impossible; the archive is damaged")
    return level


@compiled()
def _read_levels(data: npt.NDArray[np.uint8], position: int, first: int, octave: int, levels: Longs) -> int:
    # All levels but the first; the position behind them, or −1 where they end early or one is impossible.
    end = 8 * len(data)
    for index in range(1, len(levels)):
        n_bits = 0
        while position < end and data[position >> 3] >> (7 - (position & 7)) & 1:
            n_bits += 1
            position += 1
        position += 1
        if n_bits > 8 or position + n_bits > end:  # no difference takes more
            return -1
        head = 1
        for _ in range(n_bits):
            head = head << 1 | (data[position >> 3] >> (7 - (position & 7)) & 1)
            position += 1
        number = head - 1
        change = number >> 1 if number % 2 == 0 else -(number + 1) >> 1
        before = levels[index - 1]
        if octave and (first + index) % octave == 0:
            before = max(before - _STEPS, 0)
        if not 0 <= before + change <= _MAX_LEVEL:
            return -1
        levels[index] = before + change
    return position


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
    chosen = np.empty(len(counts), np.int64)
    costs, choices = np.full((2, len(levels)), np.inf), np.zeros((len(counts), len(levels)), np.uint8)
    _choose_levels(counts.astype(np.float64), total, first, octave, filling, costs, choices, chosen)
    return Histogram(first, tuple(chosen.tolist()), special_level)


@compiled()
def _choose_levels(
    counts: Floats,
    total: int,
    first: int,
    octave: int,
    filling: Floats,
    costs: Floats,
    choices: npt.NDArray[np.uint8],
    chosen: Longs,
) -> None:
    # The cheapest levels: those of each symbol after each level of the one before. A change by more than `_NEAR` is
    # looked at from the best level before only, and of a symbol that is not rare only levels near its own.
    n_levels = len(filling)
    best, after = costs[0], costs[1]
    low_before, high_before, cheapest = 0, 0, 0
    for index in range(len(counts)):
        low, high = 0, n_levels
        if counts[index] >= _NOT_RARE:
            own = round(_STEPS * np.log2(total / counts[index]))
            low, high = max(min(own, n_levels - 1) - _NEAR, 0), min(own + _NEAR + 1, n_levels)
        fall = _STEPS if octave and (first + index) % octave == 0 else 0
        for level in range(low, high):
            least, choice = 0.0, 0
            if index:
                least, choice = best[cheapest] + _change_bits(level - max(cheapest - fall, 0)), cheapest
            for before in range(max(level + fall - _NEAR, low_before), min(level + fall + _NEAR + 1, high_before)):
                bits = best[before] + _change_bits(level - max(before - fall, 0))
                if bits < least:
                    choice, least = before, bits
            choices[index, level] = choice
            after[level] = least + counts[index] * level / _STEPS + filling[level]
        best, after = after, best
        low_before, high_before = low, high
        cheapest = low
        for level in range(low + 1, high):
            if best[level] < best[cheapest]:
                cheapest = level
    chosen[-1] = cheapest
    for index in range(len(counts) - 1, 0, -1):
        chosen[index - 1] = choices[index, chosen[index]]


@part
def _change_bits(change: int) -> float:
    # Of the Exp-Golomb code (k = 0) of the zigzagged number.
    bits, magnitude = 1, abs(change)
    while magnitude:
        bits, magnitude = bits + 2, magnitude >> 1
    return bits


def entropy_bits(counts: Longs) -> tuple[float, float]:
    """About the bits of symbols that occur so often, and of their table."""
    used = counts[counts > 0].astype(np.float64)
    return float(-(used * np.log2(used / used.sum())).sum()), 2.0 * len(used) + 20.0


def encode_arrays(parts: list[tuple[npt.NDArray[np.integer], Histogram]]) -> bytes:
    """One stream of arrays of indices into their tables' weights; tables of one symbol take no room."""
    coded = [(indices, table) for indices, table in parts if len(indices) and len(table.weights) > 1]
    words = np.empty(sum(len(indices) for indices, _ in coded) + 2, np.uint32)
    at = np.zeros(2, np.uint64)
    for indices, table in reversed(coded):
        put(indices, 0, table.bounds, at, words)
    state, n_words = int(at[0]), int(at[1])
    # Leading zero bytes of the last word need not be kept.
    return bytes(words[:n_words].astype("<u4").tobytes() + state.to_bytes(8, "little")).rstrip(b"\0")


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
        self._words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._at = opened(self._words)

    def take(self, n_symbols: int, table: Histogram) -> Ints:
        """The next indices into the table's weights, int32 `[n_symbols]`.

        Raises:
            ArchiveError: the table is empty, or they are more than any stream holds.
        """
        if not 0 <= n_symbols < _MAX_CODED:
            raise ArchiveError(f"{self._place}: {n_symbols} symbols; the archive is damaged")
        indices = np.empty(n_symbols, np.int32)
        self.take_into(indices, table)
        return indices

    def take_into(self, indices: Ints, table: Histogram) -> None:
        """The next indices into the table's weights, into an array `[n]`.

        Raises:
            ArchiveError: the table is empty.
        """
        if len(indices) and not len(table.weights):
            raise ArchiveError(f"{self._place}: {len(indices)} symbols of 0 kinds; the archive is damaged")
        if len(table.weights) > 1:
            take(self._words, self._at, table.bounds, table.slots, 0, indices)
        else:
            indices[:] = 0
