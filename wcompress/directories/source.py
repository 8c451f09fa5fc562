"""Finding the shards and the side files of a model folder."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wcompress.checkpoint.messages import condensed, damaged, listed, shown, unsafe, unsupported, usage
from wcompress.checkpoint.sniff import Kind, recognise
from wcompress.directories.index import INDEX_NAME, archive_name, is_folder
from wcompress.directories.names import is_bare, is_inside
from wcompress.errors import CheckpointError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Which file says where the weights are; of several the first, as `from_pretrained` chooses."""

_INDEX = ".index.json"
MOST_INDEX_BYTES = 64 << 20
_LARGE_BYTES = 1 << 20
# The same weights once more, as hubs keep them beside those that are packed. Sorted by what they lie in the folder as.
_OTHER_WEIGHTS = re.compile(
    r"(pytorch_model|model|consolidated|tf_model|flax_model|rust_model|openvino_model)"
    r"([-._][^/]*)?\.(bin|safetensors|pth?|h5|msgpack|ot|ckpt\.index|xml|gguf)(\.index\.json)?"
    r"|model\.ckpt\.(index|meta|data-[^/]*)"
)
_OTHER_KINDS = re.compile(r".*\.(onnx|onnx_data|onnx\.data|gguf|ggml|tflite|mlmodel|mlpackage|wcz)", re.IGNORECASE)
_OTHER_FOLDERS = ("onnx", "openvino", "coreml", "original", "gguf")
_WEIGHTS_LIKE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".zip", ".npz", ".pkl")


@dataclass(frozen=True)
class Shard:
    """A file of weights.

    Attributes:
        name: in the folder itself.
        path: where its bytes are.
        format: how it is restored: as safetensors, or as a file of torch.
        n_bytes: its size.
    """

    name: str
    path: Path
    format: Literal["safetensors", "pt"]
    n_bytes: int


@dataclass(frozen=True)
class SideFile:
    """A file that is kept byte for byte; its name has `/` between its parts."""

    name: str
    path: Path
    n_bytes: int


@dataclass(frozen=True)
class Source:
    """A model folder.

    Attributes:
        folder: as it was named.
        shards: in the order in which the index names them first.
        weight_map: tensor → shard, in the index's order; None for a model in one file.
        weight_index: name of the side file that holds the map; None for a model in one file.
        side_files: by name, sorted.
        left_out: names of what is not kept; folders end with `/`.
        warnings: one line each.
    """

    folder: Path
    shards: tuple[Shard, ...]
    weight_map: dict[str, str] | None
    weight_index: str | None
    side_files: tuple[SideFile, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def weights_file(folder: str | os.PathLike[str]) -> str | None:
    """Name of the file that says where a model folder's weights are; None where this is no such folder."""
    if not is_folder(folder):
        return None
    return next((name for name in WEIGHTS if (Path(folder) / name).is_file()), None)


def find_source(folder: str | os.PathLike[str]) -> Source:
    """The shards and the side files of a model folder. The weights are not read.

    Hidden files, and further copies of the weights in other formats, are left out, and `warnings` says so.

    Raises:
        UnsafeCheckpoint: a name or a link leads out of the folder.
        UnsupportedCheckpoint: it is no model folder (exit code 2), or holds what is no file.
        CheckpointError: the index is damaged, a shard is missing, or something cannot be read.
    """
    path = Path(folder)
    where = shown(path)
    chosen = weights_file(path)
    if chosen is None:
        raise usage(unsupported(where, f"is no model folder; looked for {', '.join(WEIGHTS)}"))
    try:
        weight_map = read_weight_map(path / chosen) if chosen.endswith(_INDEX) else None
        names = [chosen] if weight_map is None else list(dict.fromkeys(weight_map.values()))
        shards = tuple(_shard(path, name, where) for name in names)
        found = _Found(path, where, {shard.name for shard in shards}, chosen)
        for name, entry in _walk(path, "", where):
            found.add(name, entry)
    except OSError as error:
        reason = f"{shown(error.filename or where)}: cannot be read: {condensed(error.strerror or error)}"
        raise usage(CheckpointError(reason)) from error
    return Source(
        path,
        shards,
        weight_map,
        None if weight_map is None else chosen,
        tuple(sorted(found.side_files, key=lambda side: side.name)),
        (*found.hidden, *found.others),
        tuple(found.warnings()),
    )


def read_weight_map(path: Path, *, most_bytes: int = MOST_INDEX_BYTES) -> dict[str, str]:
    """Tensor → shard, of an index as Hugging Face writes it.

    Raises:
        UnsafeCheckpoint: a shard is not named by a bare file name.
        CheckpointError: the index is damaged, too large, or names a tensor twice.
        OSError: it cannot be read.
    """
    where = shown(path)
    size = path.stat().st_size
    if size > most_bytes:
        raise damaged(where, f"has {size} bytes, more than an index of shards has ({most_bytes})")
    try:
        weight_map = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(where, f"cannot be read as an index of shards ({condensed(error)})") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(where, "its weight_map names no tensors")
    outside = [name for name in set(weight_map.values()) if not isinstance(name, str) or not is_bare(name)]
    if outside:
        raise unsafe(where, f"names {listed(outside)} as shards; only bare names of files in its own folder are read")
    return weight_map


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"names twice: {listed(name for name, count in counts.items() if count > 1)}")
    return found


