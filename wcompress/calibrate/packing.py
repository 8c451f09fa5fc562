"""Packing with calibration: a task's inputs say what errors cost, and the codec spends its bits accordingly.

The reader knows nothing of it: an archive holds symbols and steps, however they were found.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wcompress.calibrate.moments import Collector
from wcompress.calibrate.outputs import sensitivities, squared_gradients
from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import is_several
from wcompress.codec.encoded import Encoded
from wcompress.codec.encoding import encode
from wcompress.codec.options import PackOptions
from wcompress.codec.quantiser.sensitivity import Feedback, Sensitivity
from wcompress.codec.restoring import restore_encoded
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable, TaskError
from wcompress.evaluate import build_model
from wcompress.progress import Progress, part
from wcompress.refine.distil import distance_of
from wcompress.refine.inputs import Inputs, call, mapped, tensors_of, understood
from wcompress.refine.margin import Validation
from wcompress.refine.scored import BITS, MEASURING_EFFORT, Decision, Scored, coarsest, sized
from wcompress.tasks import Score, Task, seeded
from wcompress.tasks.protocol import Batch

Feedbacks = Mapping[str, Feedback]

DAMPINGS = (0.03, 0.1, 0.3)
"""Of a mean second moment: how much is added to each input's own. Held-out inputs choose."""
DAMPING = 0.1
"""Where they do not."""
FEWEST_INPUTS = 64
"""With fewer what they say is as likely to harm as to help, and those held out cannot tell."""
_TOO_FEW = f"the task gives fewer than {FEWEST_INPUTS} inputs"
_BATCH, _MOST_INPUTS = 64, 2048
_HELD_OUT_SHARE = 5
_GRADIENT_INPUTS, _DRAWS = 256, 2
_BITS = ((min(BITS) / 2, max(BITS) / 2), BITS)
"""A weight, between which an archive that keeps to a drop is looked for; the second where the first has none."""
_AGAIN, _AGAIN_ROUNDS = 0.8, 2
"""How far below the size that was found another way of calibrating is tried, and in how many rounds."""
_SHARES = (0.95, 1.0)
"""Of the size that was found, what is tried with all effort, at which less is lost."""
_COLLECTING, _TRYING = "running the network on its inputs", "trying what inputs say"
_COLLECTING_SHARE, _TRYING_SHARE = 0.2, 0.6


@dataclass(frozen=True)
class Calibration:
    """What inputs tell of a model.

    Attributes:
        task: whose inputs they are.
        original: the network with the checkpoint's weights, in eval mode.
        held_out: inputs that were not looked at.
        found: what errors of each float tensor cost, by name.
        n_inputs: that were looked at.
    """

    task: Task
    original: nn.Module
    held_out: list[Batch]
    found: Mapping[str, Sensitivity]
    n_inputs: int

    @classmethod
    def of(cls, task: Task, checkpoint: Checkpoint, seed: int) -> Calibration | None:
        """Run a model on its task's inputs; None where there are too few.

        Raises:
            TaskError: the task fails, or does not fit the model.
        """
        model = build_model(task, checkpoint.tensors).float()
        found_batches = (mapped(batch, _as_float) for batch in understood(model, task.calibration()))
        batches = [batch for batch in found_batches if len(tensors_of(batch)[0])]
        if sum(len(tensors_of(batch)[0]) for batch in batches) < FEWEST_INPUTS:
            return None
        inputs = Inputs(batches, batch_size=_BATCH, held_out_share=_HELD_OUT_SHARE, seed=seed)
        some = _up_to(_MOST_INPUTS, inputs.plain(inputs.n_inputs))
        collector = Collector(model)
        collector.run(some)
        as_classes = not callable(getattr(task, "distance", None))
        few = _up_to(_GRADIENT_INPUTS, some)
        gradients = squared_gradients(model, few, as_classes=as_classes, n_draws=_DRAWS, seed=seed)
        floats = {name: t for name, t in checkpoint.tensors.items() if t.is_floating_point()}
        aliases = _aliases(model, checkpoint.ties)
        found = sensitivities(floats, _with_aliases(collector.moments, aliases), _with_aliases(gradients, aliases))
        n_inputs = sum(len(tensors_of(batch)[0]) for batch in some)
        return cls(task, model, inputs.held_out or some[-1:], found, n_inputs)

    def feedbacks(self, damping: float | None, shapes: Mapping[str, tuple[int, ...]]) -> Feedbacks:
        """How errors of each tensor count.

        Args:
            damping: see `DAMPINGS`; None for no feedback.
            shapes: of the tensors.
        """
        found = {name: one.damped(DAMPING if damping is None else damping) for name, one in self.found.items()}
        if damping is None:
            found = {name: one.without_feedback() for name, one in found.items()}
        return {name: one.feedback(shapes[name]) for name, one in found.items()}

    def distance(self, tensors: Mapping[str, Tensor]) -> float:
        """Of the outputs for held-out inputs from those of the original; infinite where it is no number."""
        model = build_model(self.task, tensors).float()
        distance, total = distance_of(self.task), 0.0
        with torch.no_grad():
            for batch in self.held_out:
                total += float(distance(call(self.original, batch), call(model, batch)))
        return total / max(1, len(self.held_out)) if math.isfinite(total) else math.inf


