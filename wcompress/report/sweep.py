"""Ratio against accuracy for a model, or several trainings of one: archives, simple baselines, and the best of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from wcompress.api import pack
from wcompress.checkpoint import Checkpoint, read_checkpoint
from wcompress.codec.options import PackOptions
from wcompress.device import torch_threads
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.evaluate import score
from wcompress.files import output_folder
from wcompress.progress import Progress, part
from wcompress.report import render
from wcompress.report.baselines import BASELINES, measure_baselines
from wcompress.report.extras import require_report_extra
from wcompress.report.paper import SWEEP_LATENT_DIMS
from wcompress.report.peers import read_peers
from wcompress.report.sweep_page import sweep_page
from wcompress.report.sweep_results import MeanReport, Report, SweepPoint, mean_report
from wcompress.tasks import Task, as_task, load_task

Found = TypeVar("Found", Report, MeanReport)

SWEEP_DROPS = (0.2, 0.5, 1.0, 2.0)
SWEEP_BITS = (6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.7)


@dataclass(frozen=True)
class SweepSetting:
    """One point to measure.

    Attributes:
        label: short, next to the point in the figure.
        options: how to pack.
    """

    label: str
    options: PackOptions


def default_settings(options: PackOptions) -> list[SweepSetting]:
    """What is swept for a method: for `paper` the size of the latent, for `vae` the bits a weight.

    With `refine="on"` also the drop that refinement is allowed.

    Args:
        options: everything else.
    """
    if options.method == "paper":
        return [SweepSetting(f"latent {n}", replace(options, latent_dim=n)) for n in SWEEP_LATENT_DIMS]
    if options.method == "vae":
        plain = replace(options, refine="off", calibrate="off")
        settings = [SweepSetting(f"{bits:g} bits", replace(plain, bits_per_weight=bits)) for bits in SWEEP_BITS]
        if options.refine == "on":
            settings += [SweepSetting(f"refined, −{drop:g}", replace(options, max_drop=drop)) for drop in SWEEP_DROPS]
        return settings
    return [SweepSetting(options.method, options)]


Model = str | os.PathLike[str] | Mapping[str, torch.Tensor]
"""A checkpoint file, or name → tensor."""


def report(
    model: Model,
    task: Task | str,
    folder: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    settings: Sequence[SweepSetting] | None = None,
    peers: str | os.PathLike[str] | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a model at several settings beside simple baselines, and write the report.

    Every archive is made and restored from its bytes, and not kept. Writes `report.json`, `report.csv`, `report.md`,
    `report.html` and `figure.png`.

    Args:
        model: a checkpoint file, or name → tensor.
        task: a task, or the name or place of one.
        folder: to write into, created when missing.
        options: how to pack, for everything that the settings do not vary.
        settings: the points; by default what `default_settings` makes of the options. Those that cannot be reached
            are left out.
        peers: a file of points that others measured, see `read_peers`.
        data_dir: where a built-in task's data lies.
        force: the folder may hold files already.
        progress: called as the work goes on, with its `stage` among the figures.

    Raises:
        TaskError, CheckpointError, OptionError, OutputError: see `wcompress.errors`.
    """

    def alone(reports: tuple[Report, ...]) -> Report:
        return reports[0]

    return _report([model], task, folder, alone, options, settings, peers, data_dir, force, progress)


