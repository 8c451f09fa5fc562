"""Adam with a cosine schedule, for the small networks that packing trains.

torch.optim would do, but its first step imports torch's compiler, which takes longer than most of these trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Adam:
    """Descends the gradients of its parameters.

    Args:
        parameters: leaves that require gradients.
        learning_rate: at the start.
        steps: after which it has fallen to nothing, as a cosine.

    Source: Kingma and Ba, arXiv 1412.6980, with its default constants.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], learning_rate: float, steps: int) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._steps = steps
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._done = 0

    def step(self, loss: torch.Tensor) -> None:
        """One step down the loss."""
        gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        rate = 0.5 * self._learning_rate * (1 + math.cos(math.pi * self._done / self._steps))
        self._done += 1
        correction = math.sqrt(1 - 0.999**self._done) / (1 - 0.9**self._done)
        with torch.no_grad():
            for parameter, gradient, first, second in zip(
                self._parameters, gradients, self._first, self._second, strict=True
            ):
                if gradient is None:
                    continue
                first.lerp_(gradient, 0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                parameter.addcdiv_(first, second.sqrt().add_(1e-8), value=-rate * correction)
