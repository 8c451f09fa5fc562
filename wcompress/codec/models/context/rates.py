"""What a search takes symbols to cost: code lengths by the class of a weight's scale and expected sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.class_tables.rates import magnitudes_guessed
from wcompress.codec.models.context.model import Description
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.entropy.context.state import UNITS_PER_OCTAVE
from wcompress.entropy.context.tables import LOWEST

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_MOST_CELLS = 1 << 23
# Of a nonzero symbol: how likely it has the expected sign, by how strongly that is expected.
_AGREEMENT = np.array([0.5, 0.6, 0.66, 0.73, 0.82, 0.9, 0.96, 0.98])


@dataclass(frozen=True)
class RateClasses:
    """Classes of weights that share code lengths.

    Attributes:
        of: int32 `[n]`, the class of each weight.
        means: mean magnitude in steps of each class.
        ratios: int, −7 to 7, of each class.
    """

    of: Ints
    means: Floats
    ratios: npt.NDArray[np.int64]

    @classmethod
    def by(cls, description: Description, limit: int) -> RateClasses:
        """Quarter octaves and expected signs; fewer where the tables would be large."""
        scale = description.scales.astype(np.int32) >> 1
        ratio = description.ratios.astype(np.int32)
        if 108 * 15 * 2 * (2 * limit + 1) > _MOST_CELLS:
            ratio = np.zeros_like(ratio)
            scale = scale >> 2 << 2
        used, of = np.unique(scale * 16 + ratio + 7, return_inverse=True)
        octaves = (2 * (used >> 4) + 1) / 8 + LOWEST / UNITS_PER_OCTAVE
        return cls(of.astype(np.int32), np.exp2(octaves), (used & 15) - 7)

    def guessed(self, machine: Trellis, limit: int) -> Floats:
        """Probabilities before any symbol is known, `[n_classes, 2, 2·limit + 1]`."""
        zero, rest = magnitudes_guessed(self.means, machine, limit)
        agree = np.where(self.ratios < 0, 1 - _AGREEMENT[np.abs(self.ratios)], _AGREEMENT[np.abs(self.ratios)])
        agree = agree[:, None, None]
        return np.concatenate([(rest * (1 - agree))[:, :, ::-1], zero[:, :, None], rest * agree], axis=2)

    def rates(
        self, machine: Trellis, limit: int, symbols: Ints | None = None, which: npt.NDArray[np.uint8] | None = None
    ) -> Singles:
        """Code lengths float32 `[n_classes, 2, 2·limit + 1]`: as guessed, or as symbols of these classes show."""
        p = self.guessed(machine, limit)
        p /= p.sum(2, keepdims=True)
        if symbols is not None and which is not None:
            width = 2 * limit + 1
            index = (self.of.astype(np.int64) * 2 + which) * width + np.clip(symbols, -limit, limit) + limit
            counts = np.bincount(index, minlength=p.size).reshape(p.shape)
            total = counts.sum(2, keepdims=True)
            # The guess counts as much as so many symbols.
            p = (counts + 12 * p) / (total + 12)
        result: Singles = -np.log2(np.maximum(p, 1e-9)).astype(np.float32)
        return result
