"""Ratio against accuracy for one model and a task: archives, what anybody would try first, and the best of all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wcompress.blocks import BLOCK_SIZE
from wcompress.checkpoint import read_checkpoint
from wcompress.codec.encoding import encode
from wcompress.codec.options import PackOptions
from wcompress.codec.packing import pack_and_restore
from wcompress.codec.results import PackResult, TaskScore
from wcompress.device import torch_threads
from wcompress.errors import TargetUnreachable
from wcompress.evaluate import score
from wcompress.files import output_folder
from wcompress.refine.packing import RefineEncoder
from wcompress.report import figures, render
from wcompress.report.baselines import BASELINES, BaselinePoint, measure_baselines
from wcompress.report.extras import require_report_extra
from wcompress.report.figures import Mark
from wcompress.report.paper import CITATION, LATENT_DIM, PAPER, SWEEP_LATENT_DIMS
from wcompress.report.pipeline import StageProgress, within
from wcompress.report.render import Cell, Column, Page, Picture, Section, Table
from wcompress.tasks import Task, load_task

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


@dataclass(frozen=True)
class SweepPoint:
    """An archive, measured.

    Attributes:
        label: of its setting.
        pack: figures, the task's scores among them.
    """

    label: str
    pack: PackResult

    @property
    def score(self) -> float:
        """Of what the archive restores to, percent."""
        assert self.pack.task is not None
        return self.pack.task.score_after

    def to_json(self) -> dict[str, Any]:
        """The object in `report.json`."""
        return {"label": self.label, **self.pack.to_json()}


@dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
        folder: where it was written.
        model: its file name.
        method: of the archives.
        task, dataset, n_examples: what scored.
        score_before: of the model, percent.
        original_bytes: of the model's tensors.
        points: archives, in the order of the settings.
        baselines: simple things to try first.
        files: all that was written.
    """

    folder: Path
    model: str
    method: str
    task: str
    dataset: str
    n_examples: int
    score_before: float
    original_bytes: int
    points: tuple[SweepPoint, ...]
    baselines: tuple[BaselinePoint, ...]
    files: tuple[Path, ...] = ()

    @property
    def pareto(self) -> tuple[Mark, ...]:
        """Of archives and baselines, those that no other beats, by true ratio."""
        marks = [Mark(f"{self.method}, {p.label}", p.pack.ratio, p.score) for p in self.points]
        return pareto_front([*marks, *(Mark(b.name, b.ratio, b.score) for b in self.baselines)])

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "kind": "sweep",
            "model": self.model,
            "task": {"name": self.task, "dataset": self.dataset, "n_examples": self.n_examples},
            "method": self.method,
            "score_before": self.score_before,
            "original_bytes": self.original_bytes,
            "points": [point.to_json() for point in self.points],
            "baselines": [point.to_json() for point in self.baselines],
            "pareto": [{"name": mark.label, "ratio": mark.ratio, "score": mark.score} for mark in self.pareto],
            "machine": render.machine(),
        }


def default_settings(options: PackOptions) -> list[SweepSetting]:
    """What is swept for a method: for `paper` the size of the latent, for `vae` the bits a weight.

    With `refine="on"` also the drop that refinement is allowed.

    Args:
        options: everything else.
    """
    if options.method == "paper":
        return [SweepSetting(f"latent {n}", replace(options, latent_dim=n)) for n in SWEEP_LATENT_DIMS]
    if options.method == "vae":
        plain = replace(options, refine="off")
        settings = [SweepSetting(f"{bits:g} bits", replace(plain, bits_per_weight=bits)) for bits in SWEEP_BITS]
        if options.refine == "on":
            settings += [SweepSetting(f"refined, −{drop:g}", replace(options, max_drop=drop)) for drop in SWEEP_DROPS]
        return settings
    return [SweepSetting(options.method, options)]


