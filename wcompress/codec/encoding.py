"""A model → section payloads, by method: whole where it is small, else group by group at one rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.manifest import Manifest, TensorEntry
from wcompress.codec.methods.lossless import encode_lossless
from wcompress.codec.options import PackOptions
from wcompress.codec.plan import Plan, plan_tensors
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.rate_control.rated_search import RatedSearch
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import Solution
from wcompress.codec.rate_control.step_rule import StepRule, default_sqnr_db
from wcompress.codec.rate_control.step_search import Target
from wcompress.codec.results import TensorChoice
from wcompress.codec.storage.exact import encode_raw
from wcompress.codec.storage.exceptions import encode_exceptions
from wcompress.codec.tensor_rules import Chosen, choose
from wcompress.deadline import Deadline
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import Worst
from wcompress.progress import Progress as Progress
from wcompress.progress import part

if TYPE_CHECKING:
    from wcompress.vae.training import TrainingHistory

_DEFAULT_FINE_MARGIN_DB = 34.0
_DEFLATE_MARGIN = 6  # bytes that other digits of the same number may take under deflate
_MOST_AGAIN = 5
SQNR_TOLERANCE_DB = 0.15
"""How far beyond an SQNR that was asked for is near enough."""

_EPOCHS_PER_EFFORT = 100  # effort 5, the default, is the paper's limit of 500

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """What a method makes of a model.

    Attributes:
        entries: how each tensor is kept.
        payloads: sections by name, without the manifest.
        padding: zeros at the end of the last block.
        n_latents: numbers in all latents.
        history: of the paper's VAE.
        method: whose sections these are.
        refined: the values were trained, and need not be near the model's.
        floors: that hold for every tensor and row; None where there are none.
        warnings: one line each.
        choices: the tensors for which a rule chose.
        quick: method `lossless` wrote for speed.
    """

    entries: tuple[TensorEntry, ...]
    payloads: Mapping[str, bytes]
    padding: int = 0
    n_latents: int = 0
    history: TrainingHistory | None = field(default=None, repr=False)
    method: str = "vae"
    refined: bool = False
    floors: Floors | None = None
    warnings: tuple[str, ...] = ()
    choices: tuple[TensorChoice, ...] = ()
    quick: bool = False

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
            quick=self.quick,
        )


def encode(
    checkpoint: Checkpoint,
    options: PackOptions,
    device: str,
    progress: Progress | None,
    *,
    whole: Tensors | None = None,
) -> Encoded:
    """Encode a model by the method that the options name, all of it at once.

    Args:
        checkpoint: the model, or a shard of it.
        options: how.
        device: where to train.
        progress: called as the work goes on.
        whole: the tensors of the whole model in order, of which `checkpoint` is a shard; only their names, shapes and
            whether they are floating-point are looked at. By default `checkpoint` is all of it.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    whole = checkpoint.tensors if whole is None else whole
    return encode_plan(planned(checkpoint, options, whole), checkpoint, options, device, progress, whole)


def planned(checkpoint: Checkpoint, options: PackOptions, whole: Tensors, *, of: Checkpoint | None = None) -> Plan:
    """How each tensor of a model is kept.

    Args:
        checkpoint: the model, or samples of its tensors.
        options: how to pack.
        whole: see `encode`.
        of: the model that the samples are of.
    """
    chosen = choose(options.rules, checkpoint.tensors, checkpoint.ties, options.method, whole)
    return plan_tensors(
        checkpoint,
        options.method,
        exact_bits=_exact_bits(of or checkpoint, options, whole),
        chosen=chosen if options.rules else None,
    )


def encode_plan(
    plan: Plan, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None, whole: Tensors
) -> Encoded:
    """`encode` for a plan that is made."""
    chosen = plan.chosen or Chosen()
    parts = {name: encode_raw([tensor], stored=name in chosen.stored) for name, tensor in plan.raw.items()}
    raw = b"".join(parts.values())
    bits = {name: 8 * len(part) / max(1, plan.raw[name].numel()) for name, part in parts.items()}
    if options.method == "paper":
        encoded = _paper(plan, options, device, progress)
    elif options.method == "lossless":
        encoded = Encoded(plan.entries, lossless_payloads(plan, options), quick=options.is_quick)
    else:
        encoded = _vae(checkpoint, whole, plan, options, device, progress, len(raw), chosen.rates, bits)
    return replace(
        encoded,
        payloads={**encoded.payloads, "raw": raw},
        method=options.method,
        warnings=(*chosen.warnings, *chosen.missed(bits), *encoded.warnings),
        choices=chosen.with_bits(bits),
    )


