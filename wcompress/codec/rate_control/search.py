"""Method `vae`: from tensors and a target to what is stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from wcompress.archive import frame_bytes
from wcompress.codec.methods.trellis import VaeCode
from wcompress.codec.models.class_tables.encoder import ClassEncoder
from wcompress.codec.models.context.encoder import ContextEncoder
from wcompress.codec.models.symbol_encoder import SymbolEncoder
from wcompress.codec.options import EntropyParts
from wcompress.codec.quantiser.sequence import Sequencing, choose_layout
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import N_STATES, trellis
from wcompress.codec.quantiser.views import divided
from wcompress.codec.rate_control.floors import Shortfalls, about_db, fine_sqnr_db, lowered
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.solution import EncoderConfig, Solution, finest_step
from wcompress.codec.rate_control.states import n_states_of
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Bisection, Target
from wcompress.codec.rate_control.weights import ModelWeights
from wcompress.codec.storage.near_exact import encode_fine
from wcompress.deadline import Deadline
from wcompress.entropy.tables import TableTooWideError
from wcompress.errors import TargetUnreachable
from wcompress.fidelity import computable, energy
from wcompress.progress import Progress, part

Weights = npt.NDArray[np.floating]

FIRST_CONTEXT_EFFORT = 2
"""The least effort at which symbols are coded under the context model, not under class tables."""

# Of the progress: what a search with few states takes before one with many.
_FEW_STATES_SHARE = 0.75
_MOST_ASIDE = 1e-2  # of all weights
_MOST_SEARCHED = 1 << 30  # bytes that a search may take in each thread
_QUICK_STATES = 64  # with fewer the search takes as long
_MOST_REPAIRS = 10
_FLOOR_TOLERANCE_DB = 0.05


class VaeSearch:
    """Everything about one model that stays the same while a step is looked for.

    Args:
        coded: tensors for the trellis, by name.
        fine: tensors to keep finely.
        rule: how steps follow the tensors, and how errors count.
        block_size, latent_dim: of the prior.
        effort: 1 to 9.
        seed: of the prior.
        device: to train it on.
        exact_energy: Σw² of what is kept exactly beside the coded weights and counts in their SQNR.
        fine_margin_db: how much better fine tensors are kept, at least.
        ties: later name → earlier name of coded tensors that are the same.
        deadline: after which the first solution that meets the target will do.
        floors: hold each tensor, row and channel to its floor, see `wcompress.codec.rate_control.floors`.
        other_bytes: sizes of the archive's sections that are not the method's, for a solution and its SQNR.
        rate: of the model of which this is a group; None where it is all of it.
        of_weights: how many weights the model has of which this is a group or a sample; None where it is all of it.
        parts: of the entropy model that may be used.
        progress: called as the search goes on.
    """

    def __init__(
        self,
        coded: Mapping[str, torch.Tensor],
        fine: Mapping[str, torch.Tensor],
        rule: StepRule,
        *,
        block_size: int,
        latent_dim: int,
        effort: int,
        seed: int,
        device: str,
        exact_energy: float = 0.0,
        fine_margin_db: float = 0.0,
        ties: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
        floors: bool = True,
        other_bytes: Callable[[Solution, float], Sequence[int]] = lambda _solution, _sqnr_db: (),
        rate: Rate | None = None,
        of_weights: int | None = None,
        parts: EntropyParts | None = None,
        progress: Progress | None = None,
    ) -> None:
        n_weights = sum(tensor.numel() for tensor in coded.values())
        self._parts = parts = parts or EntropyParts()
        by_context = parts.context and effort >= FIRST_CONTEXT_EFFORT
        kind: type[SymbolEncoder] = ContextEncoder if by_context else ClassEncoder
        # Without contexts and a prior it makes no difference which weights lie side by side.
        layouts = tuple(
            choose_layout(computable(tensor).numpy(), block_size // latent_dim) if by_context else "rows"
            for tensor in coded.values()
        )
        unit_blocks = kind.model.unit_blocks
        self.sequencing = Sequencing(
            tuple(tuple(t.shape) for t in coded.values()), layouts, block_size, latent_dim, unit_blocks
        )
        self.fine = fine
        self.rate = rate
        self._progress = progress
        self._other_bytes = other_bytes
        self._fine_margin_db = fine_margin_db
        self.deadline, self.was_cut = deadline or Deadline(None), False
        self._floors = floors
        self.slack = 0.4 if effort > 6 else 1.0  # of how far beyond the target is near enough
        self.model = ModelWeights(coded, self.sequencing, rule.counted, exact_energy, ties or {})
        grouped = of_weights is not None
        states = n_states_of(effort, n_weights if of_weights is None else of_weights)
        longest = min(unit_blocks * block_size, n_weights)
        states = max(n for n in N_STATES if n == 1 or (n <= states and n * longest <= _MOST_SEARCHED))
        config = EncoderConfig(
            machine=trellis(states),
            use_prior=parts.prior and effort > 3 and (rate is None or rate.has_prior),
            grouped=grouped,
            mix=effort > 2,
            keep_energy=rule.keep_energy,
            multiplier=rule.multiplier,
            prior_steps=150 + 50 * effort,
            passes=1,
            # Under class tables alone as many as the context model takes, where it is not what effort 1 chooses.
            first_passes=2 if effort < FIRST_CONTEXT_EFFORT or grouped else 3,
            seed=seed,
            device=device,
        )
        self._keeping: Solution | None = None  # of which it is known that it keeps the floors
        self.own_scales = rule.scales
        self._counted: tuple[Weights, npt.NDArray[np.float64]] | None = None
        self._encoder: SymbolEncoder = kind(self._scaled(), self.sequencing, config)

    def _use(self, own_scales: OwnScales, kind: type[SymbolEncoder] | None = None) -> None:
        """Quantise under these scales from now on, by another kind of encoder if one is given."""
        self.own_scales = own_scales
        self._counted = None
        self._encoder = (kind or type(self._encoder))(self._scaled(), self.sequencing, self._encoder.config)

    def _scaled(self) -> Weights:
        # Divided by their own scales; not a copy where there are none.
        return divided(self.model.weights, self.own_scales, self.sequencing)

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

    def sqnr_db(self, solution: Solution) -> float:
        """SQNR of the coded tensors, dB, as it is counted."""
        weights, multipliers = self._as_counted(solution.own_scales or self.own_scales)
        noise = self.code(solution).squared_error(weights, multipliers, solution.ratios)
        return 10 * math.log10(self.model.signal / max(noise, 1e-300)) if self.model.signal else math.inf

    def _as_counted(self, own_scales: OwnScales) -> tuple[Weights, npt.NDArray[np.float64]]:
        is_own = own_scales == self.own_scales
        if is_own and self._counted is not None:
            return self._counted
        counted = self.model.as_counted(own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights))
        if is_own:
            self._counted = counted
        return counted

    def _quality_db(self, solution: Solution) -> float:
        """The SQNR of the model, dB: what the floors, and the precision of fine tensors, follow."""
        return self.sqnr_db(solution) if self.rate is None else self.rate.sqnr_db

    def restored_sqnr_db(self, solution: Solution) -> float:
        """SQNR of what a reader will have, in the tensors' dtypes, as `wcompress.fidelity.compare` pools it; in dB.

        Where no tensor has two dimensions, of all.
        """
        return self.model.restored_sqnr_db(self.code(solution).restored(solution.ratios))

    def sections(self, solution: Solution) -> dict[str, bytes]:
        """Payloads of all the method's sections."""
        return {
            **self.code(solution).to_sections(),
            "fine": encode_fine(self.fine, fine_sqnr_db(self._quality_db(solution), self._fine_margin_db)),
        }

    def run(self, target: Target) -> Solution:
        """Find the step that meets a target from the safe side.

        Raises:
            TargetUnreachable: no step does.
        """
        if self.sequencing.n_weights == 0 or not self.model.signal:
            return self._encoder.solve(1.0)
        if self._floors:
            bits = 0.0 if target.n_bytes is None else 8 * target.n_bytes / self.sequencing.n_weights
            self._cap(about_db(bits) if target.sqnr_db is None else target.sqnr_db)
        guess = self._guess(target)
        self._prepare(guess)
        try:
            found = self._searched(target, guess)
            found.model.check()
            return found
        except TableTooWideError:
            if self._encoder.takes_any:
                raise
            self._use_contexts(guess)
            return self._searched(target, guess)

    def run_at(self, rate: Rate) -> Solution:
        """Code the group at the model's rate."""
        if self.sequencing.n_weights == 0 or self.model.is_nothing:
            return self._encoder.solve(1.0)
        if self._floors:
            self._use_scales(self.model.capped(self.own_scales, rate.sqnr_db, rate))
        self._prepare(rate.step)
        try:
            found = self.solved(rate)
            found.model.check()
            return found
        except TableTooWideError:
            if self._encoder.takes_any:
                raise
            self._use_contexts(rate.step)
            return self.solved(rate)

    def solved(self, rate: Rate) -> Solution:
        """A solution at a rate, in the rounds that a group is given."""
        machine = self._encoder.config.machine
        self._encoder.config = replace(self._encoder.config, machine=trellis(min(machine.n_states, _QUICK_STATES)))
        solution = self._kept_up(self.solve(rate.step, None))
        if machine.n_states == 1 and not self.is_trained:
            return solution  # nothing would be found that is not known
        if self.deadline.passed:
            self.was_cut = True
            return solution
        solution = self.refit(solution)
        self._encoder.config = replace(self._encoder.config, machine=machine)
        return self._kept_up(self.solve(rate.step, solution))

    def _kept_up(self, solution: Solution) -> Solution:
        """A solution at the same step that keeps the floors, as far as finer scales can do that."""
        for _ in range(_MOST_REPAIRS if self._floors else 0):
            lacking = self._lacking(solution)
            if not lacking:
                break
            self._use_scales(lowered(self.own_scales, self.sequencing.shapes, lacking))
            solution = self.solve(solution.step, solution)
        return solution

    def _lacking(self, solution: Solution, tolerance_db: float = 0.0) -> list[Shortfalls]:
        if solution is self._keeping:
            return []
        code, sqnr_db = self.code(solution), self._quality_db(solution)
        lacking = self.model.lacking(code, solution.ratios, sqnr_db, self.rate, tolerance_db=tolerance_db)
        if not lacking and not tolerance_db:
            self._keeping = solution
        return lacking

    def unit_noise(self, solution: Solution) -> float:
        """Mean squared error of a weight whose scale is 1, in the weights' own units."""
        restored = self.code(solution).restored(solution.ratios)
        own_scales = solution.own_scales or self.own_scales
        multipliers = own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
        error = (self.model.weights - restored) / multipliers
        return float(error @ error) / len(error)

    def _prepare(self, step: float) -> None:
        # What the entropy model cannot reach at such a step is set aside.
        if not self._set_aside(step, type(self._encoder)) and not self._encoder.takes_any:
            self._use_contexts(step)

    def _guess(self, target: Target) -> float:
        """About the step that meets a target."""
        scaled = self._encoder.weights
        scale = math.sqrt(energy(scaled) / len(scaled))
        if target.sqnr_db is not None:
            return float(scale * 10 ** (-(target.sqnr_db - 5.0) / 20))
        assert target.n_bytes is not None
        return scale * math.exp2(1.3 - 8 * target.n_bytes / self.sequencing.n_weights)

    def _use_contexts(self, step: float) -> None:
        """Go on with the context model, which takes symbols of any size that a search tries."""
        if not self._parts.context:
            raise TableTooWideError("class tables do not reach all weights, and the context model is left out")
        self._set_aside(step, ContextEncoder)
        self.sequencing = replace(self.sequencing, unit_blocks=ContextEncoder.model.unit_blocks)
        self._use(self.own_scales, ContextEncoder)

    def _searched(self, target: Target, guess: float) -> Solution:
        if self._encoder.config.machine.n_states <= _QUICK_STATES:
            return self._repaired(Bisection(self, target, guess).run(self._progress), target, self._progress)
        start = self._with_few_states(target, guess)
        if self.was_cut:
            return start
        try:
            found = Bisection(self, target, start.step, start, 1).run(part(self._progress, _FEW_STATES_SHARE, 1.0))
        except TargetUnreachable:
            return start
        found = self._repaired(found, target, part(self._progress, _FEW_STATES_SHARE, 1.0))
        # Of a small tensor either may be the better one.
        if target.sqnr_db is not None:
            return min(found, start, key=self.n_bytes)
        return max(found, start, key=self.sqnr_db)

    def _cap(self, sqnr_db: float) -> None:
        """Finer steps for what would likely end below its floor."""
        self._use_scales(self.model.capped(self.own_scales, sqnr_db))

    def _use_scales(self, own_scales: OwnScales) -> None:
        if own_scales != self.own_scales:
            self._use(own_scales)

    def _repaired(self, solution: Solution, target: Target, progress: Progress | None) -> Solution:
        """A solution that meets the target and keeps the floors, from one that meets the target."""
        for _ in range(_MOST_REPAIRS if self._floors else 0):
            lacking = self._lacking(solution)
            if not lacking:
                break
            before = self.own_scales
            self._use(lowered(before, self.sequencing.shapes, lacking))
            try:
                solution = Bisection(self, target, solution.step, solution, 1).run(progress)
            except TargetUnreachable:
                self._use(before)
                break
        return solution

    def keeps_floors(self, solution: Solution) -> bool:
        """Whether every tensor, row and channel has the quality that is promised beside the solution's SQNR."""
        return not self._lacking(solution, _FLOOR_TOLERANCE_DB)

    def _with_few_states(self, target: Target, guess: float) -> Solution:
        """A solution under a trellis whose search is quick: tables, prior and about the step are those of any other."""
        quick = copy.copy(self)
        encoder = quick._encoder = copy.copy(self._encoder)
        encoder.config = replace(encoder.config, machine=trellis(_QUICK_STATES))
        progress = part(self._progress, 0.0, _FEW_STATES_SHARE)
        solution = quick._repaired(Bisection(quick, target, guess).run(progress), target, progress)
        self.was_cut = quick.was_cut
        if quick.own_scales != self.own_scales:
            self._use(quick.own_scales)
        return solution

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

    def measure(self, solution: Solution, target: Target) -> float:
        """How far beyond the target a solution is: at least 0 when it is met. In dB, or in the bytes' fraction."""
        if target.sqnr_db is not None:
            return self.sqnr_db(solution) - target.sqnr_db
        assert target.n_bytes is not None
        return 1.0 - self.n_bytes(solution) / target.n_bytes

    def n_bytes(self, solution: Solution) -> int:
        """The archive's bytes."""
        sizes = [len(data) for data in self.sections(solution).values()]
        sizes += self._other_bytes(solution, self.sqnr_db(solution))
        return sum(sizes) + frame_bytes(sizes)

    def finest_step(self) -> float:
        """The least step that makes sense."""
        return finest_step(max(self._encoder.farthest, default=0.0), self._encoder.config.machine)

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
