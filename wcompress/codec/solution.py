"""What an encoder finds at one step, and how it is told to look."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wcompress.codec.class_model import ClassModel
from wcompress.codec.context_model import ContextModel
from wcompress.codec.levels import LEVEL_UNITS, N_RATIOS, Levels
from wcompress.entropy.bits import BitWriter
from wcompress.quantize.trellis import Trellis

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]

_MAX_SYMBOL = 1 << 14
_LEAST_FOR_A_SHIFT = 64


@dataclass(frozen=True)
class EncoderConfig:
    """How hard to look.

    Attributes:
        machine: the trellis.
        multiplier: Lagrangian of the search, in squared steps a bit.
        use_prior: train a VAE prior, and use it where it pays.
        prior_steps: of its training.
        mix: several sets of probabilities, where that pays.
        keep_energy: move the levels outward from the centroids until the weights have their energy back. The squared
            error is larger, but what a network computes is not biased towards nothing.
        passes: searches at one step.
        seed: of the training.
        device: to train on.
    """

    machine: Trellis
    multiplier: float = 0.22
    use_prior: bool = True
    prior_steps: int = 300
    mix: bool = True
    keep_energy: bool = False
    passes: int = 3
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Solution:
    """Everything that is stored, at one step.

    Attributes:
        step: of the quantiser.
        model: what the symbols are coded under.
        levels: of the quantisers.
        symbols: int32 `[n]`.
        ratios: how signs are expected, int8 `[n]`; None where they never are.
        squared_error: of all weights.
        symbol_bits: about what the symbols take.
    """

    step: float
    model: ClassModel | ContextModel
    levels: Levels
    symbols: Ints
    ratios: Signs | None
    squared_error: float
    symbol_bits: float

    @property
    def header_bits(self) -> int:
        """Bits of the model: scales, decoder, latents, tables."""
        tables, decoder = BitWriter(), BitWriter()
        latents = self.model.write(tables, decoder)
        return tables.n_bits + decoder.n_bits + 8 * len(latents)


def symbol_limit(x: Singles, machine: Trellis) -> int:
    """The largest magnitude a search needs to try on weights in steps."""
    return int(min(float(np.abs(x).max(initial=0.0)) / machine.spacing + 2, _MAX_SYMBOL))


def centroids(
    x: Singles, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis, ratios: Signs | None = None
) -> Levels:
    """The levels that make the squared error least.

    Args:
        x: weights in steps, `[n]`.
        symbols, which: what they became, under which quantiser.
        machine: the trellis.
        ratios: how signs are expected; None for not at all.
    """
    magnitude = np.minimum(np.abs(symbols), 3)
    nominal = Levels().units(symbols, which, machine) / LEVEL_UNITS
    inward = np.sign(symbols) * (nominal - x)
    group = which.astype(np.int64) * 4 + magnitude
    offsets = _means(inward, group, 8)
    rows = [tuple(int(v) for v in offsets[4 * q + 1 : 4 * q + 4]) for q in (0, 1)]
    levels = Levels((rows[0], rows[1]))  # type: ignore[arg-type]
    if ratios is None or not ratios.any():
        return levels
    outward = np.sign(ratios) * (x - levels.units(symbols, which, machine) / LEVEL_UNITS)
    shifts = _means(
        outward, 2 * np.abs(ratios.astype(np.int64)) + (symbols != 0), 2 * (N_RATIOS + 1), _LEAST_FOR_A_SHIFT
    )
    return replace(levels, shifts=tuple((int(a), int(b)) for a, b in shifts.reshape(-1, 2)[1:]))


def with_energy(levels: Levels, x: Singles, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis) -> Levels:
    """Levels between the given and the nominal ones, as near to the former as keeps the weights' energy.

    Source: measured, see docs/decisions/0004.
    """
    energy = float(np.square(x, dtype=np.float64).sum())
    best = levels
    for eighths in range(7, -1, -1):
        rows = [tuple(round(offset * eighths / 8) for offset in row) for row in levels.offsets]
        best = replace(levels, offsets=(rows[0], rows[1]))  # type: ignore[arg-type]
        units = best.units(symbols, which, machine) / LEVEL_UNITS
        if float(np.square(units).sum()) >= energy:
            break
    return best


def _means(values: npt.NDArray[np.floating], group: npt.NDArray[np.int64], n: int, least: int = 1) -> Ints:
    totals = np.bincount(group, weights=values, minlength=n)
    counts = np.bincount(group, minlength=n)
    means = np.where(counts >= least, totals / np.maximum(counts, 1), 0.0)
    result: Ints = np.rint(LEVEL_UNITS * means).clip(-LEVEL_UNITS, LEVEL_UNITS - 1).astype(np.int32)
    return result
