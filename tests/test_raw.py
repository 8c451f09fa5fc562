"""Raw tensors: every bit comes back, each kind of content near its entropy, and damage is an ArchiveError."""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.test_lossless import DTYPES, damaged
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import tensor_from_bytes
from wcompress.codec.storage.exact import decode_raw, encode_raw, exact_bytes
from wcompress.codec.storage.units import MAX_GROWTH, pack_words, unpack_words
from wcompress.errors import ArchiveError
from wcompress.fidelity import same_bits
from wcompress.wire import ByteCursor, encode_varint


def entry_of(tensor: torch.Tensor, name: str = "t") -> TensorEntry:
    return TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), "raw")


def check_exact(tensor: torch.Tensor) -> int:
    data = encode_raw([tensor])
    assert same_bits(decode_raw(data, [entry_of(tensor)])["t"], tensor)
    assert len(data) <= tensor.numel() * tensor.element_size() + 8
    assert exact_bytes(tensor) == len(data)
    return len(data)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def integers(low: int, high: int, n: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.from_numpy(generator().integers(low, high, n)).to(dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64]
)
def test_few_values_cost_their_entropy(dtype: torch.dtype) -> None:
    ternary = (
        (integers(-1, 2, 200_000) * 0.75).to(dtype) if dtype.is_floating_point else integers(-1, 2, 200_000, dtype)
    )
    assert 8 * check_exact(ternary.reshape(400, 500)) / 200_000 < 1.01 * math.log2(3)


@pytest.mark.parametrize("n_values", [2, 16, 200, 1000])
@pytest.mark.parametrize("skewed", [False, True])
def test_palettes_cost_their_entropy(n_values: int, skewed: bool) -> None:
    rng = generator(1)
    chances = rng.exponential(size=n_values) ** 3 if skewed else np.ones(n_values)
    index = rng.choice(n_values, 100_000, p=chances / chances.sum())
    counts = np.bincount(index)
    counts = counts[counts > 0]
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / len(index)
    palette = torch.from_numpy(rng.normal(size=n_values).astype(np.float32))
    bits = 8 * check_exact(palette[torch.from_numpy(index)].reshape(100, 1000)) / len(index)
    assert bits < 1.02 * entropy + (32 + 5) * n_values / len(index) + 0.01


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [32, 128, 500])
def test_structured_masks_are_tiny(dtype: torch.dtype, size: int) -> None:
    ones = torch.ones(size, size, dtype=dtype)
    assert check_exact(torch.tril(ones)) < 200
    assert check_exact(torch.eye(size).to(dtype)) < 200
    if dtype.is_floating_point:
        assert check_exact(torch.full((size, size), float("-inf"), dtype=dtype).triu(1)) < 200


@pytest.mark.parametrize("n", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1, -3, 7])
def test_arithmetic_sequences_are_tiny(n: int, dtype: torch.dtype, step: int) -> None:
    assert check_exact((torch.arange(n) * step + 5).to(dtype)) < 100


def test_positions_and_indices_follow_their_axes() -> None:
    assert check_exact(torch.arange(512).expand(8, 512).contiguous()) < 100
    grid = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij"), -1)
    assert check_exact(grid) < 200
    places = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")).flatten(1)
    relative = places[:, :, None] - places[:, None, :] + 6
    assert check_exact(13 * relative[0] + relative[1]) < 200
    ascending = integers(0, 10**6, 50_000).sort().values
    assert 8 * check_exact(ascending) / 50_000 < 6.1  # log2(e · 20)


@pytest.mark.parametrize("high", [1_000, 50_000, 10_000_000])
@pytest.mark.parametrize("low", [0, -500])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_random_integers_cost_their_range(high: int, low: int, dtype: torch.dtype) -> None:
    bits = 8 * check_exact(integers(low, high, 100_000, dtype)) / 100_000
    assert bits < 1.02 * math.log2(high - low)


@pytest.mark.parametrize("spread", [3, 30, 1000, 30_000])
def test_signed_integers_cost_their_spread(spread: int) -> None:
    normal = torch.from_numpy(np.rint(generator().normal(0, spread, 100_000)).astype(np.int32))
    assert 8 * check_exact(normal) / 100_000 < 1.02 * math.log2(4.133 * spread) + 0.05


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.complex64])
@pytest.mark.parametrize("value", [0, 1, float("nan")])
def test_constants_cost_nothing(dtype: torch.dtype, value: float) -> None:
    if math.isnan(value) and not (dtype.is_floating_point or dtype.is_complex):
        value = 77
    tensor = torch.full((1000, 1000), value, dtype=dtype)
    assert check_exact(tensor) < 10 + 8 * 10**6 / MAX_GROWTH


def test_scalars_cost_their_digits() -> None:
    assert check_exact(torch.tensor(0)) == 2
    assert check_exact(torch.tensor(5000)) == 4
    assert check_exact(torch.tensor(1.5)) <= 6


