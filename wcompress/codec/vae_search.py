"""Method `vae`: from tensors and a target to what is stored."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from wcompress.archive import frame_bytes
from wcompress.codec.class_encoder import ClassEncoder
from wcompress.codec.context_encoder import ContextEncoder
from wcompress.codec.elements import round_to_dtype
from wcompress.codec.fine import encode_fine
from wcompress.codec.floors import Floors, Groups, Shortfalls, about_db, capped, lowered, shortfalls
from wcompress.codec.own_scales import WHOLE, OwnScales
from wcompress.codec.solution import EncoderConfig, Solution, finest_step
from wcompress.codec.vae_method import VaeCode
from wcompress.codec.weights import CONTEXT_UNIT_BLOCKS, UNIT_BLOCKS, Sequencing, choose_layout
from wcompress.errors import TargetUnreachable
from wcompress.fidelity import compare, computable, energy, farthest
from wcompress.progress import Progress, part
from wcompress.quantize.trellis import N_STATES, trellis

Weights = npt.NDArray[np.floating]

SQNR_MULTIPLIER = 0.33
"""Lagrangian for the least squared error; see docs/decisions/0004."""

_SEARCHING, _TRAINING = "finding the step size", "training the entropy model"
# Of the progress: what a search with few states takes before one with many, a sample before the whole, and how many
# rounds there are after settling and how many take as long as training.
_FEW_STATES_SHARE, _SAMPLE_SHARE, _USUAL_ROUNDS, _TRAINING_ROUNDS = 0.75, 0.3, 2, 20
_ROUNDS = 12
_SMALL_MODEL_ROUNDS = 30
_SETTLING_ROUNDS = 4
_ROUNDS_PER_ANCHOR = 6
_SQNR_SLACK_DB = 0.05
_BYTES_SLACK = 0.004
_FINE_MARGIN_DB, _FINE_MARGIN_FROM_DB = (14.0, 32.0), 18.0
_FINE_RANGE_DB = (24.0, 90.0)
_MOST_EXACT = 9.0  # times the coded weights' energy
_STATES = {1: 1, 2: 64, 3: 64, 4: 64, 5: 64, 6: 256, 7: 1024, 8: 4096, 9: 16384}
_MOST_SEARCHED = 1 << 27  # bytes that a search may take in each thread
_QUICK_STATES = 64  # with fewer the search takes as long
_SMALL_MODEL = 1 << 21  # weights up to which a default search can afford many states
_FAR_STEPS, _FAR_MEANS = 500.0, 64.0
_SAMPLE = 1 << 18  # weights on which a large model's step is found
_MOST_REPAIRS = 6
_MOST_CORRECTIONS = 3
_MOST_BYTES_LEFT = 0.015  # of a target of bytes
_SMALL_STATES = {3: 256, 4: 1024, 5: 16384, 6: 16384, 7: 16384, 8: 16384}


@dataclass(frozen=True)
class Target:
    """What the archive has to meet; exactly one is given.

    Attributes:
        sqnr_db: at least this SQNR.
        n_bytes: at most so many bytes for the whole archive.
        wanted: the target of bytes as it was given.
        in_words: what an archive of so many bytes is called, in the unit that the target was given in.
    """

    sqnr_db: float | None = None
    n_bytes: int | None = None
    wanted: str = ""
    in_words: Callable[[int], str] = "{} bytes".format


def _fits_singles(array: npt.NDArray[np.floating]) -> bool:
    # Whether float32 has room for it, and for what is made of it.
    largest = farthest(array)
    return array.dtype == np.float32 and (largest == 0 or 1e-30 < largest < 1e30)


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
        floors: hold each tensor, row and channel to its floor, see `wcompress.codec.floors`.
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
        floors: bool = True,
        other_bytes: Callable[[Solution, float], Sequence[int]] = lambda _solution, _sqnr_db: (),
        progress: Progress | None = None,
    ) -> None:
        self._coded = coded
        arrays = [computable(tensor).numpy() for tensor in coded.values()]
        layouts = tuple(choose_layout(array, block_size // latent_dim) for array in arrays)
        n_weights = sum(array.size for array in arrays)
        by_context = effort > 1 and n_weights <= _SMALL_MODEL
        unit_blocks = CONTEXT_UNIT_BLOCKS if by_context else UNIT_BLOCKS
        self.sequencing = Sequencing(tuple(a.shape for a in arrays), layouts, block_size, latent_dim, unit_blocks)
        self.fine = fine
        self._progress = progress
        self._other_bytes = other_bytes
        self._estimates = False
        self._correction = 0
        self._floors = floors
        self._groups: list[Groups] = []
        self.slack = 0.4 if effort > 6 else 1.0  # of how far beyond the target is near enough
        wide = n_weights <= _SMALL_MODEL or not all(_fits_singles(array) for array in arrays)
        self._weights = self.sequencing.flatten(arrays, np.float64 if wide else np.float32)
        self._counted_by = None if counted_by is None or counted_by.is_plain else counted_by
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
        self._signal = energy(self._counted[0])
        # What dwarfs all else may not buy it cheap.
        self._exact_share = min(exact_energy / self._signal, _MOST_EXACT) if self._signal else 0.0
        self._signal *= 1 + self._exact_share

    def _use(self, own_scales: OwnScales, kind: type[ContextEncoder | ClassEncoder], config: EncoderConfig) -> None:
        """Quantise under these scales from now on."""
        self.own_scales = own_scales
        self._multipliers = own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
        self._counted = self._as_counted(own_scales)
        self._encoder: ContextEncoder | ClassEncoder = kind(self._scaled(), self.sequencing, config)

    def _as_counted(self, own_scales: OwnScales) -> tuple[Weights, npt.NDArray[np.float64]]:
        # The weights, and what their steps are multiplied by, in the units in which errors count.
        n_weights = self.sequencing.n_weights
        multipliers = own_scales.multipliers(self.sequencing, 0, n_weights)
        if self._counted_by is None:
            return self._weights, multipliers
        counted = self._counted_by.multipliers(self.sequencing, 0, n_weights)
        return self._weights / counted, multipliers / counted

    def _scaled(self) -> Weights:
        # Divided by their own scales; not a copy where there are none.
        return self._weights if len(self._multipliers) == 1 else self._weights / self._multipliers

    def code(self, solution: Solution) -> VaeCode:
        """What is stored."""
        return VaeCode(
            self.sequencing,
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
            weights, multipliers = self._as_counted(solution.own_scales)
        noise = self.code(solution).squared_error(weights, multipliers, solution.ratios)
        return 10 * math.log10(self._signal / max(noise, 1e-300)) if self._signal else math.inf

    def restored_sqnr_db(self, solution: Solution) -> float:
        """SQNR of what a reader will have, in the tensors' dtypes, as `wcompress.fidelity.compare` pools it; in dB.

        Where no tensor has two dimensions, of all.
        """
        values = self.code(solution).restored(solution.ratios)
        restored: dict[str, torch.Tensor] = {}
        for index, (name, tensor) in enumerate(self._coded.items()):
            flat = round_to_dtype(values[self._spans()[index]], tensor.dtype)
            restored[name] = self.sequencing.unflatten(index, flat)
        figures = compare(self._coded, restored)
        found = [e.sqnr_db for e in figures.tensors.values() if e.sqnr_db is not None]
        sqnr_db = figures.sqnr_db if figures.sqnr_db is not None else min(found, default=math.inf)
        return sqnr_db + 10 * math.log10(1 + self._exact_share)

    def fine_sqnr_db(self, sqnr_db: float) -> float:
        """How precisely the fine tensors are kept beside coded ones of this SQNR."""
        margin = min(max(sqnr_db - _FINE_MARGIN_FROM_DB, 0.0) + _FINE_MARGIN_DB[0], _FINE_MARGIN_DB[1])
        return min(max(sqnr_db + margin, _FINE_RANGE_DB[0]), _FINE_RANGE_DB[1])

    def sections(self, solution: Solution) -> dict[str, bytes]:
        """Payloads of all the method's sections."""
        return {
            **self.code(solution).to_sections(),
            "fine": encode_fine(self.fine, self.fine_sqnr_db(self.sqnr_db(solution))),
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
        scaled = self._encoder.weights
        scale = math.sqrt(energy(scaled) / len(scaled))
        if target.sqnr_db is not None:
            wanted = target.sqnr_db
            guess = scale * 10 ** (-(wanted - 5.0) / 20)
        else:
            assert target.n_bytes is not None
            bits = 8 * target.n_bytes / self.sequencing.n_weights
            guess = scale * 2.0 ** (1.3 - bits)
        if isinstance(self._encoder, ClassEncoder) and self._beyond_tables(guess):
            self.sequencing = replace(self.sequencing, unit_blocks=CONTEXT_UNIT_BLOCKS)
            self._use(self.own_scales, ContextEncoder, self._encoder.config)
        if self.sequencing.n_weights <= _SMALL_MODEL or isinstance(self._encoder, ContextEncoder):
            if self._encoder.config.machine.n_states <= _QUICK_STATES:
                return self._repaired(_Bisection(self, target, guess).run(self._progress), target, self._progress)
            start = self._with_few_states(target, guess)
            try:
                found = _Bisection(self, target, start.step, start, 1).run(part(self._progress, _FEW_STATES_SHARE, 1.0))
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
        search = _Bisection(self, target, start.step, None if use_prior else start, int(use_prior))
        margin = 0.0
        if target.n_bytes is not None:
            # What is stored once weighs more in the sample.
            share = len(start.symbols) / self.sequencing.n_weights
            margin = 1.0 - self._estimated(start, start.symbol_bits / share, _FINE_RANGE_DB[0]) / target.n_bytes
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
                solution = _Bisection(self, target, solution.step, solution, 1).run(self._progress)
            except TargetUnreachable:
                if n_bytes > target.n_bytes:
                    raise
                break
        return solution

    def _tensor_groups(self) -> list[Groups]:
        if not self._groups:
            self._groups = [Groups.of(self.sequencing, index) for index in range(len(self.sequencing.shapes))]
        return self._groups

    def _spans(self) -> list[slice]:
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(self.sequencing.starts)]

    def _counts(self, energies: Sequence[float]) -> list[float]:
        # What the squares of each tensor count for in the SQNR.
        if self._counted_by is None:
            return [1.0] * len(energies)
        spans = self._spans()
        return [(s.stop - s.start) / e if e > 0 else 0.0 for s, e in zip(spans, energies, strict=True)]

    def _cap(self, sqnr_db: float) -> None:
        """Finer steps for what would likely end below its floor."""
        groups = self._tensor_groups()
        energies = [g.sums(np.square(self._weights[s])) for g, s in zip(groups, self._spans(), strict=True)]
        counts = self._counts([float(e[WHOLE][0]) for e in energies])
        shapes, floors = self.sequencing.shapes, Floors.at(sqnr_db)
        own_scales = capped(self.own_scales, shapes, groups, energies, counts, sqnr_db, floors)
        if own_scales != self.own_scales:
            self._use(own_scales, type(self._encoder), self._encoder.config)

    def _lacking(self, solution: Solution) -> list[Shortfalls]:
        """What each tensor lacks of its floors; empty where none lacks anything."""
        floors = Floors.at(self.sqnr_db(solution))
        restored = self.code(solution).restored(solution.ratios)
        mean_square = energy(self._weights) / max(1, len(self._weights))
        found = []
        for groups, span in zip(self._tensor_groups(), self._spans(), strict=True):
            weights = self._weights[span].astype(np.float64, copy=False)
            signal = groups.sums(np.square(weights))
            noise = groups.sums(np.square(weights - restored[span]))
            whole = float(signal[WHOLE][0])
            reference = mean_square if self._counted_by is None else whole / max(1, len(weights))
            found.append(shortfalls(groups, signal, noise, floors, reference))
        return found if any(found) else []

    def _repaired(self, solution: Solution, target: Target, progress: Progress | None) -> Solution:
        """A solution that meets the target and keeps the floors, from one that meets the target."""
        for _ in range(_MOST_REPAIRS if self._floors else 0):
            lacking = self._lacking(solution)
            if not lacking:
                break
            own_scales = lowered(self.own_scales, self.sequencing.shapes, lacking)
            self._use(own_scales, type(self._encoder), self._encoder.config)
            solution = _Bisection(self, target, solution.step, solution, 1).run(progress)
        return solution

    def _with_few_states(self, target: Target, guess: float) -> Solution:
        """A solution under a trellis whose search is quick: tables, prior and about the step are those of any other."""
        quick = copy.copy(self)
        encoder = quick._encoder = copy.copy(self._encoder)
        encoder.config = replace(encoder.config, machine=trellis(_QUICK_STATES))
        progress = part(self._progress, 0.0, _FEW_STATES_SHARE)
        solution = quick._repaired(_Bisection(quick, target, guess).run(progress), target, progress)
        if quick.own_scales != self.own_scales:
            self._use(quick.own_scales, type(self._encoder), self._encoder.config)
        return solution

    def _beyond_tables(self, step: float) -> bool:
        # Whether a weight lies so far out that class tables, of 2047 magnitudes at most, may not reach it.
        weights, starts = self._encoder.weights, self.sequencing.starts
        for start, end in itertools.pairwise(starts):
            some = weights[start:end]
            largest = farthest(some)
            if largest > _FAR_STEPS * step and largest > _FAR_MEANS * float(np.abs(some).mean(dtype=np.float64)):
                return True
        return False

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
        sample._weights = self._weights[taken]
        sample._floors = False
        sample._multipliers = self._multipliers if len(self._multipliers) == 1 else self._multipliers[taken]
        sample._counted = tuple(part if len(part) == 1 else part[taken] for part in self._counted)  # type: ignore[assignment]
        sample._estimates, sample._correction = True, 0
        sample._signal = energy(sample._counted[0]) * (1 + self._exact_share)
        config = replace(self._encoder.config, use_prior=False)
        sample._encoder = ClassEncoder(sample._scaled(), sample.sequencing, config)
        if target.n_bytes is not None:
            target = Target(n_bytes=round(target.n_bytes * len(taken) / sequencing.n_weights))
            sample._other_bytes = lambda _solution, _sqnr_db: ()
            sample.fine = {}
        return _Bisection(sample, target, guess).run(progress)

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
        sizes = [coded, len(encode_fine(self.fine, self.fine_sqnr_db(sqnr_db)))]
        sizes += self._other_bytes(solution, sqnr_db)
        return sum(sizes) + frame_bytes(sizes)

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


