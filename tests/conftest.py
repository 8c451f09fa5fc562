"""What the tests share: small models, and no network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from wcompress.cli import run
from wcompress.codec.options import PackOptions

torch.set_num_threads(1)  # the tests' networks are so small that a second thread only waits

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("wcompress", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wcompress")

SMALL = PackOptions(method="paper", block_size=64, latent_dim=4, hidden=(16,), effort=1, device="cpu")
"""A VAE that trains in a fraction of a second."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("WCOMPRESS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.node.get_closest_marker("mnist") is None:
        monkeypatch.delenv("WCOMPRESS_DATA", raising=False)
    elif not os.environ.get("WCOMPRESS_DATA"):
        pytest.skip("needs real MNIST: set WCOMPRESS_DATA")


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder: its arguments → exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Every kind of tensor a checkpoint may hold: 0-d, empty, tied, integer, half, complex, not finite."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    embedding = normal(10, 8)
    return {
        "embedding.weight": embedding,
        "conv.weight": normal(4, 3, 3, 3).permute(1, 0, 2, 3),
        "conv.bias": 1e-3 * normal(4),
        "norm.running_var": 1e4 * normal(4).square(),
        "norm.num_batches_tracked": torch.tensor(7),
        "half": normal(5, 5).half(),
        "brain": normal(5, 5).bfloat16(),
        "double": normal(3, 3).double(),
        "eighth": normal(8, 4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(0.25),
        "empty": torch.empty(0, 3),
        "mask": torch.tensor([[True, False], [False, True]]),
        "phase": torch.complex(normal(3), normal(3)),
        "zeros": torch.zeros(6, 6),
        "broken": torch.tensor([[1.0, float("nan")], [float("inf"), -0.0]]),
        "head.weight": embedding,
    }


@pytest.fixture
def checkpoint(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """The same as a .pt file."""
    path = tmp_path / "model.pt"
    torch.save(tensors, path)
    return path
