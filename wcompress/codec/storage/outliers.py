"""Elements that are kept beside a coded tensor, since they would hide the quality of all others."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.quantiser.step_scales import RUN
from wcompress.codec.storage.exceptions import Positions
from wcompress.fidelity import LEAST_ROW, computable

LARGEST = 1e100
"""Squares of larger numbers may not exist; such elements are kept beside the rest."""

_OUTLIER = 50.0  # standard deviations of its tensor, row and column
_MOST_OUTLIERS = 0.02  # of a tensor; more are no outliers
_SUSPECT = 8.0
_SAMPLE = 1 << 16
_TOGETHER = 1 << 15  # elements looked at, which fit a processor's cache
_MEDIAN_OF_NORMAL = 0.6745  # of |x|, in standard deviations


def exceptional(tensor: torch.Tensor) -> Positions:
    """Ascending flat positions of elements to be kept beside a coded rest, int64 `[k]`.

    NaN, infinities and numbers beyond `LARGEST`; and outliers: more than 50 times as large as is usual in their tensor,
    in their row and in their column, where usual is the standard deviation of normal numbers with the same median
    magnitude. A row of which little is left beside a few ordinary weights has no outliers.

    Args:
        tensor: contiguous, of a float dtype.
    """
    if not tensor.numel():
        return np.zeros(0, np.int64)
    sizes = computable(tensor.reshape(-1)).abs().numpy()
    usable = sizes <= (LARGEST if sizes.dtype == np.float64 else np.finfo(np.float32).max)
    beyond = np.flatnonzero(~usable)
    if len(beyond):
        sizes = np.where(usable, sizes, 0)
    outliers = _outliers(sizes, tuple(tensor.shape))
    return np.union1d(beyond, outliers).astype(np.int64)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is soon seen that a matrix has no exceptional elements: all finite, and none far out in its row.

    Args:
        tensor: contiguous, of a float dtype.
    """
    n, n_rows = tensor.numel(), tensor.shape[0] if tensor.ndim else 1
    if tensor.ndim < 2 or not n or n < LEAST_ROW * n_rows or tensor.dtype == torch.float64:
        return False
    rows = tensor.reshape(n_rows, -1)
    n_together = max(1, _TOGETHER // rows.shape[1])
    for first in range(0, n_rows, n_together):
        sizes = computable(rows[first : first + n_together]).abs().numpy()
        largest = sizes.max(1)
        if not np.isfinite(largest).all():
            return False
        for row in np.flatnonzero(largest > _SUSPECT * sizes.mean(1, dtype=np.float64)).tolist():
            if largest[row] > _OUTLIER * _usual(sizes[row]):
                return False
    return True


def _outliers(sizes: npt.NDArray[np.floating], shape: tuple[int, ...]) -> Positions:
    n = len(sizes)
    if len(shape) == 1 or n < LEAST_ROW * shape[0]:
        width = min(n, RUN)
        rows = sizes[: n // width * width].reshape(-1, width)
        found = _far_in_rows(rows)
        if n % width:
            found = np.append(found, n // width * width + _far_in_rows(sizes[None, n // width * width :]))
        columns = None
    else:
        found = _far_in_rows(sizes.reshape(shape[0], -1))
        columns = np.moveaxis(sizes.reshape(shape), 1, 0)
    if len(found):
        found = found[sizes[found] > _OUTLIER * _usual(sizes[:: max(1, n // _SAMPLE) | 1])]
    if not 0 < len(found) <= _MOST_OUTLIERS * n:
        return np.zeros(0, np.int64)
    if columns is None or columns[0].size < LEAST_ROW:
        return found
    column = found // math.prod(shape[2:]) % shape[1]
    usual = {int(c): _usual(columns[c].reshape(-1)) for c in np.unique(column)}
    return found[sizes[found] > _OUTLIER * np.array([usual[int(c)] for c in column])]


def _far_in_rows(rows: npt.NDArray[np.floating]) -> Positions:
    """Flat positions of what is far larger than usual in its row."""
    width = rows.shape[1]
    largest = rows.max(1)
    suspects = np.flatnonzero(largest > _SUSPECT * rows.mean(1, dtype=np.float64))
    found = [
        row * width + np.flatnonzero(rows[row] > _OUTLIER * usual)
        for row in suspects.tolist()
        if largest[row] > _OUTLIER * (usual := _usual(rows[row]))
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _usual(sizes: npt.NDArray[np.floating]) -> np.float64:
    # Where nearly all is zero, the rest is what there is. In float64, which has room for a multiple of any float32.
    nonzero = sizes[sizes > 0].astype(np.float64)
    return np.float64(np.median(nonzero) / _MEDIAN_OF_NORMAL if len(nonzero) else math.inf)
