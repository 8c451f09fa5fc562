"""The weights of one model, solutions for them at single steps, and what these are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from wcompress.archive import frame_bytes
from wcompress.codec.methods.trellis import VaeCode
from wcompress.codec.models.context.encoder import ContextEncoder
from wcompress.codec.models.symbol_encoder import SymbolEncoder
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.views import divided
from wcompress.codec.rate_control.floors import Shortfalls, about_db, fine_sqnr_db
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.solution import EncoderConfig, Solution, finest_step
from wcompress.codec.rate_control.weights import ModelWeights
from wcompress.codec.storage.near_exact import encode_fine
from wcompress.entropy.tables import TableTooWideError

Weights = npt.NDArray[np.floating]
OtherBytes = Callable[[Solution, float], Sequence[int]]
"""Sizes of the archive's sections that are not the method's, for a solution and its SQNR."""

_MOST_ASIDE = 1e-2  # of all weights
_FLOOR_TOLERANCE_DB = 0.05


class Coding:
    """A model under one way of coding and under own scales of tensors and rows; both may change while one searches.

    Args:
        model: the weights.
        fine: tensors to keep finely.
        sequencing: how the weights lie in the sequence.
        own_scales: of the tensors, at first.
        kind: of encoder, at first.
        config: of it.
        may_use_contexts: go on with the context model where another does not take the weights.
        fine_margin_db: how much better fine tensors are kept, at least.
        rate: of the model of which this is a group; None where it is all of it.
        other_bytes: see there.
    """

    def __init__(
        self,
        model: ModelWeights,
        fine: Mapping[str, torch.Tensor],
        sequencing: Sequencing,
        own_scales: OwnScales,
        kind: type[SymbolEncoder],
        config: EncoderConfig,
        *,
        may_use_contexts: bool,
        fine_margin_db: float,
        rate: Rate | None,
        other_bytes: OtherBytes,
    ) -> None:
        self.model, self.fine, self.sequencing, self.rate = model, fine, sequencing, rate
        self._may_use_contexts = may_use_contexts
        self._fine_margin_db, self._other_bytes = fine_margin_db, other_bytes
        self._keeping: Solution | None = None  # of which it is known that it keeps the floors
        self._written: list[
            tuple[Solution, dict[str, bytes]]
        ] = []  # the last two, which may be compared and then stored
        self.own_scales = own_scales
        self._counted: tuple[Weights, npt.NDArray[np.float64]] | None = None
        self._encoder: SymbolEncoder = kind(self._scaled(), self.sequencing, config)

    def _use(self, own_scales: OwnScales, kind: type[SymbolEncoder] | None = None) -> None:
        """Quantise under these scales from now on, by another kind of encoder if one is given."""
        self.own_scales = own_scales
        self._counted = None
        self._encoder = (kind or type(self._encoder))(self._scaled(), self.sequencing, self._encoder.config)

    def _use_scales(self, own_scales: OwnScales) -> None:
        if own_scales != self.own_scales:
            self._use(own_scales)

    def _scaled(self) -> Weights:
        # Divided by their own scales; not a copy where there are none.
        return divided(self.model.weights, self.own_scales, self.sequencing)

    def solve(self, step: float, start: Solution | None) -> Solution:
        """A solution at `step`."""
        return replace(self._encoder.solve(step, start), own_scales=self.own_scales)

    @property
    def is_trained(self) -> bool:
        """Whether `refit` trains a model, which takes long."""
        return self._encoder.is_trained

    def refit(self, solution: Solution) -> Solution:
        """The same symbols under a model trained on them."""
        if not self.is_trained:
            return solution
        return replace(self._encoder.refit(solution), own_scales=self.own_scales)

    def finest_step(self) -> float:
        """The least step that makes sense."""
        return finest_step(max(self._encoder.farthest, default=0.0), self._encoder.config.machine)

    def _prepare(self, step: float) -> None:
        # What the entropy model cannot reach at such a step is set aside.
        if not self._set_aside(step, type(self._encoder)) and not self._encoder.takes_any:
            self._use_contexts(step)

    def _set_aside(self, step: float, kind: type[SymbolEncoder]) -> bool:
        """Keep the few weights exactly that are beyond an encoder's reach at a step.

        Returns:
            Whether none is left; nothing is set aside where they are more than a few.
        """
        limit, weights, far = kind.far_steps * step, self._encoder.weights, []
        for span, largest in zip(self.model.spans, self._encoder.farthest, strict=True):
            if largest > limit:
                some = np.abs(weights[span])
                beyond = max(limit, kind.far_means * float(some.mean(dtype=np.float64)))
                far.append(np.flatnonzero(some > beyond) + span.start)
        places = np.concatenate(far) if far else np.zeros(0, np.int64)
        if len(places) > _MOST_ASIDE * len(weights):
            return False
        if len(places):
            self.model.set_aside(places)
            self._use(self.own_scales)
        return True

    def _use_contexts(self, step: float) -> None:
        """Go on with the context model, which takes symbols of any size that a search tries."""
        if not self._may_use_contexts:
            raise TableTooWideError("class tables do not reach all weights, and the context model is left out")
        self._set_aside(step, ContextEncoder)
        self.sequencing = replace(self.sequencing, unit_blocks=ContextEncoder.model.unit_blocks)
        self._use(self.own_scales, ContextEncoder)

    def code(self, solution: Solution) -> VaeCode:
        """What is stored."""
        sequencing = self.sequencing
        if sequencing.unit_blocks != solution.model.unit_blocks:  # found before the way of coding changed
            sequencing = replace(sequencing, unit_blocks=solution.model.unit_blocks)
        return VaeCode(
            sequencing,
            solution.machine,
            solution.step,
            solution.own_scales or self.own_scales,
            solution.model,
            solution.levels,
            solution.symbols,
        )

    def sections(self, solution: Solution) -> dict[str, bytes]:
        """Payloads of all the method's sections."""
        known = next((sections for of, sections in self._written if of is solution), None)
        if known is not None:
            return known
        sections = self.code(solution).to_sections()
        sections["fine"] = encode_fine(self.fine, self._fine_db(solution, len(sections["symbols"])))
        self._written = [*self._written[-1:], (solution, sections)]
        return sections

    def n_bytes(self, solution: Solution) -> int:
        """The archive's bytes."""
        sizes = [len(data) for data in self.sections(solution).values()]
        sizes += self._other_bytes(solution, self.sqnr_db(solution))
        return sum(sizes) + frame_bytes(sizes)

    def sqnr_db(self, solution: Solution) -> float:
        """SQNR of the coded tensors, dB, as it is counted."""
        weights, multipliers = self._as_counted(solution.own_scales or self.own_scales)
        noise = self.code(solution).squared_error(weights, multipliers, solution.ratios)
        return 10 * math.log10(self.model.signal / max(noise, 1e-300)) if self.model.signal else math.inf

    def restored_sqnr_db(self, solution: Solution) -> float:
        """SQNR of what a reader will have, in the tensors' dtypes, as `wcompress.fidelity.compare` pools it; in dB.

        Where no tensor has two dimensions, of all.
        """
        return self.model.restored_sqnr_db(self.code(solution).restored(solution.ratios))

    def unit_noise(self, solution: Solution) -> float:
        """Mean squared error of a weight whose scale is 1, in the weights' own units."""
        restored = self.code(solution).restored(solution.ratios)
        own_scales = solution.own_scales or self.own_scales
        multipliers = own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
        error = (self.model.weights - restored) / multipliers
        return float(error @ error) / len(error)

    def _as_counted(self, own_scales: OwnScales) -> tuple[Weights, npt.NDArray[np.float64]]:
        is_own = own_scales == self.own_scales
        if is_own and self._counted is not None:
            return self._counted
        counted = self.model.as_counted(own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights))
        if is_own:
            self._counted = counted
        return counted

    def _quality_db(self, solution: Solution) -> float:
        """The SQNR of the model, dB, which floors follow."""
        return self.sqnr_db(solution) if self.rate is None else self.rate.sqnr_db

    def _fine_db(self, solution: Solution, symbol_bytes: int) -> float:
        """How precisely fine tensors are kept, dB.

        Where errors are fed back, weights end far from what they were and outputs do not: as if the weights had the
        SQNR that as many bits give without feedback.
        """
        quality_db = self._quality_db(solution)
        if self._encoder.config.feedbacks is not None:
            quality_db = about_db(8 * symbol_bytes / max(1, self.sequencing.n_weights))
        return fine_sqnr_db(quality_db, self._fine_margin_db)

    def keeps_floors(self, solution: Solution) -> bool:
        """Whether every tensor, row and channel has the quality that is promised beside the solution's SQNR."""
        return not self._lacking(solution, _FLOOR_TOLERANCE_DB)

    def _lacking(self, solution: Solution, tolerance_db: float = 0.0) -> list[Shortfalls]:
        if solution is self._keeping:
            return []
        code, sqnr_db = self.code(solution), self._quality_db(solution)
        lacking = self.model.lacking(code, solution.ratios, sqnr_db, self.rate, tolerance_db=tolerance_db)
        if not lacking and not tolerance_db:
            self._keeping = solution
        return lacking
