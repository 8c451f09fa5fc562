"""Packing by method `vae`: a model of several groups, at one rate for all, which a sample tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from wcompress.codec.container.manifest import Part
from wcompress.codec.encoded import Encoded
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job, RawBytes
from wcompress.codec.packers.vae import (
    LACKING,
    SQNR_TOLERANCE_DB,
    check_sub_blocks,
    cut_warning,
    fine_margin_db,
    step_rule,
)
from wcompress.codec.plan import Plan
from wcompress.codec.quantiser.step_scales import BOTH, OwnScales
from wcompress.codec.rate_control.default_quality import default_sqnr_db
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.sampling import Sampled, sampled_rate
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.codec.rate_control.step_search import Target
from wcompress.codec.rate_control.weights import MOST_EXACT
from wcompress.codec.storage.dtypes import entry_of
from wcompress.codec.storage.exceptions import encode_exceptions
from wcompress.deadline import Deadline
from wcompress.errors import TargetUnreachable

LEAST_OF_BYTES, AIMED_OF_BYTES = 0.981, 0.993
"""Of the bytes that are asked for: what is near enough, and what a correction aims at."""

_MOST_PASSES, _AIMED_DB = 6, 0.03


class VaeGroups:
    """A `GroupCoder`.

    Args:
        plan, job, raw_bytes, sample_size: see `Packer.groups`.

    Raises:
        TargetUnreachable: no archive meets the target.
    """

    def __init__(self, plan: Plan, job: Job, raw_bytes: RawBytes, sample_size: int | None) -> None:
        options = self._options = job.options
        self._entries, self._device, self._budget = plan.entries, job.device, job.budget
        self._deadline = Deadline(options.time_limit)
        sizes = {name: plan.size(name) for name in plan.coded}
        self._n_weights = sum(sizes.values())
        self._numbers = {name: number for number, name in enumerate(plan.coded)}
        self._n_rows = [tensor.shape[0] if tensor.ndim else 1 for tensor in plan.coded.values()]
        self._n_passes, self._was_cut, self._lacks = 0, False, False
        self._rule: StepRule | None = None
        self._rate: Rate | None = None
        self.sampled: Sampled | None = None
        self.wanted_db = 0.0
        self._before: tuple[float, float] | None = None  # octaves that the step was moved by, and what was missing
        if not plan.coded:
            return
        check_sub_blocks(options)
        by_sqnr = options.sqnr is not None
        self._rule = step_rule(job, plan.to_code)
        if options.sqnr is not None:
            target = Target(sqnr_db=options.sqnr + _AIMED_DB, wanted=f"an SQNR of {options.sqnr:g} dB")
        elif job.budget is None:
            target = Target(sqnr_db=default_sqnr_db(job.whole))
        if job.budget is not None:
            beside = raw_bytes() + 2 * sum(plan.size(name) for name in plan.fine)
            if job.budget <= beside:
                raise TargetUnreachable(
                    f"{options.size_wanted}: what is kept exactly comes to {job.in_words(beside)} alone;"
                    " ask for a larger archive"
                )
            target = Target(
                n_bytes=job.budget - beside,
                wanted=options.size_wanted,
                in_words=lambda n: job.in_words(n + beside),
            )
        exact = plan.exact_energy() if by_sqnr else 0.0
        sampled = sampled_rate(
            plan.to_code,
            sizes,
            self._rule,
            target,
            options,
            job.device,
            exact_energy=exact,
            sample_size=sample_size,
            progress=job.progress,
        )
        self._rate = sampled.rate
        self.sampled = None if sample_size is None else sampled
        if options.sqnr is not None:
            self._rate = replace(self._rate, sqnr_db=options.sqnr)
            own = (self._rate.mean_square or 0.0) * self._n_weights
            share = exact / own if own else 0.0
            self.wanted_db = options.sqnr + 10 * math.log10((1 + share) / (1 + min(share, MOST_EXACT)))

    @property
    def quality_db(self) -> float:
        """The SQNR that what is kept finely goes with, dB."""
        return _exact_db(self._options) if self._rate is None else self._rate.sqnr_db

    @property
    def floors(self) -> Floors | None:
        """That hold for every tensor and row; None where there are none."""
        return Floors.at(self._rate.sqnr_db) if self._options.floors and self._rate is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each, once all groups are encoded."""
        return (*((LACKING,) if self._lacks else ()), *cut_warning(self._was_cut, self._options))

    def encode(self, plan: Plan, parts: Sequence[Part], /) -> Encoded:
        """One group, with entries that have the shapes of its parts."""
        coded = [part for part in parts if self._entries[part.index].kind == "coded"]
        which = [(self._numbers[self._entries[p.index].name], slice(p.start, p.stop)) for p in coded]
        if self._rule is None or self._rate is None:
            rule, rate = StepRule.of({}, {}, by_sqnr=True), Rate(1.0, _exact_db(self._options), 1.0, None)
        else:
            n_rows = [self._entries[p.index].shape[0] if self._entries[p.index].shape else 1 for p in coded]
            rule, rate = self._rule.of_parts(which, n_rows), self._rate
        search = self._search(plan, rule, rate)
        solution = search.run_at(rate)
        self._was_cut = self._was_cut or search.was_cut
        self._lacks = self._lacks or (self._options.floors and not search.keeps_floors(solution))
        exceptions = encode_exceptions(plan.exception_rows(search.model.aside))
        payloads = {**search.sections(solution), "exceptions": exceptions}
        padding = -sum(t.numel() for t in plan.coded.values()) % self._options.block_size
        return Encoded(plan.entries, payloads, padding, solution.model.scales.latents.size)

    def trial(self, name: str, slab: torch.Tensor, /) -> Encoded:
        """Some rows of a coded tensor, coded as those of a group are; to see how long it takes.

        Where rows have scales of their own, those in the middle stand for all.

        Args:
            name: of the tensor.
            slab: contiguous, on the CPU.
        """
        assert self._rule is not None
        assert self._rate is not None
        number = self._numbers[name]

        def middle(scales: OwnScales) -> OwnScales:
            row, n_rows = scales.exponents[number], self._n_rows[number]
            parts = (row[:n_rows], row[n_rows:]) if scales.kinds[number] == BOTH else (row,)
            return OwnScales(((sum(sorted(part)[len(part) // 2] for part in parts),),))

        counted = None if self._rule.counted is None else middle(self._rule.counted)
        rule = replace(self._rule, scales=middle(self._rule.scales), counted=counted)
        entries = (entry_of(name, slab),)
        plan = Plan(entries, {name: slab}, {}, {})
        search = self._search(plan, rule, self._rate)
        payloads = search.sections(search.run_at(self._rate))
        return Encoded(entries, payloads | {"exceptions": encode_exceptions(plan.exception_rows(search.model.aside))})

    def _search(self, plan: Plan, rule: StepRule, rate: Rate) -> VaeSearch:
        options = self._options
        return VaeSearch(
            plan.to_code,
            plan.fine,
            rule,
            block_size=options.block_size,
            latent_dim=options.latent_dim,
            effort=options.effort,
            parts=options.parts,
            seed=options.seed,
            device=self._device,
            fine_margin_db=fine_margin_db(options),
            deadline=self._deadline,
            floors=options.floors,
            rate=rate,
            of_weights=self._n_weights,
        )

    def again(self, sqnr_db: float | None, n_bytes: int, /) -> bool:
        """Whether another pass is needed, at a rate that is corrected; after all groups were encoded.

        Args:
            sqnr_db: of what the archive restores to; None where nothing differs.
            n_bytes: of the archive.
        """
        self._n_passes += 1
        options, rate, budget = self._options, self._rate, self._budget
        if rate is None or self._n_passes >= _MOST_PASSES or (self._n_passes > 1 and self._deadline.passed):
            return False
        if budget is not None:
            if LEAST_OF_BYTES * budget <= n_bytes <= budget:
                return False
            if n_bytes < budget and rate.is_finest:
                return False  # more bytes buy nothing
            missing, slope = 8 * (n_bytes - AIMED_OF_BYTES * budget) / self._n_weights, 1.0
        elif options.sqnr is not None and sqnr_db is not None:
            if 0 <= sqnr_db - self.wanted_db <= SQNR_TOLERANCE_DB:
                return False
            missing, slope = sqnr_db - self.wanted_db - _AIMED_DB * self._n_passes, 6.02
        else:
            return False
        if self._before is not None:
            # Floors make the model follow its step less than a quantiser alone does.
            octaves, was_missing = self._before
            found = (was_missing - missing) / octaves if octaves else slope
            slope = min(max(found, slope / 4), 2 * slope)
        self._before = missing / slope, missing
        self._rate = rate.moved(missing / slope)
        if options.sqnr is not None:
            self._rate = replace(self._rate, sqnr_db=options.sqnr)  # which is what floors go with
        self._lacks = False
        return True


def _exact_db(options: PackOptions) -> float:
    # Where nothing is coded, and a quality is asked for.
    return 22.0 if options.sqnr is None else options.sqnr
