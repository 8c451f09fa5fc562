"""Writes the golden archives of methods that have none. An old one is never written again.

    python tests/vectors/make_golden.py

An archive's expected content is stored beside it as a plain .pt file.
"""

from __future__ import annotations

from pathlib import Path

import torch

import wcompress
from wcompress.codec.container.manifest import METHOD_VERSIONS

FOLDER = Path(__file__).parent


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


def main() -> None:
    """Write archive and expected content."""
    for method, version in METHOD_VERSIONS.items():
        archive = FOLDER / f"v{version}-{method}.wcz"
        if archive.exists():
            continue
        wcompress.pack(
            golden_tensors(),
            archive,
            method=method,
            block_size=64,
            latent_dim=4,
            hidden=(8,),
            effort=5,
            device="cpu",
        )
        restored = {name: tensor.clone() for name, tensor in wcompress.load(archive).items()}
        torch.save(restored, archive.with_suffix(".pt"))


if __name__ == "__main__":
    main()
