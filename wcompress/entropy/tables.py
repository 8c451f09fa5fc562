"""Frequency tables: whole numbers, a few bits an entry in the archive."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.entropy.ans import bounds_of, first_of_slot
from wcompress.entropy.bits import BitReader, BitWriter, exp_golomb_bits, unzigzag, zigzag
from wcompress.errors import ArchiveError

MAX_MAGNITUDE = 2047
_STEPS_PER_OCTAVE = 8
# round(2^16 · 2^(−f/8)); part of the format.
_FRACTIONS = np.array([65536, 60097, 55109, 50535, 46341, 42495, 38968, 35734], dtype=np.int64)
_MAX_LEVEL = 16 * _STEPS_PER_OCTAVE  # a weight of 1 in 2^16


class TableTooWideError(Exception):
    """A table has more magnitudes than a reader takes; its symbols have to be coded in another way."""


@dataclass(frozen=True)
class FrequencyTable:
    """How often each of the symbols −m … m occurs, the same for k and −k, in steps of an eighth of an octave.

    Attributes:
        levels: for each magnitude 0 … m, −8·log₂ of the relative frequency of *one* such symbol, 0 to 128.
    """

    levels: tuple[int, ...]

    @property
    def limit(self) -> int:
        """The largest magnitude m."""
        return len(self.levels) - 1

    @functools.cached_property
    def weights(self) -> npt.NDArray[np.int64]:
        """Relative frequencies of −m … m, whole numbers from 1 to 65536, `[2m + 1]`."""
        levels = np.array(self.levels, dtype=np.int64)
        half = np.maximum(_FRACTIONS[levels & 7] >> (levels >> 3), 1)
        return np.concatenate([half[:0:-1], half])

    @functools.cached_property
    def bounds(self) -> npt.NDArray[np.uint32]:
        """Where the ranges of −m … m begin among 2^24 places, and where the last ends, `[2m + 2]`."""
        return bounds_of(self.weights)

    @functools.cached_property
    def first_of_slot(self) -> npt.NDArray[np.uint16]:
        """The symbol, counted from −m, that the first of each 2^12 places belongs to, `[2^12]`."""
        return first_of_slot(self.bounds)

    @functools.cached_property
    def bits(self) -> npt.NDArray[np.float64]:
        """Ideal code lengths of −m … m, `[2m + 1]`."""
        lengths: npt.NDArray[np.float64] = np.log2(self.weights.sum()) - np.log2(self.weights)
        return lengths

    @functools.cached_property
    def n_bits(self) -> int:
        """Bits that `write` writes.

        Raises:
            TableTooWideError: m is larger than readers take.
        """
        self.check()
        levels = np.array(self.levels, np.int64)
        before = np.concatenate([[0], levels[:-1]])
        slopes = np.zeros(len(levels), np.int64)
        slopes[2:] = np.maximum(np.diff(levels)[:-1], 0)
        change = levels - before - slopes
        codes = np.where(change >= 0, 2 * change, -2 * change - 1)
        lengths = np.frexp(((codes >> 1) + 1).astype(np.float64))[1]
        return exp_golomb_bits(self.limit, 2) + int((2 * lengths).sum())

    def check(self) -> None:
        """Say that a reader takes the table.

        Raises:
            TableTooWideError: m is larger than readers take.
        """
        if self.limit > MAX_MAGNITUDE:
            raise TableTooWideError(f"a table of {self.limit} magnitudes")

    def write(self, out: BitWriter) -> None:
        """Magnitude m, then each level by its difference from what the two before it predict.

        Raises:
            TableTooWideError: m is larger than readers take.
        """
        self.check()
        out.write_exp_golomb(self.limit, 2)
        before, slope = 0, 0
        for magnitude, level in enumerate(self.levels):
            out.write_exp_golomb(zigzag(level - before - slope), 1)
            slope = max(level - before, 0) if magnitude else 0
            before = level

    @classmethod
    def read(cls, data: BitReader) -> FrequencyTable:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        limit = data.read_exp_golomb(2)
        if limit > MAX_MAGNITUDE:
            raise ArchiveError(f"frequency table: magnitude {limit} is too large; the archive is damaged")
        levels: list[int] = []
        before, slope = 0, 0
        for magnitude in range(limit + 1):
            level = before + slope + unzigzag(data.read_exp_golomb(1))
            if not 0 <= level <= _MAX_LEVEL:
                raise ArchiveError(f"frequency table: level {level} is impossible; the archive is damaged")
            slope = max(level - before, 0) if magnitude else 0
            before = level
            levels.append(level)
        return cls(tuple(levels))


def fit_table(counts: npt.NDArray[np.float64]) -> FrequencyTable:
    """The table for symbols that occurred so often.

    Args:
        counts: occurrences of the symbols −m … m, `[2m + 1]`, not all zero; magnitudes beyond the last that occurs are
            left out of the table.
    """
    limit = len(counts) // 2
    one_sided = counts[limit:] + counts[limit::-1]
    one_sided[0] = counts[limit]
    last = int(np.flatnonzero(one_sided)[-1])
    per_symbol = one_sided[: last + 1].copy()
    per_symbol[1:] /= 2
    # A magnitude seen once or never tells little: let it be no rarer than a falling tail suggests.
    floor = 0.25 * np.maximum.accumulate(per_symbol[::-1])[::-1]
    per_symbol = np.maximum(per_symbol, floor)
    levels = np.rint(-_STEPS_PER_OCTAVE * np.log2(per_symbol / per_symbol.max()))
    return FrequencyTable(tuple(int(v) for v in np.minimum(levels, _MAX_LEVEL)))
