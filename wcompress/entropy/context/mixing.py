"""Probabilities that follow what they see, and mixtures of several.

A probability is the chance of a set bit: in units of 2^−22 where it is learnt, of 2^−16 where it is coded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import inlined
from wcompress.entropy.context.state import N_SCALES, PROBABILITY_BITS, Counts

Ints = npt.NDArray[np.int64]


@inlined
def learn(p: Ints, counts: Counts, index: int, bit: bool, rates: Ints, limit: int | np.int64) -> None:
    count = counts[index]
    target = (1 << PROBABILITY_BITS) - 1 if bit else 0
    p[index] += ((target - p[index]) * rates[count]) >> 16
    if count < limit:
        counts[index] = count + 1


@inlined
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


@inlined
def stretched(p: int, stretch: Ints) -> int:
    # Of a learnt probability.
    return int(stretch[p >> (PROBABILITY_BITS - 12)])


@inlined
def mixed(weights: Ints, logit: Ints, n: int, squash: Ints) -> int:
    dot = 0
    for s in range(n):
        dot += weights[s] * logit[s]
    return int(squash[min(max(2047 + (dot >> 16), 0), 4094)])


@inlined
def weigh(weights: Ints, logit: Ints, n: int, probability: int, bit: bool) -> None:
    # More weight to those that were right.
    error = (65536 if bit else 0) - probability
    for s in range(n):
        weights[s] += (logit[s] * error + 8192) >> 14


@inlined
def within(probability: int) -> int:
    # Never so sure that a bit takes next to nothing, or very much.
    return min(max(probability, 24), 65536 - 24)
