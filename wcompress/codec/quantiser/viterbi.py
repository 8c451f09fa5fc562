"""The encoder's side of trellis quantisation: the symbols that cost least.

Source: the Viterbi algorithm (Forney, "The Viterbi algorithm", 1973) with rates in its costs, as in rate–distortion
optimised and dependent quantisation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.trellis import Trellis, units_in_threads
from wcompress.compiled import compiled

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Sliceable(Protocol):
    """Weights, float32 `[n]`, of which slices are taken."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, some: slice, /) -> Singles:
        """Some of them."""


@dataclass(frozen=True)
class _Register:
    """A trellis with its states in the order of a shift register.

    State i of the register goes to 2i and 2i + 1, modulo the number of states: the two states that lead to the same two
    lie half of all states apart, so that a step reads and writes in order, many states in one instruction.

    Attributes:
        second, odd: of the branch from state i < n_states / 2 to state 2i: 1 where it is under quantiser 1, and 1 where
            its symbol is odd, int32 `[n_states / 2]`. The other three branches of these four follow: to 2i + 1, and
            from i + n_states / 2 to 2i, the symbol has the other parity; the quantiser is the same.
    """

    second: Ints
    odd: Ints


def _register(machine: Trellis) -> _Register:
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
    half = np.argsort(places)[: n_states // 2].astype(np.int32)
    odd = places[machine.next_state[half, 0]] != 2 * np.arange(len(half))
    return _Register(half & 1, odd.astype(np.int32))


@compiled(fastmath=True)
def _step(
    low: Singles,
    high: Singles,
    second: Ints,
    odd: Ints,
    branches: Singles,
    to_even: Bytes,
    to_odd: Bytes,
    even: Singles,
    odd_cost: Singles,
) -> None:
    # From the costs of the lower and the upper half of the states to those of even and odd ones. Which way was the
    # better one is shifted into a byte. Its own function, so that the compiler can tell the arrays apart.
    b0, b1, b2, b3 = branches[0], branches[1], branches[2], branches[3]
    for i in range(len(second)):
        with_even = b2 if second[i] > 0 else b0
        with_odd = b3 if second[i] > 0 else b1
        to = with_odd if odd[i] > 0 else with_even
        other = with_even if odd[i] > 0 else with_odd
        from_low, from_high = low[i] + to, high[i] + other
        to_even[i] = (to_even[i] << 1) | (from_high < from_low)
        even[i] = min(from_low, from_high)
        from_low, from_high = low[i] + other, high[i] + to
        to_odd[i] = (to_odd[i] << 1) | (from_high < from_low)
        odd_cost[i] = min(from_low, from_high)


@compiled(fastmath=True)
def _in_order(even: Singles, odd: Singles, lowest: np.float32, out: Singles) -> None:
    for i in range(len(even)):
        out[2 * i] = even[i] - lowest
        out[2 * i + 1] = odd[i] - lowest


@compiled(fastmath=True)
def _lowest(even: Singles, odd: Singles) -> np.float32:
    lowest: np.float32 = even[0]
    for i in range(len(even)):
        lowest = min(lowest, min(even[i], odd[i]))
    return lowest


@compiled()
def _search_unit(
    x: Singles,
    classes: Ints,
    class_shift: int,
    first: int,
    second: Ints,
    odd: Ints,
    levels: Singles,
    shifts: Singles,
    rates: Singles,
    multiplier: float,
    costs: Singles,
    ways: Bytes,
    symbols: Ints,
) -> None:
    # costs: [4, n_states / 2], of the lower and upper half, and room for even and odd; ways: [n / 8, 2, n_states / 2].
    n, half = len(x), len(second)
    limit = (levels.shape[1] - 1) // 2
    n_branches = 4 if half else 2
    inverse_spacing = 0.5 if half else 1.0
    chosen = np.empty((n, 4), np.int16)
    branches = np.empty(4, np.float32)
    low, high, even, odd_cost = costs[0], costs[1], costs[2], costs[3]
    quarter = half // 2
    for i in range(n):
        value = x[i]
        row = classes[(first + i) >> class_shift]
        for b in range(n_branches):
            branches[b] = np.float32(1e30)
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
                if total < branches[b]:
                    branches[b] = total
                    chosen[i, b] = k
        if half == 0:
            symbols[i] = chosen[i, 0 if branches[0] <= branches[1] else 1]
            continue
        # Costs are kept small: one weight beyond all levels must not blur those of its neighbours.
        least = min(min(branches[0], branches[1]), min(branches[2], branches[3]))
        for b in range(4):
            branches[b] -= least
        _step(low, high, second, odd, branches, ways[i >> 3, 0], ways[i >> 3, 1], even, odd_cost)
        lowest = np.float32(0.0)
        if i & 7 == 7 or i == n - 1:
            lowest = _lowest(even, odd_cost)
        _in_order(even[:quarter], odd_cost[:quarter], lowest, low)
        _in_order(even[quarter:], odd_cost[quarter:], lowest, high)
    if half == 0:
        return
    at = 0
    for state in range(2 * half):
        cost = low[state] if state < half else high[state - half]
        if cost <= 0.0:
            at = state
            break
    for i in range(n - 1, -1, -1):
        before, bit = at >> 1, at & 1
        latest = min(i | 7, n - 1)
        upper = (ways[i >> 3, bit, before] >> (latest - i)) & 1
        parity = odd[before] ^ bit ^ upper
        symbols[i] = chosen[i, 2 * second[before] + parity]
        at = before + half * upper


@compiled(fastmath=True)
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
    bounds = thresholds(levels, rates, multiplier) if scalar else np.zeros((0, 0), np.float32)
    if shifts is None:
        shifts = np.zeros((len(rates), 2), np.float32)
    half = machine.n_states // 2
    second, odd = np.zeros((2, 0), np.int32)
    if half:
        register = _register(machine)
        second, odd = register.second, register.odd

    def part(some: npt.NDArray[np.int64]) -> None:
        longest = int(np.diff(some).max(initial=0))
        ways = np.empty((0 if scalar else -(-longest // 8), 2, half), np.uint8)
        for start, end in itertools.pairwise(some.tolist()):
            unit, out = x[start:end], symbols[start:end]
            if scalar:
                _search_scalar(unit, classes, class_shift, start, bounds, out)
                continue
            costs = np.full((4, half), 1e30, np.float32)
            costs[0, :1] = 0.0
            _search_unit(
                unit, classes, class_shift, start, second, odd, levels, shifts, rates, multiplier, costs, ways, out
            )

    units_in_threads(part, unit_starts)
    return symbols
