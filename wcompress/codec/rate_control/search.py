"""Method `vae`: from tensors and a target to what is stored."""

from __future__ import annotations

import copy
import itertools
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
from wcompress.codec.models.context.model import ContextModel
from wcompress.codec.quantiser.sequence import CONTEXT_UNIT_BLOCKS, UNIT_BLOCKS, Sequencing, choose_layout
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import N_STATES, trellis
from wcompress.codec.rate_control.floors import FINE_RANGE_DB, about_db, fine_sqnr_db, lowered
from wcompress.codec.rate_control.solution import EncoderConfig, Solution, finest_step
from wcompress.codec.rate_control.step_search import Bisection, Target
from wcompress.codec.rate_control.weights import ModelWeights, fits_singles
from wcompress.codec.storage.near_exact import encode_fine
from wcompress.deadline import Deadline
from wcompress.entropy.tables import TableTooWideError
from wcompress.errors import TargetUnreachable
from wcompress.fidelity import computable, energy
from wcompress.progress import Progress, part

Weights = npt.NDArray[np.floating]

SQNR_MULTIPLIER = 0.33
"""Lagrangian for the least squared error; see docs/decisions/0004."""

# Of the progress: what a search with few states takes before one with many, and a sample before the whole.
_FEW_STATES_SHARE, _SAMPLE_SHARE = 0.75, 0.3
_MOST_ASIDE = 1e-2  # of all weights
_STATES = {1: 1, 2: 64, 3: 64, 4: 64, 5: 64, 6: 256, 7: 1024, 8: 4096, 9: 16384}
_MOST_SEARCHED = 1 << 27  # bytes that a search may take in each thread
_QUICK_STATES = 64  # with fewer the search takes as long
_SMALL_MODEL = 1 << 21  # weights up to which a default search can afford many states
_FAR_STEPS, _FAR_MEANS, FARTHEST_STEPS = 500.0, 64.0, 12000.0
_SAMPLE = 1 << 18  # weights on which a large model's step is found
_MOST_REPAIRS = 10
_FLOOR_TOLERANCE_DB = 0.05
_MOST_CORRECTIONS = 3
_MOST_BYTES_LEFT = 0.015  # of a target of bytes
_SMALL_STATES = {3: 256, 4: 1024, 5: 16384, 6: 16384, 7: 16384, 8: 16384}


