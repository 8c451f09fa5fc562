"""Scores of checkpoints and archives. Nothing here prints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wcompress.archive import MAGIC
from wcompress.checkpoint import read_checkpoint
from wcompress.directories.index import is_packed_folder
from wcompress.directories.opening import load
from wcompress.errors import TaskError
from wcompress.tasks import Scale, Score, Task, as_task, load_task, observe


@dataclass(frozen=True)
class EvalResult:
    """The score of a model.

    Attributes:
        task, dataset: names.
        score: percent, or the task's own unit.
        n_examples: scored; 0 where unknown.
        unit: of the score.
    """

    task: str
    dataset: str
    score: float
    n_examples: int
    unit: str = "percent"

    def to_json(self) -> dict[str, Any]:
        """The object that `eval --json` prints."""
        return asdict(self)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts as an archive does, or a folder holds archives."""
    if is_packed_folder(path):
        return True
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

    Checkpoints may name a tensor that the model has under several names only once, and may hold buffers that the model
    keeps out of its `state_dict`, such as the positions of older language models; those are not loaded.

    Raises:
        TaskError: the weights do not fit the model.
    """
    model = task.build()
    try:
        model.load_state_dict(_as_named(model, tensors))
    except Exception as error:
        detail = " ".join(str(error).split())
        detail = detail.split(":", 1)[-1].strip()
        raise TaskError(
            f"task {task.name}: the weights do not fit its model ({detail:.300}); pass the task they were made for"
        ) from error
    return model.eval()


def _as_named(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    held = model.state_dict(keep_vars=True)
    kept_out = {name for name, _ in model.named_buffers(remove_duplicate=False)} - set(held)
    found = {name: tensor for name, tensor in tensors.items() if name not in kept_out}
    known = {id(held[name]): tensor for name, tensor in found.items() if name in held}
    return found | {name: known[id(one)] for name, one in held.items() if name not in found and id(one) in known}


def observed(task: Task, tensors: Mapping[str, torch.Tensor], split: str) -> Score:
    """How these weights score on a split, `validation` or `test`; see `wcompress.tasks.scoring`.

    Raises:
        TaskError: the weights do not fit, or the task's own code fails.
    """
    model = build_model(task, tensors)
    try:
        return observe(task, model, split)
    except TaskError:
        raise
    except Exception as error:
        doing = {"validation": "validate()", "test": "evaluate()"}[split]
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise TaskError(f"task {task.name}: {doing} failed ({detail:.300}); correct the task") from error


def score(task: Task, tensors: Mapping[str, torch.Tensor]) -> float:
    """The task's held-out score of these weights: percent, or the task's own unit.

    Raises:
        TaskError: the weights do not fit, the task's own code fails, or the score is not a finite number.
    """
    value = observed(task, tensors, "test").value
    if not math.isfinite(value):
        raise TaskError(f"task {task.name}: evaluate() should give a finite number, got {value}")
    return value


def original_score(task: Task, tensors: Mapping[str, torch.Tensor], split: str) -> Score:
    """How the original model scores on a split, checked to be in the unit that the task declares.

    Raises:
        TaskError: as `observed`; or the score is no finite number, or not in that unit.
    """
    found, scale = observed(task, tensors, split), Scale.of(task)
    doing = {"validation": "validate()", "test": "evaluate()"}[split]
    scale.check(found.value / scale.shown(1.0), f"task {task.name}: {doing}")
    return found


def check_against_ruined(task: Task, tensors: Mapping[str, torch.Tensor], original: Score) -> None:
    """Checks that a task's validation score tells a good model from a ruined one.

    Two ruined models are scored, one with all weights zero, one with the weights of each tensor shuffled. One of them
    has to score worse than the original.

    Args:
        task: what the model is for.
        tensors: the original model's.
        original: its score on validation.

    Raises:
        TaskError: none does.
    """
    scale = Scale.of(task)
    drops = []
    for ruined in (_zeroed(tensors), _shuffled(tensors)):
        try:
            drops.append(scale.drop(original.value, observed(task, ruined, "validation").value))
        except TaskError:  # a check inside the task noticed
            drops.append(math.inf)
        if drops[-1] > 0:
            return
    if not any(drops):
        raise TaskError(
            f"task {task.name}: validate() gives {original.value:g} for ruined weights too, so no drop can be measured;"
            " score the model that validate() is given"
        )
    raise TaskError(
        f"task {task.name}: validate() finds ruined weights better than the model's own, by {-min(drops):g};"
        f" if {'lower' if scale.higher_is_better else 'higher'} is better, set higher_is_better ="
        f" {not scale.higher_is_better} on the task"
    )


def _zeroed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(t) if t.is_floating_point() else t for n, t in tensors.items()}


def _shuffled(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def shuffled(tensor: torch.Tensor) -> torch.Tensor:
        # By bytes, since not every dtype can be indexed.
        order = torch.randperm(tensor.numel(), generator=generator)
        rows = tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, tensor.element_size())
        return rows[order].reshape(-1).view(tensor.dtype).reshape(tensor.shape)

    return {n: shuffled(t) if t.is_floating_point() else t for n, t in tensors.items()}


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
    task = as_task(task)
    value = score(task, read_tensors(path, key=key))
    return EvalResult(task.name, task.dataset, value, task.n_examples, Scale.of(task).shown_unit)
