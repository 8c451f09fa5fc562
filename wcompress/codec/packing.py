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
from wcompress.codec.container.manifest import METHOD_VERSIONS, Manifest
from wcompress.codec.encoding import Encoded, Progress, encode
from wcompress.codec.options import PackOptions
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.reading import tensors_digest
from wcompress.codec.restoring import restore_encoded
from wcompress.codec.results import PackResult, TensorChoice, with_errors
from wcompress.device import one_torch_thread, resolve_device
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import ErrorFigures, compare, worst_of
from wcompress.files import archive_path, atomic_output, check_output
from wcompress.progress import part
from wcompress.threads import work_threads

POOR_TENSOR_DB, POOR_ROW_DB = 6.0, 3.0
"""An SQNR below which there is a warning; see docs/quality.md."""

Encoder = Callable[[Checkpoint, PackOptions, str, Progress | None], Encoded]
"""Finds what to store; `encode` is one."""

_ENCODING_SHARE = 0.97
"""Of a pack's progress; the rest is for restoring and comparing."""


_NO_TIME_LIMIT = "the time limit was not used: only method vae has one"


def pack_and_restore(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    encoder: Encoder = encode,
    **overrides: Any,
) -> tuple[PackResult, dict[str, torch.Tensor]]:
    """Make an archive of a model.

    Args:
        source: a checkpoint file, or name → tensor.
        output: the archive; by default the source's name with `.wcz` added.
        options: how to pack.
        progress: called as the work goes on.
        encoder: finds what to store.
        **overrides: fields of `PackOptions` by name.

    Returns:
        The archive in figures, and the tensors it restores to.

    Raises:
        CheckpointError: the source cannot be read.
        OptionError: an option has no such value.
        OutputError: the output exists already or cannot be written.
    """
    try:
        options = replace(options or PackOptions(), **overrides)
    except TypeError as error:
        raise OptionError(f"pack: {error}; PackOptions lists the options") from error
    if encoder is encode and (options.max_drop is not None or options.refine == "on"):
        raise OptionError("max_drop and refine need a task, which says what the model is for")
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
    with one_torch_thread(), work_threads(options.threads):
        encoded = _encode(checkpoint, options, device, progress, encoder)
    with contextlib.ExitStack() as stack:
        if options.dry_run:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wcompress-"))
            path = Path(folder) / "archive"
        else:
            path = stack.enter_context(atomic_output(output, force=options.force, source=source_path))
        sections = encoded.write(path)
        archive_bytes = path.stat().st_size
        _check_promises(options, checkpoint, archive_bytes, encoded.figures)
    result = PackResult(
        archive=os.fspath(output),
        source=source_path or "",
        method=options.method,
        n_params=checkpoint.n_params,
        n_tensors=len(checkpoint.tensors),
        original_bytes=checkpoint.original_bytes,
        archive_bytes=archive_bytes,
        n_latents=encoded.n_latents or None,
        sections=sections,
        sqnr_db=encoded.manifest.sqnr_db,
        sha256=encoded.digest.hex(),
        seconds={"total": time.perf_counter() - start, **encoded.seconds},
        left_out=checkpoint.left_out,
        left_out_tensors=checkpoint.left_out_tensors,
        max_abs_error=encoded.figures.max_abs_error,
        dry_run=options.dry_run,
        history=encoded.history,
        worst=encoded.manifest.worst,
        floors=encoded.floors,
        warnings=(*checkpoint.notes, *_unused(options), *encoded.warnings, *_poor(options, encoded)),
        choices=with_errors(encoded.choices, encoded.figures.tensors),
    )
    return result, encoded.restored


def pack(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> PackResult:
    """`pack_and_restore` without the tensors."""
    return pack_and_restore(source, output, options, progress=progress, **overrides)[0]


def _check_promises(options: PackOptions, checkpoint: Checkpoint, archive_bytes: int, figures: ErrorFigures) -> None:
    """Nothing appears that is not what was asked for.

    Raises:
        TargetUnreachable: it is not.
    """
    if options.method == "lossless" and not figures.lossless:
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
    return (_NO_TIME_LIMIT,) if options.method != "vae" and options.time_limit is not None else ()


def _poor(options: PackOptions, encoded: _Encoded) -> tuple[str, ...]:
    if encoded.manifest.worst is None or options.allows_drop:  # a score said that it will do
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
class _Encoded:
    manifest: Manifest
    payloads: dict[str, bytes]
    restored: dict[str, torch.Tensor]
    digest: bytes
    n_latents: int
    figures: ErrorFigures
    floors: Floors | None
    warnings: tuple[str, ...]
    choices: tuple[TensorChoice, ...]
    seconds: dict[str, float]
    history: Any

    def write(self, path: Path) -> dict[str, int]:
        with ArchiveWriter(path, METHOD_VERSIONS[self.manifest.method]) as writer:
            writer.add("manifest", self.manifest.to_bytes())
            for name, payload in self.payloads.items():
                if payload:
                    writer.add(name, payload)
            return writer.finish(self.digest)


def _encode(
    checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None, encoder: Encoder
) -> _Encoded:
    start = time.perf_counter()
    encoded = encoder(checkpoint, options, device, part(progress, 0.0, _ENCODING_SHARE))
    part(progress, _ENCODING_SHARE, 1.0, "checking what the archive restores to")
    done = time.perf_counter()
    restored = restore_encoded(checkpoint, encoded)
    figures = compare(checkpoint.tensors, restored)
    return _Encoded(
        manifest=encoded.manifest(checkpoint, figures.sqnr_db, None if encoded.refined else figures.worst),
        payloads=encoded.payloads,
        restored=restored,
        digest=tensors_digest(restored),
        n_latents=encoded.n_latents,
        figures=figures,
        floors=encoded.floors,
        warnings=encoded.warnings,
        choices=encoded.choices,
        seconds={"encode": done - start, "check": time.perf_counter() - done},
        history=encoded.history,
    )
