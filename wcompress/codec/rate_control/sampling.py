"""The rate of a large model, found on a sample of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from wcompress.codec.options import PackOptions
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.quantiser.step_scales import FIRST, RUN, SECOND, WHOLE, OwnScales, of_indices, quarter_octaves
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import Solution, finest_step
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Target
from wcompress.fidelity import comparable, largest_magnitude, tensor_energy
from wcompress.progress import Progress

SAMPLE_SIZE = 1 << 19
"""Weights of a sample, about."""

_FEWEST = 1 << 12  # of a tensor
_STRIP = 16  # rows or columns that lie together


@dataclass(frozen=True)
class Sampled:
    """A rate, and what was coded to find it.

    Attributes:
        rate: at which the model meets its target, about.
        sample: rows or columns of the tensors, by name.
        search: of the sample.
        solution: of the sample, in the rounds that a group gets; at a step that `octaves` leads away from.
        octaves: that the step of `rate` is larger by than that of `solution`.
    """

    rate: Rate
    sample: Mapping[str, torch.Tensor]
    search: VaeSearch
    solution: Solution
    octaves: float


def sampled_rate(
    coded: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
    rule: StepRule,
    target: Target,
    options: PackOptions,
    device: str,
    *,
    exact_energy: float,
    sample_size: int | None = None,
    progress: Progress | None,
) -> Sampled:
    """The rate at which a model meets a target, about.

    Args:
        coded: its tensors for the trellis, or large samples of them.
        sizes: elements of each tensor.
        rule: how steps follow them.
        target: an SQNR, or bytes of all groups together.
        options: of the search.
        device: to train on.
        exact_energy: of what is kept exactly and counts in the SQNR.
        sample_size: weights of the sample, by default `SAMPLE_SIZE`.
        progress: called as the search goes on.

    Raises:
        TargetUnreachable: no step meets it.
    """
    n_weights = sum(sizes.values())
    keep = min(1.0, (sample_size or SAMPLE_SIZE) / n_weights)
    sample: dict[str, torch.Tensor] = {}
    rows: list[tuple[int, ...]] = []
    counted: list[tuple[int, ...]] = []
    feedbacks: list[Feedback] = []
    whole_energy = sampled_energy = largest = 0.0
    for number, (name, tensor) in enumerate(coded.items()):
        n_held, times = max(1, tensor.numel()), sizes[name] / max(1, tensor.numel())
        share = min(1.0, max(keep * times, _FEWEST / n_held))
        # Where errors are fed back along a row, it is taken whole.
        axis, chosen = strips(tuple(tensor.shape), share, 0 if rule.feedbacks is not None else None)
        if rule.feedbacks is not None:
            feedbacks.append(rule.feedbacks[number].of_rows(chosen, tensor.shape[0] if tensor.ndim else 1))
        sample[name] = tensor.index_select(axis, torch.from_numpy(chosen)).contiguous() if tensor.ndim else tensor
        whole_energy += tensor_energy(tensor) * times
        largest = max(largest, _farthest(tensor, rule.scales.kinds[number], rule.scales.exponents[number]))
        sampled_energy += tensor_energy(sample[name])
        for scales, found in ((rule.scales, rows), (rule.counted, counted)):
            if scales is not None:
                exponents, kind = scales.exponents[number], scales.kinds[number]
                places = chosen[::RUN] // RUN if tensor.ndim == 1 else chosen
                n_rows = tensor.shape[0] if tensor.ndim else 1
                found.append(of_indices(kind, exponents, n_rows, axis, places))
    n_sampled = sum(tensor.numel() for tensor in sample.values())
    kinds = rule.scales.kinds
    of_sample = StepRule(
        OwnScales(tuple(rows), kinds),
        None if rule.counted is None else OwnScales(tuple(counted), rule.counted.kinds),
        rule.multiplier,
        rule.keep_energy,
        None if rule.feedbacks is None else tuple(feedbacks),
    )
    mean_square, more = None, 1.0
    if target.sqnr_db is not None and rule.counted is None:
        # Errors of the sample are the model's, its energy is not.
        mean_square = whole_energy / max(1, n_weights)
        more = sampled_energy / max(1, n_sampled) / mean_square if mean_square else 1.0
        target = replace(target, sqnr_db=target.sqnr_db + 10 * math.log10(more or 1.0))
    elif target.n_bytes is not None:
        share, in_words = n_sampled / n_weights, target.in_words
        target = Target(
            n_bytes=max(1, round(target.n_bytes * share)),
            wanted=target.wanted,
            in_words=lambda n: in_words(round(n / share)),
        )
    search = VaeSearch(
        sample,
        {},
        of_sample,
        block_size=options.block_size,
        latent_dim=options.latent_dim,
        effort=options.effort,
        parts=options.parts,
        seed=options.seed,
        device=device,
        exact_energy=exact_energy * n_sampled / n_weights,
        floors=options.floors,
        of_weights=n_weights,
        progress=progress,
    )
    start = search.run(target)
    # A group is coded in fewer rounds, after which it lies elsewhere on the same curve.
    has_prior = start.model.scales.latents.size > 0
    finest = finest_step(largest, start.machine)
    rate = Rate(start.step, 0.0, search.unit_noise(start), mean_square, has_prior, finest).moved(0.0)
    solution = search.solved(rate)
    step = rate.step
    if target.sqnr_db is not None:
        rate = rate.moved((search.sqnr_db(solution) - target.sqnr_db) / 6.02)
        sqnr_db = target.sqnr_db
    else:
        assert target.n_bytes is not None
        rate = rate.moved(8 * (search.n_bytes(solution) - target.n_bytes) / n_sampled)
        sqnr_db = search.sqnr_db(solution)
    rate = replace(rate, sqnr_db=sqnr_db - (10 * math.log10(more or 1.0) if mean_square else 0.0))
    return Sampled(rate, sample, search, solution, math.log2(rate.step / step))


def _farthest(tensor: torch.Tensor, kind: int, exponents: tuple[int, ...]) -> float:
    # The largest magnitude in its own scale.
    if not tensor.numel():
        return 0.0
    if kind == WHOLE:
        return largest_magnitude(tensor) / quarter_octaves(exponents[0])
    if tensor.ndim == 1:
        runs = zip(tensor.split(RUN), exponents, strict=True)
        return max(largest_magnitude(run) / quarter_octaves(exponent) for run, exponent in runs)
    grid = comparable(tensor).reshape(*tensor.shape[:2], -1)
    sizes = torch.maximum(grid.amax(dim=2), -grid.amin(dim=2)).double()
    scales = torch.tensor([quarter_octaves(exponent) for exponent in exponents], dtype=torch.float64)
    if kind != SECOND:
        sizes = sizes / scales[: len(sizes), None]
    if kind != FIRST:
        sizes = sizes / scales[-sizes.shape[1] :]
    return float(sizes.max())


def strips(
    shape: tuple[int, ...], keep: float, axis: int | None = None
) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Evenly spaced indices along a dimension, int64: the longer one of the first two; whole runs of a vector.

    Args:
        shape: of a tensor.
        keep: the part of its elements to choose, at most 1.
        axis: the dimension, where it is not to be the longer one.
    """
    if not shape:
        return 0, np.zeros(1, np.int64)
    if len(shape) == 1:
        n_runs = -(-shape[0] // RUN)
        runs = _spread(n_runs, keep)
        places = (runs[:, None] * RUN + np.arange(RUN)).reshape(-1)
        return 0, places[places < shape[0]]
    if axis is None:
        axis = 0 if shape[0] >= shape[1] else 1
    # Neighbours together, since a weight is coded by what was before it.
    n_strips = -(-shape[axis] // _STRIP)
    if n_strips * keep < 2:
        return axis, _spread(shape[axis], keep)
    strips = _spread(n_strips, keep)
    places = (strips[:, None] * _STRIP + np.arange(_STRIP)).reshape(-1)
    return axis, places[places < shape[axis]]


def _spread(n: int, keep: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    n_kept = min(n, max(1, round(n * keep)))
    return ((np.arange(n_kept) + 0.5) * n / n_kept).astype(np.int64)