class VaeSearch:
    """Everything about one model that stays the same while a step is looked for.

    Args:
        coded: tensors for the trellis, by name.
        fine: tensors to keep finely.
        own_scales: exponents for each coded tensor.
        counted_by: the SQNR is that of weights and errors divided by these scales; by default as they are.
        multiplier, keep_energy: see `EncoderConfig`; by default for the least squared error.
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
        progress: called as the search goes on.
    """

    def __init__(
        self,
        coded: Mapping[str, torch.Tensor],
        fine: Mapping[str, torch.Tensor],
        own_scales: OwnScales,
        *,
        counted_by: OwnScales | None = None,
        multiplier: float = SQNR_MULTIPLIER,
        keep_energy: bool = False,
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
        progress: Progress | None = None,
    ) -> None:
        arrays = [computable(tensor).numpy() for tensor in coded.values()]
        layouts = tuple(choose_layout(array, block_size // latent_dim) for array in arrays)
        n_weights = sum(array.size for array in arrays)
        by_context = effort > 1 and n_weights <= _SMALL_MODEL
        unit_blocks = CONTEXT_UNIT_BLOCKS if by_context else UNIT_BLOCKS
        self.sequencing = Sequencing(tuple(a.shape for a in arrays), layouts, block_size, latent_dim, unit_blocks)
        self.fine = fine
        self._progress = progress
        self._other_bytes = other_bytes
        self._fine_margin_db = fine_margin_db
        self.deadline, self.was_cut = deadline or Deadline(None), False
        self._estimates = False
        self._correction = 0
        self._floors = floors
        self.slack = 0.4 if effort > 6 else 1.0  # of how far beyond the target is near enough
        wide = n_weights <= _SMALL_MODEL or not all(fits_singles(array) for array in arrays)
        self.model = ModelWeights(
            coded, self.sequencing, np.float64 if wide else np.float32, counted_by, exact_energy, ties or {}
        )
        states = _STATES[effort]
        if n_weights <= _SMALL_MODEL:
            states = _SMALL_STATES.get(effort, states)
        longest = min(unit_blocks * block_size, n_weights)
        states = max(n for n in N_STATES if n == 1 or (n <= states and n * longest <= 8 * _MOST_SEARCHED))
        config = EncoderConfig(
            machine=trellis(states),
            use_prior=effort > 3,
            mix=effort > 2,
            keep_energy=keep_energy,
            multiplier=multiplier,
            prior_steps=150 + 50 * effort,
            passes=1,
            seed=seed,
            device=device,
        )
        self._use(own_scales, ContextEncoder if by_context else ClassEncoder, config)
        self._signal = self.model.signal

    def _use(self, own_scales: OwnScales, kind: type[ContextEncoder | ClassEncoder], config: EncoderConfig) -> None:
        """Quantise under these scales from now on."""
        self.own_scales = own_scales
        self._multipliers = own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
        self._counted = self.model.as_counted(self._multipliers)
        self._encoder: ContextEncoder | ClassEncoder = kind(self._scaled(), self.sequencing, config)

    def _scaled(self) -> Weights:
        # Divided by their own scales; not a copy where there are none.
        weights = self.model.weights
        return weights if len(self._multipliers) == 1 else weights / self._multipliers

    def code(self, solution: Solution) -> VaeCode:
        """What is stored."""
        sequencing = self.sequencing
        unit_blocks = CONTEXT_UNIT_BLOCKS if isinstance(solution.model, ContextModel) else UNIT_BLOCKS
        if sequencing.unit_blocks != unit_blocks:  # found before the way of coding changed
            sequencing = replace(sequencing, unit_blocks=unit_blocks)
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
        weights, multipliers = self._counted
        if solution.own_scales is not None and solution.own_scales != self.own_scales:
            multipliers = solution.own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
            weights, multipliers = self.model.as_counted(multipliers)
        noise = self.code(solution).squared_error(weights, multipliers, solution.ratios)
        return 10 * math.log10(self._signal / max(noise, 1e-300)) if self._signal else math.inf

    def restored_sqnr_db(self, solution: Solution) -> float:
        """SQNR of what a reader will have, in the tensors' dtypes, as `wcompress.fidelity.compare` pools it; in dB.

        Where no tensor has two dimensions, of all.
        """
        return self.model.restored_sqnr_db(self.code(solution).restored(solution.ratios))

    def sections(self, solution: Solution) -> dict[str, bytes]:
        """Payloads of all the method's sections."""
        return {
            **self.code(solution).to_sections(),
            "fine": encode_fine(self.fine, fine_sqnr_db(self.sqnr_db(solution), self._fine_margin_db)),
        }

    def run(self, target: Target) -> Solution:
        """Find the step that meets a target from the safe side.

        Raises:
            TargetUnreachable: no step does.
        """
        if self.sequencing.n_weights == 0 or not self._signal:
            return self._encoder.solve(1.0)
        if self._floors:
            bits = 0.0 if target.n_bytes is None else 8 * target.n_bytes / self.sequencing.n_weights
            self._cap(about_db(bits) if target.sqnr_db is None else target.sqnr_db)
        guess = self._guess(target)
        if isinstance(self._encoder, ClassEncoder) and not self._within_tables(guess):
            self._use_contexts(guess)
        elif isinstance(self._encoder, ContextEncoder):
            self._set_aside(FARTHEST_STEPS * guess, 0.0)
        try:
            found = self._searched(target, guess)
            found.header_bits  # noqa: B018 - tables are written, which says whether a reader takes them
            return found
        except TableTooWideError:
            if isinstance(self._encoder, ContextEncoder):
                raise
            self._use_contexts(guess)
            return self._searched(target, guess)

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
        self._set_aside(FARTHEST_STEPS * step, 0.0)
        self.sequencing = replace(self.sequencing, unit_blocks=CONTEXT_UNIT_BLOCKS)
        self._use(self.own_scales, ContextEncoder, self._encoder.config)

    def _searched(self, target: Target, guess: float) -> Solution:
        if self.sequencing.n_weights <= _SMALL_MODEL or isinstance(self._encoder, ContextEncoder):
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
        start = self._sampled(target, guess, part(self._progress, 0.0, _SAMPLE_SHARE))
        # What a sample has settled needs no settling; only a prior is still to be trained.
        use_prior = self._encoder.config.use_prior
        search = Bisection(self, target, start.step, None if use_prior else start, int(use_prior))
        margin = 0.0
        if target.n_bytes is not None:
            # What is stored once weighs more in the sample.
            share = len(start.symbols) / self.sequencing.n_weights
            margin = 1.0 - self._estimated(start, start.symbol_bits / share, FINE_RANGE_DB[0]) / target.n_bytes
        search.expect(margin)
        progress = part(self._progress, _SAMPLE_SHARE, 1.0)
        return self._corrected(self._repaired(search.run(progress), target, progress), target)

    def _corrected(self, solution: Solution, target: Target) -> Solution:
        """A solution whose archive, not its estimate alone, has the bytes that were asked for."""
        for _ in range(_MOST_CORRECTIONS):
            if target.n_bytes is None:
                break
            n_bytes = self._exact_bytes(solution)
            if (1 - _MOST_BYTES_LEFT) * target.n_bytes <= n_bytes <= target.n_bytes:
                break
            self._correction += n_bytes - self.n_bytes(solution)
            try:
                solution = Bisection(self, target, solution.step, solution, 1).run(self._progress)
            except TargetUnreachable:
                if n_bytes > target.n_bytes:
                    raise
                break
        return solution

    def _cap(self, sqnr_db: float) -> None:
        """Finer steps for what would likely end below its floor."""
        own_scales = self.model.capped(self.own_scales, sqnr_db)
        if own_scales != self.own_scales:
            self._use(own_scales, type(self._encoder), self._encoder.config)

    def _repaired(self, solution: Solution, target: Target, progress: Progress | None) -> Solution:
        """A solution that meets the target and keeps the floors, from one that meets the target."""
        for _ in range(_MOST_REPAIRS if self._floors else 0):
            lacking = self.model.lacking(self.code(solution).restored(solution.ratios), self.sqnr_db(solution))
            if not lacking:
                break
            before = self.own_scales
            own_scales = lowered(before, self.sequencing.shapes, lacking)
            self._use(own_scales, type(self._encoder), self._encoder.config)
            try:
                solution = Bisection(self, target, solution.step, solution, 1).run(progress)
            except TargetUnreachable:
                self._use(before, type(self._encoder), self._encoder.config)
                break
        return solution

    def keeps_floors(self, solution: Solution) -> bool:
        """Whether every tensor, row and channel has the quality that is promised beside the solution's SQNR."""
        restored = self.code(solution).restored(solution.ratios)
        return not self.model.lacking(restored, self.sqnr_db(solution), tolerance_db=_FLOOR_TOLERANCE_DB)

    def _with_few_states(self, target: Target, guess: float) -> Solution:
        """A solution under a trellis whose search is quick: tables, prior and about the step are those of any other."""
        quick = copy.copy(self)
        encoder = quick._encoder = copy.copy(self._encoder)
        encoder.config = replace(encoder.config, machine=trellis(_QUICK_STATES))
        progress = part(self._progress, 0.0, _FEW_STATES_SHARE)
        solution = quick._repaired(Bisection(quick, target, guess).run(progress), target, progress)
        self.was_cut = quick.was_cut
        if quick.own_scales != self.own_scales:
            self._use(quick.own_scales, type(self._encoder), self._encoder.config)
        return solution

    def _within_tables(self, step: float) -> bool:
        """Whether class tables, of 2047 magnitudes at most, reach all weights, once a few far ones are set aside."""
        return self._set_aside(_FAR_STEPS * step, _FAR_MEANS)

    def _set_aside(self, limit: float, n_means: float) -> bool:
        """Keep the few weights exactly that are beyond a limit and so many times their tensor's mean.

        Args:
            limit: of magnitudes divided by their own scales.
            n_means: likewise of a tensor's mean magnitude.

        Returns:
            Whether none is left.
        """
        weights, far = self._encoder.weights, []
        for span in self.model.spans:
            some = np.abs(weights[span])
            if len(some) and some.max() > limit:
                beyond = max(limit, n_means * float(some.mean(dtype=np.float64)))
                far.append(np.flatnonzero(some > beyond) + span.start)
        places = np.concatenate(far) if far else np.zeros(0, np.int64)
        if len(places) > _MOST_ASIDE * len(weights):
            return False
        if len(places):
            self.model.set_aside(places)
            self._use(self.own_scales, type(self._encoder), self._encoder.config)
        return True

    def _sampled(self, target: Target, guess: float, progress: Progress | None) -> Solution:
        """A solution on a sample of the sub-blocks: the step it needs is the whole model's, but for chance."""
        sequencing, sub_size = self.sequencing, self.sequencing.sub_size
        stride = max(1, sequencing.n_weights // _SAMPLE)
        parts, shapes = [], []
        for start, end in itertools.pairwise(sequencing.starts):
            whole = (end - start) // sub_size
            chosen = np.arange(0, whole, stride)[:, None] * sub_size + np.arange(sub_size) + start
            part = chosen.reshape(-1) if whole else np.arange(start, end)
            parts.append(part)
            shapes.append((len(part),))
        taken = np.concatenate(parts)
        sample = copy.copy(self)
        sample.sequencing = replace(sequencing, shapes=tuple(shapes), layouts=("rows",) * len(shapes))
        sample._floors = False
        counted, multipliers = self._counted
        sample._counted = counted[taken], multipliers if len(multipliers) == 1 else multipliers[taken]
        sample._estimates, sample._correction = True, 0
        sample._signal = energy(sample._counted[0]) * (1 + self.model.exact_share)
        config = replace(self._encoder.config, use_prior=False)
        sample._encoder = ClassEncoder(self._encoder.weights[taken], sample.sequencing, config)
        if target.n_bytes is not None:
            target = Target(n_bytes=round(target.n_bytes * len(taken) / sequencing.n_weights))
            sample._other_bytes = lambda _solution, _sqnr_db: ()
            sample.fine = {}
        return Bisection(sample, target, guess).run(progress)

    def measure(self, solution: Solution, target: Target) -> float:
        """How far beyond the target a solution is: at least 0 when it is met. In dB, or in the bytes' fraction."""
        if target.sqnr_db is not None:
            return self.sqnr_db(solution) - target.sqnr_db
        assert target.n_bytes is not None
        return 1.0 - self.n_bytes(solution) / target.n_bytes

    def n_bytes(self, solution: Solution) -> int:
        """The archive's bytes; of a large model by the symbols' ideal code length, met within a few bytes a unit."""
        sqnr_db = self.sqnr_db(solution)
        if not self._estimates and (
            self.sequencing.n_weights <= _SMALL_MODEL or isinstance(self._encoder, ContextEncoder)
        ):
            return self._exact_bytes(solution)
        return self._estimated(solution, solution.symbol_bits, sqnr_db) + self._correction

    def _exact_bytes(self, solution: Solution) -> int:
        sizes = [len(data) for data in self.sections(solution).values()]
        sizes += self._other_bytes(solution, self.sqnr_db(solution))
        return sum(sizes) + frame_bytes(sizes)

    def _estimated(self, solution: Solution, symbol_bits: float, sqnr_db: float) -> int:
        n_units = len(self.sequencing.unit_starts) - 1
        coded = (solution.header_bits + int(symbol_bits)) // 8 + 24 * n_units + 40
        sizes = [coded, len(encode_fine(self.fine, fine_sqnr_db(sqnr_db, self._fine_margin_db)))]
        sizes += self._other_bytes(solution, sqnr_db)
        return sum(sizes) + frame_bytes(sizes)

    @property
    def is_small(self) -> bool:
        """Whether many rounds can be afforded."""
        return self.sequencing.n_weights <= _SMALL_MODEL

    def finest_step(self) -> float:
        """The least step that makes sense."""
        return finest_step(self._encoder.weights, self._encoder.config.machine)

    def solve(self, step: float, start: Solution | None) -> Solution:
        """A solution at `step`."""
        return replace(self._encoder.solve(step, start), own_scales=self.own_scales)

    @property
    def is_trained(self) -> bool:
        """Whether `refit` trains a model, which takes long."""
        return isinstance(self._encoder, ContextEncoder)

    def refit(self, solution: Solution) -> Solution:
        """The same symbols under a model trained on them."""
        if not isinstance(self._encoder, ContextEncoder):
            return solution
        return replace(self._encoder.refit(solution), own_scales=self.own_scales)
