"""Packing: a checkpoint becomes an archive."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wcompress.archive import ArchiveWriter
from wcompress.checkpoint import Checkpoint, read_checkpoint
from wcompress.codec.container.groups import is_several
from wcompress.codec.container.manifest import Manifest
from wcompress.codec.digest import tensors_digest
from wcompress.codec.encoded import Encoded
from wcompress.codec.encoding import encode_plan, planned
from wcompress.codec.estimating import estimated, peak_bytes
from wcompress.codec.group_writing import CHECKING, Written, write_groups
from wcompress.codec.grouped_encoding import GroupedEncoding
from wcompress.codec.methods.stored import STORED
from wcompress.codec.options import PackOptions
from wcompress.codec.packers.job import Job
from wcompress.codec.packers.packer import PACKERS
from wcompress.codec.plan import Plan
from wcompress.codec.quantiser.sensitivity import Feedback
from wcompress.codec.rate_control.default_quality import default_quality
from wcompress.codec.restoring import restore_encoded
from wcompress.codec.results import Estimate, PackResult, with_errors
from wcompress.codec.trying import Archived, Stored, cut
from wcompress.device import one_torch_thread, resolve_device
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import ErrorFigures, compare, worst_of
from wcompress.files import archive_path, atomic_output, check_output
from wcompress.progress import Progress, part
from wcompress.threads import work_threads

POOR_TENSOR_DB, POOR_ROW_DB = 6.0, 3.0
"""An SQNR below which there is a warning; see docs/quality.md."""

Encoder = Callable[[Checkpoint, PackOptions, str, Progress | None], Stored | Mapping[str, Feedback] | None]
"""Finds what to store; or leaves it to the codec and gives None, or what errors of each float tensor cost."""

_SAMPLING_SHARE = 0.15
_ENCODING_SHARE = 0.97
"""Of a pack's progress; the rest is for restoring and comparing."""


_NO_TIME_LIMIT = "the time limit was not used: only method vae has one"


