"""Random numbers of users' code: global generators, seeded while it runs and put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_NUMPY_SEEDS = 1 << 32


def seed_all(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch on the CPU, and of CUDA where it is in use."""
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - users' code draws from it
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs the block from seeded global generators; afterwards they are as they were."""
    with restored():
        seed_all(seed)
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Puts the global generators back after the block."""
    before = state()
    try:
        yield
    finally:
        restore(before)


def state() -> tuple[Any, ...]:
    """Where the global generators stand."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    of_numpy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), of_numpy, torch.default_generator.get_state(), cuda


def restore(found: tuple[Any, ...]) -> None:
    """Goes back to a `state`."""
    random.setstate(found[0])
    np.random.set_state(found[1])  # noqa: NPY002
    torch.default_generator.set_state(found[2])
    if found[3]:
        torch.cuda.set_rng_state_all(found[3])
