"""A model → section payloads, by method: whole where it is small, else group by group at one rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import grouped
from wcompress.codec.container.manifest import Manifest, Part, TensorEntry
from wcompress.codec.methods.lossless import encode_lossless
from wcompress.codec.options import PackOptions
from wcompress.codec.plan import Plan, plan_tensors
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.rate_control.sampling import sampled_rate
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import Solution
from wcompress.codec.rate_control.step_rule import StepRule, default_sqnr_db
from wcompress.codec.rate_control.step_search import Target
from wcompress.codec.rate_control.weights import MOST_EXACT
from wcompress.codec.storage.exact import encode_raw
from wcompress.codec.storage.exceptions import encode_exceptions
from wcompress.deadline import Deadline
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import Worst, computable, energy
from wcompress.progress import Progress as Progress
from wcompress.progress import part

if TYPE_CHECKING:
    from wcompress.vae.training import TrainingHistory

_DEFAULT_FINE_MARGIN_DB = 34.0
_DEFLATE_MARGIN = 6  # bytes that other digits of the same number may take under deflate
_MOST_AGAIN, _SQNR_TOLERANCE_DB = 5, 0.15
_MOST_PASSES, _LEAST_OF_BYTES, _AIMED_OF_BYTES, _AIMED_DB = 6, 0.98, 0.993, 0.03
_EPOCHS_PER_EFFORT = 100  # effort 5, the default, is the paper's limit of 500

Payloads = Mapping[str, bytes]
"""Sections of a group by name, without the manifest."""


@dataclass(frozen=True)
class Encoded:
    """What a method makes of a model.

    Attributes:
        entries: how each tensor is kept.
        payloads: of each group.
        padding: zeros at the end of the last block.
        n_latents: numbers in all latents.
        history: of the paper's VAE.
        method: whose sections these are.
        refined: the values were trained, and need not be near the model's.
        floors: that hold for every tensor and row; None where there are none.
        warnings: one line each.
        groups: the parts that each group holds; empty where all is one group.
    """

    entries: tuple[TensorEntry, ...]
    payloads: tuple[Payloads, ...]
    padding: int = 0
    n_latents: int = 0
    history: TrainingHistory | None = field(default=None, repr=False)
    method: str = "vae"
    refined: bool = False
    floors: Floors | None = None
    warnings: tuple[str, ...] = ()
    groups: tuple[tuple[Part, ...], ...] = ()

    def manifest(self, checkpoint: Checkpoint, sqnr_db: float | None = None, worst: Worst | None = None) -> Manifest:
        """What the archive says of itself.

        Args:
            checkpoint: the model.
            sqnr_db: of what is restored, dB.
            worst: of what is restored.
        """
        return Manifest(
            method=self.method,
            source=checkpoint.source,
            tensors=self.entries,
            padding=self.padding,
            n_latents=self.n_latents,
            sqnr_db=sqnr_db,
            metadata=dict(checkpoint.metadata),
            refined=self.refined,
            worst=worst,
            groups=self.groups,
        )


def encode(checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None) -> Encoded:
    """Encode a model by the method that the options name, all of it at once.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    return encode_plan(planned(checkpoint, options), checkpoint, options, device, progress)


def planned(checkpoint: Checkpoint, options: PackOptions) -> Plan:
    """How each tensor of a model is kept."""
    return plan_tensors(checkpoint, options.method, exact_bits=_exact_bits(checkpoint, options))


def encode_plan(
    plan: Plan, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None
) -> Encoded:
    """`encode` for a plan that is made."""
    raw = encode_raw(plan.raw.values())
    if options.method == "paper":
        encoded = _paper(plan, options, device, progress)
    elif options.method == "lossless":
        encoded = Encoded(plan.entries, (_lossless(plan),))
    else:
        encoded = _vae(checkpoint, plan, options, device, progress, len(raw))
    return replace(encoded, payloads=({**encoded.payloads[0], "raw": raw},), method=options.method)


def _lossless(plan: Plan) -> dict[str, bytes]:
    return {"symbols": encode_lossless(plan.coded) if plan.coded else b""}