def pack_and_restore(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    encoder: Encoder | None = None,
    keep_restored: bool = True,
    whole: Mapping[str, torch.Tensor] | None = None,
    **overrides: Any,
) -> tuple[PackResult, dict[str, torch.Tensor]]:
    """Make an archive of a model.

    Args:
        source: a checkpoint file, or name → tensor.
        output: the archive; by default the source's name with `.wcz` added.
        options: how to pack.
        progress: called as the work goes on.
        encoder: finds what to store; by default the codec does.
        whole: the tensors of the whole model in order, where the source is a shard of it; see
            `wcompress.codec.packers.job.Job`.
        keep_restored: whether the tensors that the archive restores to are wanted; a large model's are many.
        **overrides: fields of `PackOptions` by name.

    Returns:
        The archive in figures, and the tensors it restores to, none where they are not wanted.

    Raises:
        CheckpointError: the source cannot be read.
        OptionError: an option has no such value.
        OutputError: the output exists already or cannot be written.
    """
    options = with_overrides(options, overrides)
    if encoder is None and (options.max_drop is not None or options.refine == "on"):
        raise OptionError("max_drop and refine need a task, which says what the model is for")
    if encoder is None and options.aims_at_outputs:
        raise OptionError("output_snr and max_kl need a task, for whose inputs outputs are compared")
    if encoder is None and options.calibrate == "on":
        raise OptionError("calibrate: its inputs are a task's; pass one with --task")
    if options.resume and not options.refines:
        raise OptionError(
            "resume: nothing is refined without refine=on or max_drop, and this is no folder of shards; leave it out"
        )
    start = time.perf_counter()
    source_path = None if isinstance(source, Mapping) else os.fspath(source)
    if output is None:
        if source_path is None:
            raise OptionError("pack: a dict of tensors has no file name; pass `output`")
        output = archive_path(source_path)
    device = resolve_device(options.device)
    if not options.dry_run:
        check_output(output, force=options.force, source=source_path)
    checkpoint = read_checkpoint(source, key=options.key, strict=options.strict)
    if not options.dry_run:
        for shard in checkpoint.shards:
            check_output(output, force=options.force, source=shard)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_torch_thread())
        stack.enter_context(work_threads(options.threads))
        whole = checkpoint.tensors if whole is None else whole
        encoding = part(progress, 0.0, _ENCODING_SHARE)
        found = None if encoder is None else encoder(checkpoint, options, device, encoding)
        stored = found if isinstance(found, Encoded | Archived) else None
        feedbacks = None if isinstance(found, Encoded | Archived) else found
        if feedbacks is not None:
            options = replace(options, floors=False)  # what is worse than others was found to matter less
        sampled = options.dry_run and encoder is None and not keep_restored and _can_be_sampled(checkpoint, options)
        at_once = estimate = None
        if sampled:
            written, estimate = estimated(Job(checkpoint, options, device, progress, whole))
        else:
            plan = planned(checkpoint, options, whole) if stored is None else None
            groups = () if plan is None else cut(plan, options)
            whole_at_once = stored if isinstance(stored, Encoded) else None if groups else plan
            if whole_at_once is not None:
                at_once = _encode(Job(checkpoint, options, device, progress, whole, feedbacks), whole_at_once)
            if options.dry_run:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wcompress-"))
                path = Path(folder) / "archive"
            else:
                path = stack.enter_context(atomic_output(output, force=options.force, source=source_path))
            if at_once is not None:
                written = at_once.write(path)
            elif isinstance(stored, Archived):
                path.write_bytes(stored.content)
                written = stored.written
            else:
                assert plan is not None
                sampling = part(progress, 0.0, _SAMPLING_SHARE)
                by_groups = GroupedEncoding(plan, groups, Job(checkpoint, options, device, sampling, whole, feedbacks))
                rest = part(progress, _SAMPLING_SHARE, 1.0)
                refined = feedbacks is not None
                written = write_groups(
                    by_groups, checkpoint, options, path, rest, keep_restored=keep_restored, refined=refined
                )
        _check_promises(options, checkpoint, written.n_bytes, written.figures)
    total_s = time.perf_counter() - start
    if options.dry_run and estimate is None:
        estimate = Estimate(total_s, peak_bytes(), sampled=False)
    result = PackResult(
        archive=os.fspath(output),
        source=source_path or "",
        method=options.method,
        n_params=checkpoint.n_params,
        n_tensors=len(checkpoint.tensors),
        original_bytes=checkpoint.original_bytes,
        archive_bytes=written.n_bytes,
        n_latents=written.manifest.n_latents or None,
        sections=written.sections,
        sqnr_db=written.manifest.sqnr_db,
        sha256=written.digest.hex(),
        seconds={"total": total_s, **written.seconds},
        left_out=checkpoint.left_out,
        left_out_tensors=checkpoint.left_out_tensors,
        max_abs_error=written.figures.max_abs_error,
        dry_run=options.dry_run,
        history=None if at_once is None else at_once.encoded.history,
        weights_energy=written.figures.energy,
        worst=written.manifest.worst,
        floors=written.floors,
        warnings=(
            *checkpoint.notes,
            *_unused(options),
            *written.warnings,
            *(() if feedbacks is not None else _poor(options, written)),
        ),
        choices=with_errors(written.choices, written.figures.tensors),
        estimate=estimate,
        quality=default_quality(whole) if found is None and options.method == "vae" and not options.targets else None,
    )
    return result, written.restored


def with_overrides(options: PackOptions | None, overrides: Mapping[str, Any]) -> PackOptions:
    """The options, or the default ones, with some fields replaced.

    Raises:
        OptionError: there is no such field, or it has no such value.
    """
    try:
        return replace(options or PackOptions(), **overrides)
    except TypeError as error:
        raise OptionError(f"pack: {error}; PackOptions lists the options") from error


def pack(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    whole: Mapping[str, torch.Tensor] | None = None,
    **overrides: Any,
) -> PackResult:
    """`pack_and_restore` without the tensors."""
    return pack_and_restore(source, output, options, progress=progress, keep_restored=False, whole=whole, **overrides)[
        0
    ]


def _can_be_sampled(checkpoint: Checkpoint, options: PackOptions) -> bool:
    # Whether it is sure to be several groups, before anything was read.
    rated = any(rule.bits is not None for rule in options.rules)
    sizes = (tensor.numel() for name, tensor in checkpoint.tensors.items() if name not in checkpoint.ties)
    return PACKERS[options.method].cuts_groups and not rated and is_several(sizes)


