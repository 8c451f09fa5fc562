"""The paper's tables and figures, made anew, with every byte counted beside its own accounting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wcompress.codec import packing
from wcompress.codec.options import PackOptions
from wcompress.codec.results import PackResult, TaskScore
from wcompress.device import resolve_device, torch_threads
from wcompress.errors import OptionError
from wcompress.evaluate import evaluate
from wcompress.files import output_folder
from wcompress.progress import Progress, part
from wcompress.report import render
from wcompress.report.extras import require_report_extra
from wcompress.report.pages import reproduction_page
from wcompress.report.paper import LATENT_DIM, PAPER, SWEEP_LATENT_DIMS, SWEEP_MODEL
from wcompress.report.pipeline import BaselineRun, measure_baseline
from wcompress.report.samples import choose_samples
from wcompress.tasks import BaselineTask, MnistData, load_mnist

_SAMPLE_FIGURES = {"mnist-cnn": 4, "mnist-rnn": 5}


@dataclass(frozen=True)
class LatentPoint:
    """The sweep's model at one size of the latent.

    Attributes:
        latent_dim: numbers in a block's latent.
        pack: the archive, with both scores.
    """

    latent_dim: int
    pack: PackResult

    def to_json(self) -> dict[str, Any]:
        """The object in `report.json`."""
        assert self.pack.task is not None
        scores = self.pack.task.to_json()
        return {
            "latent_dim": self.latent_dim,
            **{key: scores[key] for key in ("score_before", "score_after", "drop")},
            "ratio": self.pack.ratio,
            "latent_ratio": self.pack.latent_ratio,
            "archive_bytes": self.pack.archive_bytes,
            "sqnr_db": self.pack.sqnr_db,
            "pack": self.pack.to_json(),
        }


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` found.

    Attributes:
        folder: where it was written.
        dataset: trained and scored on.
        seed, effort: of everything.
        runs: the models, in the order asked for.
        sweep_model: whose latent was varied.
        sweep: by falling size of the latent.
        files: tables, figures and pages written; the models' own files are named in `runs`.
    """

    folder: Path
    dataset: str
    seed: int
    effort: int
    runs: tuple[BaselineRun, ...]
    sweep_model: str
    sweep: tuple[LatentPoint, ...]
    files: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        models = []
        for run in self.runs:
            row = PAPER[run.name]
            printed = {"n_params": row.n_params, "score_before": row.score_before, "score_after": row.score_after}
            models.append({**run.to_json(), "paper": printed})
        return {
            "kind": "reproduction",
            "dataset": self.dataset,
            "seed": self.seed,
            "effort": self.effort,
            "machine": render.machine(),
            "models": models,
            "sweep_model": self.sweep_model,
            "sweep": [point.to_json() for point in self.sweep],
        }


def reproduce(
    folder: str | os.PathLike[str],
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    effort: int = 5,
    models: Sequence[str] | None = None,
    latent_dims: Sequence[int] = SWEEP_LATENT_DIMS,
    device: str = "auto",
    threads: int | None = None,
    epochs: int | None = None,
    force: bool = False,
    data: MnistData | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Train the paper's models, pack them, restore them, and write its tables and figures.

    Writes `report.json`, `report.md`, `report.html`, `table1.csv`, `table2.csv`, `figure2` to `figure5` and `sweep` as
    `.csv` and `.png` (Figures 4 and 5 where the CNN and the RNN are among the models), and every model's files.

    Args:
        folder: to write into, created when missing.
        data_dir: where MNIST lies; see `wcompress.tasks.load_mnist`.
        seed: of everything random.
        effort: of packing, 1 to 9; 5 is the paper's limit of 500 epochs.
        models: names of the paper's baselines; all four by default.
        latent_dims: sizes of the latent to try on the CNN, or on the first model where the CNN is not asked for.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; None for torch's own choice.
        epochs: of training the models; None for as many as their recipes have.
        force: the folder may hold files already, and those of these names are replaced.
        data: in place of what `load_mnist` finds.
        progress: called as the work goes on, with its `stage` among the figures.

    Raises:
        TaskError, OptionError, OutputError: see `wcompress.errors`.
    """
    require_report_extra("reproduce")
    names = tuple(dict.fromkeys(PAPER if models is None else models))
    unknown = [name for name in names if name not in PAPER]
    if unknown or not names:
        raise OptionError(f"models {', '.join(unknown) or 'none'}: expected one or more of {', '.join(PAPER)}")
    options = PackOptions(method="paper", effort=effort, seed=seed, device=device, threads=threads, force=force)
    resolve_device(device)
    settings = [replace(options, latent_dim=dim) for dim in sorted(set(latent_dims), reverse=True)]
    n_stages = len(names) + len(settings)
    with output_folder(folder, force=force) as target, torch_threads(threads):
        found = load_mnist(data_dir) if data is None else data
        runs = tuple(
            measure_baseline(
                name,
                target,
                data=found,
                seed=seed,
                effort=effort,
                device=device,
                threads=threads,
                epochs=epochs,
                force=force,
                progress=part(progress, number / n_stages, (number + 1) / n_stages),
            )
            for number, name in enumerate(names)
        )
        swept = next((run for run in runs if run.name == SWEEP_MODEL), runs[0])
        task = BaselineTask(swept.name, found, seed)
        sweep = tuple(
            _sweep_point(swept, setting, target, task, part(progress, number / n_stages, (number + 1) / n_stages))
            for number, setting in enumerate(settings, start=len(names))
        )
        part(progress, 1.0, 1.0, "writing tables and figures")
        samples = {
            _SAMPLE_FIGURES[run.name]: (run, choose_samples(run, found)) for run in runs if run.name in _SAMPLE_FIGURES
        }
        result = Reproduction(target, found.dataset, seed, effort, runs, swept.name, sweep)
        document = result.to_json()
        page = reproduction_page(document, runs, samples)
        return replace(result, files=render.write_report(target, document, page))


def _sweep_point(
    run: BaselineRun, options: PackOptions, folder: Path, task: BaselineTask, progress: Progress | None
) -> LatentPoint:
    if options.latent_dim == LATENT_DIM:
        return LatentPoint(LATENT_DIM, run.pack)
    archive = folder / f"{run.name}.latent{options.latent_dim}.wcz"
    inner = part(progress, 0.0, 1.0, f"packing {run.name}, latent {options.latent_dim}")
    packed = packing.pack(run.checkpoint, archive, options, progress=inner)
    scores = TaskScore(run.name, run.dataset, run.score_before, evaluate(archive, task).score)
    return LatentPoint(options.latent_dim, replace(packed, task=scores))
