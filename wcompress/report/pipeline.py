"""One built-in model, from training to the score of what its archive restores to, everything by way of the disk."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wcompress.checkpoint import write_checkpoint
from wcompress.codec import packing
from wcompress.codec.options import PackOptions
from wcompress.codec.results import PackResult, TaskScore
from wcompress.codec.unpacking import unpack
from wcompress.device import resolve_device, torch_threads
from wcompress.evaluate import evaluate
from wcompress.files import atomic_output, check_output
from wcompress.progress import Progress, part
from wcompress.report.paper import LATENT_DIM, PAPER
from wcompress.tasks import BaselineTask, MnistData, train_baseline

_TRAINED, _PACKED = 0.4, 0.9
"""Shares of the progress at which training and packing have ended."""


@dataclass(frozen=True)
class BaselineRun:
    """A built-in model before and after.

    Attributes:
        name: one of `wcompress.tasks.builtin_tasks()`.
        neurons: per layer, as the paper prints them.
        n_params: elements of the floating-point tensors.
        dataset: trained and scored on.
        n_examples: test examples scored.
        score_before: of the checkpoint file, percent.
        score_after: of the restored file, percent.
        pack: the archive, with the training history and both scores.
        train_seconds: training the model; None where it was trained already.
        pack_seconds, unpack_seconds: wall time.
        checkpoint, archive, restored: the files.
    """

    name: str
    neurons: str
    n_params: int
    dataset: str
    n_examples: int
    score_before: float
    score_after: float
    pack: PackResult
    train_seconds: float | None
    pack_seconds: float
    unpack_seconds: float
    checkpoint: Path
    archive: Path
    restored: Path

    @property
    def drop(self) -> float:
        """Points lost."""
        return self.score_before - self.score_after

    def to_json(self) -> dict[str, Any]:
        """The object in `report.json`."""
        return {
            "name": self.name,
            "neurons": self.neurons,
            "n_params": self.n_params,
            "dataset": self.dataset,
            "n_examples": self.n_examples,
            "score_before": self.score_before,
            "score_after": self.score_after,
            "drop": self.drop,
            "ratio": self.pack.ratio,
            "latent_ratio": self.pack.latent_ratio,
            "pack": self.pack.to_json(),
            "history": asdict(self.pack.history) if self.pack.history else None,
            "seconds": {"train": self.train_seconds, "pack": self.pack_seconds, "unpack": self.unpack_seconds},
            "files": {"checkpoint": self.checkpoint.name, "archive": self.archive.name, "restored": self.restored.name},
        }


def measure_baseline(
    name: str,
    folder: str | os.PathLike[str],
    *,
    data: MnistData,
    method: str = "paper",
    seed: int = 0,
    effort: int = 5,
    latent_dim: int = LATENT_DIM,
    device: str = "auto",
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BaselineRun:
    """Train a built-in model, pack it, unpack the archive, and score both files.

    Writes `<name>.pt`, `<name>.wcz` and `<name>.restored.safetensors` into the folder.

    Args:
        name: one of `wcompress.tasks.builtin_tasks()`.
        folder: an existing folder.
        data: to train and score on.
        method: of the archive.
        seed: of the model's training and the archive's.
        effort: of packing, 1 to 9.
        latent_dim: numbers in a block's latent.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; None for torch's own choice.
        checkpoint: a file of this model, trained already, to take instead of training one.
        epochs: of training the model; None for as many as its recipe has.
        force: existing files may be replaced.
        progress: called as the work goes on, with its `stage` among the figures.

    Raises:
        TaskError, CheckpointError, OptionError, OutputError: see `wcompress.errors`.
    """
    options = PackOptions(
        latent_dim=latent_dim, effort=effort, seed=seed, device=device, threads=threads, force=force, method=method
    )
    torch_device = resolve_device(device)
    task = BaselineTask(name, data, seed)
    root = Path(folder)
    model_path = root / f"{name}.pt" if checkpoint is None else Path(checkpoint)
    archive, restored = root / f"{name}.wcz", root / f"{name}.restored.safetensors"
    for path in (archive, restored, *([model_path] if checkpoint is None else [])):
        check_output(path, force=force)

    with torch_threads(threads):
        train_seconds = None
        if checkpoint is None:
            inner = part(progress, 0.0, _TRAINED, f"training {name}")
            start = time.perf_counter()
            model = train_baseline(name, data=data, seed=seed, epochs=epochs, device=torch_device, progress=inner)
            train_seconds = time.perf_counter() - start
            with atomic_output(model_path, force=force) as temporary:
                write_checkpoint(temporary, model.state_dict(), format="pt")

        inner = part(progress, _TRAINED if checkpoint is None else 0.0, _PACKED, f"packing {name}")
        start = time.perf_counter()
        packed = packing.pack(model_path, archive, options, progress=inner)
        pack_seconds = time.perf_counter() - start

        part(progress, _PACKED, 1.0, f"unpacking and scoring {name}")
        unpack_seconds = unpack(archive, restored, force=force).seconds
        before, after = evaluate(model_path, task), evaluate(restored, task)
    return BaselineRun(
        name=name,
        neurons=PAPER[name].neurons if name in PAPER else "",
        n_params=packed.n_params,
        dataset=before.dataset,
        n_examples=before.n_examples,
        score_before=before.score,
        score_after=after.score,
        pack=replace(packed, task=TaskScore(name, before.dataset, before.score, after.score)),
        train_seconds=train_seconds,
        pack_seconds=pack_seconds,
        unpack_seconds=unpack_seconds,
        checkpoint=model_path,
        archive=archive,
        restored=restored,
    )
