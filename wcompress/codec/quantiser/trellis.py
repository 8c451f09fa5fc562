"""Entropy-coded trellis quantisation.

Two scalar quantisers share one step: Q0 reconstructs at 2k, Q1 at 2k − sgn(k), in units of the step. Which of the two
a weight uses follows from the parities of the symbols before it, through a state machine, so the decoder knows it for
nothing; the encoder looks for the best path. More states come closer to the rate–distortion bound.

Source: Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss–Markov sources", 1990; the union
quantisers are those of dependent quantisation in ITU-T H.266; the state machines are Ungerboeck's systematic feedback
codes for amplitude modulation ("Channel coding with multilevel/phase signals", 1982, table I), and for 1024 states and
more the best of some thousands drawn at random (`benchmarks.trellis_codes`). One state is plain scalar quantisation,
which reconstructs at k.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.errors import ArchiveError
from wcompress.threads import in_threads, n_work_threads

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]

PARITY_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
    1024: (0o3235, 0o1242),
    4096: (0o14177, 0o7732),
    16384: (0o42713, 0o25432),
}
"""Parity-check polynomials (h0, h1) by number of states. Part of the format: literal and append-only."""

N_STATES = (1, *PARITY_CHECKS)


@dataclass(frozen=True)
class Trellis:
    """A state machine. `next_state` is int32 `[n_states, 2]`, indexed by state and parity of the symbol.

    A state's quantiser is its lowest bit.
    """

    n_states: int
    next_state: Ints

    @property
    def spacing(self) -> int:
        """Distance between a quantiser's levels, in steps: 2, or 1 for the scalar quantiser."""
        return 1 if self.n_states == 1 else 2


@functools.cache
def trellis(n_states: int) -> Trellis:
    """The state machine of so many states.

    Raises:
        KeyError: no such machine is defined.
    """
    return Trellis(1, np.zeros((1, 2), np.int32)) if n_states == 1 else coded(n_states, *PARITY_CHECKS[n_states])


def coded(n_states: int, h0: int, h1: int) -> Trellis:
    """The state machine of a code: state s = 2u + q goes to u ⊕ q·(h0 ≫ 1) ⊕ parity·(h1 ≫ 1)."""
    state = np.arange(n_states)
    base = (state >> 1) ^ ((state & 1) * (h0 >> 1))
    return Trellis(n_states, np.stack([base, base ^ (h1 >> 1)], axis=1).astype(np.int32))


@compiled()
def _group(
    symbols: Ints,
    slots: Ints,
    slot_shift: int,
    next_state: Ints,
    sizes: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    pool: Ints,
) -> None:
    state = 0
    for i in range(len(symbols)):
        sizes[2 * slots[i >> slot_shift] + (state & 1)] += 1
        state = next_state[state, symbols[i] & 1]
    for number in range(1, len(sizes)):
        at[number] = at[number - 1] + sizes[number - 1]
    state = 0
    for i in range(len(symbols)):
        number = 2 * slots[i >> slot_shift] + (state & 1)
        pool[at[number]] = symbols[i]
        at[number] += 1
        state = next_state[state, symbols[i] & 1]


@compiled()
def _interleave(
    pool: Ints,
    at: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    slots: Ints,
    slot_shift: int,
    next_state: Ints,
    out: Ints,
) -> bool:
    state = 0
    for i in range(len(pool)):
        number = 2 * slots[i >> slot_shift] + (state & 1)
        if at[number] >= ends[number]:
            return False
        k = pool[at[number]]
        at[number] += 1
        out[i] = k
        state = next_state[state, k & 1]
    return True


@compiled()
def _quantisers(
    symbols: Ints, unit_starts: npt.NDArray[np.int64], next_state: Ints, out: npt.NDArray[np.uint8]
) -> None:
    for unit in range(len(unit_starts) - 1):
        state = 0
        for i in range(unit_starts[unit], unit_starts[unit + 1]):
            out[i] = state & 1
            state = next_state[state, symbols[i] & 1]


def units_in_threads(function: Callable[[npt.NDArray[np.int64]], None], unit_starts: npt.NDArray[np.int64]) -> None:
    """Call a function with the starts of some of the units, and the last one's end, in each thread."""
    # Threads rather than numba's own, which take seconds more to compile.
    n_units = len(unit_starts) - 1
    n_parts = max(1, min(n_work_threads(), n_units))
    bounds = [n_units * part // n_parts for part in range(n_parts + 1)]
    in_threads(function, [unit_starts[first : last + 1] for first, last in itertools.pairwise(bounds)])


def quantisers(symbols: Ints, unit_starts: npt.NDArray[np.int64], machine: Trellis) -> npt.NDArray[np.uint8]:
    """Which quantiser, 0 or 1, each symbol uses: uint8 `[n]`."""
    out = np.zeros(len(symbols), np.uint8)
    if machine.n_states > 1:
        units_in_threads(lambda some: _quantisers(symbols, some, machine.next_state, out), unit_starts)
    return out


def group(
    symbols: Ints, slots: Ints, slot_shift: int, n_slots: int, machine: Trellis, pool: Ints
) -> npt.NDArray[np.int64]:
    """Sort a unit's symbols by slot and quantiser; group 2s + q is slot s, quantiser q.

    Args:
        symbols: int32 `[n]`.
        slots: int32, the slot of the symbols `[c << slot_shift : (c + 1) << slot_shift]`.
        slot_shift: log₂ of the symbols that share a slot.
        n_slots: how many slots there are.
        machine: the trellis.
        pool: int32 `[n]`, where the groups go, one after the other.

    Returns:
        How many symbols each group has, int64 `[2 · n_slots]`.
    """
    sizes, at = np.zeros((2, 2 * n_slots), np.int64)
    _group(symbols, slots, slot_shift, machine.next_state, sizes, at, pool)
    return sizes


def interleave(pool: Ints, sizes: npt.NDArray[np.int64], slots: Ints, slot_shift: int, machine: Trellis) -> Ints:
    """Undo `group`.

    Args:
        pool: int32 `[n]`, all groups, one after the other.
        sizes: int64 `[2 · n_slots]`, how many symbols each has.
        slots, slot_shift: as for `group`.
        machine: the trellis.

    Raises:
        ArchiveError: the groups do not fit the path they spell.
    """
    out = np.empty(len(pool), np.int32)
    ends = np.cumsum(sizes)
    if not _interleave(pool, ends - sizes, ends, slots, slot_shift, machine.next_state, out):
        raise ArchiveError("symbols: the groups do not fit the trellis; the archive is damaged")
    return out
