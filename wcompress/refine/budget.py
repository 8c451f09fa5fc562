"""How much a refinement may do: training steps, by effort and by what a step costs.

Cost is counted in multiply-adds, from the shapes that a batch has on its way through the network, and never in
seconds: the same model and inputs get the same number of steps on every machine, at any load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wcompress.refine.inputs import call, tensors_of
from wcompress.tasks.protocol import Batch

_MOST_STEPS = {1: 300, 2: 1000, 3: 3000, 4: 10000, 5: 45000, 6: 90000, 7: 150000, 8: 240000, 9: 480000}
_LEAST_SHARE = 40
"""However dear a step is, there are at least the most steps divided by this."""
_WORK = {1: 1e12, 2: 2.5e12, 3: 7.5e12, 4: 14e12, 5: 30e12, 6: 60e12, 7: 120e12, 8: 240e12, 9: 480e12}
"""Multiply-adds. The 30e12 of effort 5 take about four minutes on one core of a server of 2020."""
_PASSES = 4
"""The original's, the refined model's, and its gradients with respect to activations and to weights."""
_OF_ACTIVATION, _OF_WEIGHT, _OF_TIME_STEP = 440, 2750, 12.5e6
"""What each takes beside multiply-adds, in multiply-adds; chosen so that the four baselines' steps are predicted."""


def n_steps(effort: int, cost: float) -> int:
    """Training steps of a refinement.

    Args:
        effort: 1 to 9.
        cost: of a step, see `step_cost`.
    """
    most = _MOST_STEPS[effort]
    return int(min(most, max(most // _LEAST_SHARE, _WORK[effort] / max(cost, 1.0))))


@torch.no_grad()
def step_cost(model: nn.Module, batch: Batch, n_weights: int) -> float:
    """About what a training step takes, in multiply-adds.

    Args:
        model: run once on the batch.
        batch: of the size that steps are made with.
        n_weights: that are refined.
    """
    found = [0.0]

    def seen(module: nn.Module, _inputs: Any, output: Any) -> None:
        found[0] += _cost_of(module, output)

    own = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(seen) for module in own]
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] + _OF_WEIGHT * n_weights


def _cost_of(module: nn.Module, output: Any) -> float:
    output = next((t for t in tensors_of(output) if isinstance(t, Tensor)), None) if output is not None else None
    if output is None or output.ndim == 0:
        return 0.0
    largest = max(module.parameters(recurse=False), key=lambda p: p.ndim)
    n_uses = 1.0  # of each parameter
    if largest.ndim > 1 and not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        features = output.shape[1 if isinstance(module, nn.modules.conv._ConvNd) and output.ndim > 2 else -1]
        n_uses = output.numel() / max(1, features)
        multiplied = n_uses * sum(p.numel() for p in module.parameters(recurse=False))
    else:
        multiplied = float(output.numel())
    cost: float = _PASSES * (multiplied + _OF_ACTIVATION * output.numel())
    if isinstance(module, nn.RNNBase) and output.ndim == 3:
        n_times = output.shape[1 if module.batch_first else 0]
        cost += _OF_TIME_STEP * n_times * module.num_layers * (2 if module.bidirectional else 1)
    return cost
