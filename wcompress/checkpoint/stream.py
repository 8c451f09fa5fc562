"""Writing a `.safetensors` file part by part, so that the model need not be in memory.

Source: the format's description in https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch

from wcompress.checkpoint.messages import shown, unsupported, usage
from wcompress.checkpoint.tensors import check_name
from wcompress.files import not_written

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
"""Dtypes, by torch's name without `torch.`, and the format's name for each."""

_ALIGNMENT = 8


class SafetensorsStream:
    """A `.safetensors` file whose tensors are written in any order, a part at a time; a context manager.

    Args:
        path: of the file, which is replaced.
        tensors: name, dtype (a key of `CODES`) and shape of each.
        metadata: text for the header.

    Raises:
        UnsupportedCheckpoint: the format cannot hold a tensor (exit code 2).
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: Path, tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        self._where = shown(path)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        # Wide dtypes first, so that each tensor is aligned to its own size.
        at = 0
        for name, dtype, shape in sorted(tensors, key=lambda row: (-row[1].itemsize, row[0])):
            check_name(name, self._where)
            code = CODES.get(str(dtype).removeprefix("torch."))
            if code is None or name == "__metadata__":
                problem = f"tensor '{shown(name)}' cannot be stored as safetensors"
                raise usage(unsupported(self._where, f"{problem}; write this model with --format pt"))
            n_bytes = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + n_bytes]}
            self._offsets[name] = at
            at += n_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = 8 + len(text)
        try:
            self._file = path.open("wb")
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.truncate(self._start + at)
        except OSError as error:
            raise not_written(self._where, error) from error

    def write(self, name: str, first: int, tensor: torch.Tensor) -> None:
        """Writes part of a tensor.

        Args:
            name: of it.
            first: number of its elements, in row-major order, that lie before the part.
            tensor: the part, contiguous, on the CPU.
        """
        if not tensor.numel():
            return
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(self._start + self._offsets[name] + first * tensor.element_size(), os.SEEK_SET)
            self._file.write(data)
        except OSError as error:
            raise not_written(self._where, error) from error

    def __enter__(self) -> SafetensorsStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:
            if error is None:
                raise not_written(self._where, failure) from failure
