"""Packing one shard: the same whoever does it, so that the archive is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from wcompress import __version__
from wcompress.archive import VERSION
from wcompress.checkpoint.messages import damaged, shown
from wcompress.codec.options import PackOptions
from wcompress.codec.packing import pack
from wcompress.codec.results import PackResult
from wcompress.device import resolve_device
from wcompress.directories.folders import sha256_of
from wcompress.directories.headers import TensorHeader, shapes
from wcompress.directories.index import ShardEntry, archive_name
from wcompress.errors import CheckpointError, TargetUnreachable
from wcompress.progress import Progress

_DIGITS = 6


@dataclass(frozen=True)
class ShardJob:
    """What packing one shard needs, wherever it is done.

    Attributes:
        name: of the shard.
        source: its file.
        format: how it is to be restored.
        folder: where its archive goes.
        options: how to pack, the same for every shard.
        whole: all tensors of the model, by which its quality is chosen; None for a model in one file.
        fingerprint: of all that the archive depends on besides the file.
    """

    name: str
    source: str
    format: Literal["safetensors", "pt"]
    folder: str
    options: PackOptions
    whole: tuple[TensorHeader, ...] | None
    fingerprint: str


@dataclass(frozen=True)
class ShardDone:
    """A shard that is packed: its row of the index, and its figures."""

    entry: ShardEntry
    result: PackResult


def fingerprint(options: PackOptions, whole: tuple[TensorHeader, ...] | None) -> str:
    """SHA-256, hexadecimal, of all that an archive depends on besides its source.

    Args:
        options: how to pack.
        whole: all tensors of the model; None where the shard is all of it.
    """
    same = {"threads", "dry_run", "force", "resume"}
    chosen = {name: value for name, value in asdict(options).items() if name not in same}
    chosen["device"] = resolve_device(options.device)
    document = [__version__, VERSION, chosen, None if whole is None else [asdict(tensor) for tensor in whole]]
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=repr).encode()).hexdigest()


def pack_shard(
    job: ShardJob, progress: Progress | None = None, pack_file: Callable[..., PackResult] = pack
) -> ShardDone:
    """Packs one shard; its archive appears in the job's folder whole or not at all.

    Args:
        job: what to do.
        progress: called as the work goes on.
        pack_file: makes an archive of a file, with the arguments of `wcompress.codec.packing.pack`.

    Raises:
        CheckpointError: it cannot be read, or was changed meanwhile.
        TargetUnreachable: no archive of this shard meets the target.
        OutputError: the archive cannot be written.
    """
    path = Path(job.source)
    before = _state(path)
    whole = None if job.whole is None else shapes(job.whole)
    archive = Path(job.folder) / archive_name(job.name)
    options = replace(job.options, force=True, resume=False)
    digest = "" if options.dry_run else sha256_of(path)
    try:
        result = pack_file(path, archive, options, whole=whole, progress=progress)
    except TargetUnreachable as error:
        raise TargetUnreachable(f"shard '{shown(job.name)}': {error}") from error
    if _state(path) != before:
        raise damaged(shown(path), "was changed while it was packed; pack it again when nothing writes to it")
    packed = "" if options.dry_run else sha256_of(archive)
    energy = float(f"{min(result.weights_energy, 1e300):.{_DIGITS}g}")
    entry = ShardEntry(job.name, job.format, before[0], digest, result.archive_bytes, packed, energy, job.fingerprint)
    return ShardDone(entry, replace(result, archive=str(archive)))


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    return found.st_size, found.st_mtime_ns
