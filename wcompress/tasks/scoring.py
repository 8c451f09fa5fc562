"""What a task's scores mean, and how far they can be trusted.

A task gives its scores in percent, as fractions, or in a unit of its own, and says so; everything else in wcompress
sees points, of which more is better. Two models that answer the same examples are compared example by example, which
tells how uncertain the difference of their scores is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wcompress.errors import TaskError
from wcompress.tasks.protocol import Task

PERCENT, FRACTION = "percent", "fraction"
_HELD_BACK = 4
"""One validation example in so many is held back from the search for the final choice."""
_FEWEST_TO_SPLIT = 40


@dataclass(frozen=True)
class Scale:
    """The unit of a task's scores and their direction.

    Attributes:
        unit: `percent`, `fraction` (shown as percent), or any other name for scores that are shown as they are.
        higher_is_better: False for losses and error rates.
        declared: whether the task itself names the unit.
    """

    unit: str = PERCENT
    higher_is_better: bool = True
    declared: bool = False

    @classmethod
    def of(cls, task: Task) -> Scale:
        """The scale that a task declares with its optional attributes `unit` and `higher_is_better`."""
        unit = getattr(task, "unit", None)
        return cls(unit or PERCENT, bool(getattr(task, "higher_is_better", True)), unit is not None)

    @property
    def is_share(self) -> bool:
        """Whether scores are shares of the examples, shown in percent."""
        return self.unit in (PERCENT, FRACTION)

    @property
    def shown_unit(self) -> str:
        """The unit of shown scores: percent, or the task's own name for it."""
        return PERCENT if self.is_share else self.unit

    def shown(self, value: float) -> float:
        """A score as it is shown: a fraction becomes percent."""
        return 100.0 * value if self.unit == FRACTION else value

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is than `before`, both as shown; a score that is not finite is infinitely worse."""
        if not math.isfinite(after):
            return math.inf
        return before - after if self.higher_is_better else after - before

    def check(self, value: float, doing: str) -> None:
        """Checks the score of an intact model.

        Args:
            value: as the task gave it.
            doing: what gave it, for the message.

        Raises:
            TaskError: not finite, outside its unit's range, or probably a fraction.
        """
        if not math.isfinite(value):
            raise TaskError(f"{doing} gave {value} for the original model; a finite number is needed")
        if not self.higher_is_better and not self.declared:
            raise TaskError(
                f"{doing} gives a score where lower is better, but no unit; "
                'set unit on the task: "percent", "fraction", or a name such as "nats"'
            )
        most = {PERCENT: 100.0, FRACTION: 1.0}.get(self.unit, math.inf)
        if self.is_share and not -1e-6 <= value <= most * (1 + 1e-6):
            raise TaskError(
                f"{doing} gave {value:g}, which is no {self.unit} (0 to {most:g}); set unit on the task: "
                '"percent", "fraction", or a name such as "nats"'
            )
        if not self.declared and 0 < value <= 1:
            raise TaskError(
                f'{doing} gave {value:g}, which looks like a fraction: set unit = "fraction" on the task '
                '(or unit = "percent" if it is percent)'
            )


@dataclass(frozen=True)
class Score:
    """A score and what is known of how it came about.

    Attributes:
        value: as shown, see `Scale.shown`.
        n: examples scored; None where that is unknown.
        each: a score for each example, as shown, float64 `[n]`; None where the task gives none.
        answers: the likeliest class of each example, int64 `[n]`; None where outputs are not class scores.
    """

    value: float
    n: int | None = None
    each: Tensor | None = None
    answers: Tensor | None = None

    def part(self, *, held_back: bool) -> Score:
        """The score on the examples that are held back from the search, or on the others; all where none are."""
        if self.each is None or len(self.each) < _FEWEST_TO_SPLIT:
            return self
        chosen = (torch.arange(len(self.each)) % _HELD_BACK == _HELD_BACK - 1) == held_back
        each = self.each[chosen]
        return Score(float(each.mean()), len(each), each)


def standard_error(before: Score, after: Score, scale: Scale) -> float | None:
    """The standard error of the difference of two models' scores on the same examples, in shown units.

    From the scores of each example where both have them. Otherwise, for shares, from the number of examples whose
    answer changed, or, where answers are unknown too, from the most that can have changed. None where the number of
    examples is unknown, or a score in a unit of its own comes without scores of each example.
    """
    if before.each is not None and after.each is not None and len(before.each) == len(after.each):
        n = len(before.each)
        return float((after.each - before.each).std(correction=0)) / math.sqrt(n)
    if before.n is None or before.n != after.n or not scale.is_share or not math.isfinite(after.value):
        return None
    if before.answers is not None and after.answers is not None and len(before.answers) == len(after.answers):
        # The examples scored, if the task tells of fewer than the model was shown.
        changed = float((before.answers != after.answers).double().mean())
    else:
        errors = [100.0 - s.value if scale.higher_is_better else s.value for s in (before, after)]
        changed = min(1.0, max(0.0, sum(errors) / 100.0))
    return 100.0 * math.sqrt(changed / before.n)


def observe(task: Task, model: nn.Module, split: str) -> Score:
    """Scores a model and counts what it is shown meanwhile.

    Args:
        task: what the model is for.
        model: in eval mode.
        split: `validation` or `test`.

    Raises:
        TaskError: the task's code fails, or gives no number.
    """
    method = {"validation": "validate", "test": "evaluate"}[split]
    declared = int(getattr(task, {"validation": "n_validation", "test": "n_examples"}[split], 0) or 0)
    scale = Scale.of(task)
    for_each = getattr(task, f"{method}_each", None)
    if callable(for_each):
        each = _numbers(for_each(model), f"{method}_each()") * scale.shown(1.0)
        return Score(float(each.sum()) / len(each), len(each), each)
    watch = _Watch()
    handle = model.register_forward_hook(watch.seen, with_kwargs=True)
    try:
        value = getattr(task, method)(model)
    finally:
        handle.remove()
    return Score(scale.shown(float(value)), declared or watch.n or None, None, watch.found())


def _numbers(found: Any, doing: str) -> Tensor:
    try:
        numbers = torch.as_tensor(found).detach().cpu().double().reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if not len(numbers):
        got = " ".join(repr(found).split())[:80]
        raise TaskError(f"{doing} should give a number for each example, got {got}")
    return numbers


class _Watch:
    """Counts the examples that a model is shown and notes its answers."""

    def __init__(self) -> None:
        self.n = 0
        self._answers: list[Tensor] | None = []

    def seen(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook."""
        shown = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor) and value.ndim]
        self.n += len(shown[0]) if shown else 0
        is_classes = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1
        if self._answers is not None and shown and is_classes and len(output) == len(shown[0]):
            self._answers.append(output.detach().argmax(dim=1).cpu())
        else:
            self._answers = None

    def found(self) -> Tensor | None:
        """The answers, where all outputs were class scores."""
        return torch.cat(self._answers) if self._answers else None
