"""The search where some tensors have bits of their own: their steps stay while the step of the others is looked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wcompress.codec.quantiser.trellis import trellis
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import Solution, finest_step
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Bisection, Target
from wcompress.codec.rate_control.tensor_rates import TensorRates, tensor_bits
from wcompress.entropy.tables import TableTooWideError
from wcompress.errors import TargetUnreachable
from wcompress.fidelity import energy, farthest
from wcompress.vae.prior import UNITS_PER_OCTAVE

_QUICK_STATES = 64
_NEAR, _FAR = 0.02, 0.05  # to the bits that were chosen, as a part of them
_QUARTER = 1.2  # an octave, by which a row's step may be finer than its tensor's
_FIRST_ROUNDS, _LAST_ROUNDS, _ALONE_ROUNDS = 4, 5, 6


class RatedSearch(VaeSearch):
    """A search in which some tensors take so many bits, and no floor holds them.

    Args:
        coded, fine, rule, **options: see `VaeSearch`.
        rates: bits a weight by name of a coded tensor.
        counted: the tensors' errors count in the SQNR that is looked for.
    """

    def __init__(
        self,
        coded: Mapping[str, torch.Tensor],
        fine: Mapping[str, torch.Tensor],
        rule: StepRule,
        *,
        rates: Mapping[str, float],
        counted: bool,
        **options: Any,
    ) -> None:
        super().__init__(coded, fine, rule, **options)
        own_scales = rule.scales
        self._names = list(coded)
        wanted = {index: rates[name] for index, name in enumerate(coded) if name in rates}
        self._rates: TensorRates | None = TensorRates(wanted, own_scales, self.sequencing)
        self._rated = [index for index, tensor in enumerate(coded.values()) if index in wanted and tensor.numel()]
        self._free = [index for index, tensor in enumerate(coded.values()) if index not in wanted and tensor.any()]
        self._alone: Solution | None = None
        self._scaled_at = 1.0
        # Where there is nothing else, their errors are all that can be told of.
        self.model.except_for(wanted, counted=counted or not self._free)
        self._use(own_scales)
        self._signal = self.model.signal

    @property
    def bits(self) -> dict[str, float]:
        """What each tensor took in the last solution, bits a weight by name."""
        return {} if self._rates is None else {self._names[i]: bits for i, bits in self._rates.bits.items()}

    def run(self, target: Target) -> Solution:
        """Find the step of the other tensors that meets a target from the safe side; see `VaeSearch.run`.

        Raises:
            TargetUnreachable: no step does.
        """
        if self._rates is None or not self._rated or not self._signal:
            return super().run(target)
        takes_any = self._encoder.takes_any
        try:
            distance, solution = self._found(self._rates, target)
        except TableTooWideError:
            distance, solution = math.inf, None
        if solution is None or (distance > _FAR and not takes_any):
            self._use_contexts(max(self._rates.step(index) for index in self._rated))
            self._rates.forget()
            self._alone = None
            _, solution = self._found(self._rates, target)
        self._rates.bits = self._bits(solution)
        return solution

    def _found(self, rates: TensorRates, target: Target) -> tuple[float, Solution]:
        """The best solution, and how far its worst tensor is from its bits."""
        spans, weights = self.model.spans, self.model.weights
        scales = {i: math.sqrt(energy(weights[spans[i]]) / len(weights[spans[i]])) for i in self._rated}
        rates.start({**dict.fromkeys(rates.wanted, 0.0), **scales})
        if not self._free:
            self._alone = self._alone or self._without_others(rates)
            return self._distance(rates, self._alone), self._alone
        try:
            if not rates.bits:
                self._settle(rates, self._guess(target))
            # Always from one solution: were each the start of the next, more and more weights would become zero.
            start = solution = super().run(target)
            tried = [(*self._quality(rates, solution, target), solution)]
            for _ in range(_LAST_ROUNDS):
                if self.was_cut or self.deadline.passed or not self._adjust(rates, solution):
                    break
                try:
                    solution = Bisection(self, target, solution.step, start, 1).run(self._progress)
                except TargetUnreachable:
                    break  # what was found before meets the target
                solution = self._repaired(solution, target, self._progress)
                tried.append((*self._quality(rates, solution, target), solution))
            distance, _, best = min(tried, key=lambda one: (max(one[0], _NEAR), one[1]))
        except TargetUnreachable as error:
            n = len(self._rated)
            chosen = f"{n} tensors" if n > 1 else f"tensor {self._names[self._rated[0]]!r}"
            raise TargetUnreachable(f"{error} (a rule chooses the bits of {chosen})") from error
        return distance, best

    def _settle(self, rates: TensorRates, step: float) -> None:
        """Find about the tensors' steps, with a trellis that is quick."""
        self._prepare(step)
        rates.limit(self._finest(rates))
        quick = copy.copy(self)
        encoder = quick._encoder = copy.copy(self._encoder)
        machine = trellis(min(_QUICK_STATES, encoder.config.machine.n_states))
        encoder.config = replace(encoder.config, machine=machine, use_prior=False)
        try:
            start = solution = quick.solve(step, None)
            for _ in range(_FIRST_ROUNDS):
                if not quick._adjust(rates, solution):
                    break
                solution = quick.solve(step, start)
        except TableTooWideError:
            pass  # what follows finds another way of coding
        self._scale_at(step)

    def _prepare(self, step: float) -> None:
        """Let the way of coding suit the tensors' steps: what is too far out is kept beside the rest."""
        self._scale_at(step)
        super()._prepare(step)

    def _without_others(self, rates: TensorRates) -> Solution:
        """The solution where every coded tensor has bits of its own: then there is nothing to look for."""
        largest = max(self._rated, key=lambda index: self.model.spans[index].stop - self.model.spans[index].start)
        self._settle(rates, rates.step(largest))
        self._prepare(rates.step(largest))
        try:
            solution = self._at_rates(rates, largest)
            solution.model.check()
        except TableTooWideError:
            if self._encoder.takes_any:
                raise
            self._use_contexts(rates.step(largest))
            solution = self._at_rates(rates, largest)
        return solution

    def _at_rates(self, rates: TensorRates, largest: int) -> Solution:
        # The common step is the largest tensor's, whose scale is 1 then.
        start = solution = self.solve(rates.step(largest), None)
        tried: list[tuple[float, Solution]] = []
        for number in range(_ALONE_ROUNDS):
            if number < 2:
                start = self.refit(solution)
            solution = self.solve(rates.step(largest), start)
            tried.append((self._distance(rates, solution), solution))
            if not self._adjust(rates, solution) and number:
                break
        return min(tried, key=lambda one: one[0])[1]

    def _bits(self, solution: Solution) -> dict[int, float]:
        return tensor_bits(solution, self.code(solution).sequencing, self._rated)

    def _distance(self, rates: TensorRates, solution: Solution) -> float:
        return rates.distance({**rates.wanted, **self._bits(solution)})

    def _quality(self, rates: TensorRates, solution: Solution, target: Target) -> tuple[float, float]:
        # The less, the better.
        return self._distance(rates, solution), self.measure(solution, target)

    def _adjust(self, rates: TensorRates, solution: Solution) -> bool:
        before = {index: rates.step(index) for index in self._rated}
        finest = self._finest(rates)
        rates.adjust({**rates.wanted, **self._bits(solution)})
        rates.limit(finest)
        after = {index: rates.step(index) for index in self._rated}
        # What is as fine as it gets stays about where it is.
        near = {i for i in self._rated if after[i] == finest[i] and before[i] < _QUARTER**2 * finest[i]}
        return any(after[i] != before[i] for i in self._rated if i not in near)

    def _finest(self, rates: TensorRates) -> dict[int, float]:
        """Of each tensor the step beyond which symbols are larger than a search tries."""
        weights, machine = self._encoder.weights, self._encoder.config.machine
        units = {i: rates.step(i) / self._scaled_at for i in self._rated}
        return {
            i: _QUARTER * units[i] * finest_step(farthest(weights[self.model.spans[i]]), machine) for i in self._rated
        }

    def _scale_at(self, step: float) -> None:
        """Let the tensors have their steps beside this one."""
        if self._rates is None:
            return
        self._scaled_at = step
        self.own_scales = self._rates.at(self.own_scales, step)
        self._counted = None
        self._encoder = self._encoder.with_weights(self._scaled())

    def solve(self, step: float, start: Solution | None) -> Solution:
        """A solution at `step` of the others."""
        self._scale_at(step)
        if self._rates is not None and start is not None and start.own_scales is not None:
            start = self._followed(start, step)
        return super().solve(step, start)

    def _followed(self, start: Solution, step: float) -> Solution:
        """A start whose bases will be right once they are moved with the common step, as those of others are."""
        assert start.own_scales is not None
        unit = start.model.base_unit
        octaves = math.log2(start.step / step)
        common = round(UNITS_PER_OCTAVE / unit * octaves)
        bases = list(start.model.scales.bases)
        for index in self._rated:
            before, now = (np.mean(own.exponents[index]) for own in (start.own_scales, self.own_scales))
            moved = round(UNITS_PER_OCTAVE / unit * (octaves + float(before - now) / 4))
            bases[index] += unit * (moved - common)
        return replace(start, model=start.model.with_bases(bases))

    def finest_step(self) -> float:
        """The least step that makes sense for the other tensors."""
        if self._rates is None:
            return super().finest_step()
        weights, machine = self._encoder.weights, self._encoder.config.machine
        return max((finest_step(farthest(weights[self.model.spans[i]]), machine) for i in self._free), default=0.0)

    def _guess(self, target: Target) -> float:
        weights = self._encoder.weights
        spans = [self.model.spans[index] for index in self._free]
        n_weights = sum(span.stop - span.start for span in spans)
        scale = math.sqrt(math.fsum(energy(weights[span]) for span in spans) / n_weights)
        if target.sqnr_db is not None:
            return float(scale * 10 ** (-(target.sqnr_db - 5.0) / 20))
        assert target.n_bytes is not None
        assert self._rates is not None
        bits = 8.0 * target.n_bytes
        for index in self._rated:
            bits -= self._rates.wanted[index] * (self.model.spans[index].stop - self.model.spans[index].start)
        return scale * math.exp2(1.3 - max(bits / n_weights, 0.1))
