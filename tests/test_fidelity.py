"""Error figures against their definition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import wcompress
from wcompress.fidelity import compare, same_bits


def test_sqnr_pools_matrices_only() -> None:
    original = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[0.0, 5.0]]), "bias": torch.tensor([100.0])}
    restored = {"a": torch.tensor([[3.0, 3.5]]), "b": torch.tensor([[0.5, 5.0]]), "bias": torch.tensor([99.0])}
    figures = compare(original, restored)
    assert figures.sqnr_db == pytest.approx(10 * math.log10(50 / 0.5))
    assert figures.max_abs_error == 1.0
    assert not figures.lossless


def test_equal_tensors_are_lossless_and_have_no_sqnr() -> None:
    tensors = {"a": torch.tensor([[1.0, float("nan")]]), "n": torch.tensor([1, 2]), "h": torch.ones(2, 2).half()}
    figures = compare(tensors, {name: tensor.clone() for name, tensor in tensors.items()})
    assert (figures.sqnr_db, figures.max_abs_error, figures.lossless, figures.worst) == (None, 0.0, True, None)
    assert set(figures.tensors) == {"a", "h"}


def test_only_finite_numbers_count() -> None:
    original = {"a": torch.full((2, 8), 3.0)}
    original["a"][0, 1], original["a"][1, 2] = float("nan"), float("inf")
    restored = {"a": original["a"].clone()}
    restored["a"][1, 4] = 2.5
    figures = compare(original, restored)
    assert figures.sqnr_db == pytest.approx(10 * math.log10(14 * 9 / 0.25))
    assert figures.tensors["a"].worst_row_db == pytest.approx(10 * math.log10(7 * 9 / 0.25))


def test_bits_not_values_decide() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    nan = torch.tensor([0x7FC00001, 0x7FC00002], dtype=torch.int32).view(torch.float32)
    assert not same_bits(nan[:1], nan[1:])
    assert same_bits(nan[:1], nan[:1].clone())
    assert not same_bits(torch.tensor([1]), torch.tensor([1.0]))
    assert same_bits(torch.empty(0, 3), torch.empty(0, 3))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no such dtype")
def test_pairs_of_four_bits_are_compared_as_bits(tmp_path: Path) -> None:
    tensor = torch.arange(64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(8, 8)
    wcompress.pack({"w": tensor}, tmp_path / "m.wcz")
    assert compare({"w": tensor}, wcompress.load(tmp_path / "m.wcz")).lossless
