"""Packing with a task: the codec composed with scores."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wcompress.checkpoint import Checkpoint
from wcompress.codec import packing
from wcompress.codec.options import PackOptions
from wcompress.codec.results import PackResult, TaskScore, with_error
from wcompress.codec.trying import Stored
from wcompress.device import one_torch_thread
from wcompress.directories.index import is_packed_folder
from wcompress.directories.packing import pack_folder
from wcompress.directories.source import WEIGHTS, weights_file
from wcompress.errors import OptionError
from wcompress.evaluate import check_against_ruined, observed, original_score
from wcompress.files import archive_path
from wcompress.progress import Progress, part
from wcompress.tasks import Scale, Score, Task, as_task, load_task, standard_error

_PACKING_SHARE = 0.98
"""Of the progress of a pack with a task; the rest is for the last score."""

if TYPE_CHECKING:
    from wcompress.calibrate.packing import CalibratedEncoder
    from wcompress.codec.quantiser.sensitivity import Feedback
    from wcompress.refine.packing import RefineEncoder


def pack(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None = None,
    options: PackOptions | None = None,
    *,
    task: Task | str | None = None,
    data_dir: Path | str | None = None,
    progress: Progress | None = None,
    engine: str | None = None,
    shard: str | None = None,
    workers: int | None = None,
    **overrides: Any,
) -> PackResult:
    """Make an archive of a model, and score it before and after when a task is given.

    Of a model folder, such as those of Hugging Face, it makes a folder: an archive for each shard, an index, and the
    side files.

    Args:
        source: a checkpoint file, a folder, or name → tensor.
        output: the archive or folder; by default the source's name with `.wcz` added.
        options: how to pack.
        task: a task, or the name or place of one.
        data_dir: where a built-in task's data lies.
        progress: called as the work goes on.
        engine: `processes` or `ray`, to pack several shards of a folder at once.
        shard: `I/N`, to pack every N-th shard of a folder from the I-th on; see `join_folder`.
        workers: shards at once with engine `processes`.
        **overrides: fields of `PackOptions` by name.

    Raises:
        CheckpointError, OptionError, OutputError, TaskError: see `wcompress.errors`.

    Example:
        >>> result = pack("model.pt", "model.wcz", effort=3)  # doctest: +SKIP
        >>> result.ratio, result.latent_ratio  # doctest: +SKIP
    """
    if not isinstance(source, Mapping) and (is_packed_folder(source) or weights_file(source) is not None):
        if is_packed_folder(source):
            raise OptionError(f"{os.fspath(source)}: is a folder of archives already; use unpack to restore it")
        options = packing.with_overrides(options, overrides)
        return pack_folder(
            source,
            output,
            options,
            engine=engine,
            shard=shard,
            workers=workers,
            progress=progress,
            pack_file=None if task is None else partial(_pack_for, _loaded(task, data_dir, options)),
        )
    for name, value in (("engine", engine), ("shard", shard), ("workers", workers)):
        if value is not None:
            raise OptionError(f"{name}: works with a folder of {' or '.join(WEIGHTS)}; leave it out")
    if task is None:
        return packing.pack(source, output, options, progress=progress, **overrides)
    options = packing.with_overrides(options, overrides)
    if output is None and not isinstance(source, Mapping):
        output = archive_path(source)
    return _pack_for(_loaded(task, data_dir, options), source, output, options, progress=progress)


def _loaded(task: Task | str, data_dir: Path | str | None, options: PackOptions) -> Task:
    scored = not options.aims_at_outputs
    found = load_task(task, data_dir=data_dir, scored=scored) if isinstance(task, str) else task
    return as_task(found, scored=scored)


def _pack_for(
    task: Task,
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    output: str | os.PathLike[str] | None,
    options: PackOptions,
    *,
    whole: Mapping[str, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """`wcompress.codec.packing.pack`, with a task's scores before and after."""
    encoder = _TaskEncoder(task, output)
    result, restored = packing.pack_and_restore(
        source, output, options, progress=part(progress, 0.0, _PACKING_SHARE), encoder=encoder, whole=whole
    )
    part(progress, _PACKING_SHARE, 1.0, "scoring the restored model")
    return encoder.scored(result, restored)


