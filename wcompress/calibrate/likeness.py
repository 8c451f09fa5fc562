"""How like the original's outputs those of a restored model are, for inputs that no archive goes by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wcompress.calibrate.calibration import Split
from wcompress.errors import TargetUnreachable, TaskError
from wcompress.evaluate import build_model
from wcompress.refine.coarsest import Reached
from wcompress.refine.distil import float_tensors
from wcompress.refine.inputs import call, tensors_of
from wcompress.tasks.protocol import Batch

_MOST_AT_ONCE = 1 << 22
"""Class scores in memory as float64."""


class Likeness:
    """Compares outputs for held-out inputs with the original's.

    Args:
        split: the model and the inputs.

    Raises:
        TaskError: no inputs are held out.
    """

    def __init__(self, split: Split) -> None:
        if not split.held_out:
            raise TaskError(
                f"task {split.task.name}: calibration() gives its inputs in one batch that cannot be parted, so that"
                " none can be held out; give several batches"
            )
        self._split = split
        self._signal: float | None = None

    def output_snr_db(self, tensors: Mapping[str, Tensor]) -> float:
        """10 log10(Σ (y − mean of y)² / Σ (y − ŷ)²) over all float outputs, in dB; infinite where they are the same.

        The mean is each output's own over the inputs. Where inputs differ in shape, and so outputs, it is over all
        positions of the last dimension. What is not finite in the original is left out.

        Args:
            tensors: of the restored model, by name.

        Raises:
            TaskError: the original's outputs hold no floats, or do not depend on the inputs.
        """
        if self._signal is None:
            self._signal = self._energy()
        noise = 0.0
        for _, found, restored in self._outputs(tensors):
            for y, other in zip(float_tensors(found), float_tensors(restored), strict=True):
                error = torch.where(y.isfinite(), y.double() - other.double(), 0.0)
                noise += float(error.square().sum())
        if not math.isfinite(noise):
            return -math.inf
        return 10 * math.log10(self._signal / noise) if noise else math.inf

    def kl_nats(self, tensors: Mapping[str, Tensor]) -> float:
        """The KL divergence of the original's classes from the restored ones', mean over all positions, in nats.

        Args:
            tensors: of the restored model, by name.

        Raises:
            TaskError: there are no class scores in the outputs.
        """
        total, n = 0.0, 0
        for _, found, restored in self._outputs(tensors):
            pairs = zip(*(self._class_scores(output) for output in (found, restored)), strict=True)
            for scores, others in pairs:
                original, other = (functional.log_softmax(part.double(), dim=-1) for part in (scores, others))
                terms = torch.where(original > -math.inf, original.exp() * (original - other), 0.0).sum(-1)
                known = ~original.isnan().any(-1)
                total += float(terms[known].sum())
                n += int(known.sum())
        if not math.isfinite(total):
            return math.inf
        return max(0.0, total / max(1, n))

    def figures(self, tensors: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
        """Output SNR and KL divergence; None for what the outputs do not have."""
        found: list[float | None] = []
        for measure in (self.output_snr_db, self.kl_nats):
            try:
                found.append(measure(tensors))
            except TaskError:
                found.append(None)
        return found[0], found[1]

    def _outputs(self, tensors: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Any, Any]]:
        # The batches, the original's outputs, and those of a model with other weights.
        original = self._split.original
        model = None if tensors is None else build_model(self._split.task, tensors).float()
        for batch in self._split.held_out:
            try:
                with torch.no_grad():
                    found, restored = call(original, batch), None if model is None else call(model, batch)
            except Exception as error:
                detail = " ".join(f"{type(error).__name__}: {error}".split())
                raise TaskError(f"task {self._split.task.name}: the model fails on inputs ({detail:.300})") from error
            yield batch, found, restored

    def _energy(self) -> float:
        """Σ (y − mean of y)² of the original."""
        doing = f"task {self._split.task.name}: output_snr"
        shapes: dict[int, set[tuple[int, ...]]] = {}
        for batch, found, _ in self._outputs():
            n_inputs = len(tensors_of(batch)[0])
            for number, y in enumerate(float_tensors(found)):
                is_by_input = y.ndim > 0 and len(y) == n_inputs
                shapes.setdefault(number, set()).add(tuple(y.shape[1:]) if is_by_input else (-1, *y.shape))
        if not shapes:
            raise TaskError(f"{doing}: the model's output has no float tensor")
        alike = {number for number, found in shapes.items() if len(found) == 1 and -1 not in next(iter(found))}

        def rows(number: int, y: Tensor) -> Tensor:
            if number in alike:
                return y.reshape(len(y), -1).double()
            return y.reshape(-1, y.shape[-1] if y.ndim > 1 else 1).double()

        sums: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for _, found, _ in self._outputs():
            for number, y in enumerate(float_tensors(found)):
                flat = rows(number, y)
                key, known = (number, flat.shape[1]), flat.isfinite()
                n, total = sums.get(key, (torch.zeros(()), torch.zeros(())))
                sums[key] = n + known.sum(0), total + flat.where(known, 0.0).sum(0)
        energy = 0.0
        for _, found, _ in self._outputs():
            for number, y in enumerate(float_tensors(found)):
                flat = rows(number, y)
                n, total = sums[number, flat.shape[1]]
                energy += float((flat - total / n.clamp_min(1)).where(flat.isfinite(), 0.0).square().sum())
        if not energy:
            raise TaskError(f"{doing}: the model's outputs are the same for every input")
        return energy

    def _class_scores(self, output: Any) -> Iterator[Tensor]:
        """The class scores in an output, `[n, n_classes]`, in parts."""
        named = output.get("logits") if isinstance(output, dict) else None
        for scores in float_tensors(output if named is None else named):
            if scores.ndim in (2, 3) and scores.shape[-1] > 1:
                rows = scores.reshape(-1, scores.shape[-1])
                return iter(rows.split(max(1, _MOST_AT_ONCE // rows.shape[1])))
        raise TaskError(
            f"task {self._split.task.name}: max_kl: the model gives no class scores, which are floats [n, n_classes] or"
            " [n, n_positions, n_classes] with 2 classes or more; use output_snr"
        )


class SnrCriterion:
    """An output SNR; see `wcompress.refine.coarsest.Criterion`.

    Args:
        likeness: measures it.
        wanted: at least, in dB.
    """

    is_smooth = True
    figure = "output SNR"

    def __init__(self, likeness: Likeness, wanted: float) -> None:
        self._likeness, self._wanted = likeness, wanted

    def reached(self, tensors: Mapping[str, Tensor]) -> Reached:
        """The output SNR of weights, in dB."""
        value = self._likeness.output_snr_db(tensors)
        return Reached(value, value >= self._wanted, value - self._wanted)

    def in_words(self, reached: Reached) -> str:
        """Of a reason."""
        return f"the output SNR is {reached.value:.2f} dB"

    def unreachable(self, nearest: Reached | None) -> TargetUnreachable:
        """The error that names the highest output SNR that was found."""
        found = "nothing that was tried has any" if nearest is None else f"{nearest.value:.2f} dB is the nearest"
        return TargetUnreachable(f"an output SNR of {self._wanted:g} dB: {found}; ask for less")


class KlCriterion:
    """A KL divergence; see `wcompress.refine.coarsest.Criterion`.

    Args:
        likeness: measures it.
        wanted: at most, in nats; positive.
    """

    is_smooth = True
    figure = "KL"

    def __init__(self, likeness: Likeness, wanted: float) -> None:
        self._likeness, self._wanted = likeness, wanted

    def reached(self, tensors: Mapping[str, Tensor]) -> Reached:
        """The KL divergence of weights, in nats; it goes with the energy of the outputs' error."""
        value = self._likeness.kl_nats(tensors)
        beyond = math.inf if value == 0 else -math.inf if math.isinf(value) else 10 * math.log10(self._wanted / value)
        return Reached(value, value <= self._wanted, beyond)

    def in_words(self, reached: Reached) -> str:
        """Of a reason."""
        return f"the KL divergence is {reached.value:.3g} nats"

    def unreachable(self, nearest: Reached | None) -> TargetUnreachable:
        """The error that names the least KL divergence that was found."""
        found = "nothing that was tried has any" if nearest is None else f"{nearest.value:.3g} nats is the nearest"
        return TargetUnreachable(f"a KL divergence of {self._wanted:g} nats: {found}; allow more")


OutputCriterion = SnrCriterion | KlCriterion
