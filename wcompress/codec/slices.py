"""A part of one tensor of an archive, asked for as `safetensors.safe_open(...).get_slice(name)` is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from wcompress.checkpoint import dtype_from_name
from wcompress.checkpoint.stream import CODES


class TensorSlice:
    """A tensor of an archive that is restored when it is indexed.

    Today every indexing decodes the whole tensor and keeps the part that was asked for; index once for what you need.

    Args:
        dtype: torch's name without `torch.`.
        shape: of the tensor.
        restore: decodes the tensor, fresh each time.

    Example:
        >>> archive.get_slice("embedding.weight")[:1000]  # doctest: +SKIP
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], restore: Callable[[], torch.Tensor]) -> None:
        self._dtype, self._shape, self._restore = dtype, shape, restore

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in memory."""
        return math.prod(self._shape) * dtype_from_name(self._dtype).itemsize

    def restored_by(self, restore: Callable[[], torch.Tensor]) -> TensorSlice:
        """The same, decoded by another."""
        return TensorSlice(self._dtype, self._shape, restore)

    def get_shape(self) -> list[int]:
        """The tensor's sizes; nothing is decoded."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """The dtype as safetensors names it, such as `F32` or `BF16`; torch's name where it has none."""
        return CODES.get(self._dtype, self._dtype)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Decode, and take what a `torch.Tensor` gives for the same index; the result is contiguous and has its own
        memory.

        Raises:
            IndexError: the tensor has no such element.
            ArchiveError: the archive is damaged.
        """
        tensor = self._restore()
        part = tensor[index]
        if part.numel() < tensor.numel() or not part.is_contiguous():
            part = part.clone(memory_format=torch.contiguous_format)
        return part
