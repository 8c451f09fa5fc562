"""Finding what method `vae` stores at one step, under a model that follows the symbols."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.class_tables.encoder import base_scales, magnitudes, refine_latents
from wcompress.codec.models.context.model import N_SETS, ContextModel, Description, ScaleNetwork, stream_starts
from wcompress.codec.models.context.neighbours import find_lags, fit_taps
from wcompress.codec.models.context.prior_trial import NEUTRAL, class_costs, would_pay
from wcompress.codec.models.context.rates import RateClasses
from wcompress.codec.models.entropy_model import EntropyModel
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.feedback import search_with_feedback
from wcompress.codec.quantiser.reconstruction import LEVEL_UNITS, Levels
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import quantisers
from wcompress.codec.quantiser.viterbi import search
from wcompress.codec.rate_control.solution import EncoderConfig, InSteps, Moments, Solution, with_energy, with_shifts
from wcompress.entropy.bits import BitWriter
from wcompress.entropy.context.tables import LOWEST
from wcompress.vae.prior import LOWEST_SCALE, N_CLASSES, UNITS_PER_CLASS, UNITS_PER_OCTAVE

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_TRAINING_BLOCKS = 512
_NOTHING = np.zeros((0, 0), np.int16)


class ContextEncoder:
    """A `SymbolEncoder` under the context model.

    Args:
        weights, sequencing, config: see there.
    """

    model: ClassVar[type[EntropyModel]] = ContextModel
    takes_any: ClassVar[bool] = True
    far_steps: ClassVar[float] = 12000.0
    far_means: ClassVar[float] = 0.0
    is_trained: ClassVar[bool] = True

    def __init__(self, weights: npt.NDArray[np.floating], sequencing: Sequencing, config: EncoderConfig) -> None:
        self.weights = weights.astype(np.float64, copy=False)
        self.sequencing = sequencing
        self.config = config
        self._lags = find_lags(self.weights, sequencing)

    @cached_property
    def farthest(self) -> list[float]:
        """The largest magnitude of each tensor's weights."""
        return [largest for _, largest in magnitudes(self.weights, self.sequencing)]

    def with_weights(self, weights: npt.NDArray[np.floating]) -> ContextEncoder:
        """The same for other weights."""
        other = copy.copy(self)
        other.weights = weights.astype(np.float64, copy=False)
        other.__dict__.pop("farthest", None)
        return other

    def solve(self, step: float, start: Solution | None = None) -> Solution:
        """The best solution found at `step`.

        Args:
            step: the quantisation step.
            start: a solution at a similar step, under any trellis of several states, whose model is kept.
        """
        if start is None and self.config.grouped:
            solution = self.refit(self._pass(step, self._plain(step), None), final=False)
            return self._pass(step, self._kept(solution), solution)
        if start is None:
            solution = self._pass(step, self._plain(step), None)
            solution = self.refit(self._pass(step, self._plain(step), solution), final=False)
            return self._pass(step, self._kept(solution), solution)
        moved = round(UNITS_PER_OCTAVE * math.log2(start.step / step))
        model = self._kept(start)
        return self._pass(step, model.moved(moved) if moved else model, start)

    def describe(self, step: float, symbols: Ints, levels: Levels | None = None) -> Solution:
        """The solution that has these symbols, its model fitted to them; by default with levels at their centroids."""
        model = self._plain(step)
        solution = self._finished(step, model, symbols, levels)
        return self.refit(solution, levels)

    def refit(self, solution: Solution, levels: Levels | None = None, *, final: bool = True) -> Solution:
        """The same symbols under a model that is trained on them.

        Args:
            solution: the symbols.
            levels: to keep; by default the centroids.
            final: train long, and look at everything that might pay.
        """
        if not len(self.weights):
            return solution
        config, sequencing = self.config, self.sequencing
        which = quantisers(solution.symbols, sequencing.unit_starts, config.machine)
        values = _nominal(solution.symbols, which, config.machine.spacing)
        bases = base_scales(values, 1.0, sequencing)
        model = ContextModel.plain(ScaleModel(bases, None, np.zeros((0, sequencing.latent_dim), np.int64)), self._lags)
        x = self.weights / solution.step
        model = replace(model, taps=fit_taps(x, values, sequencing, self._lags))
        known = solution.model.network if final and isinstance(solution.model, ContextModel) else None
        model = self._with_network(model, solution.symbols, values, known, final=final)
        # How much is mixed, and what is told beside it, is decided by bytes.
        if config.grouped and not final:
            return self._finished(solution.step, model, solution.symbols, levels)
        mixes = [replace(model, n_sets=n) for n in (N_SETS if config.mix else N_SETS[:1])]
        n_bits, model = self._smallest(mixes, solution.symbols)
        if final:
            without = replace(model, network=ScaleNetwork.nothing())
            less = self._bits(without, solution.symbols)
            if less < n_bits:
                n_bits, model = less, without
        if final and config.use_prior:
            with_prior = self._with_prior(model, solution.symbols, values, n_bits)
            if with_prior is not None and self._bits(with_prior, solution.symbols) < n_bits:
                model = with_prior
        return self._finished(solution.step, model, solution.symbols, levels)

    def _smallest(self, models: Sequence[ContextModel], symbols: Ints) -> tuple[int, ContextModel]:
        # The first one of those that take the fewest bits, which are told.
        return min(((self._bits(model, symbols), model) for model in models), key=lambda sized: sized[0])

    def _bits(self, model: ContextModel, symbols: Ints) -> int:
        tables, decoder = BitWriter(), BitWriter()
        latents = model.write(tables, decoder)
        # Of a large group one stream says which is smaller.
        n_streams = len(stream_starts(self.sequencing)) - 1
        some = [n_streams // 2] if self.config.grouped and n_streams > 1 else None
        stream = model.encode(symbols, self.sequencing, self.config.machine, some)
        return tables.n_bits + decoder.n_bits + 8 * (len(latents) + len(stream))

    def _with_prior(self, model: ContextModel, symbols: Ints, values: Floats, n_bits: int) -> ContextModel | None:
        """The model with a VAE prior that says of each sub-block how far its scale is from what the context says."""
        from wcompress.vae.prior_training import PriorConfig, train_prior

        sequencing, config = self.sequencing, self.config
        n_blocks, latent_dim, sub_size = sequencing.n_blocks, sequencing.latent_dim, sequencing.sub_size
        shape = (n_blocks, latent_dim)
        described = model.describe(symbols, sequencing, config.machine)
        padded = np.zeros((2, n_blocks * sequencing.block_size))
        padded[0, : len(symbols)] = np.abs(values)
        padded[1, : len(symbols)] = np.exp2((described.scales + 0.5) / 8 + LOWEST / 16)
        magnitude, scale = padded.reshape(2, -1, sub_size)
        n_train = min(n_blocks, _TRAINING_BLOCKS)
        blocks = np.sort(np.random.default_rng(config.seed).permutation(n_blocks)[:n_train])
        costs = class_costs(magnitude, scale)
        if not would_pay(model, symbols, sequencing, config.machine, costs, n_bits):
            return None
        base = float(LOWEST_SCALE + NEUTRAL * UNITS_PER_CLASS)
        surprise = np.log2((magnitude.sum(1) + 0.3) / (scale.sum(1) + 0.3))
        decoder, latents = train_prior(
            (surprise + base / UNITS_PER_OCTAVE).reshape(shape),
            costs.reshape(*shape, N_CLASSES)[blocks],
            np.full(shape, base),
            blocks,
            PriorConfig(steps=config.prior_steps, seed=config.seed, device=config.device),
        )
        latents = refine_latents(decoder, latents, np.full(shape, base), costs.reshape(*shape, N_CLASSES))
        if not latents.any():
            return None
        told = replace(model, scales=ScaleModel(model.scales.bases, decoder, latents), _cache={})
        # What the weights before tell counts for less where the prior tells it as well.
        return self._with_network(told, symbols, values)

    def _with_network(
        self,
        model: ContextModel,
        symbols: Ints,
        values: Floats,
        known: ScaleNetwork | None = None,
        *,
        final: bool = True,
    ) -> ContextModel:
        # Of symbols that hardly differ from those it is to be trained on, a known network needs little more.
        from wcompress.vae.context_training import NetworkConfig, train_network

        described = model.describe(symbols, self.sequencing, self.config.machine)
        base_logs = np.zeros(len(symbols), np.float32)
        starts = self.sequencing.starts
        for base, start, end in zip(model.scales.bases, starts[:-1], starts[1:], strict=True):
            base_logs[start:end] = base / UNITS_PER_OCTAVE
        config = NetworkConfig(steps=self.config.prior_steps // (1 if final else 3), seed=self.config.seed)
        start = None
        if known is not None and len(known.weights_out):
            start = known.linear, known.weights_in, known.weights_out
            steps = self.config.prior_steps // (4 if self.config.grouped else 2)
            config = replace(config, steps=steps, learning_rate=config.learning_rate / 2)
        trained = train_network(described.features, np.abs(values).astype(np.float32), base_logs, config, start)
        return replace(model, network=ScaleNetwork(*trained))

    def _plain(self, step: float) -> ContextModel:
        bases = base_scales(self.weights, step, self.sequencing)
        return ContextModel.plain(
            ScaleModel(bases, None, np.zeros((0, self.sequencing.latent_dim), np.int64)), self._lags
        )

    def _kept(self, solution: Solution) -> ContextModel:
        assert isinstance(solution.model, ContextModel)
        return solution.model

    def _pass(self, step: float, model: ContextModel, start: Solution | None) -> Solution:
        machine, sequencing = self.config.machine, self.sequencing
        x = InSteps(self.weights, step, max(self.farthest, default=0.0))
        limit = x.symbol_limit(machine, moves=self.config.feedbacks is not None)
        levels = Levels()
        if start is None:
            subs = np.array(model.scales.bases, np.int64)[sequencing.tensor_of_sub]
            scales = np.repeat((subs + 6 * UNITS_PER_OCTAVE).clip(0, 215), sequencing.sub_size)[: len(x)]
            described = Description(np.zeros((0, 0), np.int16), scales.astype(np.int16), np.zeros(len(x), np.int8))
            classes = RateClasses.by(described, limit)
            rates = classes.rates(machine, limit)
            multiplier = self.config.multiplier
        else:
            if model is start.model and start.described is not None:
                described = start.described
            else:
                described = model.describe(start.symbols, sequencing, start.machine)
            classes = RateClasses.by(described, limit)
            which = quantisers(start.symbols, sequencing.unit_starts, start.machine)
            rates = classes.rates(machine, limit, start.symbols, which)
            bits = rates[classes.of, which, np.clip(start.symbols, -limit, limit) + limit]
            multiplier = self.config.multiplier_at(float(bits.mean()) if len(x) else 0.0)
            levels = start.levels
        table = np.array([(0, 0), *levels.shifts] if levels.shifts else np.zeros((8, 2)), np.float32) / LEVEL_UNITS
        shifts = np.sign(classes.ratios)[:, None] * table[np.abs(classes.ratios)]
        array = replace(levels, shifts=()).array(machine, limit)
        costs = machine, array, rates, multiplier, shifts.astype(np.float32)
        if self.config.feedbacks is None:
            symbols = search(x, sequencing.unit_starts, classes.of, 0, *costs)
        else:
            unit = sequencing.unit_blocks * sequencing.block_size
            symbols = search_with_feedback(x[:], sequencing.starts, self.config.feedbacks, unit, classes.of, *costs)
        return self._finished(step, model, symbols, None)

    def _finished(self, step: float, model: ContextModel, symbols: Ints, levels: Levels | None) -> Solution:
        machine, sequencing = self.config.machine, self.sequencing
        which = quantisers(symbols, sequencing.unit_starts, machine)
        described = model.describe(symbols, sequencing, machine)
        ratios = described.ratios if model.taps.any() else None
        x = InSteps(self.weights, step, max(self.farthest, default=0.0))
        if levels is None and self.config.feedbacks is not None:
            levels = Levels()  # what was fed back was the error from these
        if levels is None:
            moments = Moments.of(x, symbols, which, machine)
            levels = moments.centroids()
            if ratios is not None and ratios.any():
                levels = with_shifts(levels, x[:], symbols, which, machine, ratios)
            if self.config.keep_energy:
                levels = with_energy(levels, moments)
        kept = replace(described, features=_NOTHING) if self.config.grouped else None
        return Solution(step, machine, model, levels, symbols, ratios, described=kept)


def _nominal(symbols: Ints, which: npt.NDArray[np.uint8], spacing: int) -> Floats:
    magnitude = spacing * np.abs(symbols).astype(np.float64) - ((which == 1) & (symbols != 0))
    values: Floats = np.sign(symbols) * magnitude
    return values
