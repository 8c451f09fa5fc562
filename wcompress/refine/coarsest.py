"""The smallest archive that keeps what is asked for: a drop of a score, or a likeness of the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from wcompress.checkpoint import Checkpoint
from wcompress.codec.options import PackOptions
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.trying import Stored, Tried, tried
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable
from wcompress.progress import Progress
from wcompress.refine.margin import Validation

MEASURING_EFFORT = 2
BITS = (0.35, 8.0)
"""A weight, between which the coarsest quantisation is looked for."""
_MOST_RULED_BITS = 64.0
"""Where rules choose for some tensors, all of them may take more bits than that."""
_ROUNDS = 6
_MOST_ROUNDS = 12
TOLERANCE_DB = 0.2
"""How far beyond what is asked for is near enough, where a smooth criterion says how far that is."""
_AIM = 0.4
"""Of the tolerance, what is aimed at."""
_NEAR = math.log2(1.015)
"""Octaves of bits between an archive that keeps and one that does not, which are near enough."""
_DB_PER_BIT, _DB_PER_OCTAVE = 6.02, 5.0
"""How the quality of outputs usually goes with bits a weight: as that of weights where there are many, and faster where
there are few. The second was read off the networks of `benchmarks.calibrated`."""
_LEAST_SLOPE, _MOST_SLOPE = 0.4, 3.0
"""What is believed of a network's own slope, as multiples of the usual one."""
_FAR = math.log2(1.1)
"""Octaves between two archives, from which they tell a slope, and not noise."""
_MOST_BEYOND_DB = 100.0
_MOST_CLIMBING = 4
"""After so many archives that do not keep what is asked for, the largest is tried."""
_STRAIGHT_DB = 12.0
"""So far from what is asked for a secant is no guide, and the slope where it is nearest is a better one."""


@dataclass(frozen=True)
class Reached:
    """What an archive comes to.

    Attributes:
        value: in the criterion's unit.
        keeps: whether that is what is asked for.
        beyond: how much better than what is asked for; negative where worse. In dB where the criterion is smooth.
        validation: the score on validation; None where no score counts.
    """

    value: float
    keeps: bool
    beyond: float
    validation: Validation | None = None


class Criterion(Protocol):
    """What an archive has to keep."""

    @property
    def is_smooth(self) -> bool:
        """Whether `Reached.beyond` goes evenly with the bits, in dB, so that it tells where to look next."""

    @property
    def figure(self) -> str:
        """What progress calls the value."""

    def reached(self, tensors: Mapping[str, Tensor]) -> Reached:
        """What weights come to."""

    def unreachable(self, nearest: Reached | None) -> TargetUnreachable:
        """The error that says that nothing keeps it, and what is the nearest; None where nothing was tried."""


@dataclass(frozen=True)
class Found:
    """An archive that was tried.

    Attributes:
        stored: what would become the archive.
        n_bytes: of it.
        bits: a weight, that were asked for.
        reached: what it comes to.
        slope: how much more than usual more bits buy, about; None where that is unknown.
    """

    stored: Stored
    n_bytes: int
    bits: float
    reached: Reached
    slope: float | None = None


@dataclass(frozen=True)
class Trials:
    """Archives of one model, coded in one way, and what they come to.

    Attributes:
        checkpoint: the model.
        criterion: what counts.
        options: how to pack; the target is left out.
        device: see `wcompress.codec.packers.job.Job`.
        feedbacks: see there.
    """

    checkpoint: Checkpoint
    criterion: Criterion
    options: PackOptions
    device: str
    feedbacks: Mapping[str, Feedback] | None = None

    def at(self, bits: float) -> Found:
        """An archive of at most so many bits a weight.

        Raises:
            TargetUnreachable: none is that small.
        """
        wanted = sized(self.options, bits_per_weight=bits)
        found: Tried = tried(self.checkpoint, wanted, self.device, self.feedbacks)
        return Found(found.stored, found.n_bytes, bits, self.criterion.reached(found.restored))


