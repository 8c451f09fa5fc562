"""Steps of single tensors for which a number of bits was chosen, whatever the step of the others is.

At high resolution an octave of the step is a bit a weight. Own scales are quarter octaves; between two of them some of
a tensor's rows have the finer one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import BOTH, FIRST, SECOND, WHOLE, OwnScales, has_pairs, n_exponents
from wcompress.codec.rate_control.solution import Solution

Weights = npt.NDArray[np.floating]

_TOLERANCE = 0.01
"""Of the bits that were chosen."""

_LEAST_TOLERANCE_BITS = 0.01
_OCTAVES_OF_ONE_BIT = 1.3  # log2 of the step in root mean squares at which weights take a bit, and so on
_SLOPES, _LEAST_SLOPE, _TELLING_MOVE = (-1.5, -0.2), 0.3, 0.25  # of bits with log2 of the step
_LONGEST_MOVE = 3.0
_EXPONENTS_PER_WEIGHT = 1 / 32  # at most: about a bit each
_MOST_EXPONENT = 2000


class TensorRates:
    """The steps of some tensors.

    Args:
        wanted: bits a weight by index of the tensor.
        own_scales: how scales differ within each tensor.
        sequencing: of all coded tensors.

    Attributes:
        bits: what each tensor took last, bits a weight.
    """

    def __init__(self, wanted: Mapping[int, float], own_scales: OwnScales, sequencing: Sequencing) -> None:
        self.wanted = dict(wanted)
        self.bits: dict[int, float] = {}
        self._profiles = own_scales
        self._shapes = sequencing.shapes
        self._logs: dict[int, float] = {}  # log2 of the step, as the mean over a tensor's rows
        self._before: dict[int, tuple[float, float]] = {}

    def start(self, scales: Mapping[int, float]) -> None:
        """Guess the steps, unless they are known.

        Args:
            scales: root mean squares of the tensors.
        """
        for index, bits in self.wanted.items():
            octaves = math.log2(scales[index]) if scales[index] > 0 else 0.0
            self._logs.setdefault(index, octaves + _OCTAVES_OF_ONE_BIT - bits)

    def forget(self) -> None:
        """Know no step any more."""
        self._logs.clear()
        self._before.clear()
        self.bits = {}

    def step(self, index: int) -> float:
        """Of one tensor."""
        return math.exp2(self._logs[index])

    def limit(self, finest: Mapping[int, float]) -> None:
        """Let no step be finer than this, of each tensor."""
        for index, step in finest.items():
            if step > 0:
                self._logs[index] = max(self._logs[index], math.log2(step))

    def at(self, own_scales: OwnScales, step: float) -> OwnScales:
        """Scales under which these tensors have their steps beside a common one."""
        rows, kinds = list(own_scales.exponents), list(own_scales.kinds)
        for index, log in self._logs.items():
            quarters = 4 * (log - math.log2(step))
            kind, row = self._profiles.kinds[index], self._profiles.exponents[index]
            kinds[index], rows[index] = _shifted(kind, row, self._shapes[index], quarters)
        return OwnScales(tuple(rows), tuple(kinds))

    def adjust(self, bits: Mapping[int, float]) -> bool:
        """Move the steps to where tensors will likely take what was chosen.

        Args:
            bits: what each takes now, bits a weight.

        Returns:
            Whether any was far enough from that to be moved.
        """
        moved = False
        self.bits = dict(bits)
        for index, wanted in self.wanted.items():
            over = bits[index] - wanted
            log, before = self._logs[index], self._before.get(index)
            self._before[index] = log, bits[index]
            if abs(over) <= max(_TOLERANCE * wanted, _LEAST_TOLERANCE_BITS):
                continue
            slope = -min(1.0, max(bits[index], wanted, _LEAST_SLOPE))
            # Bits do not follow small moves alone: a search goes on from the one before.
            if before is not None and abs(before[0] - log) > _TELLING_MOVE:
                slope = (bits[index] - before[1]) / (log - before[0])
                slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
            self._logs[index] = log + min(max(-over / slope, -_LONGEST_MOVE), _LONGEST_MOVE)
            moved = True
        return moved

    def distance(self, bits: Mapping[int, float]) -> float:
        """How far the worst tensor is from what was chosen, as a part of that."""
        return max(abs(bits[index] / wanted - 1) for index, wanted in self.wanted.items())


def _shifted(kind: int, row: tuple[int, ...], shape: tuple[int, ...], quarters: float) -> tuple[int, tuple[int, ...]]:
    """Exponents with this mean, some a quarter octave coarser than the others where that takes few bits."""
    if kind == WHOLE:
        most = math.prod(shape) * _EXPONENTS_PER_WEIGHT
        sizes = {k: n_exponents(k, shape) for k in ((FIRST, SECOND) if len(shape) > 1 else (FIRST,))}
        kind, n = max(((k, n) for k, n in sizes.items() if n <= most), key=lambda one: one[1], default=(WHOLE, 1))
        row = (0,) * n
    if kind == BOTH and not has_pairs(shape):
        # The exponents of rows and columns are added: rows alone are shifted.
        columns = np.array(row[shape[0] :], np.int64)
        middle = round(float(columns.mean()))
        first, rows = _shifted(FIRST, tuple(value + middle for value in row[: shape[0]]), shape, quarters)
        rows = rows if first == FIRST else rows * shape[0]
        return BOTH, (*rows, *(columns - middle).tolist())
    profile = np.array(row, np.int64) - round(sum(row) / len(row))
    whole = math.floor(quarters)
    coarser = round((quarters - whole) * len(row))
    exponents = (profile + whole + (np.arange(len(row)) < coarser)).clip(-_MOST_EXPONENT, _MOST_EXPONENT)
    if not np.ptp(exponents):
        return WHOLE, (int(exponents[0]),)
    return kind, tuple(exponents.tolist())


def tensor_bits(solution: Solution, sequencing: Sequencing, indices: Sequence[int]) -> dict[int, float]:
    """What the symbols of some tensors take, bits a weight; 0 of one without weights.

    Args:
        solution: of all tensors.
        sequencing: of them.
        indices: of the tensors.
    """
    sizes = np.diff(sequencing.starts)
    bits = solution.model.tensor_bits(solution.symbols, sequencing, solution.machine, indices)
    return {index: bits[index] / max(1, int(sizes[index])) for index in indices}
