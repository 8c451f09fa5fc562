"""What a squared error of each output of a layer costs, in the error of what the network computes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Squares:
    """Sums of squared gradients of one parameter.

    Attributes:
        shape: of the parameter.
        rows: of each index of its first dimension, float64 `[n_rows]`.
        columns: of all others, float64 `[n_others]`; None where nobody asked.
    """

    shape: tuple[int, ...]
    rows: Tensor
    columns: Tensor | None

    @classmethod
    def of(cls, gradient: Tensor, *, with_columns: bool) -> Squares:
        """Those of one gradient."""
        shape = tuple(gradient.shape) or (1,)
        flat = gradient.detach().reshape(shape[0], math.prod(shape[1:]))
        # In units of the largest, so that no square is beyond float32.
        unit = float(flat.abs().max()) if flat.numel() else 0.0
        squares = (flat / unit if 0 < unit < math.inf else flat).square()
        scale = unit**2 if 0 < unit < math.inf else 1.0
        columns = scale * squares.sum(0, dtype=torch.float64) if with_columns else None
        return cls(tuple(gradient.shape), scale * squares.sum(1, dtype=torch.float64), columns)

    def plus(self, other: Squares) -> Squares:
        """Both added up."""
        columns = None if self.columns is None or other.columns is None else self.columns + other.columns
        return Squares(self.shape, self.rows + other.rows, columns)

    def over(self, n: int) -> Squares:
        """Divided by a number."""
        return Squares(self.shape, self.rows / n, None if self.columns is None else self.columns / n)

    @property
    def mean(self) -> float:
        """Of all elements; 0 where there is none."""
        return float(self.rows.sum()) / max(1, math.prod(self.shape))


def squared_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    as_classes: bool,
    n_draws: int,
    seed: int,
    by_column: Collection[str] = (),
) -> dict[str, Squares]:
    """The diagonal of the Gauss–Newton matrix of the outputs' error, summed by rows, by name of a parameter.

    Of each input the output is multiplied by random numbers, whose gradients' squares are on average what a squared
    error of a weight adds: to the divergence of class scores where the numbers are those of drawn classes, else to the
    squared error.

    Args:
        model: in eval mode.
        batches: of inputs.
        as_classes: whether a float output `[n, n_classes]` holds scores of classes.
        n_draws: of random numbers for each input.
        seed: of the draws.
        by_column: parameters whose squares are summed by columns as well.

    Returns:
        Means over inputs, of those parameters that have a gradient.

    Source: the Hutchinson estimator; Martens, "New insights and perspectives on the natural gradient method", 2020.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    before = {name: p.requires_grad for name, p in parameters.items()}
    found: dict[str, Squares] = {}
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
                        squares = Squares.of(dense, with_columns=name in by_column)
                        found[name] = found[name].plus(squares) if name in found else squares
                n_inputs += len(tensors_of(batch)[0])
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    return {name: total.over(max(1, n_inputs)) for name, total in found.items()}


def sensitivities(
    tensors: Mapping[str, Tensor], moments: Mapping[str, Moments], gradients: Mapping[str, Squares]
) -> dict[str, Sensitivity]:
    """What errors of each tensor cost.

    Args:
        tensors: the float tensors of a checkpoint, by name.
        moments: of those that multiply inputs.
        gradients: their squares, see `squared_gradients`.
    """
    means = {name: squares.mean for name, squares in gradients.items()}
    known = [mean for mean in means.values() if 0 < mean < math.inf]
    found = {}
    for name, tensor in tensors.items():
        gradient = gradients.get(name)
        if gradient is None or gradient.shape != tuple(tensor.shape) or not 0 < means.get(name, 0.0) < math.inf:
            # Of what no output depends on, an error costs as little as of anything.
            found[name] = Sensitivity(np.full(1, min(known, default=1.0)), None)
            continue
        of_it = moments.get(name)
        inputs, transposed = (None, False) if of_it is None else (of_it.mean, of_it.transposed)
        fits = inputs is not None and bool(inputs.any()) and _fits(tensor, inputs, transposed)
        if inputs is None or not fits or (transposed and gradient.columns is None):
            found[name] = Sensitivity(np.full(1, gradient.mean), None)
        elif gradient.columns is not None and transposed:
            outputs = gradient.columns / inputs.sum().clamp_min(1e-300)
            found[name] = Sensitivity(outputs.numpy(), inputs.numpy(), transposed=True)
        else:
            energies = inputs if inputs.ndim == 2 else inputs.diagonal(dim1=1, dim2=2)
            of_group = energies.sum(1).repeat_interleave(len(tensor) // len(energies))
            least = 1e-6 * float(of_group.mean())
            outputs = gradient.rows / of_group.clamp_min(max(least, 1e-300))
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