def coarsest(
    trials: Trials,
    progress: Progress | None,
    deadline: Deadline,
    warnings: list[str],
    *,
    bits: tuple[float, float] = BITS,
    n_rounds: int = _ROUNDS,
    start: float | Found | None = None,
    known: Found | None = None,
    tolerance_db: float = TOLERANCE_DB,
) -> Found:
    """The smallest archive found that keeps a criterion.

    Where the criterion is smooth, by secants and within a bracket; otherwise by halving, the most bits first.

    Args:
        trials: the archives.
        progress: called as the search goes on.
        deadline: after which the best that was found will do.
        warnings: gets a line where that made an end.
        bits: a weight, between which to look.
        n_rounds: of halving.
        start: where a smooth search begins: bits a weight, or an archive that was found with another effort.
        known: an archive of `trials`, where a smooth search begins without trying it again.
        tolerance_db: how far beyond what is asked for is near enough, where the criterion is smooth.

    Raises:
        TargetUnreachable: no archive keeps it.
    """
    low, high = bits
    if trials.options.rules:
        high = _MOST_RULED_BITS
    is_smooth = trials.criterion.is_smooth
    search = _Secants(low, high, known or start, tolerance_db) if is_smooth else _Halving(low, high)
    best = known if known is not None and known.reached.keeps else None
    nearest = None if known is None else known.reached
    if known is not None:
        search.note(known.bits, known.reached)
    most = _MOST_ROUNDS if is_smooth else n_rounds + 1
    for number in range(most):
        if best is not None and deadline.passed:
            of = "" if is_smooth else f" of {most}"
            warnings.append(
                f"the time limit of {deadline.limit_s:g} s ended the search without training after {number}{of}"
                " rounds; results depend on the machine's speed"
            )
            break
        at = search.next()
        if at is None:
            break
        try:
            found = trials.at(at)
        except TargetUnreachable:  # a small model's archive is never that small
            search.is_too_small(at)
            continue
        reached = found.reached
        if nearest is None or reached.beyond > nearest.beyond:
            nearest = reached
        if progress is not None:
            progress(number + 1, most, {"bits": found.bits, trials.criterion.figure: reached.value})
        if reached.keeps and (best is None or found.n_bytes <= best.n_bytes):
            best = found
        search.note(at, reached)
    if best is None:
        raise trials.criterion.unreachable(nearest)
    return Found(best.stored, best.n_bytes, best.bits, best.reached, search.slope)


class _Halving:
    """Between bits that keep and bits that do not, on a logarithmic scale; the most first."""

    slope: float | None = None

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = math.log2(low), math.log2(high)
        self._is_first = True

    def next(self) -> float | None:
        """Bits a weight to try; None at the end."""
        if self._is_first:
            return math.exp2(self._high)
        return None if math.isinf(self._high) else math.exp2((self._low + self._high) / 2)

    def is_too_small(self, bits: float) -> None:
        """No archive has so few bits."""
        self._is_first, self._low = False, math.log2(bits)

    def note(self, bits: float, reached: Reached) -> None:
        """What an archive of so many bits comes to."""
        if reached.keeps:
            self._high = math.log2(bits)
        elif self._is_first:
            self._high = math.inf  # more bits are not to be had
        else:
            self._low = math.log2(bits)
        self._is_first = False