def _check_promises(options: PackOptions, checkpoint: Checkpoint, archive_bytes: int, figures: ErrorFigures) -> None:
    """Nothing appears that is not what was asked for.

    Raises:
        TargetUnreachable: it is not.
    """
    if STORED[options.method].is_exact and not figures.lossless:
        raise TargetUnreachable("lossless: what the archive restores to differs from the model; please report this")
    if options.bits_per_weight is not None and not checkpoint.n_params:
        raise TargetUnreachable("bits_per_weight: the model has no floating-point numbers; ask for a ratio instead")
    most_bytes = options.archive_bytes(checkpoint.original_bytes, checkpoint.n_params)
    if most_bytes is not None and archive_bytes > most_bytes:
        nearest = options.size_in_words(archive_bytes, checkpoint.original_bytes, checkpoint.n_params)
        raise TargetUnreachable(f"{options.size_wanted}: {nearest} is the nearest; ask for a larger archive")
    if options.sqnr is not None and figures.sqnr_db is not None and figures.sqnr_db < options.sqnr:
        raise TargetUnreachable(
            f"an SQNR of {options.sqnr:g} dB: {figures.sqnr_db:.2f} dB is the nearest;"
            " `--method lossless` keeps every bit"
        )


def _unused(options: PackOptions) -> tuple[str, ...]:
    return (_NO_TIME_LIMIT,) if options.time_limit is not None and not PACKERS[options.method].takes_time_limit else ()


def _poor(options: PackOptions, encoded: Written) -> tuple[str, ...]:
    if encoded.manifest.worst is None or options.allows_drop or options.aims_at_outputs:  # found to do
        return ()
    rules = {choice.tensor: choice.rule for choice in encoded.choices}
    tensors = encoded.figures.tensors
    found = []
    # Apart, so that neither hides the other.
    for ruled in (False, True):
        worst = worst_of({name: error for name, error in tensors.items() if (name in rules) == ruled})
        if worst is None:
            continue
        advice = "as the rule {!r} chose" if ruled else "ask for more bits, or score a task"
        if worst.sqnr_db < POOR_TENSOR_DB:
            text = f"tensor {worst.tensor!r} keeps only {worst.sqnr_db:.1f} dB"
            found.append(f"{text}; {advice.format(rules.get(worst.tensor))}")
        elif worst.row_sqnr_db is not None and worst.row_sqnr_db < POOR_ROW_DB:
            text = f"a row of tensor {worst.row_tensor!r} keeps only {worst.row_sqnr_db:.1f} dB"
            found.append(f"{text}; {advice.format(rules.get(worst.row_tensor or ''))}")
    return tuple(found)


@dataclass(frozen=True)
class _AtOnce:
    """A model that is one group, encoded and restored again."""

    encoded: Encoded
    manifest: Manifest
    restored: dict[str, torch.Tensor]
    figures: ErrorFigures
    seconds: dict[str, float]

    def write(self, path: Path) -> Written:
        digest = tensors_digest(self.restored)
        with ArchiveWriter(path, self.manifest.version) as writer:
            writer.add("manifest", self.manifest.to_bytes())
            for name, payload in self.encoded.payloads.items():
                if payload:
                    writer.add(name, payload)
            sections = writer.finish(digest)
        encoded = self.encoded
        return Written(
            self.manifest,
            digest,
            sections,
            self.figures,
            encoded.floors,
            encoded.warnings,
            self.seconds,
            self.restored,
            encoded.choices,
        )


def _encode(job: Job, found: Encoded | Plan) -> _AtOnce:
    # From what was encoded already, or from a plan.
    start = time.perf_counter()
    if isinstance(found, Encoded):
        encoded = found
    else:
        encoded = encode_plan(found, replace(job, progress=part(job.progress, 0.0, _ENCODING_SHARE)))
    part(job.progress, _ENCODING_SHARE, 1.0, CHECKING)
    done = time.perf_counter()
    restored = restore_encoded(job.checkpoint, encoded)
    figures = compare(job.checkpoint.tensors, restored)
    trained = encoded.refined and job.feedbacks is None
    manifest = encoded.manifest(job.checkpoint, figures.sqnr_db, None if trained else figures.worst)
    seconds = {"encode": done - start, "check": time.perf_counter() - done}
    return _AtOnce(encoded, manifest, restored, figures, seconds)
