"""From a goal to symbols: one training run in which λ is steered, then settles, and is corrected.

First λ rises until the validation score is as low as it may be while the learning rate is high, or until the symbols
fit; then the learning rate falls and the model recovers. What that gives is measured, λ is corrected, and a few short
cycles go on from there. Every state in which the model had settled is a candidate; the smallest that keeps to the goal
wins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wcompress.codec.encoding import Encoded, Progress
from wcompress.codec.given import GivenSymbols
from wcompress.refine.engine import Refiner

Measure = Callable[[GivenSymbols], tuple[Encoded, int, float]]
"""Symbols → what is stored, its bytes with all that an archive has, and its drop on validation, in points."""

_CHECKS = 40
_ROAM, _SETTLE = 0.5, 0.25
_WARM = 0.02
_FREEZE_LR = 0.5
_START_STRENGTH = 0.1
_GAIN = 0.35
_EXCESS = 2.0
_CORRECTIONS = 3
_CORRECTION_LR = 0.4


@dataclass(frozen=True)
class Goal:
    """What refinement is after; one of the two.

    Attributes:
        max_drop: the smallest archive that loses at most so many points on validation.
        n_bytes: the best score of an archive of at most so many bytes.
    """

    max_drop: float | None = None
    n_bytes: int | None = None

    @property
    def allowed(self) -> float:
        """The drop that a candidate may show, less a margin for what a finite validation set does not see."""
        assert self.max_drop is not None
        return self.max_drop - min(0.15, 0.25 * abs(self.max_drop))


@dataclass(frozen=True)
class Candidate:
    """A settled state.

    Attributes:
        given: its symbols.
        encoded: its sections.
        n_bytes: of its archive.
        drop: on validation, points.
        strength: λ that led to it.
    """

    given: GivenSymbols
    encoded: Encoded
    n_bytes: int
    drop: float
    strength: float


@dataclass
class SearchState:
    """Where a search stands; plain numbers, kept in checkpoints.

    Attributes:
        done: training steps taken.
        spent_s: seconds spent, earlier sittings included.
        strength: λ.
        stage: 0 while λ is steered, 1 while the first run settles, 2, 3, … in corrections.
        fraction_at_stage: of the whole work, when the stage began.
        last_drop: on validation when last looked at, points.
        next_check: fraction of the work at which to look again.
    """

    done: int = 0
    spent_s: float = 0.0
    strength: float = _START_STRENGTH
    stage: int = 0
    fraction_at_stage: float = 0.0
    last_drop: float = 0.0
    next_check: float = 0.0


class RefineSearch:
    """Steers a refiner to a goal.

    Args:
        refiner: at its start, or restored.
        goal: what to reach.
        measure: what a settled state comes to.
        drop_now: validation drop of the refiner's model as it stands, points.
        n_steps: training steps in all.
        limit_s: seconds after which the work is cut to an end, however many steps were done.
        fixed_bytes: of an archive beside the symbols, about.
        progress: called as the work goes on.
        save: called now and then, and before anything that takes long, with a state to resume from.
    """

    def __init__(
        self,
        refiner: Refiner,
        goal: Goal,
        measure: Measure,
        drop_now: Callable[[], float],
        *,
        n_steps: int,
        limit_s: float,
        fixed_bytes: int,
        progress: Progress | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.refiner, self.goal = refiner, goal
        self._measure, self._drop_now = measure, drop_now
        self._n_steps, self._limit_s, self._fixed_bytes = n_steps, limit_s, fixed_bytes
        self._progress, self._save = progress, save
        self.at = SearchState()
        self.candidates: list[Candidate] = []
        self._started = time.monotonic()
        self._start_bytes = math.nan
        self._steady: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """What `restore` needs; candidates are kept as symbols."""
        self._count_time()
        return {
            "refiner": self.refiner.state(),
            "search": asdict(self.at),
            "candidates": [given_state(c.given) | {"strength": c.strength} for c in self.candidates],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where a `state` was taken."""
        self.refiner.restore(state["refiner"])
        self.at = SearchState(**state["search"])
        for row in state["candidates"]:
            given = given_from_state(row)
            self.candidates.append(Candidate(given, *self._measure(given), strength=row["strength"]))

    def run(self) -> list[Candidate]:
        """All candidates, in the order they were found."""
        while self._fraction() < 1.0:
            self._train_one()
            fraction = self._fraction()
            ending = self._stage_end()
            if fraction >= self.at.next_check and fraction < ending:
                self._check(fraction)
            if fraction >= ending:
                self._end_stage(fraction)
        return self.candidates

    def best(self) -> Candidate | None:
        """The candidate that serves the goal best; None where none keeps to it."""
        if self.goal.n_bytes is not None:
            fitting = [c for c in self.candidates if c.n_bytes <= self.goal.n_bytes]
            return min(fitting, key=lambda c: c.drop, default=None)
        kept = [c for c in self.candidates if c.drop <= self.goal.allowed]
        return min(kept, key=lambda c: c.n_bytes, default=None)

    def nearest(self) -> Candidate | None:
        """The candidate that misses the goal by least."""
        if self.goal.n_bytes is not None:
            return min(self.candidates, key=lambda c: c.n_bytes, default=None)
        return min(self.candidates, key=lambda c: c.drop, default=None)

    def _train_one(self) -> None:
        lr = self._lr()
        moving = self.at.stage == 0 or (self.at.stage == 1 and lr > _FREEZE_LR)
        if not moving and self._steady is None:
            self.refiner.weights.snap_steps()
            self._steady = {}
        self.refiner.step(self.at.strength, lr, move_steps=moving)
        self.at.done += 1

    def _count_time(self) -> None:
        now = time.monotonic()
        self.at.spent_s += now - self._started
        self._started = now

    def _fraction(self) -> float:
        self._count_time()
        return max(self.at.done / self._n_steps, self.at.spent_s / self._limit_s)

    def _stage_end(self) -> float:
        if self.at.stage == 0:
            return _ROAM
        if self.at.stage == 1:
            return _ROAM + _SETTLE
        left = 1 - _ROAM - _SETTLE
        return _ROAM + _SETTLE + left * (self.at.stage - 1) / _CORRECTIONS

    def _lr(self) -> float:
        fraction = self._fraction()
        if self.at.stage == 0:
            return min(1.0, 0.1 + fraction / _WARM)
        begin, end = self.at.fraction_at_stage, self._stage_end()
        share = min(1.0, max(0.0, (fraction - begin) / max(end - begin, 1e-9)))
        top = 1.0 if self.at.stage == 1 else _CORRECTION_LR
        return top * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    def _check(self, fraction: float) -> None:
        at = self.at
        at.next_check = fraction + 1 / _CHECKS
        n_bytes = self.refiner.n_bits() / 8 + self._fixed_bytes
        if at.stage == 0:
            if self.goal.n_bytes is not None:
                self._steer_by_size(n_bytes, fraction)
            else:
                self._steer_by_drop()
        elif self.goal.n_bytes is not None:
            at.strength *= 1.15 if n_bytes > self.goal.n_bytes else 0.9
        if self._progress is not None:
            figures = {"bytes": n_bytes, "drop": at.last_drop, "distance": self.refiner.distance_ema, "MB": memory_mb()}
            self._progress(round(1000 * fraction), 1000, figures)
        if self._save is not None:
            self._save(self.state())

    def _steer_by_drop(self) -> None:
        at = self.at
        drop = self._drop_now()
        # Weights take time to leave: what the drop will be is what it is and what it has just become.
        ahead = drop + max(0.0, drop - at.last_drop)
        most = _EXCESS * self.goal.allowed
        lack = (most - ahead) / max(most, 0.05)
        at.strength *= math.exp(_GAIN * max(-1.0, min(1.0, 2 * lack)))
        at.last_drop = drop

    def _steer_by_size(self, n_bytes: float, fraction: float) -> None:
        assert self.goal.n_bytes is not None
        if math.isnan(self._start_bytes):
            self._start_bytes = n_bytes
        share = min(1.0, fraction / (0.9 * _ROAM))
        planned = self._start_bytes ** (1 - share) * self.goal.n_bytes**share
        self.at.strength *= math.exp(_GAIN * max(-1.0, min(1.0, 3 * math.log(n_bytes / planned))))

    def _end_stage(self, fraction: float) -> None:
        at = self.at
        if at.stage > 0:
            given = self.refiner.settle()
            candidate = Candidate(given, *self._measure(given), strength=at.strength)
            self.candidates.append(candidate)
            at.last_drop = candidate.drop
            if self.goal.max_drop is not None:
                # Before the next cycle: as much dearer as there is room.
                room = max(self.goal.allowed, 0.05) / max(candidate.drop, 0.1 * max(self.goal.allowed, 0.05))
                at.strength *= min(2.0, max(0.4, room**0.7))
        self._count_time()
        at.stage += 1
        at.fraction_at_stage = max(self._fraction(), fraction)
        at.next_check = at.fraction_at_stage + 1 / _CHECKS
        if self._save is not None:
            self._save(self.state())


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