class _Secants:
    """By how far beyond what is asked for archives are: secants within a bracket, on the scale of `_usual_db`."""

    def __init__(self, low: float, high: float, start: Found | float | None, tolerance_db: float) -> None:
        self._low, self._high, self._tolerance_db = low, high, tolerance_db
        self._near = _NEAR * tolerance_db / TOLERANCE_DB
        self._points: list[tuple[float, float]] = []  # bits, and how far beyond
        self.slope: float | None = None
        self._n_bracketed = 0
        self._start = math.sqrt(low * high)
        if isinstance(start, float):
            self._start = start
        elif start is not None:
            self.slope = start.slope
            self._start = self._moved(start.bits, _clipped(start.reached.beyond))

    def next(self) -> float | None:
        """Bits a weight to try; None at the end."""
        if not self._points:
            return min(max(self._start, self._low), self._high)
        good = min((p for p in self._points if p[1] >= 0), default=None)
        bad = max((p for p in self._points if p[1] < 0 and (good is None or p[0] < good[0])), default=None)
        if good is None:
            return self._climbed()
        if good[1] <= self._tolerance_db:
            return None
        if bad is None:
            moved = min(max(self._moved(*good), self._low), good[0])
            return None if math.log2(good[0] / moved) <= self._near / 2 else moved
        width = math.log2(good[0] / bad[0])
        if width <= self._near:
            return None
        self._n_bracketed += 1
        if self._n_bracketed % 3 == 0 or math.isinf(bad[1]):
            return math.sqrt(bad[0] * good[0])
        if max(good[1], -bad[1]) > _STRAIGHT_DB:
            proposed = self._moved(*(good if good[1] < -bad[1] else bad))
        else:
            low, high = _usual_db(bad[0]), _usual_db(good[0])
            proposed = _bits_of(low + (high - low) * (self._aim - bad[1]) / (good[1] - bad[1]))
        return min(max(proposed, bad[0] * 2 ** (width / 10)), good[0] * 2 ** (-width / 10))

    def _climbed(self) -> float | None:
        # None of the archives keeps what is asked for.
        most = max(self._points)
        if most[0] == self._high:
            return None
        if len(self._points) >= _MOST_CLIMBING or math.isinf(most[1]):
            return self._high
        return min(max(self._moved(*most), most[0] * 2**self._near), self._high)

    def is_too_small(self, bits: float) -> None:
        """No archive has so few bits."""
        self._low = bits
        if self._points:
            self._points.append((bits, -math.inf))
        else:
            self._start = min(self._high, 2 * bits)

    @property
    def _aim(self) -> float:
        return _AIM * self._tolerance_db

    def _moved(self, bits: float, beyond: float) -> float:
        """The bits that are enough, about, by an archive that is so far beyond."""
        return _bits_of(_usual_db(bits) - (beyond - self._aim) / (self.slope or 1.0))

    def note(self, bits: float, reached: Reached) -> None:
        """What an archive of so many bits comes to."""
        beyond = _clipped(reached.beyond)
        if self._points:
            before = min(self._points, key=lambda p: abs(math.log(p[0] / bits)))
            if abs(math.log2(before[0] / bits)) > _FAR and math.isfinite(before[1]):
                found = (beyond - before[1]) / (_usual_db(bits) - _usual_db(before[0]))
                self.slope = min(max(found, _LEAST_SLOPE), _MOST_SLOPE)
        self._points.append((bits, beyond if reached.keeps == (beyond >= 0) else 0.0 if reached.keeps else -1e-3))


def _usual_db(bits: float) -> float:
    """How the quality of outputs usually goes with bits a weight, dB but for a constant."""
    return _DB_PER_BIT * bits + _DB_PER_OCTAVE * math.log2(bits)


def _bits_of(usual_db: float) -> float:
    """Undo `_usual_db`."""
    low, high = 2.0**-20, 64.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _usual_db(middle) < usual_db else (low, middle)
    return high


def _clipped(beyond: float) -> float:
    return min(max(beyond, -_MOST_BEYOND_DB), _MOST_BEYOND_DB)


def sized(options: PackOptions, *, ratio: float | None = None, bits_per_weight: float | None = None) -> PackOptions:
    """Options for an archive of some size, without the task; with little effort for a ratio."""
    effort = options.effort if ratio is None else min(options.effort, MEASURING_EFFORT)
    return replace(
        options,
        max_drop=None,
        output_snr=None,
        max_kl=None,
        sqnr=None,
        ratio=ratio,
        bits_per_weight=bits_per_weight,
        refine="off",
        resume=False,
        effort=effort,
        time_limit=None,  # the whole work has one
        floors=options.floors and not (options.allows_drop or options.aims_at_outputs),  # which say what may go
    )
