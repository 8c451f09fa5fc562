"""How far restored tensors are from the originals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ENERGY_PART = 1 << 13
_PART = 1 << 16
_NOT_COMPUTABLE = {getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name)}


@dataclass(frozen=True)
class ErrorFigures:
    """Distance between two sets of tensors of the same names and shapes.

    Attributes:
        sqnr_db: 10 log₁₀(Σw² / Σ(w−ŵ)²) pooled over finite float tensors of two or more dimensions, in dB; None when
            nothing differs there or there is no such tensor.
        max_abs_error: the largest |w−ŵ| over all finite float tensors; None when there is none.
        lossless: every tensor of every dtype is the same bit for bit.
    """

    sqnr_db: float | None
    max_abs_error: float | None
    lossless: bool


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether contiguous CPU tensors have one dtype, one shape and the same bits, NaN payloads and −0.0 included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numel() == 0 or torch.equal(as_bytes(a), as_bytes(b))


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory as uint8 `[numel × itemsize]`."""
    return tensor.reshape(-1).view(torch.uint8)


def largest_magnitude(tensor: torch.Tensor) -> float:
    """The largest |w| of a float tensor of any dtype: inf or nan where it holds such a number, 0 where it is empty."""
    if not tensor.numel():
        return 0.0
    low, high = computable(tensor).aminmax()
    return max(-float(low), float(high))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a float tensor of any dtype holds no NaN and no infinity."""
    return math.isfinite(largest_magnitude(tensor))


def computable(tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor of any dtype as float32, or float64 if it is, without rounding."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def energy(array: npt.NDArray[np.floating]) -> float:
    """Σw² of a numpy array `[n]`, each term in float64; inf where that is too small."""
    total = 0.0
    with np.errstate(over="ignore"):
        for first in range(0, len(array), _ENERGY_PART):
            part = array[first : first + _ENERGY_PART].astype(np.float64, copy=False)
            total += float(part @ part)
    return total


def farthest(array: npt.NDArray[Any]) -> float:
    """The largest |w| of a numpy array of numbers, 0 where it is empty; makes no copy."""
    return max(float(array.max(initial=0)), -float(array.min(initial=0)))


def compare(original: Mapping[str, torch.Tensor], restored: Mapping[str, torch.Tensor]) -> ErrorFigures:
    """Measure `restored` against `original`, which have the same names and shapes.

    Args:
        original, restored: name → contiguous CPU tensor.
    """
    signal = noise = 0.0
    max_abs_error: float | None = None
    lossless = True
    for name, tensor in original.items():
        other = restored[name]
        lossless = lossless and same_bits(tensor, other)
        if not tensor.is_floating_point() or tensor.dtype in _NOT_COMPUTABLE or not is_finite(tensor):
            continue
        w, restored_w = (computable(some).reshape(-1).numpy() for some in (tensor, other))
        for first in range(0, len(w), _PART):
            part = slice(first, first + _PART)
            with np.errstate(over="ignore", invalid="ignore"):
                error = w[part] - restored_w[part]
            max_abs_error = max(max_abs_error or 0.0, farthest(error))
            if tensor.ndim >= 2:
                signal += energy(w[part])
                noise += energy(error)
    measurable = math.isfinite(signal) and math.isfinite(noise) and signal > 0 and noise > 0
    if max_abs_error is not None and not math.isfinite(max_abs_error):
        max_abs_error = None
    return ErrorFigures(10 * math.log10(signal / noise) if measurable else None, max_abs_error, lossless)
