"""What an encoder finds at one step, and how it is told to look."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.context.model import Description
from wcompress.codec.models.entropy_model import EntropyModel
from wcompress.codec.quantiser.reconstruction import LEVEL_UNITS, N_RATIOS, Levels
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.compiled import compiled
from wcompress.entropy.bits import BitWriter
from wcompress.threads import in_parts

Ints = npt.NDArray[np.int32]
Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Signs = npt.NDArray[np.int8]

_MAX_SYMBOL = 1 << 14
_FARTHER = 8
_LEAST_FOR_A_SHIFT = 64
_LEAST_MULTIPLIER = 0.15


@dataclass(frozen=True)
class EncoderConfig:
    """How hard to look.

    Attributes:
        machine: the trellis.
        multiplier: Lagrangian of the search, in squared steps a bit, where there are bits enough.
        use_prior: train a VAE prior, and use it where it pays.
        prior_steps: of its training.
        mix: several sets of probabilities, where that pays.
        keep_energy: move the levels outward from the centroids until the weights have their energy back. The squared
            error is larger, but what a network computes is not biased towards nothing.
        passes: searches at one step.
        first_passes: under class tables, at the first step, where nothing is known yet.
        seed: of the training.
        device: to train on.
        grouped: the weights are a group of a large model, where what is small may be decided on a part.
        feedbacks: of each tensor, where errors are fed back; levels are the nominal ones then.
    """

    machine: Trellis
    multiplier: float = 0.22
    use_prior: bool = True
    prior_steps: int = 300
    mix: bool = True
    keep_energy: bool = False
    passes: int = 3
    first_passes: int = 4
    seed: int = 0
    device: str = "cpu"
    grouped: bool = False
    feedbacks: tuple[Feedback, ...] | None = None

    def multiplier_at(self, bits: float) -> float:
        """The Lagrangian at so many bits a weight: less where most weights become zero, see docs/decisions/0004."""
        return min(self.multiplier, max(_LEAST_MULTIPLIER, 0.05 + 0.22 * bits))


@dataclass(frozen=True)
class Solution:
    """Everything that is stored, at one step.

    Attributes:
        step: of the quantiser.
        machine: its trellis.
        model: what the symbols are coded under.
        levels: of the quantisers.
        symbols: int32 `[n]`.
        ratios: how signs are expected, int8 `[n]`; None where they never are.
        symbol_bits: about what the symbols take; under class tables alone.
        own_scales: that the weights were divided by; None for none.
        described: scales and ratios of the weights under a context model, kept where they will be asked for again.
    """

    step: float
    machine: Trellis
    model: EntropyModel
    levels: Levels
    symbols: Ints
    ratios: Signs | None
    symbol_bits: float = 0.0
    own_scales: OwnScales | None = None
    described: Description | None = None

    @property
    def header_bits(self) -> int:
        """Bits of the model: own scales, scales, decoder, latents, tables."""
        tables, decoder = BitWriter(), BitWriter()
        latents = self.model.write(tables, decoder)
        if self.own_scales is not None:
            self.own_scales.write(tables)
        return tables.n_bits + decoder.n_bits + 8 * len(latents)


@dataclass(frozen=True)
class InSteps:
    """Weights of any float dtype `[n]` in quantisation steps, slices of which are float32; no copy of a large model.

    Attributes:
        weights: as they are.
        step: of the quantiser.
        farthest: the largest magnitude of the weights.
    """

    weights: npt.NDArray[np.floating]
    step: float
    farthest: float

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, some: slice) -> Singles:
        weights = self.weights[some]
        x: Singles = np.divide(weights, self.step, out=np.empty(len(weights), np.float32), casting="same_kind")
        return x

    def symbol_limit(self, machine: Trellis, *, moves: bool = False) -> int:
        """The largest magnitude a search needs to try.

        Args:
            machine: the trellis.
            moves: weights are moved to make the errors of others good, which may take them farther out.
        """
        farthest = self.farthest / self.step / machine.spacing
        return int(min(_FARTHER * farthest + _FARTHER if moves else farthest + 2, _MAX_SYMBOL))


def finest_step(largest: float, machine: Trellis) -> float:
    """The least step at which no symbol of weights up to `largest` is beyond what a search tries; 0 where all are 0."""
    return largest / (machine.spacing * (_MAX_SYMBOL - 2))


@dataclass(frozen=True)
class Moments:
    """What levels follow from: sums over the weights of each group, float64 `[8]`, group 4q + min(|k|, 3).

    Attributes:
        counts: of weights.
        inward: of how much smaller than nominal the weights are, in their symbols' direction.
        nominal, nominal_squared: of nominal magnitudes.
        energy: of all weights, squared steps.
    """

    counts: Doubles
    inward: Doubles
    nominal: Doubles
    nominal_squared: Doubles
    energy: float

    @classmethod
    def of(cls, x: InSteps, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis) -> Moments:
        """Of weights `[n]`, and of what they became, under which quantiser."""

        def part(some: slice) -> Doubles:
            sums = np.zeros((5, 8))
            _sum_moments(x[some], symbols[some], which[some], machine.spacing, sums)
            return sums

        sums = sum(in_parts(part, len(x)), np.zeros((5, 8)))
        return cls(sums[0], sums[1], sums[2], sums[3], float(sums[4].sum()))

    @classmethod
    def of_groups(cls, groups: Doubles, energy: float) -> Moments:
        """Under a scalar quantiser, from what `wcompress.codec.quantiser.scalar.Counted` says of its groups."""
        counts, nominal, squared, sizes = np.concatenate([groups, np.zeros((4, 4))], axis=1)
        return cls(counts, nominal - sizes, nominal, squared, energy)

    def centroids(self) -> Levels:
        """The levels that make the squared error least."""
        offsets = np.rint(LEVEL_UNITS * self.inward / np.maximum(self.counts, 1)).clip(-LEVEL_UNITS, LEVEL_UNITS - 1)
        rows = [tuple(int(v) for v in offsets[4 * q + 1 : 4 * q + 4]) for q in (0, 1)]
        return Levels((rows[0], rows[1]))  # type: ignore[arg-type]

    def restored_energy(self, levels: Levels) -> float:
        """Of what the weights would be restored to."""
        offsets = np.array([[0, *row] for row in levels.offsets]).reshape(-1) / LEVEL_UNITS
        return float(
            (self.nominal_squared - 2 * offsets * self.nominal + offsets**2 * self.counts)[[1, 2, 3, 5, 6, 7]].sum()
        )


def with_shifts(
    levels: Levels, x: Singles, symbols: Ints, which: npt.NDArray[np.uint8], machine: Trellis, ratios: Signs
) -> Levels:
    """The levels with the shifts towards expected signs that make the squared error least.

    Args:
        levels: without shifts.
        x: weights in steps, float32 `[n]`.
        symbols, which: what they became, under which quantiser.
        machine: the trellis.
        ratios: how signs are expected.
    """
    outward = np.sign(ratios) * (x - levels.units(symbols, which, machine) / LEVEL_UNITS)
    shifts = _means(
        outward, 2 * np.abs(ratios.astype(np.int64)) + (symbols != 0), 2 * (N_RATIOS + 1), _LEAST_FOR_A_SHIFT
    )
    return replace(levels, shifts=tuple((int(a), int(b)) for a, b in shifts.reshape(-1, 2)[1:]))


def with_energy(levels: Levels, moments: Moments) -> Levels:
    """Levels between the given and the nominal ones, as near to the former as keeps the weights' energy.

    Source: measured, see docs/decisions/0004.
    """
    best = levels
    for eighths in range(7, -1, -1):
        rows = [tuple(round(offset * eighths / 8) for offset in row) for row in levels.offsets]
        best = replace(levels, offsets=(rows[0], rows[1]))  # type: ignore[arg-type]
        if moments.restored_energy(best) >= moments.energy:
            break
    return best


@compiled()
def _sum_moments(x: Singles, symbols: Ints, which: npt.NDArray[np.uint8], spacing: int, sums: Doubles) -> None:
    for i in range(len(x)):
        k = symbols[i]
        magnitude = abs(k)
        group = 4 * which[i] + min(magnitude, 3)
        nominal = spacing * magnitude - (1 if which[i] == 1 and k != 0 else 0)
        sums[0, group] += 1
        sums[1, group] += nominal - (x[i] if k > 0 else -x[i])
        sums[2, group] += nominal
        sums[3, group] += nominal * nominal
        sums[4, group] += x[i] * x[i]


def _means(values: npt.NDArray[np.floating], group: npt.NDArray[np.int64], n: int, least: int = 1) -> Ints:
    totals = np.bincount(group, weights=values, minlength=n)
    counts = np.bincount(group, minlength=n)
    means = np.where(counts >= least, totals / np.maximum(counts, 1), 0.0)
    result: Ints = np.rint(LEVEL_UNITS * means).clip(-LEVEL_UNITS, LEVEL_UNITS - 1).astype(np.int32)
    return result
