"""Method `vae`: from tensors and a target to what is stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from wcompress.codec.models.class_tables.encoder import ClassEncoder
from wcompress.codec.models.context.encoder import ContextEncoder
from wcompress.codec.models.symbol_encoder import SymbolEncoder
from wcompress.codec.options import EntropyParts
from wcompress.codec.quantiser.sequence import Sequencing, choose_layout
from wcompress.codec.quantiser.trellis import N_STATES, trellis
from wcompress.codec.rate_control.coding import Coding, OtherBytes
from wcompress.codec.rate_control.floors import about_db, lowered
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.solution import EncoderConfig, Solution
from wcompress.codec.rate_control.states import n_states_of
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Bisection, Target
from wcompress.codec.rate_control.weights import ModelWeights
from wcompress.deadline import Deadline
from wcompress.entropy.tables import TableTooWideError
from wcompress.errors import TargetUnreachable
from wcompress.fidelity import computable, energy
from wcompress.progress import Progress, part

FIRST_CONTEXT_EFFORT = 2
"""The least effort at which symbols are coded under the context model, not under class tables."""

# Of the progress: what a search with few states takes before one with many.
_FEW_STATES_SHARE = 0.75
_MOST_SEARCHED = 1 << 30  # bytes that a search may take in each thread
_QUICK_STATES = 64  # with fewer the search takes as long
_FEEDBACK_STATES = 8  # a path that starts anew in each column gains little by more
_MOST_REPAIRS = 10


class VaeSearch(Coding):
    """The search for the step at which one model, or a group of one, meets a target.

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
        other_bytes: see `OtherBytes`.
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
        other_bytes: OtherBytes = lambda _solution, _sqnr_db: (),
        rate: Rate | None = None,
        of_weights: int | None = None,
        parts: EntropyParts | None = None,
        progress: Progress | None = None,
    ) -> None:
        n_weights = sum(tensor.numel() for tensor in coded.values())
        parts = parts or EntropyParts()
        by_context = rule.feedbacks is not None or (parts.context and effort >= FIRST_CONTEXT_EFFORT)
        kind: type[SymbolEncoder] = ContextEncoder if by_context else ClassEncoder
        # Without contexts and a prior it makes no difference which weights lie side by side.
        layouts = tuple(
            choose_layout(rule.scales.divided(number, computable(tensor).numpy()), block_size // latent_dim)
            if by_context
            else "rows"
            for number, tensor in enumerate(coded.values())
        )
        if rule.feedbacks is not None:
            layouts = tuple(feedback.layout for feedback in rule.feedbacks)
        unit_blocks = kind.model.unit_blocks
        sequencing = Sequencing(
            tuple(tuple(t.shape) for t in coded.values()), layouts, block_size, latent_dim, unit_blocks
        )
        self._progress = progress
        self.deadline, self.was_cut = deadline or Deadline(None), False
        self._floors = floors
        self.slack = 0.4 if effort > 6 else 1.0  # of how far beyond the target is near enough
        grouped = of_weights is not None
        states = n_states_of(effort, n_weights if of_weights is None else of_weights)
        longest = min(unit_blocks * block_size, n_weights)
        states = max(n for n in N_STATES if n == 1 or (n <= states and n * longest <= _MOST_SEARCHED))
        if rule.feedbacks is not None:
            states = _FEEDBACK_STATES
        config = EncoderConfig(
            machine=trellis(states),
            use_prior=parts.prior and effort > 3 and (rate is None or rate.has_prior),
            grouped=grouped,
            feedbacks=rule.feedbacks,
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
        super().__init__(
            ModelWeights(coded, sequencing, rule.counted, exact_energy, ties or {}),
            fine,
            sequencing,
            rule.scales,
            kind,
            config,
            may_use_contexts=parts.context,
            fine_margin_db=fine_margin_db,
            rate=rate,
            other_bytes=other_bytes,
        )

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

    def _guess(self, target: Target) -> float:
        """About the step that meets a target."""
        scaled = self._encoder.weights
        scale = math.sqrt(energy(scaled) / len(scaled))
        if target.sqnr_db is not None:
            return float(scale * 10 ** (-(target.sqnr_db - 5.0) / 20))
        assert target.n_bytes is not None
        return scale * math.exp2(1.3 - 8 * target.n_bytes / self.sequencing.n_weights)

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

    def measure(self, solution: Solution, target: Target) -> float:
        """How far beyond the target a solution is: at least 0 when it is met. In dB, or in the bytes' fraction."""
        if target.sqnr_db is not None:
            return self.sqnr_db(solution) - target.sqnr_db
        assert target.n_bytes is not None
        return 1.0 - self.n_bytes(solution) / target.n_bytes
