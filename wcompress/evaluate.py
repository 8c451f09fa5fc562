"""Scores of checkpoints and archives. Nothing here prints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wcompress.archive import MAGIC
from wcompress.checkpoint import read_checkpoint
from wcompress.codec.reading import load
from wcompress.errors import TaskError
from wcompress.tasks import Task, load_task


@dataclass(frozen=True)
class EvalResult:
    """The score of a model.

    Attributes:
        task, dataset: names.
        score: percent.
        n_examples: scored.
    """

    task: str
    dataset: str
    score: float
    n_examples: int

    def to_json(self) -> dict[str, Any]:
        """The object that `eval --json` prints."""
        return asdict(self)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts as an archive does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_tensors(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, or those an archive restores to.

    Raises:
        CheckpointError, ArchiveError: the file cannot be read.
    """
    return load(path) if is_archive(path) else read_checkpoint(path, key=key).tensors


def build_model(task: Task, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The task's model with these weights, in eval mode.

    Raises:
        TaskError: the weights do not fit the model.
    """
    model = task.build()
    try:
        model.load_state_dict(dict(tensors))
    except Exception as error:
        detail = " ".join(str(error).split())
        detail = detail.split(":", 1)[-1].strip()
        raise TaskError(
            f"task {task.name}: the weights do not fit its model ({detail:.300}); pass the task they were made for"
        ) from error
    return model.eval()


def score(task: Task, tensors: Mapping[str, torch.Tensor]) -> float:
    """The task's held-out score of these weights, percent.

    Raises:
        TaskError: the weights do not fit, or the task's own code fails.
    """
    model = build_model(task, tensors)
    try:
        return float(task.evaluate(model))
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {task.name}: evaluate() failed ({type(error).__name__}: {error}); correct the task"
        ) from error


def evaluate(
    path: str | os.PathLike[str], task: Task | str, *, data_dir: Path | None = None, key: str | None = None
) -> EvalResult:
    """Score a checkpoint, or what an archive restores to.

    Args:
        path: either.
        task: a task, or the name or place of one.
        data_dir: where a built-in task's data lies.
        key: entry of the checkpoint that holds the model.

    Raises:
        TaskError, CheckpointError, ArchiveError: see `wcompress.errors`.
    """
    if isinstance(task, str):
        task = load_task(task, data_dir=data_dir)
    value = score(task, read_tensors(path, key=key))
    return EvalResult(task.name, task.dataset, value, task.n_examples)
