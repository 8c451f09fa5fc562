"""Inputs varied at random, so that a network is compared on more than the inputs that are there.

No labels are needed: whatever an input becomes, the original model's output on it is what is wanted. Images are
deformed, as in Simard, Steinkraus and Platt, Best practices for convolutional neural networks, 2003; other numbers are
mixed, as in Zhang et al., arXiv 1710.09412.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from wcompress.tasks.protocol import Batch

_IMAGE_SIDE = 16
_TURN = math.radians(10)
_STRETCH, _SHEAR = 0.1, 0.1
_SHIFT = 1 / 28
"""Of a side."""
_ELASTIC, _ELASTIC_POINTS = 0.8 / 28, 5
"""How far points of a coarse grid are moved, root mean square, of a side; and their number along each."""
_MIXED_SHARE = 0.5


def are_images(batch: Batch) -> bool:
    """Whether a batch is float `[n, side, side]` or `[n, 1 to 4 channels, height, width]`, 16 or more each way."""
    if not isinstance(batch, Tensor) or not batch.is_floating_point():
        return False
    square = batch.ndim == 3 and batch.shape[1] == batch.shape[2]
    picture = batch.ndim == 4 and batch.shape[1] <= 4
    return (square or picture) and min(batch.shape[-2:]) >= _IMAGE_SIDE


def varied(batch: Batch, generator: torch.Generator, max_shift: int = 1, *, few: bool = False) -> Batch:
    """Changes images a little, or more where there are few; what must not be changed stays as it is.

    Images, see `are_images`, are moved or deformed. Other float tensors `[n, …]` are changed only where inputs are few.
    Integers, and batches of several tensors, never are.

    Args:
        batch: inputs.
        generator: of what is drawn.
        max_shift: pixels that images are moved by at most, where inputs are not few.
        few: deform images, and mix other numbers.

    Returns:
        A new batch, or the same object where nothing was changed.
    """
    if not isinstance(batch, Tensor) or not batch.is_floating_point():
        return batch
    if are_images(batch):
        if few:
            return deform_images(batch, generator)
        return shift_images(batch, max_shift, generator) if max_shift else batch
    return mix(batch, generator) if few and batch.ndim > 1 else batch


def shift_images(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Moves each image `[n, …, height, width]` by whole pixels, `most` at most each way; zeros come in."""
    n, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    padded = functional.pad(images, (most, most, most, most))
    down = torch.randint(0, 2 * most + 1, (n, 1), generator=generator)
    right = torch.randint(0, 2 * most + 1, (n, 1), generator=generator)
    rows = (down + torch.arange(height)).to(images.device)
    columns = (right + torch.arange(width)).to(images.device)
    flat = padded.reshape(n, -1, height + 2 * most, width + 2 * most)
    each = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(flat.shape[1], device=images.device)[None, :, None, None]
    return flat[each, channel, rows[:, None, :, None], columns[:, None, None, :]].reshape(images.shape)


def deform_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns, stretches, shears, moves and bends each image its own way.

    By at most 10°, a tenth, a tenth and a 28th of a side; and smoothly by a 35th of a side, root mean square. What
    comes in from outside is as the border.

    Args:
        images: float `[n, height, width]` or `[n, channels, height, width]`.
        generator: on the CPU, of what is drawn.

    Returns:
        New images, alike in shape and type.
    """
    n, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    turn, across, down, shear, right, below = 2 * torch.rand(6, n, generator=generator) - 1
    cos, sin = (_TURN * turn).cos(), (_TURN * turn).sin()
    across, down = 1 + _STRETCH * across, 1 + _STRETCH * down
    # Coordinates run from -1 to 1, so a side is 2.
    rows = [cos * across, _SHEAR * shear - sin * down, 2 * _SHIFT * right, sin * across, cos * down, 2 * _SHIFT * below]
    flat = images.reshape(n, -1, height, width).float()
    grid = functional.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(flat.shape), align_corners=False)
    coarse = 2 * _ELASTIC * torch.randn(n, 2, _ELASTIC_POINTS, _ELASTIC_POINTS, generator=generator)
    bent = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    grid = (grid + bent.permute(0, 2, 3, 1)).to(images.device)
    found = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return found.reshape(images.shape).to(images.dtype)


def mix(values: Tensor, generator: torch.Generator) -> Tensor:
    """Puts a weighted mean of two inputs in place of every other one.

    Args:
        values: float `[n, …]`.
        generator: on the CPU, of what is drawn.

    Returns:
        A new tensor, alike in shape and type.
    """
    n = len(values)
    n_mixed = int(_MIXED_SHARE * n)
    others = values[torch.randperm(n, generator=generator)[:n_mixed].to(values.device)]
    share = torch.rand(n_mixed, generator=generator).to(values).view(-1, *[1] * (values.ndim - 1))
    return torch.cat([torch.lerp(others, values[:n_mixed], share), values[n_mixed:]])
