"""How far restored tensors are from the originals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ENERGY_PART = 1 << 13
_PART = 1 << 16
_NOT_COMPUTABLE = {getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name)}


LEAST_ROW = 8
"""Numbers in a row; of fewer, single errors and not quality would be measured."""

_LEAST_DB, _MOST_DB = -300.0, 3000.0


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from its original; only finite elements count.

    Attributes:
        sqnr_db: 10 log₁₀(Σw² / Σ(w−ŵ)²), in dB; None where nothing differs.
        worst_row_db: the least of this for any index of the first dimension whose energy is not zero; None where
            nothing differs, or where there are no rows of `LEAST_ROW` numbers or more.
    """

    sqnr_db: float | None
    worst_row_db: float | None


@dataclass(frozen=True)
class Worst:
    """The poorest of what is coded with loss.

    Attributes:
        tensor: the tensor with the least SQNR.
        sqnr_db: of it, dB.
        row_sqnr_db: of the poorest row of any tensor, dB; None where none has rows.
        row_tensor: the tensor that row is of.
    """

    tensor: str
    sqnr_db: float
    row_sqnr_db: float | None = None
    row_tensor: str | None = None


@dataclass(frozen=True)
class ErrorFigures:
    """Distance between two sets of tensors of the same names and shapes.

    Attributes:
        sqnr_db: 10 log₁₀(Σw² / Σ(w−ŵ)²) pooled over the finite elements of float tensors of two or more dimensions, in
            dB; None when nothing differs there or there is no such tensor.
        max_abs_error: the largest |w−ŵ| over all finite elements of float tensors; None when there is none.
        lossless: every tensor of every dtype is the same bit for bit.
        tensors: of each float tensor by name.
    """

    sqnr_db: float | None
    max_abs_error: float | None
    lossless: bool
    tensors: Mapping[str, TensorError] = field(default_factory=dict)

    @property
    def worst(self) -> Worst | None:
        """The poorest tensor and the poorest row; None where nothing differs."""
        return worst_of(self.tensors)


def worst_of(tensors: Mapping[str, TensorError]) -> Worst | None:
    """The poorest of some tensors, by name, and the poorest row; None where nothing differs."""
    found = [(e.sqnr_db, name) for name, e in tensors.items() if e.sqnr_db is not None]
    if not found:
        return None
    rows = [(e.worst_row_db, name) for name, e in tensors.items() if e.worst_row_db is not None]
    row_db, row_tensor = min(rows, default=(None, None))
    sqnr_db, tensor = min(found)
    return Worst(tensor, sqnr_db, row_db, row_tensor)


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
    tensors: dict[str, TensorError] = {}
    for name, tensor in original.items():
        other = restored[name]
        same = same_bits(tensor, other)
        lossless = lossless and same
        if not tensor.is_floating_point() or tensor.dtype in _NOT_COMPUTABLE or not tensor.numel():
            continue
        rows = _rows(tensor, other, same)
        tensors[name] = rows.error(tensor.ndim > 1 and tensor.numel() >= LEAST_ROW * tensor.shape[0])
        if rows.largest is not None:
            max_abs_error = max(max_abs_error or 0.0, rows.largest)
        if tensor.ndim >= 2:
            signal += float(rows.signal.sum())
            noise += float(rows.noise.sum())
    measurable = math.isfinite(signal) and math.isfinite(noise) and signal > 0 and noise > 0
    if max_abs_error is not None and not math.isfinite(max_abs_error):
        max_abs_error = None
    return ErrorFigures(_sqnr_db(signal, noise) if measurable else None, max_abs_error, lossless, tensors)


@dataclass(frozen=True)
class _Rows:
    # Energies of weights and of errors by row, float64 `[n_rows]`; the largest error, None where nothing is finite.
    signal: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    largest: float | None

    def error(self, has_rows: bool) -> TensorError:
        noise = float(self.noise.sum())
        if not noise > 0:
            return TensorError(None, None)
        whole = _sqnr_db(float(self.signal.sum()), noise)
        some = (self.signal > 0) & (self.noise > 0)
        if not has_rows or not some.any():
            return TensorError(whole, None)
        poorest = float((self.signal[some] / self.noise[some]).min())
        return TensorError(whole, _sqnr_db(poorest, 1.0))


def _rows(tensor: torch.Tensor, other: torch.Tensor, same: bool) -> _Rows:
    n_rows = tensor.shape[0] if tensor.ndim > 1 else 1
    w, restored = (computable(some).reshape(n_rows, -1).numpy() for some in (tensor, other))
    signal, noise = np.zeros((2, n_rows))
    largest: float | None = None
    n_together = max(1, _PART // w.shape[1])
    for first in range(0, n_rows, n_together):
        part = slice(first, first + n_together)
        with np.errstate(invalid="ignore"):  # signalling NaNs
            rows = w[part].astype(np.float64)
        finite = np.isfinite(rows)
        if not finite.all():
            rows[~finite] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            signal[part] = np.einsum("ij,ij->i", rows, rows)
            if finite.any():
                largest = largest or 0.0
            if same:
                continue
            error = np.where(finite, rows - restored[part], 0.0)
            noise[part] = np.einsum("ij,ij->i", error, error)
            if finite.any():
                largest = max(largest or 0.0, farthest(error.reshape(-1)))
    return _Rows(signal, noise, largest)


def _sqnr_db(signal: float, noise: float) -> float:
    if not signal > 0:
        return _LEAST_DB
    with np.errstate(over="ignore"):
        ratio = math.log10(signal) - math.log10(noise) if math.isfinite(signal) and math.isfinite(noise) else math.nan
    return min(max(10 * ratio, _LEAST_DB), _MOST_DB) if math.isfinite(ratio) else _LEAST_DB
