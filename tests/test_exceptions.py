"""Exceptions: NaN, infinities and outliers come back where they were, cheaply, and damage is an ArchiveError."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.test_lossless import damaged
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.exceptions import decode_exceptions, encode_exceptions, with_exceptions, without_exceptions
from wcompress.codec.storage.outliers import exceptional
from wcompress.errors import ArchiveError
from wcompress.fidelity import same_bits

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2fnuz]


def entry_of(tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry("t", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check_exact(tensor: torch.Tensor) -> tuple[int, int]:
    """Bytes, and how many exceptions."""
    positions = exceptional(tensor)
    cleaned = without_exceptions(tensor, positions)
    assert torch.isfinite(cleaned.float()).all()
    values = tensor.reshape(-1)[positions]
    data = encode_exceptions([(0, positions, values)])
    again, restored = decode_exceptions(data, [entry_of(tensor)])[0]
    assert np.array_equal(again, positions)
    assert same_bits(restored, values)
    assert same_bits(with_exceptions(cleaned, again, restored), tensor)
    return len(data), len(positions)


@pytest.mark.parametrize("dtype", FLOATS)
def test_single_nans_cost_a_few_bytes(dtype: torch.dtype) -> None:
    tensor = normal(300, 300).to(dtype)
    tensor[7, 9] = float("nan")
    size, n = check_exact(tensor)
    assert n == 1
    assert size < 24


def test_what_is_ordinary_is_left_alone() -> None:
    scales = torch.logspace(-6, 0, 40)
    some = (normal(30, 40), normal(40, 40) * scales, normal(40, 40) * scales[:, None], normal(40, 9, 3, 3))
    for tensor in (*some, torch.zeros(0), torch.zeros(5), torch.zeros(3, 0)):
        assert len(exceptional(tensor)) == 0


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e30])
def test_outliers_are_found_whatever_their_size(size: float) -> None:
    tensor = 0.02 * normal(200, 200)
    tensor[3, 4], tensor[100, 100] = size, -size
    positions = exceptional(tensor)
    assert positions.tolist() == [3 * 200 + 4, 100 * 200 + 100]
    assert without_exceptions(tensor, positions).abs().max() < 1
    assert tensor[3, 4] == size
    check_exact(tensor)


def test_many_equal_ones_cost_nothing() -> None:
    assert check_exact(torch.full((1000, 1000), float("nan")))[0] < 150
    mask = torch.full((500, 500), float("-inf")).triu(1)
    assert check_exact(mask)[0] < 150
    rows = normal(500, 500)
    rows[100:200] = float("nan")
    assert check_exact(rows)[0] < 64
    column = normal(500, 500)
    column[:, 3] = float("inf")
    assert check_exact(column)[0] < 64


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_random_places_cost_their_entropy(density: float) -> None:
    tensor = normal(500, 500)
    tensor[torch.rand(500, 500, generator=torch.Generator().manual_seed(1)) < density] = float("nan")
    entropy = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
    size, _ = check_exact(tensor)
    assert 8 * size < 1.1 * entropy * tensor.numel() + 500


@settings(max_examples=80, deadline=None)
@given(
    positions=st.sets(st.integers(0, 5000), min_size=1, max_size=300),
    run=st.tuples(st.integers(0, 4000), st.integers(0, 900)),
    seed=st.integers(0, 100),
    dtype=st.sampled_from(FLOATS),
)
def test_any_places_and_values_come_back(
    positions: set[int], run: tuple[int, int], seed: int, dtype: torch.dtype
) -> None:
    places = np.array(sorted(positions | set(range(run[0], sum(run)))), np.int64)
    raw = np.random.default_rng(seed).integers(0, 256, len(places) * dtype.itemsize, dtype=np.uint8)
    values = torch.from_numpy(raw).view(dtype)
    entries = [TensorEntry("other", "int64", (3,), "raw"), TensorEntry("t", str(dtype)[6:], (5001,))] * 2
    data = encode_exceptions([(1, places, values), (3, places, values)])
    for restored in (decode_exceptions(data, entries)[index] for index in (1, 3)):
        assert np.array_equal(restored[0], places)
        assert same_bits(restored[1], values)


def test_damage_is_an_archive_error_or_other_exceptions() -> None:
    source = random.Random(5)
    tensors = [normal(60, 60) for _ in range(4)]
    tensors[0][3, 4] = float("nan")
    tensors[1][10:30] = float("inf")
    tensors[2][normal(60, 60, seed=1) > 0] = float("nan")
    tensors[3][normal(60, 60, seed=2) > 2.5] *= 1e6
    n_refused = 0
    for tensor in tensors:
        positions = exceptional(tensor)
        data = encode_exceptions([(0, positions, tensor.reshape(-1)[positions])])
        for end in range(1, len(data)):
            with pytest.raises(ArchiveError):
                decode_exceptions(data[:end], [entry_of(tensor)])
        for _ in range(300):
            try:
                found = decode_exceptions(damaged(data, source), [entry_of(tensor)])
            except ArchiveError:
                n_refused += 1
                continue
            for places, values in found.values():
                assert len(places) == len(values)
                assert (np.diff(places) > 0).all()
                assert (places >= 0).all()
                assert (places < tensor.numel()).all()
    assert n_refused > 100


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), n=st.sampled_from([1, 100, 1 << 50]))
def test_garbage_is_an_archive_error(data: bytes, n: int) -> None:
    try:
        found = decode_exceptions(data, [TensorEntry("t", "float32", (n,))] * 3)
    except ArchiveError:
        return
    assert all((places < n).all() for places, _ in found.values())


def test_what_can_have_none_is_refused() -> None:
    data = encode_exceptions([(0, np.array([1]), torch.tensor([2.0]))])
    assert decode_exceptions(b"", []) == {}
    for entries in ([], [TensorEntry("t", "float32", (9,), "raw")], [TensorEntry("t", "float32", (1,))]):
        with pytest.raises(ArchiveError):
            decode_exceptions(data, entries)
    with pytest.raises(ArchiveError, match="version 4"):
        decode_exceptions(data, [TensorEntry("t", "float32", (9,))], version=4)
