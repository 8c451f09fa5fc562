"""Tensors that are no weights are recognised by their content, and weights never are."""

from __future__ import annotations

import math

import pytest
import torch

from wcompress.codec.storage.exact import exact_bytes
from wcompress.codec.storage.recognise import recognise

GENERATOR = torch.Generator().manual_seed(0)
HALVES = [torch.float32, torch.float16, torch.bfloat16]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR)


def positions(n: int, width: int) -> torch.Tensor:
    phases = torch.arange(float(n))[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.stack([phases.sin(), phases.cos()], -1).reshape(n, width)


def mel_filters(n_filters: int, n_bins: int) -> torch.Tensor:
    centres, widths = torch.linspace(2, n_bins - 10, n_filters), torch.linspace(1.5, 8, n_filters)
    return torch.relu(1 - (torch.arange(float(n_bins))[None] - centres[:, None]).abs() / widths[:, None])


def fourier_basis(n: int) -> torch.Tensor:
    phases = 2 * math.pi / n * torch.arange(n // 2 + 1.0)[:, None] * torch.arange(float(n))
    return (torch.cat([phases.cos(), -phases.sin()]) * torch.hann_window(n))[:, None]


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("constant", torch.full((40, 30), 1.5)),
        ("palette", torch.tril(torch.ones(64, 64))),
        ("palette", torch.eye(50)),
        ("palette", (uniform(100, 100) < 0.1).float()),
        ("palette", torch.full((32, 32), float("-inf")).triu(1)),
        ("palette", (3 * uniform(100, 100)).floor() - 1),
    ],
)
def test_few_values(kind: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype == torch.float8_e4m3fn and tensor.isinf().any():
        return
    found = recognise(tensor.to(dtype))
    assert found is not None
    assert found.kind == kind
    assert found.palette_bits is not None
    assert found.palette_bits <= math.log2(3) + 1e-9
    assert found.exact_bytes == exact_bytes(tensor.to(dtype))
    assert found.bits_per_element == 8 * found.exact_bytes / tensor.numel()


@pytest.mark.parametrize("n_values", [2, 16, 256])
def test_palettes_of_odd_values(n_values: int) -> None:
    palette = normal(n_values)
    found = recognise(palette[torch.randint(0, n_values, (200, 200), generator=GENERATOR)])
    assert found is not None
    assert found.kind == "palette"
    assert found.palette_bits == pytest.approx(math.log2(n_values), rel=0.01)
    assert found.bits_per_element < 1.02 * math.log2(n_values) + 0.4


def test_powers_of_two_and_integers() -> None:
    powers = torch.exp2(torch.randint(-60, 60, (100, 9), generator=GENERATOR).double()).reshape(-1)
    powers = (powers * torch.sign(normal(900)).double())[:400]
    found = recognise(powers)
    assert found is not None
    assert found.kind == "powers of two"
    for tensor in (torch.arange(1000.0), torch.randint(-5000, 5000, (40, 50), generator=GENERATOR).float()):
        found = recognise(tensor)
        assert found is not None
        assert found.kind == "integers"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("table", torch.linspace(-1, 1, 1001)),
        ("table", positions(200, 64)),
        ("table", torch.arange(512.0)[:, None].mul(1e4 ** (-torch.arange(0, 64, 2) / 64)).cos()),
        ("table", torch.hann_window(400)),
        ("table", torch.hamming_window(257)),
        ("table", fourier_basis(256)),
        ("table", torch.logspace(-2, 2, 300)),
        ("table", -torch.arange(300.0)[None] * torch.exp2(-torch.linspace(0.3, 7.7, 8))[:, None]),
        ("sparse", mel_filters(80, 201)),
        ("sparse", mel_filters(40, 257).T.contiguous()),
    ],
)
def test_tables(kind: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    found = recognise(tensor.to(dtype))
    assert found is not None
    assert found.kind in (kind, "palette")  # of few mantissa bits there may be few values
    assert found.exact_bytes < tensor.numel() * dtype.itemsize


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(
    "tensor",
    [
        normal(300, 300),
        normal(64, 3, 7, 7),
        normal(500),
        normal(10),
        normal(3),
        normal(64).exp(),
        normal(300, 300) * (uniform(300, 300) < 0.1),
        normal(64, 64) * (uniform(16, 16) < 0.1).repeat_interleave(4, 0).repeat_interleave(4, 1),
        torch.cumsum(normal(512, 64), 0),
        torch.nn.functional.avg_pool2d(normal(64, 3, 21, 21), 11, 1),
        torch.arange(100.0)[:, None].sin() + 0.05 * normal(100, 100),
        1 + 1e-2 * normal(100, 100),
        normal(200, 4) @ normal(4, 200),
        normal(100, 100) * torch.exp2(8 * normal(100, 1)),
    ],
    ids=[
        *("matrix", "kernel", "vector", "short", "three", "variances", "pruned", "pruned by blocks", "walk"),
        *("smooth kernel", "sine and noise", "near a constant", "low rank", "row scales"),
    ],
)
def test_weights_are_never_recognised(tensor: torch.Tensor, scale: float, dtype: torch.dtype) -> None:
    weights = (scale * tensor).to(dtype)
    if len(weights.unique() if dtype.itemsize > 1 else weights.float().unique()) <= tensor.numel() // 4:
        return  # the dtype left few values
    assert recognise(weights) is None


def test_what_is_not_finite_is_no_table() -> None:
    table = positions(200, 64)
    table[3, 4] = float("nan")
    assert recognise(table) is None


@pytest.mark.parametrize(
    "tensor", [torch.arange(50), torch.ones(5, dtype=torch.bool), torch.zeros(0), torch.tensor(1.0)]
)
def test_what_is_no_float_tensor_is_not_looked_at(tensor: torch.Tensor) -> None:
    assert recognise(tensor) is None