class _Bisection:
    """Looks for the largest step that meets the target.

    First a few rounds, each from the one before, in which tables and prior settle near the target. Then, always from
    the last of these, so that the margin depends on the step alone, secants on a logarithmic scale within a bracket.
    """

    def __init__(
        self,
        search: VaeSearch,
        target: Target,
        guess: float,
        start: Solution | None = None,
        n_settling: int = _SETTLING_ROUNDS,
    ) -> None:
        self.search = search
        self.start, self.n_settling = start, n_settling  # what the first round starts from, and after how many it ends
        self.target = target
        self.guess = math.log2(max(guess, sys.float_info.min))
        self.finest = math.log2(max(search.finest_step(), sys.float_info.min))
        self.n_rounds = _SMALL_MODEL_ROUNDS if search.sequencing.n_weights <= _SMALL_MODEL else _ROUNDS
        self.by_sqnr = target.sqnr_db is not None
        large = search.sequencing.n_weights > _SMALL_MODEL
        self.slack = (_SQNR_SLACK_DB if self.by_sqnr else _BYTES_SLACK) * (2 if large else search.slack)
        # How the margin goes with log2 of the step, at first: 6 dB an octave, or a bit a weight.
        self.slope = -6.02 if self.by_sqnr else 0.35

    def expect(self, margin: float) -> None:
        """Start from where a solution with this margin is likely to have none."""
        self.guess += (0.4 * self.slack - margin) / self.slope

    def run(self, progress: Progress | None) -> Solution:
        best: tuple[float, Solution] | None = None
        nearest: tuple[float, Solution] | None = None
        anchor, n_settling, at = self.start, self.n_settling, self.guess
        points: list[tuple[float, float]] = []
        highest = -math.inf
        if progress is not None:
            progress(0, 1000, {"stage": _SEARCHING})
        for number in range(self.n_rounds):
            settling = number < n_settling
            at = max(at, self.finest)
            solution = self.search.solve(2.0**at, anchor)
            margin = self.search.measure(solution, self.target)
            if progress is not None:
                progress(self._done(number + 1), 1000, {"stage": _SEARCHING})
            if margin >= 0 and (best is None or margin < best[0]):
                best = (margin, solution)
            if nearest is None or abs(margin) < nearest[0]:
                nearest = (abs(margin), solution)
            highest = max(highest, margin)
            if at == self.finest and number >= n_settling - 1 and (margin < 0) == self.by_sqnr:
                break
            if settling:
                if number == n_settling - 2 and self.search.is_trained and progress is not None:
                    progress(self._done(number + 1), 1000, {"stage": _TRAINING})
                anchor = self.search.refit(solution) if number == n_settling - 2 else solution
                points = points[-1:]
            elif (number - n_settling) % _ROUNDS_PER_ANCHOR == _ROUNDS_PER_ANCHOR - 1:
                # Classes change in jumps as the step goes away from the anchor's: start again from nearby.
                anchor, points = nearest[1], []
                at = math.log2(anchor.step)
                continue
            elif 0 <= margin <= self.slack:
                break
            points.append((at, margin))
            at = self._next(points, settling)
        if progress is not None:
            progress(1000, 1000, {"stage": _SEARCHING})
        if best is None:
            raise TargetUnreachable(self._nearest(highest))
        return best[1]

    def _done(self, n_rounds: int) -> int:
        """About how many thousandths of the work are done after so many rounds."""
        training = _TRAINING_ROUNDS if self.search.is_trained and self.n_settling > 1 else 0
        done = n_rounds + (training if n_rounds >= self.n_settling else 0)
        return min(980, round(1000 * done / (self.n_settling + _USUAL_ROUNDS + training)))

    def _next(self, points: list[tuple[float, float]], settling: bool) -> float:
        at, margin = points[-1]
        slope = self.slope
        if len(points) > 1 and abs(at - points[-2][0]) > 1e-4:
            found = (margin - points[-2][1]) / (at - points[-2][0])
            if 0.2 < found / slope < 5:
                slope = found
        proposed = at + max(-3.0, min(3.0, (0.4 * self.slack - margin) / slope))
        if settling:
            return proposed
        # Between the best step that meets the target and the nearest beyond it that does not. The margin is not quite
        # monotonic, so others may lie on the wrong side.
        sign = 1 if self.by_sqnr else -1
        good = max((sign * p for p, m in points if m >= 0), default=-math.inf)
        bad = min((sign * p for p, m in points if m < 0 and sign * p > good), default=math.inf)
        if not good < sign * proposed < bad and math.isfinite(good + bad):
            proposed = sign * (good + bad) / 2
        return proposed

    def _nearest(self, margin: float) -> str:
        if self.by_sqnr:
            assert self.target.sqnr_db is not None
            nearest = f"{self.target.sqnr_db + margin:.2f} dB is the nearest"
            return f"an SQNR of {self.target.sqnr_db} dB: {nearest}; `--method lossless` keeps every bit"
        assert self.target.n_bytes is not None
        n_bytes = round((1 - margin) * self.target.n_bytes)
        wanted = self.target.wanted or self.target.in_words(self.target.n_bytes)
        return f"{wanted}: {self.target.in_words(n_bytes)} is the nearest; ask for a larger archive"
