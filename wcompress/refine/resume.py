"""Checkpoints of long work, so that what was interrupted can go on."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from wcompress.checkpoint.write import save_torch
from wcompress.errors import OptionError
from wcompress.files import atomic_output


def state_path(output: str | os.PathLike[str]) -> Path:
    """Where the checkpoint of an output's refinement lies: beside it."""
    return Path(f"{os.fspath(output)}.refine")


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: replaced where it exists.
        key: says which work it belongs to.
        state: tensors and plain values.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_output(path, force=True) as temporary:
        save_torch(temporary, {"key": key, "state": state})


def load_state(path: Path, key: str) -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        OptionError: there is none, it is damaged, or it belongs to other work.
    """
    if not path.is_file():
        raise OptionError(f"{path}: no checkpoint to resume from; leave --resume out")
    try:
        found = torch.load(path, weights_only=True)
        if found["key"] != key:
            raise OptionError(f"{path}: is of another model, goal or seed; leave --resume out, or delete it")
        state: dict[str, Any] = found["state"]
        return state
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise OptionError(f"{path}: is damaged; delete it, and leave --resume out") from error
