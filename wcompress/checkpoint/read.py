"""A checkpoint file, or a mapping → ordered named tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wcompress.checkpoint import state_metadata
from wcompress.checkpoint.folder import model_file
from wcompress.checkpoint.inert import TensorLike
from wcompress.checkpoint.messages import (
    condensed,
    damaged,
    listed,
    shown,
    unsafe,
    unsupported,
    usage,
    without_known_warnings,
)
from wcompress.checkpoint.pages import MappedPages
from wcompress.checkpoint.select import Selection, select
from wcompress.checkpoint.sharing import overlapping
from wcompress.checkpoint.sniff import Kind, recognise
from wcompress.checkpoint.tensors import MemoryKey, check_name, check_tensor, memory_key, n_bytes, plain
from wcompress.checkpoint.torch_file import limit_bytes, load_pickled
from wcompress.errors import CheckpointError

_SHOWN_OVERLAPS = 6


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a model, in the order of its file.

    Attributes:
        tensors: Name → values of any shape and dtype: plain `torch.Tensor`, detached, on the CPU, contiguous.
        ties: Later name → earlier name, where both were the very same tensor. They share one object.
        source: The file's name without folders; empty for a mapping.
        left_out: Names of what was there and not taken, such as `optimizer_states` or `epoch`.
        metadata: The text in a safetensors header, and, under `state_metadata.KEY`, the versions of the modules.
        shards: The files that an index names, or the file that was read in a folder.
        left_out_tensors: Those of `left_out` that hold tensors.
        notes: One line for each thing that is not kept as it was, such as an array that became a tensor.
    """

    tensors: dict[str, torch.Tensor]
    ties: dict[str, str]
    source: str
    left_out: tuple[str, ...]
    metadata: dict[str, str]
    shards: tuple[Path, ...] = ()
    left_out_tensors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _mapped: MappedPages = field(default_factory=MappedPages, repr=False)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Lets go of the memory of a tensor that is mapped from its file; it is read again when it is looked at.

        Args:
            name: Of the tensor.
            start, stop: Which indices of its first dimension; all by default.
        """
        tensor = self.tensors[name]
        self._mapped.release(tensor[start:stop] if tensor.ndim and (start or stop is not None) else tensor)

    @property
    def n_params(self) -> int:
        """Elements of the floating-point tensors, tied ones counted under each name."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())

    @property
    def original_bytes(self) -> int:
        """Elements times their size over every tensor, tied ones counted under each name."""
        return sum(n_bytes(tensor) for tensor in self.tensors.values())


