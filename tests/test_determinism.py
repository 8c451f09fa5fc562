"""The same input, options and seed give the same archive, whatever the threads and the load."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wcompress
from tests.test_refine import Toy, trained
from wcompress.device import torch_threads
from wcompress.refine.budget import n_steps, step_cost
from wcompress.tasks import as_task, load_task

__all__ = ["trained"]


def scaled_in_blocks() -> dict[str, Tensor]:
    """Weights whose scale differs from place to place, so that a prior has something to learn."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.exp2(2 * torch.randn(24, 4, generator=generator)).repeat_interleave(32, 1)
    return {
        "a": 0.02 * scales * torch.randn(24, 128, generator=generator),
        "b": torch.randn(24, generator=generator),
        "n": torch.arange(50),
    }


class Careless(Toy):
    """Draws from the global generators wherever a task can."""

    def calibration(self) -> Iterator[Tensor]:
        loader: Any = torch.utils.data.DataLoader(self.x[:800], batch_size=100, shuffle=True)
        yield from loader

    def augment(self, batch: Tensor, _generator: torch.Generator) -> Tensor:
        return batch + 0.01 * torch.rand(()) + 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """Other processes that compete for the processor."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize(
    "options",
    [
        {"effort": 1},
        {"effort": 5},
        {"effort": 4, "ratio": 9.0},
        {"method": "paper", "effort": 1, "block_size": 64, "latent_dim": 4, "hidden": (16,)},
        {"method": "lossless"},
        {"effort": 1, "max_drop": 3.0, "task": Careless()},
        {"effort": 1, "max_drop": 3.0, "task": Careless(), "refine": "off"},
        {"effort": 1, "ratio": 7.0, "refine": "on", "task": Toy()},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items() if name != "task"),
)
def test_one_archive_at_any_load_and_with_any_threads(
    options: dict[str, Any], trained: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors = trained if "task" in options else scaled_in_blocks()
    digests = []
    for threads, n_others in ((1, 0), (2, 0), (2, 2)):
        with torch_threads(threads), busy(n_others):
            torch.rand(threads)  # the state of the global generator is another each time
            path = tmp_path / f"{threads}-{n_others}.wcz"
            wcompress.pack(tensors, path, threads=threads, device="cpu", **options)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(set(digests)) == 1


def test_a_tasks_code_sees_the_same_random_numbers_and_disturbs_none() -> None:
    task = as_task(Careless())
    torch.manual_seed(5)
    first = list(task.calibration())
    following = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), following)
    batches = task.calibration()
    second = []
    for batch in batches:
        torch.rand(7)  # drawn by others between two batches
        second.append(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_follow_from_the_model_and_never_from_time() -> None:
    small, large = (
        step_cost(torch.nn.Sequential(torch.nn.Linear(64, n), torch.nn.Linear(n, 64)), torch.zeros(128, 64), 128 * n)
        for n in (64, 4096)
    )
    assert small < large
    for effort in range(1, 10):
        steps = [n_steps(effort, cost) for cost in (1.0, 1e8, 1e10, 1e30)]
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] >= 7
    assert n_steps(5, small) > n_steps(1, small)


@pytest.mark.parametrize("refine", ["on", "off"])
def test_a_time_limit_ends_the_work_and_says_so(refine: str, trained: dict[str, Tensor], tmp_path: Path) -> None:
    result = wcompress.pack(
        trained, tmp_path / "a.wcz", task=Toy(), max_drop=3.0, refine=refine, effort=5, device="cpu", time_limit=1e-3
    )
    assert any("time limit of 0.001 s" in line for line in result.warnings)
    assert result.to_json()["warnings"] == list(result.warnings)
    assert wcompress.verify(result.archive).ok


def test_no_limit_no_warning(trained: dict[str, Tensor], tmp_path: Path) -> None:
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=Toy(), max_drop=3.0, effort=1, device="cpu")
    assert not any("time limit" in line for line in result.warnings)


def test_a_task_that_draws_its_split_while_it_is_loaded_draws_the_same(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import random, numpy, torch\nfrom tests.test_refine import Toy\ntask = Toy()\n"
        "task.name = f'{random.random()} {numpy.random.rand()} {torch.rand(())}'\n"
    )
    names = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        names.append(load_task(str(tmp_path / "task.py")).name)
    assert names[0] == names[1]