def report_means(
    models: Sequence[Model],
    task: Task | str,
    folder: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    settings: Sequence[SweepSetting] | None = None,
    peers: str | os.PathLike[str] | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MeanReport:
    """Measure several trainings of one network as `report` does, and write one report of the means.

    Args:
        models: two or more, of the same tensors' names, shapes and dtypes.
        task, folder, options, settings, peers, data_dir, force, progress: as for `report`.

    Raises:
        OptionError: fewer than two models, one of them twice, or they are not of one network.
        TaskError, CheckpointError, OutputError: see `wcompress.errors`.
    """
    files = [os.path.realpath(model) for model in models if not isinstance(model, Mapping)]
    for number, path in enumerate(files):
        if path in files[:number]:
            raise OptionError(f"{path}: passed twice; pass each training of the network once")
    if len(models) < 2:
        raise OptionError(f"{len(models)} model given; means need two or more trainings of one network")
    return _report(models, task, folder, mean_report, options, settings, peers, data_dir, force, progress)


def _report(
    models: Sequence[Model],
    task: Task | str,
    folder: str | os.PathLike[str],
    combine: Callable[[tuple[Report, ...]], Found],
    options: PackOptions | None,
    settings: Sequence[SweepSetting] | None,
    peers: str | os.PathLike[str] | None,
    data_dir: Path | None,
    force: bool,
    progress: Progress | None,
) -> Found:
    require_report_extra("report")
    options = options or PackOptions()
    chosen = default_settings(options) if settings is None else list(settings)
    others = None if peers is None else read_peers(peers)
    with output_folder(folder, force=force) as target, torch_threads(options.threads):
        checkpoints = [read_checkpoint(model, key=options.key) for model in models]
        names = ["model" if isinstance(model, Mapping) else Path(model).name for model in models]
        for name, checkpoint in zip(names, checkpoints, strict=True):
            _check_same_network(names[0], checkpoints[0].tensors, name, checkpoint.tensors)
        if checkpoints[0].original_bytes == 0:
            raise OptionError(f"{names[0]}: all of its tensors are empty, so there are no ratios to report")
        if isinstance(task, str):
            task = load_task(task, data_dir=data_dir)
        made = as_task(task)
        if others is not None:
            others.check(made)
        reports = [
            replace(
                _measure(
                    model,
                    name,
                    checkpoint,
                    made,
                    options,
                    chosen,
                    part(progress, n / len(models), (n + 1) / len(models)),
                ),
                folder=target,
                peers=() if others is None else others.points,
            )
            for n, (model, name, checkpoint) in enumerate(zip(models, names, checkpoints, strict=True))
        ]
        result = combine(tuple(reports))
        files = render.write_report(target, result.to_json(), sweep_page(result, options))
        return replace(result, files=files)


def _check_same_network(
    first: str, tensors: Mapping[str, torch.Tensor], name: str, others: Mapping[str, torch.Tensor]
) -> None:
    for key in [*tensors, *others]:
        found = [None if key not in some else (some[key].shape, some[key].dtype) for some in (tensors, others)]
        if found[0] != found[1]:
            raise OptionError(
                f"{name}: tensor {key!r} differs from {first}; pass trainings of one network, or one model at a time"
            )


def _measure(
    model: Model,
    name: str,
    checkpoint: Checkpoint,
    task: Task,
    options: PackOptions,
    settings: Sequence[SweepSetting],
    progress: Progress | None,
) -> Report:
    """One model at every setting, and the baselines."""
    n_stages = len(settings) + 1
    part(progress, 0.0, 0.0, f"scoring {name}")
    before = score(task, checkpoint.tensors)
    points: list[SweepPoint] = []
    for n, setting in enumerate(settings):
        inner = part(progress, n / n_stages, (n + 1) / n_stages, f"packing {name}, {setting.label}")
        try:
            packed = pack(model, f"{name}.wcz", setting.options, task=task, dry_run=True, progress=inner)
        except TargetUnreachable:  # no archive of a small model is as small as a sweep goes
            continue
        points.append(SweepPoint(setting.label, packed, setting.options.refines))
    inner = part(progress, len(settings) / n_stages, 1.0, f"measuring {render.sentence_list(list(BASELINES))}")
    baselines = measure_baselines(checkpoint.tensors, task, progress=inner)
    return Report(
        folder=Path(),
        model=name,
        method=settings[0].options.method if settings else options.method,
        task=task.name,
        dataset=task.dataset,
        n_examples=task.n_examples,
        score_before=before,
        original_bytes=checkpoint.original_bytes,
        points=tuple(points),
        baselines=tuple(baselines),
    )
