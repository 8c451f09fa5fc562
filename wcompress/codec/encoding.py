"""A model that is one group → section payloads, by whichever method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoded import Encoded
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job
from wcompress.codec.packers.packer import PACKERS
from wcompress.codec.plan import Plan, plan_tensors
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.rate_control.default_quality import default_sqnr_db
from wcompress.codec.storage.exact import encode_raw
from wcompress.codec.tensor_rules import Chosen, choose
from wcompress.progress import Progress

Tensors = Mapping[str, torch.Tensor]


def encode(
    checkpoint: Checkpoint,
    options: PackOptions,
    device: str,
    progress: Progress | None,
    *,
    whole: Tensors | None = None,
    feedbacks: Mapping[str, Feedback] | None = None,
) -> Encoded:
    """Encode a model by the method that the options name, all of it at once.

    Args:
        checkpoint, options, device, progress: see `Job`.
        whole: see there; by default `checkpoint` is all of it.
        feedbacks: see there.

    Raises:
        TargetUnreachable: no archive meets the target.
    """
    whole = checkpoint.tensors if whole is None else whole
    return encode_plan(
        planned(checkpoint, options, whole), Job(checkpoint, options, device, progress, whole, feedbacks)
    )


def planned(checkpoint: Checkpoint, options: PackOptions, whole: Tensors, *, of: Checkpoint | None = None) -> Plan:
    """How each tensor of a model is kept.

    Args:
        checkpoint: the model, or samples of its tensors.
        options: how to pack.
        whole: see `Job`.
        of: the model that the samples are of.
    """
    chosen = choose(options.rules, checkpoint.tensors, checkpoint.ties, options.method, whole)
    exact_bits = _exact_bits(of or checkpoint, options, whole)
    kinds = PACKERS[options.method].kinds(checkpoint, exact_bits, chosen.kinds)
    return plan_tensors(checkpoint, kinds, chosen if options.rules else None)


def encode_plan(plan: Plan, job: Job) -> Encoded:
    """`encode` for a plan that is made."""
    method, chosen = job.options.method, plan.chosen or Chosen()
    parts = {name: encode_raw([tensor], stored=name in chosen.stored) for name, tensor in plan.raw.items()}
    raw = b"".join(parts.values())
    encoded, coded_bits = PACKERS[method].encode(plan, job, len(raw))
    bits = {name: 8 * len(part) / max(1, plan.raw[name].numel()) for name, part in parts.items()} | dict(coded_bits)
    return replace(
        encoded,
        payloads={**encoded.payloads, "raw": raw},
        warnings=(*chosen.warnings, *chosen.missed(bits), *encoded.warnings),
        choices=chosen.with_bits(bits),
    )


def _exact_bits(checkpoint: Checkpoint, options: PackOptions, whole: Mapping[str, torch.Tensor]) -> float:
    # A little more than a coded weight takes; what takes no more bit for bit is best kept so.
    if options.bits_per_weight is not None:
        return options.bits_per_weight
    if options.ratio is not None:
        return 8 * checkpoint.original_bytes / max(checkpoint.n_params, 1) / options.ratio
    return (default_sqnr_db(whole) if options.sqnr is None else options.sqnr) / 6.02 + 0.8
