"""What lies around a weight, and what that says of its magnitude and its sign.

Neighbours are numbered as taps are, with two more at the end: 1 and 2 before, 1 and 2 above, above before and above
after, 1 and 2 lags away; 3 and 4 before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import inlined
from wcompress.entropy.context.arithmetic import log2, mean_log
from wcompress.entropy.context.state import N_FEATURES, N_NEAR, UNITS_PER_OCTAVE, Means
from wcompress.entropy.context.tables import FRACTION, LOWEST, N_TAPS

Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.int32]


@inlined
def look_around(
    j: int, edge: int, column: int, n_columns: int, lag: int, base: int, values: Symbols, near: Ints, sizes: Ints
) -> None:
    # Where they are, if they are: `values` from `edge` to j − 1 are of the tensor, and what is before lies in the row.
    by_rows = lag >= n_columns
    near[0] = j - 1 if column > 0 else -1
    near[1] = j - 2 if column > 1 else -1
    near[2] = j - n_columns
    near[3] = j - 2 * n_columns
    near[4] = j - n_columns - 1 if column > 0 else -1
    near[5] = j - n_columns + 1 if column + 1 < n_columns and j - n_columns >= edge else -1
    near[6] = j - lag if lag > 0 and (by_rows or column >= lag) else -1
    near[7] = j - 2 * lag if lag > 0 and (by_rows or column >= 2 * lag) else -1
    near[8] = j - 3 if column > 2 else -1
    near[9] = j - 4 if column > 3 else -1
    # One that is not there counts for the tensor's mean, without a sign.
    for t in range(N_NEAR):
        there = near[t] >= edge
        near[t] = values[near[t]] if there else 0
        sizes[t] = abs(near[t]) << FRACTION if there else base


@inlined
def forget(means: Means, n_columns: int, base: int) -> None:
    # At the start of a tensor.
    slow, n_slow, fast, n_fast, by_lag, n_by_lag, row = means
    for c in range(n_columns):
        slow[c], n_slow[c], fast[c], n_fast[c], by_lag[c], n_by_lag[c] = 0, 0, 0, 0, 0, 0
    row[0], row[1], row[2] = 0, 0, base


@inlined
def next_row(means: Means, base: int) -> None:
    _, _, _, _, _, _, row = means
    one = 1 << FRACTION
    row[2] = ((row[0] + 4 * base) << FRACTION) // (row[1] + 4 * one)
    row[0], row[1] = 0, 0


@inlined
def remember(means: Means, column: int, slot: int, m: int) -> None:
    # A magnitude in this column and at this place within a lag.
    slow, n_slow, fast, n_fast, by_lag, n_by_lag, row = means
    one = 1 << FRACTION
    row[0] += m - (row[0] >> 6)
    row[1] += one - (row[1] >> 6)
    slow[column] += m - (slow[column] >> 6)
    n_slow[column] += one - (n_slow[column] >> 6)
    fast[column] += m - (fast[column] >> 2)
    n_fast[column] += one - (n_fast[column] >> 2)
    by_lag[slot] += m - (by_lag[slot] >> 6)
    n_by_lag[slot] += one - (n_by_lag[slot] >> 6)


@inlined
def features(
    x: Ints, sizes: Ints, means: Means, column: int, n_columns: int, n_lag: int, base: int, base_log: int, log: Ints
) -> None:
    # All but the prior's: logarithms of mean magnitudes, drawn towards the tensor's where little has been seen.
    slow, n_slow, fast, n_fast, by_lag, n_by_lag, row = means
    one = 1 << FRACTION
    x[0] = mean_log(slow[column] + 2 * base, n_slow[column] + 2 * one, log) - base_log
    x[1] = mean_log(fast[column] + 2 * base, n_fast[column] + 2 * one, log) - base_log
    x[2] = mean_log(row[0] + 4 * base, row[1] + 4 * one, log) - base_log
    before = 4 * sizes[0] + 3 * sizes[1] + 2 * sizes[8] + sizes[9]
    x[3] = mean_log(before + 2 * base, 12 * one, log) - base_log
    x[4] = mean_log(4 * sizes[2] + 2 * (sizes[3] + sizes[4] + sizes[5] + base), 12 * one, log) - base_log
    x[5] = mean_log(2 * sizes[6] + sizes[7] + base, 4 * one, log) - base_log
    x[6] = 0
    if n_lag > 1:
        slot = column % n_lag
        x[6] = mean_log(by_lag[slot] + 4 * base, n_by_lag[slot] + 4 * one, log) - base_log
    x[7] = mean_log(row[2], one, log) - base_log
    wide, n_wide = 2 * base, 2 * one
    for c in range(max(0, column - 3), min(n_columns, column + 4)):
        wide += slow[c]
        n_wide += n_slow[c]
    x[8] = mean_log(wide, n_wide, log) - base_log


@inlined
def relative_scale(x: Ints, linear: Ints, weights_in: Ints, weights_out: Ints) -> int:
    # What the network makes of the features.
    total = 0
    for f in range(N_FEATURES + 1):
        total += linear[f] * x[f]
    for h in range(len(weights_out)):
        hidden = 0
        for f in range(N_FEATURES + 1):
            hidden += weights_in[h, f] * x[f]
        total += weights_out[h] * (max(hidden, 0) >> 5)
    return int(total >> 5)


@inlined
def predicts(taps: Ints) -> bool:
    some = np.int64(0)
    for t in range(N_TAPS):
        some |= taps[t]
    return bool(some != 0)


@inlined
def expected_value(taps: Ints, near: Ints) -> int:
    # In units of 1/64.
    expected = 0
    for t in range(N_TAPS):
        expected += taps[t] * near[t]
    return expected


@inlined
def strength(expected: int, scale: int, log: Ints) -> int:
    # How strongly a sign is expected, 0 to 7: from a quarter of the scale on, in half octaves.
    if expected == 0:
        return 0
    relative = log2(abs(expected), log) - 6 * UNITS_PER_OCTAVE - max(scale, LOWEST)
    return min(max((relative + 36) >> 3, 0), 7)
