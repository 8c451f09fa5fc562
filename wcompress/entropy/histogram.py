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

import constriction
import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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
