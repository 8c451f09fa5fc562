"""Where the step follows a tensor's own scale, so that what the network computes suffers least.

A convolution followed by batch normalisation can be multiplied by anything without changing what the network computes;
then only the error relative to each output channel counts. The checkpoint shows it: the next tensor statistics after
the weight is a `running_var` of as many channels. Each such layer adds its relative error to the output's, so bits are
spent best where relative squared errors go with the numbers of weights.

Elsewhere a layer adds noise to the output in the proportion of its error to its energy, which asks for a step that goes
with the energy's root, while errors summed over the model ask for one step; measured, half way is best, but all the way
where recurrent layers have gates, and half an octave less for the recurrent weights, which act once for each time step
(docs/decisions/0004).

Where norms tell how large the inputs of a layer are, each input's weights have a step of their own, and errors count by
what they add to the output (docs/decisions/0016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.quantiser.step_scales import BOTH, FIRST, SECOND, WHOLE, OwnScales, has_pairs, of_indices
from wcompress.codec.rate_control.default_quality import RECURRENT
from wcompress.codec.rate_control.norm_inputs import followed_by_norm, input_moments, moments_by_gains
from wcompress.fidelity import computable, tensor_energy
from wcompress.threads import in_threads

_LEAST_SHARE = 2.0**-10  # of the weights: what is smaller is fine enough
# Octaves that a step, relative to its tensor's scale, may be from that of most weights; the last is a weight's share.
_MOST_COARSER, _MOST_FINER, _FINER_SHARE = 0.75, 4.0, 0.1
_MULTIPLIER, _CAREFUL_MULTIPLIER, _CALIBRATED_MULTIPLIER = 0.15, 0.05, 0.2
_LEAST_COST = 8.0
"""Octaves by which errors in one tensor may cost less than in most weights: what no input led through may be needed."""
_LEAST_INPUT = 0.02
"""Of the mean: the least second moment of an input."""
SQNR_MULTIPLIER = 0.33
"""Lagrangian for the least squared error; see docs/decisions/0004."""


Energies = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class StepRule:
    """How steps follow the tensors of a model, and how its errors count.

    Attributes:
        scales: exponents for each coded tensor.
        counted: what errors count divided by; None for as they are.
        multiplier: Lagrangian, in squared steps a bit.
        keep_energy: see `EncoderConfig`.
        feedbacks: of each coded tensor, where inputs tell what errors cost; a squared step of the common step costs 1
            on average.
    """

    scales: OwnScales
    counted: OwnScales | None
    multiplier: float
    keep_energy: bool
    feedbacks: tuple[Feedback, ...] | None = None

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, torch.Tensor],
        coded: Mapping[str, torch.Tensor],
        *,
        by_sqnr: bool,
        held: Mapping[str, torch.Tensor] | None = None,
    ) -> StepRule:
        """The rule for a model.

        An SQNR is met at the least cost by one step for all and levels at the centroids; what a network computes is
        kept by steps that follow its layers, and by levels that keep the weights' energy.

        Args:
            tensors: the whole model, in order.
            coded: those of it that go under the trellis, in order, or samples of them.
            by_sqnr: whether the error of the weights themselves is to be least.
            held: those of the model whose values are at hand; by default all.
        """
        if by_sqnr:
            return cls(OwnScales.plain(len(coded)), None, SQNR_MULTIPLIER, False)
        layers = _Layers.of(tensors, coded, tensors if held is None else held)
        return cls(layers.own_scales(), layers.scales_that_count(), multiplier(tensors), True)

    @classmethod
    def calibrated(cls, coded: Mapping[str, torch.Tensor], feedbacks: Mapping[str, Feedback]) -> StepRule:
        """The rule where it is known what errors cost: in each tensor an error of one step costs alike.

        Args:
            coded: the tensors that go under the trellis, in order, or samples of them.
            feedbacks: of them, by name.
        """
        sizes = {name: max(1, tensor.numel()) for name, tensor in coded.items()}
        costs = {name: feedbacks[name].log_cost for name in coded}
        middle = _weighted_median(costs, sizes)
        raised = {name: max(0.0, middle - _LEAST_COST - cost) for name, cost in costs.items()}
        costs = {name: cost + raised[name] for name, cost in costs.items()}
        mean = sum(costs[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))
        exponents = {name: round(-2 * (cost - mean)) for name, cost in costs.items()}
        scaled = (feedbacks[name].times(exponent / 2 - mean + raised[name]) for name, exponent in exponents.items())
        scales = OwnScales(tuple((exponent,) for exponent in exponents.values()))
        return cls(scales, None, _CALIBRATED_MULTIPLIER, False, tuple(scaled))

    def of_parts(self, parts: Sequence[tuple[int, slice]], n_rows: Sequence[int]) -> StepRule:
        """The rule for parts of the coded tensors.

        Args:
            parts: for each the number of its tensor among the coded ones, and the indices of its first dimension.
            n_rows: for each how many its tensor has of these.
        """

        def taken(scales: OwnScales) -> OwnScales:
            rows = [scales.exponents[number] for number, _ in parts]
            kinds = tuple(scales.kinds[number] for number, _ in parts)
            found = zip(rows, kinds, parts, n_rows, strict=True)
            return OwnScales(tuple(of_indices(kind, row, n, 0, some) for row, kind, (_, some), n in found), kinds)

        counted = None if self.counted is None else taken(self.counted)
        feedbacks = self.feedbacks
        if feedbacks is not None:
            found = zip(parts, n_rows, strict=True)
            feedbacks = tuple(feedbacks[number].of_rows(some, n) for (number, some), n in found)
        return StepRule(taken(self.scales), counted, self.multiplier, self.keep_energy, feedbacks)


def _weighted_median(values: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    n_below, half = 0, sum(sizes.values()) / 2
    for name in sorted(values, key=lambda name: values[name]):
        n_below += sizes[name]
        if n_below >= half:
            return values[name]
    return 0.0


def multiplier(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Lagrangian that suits what a model computes, in squared steps a bit.

    The larger it is, the more small weights become zero. Where norms keep the statistics of the layers that they
    follow, and where gates are passed at each time step, that costs more than it saves.

    Args:
        tensors: the whole model, in order.
    """
    return _CAREFUL_MULTIPLIER if _is_gated(tensors) or followed_by_norm(tensors) else _MULTIPLIER


