"""The trellis: its machines, its search, and the walk back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from wcompress.codec.quantiser.branches import BranchTables
from wcompress.codec.quantiser.lanes import LANES, search_units
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.trellis import N_STATES, group, interleave, quantisers, trellis
from wcompress.codec.quantiser.viterbi import branches, search, search_unit
from wcompress.errors import ArchiveError

UNITS = np.array([0, 40, 100], np.int64)


@pytest.mark.parametrize("n_states", N_STATES[1:])
def test_machines_are_codes(n_states: int) -> None:
    """Two ways into every state, two out, and all states can be reached."""
    machine = trellis(n_states)
    assert machine.next_state.shape == (n_states, 2)
    assert np.array_equal(np.bincount(machine.next_state.reshape(-1)), np.full(n_states, 2))
    reached = {0}
    for _ in range(n_states.bit_length() - 1):
        reached = {int(t) for s in reached for t in machine.next_state[s]}
    assert reached == set(range(n_states))


def test_the_eight_state_machine_never_changes() -> None:
    assert trellis(8).next_state.tolist() == [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]


def run(x: np.ndarray, n_states: int, multiplier: float, limit: int = 6) -> tuple[np.ndarray, float]:
    machine = trellis(n_states)
    rates = np.broadcast_to(1.0 + np.abs(np.arange(-limit, limit + 1)), (2, 2, 2 * limit + 1)).astype(np.float32).copy()
    levels = Levels().array(machine, limit)
    units = np.array([0, len(x)], np.int64)
    symbols = search(
        x.astype(np.float32), units, np.zeros(len(x) // 4 + 1, np.int32), 2, machine, levels, rates, multiplier
    )
    which = quantisers(symbols, units, machine)
    error = x - levels[which, symbols + limit]
    return symbols, float(np.square(error).sum() + multiplier * rates[0, which, symbols + limit].sum())


@pytest.mark.parametrize("n_states", [4, 64, 1024])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 300])
def test_long_paths_are_the_best(n: int, n_states: int) -> None:
    """Against the algorithm as it is written in textbooks; runs of zeros have many best paths."""
    machine, limit = trellis(n_states), 6
    levels = Levels().array(machine, limit)
    x = np.random.default_rng(n).normal(size=n) * 2.0
    x[n // 3 : n // 2] = 0.0
    k = np.arange(-limit, limit + 1)
    total = np.full(n_states, np.inf)
    total[0] = 0.0
    states = np.arange(n_states)
    for value in x.astype(np.float32):
        following = np.full(n_states, np.inf)
        costs = (value - levels) ** 2 + 0.3 * (1.0 + np.abs(k))
        for parity in (0, 1):
            branch = np.where(k % 2 == parity, costs, np.inf).min(1)[states & 1]
            np.minimum.at(following, machine.next_state[:, parity], total + branch)
        total = following
    assert run(x, n_states, 0.3, limit)[1] == pytest.approx(total.min(), rel=1e-5)


@pytest.mark.parametrize("n_states", [1, 4, 8, 256, 16384])
def test_the_search_finds_the_best_path(n_states: int) -> None:
    """Against every path there is, on short sequences."""
    machine, limit = trellis(n_states), 2
    levels = Levels().array(machine, limit)
    for seed in range(12):
        x = np.random.default_rng(seed).normal(size=5) * 1.3
        for multiplier in (0.0, 0.3):
            _, found = run(x, n_states, multiplier, limit)
            best = np.inf
            for path in itertools.product(range(-limit, limit + 1), repeat=5):
                state, total = 0, 0.0
                for value, k in zip(x, path, strict=True):
                    total += (value - levels[state & 1 if n_states > 1 else 0, k + limit]) ** 2
                    total += multiplier * (1 + abs(k))
                    state = machine.next_state[state, k & 1]
                best = min(best, total)
            assert found == pytest.approx(best, rel=1e-4, abs=1e-4)


def test_more_states_do_better() -> None:
    x = np.random.default_rng(0).normal(size=20_000) * 2
    totals = [run(x, n_states, 0.2, 12)[1] for n_states in (4, 8, 32, 64)]
    assert totals == sorted(totals, reverse=True)


def test_interleaving_undoes_grouping() -> None:
    rng = np.random.default_rng(1)
    machine = trellis(16)
    symbols = rng.integers(-3, 4, 60).astype(np.int32)
    slots = rng.integers(0, 3, 60).astype(np.int32)
    which = quantisers(symbols, np.array([0, 60], np.int64), machine)
    groups = [symbols[(slots == s) & (which == q)] for s in range(3) for q in (0, 1)]
    sizes = np.array([len(g) for g in groups], np.int64)
    pool = np.empty(60, np.int32)
    assert np.array_equal(group(symbols, slots, 0, 3, machine, pool), sizes)
    assert np.array_equal(pool, np.concatenate(groups))
    assert np.array_equal(interleave(pool, sizes, slots, 0, machine), symbols)
    with pytest.raises(ArchiveError, match="trellis"):
        interleave(pool ^ 1, sizes, slots, 0, machine)


def test_units_start_anew() -> None:
    symbols = np.random.default_rng(2).integers(-3, 4, 100).astype(np.int32)
    machine = trellis(8)
    whole = quantisers(symbols, UNITS, machine)
    second = quantisers(symbols[40:], np.array([0, 60], np.int64), machine)
    assert np.array_equal(whole[40:], second)


@pytest.mark.parametrize("n_states", [8, 16, 64, 256])
def test_units_searched_together_are_what_each_is_alone(n_states: int) -> None:
    """Of unequal lengths, more than there are lanes, of several classes, with shifts and with weights out of reach."""
    rng = np.random.default_rng(n_states)
    lengths = rng.integers(1, 40, 2 * LANES + 5) * 4
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x = (rng.normal(size=starts[-1]) * rng.choice([0.1, 3.0, 30.0], starts[-1])).astype(np.float32)
    classes = rng.integers(0, 3, len(x) // 4).astype(np.int32)
    limit = 20
    rates = np.abs(np.arange(-limit, limit + 1)) * rng.random((3, 2, 1)) + rng.random((3, 2, 1))
    tables = BranchTables.of(
        Levels().array(trellis(n_states), limit),
        rates.astype(np.float32),
        0.7,
        rng.normal(size=(3, 2)).astype(np.float32) * 0.1,
    )
    branch_of = branches(trellis(n_states))
    together, alone = np.zeros((2, len(x)), np.int32)
    for batch in (starts[: LANES + 1], starts[LANES : 2 * LANES + 1], starts[2 * LANES :]):
        here = slice(batch[0], batch[-1])
        search_units(x[here], batch, classes, 2, branch_of, tables, together[here])
    for start, end in itertools.pairwise(starts.tolist()):
        search_unit(x[start:end], start, classes, 2, branch_of, tables, alone[start:end])
    assert np.array_equal(together, alone)
    assert len(np.unique(together)) > 20
