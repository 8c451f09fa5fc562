"""The least quality of each tensor, row and channel, which no saving elsewhere can buy; see docs/quality.md.

An SQNR pooled over a model says nothing of its small tensors, nor one of a tensor of its small rows: the energy of the
large ones hides them. So every group of weights that may have a scale of its own is held to a floor relative to its own
energy: where the common step is too coarse for it, the group gets a finer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import BOTH, FIRST, RUN, SECOND, WHOLE, OwnScales, has_pairs
from wcompress.codec.quantiser.views import Sums, View
from wcompress.fidelity import LEAST_ROW

Floats = npt.NDArray[np.float64]
Shortfalls = dict[int, Floats]
"""How many dB each group of a tensor lies below its floor, 0 for none, by kind of group; float64 `[n_groups]`."""

FINE_RANGE_DB = (24.0, 90.0)
"""How precisely tensors are kept that are not coded, at least and at most."""

_FINE_MARGIN_DB, _FINE_MARGIN_FROM_DB, _FINE_SLOPE = (14.0, 34.0), 20.0, 2.0
_REFERENCE_DB, _TENSOR_DB, _ROW_DB = 22.0, 15.0, 8.0
_SLOPE_BELOW = 1.5
_DISTANT = 1e-2
_MARGIN_DB = 0.5
_STATIC_MARGIN_DB = 1.0
_MOST_AT_ONCE_DB = 600.0  # so that exponents stay where a reader takes them
_BITS_DB = 6.02


@dataclass(frozen=True)
class Quality:
    """A quality and its reason.

    Attributes:
        sqnr_db: as `wcompress.codec.rate_control.step_rule` counts it, dB.
        reason: a phrase.
    """

    sqnr_db: float
    reason: str


@dataclass(frozen=True)
class Floors:
    """Least SQNRs in dB, each of a group relative to its own energy.

    Attributes:
        tensor_db, row_db: of a tensor; of a row, a channel, or a matrix's row in a stack of matrices.
        distant_tensor_db, distant_row_db: the same of those whose mean square is less than a hundredth of the model's:
            they have a scale of their own.
    """

    tensor_db: float
    row_db: float
    distant_tensor_db: float
    distant_row_db: float

    @classmethod
    def at(cls, sqnr_db: float) -> Floors:
        """The floors beside a model's SQNR: 15 and 8 dB at 22 dB; below that they go down faster than it does."""
        below = (sqnr_db - _REFERENCE_DB) * (_SLOPE_BELOW if sqnr_db < _REFERENCE_DB else 1.0)
        tensor, row = _TENSOR_DB + below, _ROW_DB + below
        return cls(tensor, row, max(tensor, sqnr_db / 2), max(row, sqnr_db / 4))

    def of(self, kind: int, distant: npt.NDArray[np.bool_]) -> Floats:
        """The floors of groups of one kind, `[n_groups]`."""
        near, far = (self.tensor_db, self.distant_tensor_db) if kind == WHOLE else (self.row_db, self.distant_row_db)
        return np.where(distant, far, near)


def kinds_of(shape: tuple[int, ...]) -> Iterator[int]:
    """The kinds of groups that a tensor of this shape is looked at by."""
    yield WHOLE
    n = math.prod(shape)
    if len(shape) == 1:
        yield FIRST
        return
    for kind, size in ((FIRST, shape[0]), (SECOND, shape[1])):
        if 1 < size <= n // LEAST_ROW:
            yield kind
    if has_pairs(shape) and min(shape[:2]) > 1:
        yield BOTH


