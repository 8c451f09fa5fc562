"""Looking for the quantisation step that meets a target."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wcompress.codec.rate_control.solution import Solution
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable
from wcompress.progress import Progress

_BYTES_SLACK = 0.004
_SQNR_SLACK_DB = 0.05
# Of the progress: how many rounds there are after settling, and how many take as long as training.
_USUAL_ROUNDS, _TRAINING_ROUNDS = 2, 20
_SEARCHING, _TRAINING = "finding the step size", "training the entropy model"
_ROUNDS_PER_ANCHOR = 6
_SETTLING_ROUNDS = 4
_ROUNDS = 30


@dataclass(frozen=True)
class Target:
    """What the archive has to meet; exactly one is given.

    Attributes:
        sqnr_db: at least this SQNR.
        n_bytes: at most so many bytes for the whole archive.
        wanted: the target as it was given, in words.
        in_words: what an archive of so many bytes is called, in the unit that the target was given in.
    """

    sqnr_db: float | None = None
    n_bytes: int | None = None
    wanted: str = ""
    in_words: Callable[[int], str] = "{} bytes".format


class Searched(Protocol):
    """What solutions are looked for in.

    Attributes:
        slack: of how far beyond the target is near enough.
        deadline: after which the best that was found will do.
        was_cut: set where that made an end.
        is_trained: whether `refit` trains a model, which takes long.
    """

    slack: float
    deadline: Deadline
    was_cut: bool

    @property
    def is_trained(self) -> bool: ...

    def finest_step(self) -> float:
        """The least step that makes sense."""

    def solve(self, step: float, start: Solution | None) -> Solution:
        """A solution at `step`, from one at a similar step."""

    def refit(self, solution: Solution) -> Solution:
        """The same symbols under a model trained on them."""

    def measure(self, solution: Solution, target: Target) -> float:
        """How far beyond the target a solution is: at least 0 when it is met. In dB, or in the bytes' fraction."""


class Bisection:
    """Looks for the largest step that meets the target.

    First a few rounds, each from the one before, in which tables and prior settle near the target. Then, always from
    the last of these, so that the margin depends on the step alone, secants on a logarithmic scale within a bracket.
    """

    def __init__(
        self,
        search: Searched,
        target: Target,
        guess: float,
        start: Solution | None = None,
        n_settling: int = _SETTLING_ROUNDS,
    ) -> None:
        self.search = search
        self.start, self.n_settling = start, n_settling  # what the first round starts from, and after how many it ends
        self.target = target
        self.guess = math.log2(max(guess, sys.float_info.min))
        self.finest = math.log2(max(search.finest_step(), sys.float_info.min))
        self.by_sqnr = target.sqnr_db is not None
        self.slack = (_SQNR_SLACK_DB if self.by_sqnr else _BYTES_SLACK) * search.slack
        # How the margin goes with log2 of the step, at first: 6 dB an octave, or a bit a weight.
        self.slope = -6.02 if self.by_sqnr else 0.35

    def run(self, progress: Progress | None) -> Solution:
        best: tuple[float, Solution] | None = None
        nearest: tuple[float, Solution] | None = None
        anchor, n_settling, at = self.start, self.n_settling, self.guess
        points: list[tuple[float, float]] = []
        highest = -math.inf
        if progress is not None:
            progress(0, 1000, {"stage": _SEARCHING})
        for number in range(_ROUNDS):
            settling = number < n_settling
            at = max(at, self.finest)
            solution = self.search.solve(2.0**at, anchor)
            margin = self.search.measure(solution, self.target)
            if progress is not None:
                progress(self._done(number + 1), 1000, {"stage": _SEARCHING})
            if margin >= 0 and (best is None or margin < best[0]):
                best = (margin, solution)
            if nearest is None or abs(margin) < nearest[0]:
                nearest = (abs(margin), solution)
            highest = max(highest, margin)
            if best is not None and self.search.deadline.passed:
                self.search.was_cut = True
                break
            if at == self.finest and number >= n_settling - 1 and (margin < 0) == self.by_sqnr:
                break
            if settling:
                if number == n_settling - 2 and self.search.is_trained and progress is not None:
                    progress(self._done(number + 1), 1000, {"stage": _TRAINING})
                anchor = self.search.refit(solution) if number == n_settling - 2 else solution
                points = points[-1:]
            elif (number - n_settling) % _ROUNDS_PER_ANCHOR == _ROUNDS_PER_ANCHOR - 1:
                # Classes change in jumps as the step goes away from the anchor's: start again from nearby.
                anchor, points = nearest[1], []
                at = math.log2(anchor.step)
                continue
            elif 0 <= margin <= self.slack:
                break
            points.append((at, margin))
            at = self._next(points, settling)
        if progress is not None:
            progress(1000, 1000, {"stage": _SEARCHING})
        if best is None:
            raise TargetUnreachable(self._nearest(highest))
        return best[1]

    def _done(self, n_rounds: int) -> int:
        """About how many thousandths of the work are done after so many rounds."""
        training = _TRAINING_ROUNDS if self.search.is_trained and self.n_settling > 1 else 0
        done = n_rounds + (training if n_rounds >= self.n_settling else 0)
        return min(980, round(1000 * done / (self.n_settling + _USUAL_ROUNDS + training)))

    def _next(self, points: list[tuple[float, float]], settling: bool) -> float:
        at, margin = points[-1]
        slope = self.slope
        if len(points) > 1 and abs(at - points[-2][0]) > 1e-4:
            found = (margin - points[-2][1]) / (at - points[-2][0])
            # A small part of an archive may follow the step much less than the whole.
            if 0.02 < found / slope < 5:
                slope = found
        proposed = at + max(-3.0, min(3.0, (0.4 * self.slack - margin) / slope))
        if settling:
            return proposed
        # Between the best step that meets the target and the nearest beyond it that does not. The margin is not quite
        # monotonic, so others may lie on the wrong side.
        sign = 1 if self.by_sqnr else -1
        good = max((sign * p for p, m in points if m >= 0), default=-math.inf)
        bad = min((sign * p for p, m in points if m < 0 and sign * p > good), default=math.inf)
        if not good < sign * proposed < bad and math.isfinite(good + bad):
            proposed = sign * (good + bad) / 2
        return proposed

    def _nearest(self, margin: float) -> str:
        if self.by_sqnr:
            assert self.target.sqnr_db is not None
            nearest = f"{self.target.sqnr_db + margin:.2f} dB is the nearest"
            wanted = self.target.wanted or f"an SQNR of {self.target.sqnr_db:g} dB"
            return f"{wanted}: {nearest}; `--method lossless` keeps every bit"
        assert self.target.n_bytes is not None
        n_bytes = round((1 - margin) * self.target.n_bytes)
        wanted = self.target.wanted or self.target.in_words(self.target.n_bytes)
        return f"{wanted}: {self.target.in_words(n_bytes)} is the nearest; ask for a larger archive"