@pytest.mark.parametrize("name", [*DTYPES, "uint16", "uint32", "uint64"])
def test_every_dtype_and_shape(name: str) -> None:
    dtype = getattr(torch, name)
    for shape in ((), (1,), (0, 3), (3, 0), (2,), (3,), (777,), (33, 65), (8, 16, 3, 3)):
        raw = generator(len(shape)).integers(0, 256, math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        if name == "bool":
            raw %= 2
        check_exact(tensor_from_bytes(raw.tobytes(), dtype, shape))
        check_exact(tensor_from_bytes((raw // 64).tobytes(), dtype, shape))


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from([*DTYPES, "uint16", "uint32", "uint64"]),
    base=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    n=st.integers(1, 5000),
    columns=st.sampled_from([1, 2, 3, 16]),
    change=st.sampled_from(["repeat", "sum", "sum of sums", "rows", "few"]),
    seed=st.integers(0, 1000),
)
def test_any_words_come_back(name: str, base: list[int], n: int, columns: int, change: str, seed: int) -> None:
    dtype = getattr(torch, name)
    words = np.array(base, np.uint64)[generator(seed).integers(0, len(base), n * columns)]
    if change.startswith("sum"):
        words = np.cumsum(words)
        words = np.cumsum(words) if change.endswith("sums") else words
    elif change == "rows":
        words = np.cumsum(words.reshape(n, columns), axis=0).reshape(-1)
    elif change == "few":
        words = words % np.uint64(5)
    raw = words.view(np.uint8)[: n * columns * dtype.itemsize]
    if name == "bool":
        raw = raw % 2
    rows = len(raw) // (columns * dtype.itemsize)
    raw = raw[: rows * columns * dtype.itemsize]
    check_exact(tensor_from_bytes(raw.tobytes(), dtype, (rows, columns)))


def hostile_examples() -> list[torch.Tensor]:
    return [
        torch.arange(5000),
        torch.arange(300.0),
        torch.tril(torch.ones(40, 40)),
        integers(-900, 900, 3000, torch.int32),
        integers(-70_000, 70_000, 500),
        torch.arange(512).expand(4, 512).contiguous(),
        torch.linspace(0, 1, 500),
        torch.from_numpy(generator().normal(size=300))[integers(0, 300, 5000)],
        torch.arange(200).bfloat16(),
        torch.tensor(300),
    ]


def test_damage_is_an_archive_error_or_another_tensor() -> None:
    source = random.Random(11)
    n_wrong = n_refused = 0
    for tensor in hostile_examples():
        data, entries = encode_raw([tensor]), [entry_of(tensor)]
        payload = ByteCursor(data, "test")
        coder = payload.take(1)
        body = payload.take(payload.varint())
        for _ in range(200):
            hostile = damaged(body, source)
            try:
                restored = decode_raw(coder + encode_varint(len(hostile)) + hostile, entries)["t"]
            except ArchiveError:
                n_refused += 1
            else:
                assert restored.shape == tensor.shape
                assert restored.dtype == tensor.dtype
                n_wrong += 1
        for end in range(len(data)):
            with pytest.raises(ArchiveError):
                decode_raw(data[:end], entries)
    assert n_wrong > 50
    assert n_refused > 50


@settings(max_examples=300, deadline=None)
@given(
    forms=st.lists(st.integers(0, 12), max_size=6),
    tail=st.binary(max_size=60),
    name=st.sampled_from(["int64", "float32", "bool", "bfloat16", "complex64"]),
    n=st.sampled_from([1, 2, 50, 4000]),
)
def test_garbage_is_an_archive_error(forms: list[int], tail: bytes, name: str, n: int) -> None:
    payload = bytes(forms) + tail
    entry = TensorEntry("t", name, (n,), "raw")
    for coder in (0, 1, 2, 3, 4, 255):
        try:
            restored = decode_raw(bytes([coder]) + encode_varint(len(payload)) + payload, [entry])["t"]
        except ArchiveError:
            continue
        assert restored.shape == (n,)


def test_units_in_units_in_units_are_refused() -> None:
    for form in (b"\x09" + bytes(8), b"\x08\x01" + bytes([2] + [0] * 8)):
        payload = form * 3000 + bytes(100)
        with pytest.raises(ArchiveError, match="too many units"):
            unpack_words(ByteCursor(payload, "test"), 5000, np.dtype("<u8"), None)


@pytest.mark.parametrize("coder", range(4))
def test_sizes_beyond_all_reason_are_refused_before_anything_is_allocated(coder: int) -> None:
    payload = bytes([2]) + bytes(40)
    for shape in ((1 << 40,), (1 << 20, 1 << 20), (42 * MAX_GROWTH // 8 + 1,)):
        with pytest.raises(ArchiveError, match="'t'"):
            decode_raw(
                bytes([coder]) + encode_varint(len(payload)) + payload, [TensorEntry("t", "int64", shape, "raw")]
            )


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_versions_have_no_newer_coders(version: int) -> None:
    for tensor in (torch.arange(1000), torch.tensor(3)):
        data = encode_raw([tensor])
        with pytest.raises(ArchiveError, match="cannot be restored"):
            decode_raw(data, [entry_of(tensor)], version)
    assert decode_raw(b"\0\x01\x07", [TensorEntry("t", "uint8", (1,), "raw")], version)["t"].item() == 7


def test_bytes_behind_a_unit_are_refused_unless_they_fill_it() -> None:
    unit = pack_words(np.arange(50, dtype="<u8"), None, (50,))
    entry = TensorEntry("t", "int64", (50,), "raw")
    filled = unit + bytes(3)
    assert decode_raw(b"\x02" + encode_varint(len(filled)) + filled, [entry])["t"].tolist() == list(range(50))
    with pytest.raises(ArchiveError, match="behind its last"):
        decode_raw(b"\x02" + encode_varint(len(filled) + 1) + filled + b"\1", [entry])


def test_encoding_is_the_same_every_time() -> None:
    tensors = hostile_examples()
    assert encode_raw(tensors) == encode_raw(tensors)
