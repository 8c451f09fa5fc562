"""What a refined model is compared by: distances between outputs, batches to compare on, inputs varied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Distance = Callable[[Any, Any], Tensor]


def divergence(original: Tensor, restored: Tensor) -> Tensor:
    """KL divergence of class scores `[n, n_classes]`, mean over the n, in nats."""
    target = functional.log_softmax(original.float(), dim=-1)
    return functional.kl_div(functional.log_softmax(restored.float(), dim=-1), target, log_target=True, reduction="batchmean")


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
