"""What the inputs of layers are like, as far as the statistics of batch normalisation tell; no data is needed.

A normalised channel has the mean β and the standard deviation |γ|. What is made of it, by an activation or a residual
sum, has moments that follow from these. Nothing in a checkpoint says where a layer's input comes from. But the norm
behind the layer has kept the mean of the layer's output, which has to be what the weights make of the input's mean. So
each norm nearby, each sum of two, and each activation is tried, and what explains that mean best is taken; nothing is,
where nothing explains it.

Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, for the moments
behind a norm; the choice by the next norm's mean is this project's own.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wcompress.fidelity import comparable, computable

_STATISTIC = "running_var"
_NODES, _NODE_WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(16))
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    torch.relu,
    functional.relu6,
    functional.silu,
)
_NORMS_BEFORE, _SUMMED_BEFORE = 6, 4
_LEAST_EXPLAINED = 0.5
"""Of the squared means of a layer's outputs, in their standard deviations."""
_AS_GOOD, _AS_GOOD_SHARE, _LEVEL_COUNTS = 0.05, 0.1, 0.3
"""Of what explains the means about as well, the variances choose: by how far their ratios spread, and from 1."""
_TINY = 1e-12
_FEWEST_GAINS, _FEWEST_ROWS, _MOSTLY = 32, 32, 0.9
_LEAST_OPPOSED = 0.3
"""Rank correlation of gains with energies of columns, with its sign turned."""
_STRICT = 2.0
"""Standard deviations by which it has to be farther than the farthest of so many is by chance."""
_LEAST_ENERGY = 0.02
"""Of a column, as a part of the mean."""
_MOST_LOOKED_AT = 1 << 22


@dataclass(frozen=True)
class Signal:
    """Channels that do not depend on each other.

    Attributes:
        mean, variance: float64 `[..., n_channels]`.
    """

    mean: Tensor
    variance: Tensor

    @property
    def square(self) -> Tensor:
        """Second moments, of the same shape."""
        return self.mean.square() + self.variance

    def plus(self, other: Signal) -> Signal:
        """Both added up."""
        return Signal(self.mean + other.mean, self.variance + other.variance)

    def through(self, activation: Callable[[Tensor], Tensor]) -> Signal:
        """Behind an activation, if it is normally distributed before."""
        values = activation(self.mean[..., None] + self.variance.sqrt()[..., None] * _NODES)
        mean = values @ _NODE_WEIGHTS
        return Signal(mean, (values.square() @ _NODE_WEIGHTS - mean.square()).clamp_min(0))

    @classmethod
    def stacked(cls, signals: Sequence[Signal]) -> Signal:
        """Some of as many channels each, `[n_signals, n_channels]`."""
        return cls(torch.stack([one.mean for one in signals]), torch.stack([one.variance for one in signals]))


@dataclass(frozen=True)
class Norm:
    """A batch normalisation, float64 `[n_channels]` each.

    Attributes:
        output: what it gives.
        mean, deviation: of what it gets.
    """

    output: Signal
    mean: Tensor
    deviation: Tensor


