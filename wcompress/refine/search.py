"""From a goal to symbols: training in cycles, each of which settles, is measured, and goes on from the one before.

In each cycle the learning rate starts high and falls to nothing. What the settled model comes to in bytes and in drop
on validation says how λ has to change for the next cycle. Every settled state is a candidate; the smallest that keeps
to the goal wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wcompress.codec.encoded import Encoded
from wcompress.codec.given import GivenSymbols
from wcompress.deadline import Deadline
from wcompress.progress import Progress
from wcompress.refine.engine import Refiner
from wcompress.refine.margin import Validation

Measure = Callable[[GivenSymbols], tuple[Encoded, int, Validation]]
"""Symbols → what is stored, its bytes with all that an archive has, and how it validates."""

_CHECKS = 40
_CYCLES = (0.5, 0.2, 0.15, 0.15)
"""Shares of the work. The first is long: it has to find which weights can go."""
_CYCLE_LR = (1.0, 0.6, 0.5, 0.5)
_EXTRA_CYCLES, _EXTRA_SHARE, _EXTRA_CHANGE, _LATE_CHANGE = 3, 0.1, 0.35, 0.5
"""More cycles, as long as no candidate keeps to the goal."""
_WARM = 0.05
_FREEZE = 0.6
_GAIN = 0.25
_AIM = 0.99
_TRIM_ROUNDS = 7
_LEAST_AIM, _LEAST_AIM_AT_ZERO = 0.04, 0.02
"""The least drop to steer at, as a share of the drop allowed; and where none is allowed."""


@dataclass(frozen=True)
class Goal:
    """What refinement is after; one of the two.

    Attributes:
        max_drop: the smallest archive that loses at most so many points on validation.
        n_bytes: the best score of an archive of at most so many bytes.
    """

    max_drop: float | None = None
    n_bytes: int | None = None

    def aim(self, validation: Validation) -> float:
        """The drop to steer at after a candidate with this validation; positive."""
        assert self.max_drop is not None
        least = _LEAST_AIM * abs(self.max_drop) or _LEAST_AIM_AT_ZERO
        return max(validation.aim(self.max_drop), least)


@dataclass(frozen=True)
class Candidate:
    """A settled state.

    Attributes:
        given: its symbols.
        encoded: its sections.
        n_bytes: of its archive.
        validation: how it validates.
        strength: λ that led to it.
    """

    given: GivenSymbols
    encoded: Encoded
    n_bytes: int
    validation: Validation
    strength: float

    @property
    def drop(self) -> float:
        """On all validation examples."""
        return self.validation.drop


@dataclass
class SearchState:
    """Where a search stands; plain numbers, kept in checkpoints.

    Attributes:
        done: training steps taken.
        spent: share of the time limit that is used up, earlier sittings included; 0 without a limit.
        strength: λ.
        cycle: number of the cycle.
        begun: fraction of the work when it began.
        last_drop: of the last candidate.
        next_check: fraction of the work at which to look again.
        snapped: whether the quantisation steps are on their grid.
        excess: how many bytes an archive's symbols took for each that the rate model said, last time.
        start_bytes: of an archive at the start, about; 0 before it is known.
    """

    done: int = 0
    spent: float = 0.0
    strength: float = 1.5
    cycle: int = 0
    begun: float = 0.0
    last_drop: float = 0.0
    next_check: float = 0.0
    snapped: bool = False
    excess: float = 1.0
    start_bytes: float = 0.0


class RefineSearch:
    """Steers a refiner to a goal.

    Args:
        refiner: at its start, or restored.
        goal: what to reach.
        measure: what a settled state comes to.
        n_steps: training steps in all, unless more cycles are needed.
        deadline: cuts the work to an end, however many steps were done; None for no limit.
        fixed_bytes: of an archive beside the symbols, about.
        progress: called as the work goes on.
        save: called now and then, and before anything that takes long, with a state to resume from.
    """

    def __init__(
        self,
        refiner: Refiner,
        goal: Goal,
        measure: Measure,
        *,
        n_steps: int,
        deadline: Deadline | None = None,
        fixed_bytes: int,
        progress: Progress | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.refiner, self.goal = refiner, goal
        self._measure = measure
        self.n_steps, self._fixed_bytes = n_steps, fixed_bytes
        self._deadline, self._spent_before = deadline or Deadline(None), 0.0
        self._progress, self._save = progress, save
        self.at = SearchState(strength=refiner.config.start_strength)
        self.candidates: list[Candidate] = []

    def state(self) -> dict[str, Any]:
        """What `restore` needs; candidates are kept as symbols."""
        return {
            "refiner": self.refiner.state(),
            "search": asdict(self.at),
            "candidates": [given_state(c.given) | {"strength": c.strength} for c in self.candidates],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where a `state` was taken."""
        self.refiner.restore(state["refiner"])
        self.at = SearchState(**state["search"])
        self._spent_before = self.at.spent
        for row in state["candidates"]:
            given = given_from_state(row)
            self.candidates.append(Candidate(given, *self._measure(given), strength=row["strength"]))

    def run(self) -> list[Candidate]:
        """All candidates, in the order they were found."""
        while self.at.cycle < len(_CYCLES) or self._misses():
            # A deadline shortens each cycle alike, so that the model settles in time.
            fraction = self._fraction()
            length = _CYCLES[self.at.cycle] if self.at.cycle < len(_CYCLES) else _EXTRA_SHARE
            share = (fraction - self.at.begun) / length
            if share >= 1:
                self._end_cycle()
                continue
            self._train_one(share)
            if fraction >= self.at.next_check:
                self._check(fraction)
        return self.candidates

    def _fraction(self) -> float:
        self.at.spent = self._spent_before + self._deadline.spent
        return max(self.at.done / self.n_steps, self.at.spent)

    @property
    def was_cut(self) -> bool:
        """Whether the deadline ended the work before all steps were made."""
        return self.at.spent >= 1 and self.at.done < self.n_steps

    def _misses(self) -> bool:
        left = self.at.cycle < len(_CYCLES) + _EXTRA_CYCLES and self.at.spent < 1
        return left and self.best() is None

    def best(self) -> Candidate | None:
        """The candidate that serves the goal best; None where none keeps to it."""
        if self.goal.n_bytes is not None:
            fitting = [c for c in self.candidates if c.n_bytes <= self.goal.n_bytes]
            return min(fitting, key=lambda c: c.drop, default=None)
        assert self.goal.max_drop is not None
        kept = [c for c in self.candidates if c.validation.keeps(self.goal.max_drop)]
        return min(kept, key=lambda c: c.n_bytes, default=None)

    def nearest(self) -> Candidate | None:
        """The candidate that misses the goal by least."""
        if self.goal.n_bytes is not None:
            return min(self.candidates, key=lambda c: c.n_bytes, default=None)
        return min(self.candidates, key=lambda c: c.drop, default=None)

    def _train_one(self, share: float) -> None:
        # Steps move in the first part of a cycle; after that they stay on the grid, and weights adapt to it.
        moving = share < _FREEZE
        if not moving and not self.at.snapped:
            self.refiner.weights.snap_steps()
            self.at.snapped = True
        top = _CYCLE_LR[min(self.at.cycle, len(_CYCLE_LR) - 1)]
        lr = top * min(1.0, 0.1 + share / _WARM) * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        self.refiner.step(self.at.strength, lr, move_steps=moving)
        self.at.done += 1

    def _check(self, fraction: float) -> None:
        at = self.at
        at.next_check = fraction + 1 / _CHECKS
        n_bytes = at.excess * self.refiner.n_bits() / 8 + self._fixed_bytes
        if self.goal.n_bytes is not None:
            # Bytes are known at any time. They are to come down evenly through the first cycle and then stay.
            at.start_bytes = at.start_bytes or n_bytes
            share = min(1.0, fraction / (0.8 * _CYCLES[0]))
            planned = at.start_bytes ** (1 - share) * (_AIM * self.goal.n_bytes) ** share
            at.strength *= math.exp(_GAIN * max(-1.0, min(1.0, 3 * math.log(n_bytes / planned))))
        if self._progress is not None:
            figures = {"bytes": n_bytes, "drop": at.last_drop, "distance": self.refiner.distance_ema, "MB": memory_mb()}
            self._progress(round(1000 * fraction), 1000, figures)
        if self._save is not None:
            self._save(self.state())

    def _end_cycle(self) -> None:
        at = self.at
        given = self.refiner.settle()
        candidate = Candidate(given, *self._measure(given), strength=at.strength)
        self.candidates.append(candidate)
        at.excess = max(0.5, (candidate.n_bytes - self._fixed_bytes) * 8 / max(self.refiner.n_bits(), 1.0))
        if self.goal.n_bytes is not None and candidate.n_bytes > self.goal.n_bytes:
            self._trim(candidate)
        at.last_drop = candidate.drop
        if self.goal.max_drop is not None:
            # As much dearer as there is room.
            aim = self.goal.aim(candidate.validation)
            change = (aim / max(candidate.validation.searched, 0.1 * aim)) ** 0.7
            if at.cycle >= len(_CYCLES) - 1 and self.best() is None:
                change = _LATE_CHANGE  # little work is left, and nothing keeps to the goal
            at.strength *= min(2.5, max(_EXTRA_CHANGE, change))
        at.cycle += 1
        at.snapped = False
        at.begun = at.next_check = self._fraction()
        if self._save is not None:
            self._save(self.state())

    def _trim(self, candidate: Candidate) -> None:
        """Adds a candidate that fits: with the symbols nearest to zero left out, as few as do."""
        weights = self.refiner.weights
        order = weights.latents.abs()
        order[weights.symbols() == 0] = math.inf
        order = order.argsort(stable=True)
        n_nonzero = int((weights.symbols() != 0).sum())
        kept = weights.latents
        low, high = 0, n_nonzero
        for _ in range(_TRIM_ROUNDS):
            n_out = (low + high) // 2
            weights.latents = kept.clone()
            weights.latents[order[:n_out]] = 0.0
            given = weights.given(dict(candidate.given.fine))
            tried = Candidate(given, *self._measure(given), strength=candidate.strength)
            assert self.goal.n_bytes is not None
            if tried.n_bytes <= self.goal.n_bytes:
                high = n_out
                self.candidates.append(tried)
            else:
                low = n_out
        weights.latents = kept


def given_state(given: GivenSymbols) -> dict[str, Any]:
    """Symbols as tensors and plain numbers, for a checkpoint."""
    return {
        "step": given.step,
        "symbols": {name: torch.from_numpy(array) for name, array in given.symbols.items()},
        "exponents": dict(given.exponents),
        "fine": dict(given.fine),
    }


def given_from_state(row: dict[str, Any]) -> GivenSymbols:
    """Undo `given_state`."""
    symbols = {name: tensor.numpy() for name, tensor in row["symbols"].items()}
    return GivenSymbols(row["step"], symbols, row["exponents"], row["fine"])


def memory_mb() -> float:
    """The most memory this process has had, MB; nan where the system does not say."""
    try:
        import resource
        import sys
    except ImportError:  # not on Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
