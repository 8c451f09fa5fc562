"""Numbers that are part of the format: logistic function, logarithm, how fast probabilities move."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wcompress.entropy.context.state import UNITS_PER_OCTAVE

N_TAPS = 8
"""Neighbours that predict a sign: two before, two above, above before and after, two a lag away."""

LOWEST = -6 * UNITS_PER_OCTAVE
MAX_SYMBOL = 1 << 18
LIMITS = (255, 1023)
"""After so many symbols a probability goes on moving as fast as it does: mixed ones, which have to follow, and one
that is alone, which has to be accurate."""

FRACTION = 12  # bits after the point of running means


def _squash_table() -> npt.NDArray[np.int64]:
    # 65536 / (1 + e^(−x/256)), x = −2047 … 2047. No value is near a tie, see the test, so any libm gives these.
    return np.array([round(65536 / (1 + math.exp(-x / 256))) for x in range(-2047, 2048)], np.int64)


def _stretch_table(squash: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # The inverse: of a probability's upper 12 bits, the first x that reaches its middle.
    return np.searchsorted(squash, 16 * np.arange(4096) + 8).clip(0, 4094).astype(np.int64) - 2047


def _log_table() -> npt.NDArray[np.int64]:
    # floor(16 · log2(1 + (i + ½)/256)), which is exact: the values are irrational and far from whole.
    return np.array([math.floor(16 * math.log2(1 + (i + 0.5) / 256)) for i in range(256)], np.int64)


SQUASH = _squash_table()
STRETCH = _stretch_table(SQUASH)
LOG = _log_table()
RATES = np.array([655360 // (10 * n + 16) for n in range(LIMITS[1] + 1)], np.int64)
"""65536 / (n + 1.6): how far a probability moves after n symbols."""


class Tables(NamedTuple):
    """What compiled code looks up, int64 each."""

    squash: npt.NDArray[np.int64]
    stretch: npt.NDArray[np.int64]
    log: npt.NDArray[np.int64]
    rates: npt.NDArray[np.int64]


TABLES = Tables(SQUASH, STRETCH, LOG, RATES)
