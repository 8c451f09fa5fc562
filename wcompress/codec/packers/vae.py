"""Packing by method `vae`: a model that is one group, and what holds for groups as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch

from wcompress.codec.encoded import Encoded
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job
from wcompress.codec.plan import Plan
from wcompress.codec.rate_control.default_quality import default_sqnr_db
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.rate_control.rated_search import RatedSearch
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import Solution
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Target
from wcompress.codec.storage.exceptions import encode_exceptions
from wcompress.deadline import Deadline
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import Worst

_DEFAULT_FINE_MARGIN_DB = 34.0
_DEFLATE_MARGIN = 6  # bytes that other digits of the same number may take under deflate
_MOST_AGAIN = 5
SQNR_TOLERANCE_DB = 0.15
"""How far beyond an SQNR that was asked for is near enough."""

LACKING = "not every tensor, row and channel keeps its floor; ask for more bits, or use `--method lossless`"


def encode_whole(plan: Plan, job: Job, raw_bytes: int) -> tuple[Encoded, Mapping[str, float]]:
    """A model that is one group; see `Packer.encode`.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    checkpoint, options, rates = job.checkpoint, job.options, {} if plan.chosen is None else plan.chosen.rates
    check_sub_blocks(options)
    coded = dict(plan.to_code.items())
    padding = -sum(tensor.numel() for tensor in coded.values()) % options.block_size
    refined = job.feedbacks is not None

    def other_bytes(solution: Solution, sqnr_db: float) -> list[int]:
        about = Encoded(plan.entries, {}, padding, solution.model.scales.latents.size, refined=refined)
        # What the manifest will record is not known yet; nothing takes more digits.
        last = plan.entries[-1].name
        worst = Worst(last, -100.1, -100.2, last)
        manifest = about.manifest(checkpoint, *((-100.123, worst) if math.isfinite(sqnr_db) else ()))
        return [
            len(manifest.to_bytes()) + _DEFLATE_MARGIN,
            raw_bytes,
            len(encode_exceptions(plan.exception_rows(search.model.aside))),
        ]

    if job.budget is None:
        target = Target(sqnr_db=default_sqnr_db(job.whole) if options.sqnr is None else options.sqnr)
    else:
        target = Target(n_bytes=max(1, job.budget), wanted=options.size_wanted, in_words=job.in_words)
    by_sqnr = options.sqnr is not None
    kind = partial(RatedSearch, rates=rates, counted=by_sqnr) if rates else VaeSearch
    search = kind(
        coded,
        plan.fine,
        step_rule(job, coded),
        block_size=options.block_size,
        latent_dim=options.latent_dim,
        effort=options.effort,
        parts=options.parts,
        seed=options.seed,
        device=job.device,
        exact_energy=plan.exact_energy() if by_sqnr else 0.0,
        fine_margin_db=fine_margin_db(options),
        ties=checkpoint.ties,
        deadline=Deadline(options.time_limit),
        floors=options.floors,
        other_bytes=other_bytes,
        progress=job.progress,
    )
    solution = _promised(search, target, options)
    n_latents = solution.model.scales.latents.size
    sqnr_db = search.sqnr_db(solution)
    bits = search.bits if isinstance(search, RatedSearch) else {}
    held = any(name not in rates for name in coded)
    floors = Floors.at(sqnr_db) if options.floors and held and math.isfinite(sqnr_db) else None
    exceptions = encode_exceptions(plan.exception_rows(search.model.aside))
    payloads = {**search.sections(solution), "exceptions": exceptions}
    lacks = floors is not None and not search.keeps_floors(solution)
    warnings = (*((LACKING,) if lacks else ()), *cut_warning(search.was_cut, options))
    encoded = Encoded(plan.entries, payloads, padding, n_latents, floors=floors, warnings=warnings, refined=refined)
    return encoded, bits


def step_rule(job: Job, coded: Mapping[str, torch.Tensor]) -> StepRule:
    """How steps follow the coded tensors of a model, or samples of them."""
    if job.feedbacks is not None:
        return StepRule.calibrated(coded, job.feedbacks)
    by_sqnr = job.options.sqnr is not None
    return StepRule.of(job.whole, coded, by_sqnr=by_sqnr, held=job.checkpoint.tensors)


def cut_warning(was_cut: bool, options: PackOptions) -> tuple[str, ...]:
    """A line where the time limit ended a search."""
    if not was_cut:
        return ()
    return (f"the time limit of {options.time_limit:g} s ended the search; without it the archive may be smaller",)


def fine_margin_db(options: PackOptions) -> float:
    """How much better than coded tensors fine ones are kept, at least, dB."""
    sized = options.ratio is not None or options.bits_per_weight is not None
    return 0.0 if options.sqnr is not None or sized else _DEFAULT_FINE_MARGIN_DB


def check_sub_blocks(options: PackOptions) -> None:
    """Say that blocks can be cut into sub-blocks.

    Raises:
        OptionError: they cannot.
    """
    sub_size = options.block_size // options.latent_dim
    if sub_size * options.latent_dim != options.block_size or sub_size & (sub_size - 1):
        raise OptionError(
            f"block_size {options.block_size}, latent_dim {options.latent_dim}: their quotient must be a power of two"
        )


def _promised(search: VaeSearch, target: Target, options: PackOptions) -> Solution:
    """A solution that keeps an SQNR when its weights have their dtype, which they are rounded to, and hardly more."""
    solution = search.run(target)
    if options.sqnr is None:
        return solution
    aim, best = options.sqnr, None
    for _ in range(_MOST_AGAIN):
        beyond = search.restored_sqnr_db(solution) - options.sqnr
        if beyond >= 0 and (best is None or beyond < best[0]):
            best = (beyond, solution)
        if 0 <= beyond <= SQNR_TOLERANCE_DB or not math.isfinite(beyond):
            break
        aim -= beyond - 0.2 * SQNR_TOLERANCE_DB
        try:
            solution = search.run(Target(sqnr_db=aim))
        except TargetUnreachable:
            break
    return solution if best is None else best[1]
