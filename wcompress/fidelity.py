"""How far restored tensors are from the originals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wcompress.compiled import compiled

_ENERGY_PART = 1 << 13
_PART = 1 << 14
_LANES = 64
_PIECE = 1 << 15  # a multiple of what an energy is summed by
_COMPARABLE = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
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
        energy: Σw² of the original's that the SQNR is pooled over; infinite where that is too large.
    """

    sqnr_db: float | None
    max_abs_error: float | None
    lossless: bool
    tensors: Mapping[str, TensorError] = field(default_factory=dict)
    energy: float = 0.0

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
    low, high = comparable(tensor).aminmax()
    return max(-float(low), float(high))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a float tensor of any dtype holds no NaN and no infinity."""
    return math.isfinite(largest_magnitude(tensor))


def computable(tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor of any dtype as float32, or float64 if it is, without rounding."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor of any dtype as one of which torch tells the largest; most are, and no other tensor is made."""
    return tensor if tensor.dtype in _COMPARABLE else computable(tensor)


def energy(array: npt.NDArray[np.floating]) -> float:
    """Σw² of a numpy array `[n]`, each term in float64; inf where that is too small."""
    total = 0.0
    with np.errstate(over="ignore"):
        for first in range(0, len(array), _ENERGY_PART):
            part = array[first : first + _ENERGY_PART].astype(np.float64, copy=False)
            total += float(part @ part)
    return total


def pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A contiguous float tensor of any dtype in its order, `computable`, some thousands of elements at a time.

    What fits a processor's cache is made and read several times as fast as a second tensor.
    """
    flat = tensor.reshape(-1)
    for first in range(0, len(flat), _PIECE):
        yield computable(flat[first : first + _PIECE])


def tensor_energy(tensor: torch.Tensor) -> float:
    """`energy` of a contiguous tensor of any float dtype."""
    total = 0.0
    with np.errstate(over="ignore"):
        for piece in pieces(tensor):
            for some in piece.split(_ENERGY_PART):
                part = some.numpy().astype(np.float64, copy=False)
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
    comparison = Comparison()
    for name, tensor in original.items():
        comparison.add(name, tensor, restored[name])
    return comparison.figures()


class Comparison:
    """Error figures of tensors that are measured one by one, or slab by slab.

    Args:
        exact: no tensor is to differ; energies of those that do not are left out.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact
        self._largest: float | None = None
        self._lossless = True
        self._tensors: dict[str, list[_Sums]] = {}

    def add(
        self, name: str, tensor: torch.Tensor, other: torch.Tensor, *, slab_of: tuple[int, ...] | None = None
    ) -> None:
        """Measures a tensor, or some indices of its first dimension.

        Args:
            name: of the tensor; slabs of one tensor come one after another.
            tensor, other: original and restored, contiguous CPU tensors of one shape.
            slab_of: the whole tensor's shape; None where this is the whole.
        """
        same = same_bits(tensor, other)
        self._lossless = self._lossless and same
        if not tensor.is_floating_point() or tensor.dtype in _NOT_COMPUTABLE or not tensor.numel():
            return
        shape = slab_of or tuple(tensor.shape)
        rows = _Rows(np.zeros(1), np.zeros(1), 0.0) if same and self._exact else _rows(tensor, other, same)
        has_rows = len(shape) > 1 and math.prod(shape) >= LEAST_ROW * shape[0]
        self._tensors.setdefault(name, []).append(rows.sums(has_rows, is_pooled=len(shape) > 1))
        if rows.largest is not None:
            self._largest = max(self._largest or 0.0, rows.largest)

    def tie(self, name: str, owner: str) -> None:
        """Counts a tensor again under another name."""
        if owner in self._tensors:
            self._tensors[name] = self._tensors[owner]

    def figures(self) -> ErrorFigures:
        """Of everything that was added."""
        pooled = [sums for parts in self._tensors.values() for sums in parts if sums.is_pooled]
        signal, noise = sum(sums.signal for sums in pooled), sum(sums.noise for sums in pooled)
        measurable = math.isfinite(signal) and math.isfinite(noise) and signal > 0 and noise > 0
        largest = self._largest if self._largest is not None and math.isfinite(self._largest) else None
        tensors = {name: _error(sums) for name, sums in self._tensors.items()}
        return ErrorFigures(_sqnr_db(signal, noise) if measurable else None, largest, self._lossless, tensors, signal)