@dataclass(frozen=True)
class _Layers:
    """The coded tensors of a model.

    Attributes:
        tensors: the whole model, in order.
        coded: those of it that go under the trellis, in order, or samples of them.
        followed: those that a norm with statistics follows.
        inputs: second moments of inputs, float64 `[n_inputs]`, their geometric mean 1, where they are known.
        energies: Σw² of each tensor, or of each of its rows where a norm follows.
        outputs: the same with inputs of these moments.
    """

    tensors: Mapping[str, torch.Tensor]
    coded: Mapping[str, torch.Tensor]
    followed: frozenset[str]
    inputs: Mapping[str, torch.Tensor]
    energies: Energies
    outputs: Energies

    @classmethod
    def of(
        cls, tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor]
    ) -> _Layers:
        followed = followed_by_norm(tensors)
        known = input_moments(held, followed) if followed else moments_by_gains(held, coded)
        inputs = {name: _relative(known[name]) for name, tensor in coded.items() if _fits(tensor, known.get(name))}

        # In proportion where there are samples.
        def energies(name: str, moments: torch.Tensor | None = None) -> list[float]:
            rows, whole = (coded[name], tensors[name].shape[0]) if name in followed else ((coded[name],), 1)
            n_weights = tensors[name].numel() // max(1, whole)
            inner = math.prod(coded[name].shape[2:])
            found = (tensor_energy(row) if moments is None else _weighted_energy(row, moments, inner) for row in rows)
            return [energy * (n_weights / max(1, row.numel())) for energy, row in zip(found, rows, strict=True)]

        def with_inputs(name: str) -> list[float]:
            return energies(name, inputs[name])

        names = list(coded)
        plain = dict(zip(names, in_threads(energies, names), strict=True))
        weighted = dict(zip(inputs, in_threads(with_inputs, list(inputs)), strict=True))
        return cls(tensors, coded, frozenset(followed), inputs, plain, plain | weighted)

    def own_scales(self) -> OwnScales:
        """Exponents for the coded tensors.

        Where no tensor is followed by a norm, a scale for each tensor by its energy; otherwise a scale for each row of
        those that are, and for each other tensor, by their mean squares and the tensor's number of weights.
        """
        if not self.followed:
            return self._with_inputs([(exponent,) for exponent in _by_energy(self.tensors, self.energies)])
        n_weights = sum(self.tensors[name].numel() for name in self.coded)
        shares = {name: max(self.tensors[name].numel() / n_weights, _LEAST_SHARE) for name in self.coded}
        return self._with_inputs([self._by_row(name, shares[name]) for name in self.coded])

    def scales_that_count(self) -> OwnScales:
        """What errors are to be measured against: root mean squares of outputs, or of weights if inputs are unknown.

        Of rows that a norm follows, and of other tensors.
        """
        return self._with_inputs([self._by_row(name, 1.0) for name in self.coded])

    def _by_row(self, name: str, factor: float) -> tuple[int, ...]:
        found = self.outputs[name]
        return _by_row(found, _n_weights(self.tensors[name], len(found)), factor)

    def _with_inputs(self, rows: Sequence[tuple[int, ...]]) -> OwnScales:
        exponents, kinds = [], []
        for name, row in zip(self.coded, rows, strict=True):
            kind = FIRST if len(row) > 1 else WHOLE
            if name in self.inputs:
                columns = [_exponent(1 / moment) for moment in self.inputs[name].tolist()]
                if kind == FIRST:
                    kind, row = BOTH, (*row, *columns)
                else:
                    kind, row = SECOND, tuple(row[0] + exponent for exponent in columns)
            exponents.append(row)
            kinds.append(kind)
        return OwnScales(tuple(exponents), tuple(kinds))


