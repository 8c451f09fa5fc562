"""What finds symbols offers, whichever model they are coded under."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.entropy_model import EntropyModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.rate_control.solution import EncoderConfig, Solution


class SymbolEncoder(Protocol):
    """Looks for the cheapest way to store one sequence of weights at a given step.

    Args:
        weights: of any float dtype `[n]`, already divided by their tensors' own scales.
        sequencing: where tensors, blocks and units lie.
        config: how hard to look.

    Attributes:
        model: the kind of model that symbols are coded under.
        takes_any: weights may be spread as they like; where not, some need an encoder that takes any.
        far_steps, far_means: the reach: weights beyond so many steps and so many means of their tensor are to be kept
            exactly beside the others.
        is_trained: `refit` trains a model, which takes long.
        config: may be set between two calls.
    """

    model: ClassVar[type[EntropyModel]]
    takes_any: ClassVar[bool]
    far_steps: ClassVar[float]
    far_means: ClassVar[float]
    is_trained: ClassVar[bool]
    config: EncoderConfig

    def __init__(self, weights: npt.NDArray[np.floating], sequencing: Sequencing, config: EncoderConfig) -> None: ...

    @property
    def weights(self) -> npt.NDArray[np.floating]:
        """As given."""

    @property
    def farthest(self) -> list[float]:
        """The largest magnitude of each tensor's weights."""

    def with_weights(self, weights: npt.NDArray[np.floating]) -> Self:
        """The same for other weights, which are much like these."""

    def solve(self, step: float, start: Solution | None = None) -> Solution:
        """The best solution found at `step`.

        Args:
            step: the quantisation step.
            start: a solution of the same kind of encoder at a similar step, whose model is the first guess.
        """

    def refit(self, solution: Solution) -> Solution:
        """The same symbols under a model that is trained on them; as it is where there is nothing to train."""
