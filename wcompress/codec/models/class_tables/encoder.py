"""Finding what method `vae` stores: layout, scales, symbols, tables, levels, at one step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.class_tables.model import ClassModel
from wcompress.codec.models.class_tables.rates import parametric_rates, table_rates
from wcompress.codec.models.class_tables.tables import LOW_BITS, count_symbols, fit_tables, symbol_bits
from wcompress.codec.models.entropy_model import EntropyModel
from wcompress.codec.models.scale_prior import ScaleModel, fit_latent_table
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.scalar import quantise, sum_and_farthest
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import quantisers
from wcompress.codec.quantiser.viterbi import search, thresholds
from wcompress.codec.rate_control.solution import EncoderConfig, InSteps, Moments, Solution, with_energy
from wcompress.entropy.bits import BitWriter
from wcompress.vae.prior import (
    N_CLASSES,
    UNITS_PER_CLASS,
    UNITS_PER_OCTAVE,
    WEIGHT_BITS,
    PriorDecoder,
    classes_of,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

_TRAINING_BLOCKS = 512
_TRELLIS_SHARE = 1.25  # of the Lagrangian, at any bits: without contexts a trellis saves no bits by zeros in runs
_MOST_APART, _LEAST_LOOKED_AT = 8, 1 << 16
_CHUNK = 512  # weights


def sub_features(magnitudes: npt.NDArray[np.floating], sequencing: Sequencing) -> Floats:
    """log₂ of the mean magnitude of each sub-block, `[n_sub_blocks]`, from magnitudes in steps."""
    size = sequencing.sub_size
    n_sub = -(-len(magnitudes) // size)
    padded = np.zeros(n_sub * size)
    padded[: len(magnitudes)] = magnitudes
    counts = np.full(n_sub, size)
    counts[-1] = len(magnitudes) - (n_sub - 1) * size
    features: Floats = np.log2(padded.reshape(n_sub, size).sum(1) / counts + 2.0**-8)
    return features


def base_scales(weights: npt.NDArray[np.floating], step: float, sequencing: Sequencing) -> tuple[int, ...]:
    """log₂ of each tensor's mean magnitude in steps, in units of 1/8 octave."""
    return _bases([mean for mean, _ in magnitudes(weights, sequencing)], step)


def _bases(means: Sequence[float], step: float) -> tuple[int, ...]:
    octaves = (math.log2(mean / step + 2.0**-8) for mean in means)
    return tuple(max(-64, min(200, round(UNITS_PER_OCTAVE * octave))) for octave in octaves)


def magnitudes(weights: npt.NDArray[np.floating], sequencing: Sequencing) -> list[tuple[float, float]]:
    """The mean and the largest magnitude of each tensor's weights; 0 of none."""
    spans = itertools.pairwise(sequencing.starts.tolist())
    found = ((end - start, sum_and_farthest(weights[start:end])) for start, end in spans)
    return [(total / max(n, 1), largest) for n, (total, largest) in found]


def _one_of(every: int, x: InSteps, classes: Ints, class_shift: int) -> tuple[InSteps, Ints, npt.NDArray[np.int64]]:
    """One of so many chunks of weights, their classes, and where these chunks start: units of their own."""
    size = max(_CHUNK, 1 << class_shift)
    n_chunks = len(x) // size
    weights = x.weights[: n_chunks * size].reshape(n_chunks, size)[::every].reshape(-1)
    of_chunks = classes[: n_chunks * size >> class_shift].reshape(n_chunks, -1)[::every].reshape(-1)
    return replace(x, weights=weights), of_chunks, np.arange(0, len(weights) + 1, size)


