"""Coded tensors ↔ one sequence of weights: layout of each tensor, blocks, sub-blocks, units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

UNIT_BLOCKS = 32
"""Under class tables: also what is coded by itself. Part of the format."""

_LAYOUT_SAMPLE = 1 << 18  # weights

LAYOUTS = ("rows", "columns", "positions")
"""Literal, append-only: dimensions as they are; the first two exchanged; all but the first two in front."""


def permutation(layout: str, n_dims: int) -> tuple[int, ...]:
    """The order of dimensions in which a tensor of two or more dimensions is flattened."""
    if layout == "columns":
        return (1, 0, *range(2, n_dims))
    if layout == "positions":
        return (*range(2, n_dims), 0, 1)
    return tuple(range(n_dims))


@dataclass(frozen=True)
class Sequencing:
    """How tensors lie in the sequence.

    Attributes:
        shapes: of the tensors, in order.
        layouts: of each, one of `LAYOUTS`.
        block_size: weights in a block.
        latent_dim: sub-blocks in a block; divides `block_size`.
        unit_blocks: blocks between two starts of the trellis.
    """

    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[str, ...]
    block_size: int
    latent_dim: int
    unit_blocks: int = UNIT_BLOCKS

    @property
    def sub_size(self) -> int:
        """Weights in a sub-block."""
        return self.block_size // self.latent_dim

    @property
    def sub_shift(self) -> int:
        """log₂ of it."""
        return self.sub_size.bit_length() - 1

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each tensor begins, and where the last ends: `[n_tensors + 1]`."""
        return np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])

    @property
    def n_weights(self) -> int:
        """Weights in all tensors."""
        return int(self.starts[-1])

    @property
    def n_blocks(self) -> int:
        """Blocks, the last perhaps not full."""
        return -(-self.n_weights // self.block_size)

    @cached_property
    def unit_starts(self) -> npt.NDArray[np.int64]:
        """Where each coded unit begins, and where the last ends."""
        size = self.unit_blocks * self.block_size
        return np.append(np.arange(0, self.n_weights, size), self.n_weights).astype(np.int64)

    @cached_property
    def columns(self) -> npt.NDArray[np.int64]:
        """The length of a row of each tensor as it is flattened: all dimensions but the first, or the last alone.

        A tensor of one dimension is one row.
        """
        found = []
        for shape, layout in zip(self.shapes, self.layouts, strict=True):
            order = permutation(layout, len(shape))
            row = order[-1:] if layout == "positions" or len(shape) < 2 else order[1:]
            found.append(max(1, math.prod(shape[axis] for axis in row)))
        return np.array(found, np.int64)

    @cached_property
    def tensor_of_sub(self) -> npt.NDArray[np.intp]:
        """The tensor in which each sub-block begins: `[n_sub_blocks]`."""
        first = np.arange(0, self.n_weights, self.sub_size)
        return np.searchsorted(self.starts, first, side="right") - 1

    def flatten(
        self, arrays: Iterable[npt.NDArray[np.floating]], dtype: type[np.floating] = np.float64
    ) -> npt.NDArray[np.floating]:
        """Tensors of any float dtype → weights of `dtype`, `[n_weights]`."""
        out = np.empty(self.n_weights, dtype)
        for index, array in enumerate(arrays):
            ordered = array.transpose(permutation(self.layouts[index], array.ndim))
            out[self.starts[index] : self.starts[index + 1]].reshape(ordered.shape)[...] = ordered
        return out

    def index_along(self, index: int, axis: int, low: int, high: int) -> npt.NDArray[np.int64]:
        """The index along a dimension of tensor `index` that its weights from `low` to `high` have."""
        shape = self.shapes[index]
        order = permutation(self.layouts[index], len(shape))
        inner = math.prod(shape[other] for other in order[order.index(axis) + 1 :])
        return np.arange(low, high) // inner % shape[axis]

    def places(self, index: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the weights at these positions of tensor `index`, as it lies here, are in the tensor itself, int64."""
        shape, order = self.shapes[index], permutation(self.layouts[index], len(self.shapes[index]))
        if not shape:
            return positions
        along = np.unravel_index(positions, [shape[axis] for axis in order])
        return np.ravel_multi_index([along[order.index(axis)] for axis in range(len(shape))], shape)

    def unflatten(self, index: int, weights: torch.Tensor) -> torch.Tensor:
        """The weights of tensor `index`, of any dtype → the tensor, contiguous."""
        shape, order = self.shapes[index], permutation(self.layouts[index], len(self.shapes[index]))
        moved = weights.reshape([shape[axis] for axis in order])
        return moved.permute([order.index(axis) for axis in range(len(order))]).contiguous()


def choose_layout(array: npt.NDArray[np.floating], sub_size: int) -> str:
    """The layout under which sub-blocks' scales differ most, which is what a scale prior can use.

    Under a scale s, coding a weight takes log₂ s bits more or less; so the mean of log₂ over sub-blocks of their mean
    magnitude is, but for a constant, the size in bits if every scale were known for nothing.
    """
    size = array.size
    n_sub = size // sub_size
    if n_sub < 4 or array.ndim < 2:
        return "rows"
    candidates = LAYOUTS if array.ndim > 2 and math.prod(array.shape[2:]) > 1 else LAYOUTS[:2]
    if size > _LAYOUT_SAMPLE:
        # Every so many of the rows and of the columns tell enough of a large tensor.
        stride = math.isqrt(size // _LAYOUT_SAMPLE)
        array = array[:: min(stride, max(1, array.shape[0] // 64)), :: min(stride, max(1, array.shape[1] // 64))]
        n_sub = array.size // sub_size
    floor = 1e-3 * float(np.abs(array).mean(dtype=np.float64)) + 1e-300

    def score(layout: str) -> float:
        flat = np.abs(array.transpose(permutation(layout, array.ndim)).reshape(-1)[: n_sub * sub_size])
        means = flat.reshape(n_sub, sub_size) @ np.full(sub_size, 1 / sub_size, flat.dtype)
        return float(np.log2(means.astype(np.float64) + floor).mean())

    # A little in favour of rows, so that noise alone turns nothing around.
    return min(candidates, key=lambda layout: score(layout) - (0.002 if layout == "rows" else 0.0))