class GroupedEncoding:
    """A model of several groups, each encoded alone, in passes until the target is met.

    Args:
        plan: of the whole model.
        checkpoint: the model.
        options: how to pack.
        device: to train on.
        progress: of what comes before the first group.

    Attributes:
        groups: the parts that each holds.
        entries: of all tensors.
        warnings: one line each, once all groups are encoded.
    """

    def __init__(
        self, plan: Plan, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None
    ) -> None:
        self._plan, self._checkpoint, self._options, self._device = plan, checkpoint, options, device
        self.entries, self.groups = plan.entries, grouped(plan.entries)
        self._deadline = Deadline(options.time_limit)
        self._numbers = {name: number for number, name in enumerate(plan.coded)}
        self._n_passes, self._was_cut, self._lacks = 0, False, False
        self._rule: StepRule | None = None
        self._rate: Rate | None = None
        self._wanted_db = 0.0  # an SQNR in which all counts that is kept exactly
        self._before: tuple[float, float] | None = None  # octaves that the step was moved by, and what was missing
        if options.method != "vae" or not plan.coded:
            return
        _check_sub_blocks(options)
        tensors = checkpoint.tensors
        by_sqnr = options.sqnr is not None
        self._rule = StepRule.of(tensors, plan.to_code, by_sqnr=by_sqnr)
        target = Target(sqnr_db=default_sqnr_db(tensors) if options.sqnr is None else options.sqnr + _AIMED_DB)
        budget = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
        if budget is not None:
            beside = len(encode_raw(plan.raw.values())) + 2 * sum(tensor.numel() for tensor in plan.fine.values())
            target = Target(n_bytes=max(1, budget - beside))
        exact = plan.exact_energy() if by_sqnr else 0.0
        self._rate = sampled_rate(
            plan.to_code,
            self._rule,
            target,
            options,
            device,
            exact_energy=exact,
            progress=progress,
        )
        if options.sqnr is not None:
            self._rate = replace(self._rate, sqnr_db=options.sqnr)
            own = sum(energy(computable(tensor).reshape(-1).numpy()) for tensor in plan.to_code.values())
            share = exact / own if own else 0.0
            self._wanted_db = options.sqnr + 10 * math.log10((1 + share) / (1 + min(share, MOST_EXACT)))

    @property
    def floors(self) -> Floors | None:
        """That hold for every tensor and row; None where there are none."""
        return Floors.at(self._rate.sqnr_db) if self._options.floors and self._rate is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*((_LACKING,) if self._lacks else ()), *_cut(self._was_cut, self._options))

    def encode(self, number: int, progress: Progress | None) -> Encoded:
        """One group, with entries that have the shapes of its parts."""
        options, parts = self._options, self.groups[number]
        plan = self._plan.of_group(parts)
        raw = encode_raw(plan.raw.values())
        if options.method == "lossless":
            return Encoded(plan.entries, ({**_lossless(plan), "raw": raw},), method="lossless")
        coded = [part for part in parts if self.entries[part.index].kind == "coded"]
        which = [(self._numbers[self.entries[p.index].name], slice(p.start, p.stop)) for p in coded]
        if self._rule is None or self._rate is None:
            rule, rate = StepRule.of({}, {}, by_sqnr=True), Rate(1.0, _exact_db(options), 1.0, None)
        else:
            rule, rate = self._rule.of_parts(which), self._rate
        search = VaeSearch(
            plan.to_code,
            plan.fine,
            rule,
            block_size=options.block_size,
            latent_dim=options.latent_dim,
            effort=options.effort,
            seed=options.seed,
            device=self._device,
            fine_margin_db=_fine_margin_db(options),
            deadline=self._deadline,
            floors=options.floors,
            rate=rate,
            grouped=True,
            progress=progress,
        )
        solution = search.run_at(rate)
        self._was_cut = self._was_cut or search.was_cut
        self._lacks = self._lacks or (options.floors and not search.keeps_floors(solution))
        exceptions = encode_exceptions(plan.exception_rows(search.model.aside))
        payloads = {**search.sections(solution), "exceptions": exceptions, "raw": raw}
        padding = -sum(t.numel() for t in plan.coded.values()) % options.block_size
        return Encoded(plan.entries, (payloads,), padding, solution.model.scales.latents.size)

    def again(self, sqnr_db: float | None, n_bytes: int) -> bool:
        """Whether another pass is needed, at a rate that is corrected; after all groups were encoded.

        Args:
            sqnr_db: of what the archive restores to; None where nothing differs.
            n_bytes: of the archive.
        """
        self._n_passes += 1
        options, rate = self._options, self._rate
        budget = options.archive_bytes(self._checkpoint.original_bytes, self._checkpoint.n_params)
        if rate is None or self._n_passes >= _MOST_PASSES or (self._n_passes > 1 and self._deadline.passed):
            return False
        if budget is not None:
            if _LEAST_OF_BYTES * budget <= n_bytes <= budget:
                return False
            n_weights = sum(tensor.numel() for tensor in self._plan.coded.values())
            missing, slope = 8 * (n_bytes - _AIMED_OF_BYTES * budget) / n_weights, 1.0
        elif options.sqnr is not None and sqnr_db is not None:
            if 0 <= sqnr_db - self._wanted_db <= _SQNR_TOLERANCE_DB:
                return False
            missing, slope = sqnr_db - self._wanted_db - _AIMED_DB * self._n_passes, 6.02
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


