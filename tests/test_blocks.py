"""Blocks: an exact inverse, and the paper's counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcompress.blocks import BlockLayout, from_blocks, to_blocks
from wcompress.errors import OptionError

shapes = st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), max_size=6)


@given(shapes=shapes, block_size=st.integers(1, 50), seed=st.integers(0, 1000))
def test_from_blocks_undoes_to_blocks(shapes: list[tuple[int, ...]], block_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = {f"t{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    blocks, layout = to_blocks(tensors, block_size)
    assert blocks.shape == (layout.n_blocks, block_size)
    assert 0 <= layout.padding < block_size
    assert layout.n_params + layout.padding == blocks.size
    if layout.padding:
        assert not blocks.reshape(-1)[-layout.padding :].any()
    restored = from_blocks(blocks, layout)
    assert list(restored) == list(tensors)
    for name, tensor in tensors.items():
        assert restored[name].shape == tensor.shape
        assert np.array_equal(restored[name], tensor)


@given(shapes=shapes.filter(bool), block_size=st.integers(1, 50), data=st.data())
def test_one_tensor_needs_only_its_own_blocks(
    shapes: list[tuple[int, ...]], block_size: int, data: st.DataObject
) -> None:
    tensors = {f"t{i}": np.full(shape, float(i)) for i, shape in enumerate(shapes)}
    blocks, layout = to_blocks(tensors, block_size)
    name = data.draw(st.sampled_from(list(tensors)))
    start, end = layout.span(name)
    first, last = start // block_size, -(-end // block_size)
    restored = from_blocks(blocks[first:last], layout, [name], first)
    assert list(restored) == [name]
    assert np.array_equal(restored[name], tensors[name])


@pytest.mark.parametrize(("n_params", "n_blocks"), [(185_300, 91), (122_270, 60), (54_538, 27), (214_282, 105)])
def test_the_papers_block_counts(n_params: int, n_blocks: int) -> None:
    layout = BlockLayout(("w",), ((n_params,),))
    assert layout.n_blocks == n_blocks
    assert layout.padding == n_blocks * 2048 - n_params


def test_order_is_kept() -> None:
    blocks, _ = to_blocks({"b": np.array([1.0, 2.0]), "a": np.array([[3.0], [4.0]])}, 3)
    assert blocks.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]


def test_block_size_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="block size 0"):
        to_blocks({}, 0)
