"""What a symbol costs while a model is refined: an estimate of the coder's bits, with a slope to descend.

The engine asks one question: for every weight, how many bits does each magnitude take, given all symbols as they are
now? Whatever answers it satisfies `RateModel`; the answer need not be what the coder writes, only like it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

N_LEVELS = 4
"""Magnitudes told apart: 0, 1, 2, and 3 or more, each of the latter one `slope` dearer than the one before."""


@dataclass(frozen=True)
class Rates:
    """Bits of magnitudes, factorised: one pair of numbers for each weight, one row for each tensor.

    Attributes:
        zero: bits of the symbol 0, float32 `[n_weights]`.
        nonzero: bits of saying that a symbol is not 0, its sign included, float32 `[n_weights]`.
        further: bits of magnitude 1, 2 and 3 given that it is not 0, float32 `[n_tensors, 3]`; beyond 3, every
            unit costs what the step from 2 to 3 does.
    """

    zero: Tensor
    nonzero: Tensor
    further: Tensor


class RateModel(Protocol):
    """Estimates what the coder will need."""

    def fit(self, symbols: Tensor) -> Rates:
        """The cost of each magnitude at each place, from all symbols, int or integral float `[n_weights]`."""


class ActivityRates:
    """Code lengths that follow how many symbols of a weight's row and of its column are not zero.

    A sparse row or column is dear to enter and cheap to leave, so structure emerges, and a coder whose contexts look
    left and above finds it. P(k ≠ 0) is the product of its tensor's share and the row's and the column's excess.

    Args:
        shapes: of the tensors, in the order of the symbols.
        pseudo: symbols not zero that every row and column is taken to have beside its own, in its tensor's share.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], *, pseudo: float = 2.0) -> None:
        self._shapes = [
            (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape)) for shape in shapes
        ]
        self._sizes = [rows * columns for rows, columns in self._shapes]
        self._pseudo = pseudo

    def fit(self, symbols: Tensor) -> Rates:
        """See `RateModel.fit`."""
        magnitude = symbols.abs()
        zero, nonzero, further = [], [], []
        for part, (rows, columns) in zip(magnitude.split(self._sizes), self._shapes, strict=True):
            table = part.reshape(rows, columns)
            active = (table > 0).float()
            n_active = float(active.sum())
            share = (n_active + 1) / (part.numel() + 2)
            p = torch.full_like(active, share)
            if rows > 1:
                p *= self._excess(active.sum(1, keepdim=True), columns, share)
                p *= self._excess(active.sum(0, keepdim=True), rows, share)
            p = p.clamp(1e-5, 0.97)
            zero.append(-torch.log2(1 - p).reshape(-1))
            nonzero.append(1 - torch.log2(p).reshape(-1))
            ones, twos = float((table == 1).sum()), float((table == 2).sum())
            counts = torch.tensor([ones + 1.0, twos + 0.5, n_active - ones - twos + 0.25])
            bits = -torch.log2(counts / counts.sum())
            further.append(torch.cummax(bits, 0).values)
        return Rates(torch.cat(zero), torch.cat(nonzero), torch.stack(further).to(symbols.device))

    def _excess(self, active: Tensor, n: int, share: float) -> Tensor:
        # Of a row or column, how much likelier than its tensor's a symbol of it is not zero.
        return (active + self._pseudo) / (n * share + self._pseudo)


def total_bits(rates: Rates, symbols: Tensor, sizes: Sequence[int]) -> float:
    """Bits of all symbols under the rates."""
    magnitude = symbols.abs()
    active = magnitude > 0
    bits = float(torch.where(active, rates.nonzero, rates.zero).sum())
    for row, part in zip(rates.further, magnitude.split(list(sizes)), strict=True):
        some = part[part > 0]
        beyond = (some - 3).clamp(min=0)
        bits += float(row[some.clamp(max=3).long() - 1].sum() + (row[2] - row[1]).clamp(min=0.5) * beyond.sum())
    return bits
