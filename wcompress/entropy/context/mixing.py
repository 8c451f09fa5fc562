"""Probabilities that follow what they see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.context.state import N_SCALES, PROBABILITY_BITS, Counts

Ints = npt.NDArray[np.int64]


@compiled()
def learn(p: Ints, counts: Counts, index: int, bit: bool, rates: Ints, limit: int | np.int64) -> None:
    count = counts[index]
    target = (1 << PROBABILITY_BITS) - 1 if bit else 0
    p[index] += ((target - p[index]) * rates[count]) >> 16
    if count < limit:
        counts[index] = count + 1


@compiled()
def first_guess(p: Ints, counts: Counts, ratio: int, at: int, shape: int, squash: Ints) -> int:
    # Of a probability never used: what a scale nearby has learnt, or the same scale unexpected, or a logistic function.
    row = ratio * N_SCALES
    for distance in range(1, 9):
        if at >= distance and counts[row + at - distance] > 1:
            return int(p[row + at - distance])
        if at + distance < N_SCALES and counts[row + at + distance] > 1:
            return int(p[row + at + distance])
    if counts[at] > 1:
        return int(p[at])
    return int(squash[min(max(2047 + 11 * shape, 0), 4094)] << 6)
