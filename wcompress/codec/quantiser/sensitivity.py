"""What errors of a tensor's weights do to what a network computes, as far as inputs tell."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_LEAST, _LEAST_OUTPUT, _LEAST_INPUT = 1e-4, 0.02, 0.02
"""Of the mean: the least second moment, cost of an output, and energy of an input that comes alone."""
_LEAST_LOOKED_UP = 0.5
"""The same of a row of an embedding: what some hundred inputs do not look up, others will."""


@dataclass(frozen=True)
class Feedback:
    """How errors of one tensor's weights count, and how they are fed back; the tensor is a matrix `[rows, columns]`.

    Attributes:
        factors: unit upper triangular, float32 `[n_groups, n_columns, n_columns]`: an error in column i, times entry
            (i, j), is taken from column j. None for no feedback.
        columns: what a squared error in a column costs once the columns to come make up for it, float32
            `[n_groups, n_columns]`.
        rows: what it costs in a row, float32 `[n_rows]`; each group has as many.
        inner: columns that lie side by side within a row of the sequence, as the taps of a convolution do.
        transposed: the tensor's first dimension is that of the columns.
        log_unit: log₂ of what rows and columns are to be multiplied by together, which float32 may have no room for.
    """

    factors: Singles | None
    columns: Singles
    rows: Singles
    inner: int = 1
    transposed: bool = False
    log_unit: float = 0.0

    @classmethod
    def of(
        cls, factors: Singles | None, columns: Doubles, rows: Doubles, inner: int = 1, *, transposed: bool = False
    ) -> Feedback:
        """From costs in float64, all of them positive."""
        units = [max(float(costs.mean()), 1e-300) if costs.size else 1.0 for costs in (columns, rows)]
        columns, rows = columns / units[0], rows / units[1]
        log_unit = math.log2(units[0]) + math.log2(units[1])
        return cls(factors, columns.astype(np.float32), rows.astype(np.float32), inner, transposed, log_unit)

    @classmethod
    def plain(cls, n_weights: int, cost: float) -> Feedback:
        """Of a tensor of which nothing is known but what an error costs on average: one column."""
        return cls.of(None, np.ones((1, 1)), np.full(n_weights, cost), transposed=True)

    @property
    def layout(self) -> str:
        """In which a path goes down a column; see `wcompress.codec.quantiser.sequence`."""
        return "rows" if self.transposed else "columns"

    @property
    def log_cost(self) -> float:
        """log₂ of what a squared error costs, its mean over the weights."""
        if not self.rows.size or not self.columns.size:
            return self.log_unit
        return self.log_unit + float(np.log2(self.columns).mean() + np.log2(self.rows).mean())

    def times(self, octaves: float) -> Feedback:
        """The same where every error costs 2^octaves times as much, in units of 1."""
        rows = self.rows * np.exp2(self.log_unit + octaves)
        return replace(self, rows=rows.astype(np.float32), log_unit=0.0)

    def of_rows(self, chosen: slice | Places, n_rows: int) -> Feedback:
        """Of some indices of the tensor's first dimension, which has `n_rows`."""
        if isinstance(chosen, slice) and chosen.indices(n_rows) == (0, n_rows, 1):
            return self
        if self.transposed and self.columns.size == 1:
            n_weights = len(self.rows) // n_rows * len(np.arange(n_rows)[chosen])
            return replace(self, rows=self.rows[:n_weights])
        if self.transposed:
            return replace(self, columns=self.columns[:, chosen])
        some = replace(self, rows=self.rows[chosen])
        if len(self.columns) == 1:
            return some
        # A group for each row, since groups may now have different numbers of rows.
        group = np.arange(n_rows)[chosen] // (n_rows // len(self.columns))
        factors = None if self.factors is None else self.factors[group]
        return replace(some, factors=factors, columns=self.columns[group])


@dataclass(frozen=True)
class Sensitivity:
    """Of one tensor: a squared error of a weight costs what its output costs times what its input has of energy.

    Attributes:
        outputs: what a squared error of each output costs, float64 `[n_outputs]`.
        inputs: second moments of what the weights are multiplied by, float64 `[n_groups, k, k]`; `[n_groups, k]` of
            inputs that are never there together, such as the rows of an embedding, or of which each is known alone.
            None where nothing is known of them.
        transposed: the tensor's first dimension is that of its inputs.
    """

    outputs: Doubles
    inputs: Doubles | None
    transposed: bool = False

    def damped(self, damping: float) -> Sensitivity:
        """With so much of the mean moment added to each input's own; more than that leaves less to be fed back."""
        if self.inputs is None or self.inputs.ndim < 3:
            return self
        k = self.inputs.shape[-1]
        mean = np.trace(self.inputs, axis1=1, axis2=2) / k
        floor = max(float(mean.mean()) * _LEAST, 1e-300)
        return replace(self, inputs=self.inputs + (damping * np.maximum(mean, floor))[:, None, None] * np.eye(k))

    def without_feedback(self) -> Sensitivity:
        """As if inputs had nothing to do with each other."""
        if self.inputs is None or self.inputs.ndim < 3:
            return self
        diagonals = np.diagonal(self.inputs, axis1=1, axis2=2)
        return replace(self, inputs=np.stack([np.diag(diagonal) for diagonal in diagonals]))

    def feedback(self, shape: tuple[int, ...]) -> Feedback:
        """For a tensor of this shape."""
        n_weights = math.prod(shape)
        outputs = _at_least(self.outputs, _LEAST_OUTPUT)
        if self.inputs is None or not self.inputs.any():
            return Feedback.plain(n_weights, float(outputs.mean()) if len(outputs) else 1.0)
        if self.inputs.ndim == 2:
            columns = _at_least(self.inputs, _LEAST_LOOKED_UP if self.transposed else _LEAST_INPUT)
            inner = 1 if self.transposed else math.prod(shape[2:])
            return Feedback.of(None, columns, outputs, inner, transposed=self.transposed)
        k, inner = self.inputs.shape[-1], math.prod(shape[2:])
        least = np.maximum(_LEAST * np.trace(self.inputs, axis1=1, axis2=2) / k, 1e-300)
        if not np.triu(self.inputs, 1).any():
            variances = np.diagonal(self.inputs, axis1=1, axis2=2) + least[:, None]
            return Feedback.of(None, variances, outputs, inner)
        factors = np.empty(self.inputs.shape, np.float32)
        variances = np.empty(self.inputs.shape[:2])
        for group, moments in enumerate(self.inputs):
            # H⁻¹ = UᵀU with an upper triangular U, from the Cholesky factor of H with its order reversed.
            lower = np.linalg.cholesky(moments[::-1, ::-1] + least[group] * np.eye(k))
            upper = np.linalg.inv(lower)[::-1, ::-1]
            diagonal = np.diag(upper).copy()
            factors[group], variances[group] = upper / diagonal[:, None], 1 / np.square(diagonal)
        return Feedback.of(factors, variances, outputs, inner)


def _at_least(costs: Doubles, share: float) -> Doubles:
    # Nothing is so unimportant that it may be anything.
    floor = share * float(costs.mean()) if costs.size else 0.0
    result: Doubles = np.maximum(costs, floor if floor > 0 else 1.0)
    return result
