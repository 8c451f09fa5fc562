"""Small model folders as Hugging Face lays them out, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FAST: dict[str, Any] = {"effort": 1, "threads": 1, "device": "cpu"}
LAYOUTS = [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 2)]


def tensors_of(n_layers: int, rows: int = 32) -> dict[str, torch.Tensor]:
    """Three tensors for each layer."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(n_layers):
        tensors[f"layers.{layer}.up.weight"] = 0.1 * torch.randn(rows, 40, generator=generator)
        tensors[f"layers.{layer}.down.weight"] = 0.1 * torch.randn(40, rows, generator=generator)
        tensors[f"layers.{layer}.bias"] = torch.randn(40, generator=generator)
    return tensors


def make_model(folder: Path, kind: str, n_shards: int, rows: int = 32) -> Path:
    """A model folder with a layer in each shard, and side files.

    Args:
        folder: is made.
        kind: `safetensors` or `bin`.
        n_shards: 1 for a model in one file, without an index.
        rows: of each layer.
    """
    folder.mkdir()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(n_shards):
        name = f"{stem}.{kind}" if n_shards == 1 else f"{stem}-{number + 1:05d}-of-{n_shards:05d}.{kind}"
        shard = {k: v for k, v in tensors_of(n_shards, rows).items() if k.startswith(f"layers.{number}.")}
        if kind == "safetensors":
            save_file(shard, folder / name, metadata={"format": "pt", "made by": "a test"})
        else:
            torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    if n_shards > 1:
        index = {"metadata": {"total_size": 123}, "weight_map": weight_map}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index, indent=3))
    for name, text in (
        ("config.json", '{"hidden_size": 40}\n'),
        ("1_Pooling/config.json", "{}"),
        ("tokenizer/vocab.txt", "ä\r\nb"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name → bytes of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
