"""Quantisation with error feedback: what a weight loses, weights not yet coded make good.

An error in one column of a weight matrix changes a layer's output in the direction of one input. As far as other inputs
go along with it, their weights can take the error back. So columns are coded one after the other, and each error is
spread over the columns to come, in the way that makes the output's squared error least. The trellis runs down a
column, whose weights have no part in each other's errors: rows of the matrix belong to outputs.

Of a convolution a column is an input channel with all its taps, and within a row of it, taps follow each other. There
each survivor of the trellis has errors of its own, which it feeds to the taps that follow.

Source: the feedback of Frantar et al., "GPTQ", arXiv 2210.17323, in the form of a Cholesky factor; the Viterbi search
with decisions fed back by survivor of Raheli, Polydoros and Tzou, "Per-survivor processing", 1995.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.branches import NEVER, BranchTables
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.codec.quantiser.viterbi import advance, branches, register_places
from wcompress.compiled import compiled, part

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

_COLUMNS_TOGETHER = 64
_TRIED = 3  # magnitudes around a weight, of each quantiser, beside zero


@part
def _candidates(
    target: np.float32,
    weight: np.float32,
    row: int,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    quantiser: int,
    costs: Singles,
    symbols: Ints,
    errors: Singles,
    at: int,
) -> None:
    # Of one weight under one quantiser: the cheapest symbol of either parity, its cost and its error.
    away, from_zero = target - shifts[row, 1], target - shifts[row, 0]
    size, negative = abs(away), away < 0
    top = np.float32(levels.shape[1] - 3)
    signed = levels.shape[1] if negative else 0
    middle = int(min((size + quantiser) * np.float32(0.5), top))
    costs[at], symbols[at], errors[at] = weight * from_zero * from_zero + zero[row, quantiser], 0, from_zero
    costs[at + 1], symbols[at + 1], errors[at + 1] = NEVER, 1, 0
    for magnitude in range(max(middle - 1, 1), middle + _TRIED - 1):
        distance = size - levels[quantiser, magnitude + 1]
        cost = weight * distance * distance + rest[row, quantiser, signed + magnitude + 1]
        to = at + (magnitude & 1)
        if cost < costs[to]:
            costs[to] = cost
            symbols[to] = -magnitude if negative else magnitude
            errors[to] = -distance if negative else distance


@compiled(makes_arrays=True)
def _code_columns(
    targets: Singles,
    factors: Singles,
    columns: Singles,
    rows: Singles,
    classes: Ints,
    first: int,
    unit: int,
    state: int,
    branch_of: Ints,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    symbols: Ints,
    errors: Singles,
) -> int:
    # targets, symbols, errors: [n_columns, n_rows]; the targets are changed. Returns the state after them.
    n_columns, n_rows = targets.shape
    half = len(branch_of)
    costs = np.empty((n_rows, 4), np.float32)
    found, off = np.empty((n_rows, 4), np.int32), np.empty((n_rows, 4), np.float32)
    survivors = np.empty((n_rows, 2 * half), np.uint8)
    states = np.empty((2, 2 * half), np.float32)
    for column in range(n_columns):
        start = 0
        while start < n_rows:
            place = first + column * n_rows + start
            if place % unit == 0:
                state = 0
            stop = min(n_rows, start + unit - place % unit)
            now, then = states[0], states[1]
            now[:] = NEVER
            now[state] = 0
            for i in range(start, stop):
                row, weight = classes[column * n_rows + i], columns[column] * rows[i]
                for quantiser in range(2):
                    _candidates(
                        targets[column, i], weight, row, levels, rest, zero, shifts, quantiser,
                        costs[i], found[i], off[i], 2 * quantiser,
                    )  # fmt: skip
                least = min(min(costs[i, 0], costs[i, 1]), min(costs[i, 2], costs[i, 3]))
                for branch in range(4):
                    costs[i, branch] -= least
                advance(now[:half], now[half:], branch_of, costs[i], survivors[i], then)
                now, then = then, now
            state = int(np.argmin(now))
            last = state
            for i in range(stop - 1, start - 1, -1):
                upper = int(survivors[i, state]) & 1
                before = state >> 1
                branch = branch_of[before] ^ (state & 1) ^ upper
                symbols[column, i] = found[i, branch]
                errors[column, i] = off[i, branch]
                state = before + half * upper
            state = last
            start = stop
        for later in range(column + 1, n_columns):
            factor = factors[column, later]
            if factor != 0:
                for i in range(n_rows):
                    targets[later, i] -= factor * errors[column, i]
    return state


@compiled(makes_arrays=True)
def _code_taps(
    targets: Singles,
    factors: Singles,
    columns: Singles,
    rows: Singles,
    group_of: npt.NDArray[np.int64],
    classes: Ints,
    first: int,
    unit: int,
    state: int,
    next_state: Ints,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    symbols: Ints,
    errors: Singles,
) -> int:
    # One input channel: targets, symbols, errors: [n_rows, inner]; factors: [n_groups, inner, inner]. States are those
    # of the trellis. Each survivor has the errors of its row so far.
    n_rows, inner = targets.shape
    n, n_states = n_rows * inner, len(next_state)
    chosen, came = np.zeros((n, n_states), np.int16), np.zeros((n, n_states), np.int32)
    off = np.zeros((n, n_states), np.float32)
    past, new_past = np.zeros((n_states, inner), np.float32), np.zeros((n_states, inner), np.float32)
    cost, new_cost = np.empty(n_states, np.float32), np.empty(n_states, np.float32)
    branch_costs, branch_symbols = np.empty(2, np.float32), np.empty(2, np.int32)
    branch_errors = np.empty(2, np.float32)
    start = 0
    while start < n:
        place = first + start
        if place % unit == 0:
            state = 0
        stop = min(n, start + unit - place % unit)
        cost[:] = NEVER
        cost[state] = 0
        for i in range(start, stop):
            row, tap = i // inner, i % inner
            group = group_of[row]
            weight, cls = columns[group, tap] * rows[row], classes[i]
            new_cost[:] = NEVER
            for s in range(n_states):
                if cost[s] >= NEVER:
                    continue
                target = targets[row, tap]
                for before in range(tap):
                    target -= factors[group, before, tap] * past[s, before]
                _candidates(
                    target, weight, cls, levels, rest, zero, shifts, s & 1,
                    branch_costs, branch_symbols, branch_errors, 0,
                )  # fmt: skip
                for parity in range(2):
                    to, total = next_state[s, parity], cost[s] + branch_costs[parity]
                    if total < new_cost[to]:
                        new_cost[to], came[i, to] = total, s
                        chosen[i, to], off[i, to] = branch_symbols[parity], branch_errors[parity]
            least = new_cost.min()
            for s in range(n_states):
                if new_cost[s] < NEVER:
                    new_cost[s] -= least
                    if tap + 1 < inner:
                        origin = came[i, s]
                        for before in range(tap):
                            new_past[s, before] = past[origin, before]
                        new_past[s, tap] = off[i, s]
            cost, new_cost = new_cost, cost
            past, new_past = new_past, past
        state = int(np.argmin(cost))
        last = state
        for i in range(stop - 1, start - 1, -1):
            symbols[i // inner, i % inner] = chosen[i, state]
            errors[i // inner, i % inner] = off[i, state]
            state = came[i, state]
        state = last
        # A unit may end within a row, whose errors so far are then those that were chosen.
        for s in range(n_states):
            for before in range(stop % inner):
                past[s, before] = errors[stop // inner, before]
        start = stop
    return state


@dataclass(frozen=True)
class _Search:
    """What holds for all tensors.

    Attributes:
        unit: weights between two starts of the trellis.
        machine: the trellis.
        branch_of, places: see `wcompress.codec.quantiser.viterbi`.
        tables: of the branches.
    """

    unit: int
    machine: Trellis
    branch_of: Ints
    places: Places
    tables: BranchTables

    @property
    def arrays(self) -> tuple[Singles, Singles, Singles, Singles]:
        """Of the tables."""
        tables = self.tables
        return tables.levels, tables.rest, tables.zero, tables.shifts

    def columns(self, x: Singles, symbols: Ints, feedback: Feedback, classes: Ints, first: int, state: int) -> int:
        """Codes the columns of a tensor, x and symbols `[n_columns, n_rows]`; gives the state of the register."""
        n_columns, n_rows = x.shape
        for low in range(0, n_columns, _COLUMNS_TOGETHER):
            high = min(n_columns, low + _COLUMNS_TOGETHER)
            factors = np.zeros((high - low, high - low), np.float32)
            if feedback.factors is not None:
                factors = np.ascontiguousarray(feedback.factors[0, low:high, low:high])
            errors = np.empty((high - low, n_rows), np.float32)
            state = _code_columns(
                x[low:high],
                factors,
                feedback.columns[0, low:high],
                feedback.rows,
                classes[low * n_rows : high * n_rows],
                first + low * n_rows,
                self.unit,
                state,
                self.branch_of,
                *self.arrays,
                symbols[low:high],
                errors,
            )
            if feedback.factors is not None and high < n_columns:
                x[high:] -= feedback.factors[0, low:high, high:].T @ errors
        return state

    def taps(self, x: Singles, symbols: Ints, feedback: Feedback, classes: Ints, first: int, state: int) -> int:
        """Codes the channels of a tensor, x and symbols `[n_channels, n_rows, inner]`; gives the state."""
        n_channels, n_rows, inner = x.shape
        n_groups, size = len(feedback.columns), n_rows * inner
        group_of = np.arange(n_rows) // (n_rows // n_groups)
        for channel in range(n_channels):
            here = slice(channel * inner, (channel + 1) * inner)
            factors = np.zeros((n_groups, inner, inner), np.float32)
            if feedback.factors is not None:
                factors = np.ascontiguousarray(feedback.factors[:, here, here])
            errors = np.empty((n_rows, inner), np.float32)
            state = _code_taps(
                x[channel],
                factors,
                np.ascontiguousarray(feedback.columns[:, here]),
                feedback.rows,
                group_of,
                classes[channel * size : (channel + 1) * size],
                first + channel * size,
                self.unit,
                state,
                self.machine.next_state,
                *self.arrays,
                symbols[channel],
                errors,
            )
            if feedback.factors is not None and channel + 1 < n_channels:
                later = feedback.factors[:, here, here.stop :]
                change = np.matmul(errors.reshape(n_groups, -1, inner), later)
                x[channel + 1 :] -= change.reshape(n_rows, -1, inner).transpose(1, 0, 2)
        return state


def search_with_feedback(
    x: Singles,
    starts: Places,
    feedbacks: Sequence[Feedback],
    unit: int,
    classes: Ints,
    machine: Trellis,
    levels: Singles,
    rates: Singles,
    multiplier: float,
    shifts: Singles | None = None,
) -> Ints:
    """The symbols that minimise what errors cost + multiplier · bits, tensor by tensor, column by column.

    Args:
        x: weights in steps, float32 `[n]`, of each tensor `[n_columns / inner, n_rows, inner]`; are changed to what was
            quantised.
        starts: int64 `[n_tensors + 1]`, where tensors begin.
        feedbacks: of each tensor; costs are those of a squared step.
        unit: weights between two starts of the trellis.
        classes: int32 `[n]`, of each weight.
        machine, levels, rates, multiplier, shifts: as for `wcompress.codec.quantiser.viterbi.search`; the trellis has
            several states.

    Returns:
        int32 `[n]`.
    """
    places = register_places(machine)
    known = _Search(unit, machine, branches(machine), places, BranchTables.of(levels, rates, multiplier, shifts))
    symbols, states = np.empty(len(x), np.int32), np.argsort(places)
    at = 0  # a state of the register
    for feedback, start, stop in zip(feedbacks, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        n_rows, inner = len(feedback.rows), feedback.inner
        some, of_them = x[start:stop], classes[start:stop]
        if inner == 1 and len(feedback.columns) == 1:
            found = symbols[start:stop].reshape(-1, n_rows)
            at = known.columns(some.reshape(-1, n_rows), found, feedback, of_them, start, at)
        elif len(some):
            shape = -1, n_rows, inner
            in_channels = symbols[start:stop].reshape(shape)
            state = known.taps(some.reshape(shape), in_channels, feedback, of_them, start, int(states[at]))
            at = int(places[state])
    return symbols
