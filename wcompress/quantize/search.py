"""The encoder's side of trellis quantisation: the symbols that cost least.

Source: the Viterbi algorithm (Forney, "The Viterbi algorithm", 1973) with rates in its costs, as in rate–distortion
optimised and dependent quantisation.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt

from wcompress.quantize.trellis import Trellis, units_in_threads

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]


class Sliceable(Protocol):
    """Weights, float32 `[n]`, of which slices are taken."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, some: slice, /) -> Singles:
        """Some of them."""


@numba.njit(cache=True)
def _predecessors(next_state: Ints) -> tuple[Ints, Ints]:
    # For each state the two transitions into it: where from, and which of the branches 2 · quantiser + parity.
    n_states = len(next_state)
    origin = np.zeros((2, n_states), np.int32)
    branch = np.zeros((2, n_states), np.int32)
    seen = np.zeros(n_states, np.int32)
    for state in range(n_states):
        for parity in range(2):
            target = next_state[state, parity]
            origin[seen[target], target] = state
            branch[seen[target], target] = 2 * (state & 1) + parity
            seen[target] += 1
    return origin, branch


@numba.njit(cache=True, nogil=True)
def _search_unit(
    x: Singles,
    classes: Ints,
    class_shift: int,
    first: int,
    next_state: Ints,
    levels: Singles,
    shifts: Singles,
    rates: Singles,
    multiplier: float,
    symbols: Ints,
) -> None:
    n, n_states = len(x), len(next_state)
    limit = (levels.shape[1] - 1) // 2
    origin, branch = _predecessors(next_state)
    n_branches = 4 if n_states > 1 else 2
    inverse_spacing = 0.5 if n_states > 1 else 1.0
    chosen = np.empty((n, 4), np.int16)
    taken = np.empty((n, n_states), np.uint8)
    cost = np.full(n_states, np.float32(1e30))
    cost[0] = 0.0
    new_cost = np.empty(n_states, np.float32)
    branch_cost = np.empty(4, np.float32)
    for i in range(n):
        value = x[i]
        row = classes[(first + i) >> class_shift]
        for b in range(n_branches):
            branch_cost[b] = np.float32(1e30)
        for quantiser in range(n_branches // 2):
            nearest = value * inverse_spacing
            if quantiser == 1:
                nearest += 0.5 if value > 0 else -0.5
            centre = int(np.rint(nearest))
            for candidate in range(4):
                k = 0 if candidate == 3 else centre - 1 + candidate
                k = min(max(k, -limit), limit)
                error = value - levels[quantiser, k + limit] - shifts[row, 0 if k == 0 else 1]
                total = np.float32(error * error + multiplier * rates[row, quantiser, k + limit])
                b = 2 * quantiser + (k & 1)
                if total < branch_cost[b]:
                    branch_cost[b] = total
                    chosen[i, b] = k
        if n_states == 1:
            b = 0 if branch_cost[0] <= branch_cost[1] else 1
            symbols[i] = chosen[i, b]
            continue
        lowest = np.float32(1e30)
        for state in range(n_states):
            one = cost[origin[0, state]] + branch_cost[branch[0, state]]
            two = cost[origin[1, state]] + branch_cost[branch[1, state]]
            second = two < one
            taken[i, state] = second
            best = two if second else one
            new_cost[state] = best
            lowest = min(lowest, best)
        for state in range(n_states):
            cost[state] = new_cost[state] - lowest
    if n_states == 1:
        return
    state = int(np.argmin(cost))
    for i in range(n - 1, -1, -1):
        second = taken[i, state]
        symbols[i] = chosen[i, branch[second, state]]
        state = origin[second, state]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _search_scalar(x: Singles, classes: Ints, class_shift: int, first: int, thresholds: Singles, symbols: Ints) -> None:
    # A magnitude's symbol is how many thresholds it is beyond: one instruction compares many weights of one class.
    start, n = 0, len(x)
    while start < n:
        cls = classes[(first + start) >> class_shift]
        end = start + (1 << class_shift)
        while end < n and end - start < 512 and classes[(first + end) >> class_shift] == cls:
            end += 1 << class_shift
        some, out = x[start : min(end, n)], symbols[start : min(end, n)]
        row = thresholds[cls]
        start = end
        largest = np.float32(0.0)
        for i in range(len(some)):
            out[i] = 0
            largest = max(largest, abs(some[i]))
        for k in range(1, len(row)):
            threshold = row[k]
            if largest <= threshold:
                break
            for i in range(len(some)):
                out[i] += abs(some[i]) > threshold
        for i in range(len(some)):
            out[i] = -out[i] if some[i] < 0 else out[i]


def _thresholds(levels: Singles, rates: Singles, multiplier: float) -> Singles:
    # From which magnitude on k is better than k − 1, for each class and k, float32 `[n_classes, limit + 1]`, ascending.
    # Levels and rates of −k are those of k.
    limit = levels.shape[1] // 2
    level = levels[0, limit:].astype(np.float64)
    rate = rates[:, 0, limit:].astype(np.float64)
    middle = (level[1:] + level[:-1]) / 2 + multiplier * np.diff(rate, axis=1) / (2 * np.maximum(np.diff(level), 1e-9))
    ascending = np.maximum.accumulate(middle, axis=1)
    return np.concatenate([np.zeros((len(rate), 1)), ascending], axis=1).astype(np.float32)


def search(
    x: Sliceable,
    unit_starts: npt.NDArray[np.int64],
    classes: Ints,
    class_shift: int,
    machine: Trellis,
    levels: Singles,
    rates: Singles,
    multiplier: float,
    shifts: Singles | None = None,
) -> Ints:
    """The symbols that minimise squared error + multiplier · bits.

    Args:
        x: weights in steps, float32 `[n]`, or what gives them by slices.
        unit_starts: int64 `[n_units + 1]`, where units begin; each starts in state 0, and units run in parallel.
        classes: int32, the class of the weights `x[c << class_shift : (c + 1) << class_shift]`; units start where a
            class does.
        class_shift: log₂ of the weights that share a class.
        machine: the trellis.
        levels: float32 `[2, 2·limit + 1]`, what quantiser and symbol + limit reconstruct to, in steps.
        rates: float32 `[n_classes, 2, 2·limit + 1]`, bits; the same for k and −k, as levels are but for their sign.
        multiplier: Lagrangian, in squared steps a bit.
        shifts: float32 `[n_classes, 2]`, what is added to the level of a zero, and of any other symbol; None for 0.

    Returns:
        int32 `[n]`, each within ±limit.
    """
    symbols = np.empty(len(x), np.int32)
    scalar = machine.n_states == 1 and shifts is None
    thresholds = _thresholds(levels, rates, multiplier) if scalar else np.zeros((0, 0), np.float32)
    if shifts is None:
        shifts = np.zeros((len(rates), 2), np.float32)
    table = machine.next_state

    def part(some: npt.NDArray[np.int64]) -> None:
        for start, end in itertools.pairwise(some.tolist()):
            unit, out = x[start:end], symbols[start:end]
            if scalar:
                _search_scalar(unit, classes, class_shift, start, thresholds, out)
            else:
                _search_unit(unit, classes, class_shift, start, table, levels, shifts, rates, multiplier, out)

    units_in_threads(part, unit_starts)
    return symbols