class ClassEncoder:
    """A `SymbolEncoder` under class tables.

    Args:
        weights, sequencing, config: see there.
    """

    model: ClassVar[type[EntropyModel]] = ClassModel
    # Tables have 2047 magnitudes at most, and are for sub-blocks, in which tensors of very different steps may meet.
    takes_any: ClassVar[bool] = False
    far_steps: ClassVar[float] = 500.0
    far_means: ClassVar[float] = 64.0
    is_trained: ClassVar[bool] = False

    def __init__(self, weights: npt.NDArray[np.floating], sequencing: Sequencing, config: EncoderConfig) -> None:
        self.weights = weights
        self.sequencing = sequencing
        self.config = config

    @cached_property
    def _sizes(self) -> list[tuple[float, float]]:
        return magnitudes(self.weights, self.sequencing)

    def with_weights(self, weights: npt.NDArray[np.floating]) -> ClassEncoder:
        """The same for other weights."""
        return ClassEncoder(weights, self.sequencing, self.config)

    @property
    def farthest(self) -> list[float]:
        """The largest magnitude of each tensor's weights."""
        return [largest for _, largest in self._sizes]

    def solve(self, step: float, start: Solution | None = None) -> Solution:
        """The best solution found at `step`.

        Args:
            step: the quantisation step.
            start: a solution at a similar step, whose tables and prior are the first guess.
        """
        config = self.config
        x = InSteps(self.weights, step, max(self.farthest, default=0.0))
        bases = _bases([mean for mean, _ in self._sizes], step)
        static = ScaleModel(bases, None, np.zeros((0, self.sequencing.latent_dim), np.int64))
        scales = static
        levels = Levels()
        fallback = rates = parametric_rates(config.machine, x.symbol_limit(config.machine))
        if start is not None:
            model = _kept(start)
            scales, levels = model.scales, start.levels
            # Within a class's width the classes stay, and tables follow: the size then has no jumps in the step.
            moved = UNITS_PER_CLASS * round(UNITS_PER_OCTAVE / UNITS_PER_CLASS * math.log2(start.step / step))
            scales = replace(scales, bases=tuple(base + moved for base in scales.bases))
            rates = table_rates(model.tables, fallback)
        solution = None
        n_passes = config.first_passes if start is None else config.passes
        for number in range(n_passes):
            if number == 1 and start is None and config.use_prior and len(x):
                assert solution is not None
                scales = self._with_prior(static, solution, rates)
            known = solution or start
            multiplier = config.multiplier
            if config.machine.n_states > 1:
                multiplier *= _TRELLIS_SHARE
            elif known is not None and len(x):
                multiplier = config.multiplier_at(known.symbol_bits / len(x))
            # All but the last pass find tables and levels alone, which a part of many weights has as well.
            every = 1 if number == n_passes - 1 or config.use_prior else len(x) // _LEAST_LOOKED_AT
            solution = self._pass(x, scales, levels, rates, multiplier, max(1, min(every, _MOST_APART)))
            levels = solution.levels
            rates = table_rates(_kept(solution).tables, fallback)
        assert solution is not None
        return solution

    def refit(self, solution: Solution) -> Solution:
        """As it is: tables and prior follow the symbols in each pass."""
        return solution

    def _pass(
        self,
        x: InSteps,
        scales: ScaleModel,
        levels: Levels,
        rates: npt.NDArray[np.float32],
        multiplier: float,
        every: int,
    ) -> Solution:
        machine, sequencing = self.config.machine, self.sequencing
        classes, shift = scales.classes(sequencing.tensor_of_sub), sequencing.sub_shift
        if machine.n_states == 1:
            bounds = thresholds(levels.array(machine, rates.shape[2] // 2), rates, multiplier)
            symbols, found = quantise(x.weights, x.step, classes, shift, bounds, LOW_BITS, every)
            counts = np.stack([found.counts, np.zeros_like(found.counts)], axis=1)
            return self._found(x, scales, symbols, counts, Moments.of_groups(found.groups, found.energy))
        starts = sequencing.unit_starts
        some = x
        if every > 1:
            some, classes, starts = _one_of(every, x, classes, shift)
        levels_in_steps = levels.array(machine, rates.shape[2] // 2)
        symbols = search(some, starts, classes, shift, machine, levels_in_steps, rates, multiplier)
        which = quantisers(symbols, starts, machine)
        counts = count_symbols(symbols, which, classes, shift)
        return self._found(x, scales, symbols, counts, Moments.of(some, symbols, which, machine))

    def _found(self, x: InSteps, scales: ScaleModel, symbols: Ints, counts: Floats, moments: Moments) -> Solution:
        tables = fit_tables(counts)
        levels = moments.centroids()
        if self.config.keep_energy:
            levels = with_energy(levels, moments)
        bits = symbol_bits(counts, tables) * (len(x) / max(1.0, float(counts.sum())))
        machine = self.config.machine
        return Solution(x.step, machine, ClassModel(scales, tables), levels, symbols, None, bits)

    def _with_prior(self, static: ScaleModel, solution: Solution, rates: npt.NDArray[np.float32]) -> ScaleModel:
        from wcompress.vae.prior_training import PriorConfig, train_prior

        sequencing, machine = self.sequencing, self.config.machine
        # Only the rates' shape over classes matters here; classes without a table keep the parametric ones, shifted
        # so that both kinds agree on what the trellis saves.
        sub_size, latent_dim = sequencing.sub_size, sequencing.latent_dim
        n_sub = len(sequencing.tensor_of_sub)
        which = quantisers(solution.symbols, sequencing.unit_starts, machine)
        parametric = parametric_rates(machine, rates.shape[2] // 2)
        limit = parametric.shape[2] // 2
        n_train = min(sequencing.n_blocks, _TRAINING_BLOCKS)
        rng = np.random.default_rng(self.config.seed)
        blocks = np.sort(rng.permutation(sequencing.n_blocks)[:n_train])
        costs = np.zeros((n_train * latent_dim, N_CLASSES), np.float32)
        positions = (blocks[:, None] * sequencing.block_size + np.arange(sequencing.block_size)).reshape(-1)
        inside = positions < sequencing.n_weights
        symbols = np.where(inside, solution.symbols[np.minimum(positions, sequencing.n_weights - 1)], 0)
        side = which[np.minimum(positions, sequencing.n_weights - 1)]
        for cls in range(N_CLASSES):
            bits = np.where(inside, parametric[cls, side, symbols + limit], 0.0)
            costs[:, cls] = bits.reshape(-1, sub_size).sum(1)
        features = np.zeros(sequencing.n_blocks * latent_dim)
        bases = np.zeros(sequencing.n_blocks * latent_dim)
        bases[:n_sub] = np.array(static.bases)[sequencing.tensor_of_sub]
        features[:] = bases / UNITS_PER_OCTAVE
        features[:n_sub] = sub_features(np.abs(self.weights) / solution.step, sequencing)
        shape = (sequencing.n_blocks, latent_dim)
        decoder, latents = train_prior(
            features.reshape(shape),
            costs.reshape(n_train, latent_dim, N_CLASSES),
            bases.reshape(shape),
            blocks,
            PriorConfig(steps=self.config.prior_steps, seed=self.config.seed, device=self.config.device),
        )
        if n_train == sequencing.n_blocks:
            latents = refine_latents(decoder, latents, bases.reshape(shape), costs.reshape(*shape, N_CLASSES))
        found = ScaleModel(static.bases, decoder, latents)
        return found if self._bits(found, blocks, costs) < self._bits(static, blocks, costs) else static

    def _bits(self, scales: ScaleModel, blocks: npt.NDArray[np.intp], costs: npt.NDArray[np.float32]) -> float:
        # Of the blocks trained on, with their share of what is stored once.
        sequencing = self.sequencing
        classes = np.zeros(sequencing.n_blocks * sequencing.latent_dim, np.int64)
        each = scales.classes(sequencing.tensor_of_sub)
        classes[: len(each)] = each
        chosen = classes.reshape(sequencing.n_blocks, -1)[blocks].reshape(-1)
        writer = BitWriter()
        latent_bytes = scales.write(writer)
        stored = writer.n_bits + 8 * len(latent_bytes)
        return float(costs[np.arange(len(chosen)), chosen].sum()) + stored * len(blocks) / sequencing.n_blocks


def _kept(solution: Solution) -> ClassModel:
    assert isinstance(solution.model, ClassModel)
    return solution.model


def refine_latents(
    decoder: PriorDecoder, latents: npt.NDArray[np.int64], bases: Floats, costs: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Move each latent by one where that makes symbols and latents together smaller.

    Latents nine apart do not meet in the decoder, so every ninth is tried at once.

    Args:
        decoder: the prior's decoder.
        latents: `[n_blocks, latent_dim]`.
        bases: base scales in units of 1/8 octave, same shape.
        costs: bits of each sub-block under each class, `[n_blocks, latent_dim, N_CLASSES]`.
    """
    reach = 9
    length = latents.shape[1]

    def bits_of(z: npt.NDArray[np.int64]) -> Floats:
        classes = classes_of(bases + decoder(z) / (1 << WEIGHT_BITS))
        return np.take_along_axis(costs, classes[:, :, None], axis=2)[:, :, 0].astype(np.float64)

    for _ in range(2):
        table = fit_latent_table(latents)
        edge = table.limit
        lengths = np.concatenate([[30.0], table.bits, [30.0]])
        now = bits_of(latents)
        for phase in range(reach):
            for change in (1, -1):
                tried = latents.copy()
                tried[:, phase::reach] += change
                tried = np.clip(tried, -edge, edge)
                gain = now - bits_of(tried) + lengths[latents + edge + 1] - lengths[tried + edge + 1]
                # What changes at distance up to four belongs to the latent in the middle.
                padded = np.pad(gain, ((0, 0), (4, 4)))
                total = sum(padded[:, 4 + d : 4 + d + length] for d in range(-4, 5))
                better = np.zeros(latents.shape, bool)
                better[:, phase::reach] = np.asarray(total)[:, phase::reach] > 0
                if better.any():
                    latents = np.where(better, tried, latents)
                    now = bits_of(latents)
    return latents
