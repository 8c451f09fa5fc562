"""Writes the golden archives of methods that have none. An old one is never written again.

    python tests/vectors/make_golden.py

An archive's expected content is stored beside it as a plain .pt file.
"""

from __future__ import annotations

from pathlib import Path

import torch

import wcompress
from wcompress.codec.container import groups
from wcompress.codec.container.manifest import GROUPED_VERSION, METHOD_VERSIONS, QUICK_VERSION

FOLDER = Path(__file__).parent
QUICK_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def golden_tensors() -> dict[str, torch.Tensor]:
    """One of every kind."""
    generator = torch.Generator().manual_seed(20)
    weight = torch.randn(24, 20, generator=generator)
    return {
        "first.weight": weight,
        "first.bias": 0.01 * torch.randn(24, generator=generator),
        "half.weight": torch.randn(9, 9, generator=generator).half(),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "double": torch.randn(3, 2, generator=generator).double(),
        "steps": torch.tensor(12),
        "mask": torch.tensor([True, False, True]),
        "broken": torch.tensor([float("nan"), 1.0]),
        "tied.weight": weight,
    }


def grouped_tensors() -> dict[str, torch.Tensor]:
    """The same with larger ones, which are cut into slabs."""
    generator = torch.Generator().manual_seed(21)
    long = torch.randn(5000, generator=generator)
    table = 0.1 * torch.randn(90, 30, generator=generator)
    table[70, 3], table[2, 2] = float("inf"), 400.0
    return golden_tensors() | {"table": table, "long": long, "numbers": torch.arange(2500), "tied.long": long}


def quick_tensors() -> dict[str, torch.Tensor]:
    """The same, and floats of every kind that are written for speed."""
    generator = torch.Generator().manual_seed(22)
    found = {
        str(d).removeprefix("torch."): (torch.pi * torch.randn(70, 60, generator=generator).double()).to(d)
        for d in QUICK_DTYPES
    }
    found["bfloat16"][3, 4], found["float32"][0, 0] = float("inf"), -0.0
    return golden_tensors() | found


def write(name: str, tensors: dict[str, torch.Tensor], method: str, effort: int = 5) -> None:
    """An archive and its expected content, unless they are there."""
    archive = FOLDER / f"{name}.wcz"
    if archive.exists():
        return
    wcompress.pack(
        tensors, archive, method=method, block_size=64, latent_dim=4, hidden=(8,), effort=effort, device="cpu"
    )
    restored = {name: tensor.clone() for name, tensor in wcompress.load(archive).items()}
    torch.save(restored, archive.with_suffix(".pt"))


def main() -> None:
    """Write what is missing."""
    for method, version in METHOD_VERSIONS.items():
        write(f"v{version}-{method}", golden_tensors(), method)
    write(f"v{QUICK_VERSION}-lossless", quick_tensors(), "lossless", effort=1)
    groups.MOST_TOGETHER, groups.GROUP_SIZE = 0, 1000
    write(f"v{QUICK_VERSION}-groups", quick_tensors(), "lossless", effort=1)
    for method in ("vae", "lossless"):
        write(f"v{GROUPED_VERSION}-{method}", grouped_tensors(), method)


if __name__ == "__main__":
    main()
