"""What a task's inputs tell of a model: some are looked at, the others held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wcompress.calibrate.moments import Collector
from wcompress.calibrate.outputs import sensitivities, squared_gradients
from wcompress.checkpoint import Checkpoint
from wcompress.codec.quantiser.sensitivity import Feedback, Sensitivity
from wcompress.evaluate import build_model
from wcompress.refine.distil import distance_of
from wcompress.refine.inputs import Inputs, call, mapped, tensors_of, understood
from wcompress.tasks import Task
from wcompress.tasks.protocol import Batch

Feedbacks = Mapping[str, Feedback]

DAMPING = 0.1
"""Of a mean second moment: how much is added to each input's own, where held-out inputs do not choose."""
FEWEST_INPUTS = 64
"""With fewer what they say is as likely to harm as to help, and those held out cannot tell."""
_BATCH, _MOST_INPUTS = 64, 2048
_HELD_OUT_SHARE = 5
_GRADIENT_INPUTS, _DRAWS = 256, 2
_MOST_BATCHES = 64
"""Of more, as where sentences come one by one, each is drawn for once."""


@dataclass(frozen=True)
class Split:
    """A model and its task's inputs.

    Attributes:
        task: whose inputs they are.
        original: the network with the checkpoint's weights, in eval mode.
        seen: inputs to look at.
        held_out: inputs that no archive goes by; none where all inputs are one batch that cannot be parted.
    """

    task: Task
    original: nn.Module
    seen: list[Batch]
    held_out: list[Batch]

    @classmethod
    def of(cls, task: Task, checkpoint: Checkpoint, seed: int) -> Split | None:
        """Run a model on its task's first inputs, and part them; None where there are too few.

        Raises:
            TaskError: the task fails, or does not fit the model.
        """
        model = build_model(task, checkpoint.tensors).float()
        found_batches = (mapped(batch, _as_float) for batch in understood(model, task.calibration()))
        batches = [batch for batch in found_batches if len(tensors_of(batch)[0])]
        if sum(len(tensors_of(batch)[0]) for batch in batches) < FEWEST_INPUTS:
            return None
        inputs = Inputs(batches, batch_size=_BATCH, held_out_share=_HELD_OUT_SHARE, seed=seed)
        return cls(task, model, _up_to(_MOST_INPUTS, inputs.plain(inputs.n_inputs)), inputs.held_out)

    @property
    def n_inputs(self) -> int:
        """Inputs to look at."""
        return sum(len(tensors_of(batch)[0]) for batch in self.seen)

    def distance(self, tensors: Mapping[str, Tensor]) -> float:
        """Of the outputs for held-out inputs from those of the original; infinite where it is no number."""
        model = build_model(self.task, tensors).float()
        distance, total = distance_of(self.task), 0.0
        batches = self.held_out or self.seen[-1:]
        with torch.no_grad():
            for batch in batches:
                total += float(distance(call(self.original, batch), call(model, batch)))
        return total / max(1, len(batches)) if math.isfinite(total) else math.inf


@dataclass(frozen=True)
class Calibration:
    """What inputs tell of a model.

    Attributes:
        split: the inputs.
        found: what errors of each float tensor cost, by name.
        shapes: of the tensors, by name.
    """

    split: Split
    found: Mapping[str, Sensitivity]
    shapes: Mapping[str, tuple[int, ...]]
    _made: dict[float | None, Feedbacks] = field(default_factory=dict, repr=False)

    @classmethod
    def on(cls, split: Split, checkpoint: Checkpoint, seed: int) -> Calibration:
        """Run a model on the inputs to look at.

        Raises:
            TaskError: the task fails, or does not fit the model.
        """
        model, some = split.original, split.seen
        collector = Collector(model)
        collector.run(some)
        as_classes = not callable(getattr(split.task, "distance", None))
        few = _up_to(_GRADIENT_INPUTS, some)
        moments = collector.moments
        gradients = squared_gradients(
            model,
            few,
            as_classes=as_classes,
            n_draws=_DRAWS if len(few) <= _MOST_BATCHES else 1,
            seed=seed,
            by_column=[name for name, one in moments.items() if one.transposed],
        )
        floats = {name: t for name, t in checkpoint.tensors.items() if t.is_floating_point()}
        aliases = _aliases(model, checkpoint.ties)
        found = sensitivities(floats, _with_aliases(moments, aliases), _with_aliases(gradients, aliases))
        return cls(split, found, {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()})

    def feedbacks(self, damping: float | None) -> Feedbacks:
        """How errors of each tensor count; the same object each time.

        Args:
            damping: of a mean second moment: how much is added to each input's own; None for no feedback.
        """
        if damping in self._made:
            return self._made[damping]
        found = {name: one.damped(DAMPING if damping is None else damping) for name, one in self.found.items()}
        if damping is None:
            found = {name: one.without_feedback() for name, one in found.items()}
        made = self._made[damping] = {name: one.feedback(self.shapes[name]) for name, one in found.items()}
        return made


def _up_to(n_inputs: int, batches: Sequence[Batch]) -> list[Batch]:
    # The first batches that hold so many inputs.
    found: list[Batch] = []
    for batch in batches:
        if n_inputs <= 0:
            break
        found.append(batch)
        n_inputs -= len(tensors_of(batch)[0])
    return found


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _aliases(model: nn.Module, ties: Mapping[str, str]) -> list[set[str]]:
    # Names of one and the same tensor: of the model's, or of the checkpoint's.
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [*names.values(), *({later, earlier} for later, earlier in ties.items())]


def _with_aliases(found: Mapping[str, Any], aliases: Sequence[set[str]]) -> dict[str, Any]:
    result = dict(found)
    for names in aliases:
        known = next((result[name] for name in sorted(names) if name in result), None)
        if known is not None:
            result |= {name: known for name in names if name not in result}
    return result