def _exact_bits(checkpoint: Checkpoint, options: PackOptions) -> float:
    # A little more than a coded weight takes; what takes no more bit for bit is best kept so.
    if options.bits_per_weight is not None:
        return options.bits_per_weight
    if options.ratio is not None:
        return 8 * checkpoint.original_bytes / max(checkpoint.n_params, 1) / options.ratio
    return (default_sqnr_db(checkpoint.tensors) if options.sqnr is None else options.sqnr) / 6.02 + 0.8


def _exact_db(options: PackOptions) -> float:
    # Where nothing is coded, and a quality is asked for.
    return 22.0 if options.sqnr is None else options.sqnr


def _paper(
    plan: Plan,
    options: PackOptions,
    device: str,
    progress: Progress | None,
) -> Encoded:
    from wcompress.codec.methods.paper import encode_paper
    from wcompress.vae.training import TrainingConfig

    config = TrainingConfig(
        hidden=options.hidden,
        latent_dim=options.latent_dim,
        epochs=_EPOCHS_PER_EFFORT * options.effort,
        seed=options.seed,
        device=device,
    )
    paper = encode_paper(plan.coded, options.block_size, config, part(progress, 0.0, 1.0, "training the VAE"))
    payloads = {"decoder": paper.decoder, "latents": paper.latents, "scales": paper.scales}
    return Encoded(plan.entries, (payloads,), paper.padding, paper.n_latents, paper.history)


def _vae(
    checkpoint: Checkpoint,
    plan: Plan,
    options: PackOptions,
    device: str,
    progress: Progress | None,
    raw_bytes: int,
) -> Encoded:
    _check_sub_blocks(options)
    coded = dict(plan.to_code.items())
    padding = -sum(tensor.numel() for tensor in coded.values()) % options.block_size

    def other_bytes(solution: Solution, sqnr_db: float) -> list[int]:
        about = Encoded(plan.entries, (), padding, solution.model.scales.latents.size)
        # What the manifest will record is not known yet; nothing takes more digits.
        last = plan.entries[-1].name
        worst = Worst(last, -100.1, -100.2, last)
        manifest = about.manifest(checkpoint, *((-100.123, worst) if math.isfinite(sqnr_db) else ()))
        return [
            len(manifest.to_bytes()) + _DEFLATE_MARGIN,
            raw_bytes,
            len(encode_exceptions(plan.exception_rows(search.model.aside))),
        ]

    target = Target(sqnr_db=default_sqnr_db(checkpoint.tensors) if options.sqnr is None else options.sqnr)
    budget = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if budget is not None:
        target = Target(
            n_bytes=max(1, budget),
            wanted=options.size_wanted,
            in_words=lambda n: options.size_in_words(n, checkpoint.original_bytes, checkpoint.n_params),
        )
    by_sqnr = options.sqnr is not None
    search = VaeSearch(
        coded,
        plan.fine,
        StepRule.of(checkpoint.tensors, coded, by_sqnr=by_sqnr),
        block_size=options.block_size,
        latent_dim=options.latent_dim,
        effort=options.effort,
        seed=options.seed,
        device=device,
        exact_energy=plan.exact_energy() if by_sqnr else 0.0,
        fine_margin_db=_fine_margin_db(options),
        ties=checkpoint.ties,
        deadline=Deadline(options.time_limit),
        floors=options.floors,
        other_bytes=other_bytes,
        progress=progress,
    )
    solution = _promised(search, target, options)
    n_latents = solution.model.scales.latents.size
    sqnr_db = search.sqnr_db(solution)
    floors = Floors.at(sqnr_db) if options.floors and math.isfinite(sqnr_db) else None
    exceptions = encode_exceptions(plan.exception_rows(search.model.aside))
    payloads = {**search.sections(solution), "exceptions": exceptions}
    lacks = floors is not None and not search.keeps_floors(solution)
    warnings = (*((_LACKING,) if lacks else ()), *_cut(search.was_cut, options))
    return Encoded(plan.entries, (payloads,), padding, n_latents, floors=floors, warnings=warnings)


_LACKING = "not every tensor, row and channel keeps its floor; ask for more bits, or use `--method lossless`"


def _cut(was_cut: bool, options: PackOptions) -> tuple[str, ...]:
    if not was_cut:
        return ()
    return (f"the time limit of {options.time_limit:g} s ended the search; without it the archive may be smaller",)


def _fine_margin_db(options: PackOptions) -> float:
    sized = options.ratio is not None or options.bits_per_weight is not None
    return 0.0 if options.sqnr is not None or sized else _DEFAULT_FINE_MARGIN_DB


def _check_sub_blocks(options: PackOptions) -> None:
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
        if 0 <= beyond <= _SQNR_TOLERANCE_DB or not math.isfinite(beyond):
            break
        aim -= beyond - 0.2 * _SQNR_TOLERANCE_DB
        try:
            solution = search.run(Target(sqnr_db=aim))
        except TargetUnreachable:
            break
    return solution if best is None else best[1]
