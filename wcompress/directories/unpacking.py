"""Unpacking: an archive → a checkpoint, a folder of archives → a model folder."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path

from wcompress.checkpoint.messages import shown
from wcompress.codec import unpacking
from wcompress.codec.unpacking import Format, UnpackResult
from wcompress.directories.folders import check_folder, check_replaceable, copy_file, place_folder, temporary_folder
from wcompress.directories.index import is_folder
from wcompress.directories.opening import FolderArchive
from wcompress.directories.results import FolderUnpackResult, digest_of
from wcompress.errors import ChecksumMismatch, OptionError
from wcompress.progress import Progress, part


def default_output(archive: str | os.PathLike[str], format: Format) -> Path:
    """Where `unpack` writes without an output: see `wcompress.codec.unpacking.default_output`; `M.wcz/` becomes `M`.

    Raises:
        OptionError: a folder's name does not end with `.wcz`.
    """
    path = Path(archive)
    if not is_folder(path):
        return unpacking.default_output(archive, format)
    named = path if path.name else path.absolute()  # "." has no name
    stem = re.sub(r"(?<=.)\.wcz$", "", named.name, flags=re.IGNORECASE)
    if stem == named.name:
        raise OptionError(f"{shown(path)}: its name does not end with .wcz; name the folder to make with -o")
    return named.with_name(stem)


def unpack(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    format: Format | None = None,
    only: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> UnpackResult:
    """Restore a checkpoint file, or, from a folder of archives, a model folder with shards, index and side files.

    Args:
        archive: what `pack` wrote.
        output: the checkpoint or the folder; by default the source's name beside the archive.
        format: of a checkpoint file; by default what the output's suffix says, else safetensors. The shards of a folder
            keep theirs.
        only: a regular expression; tensors in whose name it is found are restored, the others left out.
        force: an existing output may be replaced.
        progress: called after each shard of a folder.

    Raises:
        ArchiveError: the archive is damaged.
        OptionError: the expression is malformed, or matches no tensor; or an option does not go with a folder.
        OutputError: the output exists already or cannot be written.
        UnsupportedCheckpoint: the format cannot hold a tensor.
    """
    if not is_folder(archive):
        return unpacking.unpack(archive, output, format=format, only=only, force=force)
    return _unpack_folder(Path(archive), output, format, only, force, progress)


def _unpack_folder(
    path: Path,
    output: str | os.PathLike[str] | None,
    format: Format | None,
    only: str | None,
    force: bool,
    progress: Progress | None,
) -> FolderUnpackResult:
    start = time.perf_counter()
    with FolderArchive(path) as folder:
        index = folder.index
        example = shown(path / index.shards[0].archive)
        if only is not None:
            raise OptionError(f"only {only!r}: a folder is restored whole; name one of its archives, such as {example}")
        if format is not None:
            raise OptionError(
                f"format {format!r}: the files of a folder keep theirs; name one archive, such as {example}"
            )
        output = default_output(path, "safetensors") if output is None else output
        target = check_folder(output, force=force, source=path)
        replaced = {shard.name for shard in index.shards} | {file.name for file in index.files}
        check_replaceable(target, replaced)
        folder.check()
        with temporary_folder(target) as temporary:
            shards = []
            for number, shard in enumerate(index.shards):
                part(progress, number / len(index.shards), 1.0, shown(shard.name))
                folder.shard(shard)  # which compares its names with the index
                folder.close()
                result = unpacking.unpack(path / shard.archive, temporary / shard.name, format=shard.format)
                shards.append(replace(result, output=os.fspath(Path(output) / shard.name)))
            for file in index.files:
                if copy_file(path / file.name, temporary / file.name) != file.sha256:
                    raise ChecksumMismatch(f"{shown(path / file.name)}: was changed while it was copied; try again")
            place_folder(temporary, target, replaced)
    formats = {shard.format for shard in shards}
    return FolderUnpackResult(
        archive=os.fspath(path),
        output=os.fspath(output),
        format=formats.pop() if len(formats) == 1 else "mixed",
        n_tensors=sum(shard.n_tensors for shard in shards),
        output_bytes=sum(shard.output_bytes for shard in shards) + sum(file.bytes for file in index.files),
        sha256=digest_of([shard.sha256 for shard in shards]),
        seconds=time.perf_counter() - start,
        shards=tuple(shards),
        n_side_files=len(index.files),
    )