def _fits(tensor: torch.Tensor, moments: torch.Tensor | None) -> bool:
    shape = tuple(tensor.shape)
    return moments is not None and len(shape) > 1 and 1 < shape[1] == len(moments) and not has_pairs(shape)


def _relative(moments: torch.Tensor) -> torch.Tensor:
    bounded = moments.clamp_min(max(_LEAST_INPUT * float(moments.mean()), 1e-300))
    return bounded / bounded.log().mean().exp()


def _weighted_energy(rows: torch.Tensor, moments: torch.Tensor, inner: int) -> float:
    # Of one row, or of all of a tensor; `inner` weights have the same input.
    squares = computable(rows).double().square().reshape(-1, len(moments), inner)
    return float(squares.sum((0, 2)) @ moments)


def _n_weights(tensor: torch.Tensor, n_energies: int) -> int:
    # Of a tensor, or of so many of its rows.
    return tensor.numel() if n_energies == 1 else n_energies * (tensor.numel() // tensor.shape[0])


def _by_row(energies: Sequence[float], n_weights: int, factor: float) -> tuple[int, ...]:
    # By mean squares of so many rows times the factor.
    per_row = [energy * len(energies) / max(1, n_weights) for energy in energies]
    # A dead row has no scale; let it not be finer than 2^-16 of the liveliest.
    least = 2.0**-32 * max(per_row)
    return tuple(_exponent(factor * max(mean_square, least)) for mean_square in per_row)


def _by_energy(tensors: Mapping[str, torch.Tensor], energies: Energies) -> list[int]:
    coded = {name: tensors[name] for name in energies}
    power = 0.5 if _is_gated(coded) else 0.25
    octaves: dict[str, float] = {}
    scales: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, tensor in coded.items():
        (whole,), n = energies[name], tensor.numel()
        if whole > 0:
            octaves[name] = power * math.log2(whole) - (0.5 if RECURRENT in name else 0.0)
            scales[name] = 0.5 * math.log2(whole / n)
            sizes[name] = n
    # The rule is about layers of one model, whose scales are much alike: of others none is to pay for the rest, neither
    # by being much coarser than most weights nor, if it is large, by being much finer.
    n_weights = sum(sizes.values())
    relative = {name: octaves[name] - scales[name] for name in octaves}
    middle, n_coarser = 0.0, 0
    for name in sorted(relative, key=lambda name: -relative[name]):
        middle, n_coarser = relative[name], n_coarser + sizes[name]
        if 2 * n_coarser >= n_weights:
            break
    for name, value in relative.items():
        finest = min(_MOST_FINER, max(1.0, _FINER_SHARE * n_weights / sizes[name]))
        octaves[name] = scales[name] + min(max(value - middle, -finest), _MOST_COARSER)
    mean = sum(octaves[name] * size for name, size in sizes.items()) / max(n_weights, 1)
    return [round(4 * (octaves[name] - mean)) if name in octaves else 0 for name in coded]


def _is_gated(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(RECURRENT in name and t.ndim == 2 and t.shape[0] > t.shape[1] for name, t in tensors.items())


def _exponent(mean_square: float) -> int:
    return round(4 * 0.5 * math.log2(mean_square)) if mean_square > 0 else 0
