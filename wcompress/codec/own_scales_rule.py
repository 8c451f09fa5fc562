"""Which tensors get a scale of their own: those whose scale means nothing, because a norm follows.

A convolution followed by batch normalisation can be multiplied by anything without changing what the network computes;
then only the error relative to each output channel counts. The checkpoint shows it: the next tensor statistics after
the weight is a `running_var` of as many channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from wcompress.codec.own_scales import OwnScales


def own_scales(tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor]) -> OwnScales:
    """Exponents for the coded tensors of a model.

    Args:
        tensors: the whole model, in order.
        coded: those of it that go under the trellis, in order.

    Returns:
        All zero, one step for the whole model, where no tensor is followed by a norm; otherwise a scale for each row of
        those that are, and for each other tensor.
    """
    followed = _followed_by_norm(tensors)
    if not followed:
        return OwnScales(tuple((0,) for _ in coded))
    rows: list[tuple[int, ...]] = []
    for name, tensor in coded.items():
        per_row = (
            tensor.double().flatten(1).square().mean(1) if name in followed else tensor.double().square().mean()[None]
        )
        largest = float(per_row.max())
        # A dead row has no scale; let it not be finer than 2^-16 of the liveliest.
        rows.append(tuple(_exponent(max(float(v), 2.0**-32 * largest)) for v in per_row))
    return OwnScales(tuple(rows))


def _exponent(mean_square: float) -> int:
    return round(4 * 0.5 * math.log2(mean_square)) if mean_square > 0 else 0


def _followed_by_norm(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    followed: set[str] = set()
    last: str | None = None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim >= 2:
            last = name
        elif name.endswith("running_var") and last is not None and tensors[last].shape[0] == tensor.numel():
            followed.add(last)
    return followed
