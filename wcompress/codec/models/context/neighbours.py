"""How weights follow from their neighbours: a linear prediction for each tensor, where it pays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.entropy.context.tables import N_TAPS

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_MOST_WEIGHTS = 1 << 18
_MOST_LAG = 64
_LEAST_GAIN_BITS = 120.0  # what eight taps and learning to use them cost


def find_lags(weights: Floats, sequencing: Sequencing) -> tuple[int, ...]:
    """A distance at which each tensor's weights are alike: a kernel's size, or where they correlate, or 0."""
    lags: list[int] = []
    for index, (shape, layout) in enumerate(zip(sequencing.shapes, sequencing.layouts, strict=True)):
        start, end = (int(v) for v in sequencing.starts[index : index + 2])
        n_columns, part = int(sequencing.columns[index]), weights[start:end][:_MOST_WEIGHTS]
        kernel = int(np.prod(shape[2:]))
        if layout == "positions":
            lags.append(shape[0] * shape[1] if kernel > 1 else 0)
        elif kernel > 1:
            lags.append(kernel)
        else:
            lags.append(_strongest(part, n_columns))
    return tuple(lags)


def _strongest(part: Floats, n_columns: int) -> int:
    # A pixel's row above, or a sample earlier: within a row of the matrix, or rows apart. Summed without BLAS, whose
    # threads a busy machine lets wait for each other.
    singles = part.astype(np.float32)
    energy = _dot(singles, singles)
    candidates = [*range(3, min(_MOST_LAG, n_columns // 2)), *(r * n_columns for r in range(3, _MOST_LAG))]
    best, strongest = 0, 0.1
    for lag in candidates:
        if 4 * lag > len(part):
            continue
        correlation = abs(_dot(singles[lag:], singles[:-lag])) / (energy or 1.0)
        if correlation > strongest and len(part) * correlation**2 > 200:
            best, strongest = lag, correlation
    return best


def _dot(a: Singles, b: Singles) -> float:
    return float(np.einsum("i,i->", a, b, dtype=np.float64, optimize=False))


def fit_taps(weights: Floats, values: Floats, sequencing: Sequencing, lags: tuple[int, ...]) -> Ints:
    """Least squares of each weight on the restored values of its neighbours.

    Args:
        weights: in steps, `[n]`.
        values: what they are restored to, before centroids, in steps, `[n]`.
        sequencing, lags: where the neighbours are.

    Returns:
        int64 `[n_tensors, N_TAPS]` in units of 1/64; zero where prediction does not pay.
    """
    taps = np.zeros((len(lags), N_TAPS), np.int64)
    for index, lag in enumerate(lags):
        start = int(sequencing.starts[index])
        n_columns = int(sequencing.columns[index])
        n = int(sequencing.starts[index + 1]) - start
        used = min(n, max(_MOST_WEIGHTS // n_columns, 1) * n_columns)
        if used < 4 * N_TAPS:
            continue
        w, v = weights[start : start + used], values[start : start + used]
        position = np.arange(used)
        column = position % n_columns

        def at(distance: int, inside: npt.NDArray[np.bool_], v: Floats = v, used: int = used) -> Floats:
            out = np.zeros(used)
            if 0 < distance < used:
                out[distance:] = v[:-distance]
            out[~inside] = 0.0
            return out

        everywhere = np.ones(used, bool)
        lag_inside = everywhere if lag >= n_columns else column >= lag
        lag_2_inside = everywhere if lag >= n_columns else column >= 2 * lag
        x = np.stack(
            [
                at(1, column >= 1),
                at(2, column >= 2),
                at(n_columns, everywhere),
                at(2 * n_columns, everywhere),
                at(n_columns + 1, column >= 1),
                at(n_columns - 1, column + 1 < n_columns),
                at(lag, lag_inside),
                at(2 * lag, lag_2_inside),
            ],
            axis=1,
        )
        gram = x.T @ x
        gram += np.eye(N_TAPS) * (1e-2 * np.trace(gram) / N_TAPS + 1e-9)
        found = np.clip(np.rint(64 * np.linalg.solve(gram, x.T @ w)), -127, 127).astype(np.int64)
        rest = w - x @ (found / 64)
        gain_bits = 0.5 * n * np.log2(float(w @ w) / max(float(rest @ rest), 1e-300)) if w.any() else 0.0
        if gain_bits > _LEAST_GAIN_BITS:
            taps[index] = found
    return taps