def followed_by_norm(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The norm behind each weight that has one, by its name up to `running_var`.

    In the order in which modules were made, it is the next norm if it has as many channels. Where names are in
    alphabetical order, as some formats have them, the variances choose among the norms in the same module.

    Args:
        tensors: a model, in order.
    """
    if list(tensors) == sorted(tensors):
        return _followed_by_variances(tensors)
    followed: dict[str, str] = {}
    last: str | None = None
    for name, tensor in tensors.items():
        if _is_layer(tensor):
            last = name
        elif _is_statistic(name, tensor) and last is not None and tensors[last].shape[0] == tensor.numel():
            followed.setdefault(last, name.removesuffix(_STATISTIC))
    return followed


def _is_layer(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


def _is_statistic(name: str, tensor: Tensor) -> bool:
    return name.endswith(_STATISTIC) and tensor.ndim == 1 and len(tensor) > 0 and not tensor.is_complex()


def _followed_by_variances(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    # A norm goes with a weight in the module that both have most in common with, whose energies are most like its
    # variances.
    weights: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if _is_layer(tensor) and len(tensor) > 1:
            weights.setdefault(len(tensor), []).append(name)
    profiles: dict[str, Tensor | None] = {}
    found: list[tuple[int, float, str, str]] = []
    for name, variance in tensors.items():
        if _is_statistic(name, variance) and len(variance) in weights:
            prefix = name.removesuffix(_STATISTIC)
            common = {weight: _common(prefix, weight) for weight in weights[len(variance)]}
            most = max(common.values())
            near = [weight for weight, n in common.items() if n == most]
            profile = _profile(variance.double()) if len(near) > 1 and not variance.is_meta else None
            for weight in near:
                if weight not in profiles and len(near) > 1:
                    profiles[weight] = None if tensors[weight].is_meta else _profile(_row_energies(tensors[weight]))
                other = profiles.get(weight)
                alike = 0.0 if profile is None or other is None else float(profile @ other)
                found.append((-most, -alike, weight, prefix))
    followed: dict[str, str] = {}
    taken: set[str] = set()
    for _, _, weight, prefix in sorted(found):
        if weight not in followed and prefix not in taken:
            followed[weight] = prefix
            taken.add(prefix)
    return {name: followed[name] for name in tensors if name in followed}


def _row_energies(weight: Tensor) -> Tensor:
    return computable(weight).double().reshape(len(weight), -1).square().sum(1)


def _profile(values: Tensor) -> Tensor | None:
    # The logarithms, centred and of length 1, whose product with another's is their correlation.
    logs = (values + _TINY).log()
    logs = logs - logs.mean()
    length = math.sqrt(float(logs.square().sum()))
    return logs / length if 0 < length < math.inf else None


def _common(a: str, b: str) -> int:
    # How many modules two names have in common.
    parts = zip(a.split(".")[:-2], b.split(".")[:-2], strict=False)
    return next((number for number, (x, y) in enumerate(parts) if x != y), min(a.count("."), b.count(".")) - 1)


def input_moments(tensors: Mapping[str, Tensor], followed: Mapping[str, str]) -> dict[str, Tensor]:
    """Second moments of the inputs of layers, float64 `[n_inputs]` by name of a weight; of those that can be told.

    Args:
        tensors: a model, in order, or those of it that are at hand.
        followed: see `followed_by_norm`.
    """
    norms = {prefix: norm for prefix in dict.fromkeys(followed.values()) if (norm := _norm(tensors, prefix))}
    prefixes = list(norms)
    if list(tensors) == sorted(tensors):
        prefixes.sort(key=_natural)
    by_norm = {prefix: name for name, prefix in followed.items()}
    seen: list[Signal] = []
    found: dict[str, Tensor] = {}
    for number, prefix in enumerate(prefixes):
        name = by_norm[prefix]
        before = [norms[p].output for p in prefixes[max(0, number - _NORMS_BEFORE) : number]]
        weight = tensors.get(name)
        if weight is None or weight.shape[1] < 2 or not before or not bool(computable(weight).isfinite().all()):
            continue  # of a depthwise convolution each row has an input of its own, and a step as well
        signal = _best(_Layer.of(tensors, name, norms[prefix]), _sums(before, seen))
        if signal is not None:
            seen = [*seen, signal][-_SUMMED_BEFORE:]
            found[name] = signal.square
    return found


def moments_by_gains(tensors: Mapping[str, Tensor], coded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Second moments of the inputs of matrices behind a norm without statistics, float64 `[n_inputs]`, up to a factor.

    A layer norm's gains say how large each input is, and matrices behind it have learnt to make up for that: what an
    input has of weights' energy goes down as its gain goes up, in a trained network so nearly that it tells more of
    the input than the gains do, which are often those of another norm. So where the two go together in that way, each
    input is taken to be as large as its weights are small.

    Args:
        tensors: a model, in order, or those of it that are at hand.
        coded: its tensors for the trellis, or samples of their rows.
    """
    gains: dict[int, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1 and len(tensor) >= _FEWEST_GAINS and _is_gain(name, tensors):
            gains.setdefault(len(tensor), []).append(_ranks(tensor.double().abs()))
    known = {n: torch.stack(ranks) for n, ranks in gains.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in coded.items():
        if tensor.ndim != 2 or tensor.shape[1] not in known or len(tensor) < _FEWEST_ROWS:
            continue
        ranks, energies = known[tensor.shape[1]], column_energies(tensor)
        # The more gains are looked at, the farther one goes by chance.
        chance = (math.sqrt(2 * math.log(len(ranks))) + _STRICT) / math.sqrt(tensor.shape[1])
        opposed = -float((ranks @ _ranks(energies)).min())
        if opposed >= max(_LEAST_OPPOSED, chance) and bool((energies > 0).any()):
            mean = float(energies.mean())
            found[name] = mean / energies.clamp_min(_LEAST_ENERGY * mean)
    return found


def _ranks(values: Tensor) -> Tensor:
    # Of which the product of two is their rank correlation.
    ranks = values.argsort(stable=True).argsort(stable=True).double()
    centred: Tensor = ranks - ranks.mean()
    return centred / math.sqrt(float(centred.square().sum()))


def _is_gain(name: str, tensors: Mapping[str, Tensor]) -> bool:
    prefix, _, last = name.rpartition(".")
    tensor = tensors[name]
    if tensor.is_meta or not tensor.is_floating_point() or "bias" in last or f"{prefix}.{_STATISTIC}" in tensors:
        return False
    values = tensor.double()
    is_constant = bool((values == values[0]).all())
    return not is_constant and bool(values.isfinite().all()) and float((values > 0).double().mean()) >= _MOSTLY


def column_energies(tensor: Tensor) -> Tensor:
    """Σw² of each column of a matrix, float64 `[n_columns]`; of a large one by some of its rows."""
    step = max(1, tensor.numel() // _MOST_LOOKED_AT)
    rows = comparable(tensor)[::step].double()
    return rows.nan_to_num(0.0, 0.0, 0.0).square().sum(0) * (len(tensor) / max(1, len(rows)))


def _norm(tensors: Mapping[str, Tensor], prefix: str) -> Norm | None:
    mean, variance = tensors.get(f"{prefix}running_mean"), tensors.get(f"{prefix}running_var")
    if mean is None or variance is None or mean.shape != variance.shape or mean.is_meta or variance.is_meta:
        return None
    if not _is_statistic(_STATISTIC, mean):
        return None
    gain, bias = (tensors.get(f"{prefix}{part}") for part in ("weight", "bias"))
    gain = torch.ones_like(mean) if gain is None or gain.shape != mean.shape else gain
    bias = torch.zeros_like(mean) if bias is None or bias.shape != mean.shape else bias
    found = [values.double() for values in (gain, bias, mean, variance)]
    if not all(bool(values.isfinite().all()) for values in found) or bool((found[3] < 0).any()):
        return None
    return Norm(Signal(found[1], found[0].square()), found[2], found[3].sqrt() + _TINY)


@dataclass(frozen=True)
class _Layer:
    """A layer with a norm behind it.

    Attributes:
        sums, squares: of the weights over a kernel, float64 `[n_outputs, n_inputs]`.
        mean: of its outputs, without its bias, in their standard deviations, float64 `[n_outputs]`.
        deviation: of its outputs, float64 `[n_outputs]`.
        kernel: weights of one input and one output.
    """

    sums: Tensor
    squares: Tensor
    mean: Tensor
    deviation: Tensor
    kernel: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str, norm: Norm) -> _Layer:
        found = computable(tensors[name]).double()
        weight = found.flatten(2) if found.ndim > 2 else found[:, :, None]
        bias = tensors.get(f"{name.removesuffix('weight')}bias")
        mean = norm.mean if bias is None or bias.is_meta or bias.shape != norm.mean.shape else norm.mean - bias.double()
        deviation = norm.deviation
        return cls(weight.sum(2), weight.square().sum(2), mean / deviation, deviation, weight.shape[2])

    def n_groups(self, n_channels: int) -> int:
        """Of a convolution with so many inputs; 0 if it is none."""
        n_outputs, n_inputs = self.sums.shape
        n_groups = n_channels // n_inputs if n_channels % n_inputs == 0 else 0
        # A matrix is in one piece.
        return n_groups if n_groups == 1 or (n_groups and n_outputs % n_groups == 0 and self.kernel > 1) else 0

    def compared(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """What part of the outputs' means inputs explain, and how badly they fit the variances, `[n_signals]` each."""
        mean = self._outputs(self.sums, signal.mean) / self.deviation
        explained = 1 - (mean - self.mean).square().sum(1) / self.mean.square().sum().clamp_min(_TINY)
        logs = (self._outputs(self.squares, signal.variance) / self.deviation.square() + _TINY).log()
        middle = logs.median(1, keepdim=True).values
        return explained, (logs - middle).abs().mean(1) + _LEVEL_COUNTS * middle.abs()[:, 0]

    def _outputs(self, weights: Tensor, values: Tensor) -> Tensor:
        n_signals, n_channels = values.shape
        n_groups = self.n_groups(n_channels)
        grouped = weights.reshape(1, n_groups, -1, weights.shape[1]) @ values.reshape(n_signals, n_groups, -1, 1)
        return grouped.reshape(n_signals, -1)


def _sums(before: Sequence[Signal], seen: Sequence[Signal]) -> Iterator[Signal]:
    yield from before
    for number, one in enumerate(before):
        for other in (*seen, *before[max(0, number - _SUMMED_BEFORE) : number]):
            if len(one.mean) == len(other.mean):
                yield one.plus(other)


def _best(layer: _Layer, candidates: Iterator[Signal]) -> Signal | None:
    by_size: dict[int, list[Signal]] = {}
    for candidate in candidates:
        if layer.n_groups(len(candidate.mean)):
            by_size.setdefault(len(candidate.mean), []).append(candidate)
    tried: list[tuple[float, float, Signal]] = []
    for some, activation in itertools.product(by_size.values(), _ACTIVATIONS):
        signal = Signal.stacked(some).through(activation)
        explained, misfit = layer.compared(signal)
        tried += [
            (float(explained[number]), float(misfit[number]), Signal(signal.mean[number], signal.variance[number]))
            for number in range(len(some))
        ]
    most = max((explained for explained, _, _ in tried), default=0.0)
    if not most >= _LEAST_EXPLAINED:
        return None
    least = max(_LEAST_EXPLAINED, most - _AS_GOOD - _AS_GOOD_SHARE * (1 - most))
    return min((one for one in tried if one[0] >= least), key=lambda one: one[1])[2]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
