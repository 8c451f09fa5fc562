"""Names and shapes of all tensors of a model, one shard at a time, without its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wcompress.checkpoint import read_checkpoint
from wcompress.checkpoint.messages import condensed, damaged, listed, shown, unsupported
from wcompress.checkpoint.tensors import check_name, n_bytes
from wcompress.directories.source import Shard, Source

_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorHeader:
    """What a shard says of one tensor, without its numbers.

    Attributes:
        name: in the model.
        shape: its sizes.
        is_float: its numbers are floating-point.
        n_bytes: elements times their size.
    """

    name: str
    shape: tuple[int, ...]
    is_float: bool
    n_bytes: int


@dataclass(frozen=True)
class ModelHeaders:
    """All tensors of a model folder.

    Attributes:
        tensors: in the order of the index, or of the file of a model in one.
    """

    tensors: tuple[TensorHeader, ...]

    @property
    def n_params(self) -> int:
        """Elements of the floating-point tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors if tensor.is_float)

    @property
    def original_bytes(self) -> int:
        """Elements times their size over every tensor."""
        return sum(tensor.n_bytes for tensor in self.tensors)


def shapes(tensors: Sequence[TensorHeader]) -> dict[str, torch.Tensor]:
    """Name → tensor without memory, of the same shape, floating-point or not as the model's is."""
    return {
        tensor.name: torch.empty(tensor.shape, dtype=torch.float32 if tensor.is_float else torch.int64, device="meta")
        for tensor in tensors
    }


def read_headers(source: Source, *, strict: bool = False) -> ModelHeaders:
    """The headers of all shards, which must hold the very tensors that the index says.

    Args:
        source: the model folder.
        strict: see `read_checkpoint`.

    Raises:
        CheckpointError: a shard is damaged, or index and shards are of different models.
    """
    whole: dict[str, TensorHeader] = {}
    for shard in source.shards:
        found = {tensor.name: tensor for tensor in read_header(shard, strict=strict)}
        if source.weight_map is not None:
            expected = [name for name, home in source.weight_map.items() if home == shard.name]
            check_agreement(shown(source.folder / (source.weight_index or "")), shard.name, expected, found)
        whole.update(found)
    order = whole if source.weight_map is None else source.weight_map
    return ModelHeaders(tuple(whole[name] for name in order))


def check_agreement(where: str, shard: str, expected: Sequence[str], found: Mapping[str, object]) -> None:
    """Checks that a shard holds the tensors that the index gives it, and no others.

    Raises:
        CheckpointError: it does not.
    """
    missing = [name for name in expected if name not in found]
    wanted = set(expected)
    stray = [name for name in found if name not in wanted]
    if missing:
        raise damaged(
            where,
            f"its shard '{shown(shard)}' does not hold {listed(missing)}; index and shards are of different models",
        )
    if stray:
        raise damaged(
            where,
            f"its shard '{shown(shard)}' holds {listed(stray)}, which the index does not place there;"
            " index and shards are of different models",
        )


def read_header(shard: Shard, *, strict: bool = False) -> list[TensorHeader]:
    """The tensors of one shard, in the order of its file.

    Raises:
        CheckpointError: it is damaged, or holds no tensors.
    """
    if shard.format == "safetensors":
        return _read_safetensors(shard.path)
    tensors = read_checkpoint(shard.path, strict=strict).tensors
    return [
        TensorHeader(name, tuple(tensor.shape), tensor.is_floating_point(), n_bytes(tensor))
        for name, tensor in tensors.items()
    ]


def _read_safetensors(path: Path) -> list[TensorHeader]:
    where = shown(path)
    try:
        with safe_open(path, framework="pt", device="cpu"), path.open("rb") as stream:  # which checks the header
            length = int.from_bytes(stream.read(8), "little")
            pairs = json.loads(stream.read(length), object_pairs_hook=list)
        rows = [(name, dict(row)) for name, row in pairs if name != _METADATA]
        spans = [(name, row["data_offsets"], row["dtype"], tuple(row["shape"])) for name, row in rows]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(
            where, f"cannot be read as safetensors ({condensed(error)}); copy or download it again"
        ) from error
    if not spans:
        raise unsupported(where, "holds no tensors")
    if len({name for name, *_ in spans}) != len(spans):
        raise damaged(where, "names a tensor twice")
    return [
        # Codes of floats are F64, F32, F16, F8_E4M3 and the like, and BF16; complex numbers are C64.
        TensorHeader(check_name(name, where), shape, dtype.startswith(("F", "BF")), end - start)
        for name, (start, end), dtype, shape in sorted(spans, key=lambda span: span[1][0])
    ]