class _TaskEncoder:
    """Scores the original, finds what to store, and scores what the archive restores to."""

    def __init__(self, task: Task, output: str | os.PathLike[str] | None) -> None:
        self._task, self._output = task, output
        self._has_scores = getattr(task, "has_scores", True)
        self._before = Score(math.nan)
        self._allowed: float | None = None
        self._refine: RefineEncoder | CalibratedEncoder | None = None

    def __call__(
        self, checkpoint: Checkpoint, options: PackOptions, device: str, progress: Progress | None
    ) -> Stored | Mapping[str, Feedback] | None:
        """See `wcompress.codec.packing.Encoder`.

        Raises:
            TaskError: the task fails, or its scores do not mean what they should.
        """
        part(progress, 0.0, 0.0, "scoring the model")
        from wcompress.calibrate.packing import CalibratedEncoder

        if options.max_drop is None and options.refine != "on":
            if self._has_scores:
                self._before = original_score(self._task, checkpoint.tensors, "test")
            if not (options.calibrates or options.aims_at_outputs):
                return None
            self._refine = CalibratedEncoder(self._task, None)
            return self._refine(checkpoint, options, device, progress)
        from wcompress.refine.packing import RefineEncoder, goal_of, try_inputs
        from wcompress.refine.resume import state_path

        if options.refines:
            try_inputs(self._task, checkpoint)
        self._before = original_score(self._task, checkpoint.tensors, "test")
        validation = original_score(self._task, checkpoint.tensors, "validation")
        check_against_ruined(self._task, checkpoint.tensors, validation)
        self._allowed = goal_of(checkpoint, options).max_drop
        path = None if self._output is None or options.dry_run else state_path(self._output)
        if options.refines:
            self._refine = RefineEncoder(self._task, validation, state_path=path, resume=options.resume)
        else:
            self._refine = CalibratedEncoder(self._task, validation)
        return self._refine(checkpoint, options, device, progress)

    def scored(self, result: PackResult, restored: dict[str, torch.Tensor]) -> PackResult:
        """The result with scores, and with warnings about them."""
        task, scale, before = self._task, Scale.of(self._task), self._before
        with one_torch_thread():
            after = observed(task, restored, "test") if self._has_scores else Score(math.nan)
        score = TaskScore(
            task.name,
            task.dataset,
            before.value,
            after.value,
            unit=scale.shown_unit,
            higher_is_better=scale.higher_is_better,
            n_test=after.n,
            drop_error=standard_error(before, after, scale),
            allowed_drop=self._allowed,
        )
        warnings: list[str] = []
        if self._refine is not None and self._refine.decision is not None:
            decision = self._refine.decision
            warnings += self._refine.warnings
            score = replace(score, chosen=decision.chosen, reason=decision.reason)
            with one_torch_thread():
                output_snr_db, kl_nats = self._refine.likeness(restored)
            score = replace(score, output_snr_db=output_snr_db, kl_nats=kl_nats)
            if decision.validation is not None:
                score = replace(
                    score,
                    validation_drop=decision.validation.drop,
                    n_validation=decision.validation.n,
                    validation_error=decision.validation.error,
                )
        if self._has_scores and not math.isfinite(after.value):
            warnings.append(f"evaluate() gives {after.value} for the packed model; do not use the archive")
        elif score.exceeds:
            warnings.append(
                f"the test set shows a drop of {with_error(score.drop, score.drop_error)}, more than the"
                f" {score.allowed_drop:g} {score.drop_unit} allowed (validation:"
                f" {with_error(score.validation_drop, score.validation_error)}); allow less, or validate on more"
                " examples"
            )
        return replace(result, task=score, warnings=(*result.warnings, *warnings))
