"""A tensor's weights, as they lie in the sequence, by its first two dimensions: their scales, and sums over groups.

All in one reading of the weights, and without an index or a scale for each of them in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import (
    BOTH,
    EACH,
    FIRST,
    RUN,
    SECOND,
    WHOLE,
    OwnScales,
    has_pairs,
    quarter_octaves,
)
from wcompress.compiled import compiled

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

_LANES = 8
_MOST_SCALES = 1 << 13
_OUTER, _MIDDLE, _INNER = range(3)
_NO_VALUES, _NO_SYMBOLS, _NO_TABLE = np.zeros(0), np.zeros(0, np.int32), np.zeros(0)


@dataclass(frozen=True)
class View:
    """The weights of a tensor in the sequence's order, `[outer, middle, inner]`; the last row of a vector may be short.

    Attributes:
        outer, middle, inner: sizes.
        first, second: the axes, 0 to 2, along which the tensor's first and second index go; of a vector, the first one
            is that of runs.
    """

    outer: int
    middle: int
    inner: int
    first: int
    second: int

    @classmethod
    def of(cls, sequencing: Sequencing, index: int) -> View:
        """That of tensor `index`."""
        shape, layout = sequencing.shapes[index], sequencing.layouts[index]
        if len(shape) < 2:
            return cls(1, -(-math.prod(shape) // RUN), RUN, _MIDDLE, _OUTER)
        rest = math.prod(shape[2:])
        if layout == "positions" or (rest == 1 and layout == "rows"):
            return cls(rest, shape[0], shape[1], _MIDDLE, _INNER)
        if rest == 1:
            return cls(1, shape[1], shape[0], _INNER, _MIDDLE)
        if layout == "rows":
            return cls(shape[0], shape[1], rest, _OUTER, _MIDDLE)
        return cls(shape[1], shape[0], rest, _MIDDLE, _OUTER)

    def along(self, axis: int, values: Places) -> tuple[Places, Places]:
        """Values by index of an axis → what they are by row, `[outer · middle]` or `[1]`, and by column."""
        none = np.zeros(1, np.int64)
        if axis == _INNER:
            return none, values
        return (np.repeat(values, self.middle) if axis == _OUTER else np.tile(values, self.outer)), none


@dataclass(frozen=True)
class Scales:
    """The scales of a tensor's weights: each is that at its row's place plus its column's.

    Attributes:
        by_row: int64 `[outer · middle]`, or `[1]` for one of all.
        by_column: int64 `[inner]`, or `[1]`.
        scales: float64 `[n_places]`.
    """

    by_row: Places
    by_column: Places
    scales: Floats

    @classmethod
    def of(cls, own_scales: OwnScales, sequencing: Sequencing, index: int) -> Scales | None:
        """Those of tensor `index`; None where rows and columns do not say them, or they are too many."""
        kind, shape = own_scales.kinds[index], sequencing.shapes[index]
        exponents, view = np.array(own_scales.exponents[index], np.int64), View.of(sequencing, index)
        if kind == EACH:
            return None
        if len(exponents) == 1:
            by_row, by_column = exponents, np.zeros(1, np.int64)
        elif kind == BOTH and has_pairs(shape):
            if view.second == _INNER:
                return None
            grid = exponents.reshape(shape[:2])
            by_row, by_column = (grid if view.first == _OUTER else grid.T).reshape(-1), np.zeros(1, np.int64)
        elif kind == BOTH:
            first, second = (
                view.along(view.first, exponents[: shape[0]]),
                view.along(view.second, exponents[shape[0] :]),
            )
            by_row, by_column = first[0] + second[0], first[1] + second[1]
        else:
            by_row, by_column = view.along(view.first if kind == FIRST else view.second, exponents)
        least = (int(by_row.min()) if len(by_row) else 0), (int(by_column.min()) if len(by_column) else 0)
        most = (int(by_row.max()) if len(by_row) else 0) + (int(by_column.max()) if len(by_column) else 0)
        if most - sum(least) >= _MOST_SCALES:
            return None
        scales = np.array([quarter_octaves(exponent) for exponent in range(sum(least), most + 1)])
        return cls(by_row - least[0], by_column - least[1], scales)


def divided(weights: Weights, own_scales: OwnScales, sequencing: Sequencing) -> Weights:
    """Weights `[n_weights]` of the sequence divided by their scales, float64; themselves where there are none."""
    if own_scales.is_plain:
        return weights
    out = np.empty(len(weights))
    for index in range(len(sequencing.shapes)):
        start, end = (int(v) for v in sequencing.starts[index : index + 2])
        found = Scales.of(own_scales, sequencing, index) if start < end else None
        if found is None:
            out[start:end] = weights[start:end] / own_scales.multipliers(sequencing, start, end)
        else:
            inner = View.of(sequencing, index).inner
            _divide(weights[start:end], found.by_row, found.by_column, found.scales, inner, out[start:end])
    return out


@compiled()
def _divide(weights: Weights, by_row: Places, by_column: Places, scales: Floats, inner: int, out: Floats) -> None:
    n = len(weights)
    for row in range(-(-n // inner)):
        start = row * inner
        stop = min(start + inner, n)
        at = by_row[row if len(by_row) > 1 else 0]
        if len(by_column) > 1:
            for i in range(start, stop):
                out[i] = weights[i] / scales[at + by_column[i - start]]
        else:
            scale = scales[at]
            for i in range(start, stop):
                out[i] = weights[i] / scale


def look_up(
    symbols: Ints, first: int, scales: Scales, inner: int, table: npt.NDArray[Any], out: npt.NDArray[Any]
) -> None:
    """What symbols stand for.

    Args:
        symbols: int32 `[n]`, no magnitude beyond the table's limit.
        first: place in the tensor of the first.
        scales: of the tensor.
        inner: weights in a row of its view.
        table: `[n_scales, 2 · limit + 1]` of any dtype, by scale and symbol + limit.
        out: `[n]` of the same dtype.
    """
    _look_up(symbols, first, scales.by_row, scales.by_column, inner, table.reshape(-1), table.shape[1], out)


@compiled()
def _look_up(
    symbols: Ints,
    first: int,
    by_row: Places,
    by_column: Places,
    inner: int,
    table: npt.NDArray[Any],
    width: int,
    out: npt.NDArray[Any],
) -> None:
    n, done, middle = len(symbols), 0, width // 2
    while done < n:
        row, column = (first + done) // inner, (first + done) % inner
        stop = min(n, done + inner - column)
        at = by_row[row if len(by_row) > 1 else 0] * width + middle
        if len(by_column) > 1:
            for i in range(done, stop):
                out[i] = table[np.uint64(at + by_column[column + i - done] * width + symbols[i])]
        else:
            for i in range(done, stop):
                out[i] = table[np.uint64(at + symbols[i])]
        done = stop


class Sums:
    """Sums over groups of one tensor's weights, by kind of group.

    Args:
        view: of the tensor.
        counts: of the weights in each group, by kind, as `wcompress.codec.rate_control.floors.Groups` has them.
    """

    def __init__(self, view: View, counts: dict[int, Places]) -> None:
        self._view = view
        self._sums = {kind: np.zeros(len(of)) for kind, of in counts.items()}
        none = np.zeros(0)
        axes = {FIRST: view.first, SECOND: view.second}
        by_axis = [none, none, none]
        for kind, axis in axes.items():
            if kind in counts:
                by_axis[axis] = self._sums[kind]
        self._by_axis = by_axis
        self._pairs = self._sums.get(BOTH, none)
        # Where pairs go: row by row in this order or the other, or an element at a time.
        self._pair_order = 2 if view.second == _INNER else 0 if view.first == _OUTER else 1

    def energy(self, weights: Weights) -> dict[int, Floats]:
        """Of squared weights `[n]`, float64."""
        return self._summed(weights, _NO_VALUES, _NO_SYMBOLS, None, _NO_TABLE, 0)

    def noise(self, weights: Weights, restored: Weights) -> dict[int, Floats]:
        """Of squared differences between weights and restored ones, float64 `[n]`."""
        return self._summed(weights, restored, _NO_SYMBOLS, None, _NO_TABLE, 0)

    def noise_of(self, weights: Weights, symbols: Ints, scales: Scales, table: Floats) -> dict[int, Floats]:
        """Of squared differences between weights and what their symbols are restored to.

        Args:
            weights, symbols: `[n]`.
            scales: of the tensor.
            table: float64 `[n_scales, 2 · limit + 1]`, what a symbol + limit is restored to at each scale.
        """
        return self._summed(weights, _NO_VALUES, symbols, scales, table.reshape(-1), table.shape[1])

    def _summed(
        self, weights: Weights, values: Weights, symbols: Ints, scales: Scales | None, table: Floats, width: int
    ) -> dict[int, Floats]:
        if not len(weights):
            return self._sums
        one = np.zeros(1, np.int64)
        by_row, by_column = (one, one) if scales is None else (scales.by_row, scales.by_column)
        whole = np.zeros(_LANES)
        view = self._view
        _sum_groups(
            weights,
            values,
            symbols,
            table,
            width,
            by_row,
            by_column,
            view.middle,
            view.inner,
            np.empty(min(view.inner, max(1, len(weights))) + _LANES),
            whole,
            self._by_axis[_OUTER],
            self._by_axis[_MIDDLE],
            self._by_axis[_INNER],
            self._pairs,
            self._pair_order,
        )
        self._sums[WHOLE][0] = whole.sum()
        return self._sums


@compiled()
def _sum_groups(
    weights: Weights,
    values: Weights,
    symbols: Ints,
    table: Floats,
    width: int,
    by_row: Places,
    by_column: Places,
    middle: int,
    inner: int,
    squares: Floats,
    whole: Floats,
    by_outer: Floats,
    by_middle: Floats,
    by_inner: Floats,
    pairs: Floats,
    pair_order: int,
) -> None:
    # Sums go through as many lanes as an instruction has, in an order that is always the same.
    n = len(weights)
    n_outer = max(1, n // max(1, middle * inner))
    for row in range(-(-n // inner)):
        start = row * inner
        length = min(inner, n - start)
        outer, mid = row // middle, row % middle
        if len(table):
            at = by_row[row if len(by_row) > 1 else 0] * width + width // 2
            if len(by_column) > 1:
                for i in range(length):
                    place = np.uint64(at + by_column[i] * width + symbols[start + i])
                    error = weights[start + i] - table[place]
                    squares[i] = error * error
            else:
                for i in range(length):
                    error = weights[start + i] - table[np.uint64(at + symbols[start + i])]
                    squares[i] = error * error
        elif len(values):
            for i in range(length):
                error = weights[start + i] - values[start + i]
                squares[i] = error * error
        else:
            for i in range(length):
                squares[i] = np.float64(weights[start + i]) * np.float64(weights[start + i])
        for i in range(length, -(-length // 8) * 8):
            squares[i] = 0.0
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
        for i in range(0, length, 8):
            s0 += squares[i]
            s1 += squares[i + 1]
            s2 += squares[i + 2]
            s3 += squares[i + 3]
            s4 += squares[i + 4]
            s5 += squares[i + 5]
            s6 += squares[i + 6]
            s7 += squares[i + 7]
        total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
        whole[row & 7] += total
        if len(by_outer):
            by_outer[outer] += total
        if len(by_middle):
            by_middle[mid] += total
        if len(by_inner):
            for i in range(length):
                by_inner[i] += squares[i]
        if len(pairs):
            if pair_order == 0:
                pairs[row] += total
            elif pair_order == 1:
                pairs[mid * n_outer + outer] += total
            else:
                for i in range(length):
                    pairs[mid * inner + i] += squares[i]