@dataclass(frozen=True)
class Groups:
    """The groups of one tensor by kind.

    Attributes:
        view: how its weights lie in the sequence.
        counts: of the weights in each group, int64 `[n_groups]`, by kind.
    """

    view: View
    counts: dict[int, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, sequencing: Sequencing, index: int) -> Groups:
        """Those of tensor `index`."""
        shape = sequencing.shapes[index]
        n = math.prod(shape)
        counts = {}
        for kind in kinds_of(shape):
            if kind == FIRST and len(shape) == 1:
                counts[kind] = np.minimum(RUN, n - np.arange(0, n, RUN))
            else:
                size = math.prod(shape[axis] for axis in {WHOLE: (), FIRST: (0,), SECOND: (1,), BOTH: (0, 1)}[kind])
                counts[kind] = np.full(size, n // size)
        return cls(View.of(sequencing, index), counts)

    def sums(self) -> Sums:
        """What sums over them are made with, once."""
        return Sums(self.view, self.counts)


def shortfalls(
    groups: Groups, signal: dict[int, Floats], noise: dict[int, Floats], floors: Floors, mean_square: float
) -> Shortfalls:
    """What one tensor lacks.

    Args:
        groups: of the tensor.
        signal, noise: energies of weights and errors by kind and group.
        floors: to be kept.
        mean_square: of the model's weights, in the same units.

    Returns:
        Only kinds in which a group lacks something.
    """
    found: Shortfalls = {}
    for kind, energy in signal.items():
        distant = energy < _DISTANT * mean_square * groups.counts[kind]
        with np.errstate(divide="ignore", invalid="ignore"):
            sqnr_db = 10 * np.log10(energy / noise[kind])
            lacking = floors.of(kind, distant) - sqnr_db
        # What is nothing may become nothing; where there is no error, nothing is lacking.
        lacking = np.where((energy > 0) & (noise[kind] > 0), np.maximum(lacking, 0.0), 0.0)
        if lacking.any():
            found[kind] = lacking
    return found


def lowered(own_scales: OwnScales, shapes: Sequence[tuple[int, ...]], lacking: Sequence[Shortfalls]) -> OwnScales:
    """Scales with finer steps where something is lacking.

    Args:
        own_scales: as they are.
        shapes: of the tensors.
        lacking: of each tensor, see `shortfalls`.
    """
    kinds, rows = [], []
    for index, shape in enumerate(shapes):
        kind, row = own_scales.kinds[index], own_scales.exponents[index]
        if lacking[index]:
            kind, row = _lowered(kind, row, shape, lacking[index])
        kinds.append(kind)
        rows.append(row)
    return OwnScales(tuple(rows), tuple(kinds))


def _quarters(lacking_db: Floats | float) -> npt.NDArray[np.int64]:
    # By how many quarter octaves a step has to be finer.
    db = np.asarray(lacking_db, np.float64)
    needed = np.ceil(4 * (np.minimum(db, _MOST_AT_ONCE_DB) + _MARGIN_DB) / 6.02)
    return np.where(db > 0, needed, 0).astype(np.int64)


def _lowered(
    kind: int, row: tuple[int, ...], shape: tuple[int, ...], lacking: Shortfalls
) -> tuple[int, tuple[int, ...]]:
    whole = int(_quarters(float(lacking[WHOLE][0]))) if WHOLE in lacking else 0
    if len(shape) < 2:
        n = len(lacking[FIRST]) if FIRST in lacking else len(row)
        exponents = np.resize(np.array(row), n) - whole
        if FIRST in lacking:
            exponents = exponents - np.maximum(_quarters(lacking[FIRST]) - whole, 0)
        return _simplest(exponents[:, None], shape)
    none = np.zeros((1, 1), np.int64)
    first = np.maximum(_quarters(lacking[FIRST])[:, None] - whole, 0) if FIRST in lacking else none
    second = np.maximum(_quarters(lacking[SECOND])[None] - whole, 0) if SECOND in lacking else none
    grid = _grid(kind, row, shape) - whole
    if has_pairs(shape):
        pairs = _quarters(lacking[BOTH]).reshape(shape[:2]) - whole if BOTH in lacking else none
        grid = grid - np.maximum(np.maximum(first, second), pairs)
    else:
        grid = grid - first - second
    return _simplest(np.broadcast_to(grid, shape[:2]), shape)


def _grid(kind: int, row: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    # Exponents by the first two dimensions, as far as they differ.
    exponents = np.array(row, np.int64)
    if kind == BOTH:
        if has_pairs(shape):
            return exponents.reshape(shape[:2])
        added: npt.NDArray[np.int64] = exponents[: shape[0], None] + exponents[None, shape[0] :]
        return added
    return exponents[None] if kind == SECOND else exponents[:, None]


def _simplest(grid: npt.NDArray[np.int64], shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    # The kind that says the same in the fewest numbers.
    if np.ptp(grid, axis=0).any() and np.ptp(grid, axis=1).any():
        if has_pairs(shape):
            return BOTH, tuple(grid.reshape(-1).tolist())
        columns = grid[0] - grid[0].max()
        return BOTH, (*(grid[:, 0] - columns[0]).tolist(), *columns.tolist())
    if np.ptp(grid, axis=1).any():
        return SECOND, tuple(grid[0].tolist())
    return (FIRST, tuple(grid[:, 0].tolist())) if np.ptp(grid[:, 0]) else (WHOLE, (int(grid[0, 0]),))


def capped(
    own_scales: OwnScales,
    shapes: Sequence[tuple[int, ...]],
    groups: Sequence[Groups],
    energies: Sequence[dict[int, Floats]],
    counted: Sequence[float],
    sqnr_db: float,
    floors: Floors,
    known: tuple[float, float | None] | None = None,
) -> OwnScales:
    """Scales under which the floors are likely kept when the model's SQNR is `sqnr_db`, before anything is quantised.

    The error of a fine quantiser is proportional to its squared step, whatever the weights are. So the SQNR says how
    much error there is at a scale of 1, and that how much each group has.

    Args:
        own_scales: as a rule has them.
        shapes: of the tensors.
        groups: of each.
        energies: of each, by kind and group.
        counted: what each tensor's energy counts for in the SQNR.
        sqnr_db: of the model.
        floors: to be kept.
        known: of a model of which this is a part, the squared error at a scale of 1, and the mean square of its weights
            where that is what tensors are compared with.
    """
    n_weights = [int(one.counts[WHOLE][0]) for one in groups]
    signal = math.fsum(float(e[WHOLE][0]) * c for e, c in zip(energies, counted, strict=True))
    if not signal or not math.isfinite(signal):
        return own_scales
    mean_square = signal / max(1.0, math.fsum(n * c for n, c in zip(n_weights, counted, strict=True)))
    if known is not None and known[1] is not None:
        mean_square = known[1]
    allowed = signal * 10 ** (-sqnr_db / 10)
    for _ in range(4):
        noises = [_noises(own_scales, index, shapes[index], one) for index, one in enumerate(groups)]
        total = math.fsum(float(noise[WHOLE][0]) * c for noise, c in zip(noises, counted, strict=True))
        if not total or not math.isfinite(total):
            return own_scales
        unit = allowed / total if known is None else known[0]
        lacking = []
        for one, energy, noise, weight in zip(groups, energies, noises, counted, strict=True):
            scaled = {kind: values * unit for kind, values in noise.items()}
            found = shortfalls(one, energy, scaled, floors, mean_square / weight if weight else 0.0)
            lacking.append({kind: np.where(db > 0, db + _STATIC_MARGIN_DB, 0.0) for kind, db in found.items()})
        if not any(lacking):
            break
        own_scales = lowered(own_scales, shapes, lacking)
    return own_scales


def _noises(own_scales: OwnScales, index: int, shape: tuple[int, ...], groups: Groups) -> dict[int, Floats]:
    # The squared scales, summed by kind and group.
    kind, row = own_scales.kinds[index], own_scales.exponents[index]
    if len(shape) < 2:
        n_groups = len(groups.counts.get(FIRST, (1,)))
        squares = np.exp2(np.resize(np.array(row, np.float64), n_groups) / 2)
        by_run = squares * groups.counts.get(FIRST, groups.counts[WHOLE])
        return {WHOLE: np.array([by_run.sum()]), **({FIRST: by_run} if FIRST in groups.counts else {})}
    inner = math.prod(shape[2:])
    grid = np.broadcast_to(np.exp2(_grid(kind, row, shape) / 2) * inner, shape[:2])
    sums = {WHOLE: np.array([grid.sum()]), FIRST: grid.sum(1), SECOND: grid.sum(0), BOTH: grid.reshape(-1)}
    return {kind: sums[kind] for kind in groups.counts}


def about_db(bits: float) -> float:
    """The SQNR to expect of so many bits a weight, dB."""
    return _BITS_DB * bits


def fine_sqnr_db(sqnr_db: float, least_margin_db: float = 0.0) -> float:
    """How precisely tensors are kept that are not coded, beside coded ones of this SQNR, dB.

    Args:
        sqnr_db: of the coded tensors.
        least_margin_db: how much better at least.
    """
    low, high = _FINE_MARGIN_DB
    margin = max(least_margin_db, min(max(low + _FINE_SLOPE * (sqnr_db - _FINE_MARGIN_FROM_DB), low), high))
    return min(max(sqnr_db + margin, FINE_RANGE_DB[0]), FINE_RANGE_DB[1])
