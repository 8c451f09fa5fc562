"""A model in miniature: samples of its tensors, by which one tells what all of it would take without reading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.quantiser.step_scales import RUN
from wcompress.codec.rate_control.sampling import SAMPLE_SIZE, strips

LEAST = 1 << 16
"""Elements of a tensor that are always kept: how a tensor is treated depends on its size no further."""


def miniature(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, int]]:
    """Some rows of each large tensor of a model, or some columns where its rows are few and long.

    Args:
        checkpoint: the model.

    Returns:
        The model with samples for tensors, ties and small tensors as they are; and the elements of each tensor that
        is not there as a whole.
    """
    n_elements = sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if name not in checkpoint.ties)
    tensors: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        if name in checkpoint.ties:
            tensors[name] = tensors[checkpoint.ties[name]]
            continue
        # A third more, since strips of rows are not cut.
        wanted = max(4 * LEAST // 3, 2 * SAMPLE_SIZE * tensor.numel() // max(1, n_elements))
        tensors[name] = _sample(tensor, wanted)
        if tensors[name] is not tensor:
            sizes[name] = tensor.numel()
            checkpoint.release(name)
    return replace(checkpoint, tensors=tensors), sizes


def _sample(tensor: torch.Tensor, n_wanted: int) -> torch.Tensor:
    """About so many elements of a tensor: neighbours in memory, so that little of a file is read."""
    if tensor.numel() <= 2 * n_wanted or tensor.dtype == torch.complex32:  # of which torch warns
        return tensor
    per_row = tensor.numel() // tensor.shape[0]
    # Of a vector whole runs, which have a scale of their own.
    shape = tuple(tensor.shape) if tensor.ndim == 1 else (tensor.shape[0], 1)
    if tensor.ndim > 1 and per_row > n_wanted:
        shape = (1, tensor.shape[1])
    n_indices = max(shape)
    n_chosen = -(-n_wanted * n_indices // tensor.numel())
    axis, chosen = strips(shape, min(1.0, n_chosen / n_indices))
    return tensor.index_select(axis, torch.from_numpy(chosen)).contiguous()


def middle_rows(tensor: torch.Tensor, n_most: int) -> torch.Tensor:
    """Rows in the middle of a tensor, of no more elements than that; of a long row, or of a vector, a part."""
    if tensor.numel() <= n_most:
        return tensor
    per_row = tensor.numel() // tensor.shape[0]
    if per_row > n_most:
        return tensor[tensor.shape[0] // 2].reshape(-1)[:n_most].reshape(1, -1)
    n_rows = n_most // per_row
    first = (tensor.shape[0] - n_rows) // 2
    return tensor[first : first + n_rows]


def scaled_bytes(measure: Callable[[torch.Tensor], int], tensor: torch.Tensor, size: int) -> int:
    """What a tensor of which there is a sample would take, told from the sample and from half of it.

    Args:
        measure: bytes that a tensor takes.
        tensor: the sample, of one dimension or more.
        size: elements of the whole.
    """
    whole = measure(tensor)
    if size <= tensor.numel():
        return whole
    axis = 0 if tensor.shape[0] > 1 else 1
    n_half = tensor.shape[axis] // 2
    if tensor.ndim == 1:
        n_half = max(RUN, n_half // RUN * RUN)
    if axis == tensor.ndim or not 0 < n_half < tensor.shape[axis]:
        return round(whole * size / tensor.numel())
    half = tensor.narrow(axis, 0, n_half).contiguous()
    slope = max(0.0, (whole - measure(half)) / (tensor.numel() - half.numel()))
    return round(whole + slope * (size - tensor.numel()))
