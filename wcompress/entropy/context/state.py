"""What coding one unit under the context model learns.

Its arrays are made here and not in compiled code, where each kind of array would cost a first run a tenth of a second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int16]

N_FEATURES = 10
"""Features of a weight."""

PRIOR_FEATURE = N_FEATURES - 1
"""Which of them is what the VAE prior says."""

UNITS_PER_OCTAVE = 16
"""Of features and scales."""

N_NEAR = 10
N_SCALES = 216  # 1/8 octaves from the lowest on
N_BINS = 18
N_RATIOS = 16
SET_SIZE = 32 * 128
PROBABILITY_BITS = 22
_MOST_SETS = 5


class Learnt(NamedTuple):
    """Probabilities, of `PROBABILITY_BITS`, each beside how many symbols it rests on.

    A slot is a bin of the magnitude under one of the two quantisers.

    Attributes:
        p_scale, c_scale: `[n_slots, N_RATIOS · N_SCALES]`, that a magnitude is larger still, by scale and expectation.
        p_more, c_more: `[n_slots · (n_sets − 1), SET_SIZE]`, the same by further contexts.
        p_sign, c_sign: `[4, 256]`.
        mix: `[n_slots, 5]`, weights of the sets; mix_sign: `[4]`.
    """

    p_scale: Ints
    c_scale: Counts
    p_more: Ints
    c_more: Counts
    p_sign: Ints
    c_sign: Counts
    mix: Ints
    mix_sign: Ints


class Means(NamedTuple):
    """Running means of magnitudes in a tensor, each beside the number it rests on; 12 bits after the point.

    Attributes:
        slow, n_slow, fast, n_fast, by_lag, n_by_lag: `[n_columns]`, of columns, and of places within a lag.
        row: `[3]`, of this row, the number it rests on, and of the row before.
    """

    slow: Ints
    n_slow: Ints
    fast: Ints
    n_fast: Ints
    by_lag: Ints
    n_by_lag: Ints
    row: Ints


class Workspace(NamedTuple):
    """Arrays that coding a unit reads and writes.

    Compiled code takes such tuples apart by position: the cache of machine code would not see that names changed their
    places.

    Attributes:
        learnt, means: see there.
        values: int32 `[n]`, weights so far in steps.
        near, sizes: `[N_NEAR]`, the neighbours of the weight at hand and their magnitudes, see `neighbours`.
        x: `[N_FEATURES + 1]`, its features.
        at: `[5]`, where its magnitude is looked up in each set of probabilities; sign_at, flip: `[4]`, the same of its
            sign, and whether it is looked up for the other sign.
        logit: `[5]`, of the probabilities that are mixed; coder: `[6]`.
    """

    learnt: Learnt
    means: Means
    values: npt.NDArray[np.int32]
    near: Ints
    sizes: Ints
    x: Ints
    at: Ints
    sign_at: Ints
    flip: Ints
    logit: Ints
    coder: Ints


def workspace(n_weights: int, n_columns: int, n_sets: int) -> Workspace:
    """Where nothing has been learnt yet.

    Args:
        n_weights: of the unit.
        n_columns: of the longest row.
        n_sets: sets of probabilities to mix; 0 to code nothing.
    """
    n_slots = 2 * N_BINS if n_sets else 0
    by_scale = (n_slots, N_RATIOS * N_SCALES)
    by_more = (n_slots * max(n_sets - 1, 0), SET_SIZE)
    mix = np.full((n_slots, _MOST_SETS), 8000, np.int64)
    mix[:, 0] = 36000
    x = np.zeros(N_FEATURES + 1, np.int64)
    x[N_FEATURES] = UNITS_PER_OCTAVE
    slow, n_slow, fast, n_fast, by_lag, n_by_lag = np.zeros((6, n_columns), np.int64)
    learnt = Learnt(
        p_scale=np.zeros(by_scale, np.int64),
        c_scale=np.zeros(by_scale, np.int16),
        p_more=np.zeros(by_more, np.int64),
        c_more=np.zeros(by_more, np.int16),
        p_sign=np.full((4, 256), 1 << (PROBABILITY_BITS - 1), np.int64),
        c_sign=np.zeros((4, 256), np.int16),
        mix=mix,
        mix_sign=np.full(4, 20000, np.int64),
    )
    return Workspace(
        learnt=learnt,
        means=Means(slow, n_slow, fast, n_fast, by_lag, n_by_lag, np.zeros(3, np.int64)),
        values=np.zeros(n_weights, np.int32),
        near=np.zeros(N_NEAR, np.int64),
        sizes=np.zeros(N_NEAR, np.int64),
        x=x,
        at=np.zeros(_MOST_SETS, np.int64),
        sign_at=np.zeros(4, np.int64),
        flip=np.zeros(4, np.int64),
        logit=np.zeros(_MOST_SETS, np.int64),
        coder=np.zeros(6, np.int64),
    )
