"""The rate of a model of several groups: decided once, from a sample, and then kept to by each group alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rate:
    """Where on the curve of rate and distortion a model lies.

    Attributes:
        step: of the quantiser, at a scale of 1.
        sqnr_db: that the model has, as it is counted, dB; floors and the precision of fine tensors follow it.
        unit_noise: mean squared error of a weight whose scale is 1.
        mean_square: of the model's weights; None where each tensor's error counts relative to its own.
        has_prior: whether a prior paid in the sample.
        finest: the least step that makes sense.
    """

    step: float
    sqnr_db: float
    unit_noise: float
    mean_square: float | None
    has_prior: bool = False
    finest: float = 0.0

    @property
    def is_finest(self) -> bool:
        """Whether there is no finer step."""
        return self.step <= self.finest

    def moved(self, octaves: float) -> Rate:
        """The rate with a step that is larger by so many octaves, or as fine as steps get; 6 dB each."""
        if self.finest > 0:
            octaves = max(octaves, math.log2(self.finest / self.step))
        factor = 2.0**octaves
        return replace(
            self,
            step=self.step * factor,
            sqnr_db=self.sqnr_db - 6.02 * octaves,
            unit_noise=self.unit_noise * factor**2,
        )
