"""Tensors → a `.safetensors` or `.pt` file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from wcompress.checkpoint import state_metadata
from wcompress.checkpoint.messages import condensed, shown, unsupported, usage, without_known_warnings
from wcompress.checkpoint.tensors import MemoryKey, check_name, dtype_name, memory_key, n_bytes, plain
from wcompress.errors import OptionError
from wcompress.files import not_written

# What the safetensors format has a code for.
_SAFETENSORS_DTYPES = frozenset(
    (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        "float4_e2m1fn_x2",
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "complex64"),
    )
)
# Two elements to a byte: the format counts them one by one along the last dimension, so that there must be one.
_PACKED_DTYPE = "float4_e2m1fn_x2"
_RESERVED = "__metadata__"
_OTHERWISE = "write this model with --format pt"


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    format: Literal["safetensors", "pt"],
    metadata: Mapping[str, str] | None = None,
    versions: state_metadata.Versions | None = None,
) -> None:
    """Writes named tensors to the file at `path`, replacing it.

    Same tensors, same bytes, whatever the file is called. `pt` keeps the order of the names and lets tied
    tensors share their memory; safetensors has an order of its own and stores a tied tensor under each name.

    Args:
        path: Where to write. Not atomic: a caller who wants all or nothing renames a temporary file.
        tensors: Name → tensor of any shape, on any device.
        format: `safetensors`, or `pt` for a dict that `torch.load(weights_only=True)` reads.
        metadata: Text for the safetensors header, by default `{"format": "pt"}`. Not kept in a `pt` file.
        versions: Of the model's modules: what `state_dict()._metadata` says. A `pt` file then holds an `OrderedDict`
            that has them; in a safetensors header they are one more text.

    Raises:
        UnsupportedCheckpoint: A tensor cannot be stored, or not in this format (exit code 2).
        OutputError: The file cannot be written.
        OptionError: `format` is neither of the two.
    """
    if format not in ("safetensors", "pt"):
        raise OptionError(f"unknown format '{shown(format)}'; expected 'safetensors' or 'pt'")
    target = Path(os.fsdecode(path))
    where = shown(target)
    named = {check_name(name, where): plain(name, tensor, where) for name, tensor in tensors.items()}
    try:
        if format == "pt":
            _write_pt(target, named, versions)
        else:
            header = {"format": "pt"} if metadata is None else dict(metadata)
            if versions:
                # In full, for the file does not keep the order of the names.
                header[state_metadata.KEY] = json.dumps(versions, separators=(",", ":"))
            _write_safetensors(target, named, header, where)
    except (OSError, SafetensorError) as error:
        raise not_written(where, error) from error


def _write_safetensors(target: Path, named: dict[str, torch.Tensor], metadata: dict[str, str], where: str) -> None:
    if _RESERVED in named:
        problem = f"safetensors keeps the name '{_RESERVED}' for itself"
        raise usage(unsupported(where, f"{problem}; {_OTHERWISE}"))
    separate: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        if dtype_name(tensor.dtype) not in _SAFETENSORS_DTYPES:
            problem = f"tensor '{shown(name)}' has dtype {dtype_name(tensor.dtype)}, which safetensors cannot hold"
            raise usage(unsupported(where, f"{problem}; {_OTHERWISE}"))
        if dtype_name(tensor.dtype) == _PACKED_DTYPE and tensor.ndim == 0:
            problem = f"tensor '{shown(name)}' of dtype {_PACKED_DTYPE} has no dimension, which safetensors cannot hold"
            raise usage(unsupported(where, f"{problem}; {_OTHERWISE}"))
        # The library refuses names that share memory. Only the second name needs a copy of its own.
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in storages else tensor
        storages.add(address)
    target.touch()
    mode = target.stat().st_mode
    try:
        save_file(separate, target, metadata=metadata)
    except KeyError as error:  # an older library knows fewer dtypes
        problem = f"this version of safetensors cannot hold {condensed(error)}"
        raise usage(unsupported(where, f"{problem}; {_OTHERWISE}")) from error
    # Some versions of the library put a new file in place that only its owner can read.
    target.chmod(stat.S_IMODE(mode))


def _write_pt(target: Path, named: dict[str, torch.Tensor], versions: state_metadata.Versions | None) -> None:
    whole: dict[str, torch.Tensor] = state_metadata.attached({}, versions)
    written: dict[MemoryKey, torch.Tensor] = {}
    with without_known_warnings():
        for name, tensor in named.items():
            key = memory_key(tensor)
            if key is not None and key in written:
                whole[name] = written[key]
                continue
            # torch.save stores a view's whole storage: a slice would bring along everything it was cut from.
            fits = tensor.untyped_storage().nbytes() == n_bytes(tensor)
            whole[name] = tensor if fits else tensor.clone()
            if key is not None:
                written[key] = whole[name]
        save_torch(target, whole)


def save_torch(path: Path, content: Any) -> None:
    """`torch.save`, of which the file's name is no part, and which fails with the cause.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        stream: Any = _Stream(file)
        torch.save(content, stream)
        stream.finish()


class _Stream:
    """What `torch.save` writes to. Its writer turns what a stream raises into an error about its own state.

    So it hears of no failure, and whoever called it does afterwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self._failure is None:
            try:
                self._file.write(data)
            except BaseException as error:
                self._failure = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """The file is flushed when it is closed."""

    def finish(self) -> None:
        """Raise what writing raised."""
        if self._failure is not None:
            raise self._failure
