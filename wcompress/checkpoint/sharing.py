"""Which tensors share a part of their memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from wcompress.checkpoint.tensors import memory_key

_MAX_WORK = 10_000


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Returns pairs of later and earlier names whose tensors have elements in common in memory.

    Args:
        tensors: Strided tensors, none of them tied to another. A tensor is reported with one other at most.
    """
    by_memory: dict[object, list[tuple[int, int, str]]] = {}
    order = {name: index for index, name in enumerate(tensors)}
    for name, tensor in tensors.items():
        if memory_key(tensor) is None or tensor.device.type != "cpu":
            continue
        span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        storage = tensor.untyped_storage().data_ptr()
        by_memory.setdefault(storage, []).append((start, start + span * tensor.element_size(), name))
    pairs: list[tuple[str, str]] = []
    for spans in by_memory.values():
        farthest: tuple[int, str] | None = None
        for start, end, name in sorted(spans):
            if farthest is not None and start < farthest[0] and _share(tensors[name], tensors[farthest[1]]):
                pairs.append(tuple(sorted((name, farthest[1]), key=order.__getitem__, reverse=True)))  # type: ignore[arg-type]
            if farthest is None or end > farthest[0]:
                farthest = (end, name)
    return sorted(pairs, key=lambda pair: order[pair[0]])


def _share(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tells whether two tensors over one storage have an element in common; where that is hard to tell, says yes."""
    try:
        return np.shares_memory(_addresses(one), _addresses(other), max_work=_MAX_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _addresses(tensor: torch.Tensor) -> npt.NDArray[np.void]:
    """A NumPy array of elements at the same places, of no particular type."""
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    n_bytes = tensor.element_size()
    return np.ndarray(
        tuple(tensor.shape),
        dtype=f"V{n_bytes}",
        buffer=storage.numpy(),
        offset=tensor.storage_offset() * n_bytes,
        strides=tuple(step * n_bytes for step in tensor.stride()),
    )
