"""What anybody would try first, measured: encoded to bytes, decoded from those bytes, and scored.

Each baseline is a safetensors file, where it says so under zstd; what is needed to restore dtypes and shapes lies in
its header and is counted like everything else. What a baseline cannot hold with finite values is kept as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from wcompress.checkpoint import dtype_from_name, dtype_name
from wcompress.codec.storage.dtypes import round_to_dtype
from wcompress.evaluate import score
from wcompress.fidelity import as_bytes, is_finite
from wcompress.progress import Progress
from wcompress.tasks import Task

GROUP_SIZE = 64
"""Weights that share a scale in `int4`."""
ZSTD_LEVEL = 19

_SCALES = "__scales__"
_HEADER_KEY = "restore"
_HALF_MAX = 65504.0
# Dtypes that every safetensors release since 0.5 stores; others travel as bytes.
_PLAIN_DTYPES = frozenset(
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
)


@dataclass(frozen=True)
class BaselinePoint:
    """A baseline on one model.

    Attributes:
        name: one of `BASELINES`.
        n_bytes: everything a receiver needs.
        ratio: bytes of the model's tensors / n_bytes.
        score: of the decoded model, percent.
    """

    name: str
    n_bytes: int
    ratio: float
    score: float

    def to_json(self) -> dict[str, Any]:
        """The object in `report.json`."""
        return {"name": self.name, "ratio": self.ratio, "score": self.score, "archive_bytes": self.n_bytes}


def measure_baselines(
    tensors: Mapping[str, torch.Tensor], task: Task, *, progress: Progress | None = None
) -> list[BaselinePoint]:
    """Encode, decode and score a model with every baseline.

    Args:
        tensors: name → tensor, as `read_checkpoint` gives them; tied names share one object.
        task: scores the decoded model.
        progress: called after each baseline.

    Raises:
        TaskError: the weights do not fit the task, or its code fails.
    """
    original_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    points: list[BaselinePoint] = []
    for done, name in enumerate(BASELINES, start=1):
        data = encode(name, tensors)
        points.append(BaselinePoint(name, len(data), original_bytes / len(data), score(task, decode(name, data))))
        if progress is not None:
            progress(done, len(BASELINES), {"ratio": points[-1].ratio})
    return points


def encode(name: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """All bytes that `decode` needs.

    Args:
        name: one of `BASELINES`.
        tensors: name → contiguous CPU tensor of any dtype and shape.
    """
    store = BASELINES[name]
    stored: dict[str, torch.Tensor] = {}
    scales: list[torch.Tensor] = []
    how: dict[str, Any] = {}
    owners: dict[int, str] = {}
    for key, tensor in tensors.items():
        if id(tensor) in owners:
            how[key] = ["tie", owners[id(tensor)]]
            continue
        owners[id(tensor)] = key
        part = store(tensor) or _keep(tensor)
        stored[key] = part.values
        if part.how:
            how[key] = [part.how, dtype_name(tensor.dtype), list(tensor.shape)]
        if part.scales is not None:
            scales.append(part.scales)
    if scales:
        # In one tensor: a header entry for each scale would weigh more than the scale.
        stored[_scales_name(tensors)] = torch.cat(scales)
    header = {_HEADER_KEY: json.dumps(how, separators=(",", ":"))} if how else None
    data = save_safetensors({key: value.contiguous() for key, value in stored.items()}, metadata=header)
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data) if "zstd" in name else data


def decode(name: str, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors that `encode` stored, in their dtypes and shapes; safetensors orders the names its own way.

    Args:
        name: the baseline that made the bytes.
        data: what it made.
    """
    if "zstd" in name:
        data = zstandard.ZstdDecompressor().decompress(data)
    stored = load_safetensors(data)
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header]).get("__metadata__", {})
    how = json.loads(header.get(_HEADER_KEY, "{}"))
    scaled = any(kind in ("int8", "int4") for kind, *_ in how.values())
    scales = stored.pop(max((key for key in stored if key.startswith(_SCALES)), key=len)) if scaled else torch.empty(0)
    restored: dict[str, torch.Tensor] = dict(stored)
    used = 0
    for key, (kind, *rest) in how.items():
        if kind == "tie":
            continue
        dtype, shape = dtype_from_name(rest[0]), rest[1]
        numel = math.prod(shape)
        n_scales = {"int8": 1, "int4": -(-numel // GROUP_SIZE)}.get(kind, 0)
        part = _Stored(stored[key], kind, scales[used : used + n_scales])
        used += n_scales
        restored[key] = _unpack(part, numel, dtype).reshape(shape)
    for key, (kind, *rest) in how.items():
        if kind == "tie":
            restored[key] = restored[rest[0]]
    return restored


def _scales_name(tensors: Mapping[str, torch.Tensor]) -> str:
    """Longer than any tensor's name that starts like it."""
    taken = [len(name) for name in tensors if name.startswith(_SCALES)]
    return _SCALES.ljust(max(taken, default=0) + 1, "_") if taken else _SCALES


@dataclass(frozen=True)
class _Stored:
    """A tensor on its way: `how` is "" where dtype and shape are those of `values`."""

    values: torch.Tensor
    how: str = ""
    scales: torch.Tensor | None = None


def _keep(tensor: torch.Tensor) -> _Stored:
    """Bit for bit."""
    if dtype_name(tensor.dtype) in _PLAIN_DTYPES:
        return _Stored(tensor)
    return _Stored(as_bytes(tensor), "bytes")


def _half(tensor: torch.Tensor) -> _Stored | None:
    """fp64 and fp32 → fp16, or fp32 where fp16 would be infinite."""
    if tensor.dtype not in (torch.float64, torch.float32) or not is_finite(tensor):
        return None
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest <= _HALF_MAX:
        return _Stored(tensor.half(), "cast")
    return _Stored(tensor.float(), "cast") if largest <= torch.finfo(torch.float32).max else None


def _int8(tensor: torch.Tensor) -> _Stored | None:
    """One symmetric scale for the tensor: w ≈ q × max|w| / 127."""
    if not _is_matrix(tensor):
        return None
    w = tensor.double()
    largest = w.abs().max()
    scale = (largest / 127).float().reshape(1)
    if not torch.isfinite(scale).all() or (scale == 0) != (largest == 0):
        return None
    q = (w / scale.double().clamp_min(1e-300)).round().clamp(-127, 127).to(torch.int8)
    return _Stored(q, "int8", scale)


def _int4(tensor: torch.Tensor) -> _Stored | None:
    """Groups of 64 in memory order, an fp16 scale each, two weights to a byte: w ≈ q × max|w| / 7."""
    if not _is_matrix(tensor):
        return None
    w = torch.nn.functional.pad(tensor.double().reshape(-1), (0, -tensor.numel() % GROUP_SIZE)).reshape(-1, GROUP_SIZE)
    scales = (w.abs().amax(dim=1) / 7).half()
    if not torch.isfinite(scales).all():
        return None
    # Divided by the scale as it is stored; where that is zero, so is the group.
    q = (w / scales.double().clamp_min(1e-300)[:, None]).round().clamp(-7, 7)
    q = torch.where(scales[:, None] == 0, 0.0, q).to(torch.int8).reshape(-1)
    nibbles = (q + 8).to(torch.uint8)[: tensor.numel() + tensor.numel() % 2]
    return _Stored(nibbles[0::2] | nibbles[1::2] << 4, "int4", scales)


def _is_matrix(tensor: torch.Tensor) -> bool:
    wide = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return wide and tensor.ndim >= 2 and tensor.numel() > 0 and is_finite(tensor)


def _unpack(part: _Stored, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Flat tensor of `numel` elements in its own dtype."""
    values = part.values.reshape(-1)
    if part.how == "cast":
        return values.to(dtype)
    if part.how == "bytes":
        return values.clone().view(dtype) if numel else torch.empty(0, dtype=dtype)
    assert part.scales is not None
    scales = part.scales.double()
    if part.how == "int4":
        q = torch.stack([values & 15, values >> 4], dim=1).reshape(-1)[:numel].double() - 8
        scales = scales.repeat_interleave(GROUP_SIZE)[:numel]
    else:
        q = values.double()
    return round_to_dtype(np.asarray((q * scales).numpy()), dtype)


BASELINES: dict[str, Callable[[torch.Tensor], _Stored | None]] = {
    "fp16": _half,
    "int8": _int8,
    "int4": _int4,
    "zstd": _keep,
    "int8+zstd": _int8,
    "int4+zstd": _int4,
}
"""How each stores a tensor; None for one that it keeps as it is. A name with `zstd` compresses the whole file."""
