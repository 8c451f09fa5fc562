"""A scale of its own for a tensor's or a row's quantisation step, where one step for the whole model is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.errors import ArchiveError

Floats = npt.NDArray[np.float64]

QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^(i/4), part of the format."""

_MAX_EXPONENT = 1 << 11


def quarter_octaves(exponent: int) -> float:
    """2^(exponent/4) from constants alone, so that it is the same everywhere; inf beyond float64."""
    try:
        return math.ldexp(QUARTERS[exponent % 4], exponent // 4)
    except OverflowError:
        return math.inf


WHOLE, FIRST, SECOND, BOTH = range(4)
"""What of a tensor has an exponent of its own; literal, append-only.

The tensor; each index of its first dimension, or each run of `RUN` numbers where it has only one; each index of its
second dimension; or both: each index of the first and each of the second dimension, whose exponents are added, but each
pair of them where `has_pairs` says so.
"""

EACH = 4
"""Each number of a tensor of one dimension, as format versions before 5 understand `FIRST`."""

RUN = 1024


PAIR_SIZE = 32


def has_pairs(shape: tuple[int, ...]) -> bool:
    """Whether each pair of the first two indices has at least `PAIR_SIZE` numbers: a stack of matrices, say."""
    return len(shape) > 2 and math.prod(shape[2:]) >= PAIR_SIZE


def n_exponents(kind: int, shape: tuple[int, ...]) -> int:
    """How many exponents a tensor of this shape has."""
    if kind == WHOLE or not shape:
        return 1
    if len(shape) == 1:
        return shape[0] if kind == EACH else max(1, -(-shape[0] // RUN))
    if kind == BOTH:
        return shape[0] * shape[1] if has_pairs(shape) else shape[0] + shape[1]
    return shape[0] if kind == FIRST else shape[1]


def of_indices(
    kind: int, exponents: Sequence[int], n_rows: int, axis: int, chosen: slice | npt.NDArray[np.int64]
) -> tuple[int, ...]:
    """The exponents of some indices of a tensor's first or second dimension.

    Args:
        kind: of the exponents; not `BOTH` with one for each pair.
        exponents: of the whole tensor.
        n_rows: length of its first dimension.
        axis: 0 or 1.
        chosen: indices along it.
    """
    if kind == BOTH:
        rows, columns = exponents[:n_rows], exponents[n_rows:]
        cut = (_some(rows, chosen), columns) if axis == 0 else (rows, _some(columns, chosen))
        return (*cut[0], *cut[1])
    return _some(exponents, chosen) if kind == FIRST + axis else tuple(exponents)


def _some(values: Sequence[int], chosen: slice | npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(values[chosen]) if isinstance(chosen, slice) else tuple(values[i] for i in chosen)


@dataclass(frozen=True)
class OwnScales:
    """For each tensor the exponents of its scales, 2^(exponent/4).

    Attributes:
        exponents: a tuple for each tensor, as long as `n_exponents` says.
        kinds: of each tensor; by default `WHOLE` where there is one exponent, else `FIRST`.
    """

    exponents: tuple[tuple[int, ...], ...]
    kinds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds and self.exponents:
            object.__setattr__(self, "kinds", tuple(FIRST if len(row) > 1 else WHOLE for row in self.exponents))

    @classmethod
    def plain(cls, n_tensors: int) -> OwnScales:
        """No scales: one step for all tensors."""
        return cls(((0,),) * n_tensors)

    @property
    def is_plain(self) -> bool:
        """Whether every scale is 1."""
        return all(row == (0,) for row in self.exponents)

    def with_those_of(self, other: OwnScales, indices: Iterable[int]) -> OwnScales:
        """These scales, but of some tensors those of `other`."""
        rows, kinds = list(self.exponents), list(self.kinds)
        for index in indices:
            rows[index], kinds[index] = other.exponents[index], other.kinds[index]
        return OwnScales(tuple(rows), tuple(kinds))

    def write(self, out: BitWriter) -> None:
        """A bit that says whether there is any; then for each tensor its kind, and differences."""
        out.write(not self.is_plain, 1)
        if self.is_plain:
            return
        before = 0
        for kind, row in zip(self.kinds, self.exponents, strict=True):
            out.write(kind, 2)
            costs = [sum(2 * ((code >> k) + 1).bit_length() - 1 + k for code in _codes(row, before)) for k in range(4)]
            k = costs.index(min(costs))
            out.write(k, 2)
            for code in _codes(row, before):
                out.write_exp_golomb(code, k)
            before = row[-1] if row else before

    @classmethod
    def read(cls, data: BitReader, sequencing: Sequencing, version: int) -> OwnScales:
        """Undo `write`; format versions before 5 know `WHOLE` and `FIRST` alone, the latter in one bit.

        Raises:
            ArchiveError: it is malformed.
        """
        if not data.read(1):
            return cls.plain(len(sequencing.shapes))
        rows: list[tuple[int, ...]] = []
        kinds: list[int] = []
        before = 0
        for shape in sequencing.shapes:
            kind = data.read(2 if version > 4 else 1)
            if kind > FIRST and len(shape) < 2:
                raise ArchiveError("scales: a tensor of one dimension has no second one; the archive is damaged")
            if version < 5 and kind == FIRST and len(shape) == 1:
                kind = EACH
            k = data.read(2)
            row: list[int] = []
            for _ in range(n_exponents(kind, shape)):
                before += unzigzag(data.read_exp_golomb(k))
                if abs(before) > _MAX_EXPONENT:
                    raise ArchiveError(f"scales: an exponent of {before}; the archive is damaged")
                row.append(before)
            if kind == BOTH and not has_pairs(shape) and _most_added(row, shape[0]) > _MAX_EXPONENT:
                raise ArchiveError("scales: exponents add up to too much; the archive is damaged")
            rows.append(tuple(row))
            kinds.append(kind)
        return cls(tuple(rows), tuple(kinds))

    def divided(self, index: int, array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """A tensor of two or more dimensions divided by the scales of its columns; itself where they have none."""
        kind, row, shape = self.kinds[index], self.exponents[index], array.shape
        if kind not in (SECOND, BOTH) or has_pairs(shape):
            return array
        scales = np.array([quarter_octaves(exponent) for exponent in row[-shape[1] :]], array.dtype)
        return array / scales.reshape(-1, *(1,) * (len(shape) - 2))

    def multipliers(self, sequencing: Sequencing, first: int, last: int) -> Floats:
        """The scale of each weight from `first` to `last` of the sequence, float64; `[1]` where no tensor has any."""
        if self.is_plain:
            return np.ones(1)
        out = np.empty(last - first)
        index = max(0, int(np.searchsorted(sequencing.starts, first, side="right")) - 1)
        while index < len(self.exponents) and sequencing.starts[index] < last:
            start, end = (int(v) for v in sequencing.starts[index : index + 2])
            low, high = max(start, first), min(end, last)
            if low < high:
                out[low - first : high - first] = self._scales(sequencing, index, low - start, high - start)
            index += 1
        return out

    def _scales(self, sequencing: Sequencing, index: int, low: int, high: int) -> Floats | float:
        # Of the weights from `low` to `high` of one tensor.
        kind, row, shape = self.kinds[index], self.exponents[index], sequencing.shapes[index]
        if kind == BOTH and not has_pairs(shape):
            exponents = np.array(row)
            least = min(row[: shape[0]]) + min(row[shape[0] :])
            most = max(row[: shape[0]]) + max(row[shape[0] :])
            values = np.array([quarter_octaves(exponent) for exponent in range(least, most + 1)])
            rows, columns = (sequencing.index_along(index, axis, low, high) for axis in (0, 1))
            added: Floats = values[exponents[rows] + exponents[shape[0] + columns] - least]
            return added
        values = np.array([quarter_octaves(exponent) for exponent in row])
        if len(row) == 1:
            return float(values[0])
        chosen: Floats = values[group_indices(sequencing, index, kind, low, high)]
        return chosen


def group_indices(sequencing: Sequencing, index: int, kind: int, low: int, high: int) -> npt.NDArray[np.int64]:
    """Which of its tensor's exponents each weight from `low` to `high` of tensor `index` has.

    Where two exponents are added, `BOTH` has no such numbers.
    """
    shape = sequencing.shapes[index]
    if len(shape) < 2:
        places = np.arange(low, high)
        return places if kind == EACH else places // RUN
    if kind == BOTH:
        first, second = (sequencing.index_along(index, axis, low, high) for axis in (0, 1))
        return first * shape[1] + second
    return sequencing.index_along(index, kind - FIRST, low, high)


def _most_added(row: Sequence[int], n_rows: int) -> int:
    return max(row[:n_rows], default=0) + max(row[n_rows:], default=0)


def _codes(row: tuple[int, ...], before: int) -> list[int]:
    return [zigzag(b - a) for a, b in zip((before, *row[:-1]), row, strict=True)]
