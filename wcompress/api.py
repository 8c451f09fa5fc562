"""Packing with a task: the codec composed with scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wcompress.checkpoint import read_checkpoint
from wcompress.codec import packing
from wcompress.codec.encoding import encode
from wcompress.codec.options import PackOptions
from wcompress.codec.results import PackResult, TaskScore
from wcompress.evaluate import score
from wcompress.files import archive_path
from wcompress.progress import Progress, part
from wcompress.tasks import Task, load_task

_PACKING_SHARE = 0.98
"""Of the progress of a pack with a task; the rest is for the last score."""


def pack(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    task: Task | str | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> PackResult:
    """Make an archive of a model, and score it before and after when a task is given.

    Args:
        source: a checkpoint file, or name → tensor.
        output: the archive; by default the source's name with `.wcz` added.
        options: how to pack.
        task: a task, or the name or place of one.
        data_dir: where a built-in task's data lies.
        progress: called as the work goes on.
        **overrides: fields of `PackOptions` by name.

    Raises:
        CheckpointError, OptionError, OutputError, TaskError: see `wcompress.errors`.

    Example:
        >>> result = pack("model.pt", "model.wcz", effort=3)  # doctest: +SKIP
        >>> result.ratio, result.latent_ratio  # doctest: +SKIP
    """
    if task is None:
        return packing.pack(source, output, options, progress=progress, **overrides)
    if isinstance(task, str):
        task = load_task(task, data_dir=data_dir)
    chosen = {name: overrides.get(name, getattr(options or PackOptions(), name)) for name in ("key", "strict")}
    checkpoint = read_checkpoint(source, **chosen)
    part(progress, 0.0, 0.0, "scoring the model")
    before = score(task, checkpoint.tensors)
    result, restored = packing.pack_and_restore(
        source,
        output,
        options,
        progress=part(progress, 0.0, _PACKING_SHARE),
        encoder=_encoder(task, source, output, options, overrides),
        **overrides,
    )
    part(progress, _PACKING_SHARE, 1.0, "scoring the restored model")
    return replace(result, task=TaskScore(task.name, task.dataset, before, score(task, restored)))


def _encoder(
    task: Task,
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None,
    options: PackOptions | None,
    overrides: dict[str, Any],
) -> packing.Encoder:
    def wanted(name: str) -> Any:
        return overrides.get(name, getattr(options or PackOptions(), name))

    if wanted("max_drop") is None and wanted("refine") != "on":
        return encode
    from wcompress.refine.packing import RefineEncoder
    from wcompress.refine.resume import state_path

    if output is None and not isinstance(source, Mapping):
        output = archive_path(source)
    path = None if output is None or wanted("dry_run") else state_path(output)
    return RefineEncoder(task, state_path=path, resume=wanted("resume"))
