"""Tensors ↔ zero-padded blocks, an exact inverse.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", section 4.1: all parameters in
one sequence, cut into pieces of 2048, the last one filled with zeros and the padding's length recorded.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.errors import OptionError

BLOCK_SIZE = 2048
"""The paper's block length, in parameters."""


@dataclass(frozen=True)
class BlockLayout:
    """Where each tensor lies in the blocks.

    Attributes:
        names: tensor names, in the order in which they are laid out.
        shapes: their shapes, in the same order.
        block_size: parameters in a block.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    block_size: int = BLOCK_SIZE

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise OptionError(f"block size {self.block_size}: must be at least 1")

    @functools.cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        ends = itertools.accumulate(self.lengths, initial=0)
        return dict(zip(self.names, itertools.pairwise(ends), strict=True))

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Parameters in each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def n_params(self) -> int:
        """Parameters in all tensors, padding not counted."""
        return sum(self.lengths)

    @property
    def n_blocks(self) -> int:
        """Blocks needed, the padded one included; 0 when there is no parameter."""
        return -(-self.n_params // self.block_size)

    @property
    def padding(self) -> int:
        """Zeros at the end of the last block, 0 ≤ padding < block_size."""
        return self.n_blocks * self.block_size - self.n_params

    def span(self, name: str) -> tuple[int, int]:
        """First and one-past-last position of a tensor in the flat sequence."""
        return self._spans[name]


def to_blocks(
    tensors: Mapping[str, npt.NDArray[np.floating]], block_size: int = BLOCK_SIZE
) -> tuple[npt.NDArray[np.float64], BlockLayout]:
    """Flatten tensors in order, cut the sequence into blocks and fill the last one with zeros.

    Args:
        tensors: name → float array of any shape, 0-d and empty ones included.
        block_size: parameters in a block.

    Returns:
        blocks: float64 `[n_blocks, block_size]`.
        layout: what `from_blocks` needs to undo it.

    Raises:
        OptionError: `block_size` is below 1.
    """
    layout = BlockLayout(names=tuple(tensors), shapes=tuple(t.shape for t in tensors.values()), block_size=block_size)
    blocks = np.zeros(layout.n_blocks * block_size, dtype=np.float64)
    start = 0
    for tensor, length in zip(tensors.values(), layout.lengths, strict=True):
        blocks[start : start + length] = tensor.reshape(-1)
        start += length
    return blocks.reshape(layout.n_blocks, block_size), layout


def from_blocks(
    blocks: npt.NDArray[np.float64],
    layout: BlockLayout,
    names: Sequence[str] | None = None,
    first_block: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """Undo `to_blocks`, for all tensors or for those named.

    Args:
        blocks: float64 `[n, block_size]`, the layout's blocks from `first_block` on, enough to hold the tensors asked
            for.
        layout: as `to_blocks` gave it.
        names: the tensors wanted; all of them when None.
        first_block: index of the first block given.

    Returns:
        Name → float64 array of the tensor's shape, in layout order.
    """
    flat = blocks.reshape(-1)
    offset = first_block * layout.block_size
    wanted = set(layout.names if names is None else names)
    tensors: dict[str, npt.NDArray[np.float64]] = {}
    start = 0
    for name, shape, length in zip(layout.names, layout.shapes, layout.lengths, strict=True):
        if name in wanted:
            tensors[name] = flat[start - offset : start - offset + length].reshape(shape)
        start += length
    return tensors
