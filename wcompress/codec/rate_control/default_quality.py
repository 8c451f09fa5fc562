"""The quality that a model needs where none is asked for, from what its checkpoint tells.

Each layer adds its relative error to the output, so that ten times as many take 10 dB more. Where norms keep the
statistics of layers, errors count for more. Recurrent layers pass errors on from step to step; by how much they grow
depends on the weights, and is found by running the layers on noise (docs/decisions/0007, 0016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wcompress.codec.rate_control.floors import Quality
from wcompress.codec.rate_control.norm_inputs import followed_by_norm
from wcompress.fidelity import computable

RECURRENT = "weight_hh"
"""In a name, as torch has them."""

_SHALLOW, _SHALLOW_DB, _SMALLEST_LAYER = 6, 22.0, 64
_DEEPEST_DB, _NORM_DB = 12.0, 16.0
_RECURRENT_DB, _MOST_RECURRENT_DB, _HARMLESS_DB = 8.0, 30.0, 3.0
"""At least and at most for recurrent layers, and growth of errors that is not made up for."""
_CELLS: dict[int, Any] = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}
"""By rows of a recurrent matrix for each of its columns."""
_SEQUENCES, _STEPS, _PROBE_DB = 8, 96, -40.0
_MOST_WORK = 1 << 34
_DEAD = 1e-12


def default_quality(tensors: Mapping[str, Tensor]) -> Quality:
    """The quality for a model.

    Args:
        tensors: the whole model, in order; some may be without memory.
    """
    n_layers = sum(t.is_floating_point() and t.ndim > 1 and t.numel() >= _SMALLEST_LAYER for t in tensors.values())
    deeper = 10 * math.log10(max(1.0, n_layers / _SHALLOW))
    reason = f"{n_layers} layer{'' if n_layers == 1 else 's'}"
    if followed_by_norm(tensors):
        return Quality(_SHALLOW_DB + deeper + _NORM_DB, f"{reason}, with batch normalisation")
    sqnr_db = _SHALLOW_DB + min(deeper, _DEEPEST_DB)
    if not any(RECURRENT in name for name in tensors):
        return Quality(sqnr_db, reason)
    growth = error_growth_db(tensors)
    more = min(max(_RECURRENT_DB, growth - _HARMLESS_DB), _MOST_RECURRENT_DB)
    told = f", in which errors grow by {growth:.0f} dB" if more > _RECURRENT_DB else ""
    return Quality(sqnr_db + more, f"{reason}, with recurrent ones{told}")


def default_sqnr_db(tensors: Mapping[str, Tensor]) -> float:
    """The quality of `default_quality`, dB."""
    return default_quality(tensors).sqnr_db


def error_growth_db(tensors: Mapping[str, Tensor]) -> float:
    """How much larger relative errors of recurrent layers' outputs are than those of their weights, whole dB.

    Layers named as those of `torch.nn.RNN`, `GRU` and `LSTM` are run on normal noise, once as they are and once with a
    little noise in their weights. It is the most of all stacks of layers; 0 where there are none that can be run.

    Args:
        tensors: the model.
    """
    found = (_growth_db(stack) for stack in _stacks(tensors))
    return float(round(max((db for db in found if math.isfinite(db)), default=0.0)))


_Layer = tuple[Tensor, ...]
"""Weights for inputs and states, and both biases where there are any."""


def _stacks(tensors: Mapping[str, Tensor]) -> Iterator[list[list[_Layer]]]:
    # Of each stack the layers, of each layer its directions.
    by_stack: dict[str, dict[str, list[_Layer]]] = {}
    for name, tensor in tensors.items():
        prefix, found, suffix = name.rpartition(RECURRENT)
        other = tensors.get(f"{prefix}weight_ih{suffix}")
        if not found or tensor.ndim != 2 or other is None or other.ndim != 2 or tensor.is_meta or other.is_meta:
            continue
        n_gates, rest = divmod(tensor.shape[0], max(1, tensor.shape[1]))
        if rest or n_gates not in _CELLS or other.shape[0] != tensor.shape[0]:
            continue
        biases = [tensors[key] for key in (f"{prefix}bias_ih{suffix}", f"{prefix}bias_hh{suffix}") if key in tensors]
        fitting = [bias.shape == tensor.shape[:1] and not bias.is_meta for bias in biases]
        biases = biases if fitting == [True, True] else []
        layer = tuple(computable(part).double() for part in (other, tensor, *biases))
        if all(bool(part.isfinite().all()) for part in layer):
            by_stack.setdefault(prefix, {}).setdefault(suffix.removesuffix("_reverse"), []).append(layer)
    for stack in by_stack.values():
        yield [stack[suffix] for suffix in sorted(stack, key=lambda suffix: (len(suffix), suffix))]


def _growth_db(stack: list[list[_Layer]]) -> float:
    generator = torch.Generator().manual_seed(0)
    work = 2 * _SEQUENCES * sum(part.numel() for layer in stack for way in layer for part in way)
    n_steps = max(8, min(_STEPS, _MOST_WORK // max(1, work)))
    first = torch.randn(_SEQUENCES, n_steps, stack[0][0][0].shape[1], generator=generator, dtype=torch.float64)
    outputs = []
    for level in (0.0, 10 ** (_PROBE_DB / 20)):
        x = first
        for directions in stack:
            if not x.numel() or any(x.shape[2] != way[0].shape[1] for way in directions):
                return 0.0
            ways = [_disturbed(way, level, generator) for way in directions]
            x = torch.cat([_run(way, x.flip(1) if n else x) for n, way in enumerate(ways)], 2)
        outputs.append(x[:, -(n_steps // 3) :])
    signal, noise = outputs[0] - outputs[0].mean(0), outputs[1] - outputs[0]
    whole, varying, error = (float(values.square().sum()) for values in (outputs[0], signal, noise))
    if not error or varying <= _DEAD * whole:
        return 0.0  # what follows no input passes nothing on
    return 10 * math.log10(error / varying) - _PROBE_DB


def _disturbed(layer: _Layer, level: float, generator: torch.Generator) -> _Layer:
    if not level:
        return layer
    return (*(_noisy(matrix, level, generator) for matrix in layer[:2]), *layer[2:])


def _noisy(matrix: Tensor, level: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    return matrix + level * matrix.square().mean().sqrt() * noise


def _run(layer: _Layer, x: Tensor) -> Tensor:
    n_gates = layer[1].shape[0] // layer[1].shape[1]
    cell = _CELLS[n_gates](x.shape[2], layer[1].shape[1], bias=len(layer) > 2, batch_first=True).double()
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    cell.load_state_dict(dict(zip(names, layer, strict=False)))
    with torch.no_grad():
        output: Tensor = cell(x)[0]
    return output