class CalibratedEncoder:
    """Finds what errors of a model's weights cost; with a drop to keep to, also what to store.

    Args:
        task: builds the network and gives inputs.
        before: the original's score on validation; None where there is no drop to keep to.

    Attributes:
        decision: set once the work is done.
        warnings: one line each.
    """

    def __init__(self, task: Task, before: Score | None) -> None:
        self.task, self._before = task, before
        self.decision: Decision | None = None
        self.warnings: list[str] = []
        self._why = _TOO_FEW

    def __call__(
        self, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None
    ) -> Encoded | Feedbacks | None:
        """See `wcompress.codec.packing.Encoder`.

        Raises:
            TargetUnreachable: no archive that was found keeps to the drop.
            TaskError: the task fails, or does not fit the model.
        """
        with seeded(options.seed):
            part(progress, 0.0, 0.0, _COLLECTING)
            calibration = self._calibration(checkpoint, options)
            trying = part(progress, _COLLECTING_SHARE, _TRYING_SHARE)
            if self._before is None:
                return self._sized(calibration, checkpoint, options, device, trying)
            return self._kept(calibration, checkpoint, options, device, trying)

    def _calibration(self, checkpoint: Checkpoint, options: PackOptions) -> Calibration | None:
        """What inputs tell; None where they are not asked, too few, or, unless they have to be, where that fails."""
        if not options.calibrates:
            self._why = "calibration is off"
            return None
        try:
            return Calibration.of(self.task, checkpoint, options.seed)
        except Exception as error:
            told = f"{error}" if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
            detail = " ".join(told.split())
            if options.calibrate == "on":
                raise TaskError(f"task {self.task.name}: calibration failed ({detail:.300})") from error
            self._why = "calibration failed"
            self.warnings.append(f"calibration failed ({detail:.300}); the archive goes by the weights alone")
            return None

    def _sized(
        self,
        calibration: Calibration | None,
        checkpoint: Checkpoint,
        options: PackOptions,
        device: str,
        progress: Progress | None,
    ) -> Feedbacks | None:
        if calibration is None:
            self.decision = Decision("data-free", self._why, None)
            return None
        if is_several(t.numel() for name, t in checkpoint.tensors.items() if name not in checkpoint.ties):
            self.decision = Decision("calibrated", f"on {calibration.n_inputs} inputs", None)
            return calibration.feedbacks(DAMPING, _shapes(checkpoint))
        deadline = Deadline(options.time_limit)
        _, found, reason = self._best(calibration, checkpoint, options, device, progress, deadline)
        self.decision = Decision("data-free" if found is None else "calibrated", reason, None)
        return found

    def _best(
        self,
        calibration: Calibration,
        checkpoint: Checkpoint,
        options: PackOptions,
        device: str,
        progress: Progress | None,
        deadline: Deadline,
    ) -> tuple[float | None, Feedbacks | None, str]:
        """The way of coding that held-out inputs like best at the size asked for: none, without feedback, damped."""
        quick = replace(options, effort=min(options.effort, MEASURING_EFFORT), floors=False, time_limit=None)
        shapes = _shapes(checkpoint)
        ways: list[tuple[float | None, Feedbacks | None]] = [(None, None), (None, calibration.feedbacks(None, shapes))]
        ways += [(damping, calibration.feedbacks(damping, shapes)) for damping in DAMPINGS]
        distances: list[float] = []
        for number, (_, feedbacks) in enumerate(ways):
            if deadline.passed and distances:
                self.warnings.append(
                    f"the time limit of {deadline.limit_s:g} s ended the trials of calibration after {number} of"
                    f" {len(ways)}; results depend on the machine's speed"
                )
                break
            wanted = quick if feedbacks is not None else replace(quick, floors=options.floors)
            try:
                encoded = encode(checkpoint, wanted, device, None, feedbacks=feedbacks)
                distances.append(calibration.distance(restore_encoded(checkpoint, encoded)))
            except TargetUnreachable:
                distances.append(math.inf)
            if progress is not None:
                progress(number + 1, len(ways), {"stage": _TRYING})
        at = distances.index(min(distances))
        reason = (
            f"on {calibration.n_inputs} inputs; the distance of outputs at this size, held out, is"
            f" {distances[at]:.3g} against {distances[0]:.3g} without data"
        )
        return *ways[at], reason

    def _kept(
        self,
        calibration: Calibration | None,
        checkpoint: Checkpoint,
        options: PackOptions,
        device: str,
        progress: Progress | None,
    ) -> Encoded:
        """The smallest archive that keeps to the drop, found with little effort and written with all of it."""
        assert self._before is not None
        assert options.max_drop is not None
        scored, deadline = Scored(self.task, checkpoint, self._before, options), Deadline(options.time_limit)
        why = self._why
        quick = replace(options, effort=min(options.effort, MEASURING_EFFORT))
        found: tuple[Encoded, Validation] | None = None
        feedbacks: Feedbacks | None = None
        if calibration is not None:
            feedbacks = calibration.feedbacks(DAMPING, _shapes(checkpoint))
            why = "no calibrated archive that was tried keeps to the drop"
            for bits in _BITS:
                with contextlib.suppress(TargetUnreachable):
                    found = coarsest(
                        scored, options.max_drop, quick, device, progress, deadline, self.warnings, feedbacks, bits=bits
                    )
                    break
        if calibration is None or found is None:
            found = coarsest(scored, options.max_drop, options, device, progress, deadline, self.warnings)
            self.decision = Decision("data-free", why, found[1])
            return found[0]
        n_bytes = scored.n_bytes(found[0])
        at_size = sized(options, ratio=checkpoint.original_bytes / n_bytes)
        damping, best, reason = self._best(calibration, checkpoint, at_size, device, None, deadline)
        if damping != DAMPING and not deadline.passed:
            most = 8 * n_bytes / checkpoint.n_params
            with contextlib.suppress(TargetUnreachable):  # nor does every set of examples agree with the outputs
                again = coarsest(
                    scored,
                    options.max_drop,
                    quick,
                    device,
                    None,
                    deadline,
                    self.warnings,
                    best,
                    bits=(_AGAIN * most, most),
                    n_rounds=_AGAIN_ROUNDS,
                )
                if scored.n_bytes(again[0]) <= n_bytes:
                    found, feedbacks = again, best
        if options.effort > quick.effort and not deadline.passed:
            found = self._written_well(scored, options, device, found, feedbacks)
        self.decision = Decision("data-free" if feedbacks is None else "calibrated", reason, found[1])
        return found[0]

    def _written_well(
        self,
        scored: Scored,
        options: PackOptions,
        device: str,
        found: tuple[Encoded, Validation],
        feedbacks: Feedbacks | None,
    ) -> tuple[Encoded, Validation]:
        assert options.max_drop is not None
        n_bytes = scored.n_bytes(found[0])
        for share in _SHARES:
            wanted = replace(
                sized(options, bits_per_weight=8 * share * n_bytes / scored.checkpoint.n_params), effort=options.effort
            )
            try:
                encoded = encode(scored.checkpoint, wanted, device, None, feedbacks=feedbacks)
            except TargetUnreachable:
                continue
            validation = scored.validation(encoded)
            if validation.keeps(options.max_drop):
                return encoded, validation
        return found


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


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
