"""Elements of tensors as bytes and as floats: what every way of keeping a tensor shares."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from wcompress.checkpoint import dtype_from_name
from wcompress.codec.container.manifest import CODED_DTYPES, TensorEntry
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes, computable, same_bits


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A contiguous CPU tensor's elements in row-major order, little-endian."""
    return as_bytes(tensor).numpy().tobytes() if tensor.numel() else b""


def tensor_from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Undo `tensor_bytes`; `data` has as many bytes as shape and dtype need."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


def round_to_dtype(values: npt.NDArray[np.float64], dtype: torch.dtype) -> torch.Tensor:
    """float64 → a float dtype: clamped to its finite range, rounded to float32 first, then to the dtype.

    The order of the steps is part of the format: it makes the result the same everywhere.
    """
    if dtype == torch.float64:
        return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))
    limit = np.float32(torch.finfo(dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.array(values, dtype=np.float32, order="C")
    # By numpy, since torch in a thread of ours would have threads of its own, which wait busily.
    # The limit is a float32, so that it makes no difference which comes first, clamping or rounding to float32.
    return torch.from_numpy(np.clip(single, -limit, limit, out=single)).to(dtype)


def as_float16(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a float tensor of any dtype rounded to float16, to nearest, in its own dtype; contiguous.

    What is beyond float16 becomes infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        half = torch.from_numpy(np.array(computable(tensor).numpy().astype(np.float16), order="C"))
    return half.to(tensor.dtype).reshape(tensor.shape)


def is_as_float16(original: torch.Tensor, restored: torch.Tensor) -> bool:
    """Whether a restored tensor is the original, of any dtype, rounded to float16."""
    dtype = str(original.dtype).removeprefix("torch.")
    return dtype in CODED_DTYPES and same_bits(as_float16(original), restored)


def entry_of(name: str, tensor: torch.Tensor, kind: str = "coded") -> TensorEntry:
    """The entry of a tensor that is no tie."""
    return TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), kind)


def entry_dtype(entry: TensorEntry) -> torch.dtype:
    """The dtype of a manifest entry.

    Raises:
        ArchiveError: this torch has no such dtype.
    """
    try:
        return dtype_from_name(entry.dtype)
    except (KeyError, ValueError) as error:
        raise ArchiveError(
            f"tensor {entry.name!r}: unknown dtype {entry.dtype!r}; update torch or wcompress"
        ) from error


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous CPU tensor of any values.

    numpy asks for large pages where there are some, which makes the first writing to them several times as fast.

    Raises:
        ArchiveError: there is no memory for it.
    """
    n = math.prod(shape)
    if not n:
        return torch.empty(shape, dtype=dtype)
    try:
        return torch.from_numpy(np.empty(n * dtype.itemsize, np.uint8)).view(dtype).view(shape)
    except (MemoryError, ValueError) as error:
        raise ArchiveError(f"no memory for a tensor of {n} elements; restore fewer tensors at once") from error
