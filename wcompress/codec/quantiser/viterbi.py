"""The encoder's side of trellis quantisation: the symbols that cost least.

Source: the Viterbi algorithm (Forney, "The Viterbi algorithm", 1973) with rates in its costs, as in rate–distortion
optimised and dependent quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.branches import CHOICE, NEVER, BranchTables, find_branches, symbol_of
from wcompress.codec.quantiser.lanes import LANES, is_faster, search_units
from wcompress.codec.quantiser.trellis import Trellis, units_in_threads
from wcompress.compiled import compiled

Ints = npt.NDArray[np.int32]
Shorts = npt.NDArray[np.int16]
Singles = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


class Sliceable(Protocol):
    """Weights, float32 `[n]`, of which slices are taken."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, some: slice, /) -> Singles:
        """Some of them."""


def register_places(machine: Trellis) -> Places:
    """Where each state of a trellis lies in the order of a shift register: int64 `[n_states]`."""
    # The trellis is linear: state s goes to L(s) ⊕ parity · v. A linear function g with g(v) = 1 and g = 0 on v's
    # earlier predecessors L⁻¹(v), L⁻²(v), … tells the bit that a step shifts in; a state's last bits are its place.
    n_states = machine.n_states
    n_bits = n_states.bit_length() - 1
    states = np.arange(n_states)
    before = np.argsort(machine.next_state[:, 0])
    fits, at = np.ones(n_states, bool), int(machine.next_state[0, 1])
    for step in range(n_bits):
        fits &= (np.bitwise_count(states & at) & 1) == (step == 0)
        at = int(before[at])
    function = int(np.flatnonzero(fits)[0])
    places, earlier = np.zeros(n_states, np.int64), states
    for step in range(n_bits):
        places |= (np.bitwise_count(earlier & function).astype(np.int64) & 1) << step
        earlier = before[earlier]
    return places


