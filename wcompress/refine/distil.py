"""What a refined model is compared by: distances between outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wcompress.errors import TaskError

Distance = Callable[[Any, Any], Tensor]


def divergence(original: Tensor, restored: Tensor) -> Tensor:
    """KL divergence of class scores `[n, n_classes]`, mean over the n, in nats."""
    target = functional.log_softmax(original.float(), dim=-1)
    return functional.kl_div(
        functional.log_softmax(restored.float(), dim=-1), target, log_target=True, reduction="batchmean"
    )


def distance_of(task: Any) -> Distance:
    """The task's own `distance(original_output, restored_output)`, or else `default_distance`."""
    own = getattr(task, "distance", None)
    return own if callable(own) else default_distance


def default_distance(original: Any, restored: Any) -> Tensor:
    """Compares outputs of whatever structure: class scores by divergence, everything else by relative squared error.

    A float tensor `[n, n_classes]`, `n_classes` at least 2, is taken for class scores. A task whose outputs are
    numbers of another kind in that shape gives a `distance` of its own.

    Args:
        original: output of the original model: a tensor, or a tuple, list or dict of such.
        restored: output of the refined one, alike in structure.

    Raises:
        TaskError: there is no float tensor in the output.
    """
    pairs = [(a, b) for a, b in zip(float_tensors(original), float_tensors(restored), strict=True) if a.numel()]
    if not pairs:
        raise TaskError("refining: the model's output has no float tensor; give the task a distance()")
    terms = [divergence(a, b) if a.ndim == 2 and a.shape[1] > 1 else relative_error(a, b) for a, b in pairs]
    return torch.stack(terms).mean()


def relative_error(original: Tensor, restored: Tensor) -> Tensor:
    """Mean squared error in units of the original's variance."""
    original, restored = original.float(), restored.float()
    scale = original.var(correction=0) + 1e-3 * original.square().mean() + 1e-12
    return (restored - original).square().mean() / scale


def float_tensors(output: Any) -> list[Tensor]:
    """The float tensors of an output of whatever structure, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in float_tensors(part)]
    return []
