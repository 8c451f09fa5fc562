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
from wcompress.codec.encoding import Encoded, Progress, encode
from wcompress.codec.manifest import METHOD_VERSIONS, Manifest
from wcompress.codec.options import PackOptions
from wcompress.codec.reading import tensors_digest
from wcompress.codec.restoring import restore_encoded
from wcompress.codec.results import PackResult
from wcompress.device import one_torch_thread, resolve_device
from wcompress.errors import OptionError
from wcompress.fidelity import compare
from wcompress.files import atomic_output, check_output
from wcompress.threads import work_threads

Encoder = Callable[[Checkpoint, PackOptions, str, Progress | None], Encoded]
"""Finds what to store; `encode` is one."""


_NO_TIME_LIMIT = "the time limit was not used: only refinement and searches with a task have one"


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
        raise OptionError(f"pack: {error}; see PackOptions for what there is") from error
    if encoder is encode and (options.max_drop is not None or options.refine == "on"):
        raise OptionError("max_drop and refine need a task, which says what the model is for")
    start = time.perf_counter()
    source_path = None if isinstance(source, Mapping) else os.fspath(source)
    if output is None:
        if source_path is None:
            raise OptionError("pack: a dict of tensors has no file name; pass `output`")
        output = f"{source_path}.wcz"
    device = resolve_device(options.device)
    if not options.dry_run:
        check_output(output, force=options.force, source=source_path)
    checkpoint = read_checkpoint(source, key=options.key)
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
        max_abs_error=encoded.max_abs_error,
        dry_run=options.dry_run,
        history=encoded.history,
        warnings=(_NO_TIME_LIMIT,) if encoder is encode and options.time_limit is not None else (),
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


@dataclass(frozen=True)
class _Encoded:
    manifest: Manifest
    payloads: dict[str, bytes]
    restored: dict[str, torch.Tensor]
    digest: bytes
    n_latents: int
    max_abs_error: float | None
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
    encoded = encoder(checkpoint, options, device, progress)
    done = time.perf_counter()
    restored = restore_encoded(checkpoint, encoded)
    figures = compare(checkpoint.tensors, restored)
    return _Encoded(
        manifest=encoded.manifest(checkpoint, figures.sqnr_db),
        payloads=encoded.payloads,
        restored=restored,
        digest=tensors_digest(restored),
        n_latents=encoded.n_latents,
        max_abs_error=figures.max_abs_error,
        seconds={"encode": done - start, "check": time.perf_counter() - done},
        history=encoded.history,
    )
