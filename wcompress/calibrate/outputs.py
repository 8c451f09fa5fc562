"""What a squared error of each output of a layer costs, in the error of what the network computes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wcompress.calibrate.moments import Moments
from wcompress.codec.quantiser.sensitivity import Sensitivity
from wcompress.errors import TaskError
from wcompress.refine.distil import float_tensors
from wcompress.refine.inputs import call, tensors_of
from wcompress.tasks.protocol import Batch

_TEMPERATURE = 3.0
"""Of class scores. At 1 the few inputs of which a network is unsure make up nearly all of the mean, which takes many
more inputs to be known as well."""


def squared_gradients(
    model: nn.Module, batches: Iterable[Batch], *, as_classes: bool, n_draws: int, seed: int
) -> dict[str, Tensor]:
    """The diagonal of the Gauss–Newton matrix of the outputs' error, by name of a parameter.

    Of each input the output is multiplied by random numbers, whose gradients' squares are on average what a squared
    error of a weight adds: to the divergence of class scores where the numbers are those of drawn classes, else to the
    squared error.

    Args:
        model: in eval mode.
        batches: of inputs.
        as_classes: whether a float output `[n, n_classes]` holds scores of classes.
        n_draws: of random numbers for each input.
        seed: of the draws.

    Returns:
        float64, of each parameter's shape, means over inputs; of those that have a gradient.

    Source: the Hutchinson estimator; Martens, "New insights and perspectives on the natural gradient method", 2020.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    before = {name: p.requires_grad for name, p in parameters.items()}
    found: dict[str, Tensor] = {}
    n_inputs = 0
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for batch in batches:
            for _ in range(n_draws):
                outputs = [y for y in float_tensors(call(model, batch)) if y.requires_grad]
                if not outputs:
                    raise TaskError("calibration: the model's output does not depend on its weights")
                terms = [_drawn(y, generator, as_classes) for y in outputs if bool(y.isfinite().all())]
                if not terms:
                    continue
                gradients = torch.autograd.grad(torch.stack(terms).sum(), list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        dense = gradient.to_dense() if gradient.is_sparse else gradient
                        square = dense.detach().double().square()
                        found[name] = found[name] + square if name in found else square
                n_inputs += len(tensors_of(batch)[0])
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    return {name: total / max(1, n_inputs) for name, total in found.items()}


def sensitivities(
    tensors: Mapping[str, Tensor], moments: Mapping[str, Moments], gradients: Mapping[str, Tensor]
) -> dict[str, Sensitivity]:
    """What errors of each tensor cost.

    Args:
        tensors: the float tensors of a checkpoint, by name.
        moments: of those that multiply inputs.
        gradients: their squares, see `squared_gradients`.
    """
    means = {name: float(g.mean()) for name, g in gradients.items() if g.numel()}
    known = [mean for mean in means.values() if 0 < mean < math.inf]
    found = {}
    for name, tensor in tensors.items():
        gradient = gradients.get(name)
        if gradient is None or gradient.shape != tensor.shape or not 0 < means.get(name, 0.0) < math.inf:
            # Of what no output depends on, an error costs as little as of anything.
            found[name] = Sensitivity(np.full(1, min(known, default=1.0)), None)
            continue
        of_it = moments.get(name)
        inputs, transposed = (None, False) if of_it is None else (of_it.mean, of_it.transposed)
        if inputs is None or not bool(inputs.any()) or not _fits(tensor, inputs, transposed):
            found[name] = Sensitivity(gradient.reshape(-1).mean().reshape(1).numpy(), None)
        elif transposed:
            outputs = gradient.reshape(len(tensor), -1).sum(0) / inputs.sum().clamp_min(1e-300)
            found[name] = Sensitivity(outputs.numpy(), inputs.numpy(), transposed=True)
        else:
            energies = inputs if inputs.ndim == 2 else inputs.diagonal(dim1=1, dim2=2)
            of_group = energies.sum(1).repeat_interleave(len(tensor) // len(energies))
            least = 1e-6 * float(of_group.mean())
            outputs = gradient.reshape(len(tensor), -1).sum(1) / of_group.clamp_min(max(least, 1e-300))
            found[name] = Sensitivity(outputs.numpy(), inputs.numpy())
    return found


def _fits(tensor: Tensor, inputs: Tensor, transposed: bool) -> bool:
    if tensor.ndim < 2:
        return False
    if transposed:
        return inputs.shape[-1] == len(tensor)
    return len(tensor) > 0 and len(tensor) % len(inputs) == 0 and inputs.shape[-1] == tensor[0].numel()


def _drawn(output: Tensor, generator: torch.Generator, as_classes: bool) -> Tensor:
    if as_classes and output.ndim == 2 and output.shape[1] > 1:
        scores = output / _TEMPERATURE
        chosen = torch.multinomial(scores.detach().double().softmax(1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(scores, chosen, reduction="sum")
    signs = 2 * torch.randint(0, 2, output.shape, generator=generator) - 1
    return (output * signs.to(output.dtype)).sum()
