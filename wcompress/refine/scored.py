"""What archives of one model score, and the drop that they may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoded import Encoded
from wcompress.codec.given import GivenSymbols, archive_bytes, encode_given
from wcompress.codec.options import PackOptions
from wcompress.codec.restoring import restore_encoded
from wcompress.errors import TargetUnreachable
from wcompress.evaluate import observed
from wcompress.refine.coarsest import MEASURING_EFFORT, Reached
from wcompress.refine.margin import Validation
from wcompress.tasks import Scale, Score, Task


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
        return encoded, archive_bytes(self.checkpoint, encoded), self.restored_validation(encoded)

    def validation(self, tensors: Mapping[str, Tensor]) -> Validation:
        """How weights score on validation."""
        after = observed(self.task, tensors, "validation")
        return Validation.of(self.before, after, self.scale)

    def restored_validation(self, encoded: Encoded) -> Validation:
        """How what an archive restores to scores on validation."""
        return self.validation(restore_encoded(self.checkpoint, encoded))


class DropCriterion:
    """A drop of the score on validation; see `wcompress.refine.coarsest.Criterion`.

    Args:
        scored: the model.
        max_drop: in points, or the task's own unit.
    """

    is_smooth, figure = False, "drop"

    def __init__(self, scored: Scored, max_drop: float) -> None:
        self._scored, self._max_drop = scored, max_drop

    def reached(self, tensors: Mapping[str, Tensor]) -> Reached:
        """What weights lose."""
        validation = self._scored.validation(tensors)
        drop = validation.drop
        return Reached(drop, validation.keeps(self._max_drop), self._max_drop - drop, validation)

    def unreachable(self, nearest: Reached | None) -> TargetUnreachable:
        """The error that names the least drop that was found."""
        least = math.inf if nearest is None else nearest.value
        return TargetUnreachable(
            f"a drop of {self._max_drop:g} {self._scored.unit}: {least:.2f} on validation is the nearest; allow more,"
            " or validate on more examples"
        )
