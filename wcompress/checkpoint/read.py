"""A checkpoint file, or a mapping → ordered named tensors."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wcompress.checkpoint.messages import (
    condensed,
    damaged,
    listed,
    shown,
    unsafe,
    unsupported,
    without_known_warnings,
)
from wcompress.checkpoint.select import select
from wcompress.checkpoint.sniff import Kind, check_zip, recognise
from wcompress.checkpoint.tensors import (
    MemoryKey,
    check_name,
    check_tensor,
    memory_key,
    n_bytes,
    plain,
)
from wcompress.errors import CheckpointError

# Views let a tiny file claim tensors of any size. No real model repeats its bytes a hundredfold.
_EXPANSION = 100
_EXPANSION_FLOOR_BYTES = 64 << 20

# torch's refusals that name what the pickle wanted.
_WANTED = (
    re.compile(r"GLOBAL\s+([^\s]+)"),
    re.compile(r"reduce for unrecognized function (<.*?>|[^\s]+)"),
    re.compile(r"allowlisted via `add_safe_globals`,? but got (<class '[^']*'>)"),
    re.compile(r"``(torch\.[\w.]+)``.* must be imported"),
)
_OPERAND = re.compile(r"Unsupported operand (\d+)")
# Opcodes that only pickle protocol 4 and later have: pickle.SHORT_BINUNICODE … pickle.READONLY_BUFFER.
_PROTOCOL_4 = range(0x8C, 0x99)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a model, in the order of its file.

    Attributes:
        tensors: Name → values of any shape and dtype: plain `torch.Tensor`, detached, on the CPU, contiguous.
        ties: Later name → earlier name, where both were the very same tensor. They share one object.
        source: The file's name without folders; empty for a mapping.
        left_out: Names of what was there and not taken, such as `optimizer_states` or `epoch`.
        metadata: The text in a safetensors header; else empty.
        shards: The files that an index names.
    """

    tensors: dict[str, torch.Tensor]
    ties: dict[str, str]
    source: str
    left_out: tuple[str, ...]
    metadata: dict[str, str]
    shards: tuple[Path, ...] = ()

    @property
    def n_params(self) -> int:
        """Elements of the floating-point tensors, tied ones counted under each name."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())

    @property
    def original_bytes(self) -> int:
        """Elements times their size over every tensor, tied ones counted under each name."""
        return sum(n_bytes(tensor) for tensor in self.tensors.values())


@dataclass
class _Content:
    """What one file held, tensors not yet checked."""

    tensors: dict[str, torch.Tensor]
    left_out: list[str]
    metadata: dict[str, str]
    size_bytes: int
    shards: tuple[Path, ...] = ()


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor], *, key: str | None = None
) -> Checkpoint:
    """Reads a model's tensors without running any code that its file carries.

    Read are files of `torch.save` (zip and legacy), `.safetensors`, and the index of a model in shards
    (`*.index.json`), each recognised by its bytes. The tensors may be mapped from the file, so it must not be
    overwritten in place while they are in use; from a mapping, plain tensors share the caller's memory.

    Args:
        source: A file's path, or a mapping such as `model.state_dict()`.
        key: The top-level entry that holds the weights, where there are several; see `select`.

    Returns:
        The tensors in the file's order; see `Checkpoint`.

    Raises:
        UnsafeCheckpoint: Reading the file would need code to be run.
        UnsupportedCheckpoint: It is of another kind, holds no named tensors or ones that cannot be stored, or
            it is not clear which are meant.
        CheckpointError: The file is damaged; or, with exit code 2, it is not there or cannot be opened.
    """
    given: object = source
    if isinstance(given, torch.nn.Module):
        raise unsupported("the model", "is a torch.nn.Module; pass model.state_dict()")
    if not isinstance(given, (str, os.PathLike, Mapping)):
        kind_given = condensed(type(given).__name__)
        raise unsupported("the source", f"is of type {kind_given}; pass a path or a mapping of names to tensors")
    if isinstance(source, Mapping):
        where = "the mapping"
        tensors, left_out = select(source, key=key, where=where)
        return _checkpoint(_Content(tensors, left_out, {}, 0), "", where, limit_bytes=None)
    path = Path(os.fsdecode(source))
    kind = recognise(path)
    content = _read_shards(path, key) if kind is Kind.SHARD_INDEX else _read_file(path, kind, key)
    return _checkpoint(
        content,
        os.fsencode(path.name).decode("utf-8", "replace"),
        shown(path),
        limit_bytes=_limit_bytes(content.size_bytes),
    )


def _limit_bytes(size_bytes: int) -> int:
    return _EXPANSION_FLOOR_BYTES + _EXPANSION * size_bytes


def _checkpoint(content: _Content, source: str, where: str, *, limit_bytes: int | None) -> Checkpoint:
    """Makes the tensors plain and finds the tied ones."""
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    first_name: dict[MemoryKey, str] = {}
    n_distinct_bytes = 0
    for name, tensor in content.tensors.items():
        check_tensor(name, tensor, where)
        memory = memory_key(tensor)
        if memory is not None and memory in first_name:
            ties[name] = first_name[memory]
            tensors[name] = tensors[ties[name]]
            continue
        n_distinct_bytes += n_bytes(tensor)
        if limit_bytes is not None and n_distinct_bytes > limit_bytes:
            problem = f"tensor '{shown(name)}' brings the total to {n_distinct_bytes} bytes"
            raise damaged(where, f"{problem}, from a file of {content.size_bytes} bytes; its shapes cannot be right")
        tensors[name] = plain(name, tensor, where)
        if memory is not None:
            first_name[memory] = name
    return Checkpoint(tensors, ties, source, tuple(content.left_out), content.metadata, content.shards)


def _read_file(path: Path, kind: Kind, key: str | None) -> _Content:
    """Reads one file that is not an index."""
    size_bytes = path.stat().st_size
    if kind is Kind.SAFETENSORS:
        _refuse_key(key, shown(path))
        tensors, metadata = _read_safetensors(path)
        return _Content(tensors, [], metadata, size_bytes)
    tensors, left_out = select(_torch_load(path, kind, size_bytes), key=key, where=shown(path))
    return _Content(tensors, left_out, {}, size_bytes)


def _refuse_key(key: str | None, where: str) -> None:
    if key is not None:
        raise unsupported(where, f"has no entries to choose '{shown(key)}' from; leave out `key` (--key)")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    where = shown(path)
    tensors: dict[str, torch.Tensor] = {}
    try:
        with without_known_warnings(), safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            for name in _names_by_offset(path):
                tensors[check_name(name, where)] = file.get_tensor(name)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        # The library's own error for the file, torch's for a dtype or shape that this version does not know.
        raise damaged(
            where, f"cannot be read as safetensors ({condensed(error)}); copy or download it again"
        ) from error
    if not tensors:
        raise unsupported(where, "holds no tensors")
    return tensors, metadata


def _names_by_offset(path: Path) -> list[str]:
    """Returns the names in a safetensors file in the order of their data.

    Done here because older versions of the library list them alphabetically. The file must have been checked.
    """
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


def _torch_load(path: Path, kind: Kind, size_bytes: int) -> object:
    """Unpickles with torch's restricted unpickler. A refusal is final: nothing here loads a file unsafely."""
    where = shown(path)
    # Mapping needs a name, and torch judges a file called .safetensors by that name.
    by_name = path.suffix != ".safetensors" and _is_utf8(str(path))
    mapped = kind is Kind.TORCH_ZIP and check_zip(path, _limit_bytes(size_bytes)) and by_name
    try:
        with without_known_warnings():
            if mapped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        raise _refusal(error, where) from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refusal(error: Exception, where: str) -> CheckpointError:
    """Turns torch's many lines into one: what the file wanted, or that it is damaged."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        wanted = next((match[1] for pattern in _WANTED if (match := pattern.search(text))), None)
        if wanted is not None:
            advice = "load it where you trust it and save only model.state_dict()"
            return unsafe(where, f"needs {condensed(wanted)}, which could run code, to be loaded; {advice}")
        operand = _OPERAND.search(text)
        if operand is not None and int(operand[1]) in _PROTOCOL_4:
            advice = "save it again with torch.save and its default protocol"
            return unsupported(where, f"uses pickle protocol 4 or newer, which is not read safely; {advice}")
        if operand is not None:
            text = f"unknown pickle instruction {operand[1]}"
    # The restricted unpickler puts its advice to load unsafely before the reason; the reason follows a colon.
    text = text.rpartition("WeightsUnpickler error:")[2] or text
    return damaged(where, f"is damaged ({condensed(text) or type(error).__name__}); copy or download it again")


def _read_shards(path: Path, key: str | None) -> _Content:
    """Reads the shards that an index names, from the index's own folder, in the index's order."""
    where = shown(path)
    _refuse_key(key, where)
    shard_of = _weight_map(path)
    shards = list(dict.fromkeys(shard_of.values()))
    _check_shard_names(shards, where)
    held: dict[str, dict[str, torch.Tensor]] = {}
    content = _Content({}, [], {}, path.stat().st_size, tuple(path.with_name(shard) for shard in shards))
    for shard in shards:
        shard_path = path.with_name(shard)
        if not shard_path.is_file():
            raise damaged(where, f"its shard '{shown(shard)}' is missing; put all shards beside the index")
        kind = recognise(shard_path)
        if kind is Kind.SHARD_INDEX:
            raise unsupported(where, f"its shard '{shown(shard)}' is itself an index; give the innermost one")
        part = _read_file(shard_path, kind, None)
        held[shard] = part.tensors
        content.left_out += part.left_out
        content.left_out += [shown(name) for name in part.tensors if shard_of.get(name) != shard]
        content.metadata = part.metadata | content.metadata
        content.size_bytes += part.size_bytes
    for name, shard in shard_of.items():
        if name not in held[shard]:
            problem = f"its shard '{shown(shard)}' does not hold tensor '{shown(name)}'"
            raise damaged(where, f"{problem}; index and shards are of different models")
        content.tensors[check_name(name, where)] = held[shard][name]
    return content


def _weight_map(path: Path) -> dict[str, str]:
    where = shown(path)
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(where, f"cannot be read as an index of shards ({condensed(error)})") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(where, "its weight_map names no tensors")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise damaged(where, "its weight_map must give the name of a file for every tensor")
    return weight_map


def _check_shard_names(shards: Iterable[str], where: str) -> None:
    """Refuses names that would make the index read files outside its own folder."""
    outside = [name for name in shards if name in ("", ".", "..") or re.search(r"[/\\:\x00]", name)]
    if outside:
        raise unsafe(where, f"names shards outside its own folder, {listed(outside)}; only plain file names are read")