def _shard(folder: Path, name: str, where: str) -> Shard:
    path = folder / name
    if not path.exists():
        raise damaged(where, f"its shard '{shown(name)}' is missing; put all shards beside the index")
    _check_link(folder, path, where)
    kind = recognise(path)
    if kind is Kind.SHARD_INDEX:
        raise unsupported(where, f"its shard '{shown(name)}' is itself an index; name the files of weights in it")
    return Shard(name, path, "safetensors" if kind is Kind.SAFETENSORS else "pt", path.stat().st_size)


def _walk(folder: Path, prefix: str, where: str) -> Iterator[tuple[str, Path]]:
    """Names and paths of files, and names ending with `/` of folders that are hidden, sorted."""
    for entry in sorted((folder / prefix).iterdir(), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            yield f"{name}/" if entry.is_dir() and not entry.is_symlink() else name, entry
        elif entry.is_dir():
            if entry.is_symlink():
                raise unsafe(where, f"'{shown(name)}' is a link to a folder; put the folder itself in its place")
            yield from _walk(folder, f"{name}/", where)
        else:
            _check_link(folder, entry, where)
            yield name, entry


def _check_link(folder: Path, path: Path, where: str) -> None:
    if not path.is_symlink():
        return
    origin, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    # In Hugging Face's cache, models--…/snapshots/REVISION/FILE is a link to models--…/blobs/DIGEST.
    blobs = origin.parent.parent / "blobs" if origin.parent.name == "snapshots" else None
    if origin not in real.parents and real.parent != blobs:
        name = shown(path.relative_to(folder))
        raise unsafe(where, f"'{name}' is a link out of the folder; put the file itself in its place")


@dataclass
class _Found:
    """Files sorted by what becomes of them."""

    folder: Path
    where: str
    shards: set[str]
    chosen: str
    side_files: list[SideFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def add(self, name: str, path: Path) -> None:
        if name in self.shards:
            return
        if path.name.startswith("."):
            self.hidden.append(name)
            return
        if not is_inside(name):
            raise unsupported(self.where, f"the name '{shown(name)}' cannot be kept on every system; rename the file")
        if not path.exists():
            raise damaged(self.where, f"'{shown(name)}' is a link to nothing; remove it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise unsupported(self.where, f"'{shown(name)}' is neither a file nor a folder; move it away")
        reserved = name == INDEX_NAME or name in map(archive_name, self.shards)
        if reserved or (name != self.chosen and _is_other_weights(name)):
            self.others.append(name)
        else:
            self.side_files.append(SideFile(name, path, path.stat().st_size))

    def warnings(self) -> Iterator[str]:
        if self.hidden:
            yield f"left out, since they are hidden: {listed(self.hidden)}"
        if self.others:
            what = f"left out, as further copies of the weights beside '{self.chosen}'"
            yield f"{what}: {listed(self.others)}; pack them apart if they are needed"
        large = [
            side.name
            for side in self.side_files
            if side.n_bytes >= _LARGE_BYTES and side.name.lower().endswith(_WEIGHTS_LIKE)
        ]
        if large:
            yield f"kept byte for byte, and not made smaller: {listed(large)}"


def _is_other_weights(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    if _OTHER_KINDS.fullmatch(last):
        return True
    # Weights in a folder of another name are those of a part of their own, such as a layer behind the model.
    of_the_model = not folder or folder.split("/")[0] in _OTHER_FOLDERS
    return of_the_model and _OTHER_WEIGHTS.fullmatch(last) is not None