@dataclass(frozen=True)
class _Sums:
    # Energies of weights and of errors; the least ratio of the two in a row, None where no row has errors; whether
    # they count in the pooled SQNR.
    signal: float
    noise: float
    poorest: float | None
    is_pooled: bool


def _error(parts: list[_Sums]) -> TensorError:
    noise = sum(part.noise for part in parts)
    if not noise > 0:
        return TensorError(None, None)
    whole = _sqnr_db(sum(part.signal for part in parts), noise)
    poorest = min((part.poorest for part in parts if part.poorest is not None), default=None)
    return TensorError(whole, None if poorest is None else _sqnr_db(poorest, 1.0))


@dataclass(frozen=True)
class _Rows:
    # Energies of weights and of errors by row, float64 `[n_rows]`; the largest error, None where nothing is finite.
    signal: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    largest: float | None

    def sums(self, has_rows: bool, *, is_pooled: bool) -> _Sums:
        some = (self.signal > 0) & (self.noise > 0)
        poorest = float((self.signal[some] / self.noise[some]).min()) if has_rows and some.any() else None
        return _Sums(float(self.signal.sum()), float(self.noise.sum()), poorest, is_pooled)


def _rows(tensor: torch.Tensor, other: torch.Tensor, same: bool) -> _Rows:
    n_rows = tensor.shape[0] if tensor.ndim > 1 else 1
    found = _energy_of_finite(tensor) if same else None
    if found is not None:
        return _Rows(np.array([found]), np.zeros(1), 0.0)
    w, restored = (some.reshape(n_rows, -1) for some in (tensor, other))
    signal, noise = np.zeros((2, n_rows))
    largest = -1.0
    n_together = max(1, _PART // w.shape[1])
    lanes = np.zeros((3, min(_LANES, w.shape[1])))
    for first in range(0, n_rows, n_together):
        part = slice(first, first + n_together)
        rows = computable(w[part]).numpy()
        found = _measure(rows, rows if same else computable(restored[part]).numpy(), lanes, signal[part], noise[part])
        largest = math.nan if math.isnan(found) else max(largest, found)
    return _Rows(signal, noise, None if largest < 0 else largest)


@compiled()
def _measure(
    weights: npt.NDArray[np.floating],
    restored: npt.NDArray[np.floating],
    lanes: npt.NDArray[np.float64],
    signal: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
) -> float:
    # Energies of finite weights and of their errors, by row, and the largest error: NaN where there is one, −1 where no
    # weight is finite. As many sums as a few instructions have lanes; the order is always the same.
    n_rows, width = weights.shape
    n_lanes = lanes.shape[1]
    signals, noises, largest = lanes[0], lanes[1], lanes[2]
    for i in range(n_lanes):
        largest[i] = -1.0
    is_unknown = False
    for row in range(n_rows):
        of_row, of_other = weights[row], restored[row]
        for i in range(n_lanes):
            signals[i], noises[i] = 0.0, 0.0
        for start in range(0, width, n_lanes):
            some, others = of_row[start : start + n_lanes], of_other[start : start + n_lanes]
            for i in range(len(some)):
                w, other = np.float64(some[i]), np.float64(others[i])
                is_finite = abs(w) < np.inf
                error = w - other if is_finite else np.float64(0.0)
                weight = w if is_finite else np.float64(0.0)
                signals[i] += weight * weight
                noises[i] += error * error
                size = abs(error) if is_finite else -1.0
                largest[i] = max(largest[i], size)
        for i in range(n_lanes):
            signal[row] += signals[i]
            noise[row] += noises[i]
        is_unknown |= np.isnan(noise[row])
    most = -1.0
    for i in range(n_lanes):
        most = max(most, largest[i])
    return np.nan if is_unknown else most


def _energy_of_finite(tensor: torch.Tensor) -> float | None:
    # Σw², a part at a time; None where that is not finite, so that there is more to know.
    flat, total = tensor.reshape(-1), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs
        for first in range(0, len(flat), _PART):
            part = computable(flat[first : first + _PART]).numpy().astype(np.float64)
            total += float(np.einsum("i,i->", part, part))
    return total if math.isfinite(total) else None


def _sqnr_db(signal: float, noise: float) -> float:
    if not signal > 0:
        return _LEAST_DB
    with np.errstate(over="ignore"):
        ratio = math.log10(signal) - math.log10(noise) if math.isfinite(signal) and math.isfinite(noise) else math.nan
    return min(max(10 * ratio, _LEAST_DB), _MOST_DB) if math.isfinite(ratio) else _LEAST_DB