def branches(machine: Trellis) -> Ints:
    """A trellis with its states in the order of a shift register: int32 `[n_states / 2]`.

    State i of the register goes to 2i and 2i + 1, modulo the number of states: the two states that lead to the same two
    lie half of all states apart, so that a step reads and writes in order, many states in one instruction.

    Returns:
        Of state i < n_states / 2 the branch, 2 · quantiser + parity of the symbol, to state 2i. Of the other three of
        these four, to 2i + 1, and from i + n_states / 2 to 2i, the symbol has the other parity; the quantiser is the
        same.
    """
    n_states, places = machine.n_states, register_places(machine)
    half = np.argsort(places)[: n_states // 2].astype(np.int32)
    odd = places[machine.next_state[half, 0]] != 2 * np.arange(len(half))
    branch_of: Ints = 2 * (half & 1) + odd.astype(np.int32)
    return branch_of


@compiled()
def advance(low: Singles, high: Singles, branch_of: Ints, costs: Singles, survivors: Bytes, to: Singles) -> None:
    """From the costs of states i and i + n_states / 2 to those of 2i and 2i + 1, by those of a weight's four branches.

    Which of the two was the better way is shifted into a byte.
    """
    # Its own function, so that the compiler can tell the arrays apart.
    c0, c1, c2, c3 = costs[0], costs[1], costs[2], costs[3]
    for i in range(len(branch_of)):
        branch = branch_of[i]
        even, odd = (c2 if branch > 1 else c0), (c3 if branch > 1 else c1)
        own, other = (odd if branch & 1 else even), (even if branch & 1 else odd)
        from_low, from_high = low[i] + own, high[i] + other
        survivors[2 * i] = (survivors[2 * i] << 1) | (from_high < from_low)
        to[2 * i] = min(from_low, from_high)
        from_low, from_high = low[i] + other, high[i] + own
        survivors[2 * i + 1] = (survivors[2 * i + 1] << 1) | (from_high < from_low)
        to[2 * i + 1] = min(from_low, from_high)


@compiled(fastmath=True)
def _lower(costs: Singles) -> None:
    lowest = costs[0]
    for i in range(len(costs)):
        lowest = min(lowest, costs[i])
    for i in range(len(costs)):
        costs[i] -= lowest


@compiled()
def _search_unit(
    x: Singles,
    first: int,
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
    survivors: Bytes,
    symbols: Ints,
) -> None:
    # costs: [n, 4, 1]; states: [2, n_states], the first of them before the first step; survivors: [n / 8, n_states].
    n, half, lane = len(x), len(branch_of), np.int64(0)  # a literal would be compiled for itself
    find_branches(x, first, classes, class_shift, levels, rest, zero, shifts, choice, lane, costs, nearest, flags)
    now, then = states[0], states[1]
    for i in range(n):
        advance(now[:half], now[half:], branch_of, costs[i].reshape(-1), survivors[i >> 3], then)
        now, then = then, now
        if i & 7 == 7:
            _lower(now)
    state = 0
    for other in range(1, 2 * half):
        if now[other] < now[state]:
            state = other
    for i in range(n - 1, -1, -1):
        upper = (survivors[i >> 3, state] >> (min(i | 7, n - 1) - i)) & 1
        before = state >> 1
        branch = branch_of[before] ^ (state & 1) ^ upper
        symbols[i] = symbol_of(np.int64(nearest[i]), np.int64(flags[i]), branch >> 1, branch & 1)
        state = before + half * upper


@compiled()
def _search_scalar(
    x: Singles,
    first: int,
    classes: Ints,
    class_shift: int,
    levels: Singles,
    rest: Singles,
    zero: Singles,
    shifts: Singles,
    symbols: Ints,
) -> None:
    # The two symbols around a weight, the one below these, and zero.
    top = np.float32(levels.shape[1] - 3)
    for i in range(len(x)):
        row = classes[(first + i) >> class_shift]
        from_zero, away = x[i] - shifts[row, 0], x[i] - shifts[row, 1]
        size, best, found = abs(away), from_zero * from_zero + zero[row, 0], 0
        m, signed = int(min(size, top)), levels.shape[1] if away < 0 else 0
        for k in range(m - 1, m + 2):
            distance = size - levels[0, k + 1]
            cost = distance * distance + rest[row, 0, signed + k + 1]
            if cost < best:
                best, found = cost, k
        symbols[i] = -found if away < 0 else found


def thresholds(levels: Singles, rates: Singles, multiplier: float) -> Singles:
    """From which magnitude on k is better than k − 1 under scalar quantisation, for each class and k.

    Args:
        levels, rates, multiplier: as for `search`.

    Returns:
        float32 `[n_classes, limit + 1]`, ascending, in steps; the first is 0.
    """
    # Levels and rates of −k are those of k.
    limit = levels.shape[1] // 2
    level = levels[0, limit:].astype(np.float64)
    rate = rates[:, 0, limit:].astype(np.float64)
    middle = (level[1:] + level[:-1]) / 2 + multiplier * np.diff(rate, axis=1) / (2 * np.maximum(np.diff(level), 1e-9))
    ascending = np.maximum.accumulate(middle, axis=1)
    return np.concatenate([np.zeros((len(rate), 1)), ascending], axis=1).astype(np.float32)


def search(
    x: Sliceable,
    unit_starts: Places,
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
        levels: float32 `[2, 2·limit + 1]`, what quantiser and symbol + limit reconstruct to, in steps; the
            levels of −k are those of k but for their sign.
        rates: float32 `[n_classes, 2, 2·limit + 1]`, bits.
        multiplier: Lagrangian, in squared steps a bit.
        shifts: float32 `[n_classes, 2]`, what is added to the level of a zero, and of any other symbol; None for 0.

    Returns:
        int32 `[n]`, each within ±limit.
    """
    symbols = np.empty(len(x), np.int32)
    tables = BranchTables.of(levels, rates, multiplier, shifts)
    branch_of = branches(machine) if machine.n_states > 1 else np.zeros(0, np.int32)

    def part(some: Places) -> None:
        in_lanes = is_faster(machine.n_states, len(some) - 1)
        for batch in _batches(some, LANES if in_lanes else 1):
            here = slice(batch[0], batch[-1])
            if in_lanes:
                search_units(x[here], batch, classes, class_shift, branch_of, tables, symbols[here])
            elif machine.n_states == 1:
                _search_scalar(
                    x[here],
                    here.start,
                    classes,
                    class_shift,
                    tables.levels,
                    tables.rest,
                    tables.zero,
                    tables.shifts,
                    symbols[here],
                )
            else:
                search_unit(x[here], here.start, classes, class_shift, branch_of, tables, symbols[here])

    units_in_threads(part, unit_starts)
    return symbols


def _batches(starts: Places, size: int) -> Iterator[Places]:
    for first in range(0, len(starts) - 1, size):
        yield starts[first : first + size + 1]


def search_unit(
    x: Singles, first: int, classes: Ints, class_shift: int, branch_of: Ints, tables: BranchTables, symbols: Ints
) -> None:
    """The symbols that cost least in one unit, of whose states many are worked on in one instruction.

    Args:
        x: weights in steps, float32 `[n]`.
        first: place in the sequence of the first.
        classes, class_shift: as for `search`.
        branch_of: see `branches`.
        tables: of the branches.
        symbols: int32 `[n]`, are filled.
    """
    n, n_states = len(x), 2 * len(branch_of)
    states = np.full((2, n_states), NEVER, np.float32)
    states[0, 0] = 0.0
    _search_unit(
        x,
        first,
        classes,
        class_shift,
        branch_of,
        tables.levels,
        tables.rest,
        tables.zero,
        tables.shifts,
        CHOICE,
        np.empty((n, 4, 1), np.float32),
        np.empty(n, np.int16),
        np.empty(n, np.uint8),
        states,
        np.zeros((-(-n // 8), n_states), np.uint8),
        symbols,
    )
