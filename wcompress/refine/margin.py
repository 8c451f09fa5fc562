"""What validation examples say of a candidate, and the margin that their number asks for."""

from __future__ import annotations

from dataclasses import dataclass

from wcompress.tasks import Scale, Score, standard_error

_ERRORS, _STEERING_ERRORS = 1.65, 1.3
"""Standard errors between the drop on validation and the drop allowed, to accept a candidate and to steer by: of
candidates at the very limit one in twenty would lose more than is allowed on unlimited examples. A search steers a
little nearer to the limit than it accepts, so that it has candidates on either side."""
_UNKNOWN = 0.4
"""The margin where no standard error is known, as a share of the drop allowed."""


@dataclass(frozen=True)
class Validation:
    """How much worse a candidate scores than the original on the validation examples.

    Attributes:
        drop: on all of them, in points or the task's own unit; infinite where the score is no number.
        error: its standard error; None where unknown.
        n: examples; None where unknown.
        searched: the drop on the examples that steer the search.
        held_back: the drop on the others; None where none are held back.
        held_back_error: its standard error.
    """

    drop: float
    error: float | None = None
    n: int | None = None
    searched: float = 0.0
    held_back: float | None = None
    held_back_error: float | None = None

    @classmethod
    def of(cls, before: Score, after: Score, scale: Scale) -> Validation:
        """Compares the scores of the original and of a candidate."""
        drop = scale.drop(before.value, after.value)
        error = standard_error(before, after, scale)
        searched, held_back = ((before.part(held_back=h), after.part(held_back=h)) for h in (False, True))
        if held_back[0] is before or held_back[1] is after:
            return cls(drop, error, after.n, drop)
        return cls(
            drop,
            error,
            after.n,
            scale.drop(searched[0].value, searched[1].value),
            scale.drop(held_back[0].value, held_back[1].value),
            standard_error(*held_back, scale),
        )

    def margin(self, max_drop: float, errors: float = _ERRORS) -> float:
        """How far the drop has to stay below the one allowed."""
        return _UNKNOWN * abs(max_drop) if self.error is None else errors * self.error

    def aim(self, max_drop: float) -> float:
        """The drop to steer to."""
        return max_drop - self.margin(max_drop, _STEERING_ERRORS)

    def keeps(self, max_drop: float) -> bool:
        """Whether a drop may be taken for no more than `max_drop`.

        All examples have to show it with the margin, and those that the search never saw must not contradict it by
        more than their own standard error.
        """
        if not self.drop + self.margin(max_drop) <= max_drop + 1e-9:
            return False
        return self.held_back is None or self.held_back <= max_drop + (self.held_back_error or 0.0) + 1e-9
