"""Fine tensors: signs and zeros stay, errors are where they were promised, and damage is an ArchiveError."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.test_lossless import damaged
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.near_exact import decode_fine, encode_fine
from wcompress.errors import ArchiveError
from wcompress.fidelity import same_bits

HALVES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LEVELS_DB = [22.0, 37.0, 60.0, 90.0]


def entries_of(tensors: Mapping[str, torch.Tensor]) -> list[TensorEntry]:
    return [TensorEntry(n, str(t.dtype).removeprefix("torch."), tuple(t.shape), "fine") for n, t in tensors.items()]


def restored(tensors: Mapping[str, torch.Tensor], sqnr_db: float) -> dict[str, torch.Tensor]:
    found = decode_fine(encode_fine(tensors, sqnr_db), entries_of(tensors))
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        before, after = tensor.double(), found[name].double()
        assert torch.equal(torch.signbit(after), torch.signbit(before)), name
        assert torch.equal(after != 0, before != 0), name
        noise = (after - before).square().sum()
        assert noise <= 1.0001 * 10 ** (-sqnr_db / 10) * before.square().sum(), name
    return found


def relative_error(after: torch.Tensor, before: torch.Tensor) -> float:
    used = before != 0
    return float((after.double() / before.double() - 1)[used].abs().max())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sqnr_db", LEVELS_DB)
@pytest.mark.parametrize("dtype", HALVES)
def test_kinds_of_tensors_are_kept_finely(sqnr_db: float, dtype: torch.dtype) -> None:
    sparse = normal(100) * (normal(100, seed=1) > 1)
    model = {
        "bias": normal(200),
        "long.bias": normal(6000),
        "sparse.bias": sparse + 0.0,
        "negative zeros": sparse.abs().neg(),
        "rectified": sparse.abs(),
        "norm.weight": 1 + 0.02 * normal(64),
        "gains with signs.weight": 1 + 0.9 * normal(64),
        "bn.running_mean": 5 + normal(100),
        "bn.running_var": torch.exp2(3 * normal(50)),
        "outlier": torch.cat([1e-3 * normal(99), torch.tensor([100.0])]),
        "zeros": torch.zeros(30),
        "ones": torch.ones(300),
        "few": normal(3)[torch.arange(50) % 3],
        "scalar": torch.tensor(0.1),
        "pair": torch.tensor([1e-3, 1e4]),
        "empty": torch.empty(0),
        "tiny": 1e-6 * normal(40),
    }
    model = {name: tensor.to(dtype) for name, tensor in model.items()}
    after = restored(model, sqnr_db)
    for name in ("zeros", "ones", "scalar", "pair", "empty"):
        assert same_bits(after[name], model[name]), name
    for name in ("bn.running_var", "norm.weight", "rectified"):
        assert relative_error(after[name], model[name]) <= 1 / 64
    spread = float((model["bn.running_mean"].double() - 5).std())
    error = float((after["bn.running_mean"].double() - model["bn.running_mean"].double()).std())
    assert error < 1.02 * spread * 10 ** (-sqnr_db / 20)


@pytest.mark.parametrize("dead", [0.0, 1e-38, 1e-20, 1e-10, 1e-4])
@pytest.mark.parametrize("n", [5, 64, 5000])
@pytest.mark.parametrize("name", ["bn.running_var", "bn.spread"])
def test_every_variance_stays_positive_beside_dead_channels(dead: float, n: int, name: str) -> None:
    variances = normal(n).exp()
    variances[n // 2] = dead
    for sqnr_db in LEVELS_DB:
        after = restored({name: variances}, sqnr_db)[name]
        assert relative_error(after, variances) <= 1 / 64
        assert after[n // 2] == 0 or dead


def test_variances_of_any_range_are_kept_relatively() -> None:
    for octaves in (0.01, 1, 10, 30):
        variances = torch.exp2(octaves * torch.linspace(-1, 1, 101))
        after = restored({"running_var": variances}, 37.0)["running_var"]
        assert relative_error(after, variances) <= 1 / 64


def test_numbers_beyond_float32_are_kept() -> None:
    for scale in (1e250, 1e-250):
        for n in (20, 5000):
            model = {"weight": normal(n).double().abs() * scale, "bias": normal(n).double() * scale}
            after = decode_fine(encode_fine(model, 37.0), entries_of(model))
            assert same_bits(after["bias"], model["bias"])
            assert relative_error(after["weight"], model["weight"]) <= 1 / 64
    tiny = {"bias": torch.tensor([1e-45, -1e-44, 3e-39, 1.0]), "weight": torch.full((50,), 1e-42) * torch.arange(50)}
    restored(tiny, 30.0)


def test_bits_grow_with_the_precision_and_stay_near_the_entropy() -> None:
    for n in (100, 3000, 100_000):
        for sqnr_db, name in ((30.0, "bias"), (60.0, "bias"), (90.0, "bias")):
            bits = 8 * len(encode_fine({name: normal(n)}, sqnr_db)) / n
            ideal = sqnr_db / 6.02 + 0.255  # of uniform quantisation under an entropy code
            assert ideal - 0.1 < bits < ideal + 0.35 + 50 / n
    assert len(encode_fine({"weight": torch.ones(400)}, 37.0)) < 12
    assert len(encode_fine({"running_var": normal(100).exp()}, 37.0)) < 110


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60),
    repeat=st.sampled_from([1, 1, 1, 100]),
    positive=st.booleans(),
    dtype=st.sampled_from([*HALVES, torch.float8_e4m3fn, torch.float8_e5m2]),
    name=st.sampled_from(["a.bias", "a.weight", "a.running_var"]),
    sqnr_db=st.floats(10, 90),
)
def test_any_finite_tensor_is_kept_finely(
    values: list[float], repeat: int, positive: bool, dtype: torch.dtype, name: str, sqnr_db: float
) -> None:
    tensor = torch.tensor(values).repeat(repeat)
    limit = min(torch.finfo(dtype).max, 2.0**100)
    tensor = tensor.clamp(-limit, limit).to(dtype)
    restored({name: tensor.float().abs().to(dtype) if positive else tensor, "next": torch.ones(1)}, sqnr_db)


def test_long_tensors_do_not_take_long() -> None:
    for name, tensor in (("bias", normal(1_000_000)), ("running_var", normal(1_000_000).exp())):
        begin = time.process_time()
        restored({name: tensor}, 45.0)
        assert time.process_time() - begin < 10  # a loop over elements takes longer


def examples() -> list[dict[str, torch.Tensor]]:
    return [
        {"bias": normal(50), "weight": 1 + 0.1 * normal(40)},
        {"running_var": (4 * normal(60)).exp() * (torch.arange(60) > 3)},
        {"bias": normal(5000), "weight": normal(5000).exp()},
        {"ones": torch.ones(700), "pair": torch.tensor([1.0, 2.0]), "half": normal(90).half()},
        {"spread": (6 * normal(80)).exp() * torch.sign(normal(80, seed=1))},
    ]


def test_damage_is_an_archive_error_or_other_tensors() -> None:
    source = random.Random(3)
    n_wrong = n_refused = 0
    for model in examples():
        data = encode_fine(model, 40.0)
        for end in range(0, len(data), 1 + len(data) // 300):
            with pytest.raises(ArchiveError):
                decode_fine(data[:end], entries_of(model))
        with pytest.raises(ArchiveError):
            decode_fine(data + b"\1", entries_of(model))
        for version in (1, 2, 3, 4, 5):
            for _ in range(60):
                try:
                    found = decode_fine(damaged(data, source), entries_of(model), version)
                except ArchiveError:
                    n_refused += 1
                    continue
                n_wrong += 1
                assert [found[name].shape for name in model] == [tensor.shape for tensor in model.values()]
    assert n_wrong > 20
    assert n_refused > 100


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80), version=st.sampled_from([4, 5]), n=st.sampled_from([1, 7, 300, 1 << 50]))
def test_garbage_is_an_archive_error(data: bytes, version: int, n: int) -> None:
    entries = [TensorEntry("a", "float32", (n,), "fine"), TensorEntry("b", "float64", (3,), "fine")]
    for content in (data, bytes([min(len(data), 20)]) + data, b"\x01\xf8" + bytes([len(data)]) + data):
        try:
            found = decode_fine(content, entries, version)
        except ArchiveError:
            continue
        assert found["a"].shape == (n,)


def test_older_versions_have_no_newer_kinds() -> None:
    entries = entries_of({"x": torch.ones(9)})
    for third in (0xC0, 0xE0):
        with pytest.raises(ArchiveError, match="unknown kind 3"):
            decode_fine(bytes([third] + [0] * 40), entries, 4)
    assert encode_fine({}, 30.0) == b""
    assert decode_fine(b"", []) == {}
    with pytest.raises(ArchiveError):
        decode_fine(b"\0", [])


def test_encoding_is_the_same_every_time() -> None:
    for model in examples():
        assert np.array_equal(encode_fine(model, 50.0), encode_fine(model, 50.0))
