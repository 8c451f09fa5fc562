"""A part of one tensor of an archive, asked for as `safetensors.safe_open(...).get_slice(name)` is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from wcompress.checkpoint import dtype_from_name
from wcompress.checkpoint.stream import CODES

Restore = Callable[[int, int | None], tuple[torch.Tensor, int]]


class TensorSlice:
    """A tensor of an archive that is restored when it is indexed.

    Of a large tensor, which is coded in slabs of its rows, a number or a slice as the first index decodes only the
    slabs it needs. Otherwise the whole tensor is decoded each time; index once for what you need.

    Args:
        dtype: torch's name without `torch.`.
        shape: of the tensor.
        restore: decodes the tensor, or at least the rows from the first number up to the second, fresh each time; gives
            what was decoded, and the number of its first row.

    Example:
        >>> archive.get_slice("embedding.weight")[:1000]  # doctest: +SKIP
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], restore: Restore) -> None:
        self._dtype, self._shape, self._restore = dtype, shape, restore

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in memory."""
        return math.prod(self._shape) * dtype_from_name(self._dtype).itemsize

    def restored_by(self, restore: Restore) -> TensorSlice:
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
        first, *others = index if isinstance(index, tuple) and index else (index,)
        rows = self._rows(first)
        tensor, start = self._restore(*rows)
        if rows != (0, None):
            assert rows[1] is not None
            first = first - start if isinstance(first, int) else slice(rows[0] - start, rows[1] - start, first.step)
            index = (first, *others)
        part = tensor[index]
        if part.numel() < tensor.numel() or not part.is_contiguous():
            part = part.clone(memory_format=torch.contiguous_format)
        return part

    def _rows(self, index: Any) -> tuple[int, int | None]:
        # From which row to which an index asks; all for indices that are no number and no slice, or out of range.
        n = self._shape[0] if self._shape else 0
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < n:
            return index, index + 1
        if isinstance(index, slice) and (index.step is None or index.step > 0):
            start, stop, _ = index.indices(n)
            if start < stop:
                return start, stop
        return 0, None
