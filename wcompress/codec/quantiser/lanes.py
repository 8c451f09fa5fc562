"""The Viterbi search in many units at once: a state's costs in all of them lie side by side, one instruction for many.

Of few states this takes half the time of one unit after the other, or less; and the result is the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.branches import CHOICE, NEVER, BranchTables, find_branches, symbol_of
from wcompress.compiled import compiled, part

Ints = npt.NDArray[np.int32]
Shorts = npt.NDArray[np.int16]
Singles = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

LANES = 64
"""Units at once. A constant, for the compiler to know how far rows lie apart."""
_STATES_TOGETHER = 8  # of which the survivors' bits make a byte
_MOST_STATES = 256
_STEPS = 16  # for which branches are found before states advance


def is_faster(n_states: int, n_units: int) -> bool:
    """Whether so many units are searched faster together than one after the other."""
    # The time for all lanes goes with the states; the states of more do not fit the processor's nearest cache.
    return _STATES_TOGETHER <= n_states <= _MOST_STATES and n_units >= min(LANES // 2, 2 + n_states // 8)


def search_units(
    x: Singles,
    starts: Places,
    classes: Ints,
    class_shift: int,
    branch_of: Ints,
    tables: BranchTables,
    symbols: Ints,
) -> None:
    """The symbols that cost least in up to `LANES` units.

    Args:
        x: weights in steps, float32 `[n]`, of the units.
        starts: int64 `[n_units + 1]`, where they begin, and the last one ends, in the sequence.
        classes, class_shift: as for `wcompress.codec.quantiser.viterbi.search`.
        branch_of: see `wcompress.codec.quantiser.viterbi.branches`.
        tables: of the branches.
        symbols: int32 `[n]`, are filled.
    """
    longest, n_states = int(np.diff(starts).max(initial=0)), 2 * len(branch_of)
    _search(
        x,
        starts,
        classes,
        class_shift,
        branch_of,
        tables.levels,
        tables.rest,
        tables.zero,
        tables.shifts,
        CHOICE,
        np.zeros((_STEPS, 4, LANES), np.float32),
        np.empty(len(x), np.int16),
        np.empty(len(x), np.uint8),
        np.full((2, n_states * LANES), NEVER, np.float32),
        np.zeros(LANES, np.int64),
        np.empty(LANES, np.float32),
        np.empty((longest, n_states // _STATES_TOGETHER * LANES), np.uint8),
        symbols,
    )


@compiled()
def _search(
    x: Singles,
    starts: Places,
    classes: Ints,
    class_shift: int,
    branch_of: Ints,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    choice: Singles,
    costs: Singles,
    nearest: Shorts,
    flags: Bytes,
    states: Singles,
    last_states: Places,
    lowest: Singles,
    survivors: Bytes,
    symbols: Ints,
) -> None:
    n_units, half, n_steps, first = len(starts) - 1, len(branch_of), len(costs), starts[0]
    now, then = states[0], states[1]
    for lane in range(LANES):
        now[lane] = np.float32(0.0)
    begin, longest = 0, len(survivors)
    while begin < longest:
        end = min(begin + n_steps, longest)
        for unit in range(n_units):  # steps end where a unit does
            length = starts[unit + 1] - starts[unit]
            if begin < length:
                end = min(end, length)
        for unit in range(n_units):
            if starts[unit + 1] - starts[unit] > begin:
                at = starts[unit] + begin
                here = slice(at - first, at - first + end - begin)
                find_branches(
                    x[here],
                    at,
                    classes,
                    class_shift,
                    levels,
                    rest,
                    zero,
                    shifts,
                    choice,
                    unit,
                    costs,
                    nearest[here],
                    flags[here],
                )
        for i in range(begin, end):
            _advance(costs[i - begin].reshape(-1), branch_of, now, then, survivors[i])
            now, then = then, now
            if i & 7 == 7:
                _lower(now, lowest)
        for unit in range(n_units):
            if starts[unit + 1] - starts[unit] == end:
                last_states[unit] = _cheapest(now, 2 * half, unit)
        begin = end
    for i in range(longest - 1, -1, -1):
        for unit in range(n_units):
            at = starts[unit] + i
            if at >= starts[unit + 1]:
                continue
            state = last_states[unit]
            upper = (survivors[i, (state >> 3) * LANES + unit] >> (state & 7)) & 1
            before = state >> 1
            branch = branch_of[before] ^ (state & 1) ^ upper
            symbols[at - first] = symbol_of(
                np.int64(nearest[at - first]), np.int64(flags[at - first]), branch >> 1, branch & 1
            )
            last_states[unit] = before + half * upper


@part
def _advance(costs: Singles, branch_of: Ints, now: Singles, then: Singles, survivors: Bytes) -> None:
    # Eight states at a time, whose costs stay in registers; which of two ways was the better one is a bit of a byte.
    half = len(branch_of)
    none = np.int32(0)
    for state in range(0, half, 4):
        b0, b1, b2, b3 = branch_of[state], branch_of[state + 1], branch_of[state + 2], branch_of[state + 3]
        low = now[state * LANES : (state + 4) * LANES]
        high = now[(half + state) * LANES : (half + state + 4) * LANES]
        to = then[2 * state * LANES : (2 * state + 8) * LANES]
        bits = survivors[(state >> 2) * LANES : ((state >> 2) + 1) * LANES]
        own0, other0 = costs[b0 * LANES : (b0 + 1) * LANES], costs[(b0 ^ 1) * LANES : ((b0 ^ 1) + 1) * LANES]
        own1, other1 = costs[b1 * LANES : (b1 + 1) * LANES], costs[(b1 ^ 1) * LANES : ((b1 ^ 1) + 1) * LANES]
        own2, other2 = costs[b2 * LANES : (b2 + 1) * LANES], costs[(b2 ^ 1) * LANES : ((b2 ^ 1) + 1) * LANES]
        own3, other3 = costs[b3 * LANES : (b3 + 1) * LANES], costs[(b3 ^ 1) * LANES : ((b3 ^ 1) + 1) * LANES]
        for i in range(LANES):
            low0, low1, low2, low3 = low[i], low[i + LANES], low[i + 2 * LANES], low[i + 3 * LANES]
            high0, high1, high2, high3 = high[i], high[i + LANES], high[i + 2 * LANES], high[i + 3 * LANES]
            x0, y0, x1, y1 = low0 + own0[i], high0 + other0[i], low0 + other0[i], high0 + own0[i]
            x2, y2, x3, y3 = low1 + own1[i], high1 + other1[i], low1 + other1[i], high1 + own1[i]
            x4, y4, x5, y5 = low2 + own2[i], high2 + other2[i], low2 + other2[i], high2 + own2[i]
            x6, y6, x7, y7 = low3 + own3[i], high3 + other3[i], low3 + other3[i], high3 + own3[i]
            byte = np.int32(1) if y0 < x0 else none
            byte |= np.int32(2) if y1 < x1 else none
            byte |= np.int32(4) if y2 < x2 else none
            byte |= np.int32(8) if y3 < x3 else none
            byte |= np.int32(16) if y4 < x4 else none
            byte |= np.int32(32) if y5 < x5 else none
            byte |= np.int32(64) if y6 < x6 else none
            byte |= np.int32(128) if y7 < x7 else none
            to[i], to[i + LANES] = min(x0, y0), min(x1, y1)
            to[i + 2 * LANES], to[i + 3 * LANES] = min(x2, y2), min(x3, y3)
            to[i + 4 * LANES], to[i + 5 * LANES] = min(x4, y4), min(x5, y5)
            to[i + 6 * LANES], to[i + 7 * LANES] = min(x6, y6), min(x7, y7)
            bits[i] = byte


@part
def _lower(costs: Singles, lowest: Singles) -> None:
    # Costs are kept small.
    for i in range(LANES):
        lowest[i] = costs[i]
    for start in range(LANES, len(costs), LANES):
        row = costs[start : start + LANES]
        for i in range(LANES):
            lowest[i] = min(lowest[i], row[i])
    for start in range(0, len(costs), LANES):
        row = costs[start : start + LANES]
        for i in range(LANES):
            row[i] -= lowest[i]


@part
def _cheapest(costs: Singles, n_states: int, lane: int) -> int:
    at, lowest = 0, costs[lane]
    for state in range(1, n_states):
        if costs[state * LANES + lane] < lowest:
            at, lowest = state, costs[state * LANES + lane]
    return at
