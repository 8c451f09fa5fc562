"""What a folder of archives says of itself: `wcompress.json`, described in docs/format.md."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wcompress.checkpoint.messages import condensed, listed, shown
from wcompress.directories.names import is_bare, is_inside
from wcompress.errors import ArchiveError, BadMagic, UnsupportedVersion

INDEX_NAME = "wcompress.json"
FORMAT = "wcompress folder"
VERSION = 1
MOST_BYTES = 64 << 20
"""Of the index; a reader refuses a larger one."""

WORK_SUFFIX = ".part"
"""Of the folder in which a pack works until all of its output is there."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADVICE = "get a fresh copy"


def archive_name(shard: str) -> str:
    """`model.safetensors` → `model.safetensors.wcz`."""
    return f"{shard}.wcz"


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder; False also where the system cannot tell, as of a name that is too long."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def is_packed_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of archives, by its index."""
    return is_folder(path) and (Path(path) / INDEX_NAME).is_file()


@dataclass(frozen=True)
class ShardEntry:
    """One archive of a folder.

    Attributes:
        name: of the file that it was made of, and is restored to.
        format: what it is restored as, `safetensors` or `pt`.
        source_bytes, source_sha256: of that file.
        archive_bytes, archive_sha256: of the archive, whose name has `.wcz` added.
        energy: Σw² over the floating-point tensors of two or more dimensions, finite elements only, to six digits. For
            readers' information: it pools SQNRs.
        options: SHA-256 of how it was packed, by which `--resume` tells what need not be done again.
    """

    name: str
    format: Literal["safetensors", "pt"]
    source_bytes: int
    source_sha256: str
    archive_bytes: int
    archive_sha256: str
    energy: float
    options: str

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return archive_name(self.name)


@dataclass(frozen=True)
class FileEntry:
    """A side file, kept byte for byte under its own name, with `/` between the parts."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The index of a folder of archives.

    Attributes:
        shards: in the order of the model.
        files: side files, sorted by name.
        weight_index: the side file that says which tensor is in which shard; None for a model in one file.
    """

    shards: tuple[ShardEntry, ...]
    files: tuple[FileEntry, ...]
    weight_index: str | None = None

    def to_bytes(self) -> bytes:
        """The file's content: the same for the same index."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "weight_index": self.weight_index,
            "shards": [{**asdict(shard), "archive": shard.archive} for shard in self.shards],
            "files": [asdict(file) for file in self.files],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @property
    def names(self) -> set[str]:
        """Every file of the folder, with `/` between the parts."""
        return {INDEX_NAME, *(shard.archive for shard in self.shards), *(file.name for file in self.files)}


def read_index(folder: str | os.PathLike[str]) -> Index:
    """The index of a folder of archives. It may come from anyone, so every name and number is checked.

    Raises:
        BadMagic: this is no folder of archives (exit code 2 where it has no index).
        UnsupportedVersion: a newer wcompress wrote it.
        ArchiveError: it is damaged, or names what lies elsewhere.
    """
    path = Path(folder) / INDEX_NAME
    where = shown(path)
    if not path.is_file():
        failure = BadMagic(not_packed(Path(folder)))
        failure.exit_code = 2  # a mistake in the call
        raise failure
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ArchiveError(f"{where}: has {size} bytes, at most {MOST_BYTES} are read; {_ADVICE}")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{where}: cannot be read as the index of a folder ({condensed(error)})") from error
    return index_of(document, where)


def index_of(document: Any, where: str = INDEX_NAME) -> Index:
    """The index that a JSON document is, after every check that needs no other file.

    Raises:
        BadMagic, UnsupportedVersion, ArchiveError: as `read_index`.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadMagic(f'{where}: is no index of a folder of archives: "format" must be "{FORMAT}"')
    if document.get("version") != VERSION:
        found = condensed(document.get("version"))
        raise UnsupportedVersion(f"{where}: has version {found}, this wcompress reads {VERSION}; install a newer one")
    try:
        return _checked(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{where}: is damaged ({condensed(error)}); {_ADVICE}") from error


def not_packed(folder: Path) -> str:
    """One line for a folder that is no folder of archives."""
    where = shown(folder)
    if (folder / "plan.json").is_file() and folder.name.endswith(WORK_SUFFIX):
        whole = shown(str(folder)[: -len(WORK_SUFFIX)])
        return f"{where}: holds a pack that is not done; go on with `pack --resume`, or with `wcompress join {whole}`"
    return f"{where}: is a folder without {INDEX_NAME}, so no folder of archives; name an archive, or what `pack` made"


def _checked(document: Mapping[str, Any]) -> Index:
    shards = tuple(_shard(row) for row in _rows(document["shards"]))
    files = tuple(_file(row) for row in _rows(document["files"]))
    if not shards:
        raise ValueError("it names no shards")
    archives = [INDEX_NAME, *(shard.archive for shard in shards)]
    restored = [shard.name for shard in shards]
    side = [file.name for file in files]
    for names in ([*archives, *side], [*restored, *side]):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(f"names {listed(repeated)} twice")
        folders = {"/".join(parts[:n]) for parts in (name.split("/") for name in names) for n in range(1, len(parts))}
        both = sorted(folders & set(names))
        if both:
            raise ValueError(f"names {listed(both)} as a file and as a folder")
    weight_index = document["weight_index"]
    if weight_index is not None and (weight_index not in side or not is_bare(weight_index)):
        raise ValueError("weight_index must be null or the bare name of a side file")
    if weight_index is None and len(shards) > 1:
        raise ValueError("several shards need a weight_index")
    return Index(shards, files, weight_index)


def _rows(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError("shards and files must be arrays of objects")
    return value


def _shard(row: Mapping[str, Any]) -> ShardEntry:
    name, archive, form, energy = row["name"], row["archive"], row["format"], row["energy"]
    if not isinstance(name, str) or not is_bare(name):
        raise ValueError(f"'{condensed(name)}' is no bare file name")
    if archive != archive_name(name):
        raise ValueError(f"the archive of '{shown(name)}' must be '{shown(archive_name(name))}'")
    if form not in ("safetensors", "pt"):
        raise ValueError(f"unknown format '{condensed(form)}'")
    if not isinstance(energy, (int, float)) or not math.isfinite(energy) or energy < 0:
        raise ValueError(f"'{shown(name)}' has no energy")
    sizes = [_size(row[key]) for key in ("source_bytes", "archive_bytes")]
    source, packed, options = (_digest(row[key]) for key in ("source_sha256", "archive_sha256", "options"))
    return ShardEntry(name, form, sizes[0], source, sizes[1], packed, float(energy), options)


def _file(row: Mapping[str, Any]) -> FileEntry:
    name = row["name"]
    if not isinstance(name, str) or not is_inside(name):
        raise ValueError(f"'{condensed(name)}' leads out of the folder")
    return FileEntry(name, _size(row["bytes"]), _digest(row["sha256"]))


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"'{condensed(value)}' is no size")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"'{condensed(value)}' is no SHA-256")
    return value