def report(
    model: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    task: Task | str,
    folder: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    settings: Sequence[SweepSetting] | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    progress: StageProgress | None = None,
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
        data_dir: where a built-in task's data lies.
        force: the folder may hold files already.
        progress: called when a stage begins and as it goes on.

    Raises:
        TaskError, CheckpointError, OptionError, OutputError: see `wcompress.errors`.
    """
    require_report_extra("report")
    options = options or PackOptions()
    chosen = default_settings(options) if settings is None else list(settings)
    name = "model" if isinstance(model, Mapping) else Path(model).name
    with output_folder(folder, force=force) as target, torch_threads(options.threads):
        checkpoint = read_checkpoint(model, key=options.key)
        if isinstance(task, str):
            task = load_task(task, data_dir=data_dir)
        within(progress, f"scoring {name}")
        before = score(task, checkpoint.tensors)
        points: list[SweepPoint] = []
        for setting in chosen:
            inner = within(progress, f"packing {name}, {setting.label}")
            encoder = encode if setting.options.max_drop is None else RefineEncoder(task)
            try:
                packed, restored = pack_and_restore(
                    model, f"{name}.wcz", setting.options, dry_run=True, progress=inner, encoder=encoder
                )
            except TargetUnreachable:  # no archive of a small model is as small as a sweep goes
                continue
            scores = TaskScore(task.name, task.dataset, before, score(task, restored))
            points.append(SweepPoint(setting.label, replace(packed, task=scores)))
        inner = within(progress, f"measuring {render.sentence_list(list(BASELINES))}")
        baselines = measure_baselines(checkpoint.tensors, task, progress=inner)
        result = Report(
            folder=target,
            model=name,
            method=chosen[0].options.method if chosen else options.method,
            task=task.name,
            dataset=task.dataset,
            n_examples=task.n_examples,
            score_before=before,
            original_bytes=checkpoint.original_bytes,
            points=tuple(points),
            baselines=tuple(baselines),
        )
        return replace(result, files=render.write_report(target, result.to_json(), _page(result, options)))


def pareto_front(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Those marks than which no other is at least as good in both ratio and score and better in one, by ratio."""
    front: list[Mark] = []
    for mark in sorted(_finite(marks), key=lambda m: (-m.ratio, -m.score)):
        if not front or mark.score > front[-1].score:
            front.append(mark)
    return tuple(reversed(front))


def _finite(marks: Sequence[Mark]) -> list[Mark]:
    """A task may fail to score a model that is broken beyond use."""
    return [mark for mark in marks if math.isfinite(mark.score)]


def _page(result: Report, options: PackOptions) -> Page:
    counts_latents = any(point.pack.latent_ratio is not None for point in result.points)
    n_examples = f", {result.n_examples:,} test examples" if result.n_examples else ""
    introduction: tuple[str, ...] = (
        f"How small {result.model} can be made, and what is then left of its score in the task {result.task}."
        " Every archive and every baseline was made, decoded from its bytes, and scored.",
    )
    if options.method == "paper":
        introduction += (f"The method is that of {CITATION}.",)
    paragraphs = [
        f"The original scores {result.score_before:.2f} %. Nothing here beats"
        f" {render.sentence_list([f'{m.label} ({render.times(m.ratio)}, {m.score:.2f} %)' for m in result.pareto])}."
    ]
    if result.points and all(point.pack.ratio < 1 for point in result.points):
        paragraphs.append("Every one of the archives is larger than the model itself: their true ratio is below 1.")
    terms = (render.RATIO_TERM, render.LATENT_RATIO_TERM) if counts_latents else (render.RATIO_TERM,)
    return Page(
        title=f"{result.model}: ratio against accuracy",
        introduction=introduction,
        terms=terms,
        facts=(
            ("model", f"{result.model}, {result.original_bytes:,} bytes of tensors"),
            ("task", result.task),
            ("data", f"{result.dataset}{n_examples}"),
            ("method", f"{result.method}, effort {options.effort}, seed {options.seed}"),
        ),
        sections=(Section("Result", tuple(paragraphs), (_table(result, counts_latents),), (_picture(result),)),),
    )


def _table(result: Report, counts_latents: bool) -> Table:
    best = {(mark.ratio, mark.score) for mark in result.pareto}
    rows: list[tuple[Cell, ...]] = []
    for point in result.points:
        pack, after = point.pack, point.score
        name, front = f"{pack.method}, {point.label}", "yes" if (pack.ratio, after) in best else ""
        row = ("archive", name, pack.archive_bytes, pack.ratio, pack.latent_ratio, after, result.score_before - after)
        rows.append((*row, pack.sqnr_db, front))
    for baseline in result.baselines:
        front = "yes" if (baseline.ratio, baseline.score) in best else ""
        drop = result.score_before - baseline.score
        size, value = baseline.n_bytes, baseline.score
        rows.append(("baseline", baseline.name, size, baseline.ratio, None, value, drop, None, front))
    columns = [
        Column("kind", "kind"),
        Column("name", "setting"),
        Column("archive_bytes", "file (bytes)", ","),
        Column("ratio", "true ratio", "ratio"),
        Column("latent_ratio", "latent ratio", "ratio"),
        Column("score", "score (%)", ".2f"),
        Column("drop", "points lost", ".2f"),
        Column("sqnr_db", "SQNR (dB)", ".1f"),
        Column("pareto", "best"),
    ]
    if not counts_latents:
        at = [column.key for column in columns].index("latent_ratio")
        del columns[at]
        rows = [row[:at] + row[at + 1 :] for row in rows]
    caption = f"“best”: no other has a higher true ratio at no lower a score. Scores on {result.dataset}."
    return Table("report", caption, tuple(columns), tuple(rows))


def _picture(result: Report) -> Picture:
    latent = [Mark(p.label, p.pack.latent_ratio, p.score) for p in result.points if p.pack.latent_ratio is not None]
    printed = PAPER.get(result.task)
    if printed is not None and result.method != "paper" and result.dataset == "mnist":
        latent.append(Mark("as the paper prints", BLOCK_SIZE / LATENT_DIM, printed.score_after))
    png = figures.ratio_against_score(
        _finite([Mark(p.label, p.pack.ratio, p.score) for p in result.points]),
        _finite(latent),
        _finite([Mark(b.name, b.ratio, b.score) for b in result.baselines]),
        result.pareto,
        result.score_before,
        title=f"{result.model} on {result.dataset}",
        method=result.method,
    )
    caption = f"True ratio against score of {result.model} on {result.dataset}."
    if latent:
        caption += " Hollow: the same archives by the paper's accounting, without the decoder; these are no file sizes."
    return Picture("figure", caption, png)
