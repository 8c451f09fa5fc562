"""Unpacking: an archive becomes a checkpoint again."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wcompress.checkpoint import state_metadata, write_checkpoint
from wcompress.checkpoint.stream import CODES, SafetensorsStream
from wcompress.codec.reading import Archive
from wcompress.codec.storage.dtypes import entry_dtype
from wcompress.errors import OptionError
from wcompress.files import atomic_output, check_output

Format = Literal["safetensors", "pt"]
_PT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".th", ".pkl", ".pickle")
# What a model's file name may end with: model.pt, model.pth.tar, model.safetensors.index.json.
_MODEL_SUFFIXES = re.compile(
    r"(?<=.)(\.(pth?|ckpt|bin|th|pkl|pickle|safetensors))?(\.tar|\.index\.json)?$", re.IGNORECASE
)


@dataclass(frozen=True)
class UnpackResult:
    """What `unpack` wrote.

    Attributes:
        archive: path of the archive.
        output: path of the checkpoint.
        format: `safetensors` or `pt`.
        n_tensors: tensors written.
        output_bytes: size of the checkpoint file.
        sha256: of all of the archive's tensors, hexadecimal.
        seconds: wall time.
    """

    archive: str
    output: str
    format: str
    n_tensors: int
    output_bytes: int
    sha256: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The object that `unpack --json` prints."""
        return asdict(self)


def default_output(archive: str | os.PathLike[str], format: Format) -> Path:
    """`model.pt.wcz` → `model.safetensors` or `model.pt`, beside the archive.

    Also `x.pth.tar.wcz` → `x.pt`, `Y.PT.wcz` → `Y.pt`, `model.safetensors.index.json.wcz` → `model.safetensors`.
    """
    path = Path(archive)
    stem = re.sub(r"(?<=.)\.wcz$", "", path.name, flags=re.IGNORECASE)
    return path.with_name(f"{_MODEL_SUFFIXES.sub('', stem, count=1)}.{format}")


def unpack(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    format: Format | None = None,
    only: str | None = None,
    force: bool = False,
) -> UnpackResult:
    """Restore a checkpoint file.

    Args:
        archive: what `pack` wrote.
        output: the checkpoint; by default the source's name, with the format's suffix, beside the archive.
        format: by default what the output's suffix says, else safetensors.
        only: a regular expression; tensors in whose name it is found are restored, the others left out.
        force: an existing output may be replaced.

    Raises:
        ArchiveError: the archive is damaged.
        OptionError: the expression is malformed, or matches no tensor.
        OutputError: the output exists already or cannot be written.
        UnsupportedCheckpoint: the format cannot hold a tensor.
    """
    start = time.perf_counter()
    if format is None:
        is_pt = output is not None and os.fspath(output).lower().endswith(_PT_SUFFIXES)
        format = "pt" if is_pt else "safetensors"
    with Archive(archive) as opened:
        if output is None:
            output = default_output(archive, format)
        check_output(output, force=force, source=archive)
        sha256 = opened.sha256
        metadata = dict(opened.manifest.metadata)
        versions = opened.versions()
        metadata.pop(state_metadata.KEY, None)
        wanted = None if only is None else _matching(opened.keys(), only)
        n_tensors = len(opened.keys() if wanted is None else wanted)
        if format == "safetensors" and wanted is None and _can_stream(opened):
            with atomic_output(output, force=force, source=archive) as temporary:
                _stream(opened, temporary, metadata or {"format": "pt"}, versions)
                n_bytes = temporary.stat().st_size
        else:
            opened.check()
            tensors = opened.load(wanted)
            with atomic_output(output, force=force, source=archive) as temporary:
                write_checkpoint(temporary, tensors, format=format, metadata=metadata or None, versions=versions)
                n_bytes = temporary.stat().st_size
    return UnpackResult(
        archive=os.fspath(archive),
        output=os.fspath(output),
        format=format,
        n_tensors=n_tensors,
        output_bytes=n_bytes,
        sha256=sha256,
        seconds=time.perf_counter() - start,
    )


def _can_stream(archive: Archive) -> bool:
    # Of a model that is one group the library writes the file.
    return bool(archive.manifest.groups) and all(entry.dtype in CODES for entry in archive.manifest.tensors)


def _stream(archive: Archive, path: Path, metadata: dict[str, str], versions: state_metadata.Versions | None) -> None:
    if versions:
        metadata = {**metadata, state_metadata.KEY: json.dumps(versions, separators=(",", ":"))}
    entries = archive.manifest.tensors
    with SafetensorsStream(path, [(e.name, entry_dtype(e), e.shape) for e in entries], metadata) as stream:
        for entry, part, tensor in archive.each_part():
            stream.write(entry.name, part.start * math.prod(entry.shape[1:]), tensor)


def _matching(names: list[str], only: str) -> list[str]:
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise OptionError(f"only {only!r}: not a regular expression ({error})") from error
    found = [name for name in names if pattern.search(name)]
    if not found:
        raise OptionError(f"only {only!r}: matches no tensor name; `wcompress inspect` lists all {len(names)}")
    return found