@dataclass
class _Source:
    """What one file held, tensors not yet checked."""

    selection: Selection
    metadata: dict[str, str]
    size_bytes: int
    shards: tuple[Path, ...] = ()


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor], *, key: str | None = None, strict: bool = False
) -> Checkpoint:
    """Reads a model's tensors without running any code that its file carries.

    Read are files of `torch.save` (zip and legacy), plain pickles, `.safetensors`, and the index of a model in
    shards (`*.index.json`), each recognised by its bytes, and folders with one of them. What a pickle holds beside
    tensors is neither imported nor run. The tensors may be mapped from the file, so it must not be
    overwritten in place while they are in use; from a mapping, plain tensors share the caller's memory.

    Args:
        source: A path, or a mapping such as `model.state_dict()`.
        key: The entry that holds the weights, where there are several; see `select`.
        strict: Refuse a pickle that holds anything but what `torch.load(weights_only=True)` takes.

    Returns:
        The tensors in the file's order; see `Checkpoint`.

    Raises:
        UnsafeCheckpoint: It calls what only an attack calls; with `strict`, anything that could run code.
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
        return _checkpoint(_Source(select(source, key=key, where=where), {}, 0), "", where, limit=None)
    path = Path(os.fsdecode(source))
    inside = _file_in(path)
    kind = recognise(inside)
    content = _read_shards(inside, key, strict) if kind is Kind.SHARD_INDEX else _read_file(inside, kind, key, strict)
    if inside != path:
        content.shards = (inside, *content.shards)
    return _checkpoint(
        content,
        os.fsencode(inside.name).decode("utf-8", "replace"),
        shown(inside),
        limit=limit_bytes(content.size_bytes),
        files=(inside, *content.shards),
    )


def _file_in(path: Path) -> Path:
    try:
        return model_file(path) if path.is_dir() else path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise usage(CheckpointError(f"{shown(path)}: cannot be read: {condensed(reason)}")) from error


def _checkpoint(
    content: _Source, source: str, where: str, *, limit: int | None, files: tuple[Path, ...] = ()
) -> Checkpoint:
    """Makes the tensors plain and finds the tied ones."""
    found = content.selection
    given = {name: check_tensor(name, tensor, where) for name, tensor in found.tensors.items()}
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    first_name: dict[MemoryKey, str] = {}
    n_distinct_bytes = 0
    for name, tensor in given.items():
        memory = memory_key(tensor)
        if memory is not None and memory in first_name:
            ties[name] = first_name[memory]
            tensors[name] = tensors[ties[name]]
            continue
        n_distinct_bytes += n_bytes(tensor)
        if limit is not None and n_distinct_bytes > limit:
            problem = f"tensor '{shown(name)}' brings the total to {n_distinct_bytes} bytes"
            raise damaged(where, f"{problem}, from a file of {content.size_bytes} bytes; its shapes cannot be right")
        tensors[name] = plain(name, tensor, where)
        if memory is not None:
            first_name[memory] = name
    notes = list(dict.fromkeys(found.notes))
    overlaps = overlapping({name: tensor for name, tensor in given.items() if name not in ties})
    if overlaps:
        pairs = ", ".join(f"'{shown(later)}' with '{shown(earlier)}'" for later, earlier in overlaps[:_SHOWN_OVERLAPS])
        more = f" and {len(overlaps) - _SHOWN_OVERLAPS} more" if len(overlaps) > _SHOWN_OVERLAPS else ""
        notes.append(f"stored separately, though they share a part of their memory: {pairs}{more}")
    metadata = dict(content.metadata)
    if found.versions:
        metadata[state_metadata.KEY] = state_metadata.to_text(found.versions, tensors)
    return Checkpoint(
        tensors,
        ties,
        source,
        tuple(found.left_out),
        metadata,
        content.shards,
        tuple(found.with_tensors),
        tuple(notes),
        MappedPages.of(files) if files else MappedPages(),
    )


def _read_file(path: Path, kind: Kind, key: str | None, strict: bool) -> _Source:
    """Reads one file that is not an index."""
    size_bytes = path.stat().st_size
    if kind is Kind.SAFETENSORS:
        _refuse_key(key, shown(path))
        tensors, metadata = _read_safetensors(path)
        versions = (
            state_metadata.from_text(metadata.pop(state_metadata.KEY, "{}"), tensors) or state_metadata.Versions()
        )
        return _Source(Selection({**tensors}, versions=versions), metadata, size_bytes)
    return _Source(select(load_pickled(path, kind, strict=strict), key=key, where=shown(path)), {}, size_bytes)


def _refuse_key(key: str | None, where: str) -> None:
    if key is not None:
        raise unsupported(where, f"has no entries to choose '{shown(key)}' from; leave out `key` (--key)")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    where = shown(path)
    tensors: dict[str, torch.Tensor] = {}
    try:
        with without_known_warnings(), safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(sorted((file.metadata() or {}).items()))  # the library gives them in any order
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


def _read_shards(path: Path, key: str | None, strict: bool) -> _Source:
    """Reads the shards that an index names, from the index's own folder, in the index's order."""
    where = shown(path)
    _refuse_key(key, where)
    shard_of = _weight_map(path)
    shards = list(dict.fromkeys(shard_of.values()))
    _check_shard_names(shards, where)
    held: dict[str, dict[str, TensorLike]] = {}
    whole = Selection()
    content = _Source(whole, {}, path.stat().st_size, tuple(path.with_name(shard) for shard in shards))
    for shard in shards:
        shard_path = path.with_name(shard)
        if not shard_path.is_file():
            raise damaged(where, f"its shard '{shown(shard)}' is missing; put all shards beside the index")
        kind = recognise(shard_path)
        if kind is Kind.SHARD_INDEX:
            raise unsupported(where, f"its shard '{shown(shard)}' is itself an index; give the innermost one")
        part = _read_file(shard_path, kind, None, strict)
        stray = [shown(name) for name in part.selection.tensors if shard_of.get(name) != shard]
        held[shard] = part.selection.tensors
        whole.left_out += part.selection.left_out + stray
        whole.with_tensors += part.selection.with_tensors + stray
        whole.notes += part.selection.notes
        whole.versions.update(part.selection.versions)
        content.metadata = part.metadata | content.metadata
        content.size_bytes += part.size_bytes
    for name, shard in shard_of.items():
        if name not in held[shard]:
            problem = f"its shard '{shown(shard)}' does not hold tensor '{shown(name)}'"
            raise damaged(where, f"{problem}; index and shards are of different models")
        whole.tensors[check_name(name, where)] = held[shard][name]
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