def lossless_payloads(plan: Plan, options: PackOptions) -> dict[str, bytes]:
    return {"symbols": encode_lossless(plan.coded, quick=options.is_quick) if plan.coded else b""}


def _exact_bits(checkpoint: Checkpoint, options: PackOptions, whole: Mapping[str, torch.Tensor]) -> float:
    # A little more than a coded weight takes; what takes no more bit for bit is best kept so.
    if options.bits_per_weight is not None:
        return options.bits_per_weight
    if options.ratio is not None:
        return 8 * checkpoint.original_bytes / max(checkpoint.n_params, 1) / options.ratio
    return (default_sqnr_db(whole) if options.sqnr is None else options.sqnr) / 6.02 + 0.8


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
    return Encoded(plan.entries, payloads, paper.padding, paper.n_latents, paper.history)


def _vae(
    checkpoint: Checkpoint,
    whole: Mapping[str, torch.Tensor],
    plan: Plan,
    options: PackOptions,
    device: str,
    progress: Progress | None,
    raw_bytes: int,
    rates: Mapping[str, float],
    bits: dict[str, float],
) -> Encoded:
    check_sub_blocks(options)
    coded = dict(plan.to_code.items())
    padding = -sum(tensor.numel() for tensor in coded.values()) % options.block_size

    def other_bytes(solution: Solution, sqnr_db: float) -> list[int]:
        about = Encoded(plan.entries, {}, padding, solution.model.scales.latents.size)
        # What the manifest will record is not known yet; nothing takes more digits.
        last = plan.entries[-1].name
        worst = Worst(last, -100.1, -100.2, last)
        manifest = about.manifest(checkpoint, *((-100.123, worst) if math.isfinite(sqnr_db) else ()))
        return [
            len(manifest.to_bytes()) + _DEFLATE_MARGIN,
            raw_bytes,
            len(encode_exceptions(plan.exception_rows(search.model.aside))),
        ]

    target = Target(sqnr_db=default_sqnr_db(whole) if options.sqnr is None else options.sqnr)
    budget = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if budget is not None:
        target = Target(
            n_bytes=max(1, budget),
            wanted=options.size_wanted,
            in_words=lambda n: options.size_in_words(n, checkpoint.original_bytes, checkpoint.n_params),
        )
    by_sqnr = options.sqnr is not None
    kind = partial(RatedSearch, rates=rates, counted=by_sqnr) if rates else VaeSearch
    search = kind(
        coded,
        plan.fine,
        StepRule.of(whole, coded, by_sqnr=by_sqnr),
        block_size=options.block_size,
        latent_dim=options.latent_dim,
        effort=options.effort,
        parts=options.parts,
        seed=options.seed,
        device=device,
        exact_energy=plan.exact_energy() if by_sqnr else 0.0,
        fine_margin_db=fine_margin_db(options),
        ties=checkpoint.ties,
        deadline=Deadline(options.time_limit),
        floors=options.floors,
        other_bytes=other_bytes,
        progress=progress,
    )
    solution = _promised(search, target, options)
    n_latents = solution.model.scales.latents.size
    sqnr_db = search.sqnr_db(solution)
    if isinstance(search, RatedSearch):
        bits.update(search.bits)
    held = any(name not in rates for name in coded)
    floors = Floors.at(sqnr_db) if options.floors and held and math.isfinite(sqnr_db) else None
    exceptions = encode_exceptions(plan.exception_rows(search.model.aside))
    payloads = {**search.sections(solution), "exceptions": exceptions}
    lacks = floors is not None and not search.keeps_floors(solution)
    warnings = (*((LACKING,) if lacks else ()), *cut_warning(search.was_cut, options))
    return Encoded(plan.entries, payloads, padding, n_latents, floors=floors, warnings=warnings)


LACKING = "not every tensor, row and channel keeps its floor; ask for more bits, or use `--method lossless`"


def cut_warning(was_cut: bool, options: PackOptions) -> tuple[str, ...]:
    if not was_cut:
        return ()
    return (f"the time limit of {options.time_limit:g} s ended the search; without it the archive may be smaller",)


def fine_margin_db(options: PackOptions) -> float:
    sized = options.ratio is not None or options.bits_per_weight is not None
    return 0.0 if options.sqnr is not None or sized else _DEFAULT_FINE_MARGIN_DB


def check_sub_blocks(options: PackOptions) -> None:
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
