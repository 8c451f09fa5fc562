"""What archives of one model score, and the smallest one that still scores enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoded import Encoded
from wcompress.codec.encoding import encode
from wcompress.codec.given import GivenSymbols, archive_bytes, encode_given
from wcompress.codec.options import PackOptions
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.restoring import restore_encoded
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable
from wcompress.evaluate import observed
from wcompress.progress import Progress
from wcompress.refine.margin import Validation
from wcompress.tasks import Scale, Score, Task

MEASURING_EFFORT = 2
BITS = (0.35, 8.0)
"""A weight, between which the coarsest quantisation is looked for."""
_MOST_RULED_BITS = 64.0
"""Where rules choose for some tensors, all of them may take more bits than that."""
_ROUNDS = 6


@dataclass(frozen=True)
class Decision:
    """What was chosen, and why.

    Attributes:
        chosen: `refined`, `calibrated` or `data-free`.
        reason: a sentence.
        validation: of what was chosen; None where nothing was validated.
    """

    chosen: str
    reason: str
    validation: Validation | None


class Scored:
    """Measures archives of one model by a task."""

    def __init__(self, task: Task, checkpoint: Checkpoint, before: Score, options: PackOptions) -> None:
        self.task, self.checkpoint, self.before = task, checkpoint, before
        self.scale = Scale.of(task)
        self._effort, self._seed = min(options.effort, MEASURING_EFFORT), options.seed

    @property
    def unit(self) -> str:
        """What a drop is counted in."""
        return "points" if self.scale.is_share else self.scale.unit

    def measure(self, given: GivenSymbols) -> tuple[Encoded, int, Validation]:
        """See `wcompress.refine.search.Measure`; quickly written."""
        encoded = encode_given(self.checkpoint, given, effort=self._effort, seed=self._seed)
        return encoded, archive_bytes(self.checkpoint, encoded), self.validation(encoded)

    def n_bytes(self, encoded: Encoded) -> int:
        """What its archive takes."""
        return archive_bytes(self.checkpoint, encoded)

    def validation(self, encoded: Encoded) -> Validation:
        """How what an archive restores to scores on validation."""
        after = observed(self.task, restore_encoded(self.checkpoint, encoded), "validation")
        return Validation.of(self.before, after, self.scale)


def coarsest(
    scored: Scored,
    max_drop: float,
    options: PackOptions,
    device: str,
    progress: Progress | None,
    deadline: Deadline,
    warnings: list[str],
    feedbacks: Mapping[str, Feedback] | None = None,
    *,
    bits: tuple[float, float] = BITS,
    n_rounds: int = _ROUNDS,
) -> tuple[Encoded, Validation]:
    """The coarsest quantisation that keeps to a drop, by halving between bits a weight.

    Args:
        scored: the model.
        max_drop: on validation, in points.
        options, device, progress, feedbacks: see `wcompress.codec.encoding.encode`.
        deadline: after which the best that was found will do.
        warnings: gets a line where that made an end.
        bits: a weight, between which to look; the most is tried first.
        n_rounds: of halving.

    Raises:
        TargetUnreachable: not even the finest does.
    """
    low, high = (math.log2(value) for value in bits)
    if options.rules:
        high = math.log2(_MOST_RULED_BITS)
    best: tuple[Encoded, Validation] | None = None
    least = math.inf
    for number in range(n_rounds + 1):
        if best is not None and deadline.passed:
            warnings.append(
                f"the time limit of {deadline.limit_s:g} s ended the search without training after {number} of"
                f" {n_rounds + 1} rounds; results depend on the machine's speed"
            )
            break
        middle = high if number == 0 else (low + high) / 2
        try:
            wanted = sized(options, bits_per_weight=2.0**middle)
            encoded = encode(scored.checkpoint, wanted, device, None, feedbacks=feedbacks)
        except TargetUnreachable:  # a small model's archive is never that small
            low = middle
            continue
        validation = scored.validation(encoded)
        least = min(least, validation.drop)
        if progress is not None:
            figures = {"bits": 2.0**middle, "drop": validation.drop}
            progress(number + 1, n_rounds + 1, figures)
        if validation.keeps(max_drop):
            best, high = (encoded, validation), middle
        elif number == 0:
            break
        else:
            low = middle
    if best is None:
        raise TargetUnreachable(
            f"a drop of {max_drop:g} {scored.unit}: {least:.2f} on validation is the nearest; allow more,"
            " or validate on more examples"
        )
    return best


def sized(options: PackOptions, *, ratio: float | None = None, bits_per_weight: float | None = None) -> PackOptions:
    """Options for an archive of some size, without the task; with little effort for a ratio."""
    effort = options.effort if ratio is None else min(options.effort, MEASURING_EFFORT)
    return replace(
        options,
        max_drop=None,
        sqnr=None,
        ratio=ratio,
        bits_per_weight=bits_per_weight,
        refine="off",
        resume=False,
        effort=effort,
        time_limit=None,  # the whole work has one
        floors=not options.allows_drop,  # the task's score says what may go
    )
