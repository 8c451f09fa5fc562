"""Where the step follows a tensor's own scale, so that what the network computes suffers least.

A convolution followed by batch normalisation can be multiplied by anything without changing what the network computes;
then only the error relative to each output channel counts. The checkpoint shows it: the next tensor statistics after
the weight is a `running_var` of as many channels. Each such layer adds its relative error to the output's, so bits are
spent best where relative squared errors go with the numbers of weights.

Elsewhere a layer adds noise to the output in the proportion of its error to its energy, which asks for a step that goes
with the energy's root, while errors summed over the model ask for one step; measured, half way is best, but all the way
where recurrent layers have gates, and half an octave less for the recurrent weights, which act once for each time step
(docs/decisions/0004).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.quantiser.step_scales import FIRST, OwnScales
from wcompress.fidelity import tensor_energy
from wcompress.threads import in_threads

_RECURRENT = "weight_hh"  # as torch names it
_SHALLOW, _SHALLOW_DB, _SMALLEST_LAYER = 6, 22.0, 64
_DEEPEST_DB, _NORM_DB, _RECURRENT_DB = 12.0, 10.0, 8.0
_LEAST_SHARE = 2.0**-10  # of the weights: what is smaller is fine enough
# Octaves that a step, relative to its tensor's scale, may be from that of most weights; the last is a weight's share.
_MOST_COARSER, _MOST_FINER, _FINER_SHARE = 0.75, 4.0, 0.1
_MULTIPLIER, _CAREFUL_MULTIPLIER, _CALIBRATED_MULTIPLIER = 0.15, 0.05, 0.2
_LEAST_COST = 8.0
"""Octaves by which errors in one tensor may cost less than in most weights: what no input led through may be needed."""
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
    def of(cls, tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor], *, by_sqnr: bool) -> StepRule:
        """The rule for a model.

        An SQNR is met at the least cost by one step for all and levels at the centroids; what a network computes is
        kept by steps that follow its layers, and by levels that keep the weights' energy.

        Args:
            tensors: the whole model, in order.
            coded: those of it that go under the trellis, in order, or samples of them.
            by_sqnr: whether the error of the weights themselves is to be least.
        """
        if by_sqnr:
            return cls(OwnScales.plain(len(coded)), None, SQNR_MULTIPLIER, False)
        energies = _energies(tensors, coded, _followed_by_norm(tensors))
        counted = scales_that_count(tensors, coded, energies)
        return cls(own_scales(tensors, coded, energies), counted, multiplier(tensors), True)

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
            cut = [row[some] if kind == FIRST else row for row, kind, (_, some) in zip(rows, kinds, parts, strict=True)]
            return OwnScales(tuple(cut), kinds)

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


def default_sqnr_db(tensors: Mapping[str, torch.Tensor]) -> float:
    """The SQNR that a model needs where nothing is asked for, as `scales_that_count` counts it; in dB.

    Each layer adds its relative error to the output, so that ten times as many take 10 dB more. Where norms keep the
    statistics of layers, and where weights act at each of many time steps, errors count for more (docs/decisions/0007).

    Args:
        tensors: the whole model, in order.
    """
    n_layers = sum(t.is_floating_point() and t.ndim > 1 and t.numel() >= _SMALLEST_LAYER for t in tensors.values())
    deeper = 10 * math.log10(max(1.0, n_layers / _SHALLOW))
    if _followed_by_norm(tensors):
        return _SHALLOW_DB + deeper + _NORM_DB
    return (
        _SHALLOW_DB + min(deeper, _DEEPEST_DB) + (_RECURRENT_DB if any(_RECURRENT in name for name in tensors) else 0)
    )


def multiplier(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Lagrangian that suits what a model computes, in squared steps a bit.

    The larger it is, the more small weights become zero. Where norms keep the statistics of the layers that they
    follow, and where gates are passed at each time step, that costs more than it saves.

    Args:
        tensors: the whole model, in order.
    """
    return _CAREFUL_MULTIPLIER if _is_gated(tensors) or _followed_by_norm(tensors) else _MULTIPLIER


def own_scales(
    tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor], energies: Energies | None = None
) -> OwnScales:
    """Exponents for the coded tensors of a model.

    Args:
        tensors: the whole model, in order.
        coded: those of it that go under the trellis, in order.
        energies: Σw² of each by name, of each row where a norm follows; by default they are summed here.

    Returns:
        Where no tensor is followed by a norm, a scale for each tensor by its energy; otherwise a scale for each row of
        those that are, and for each other tensor, by their mean squares and the tensor's number of weights.
    """
    followed = _followed_by_norm(tensors)
    energies = energies or _energies(tensors, coded, followed)
    if not followed:
        return OwnScales(tuple((exponent,) for exponent in _by_energy(tensors, energies)))
    sizes = {name: tensors[name].numel() for name in coded}
    n_weights = sum(sizes.values())
    return OwnScales(
        tuple(
            _by_row(found, _n_weights(tensors[name], len(found)), max(sizes[name] / n_weights, _LEAST_SHARE))
            for name, found in energies.items()
        )
    )


def scales_that_count(
    tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor], energies: Energies | None = None
) -> OwnScales:
    """What errors are to be measured against: root mean squares, of rows that a norm follows and of other tensors."""
    energies = energies or _energies(tensors, coded, _followed_by_norm(tensors))
    return OwnScales(
        tuple(_by_row(found, _n_weights(tensors[name], len(found)), 1.0) for name, found in energies.items())
    )


def _energies(tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor], followed: set[str]) -> Energies:
    # One of each tensor, or of each of its rows where a norm follows; in proportion where there are samples of them.
    def of_rows(name: str) -> list[float]:
        rows, whole = (coded[name], tensors[name].shape[0]) if name in followed else ((coded[name],), 1)
        n_weights = tensors[name].numel() // max(1, whole)
        return [tensor_energy(row) * (n_weights / max(1, row.numel())) for row in rows]

    names = list(coded)
    return dict(zip(names, in_threads(of_rows, names), strict=True))


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
            octaves[name] = power * math.log2(whole) - (0.5 if _RECURRENT in name else 0.0)
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
    return any(_RECURRENT in name and t.ndim == 2 and t.shape[0] > t.shape[1] for name, t in tensors.items())


def _exponent(mean_square: float) -> int:
    return round(4 * 0.5 * math.log2(mean_square)) if mean_square > 0 else 0


def _followed_by_norm(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    followed: set[str] = set()
    last: str | None = None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim >= 2:
            last = name
        elif name.endswith("running_var") and last is not None and tensors[last].shape[0] == tensor.numel():
            followed.add(last)
    return followed
