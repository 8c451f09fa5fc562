"""The folder that a pack works in: `OUT.part` beside the output, until all of the output is there.

    OUT.part/plan.json            the index to be, without what is known only when a shard is packed
    OUT.part/records/SHARD.json   written when a shard is done: its row of the index, and its figures
    OUT.part/folder/              the output to be, renamed to OUT when everything is in it

Every file in it appears whole or not at all, so whatever a killed pack leaves can be gone on with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wcompress.checkpoint.messages import damaged, listed, shown
from wcompress.codec.packing import pack
from wcompress.codec.results import PackResult
from wcompress.directories.folders import check_replaceable, copy_file, files_in, place_folder, sha256_of, write_bytes
from wcompress.directories.index import INDEX_NAME, WORK_SUFFIX, Index, ShardEntry, index_of, read_index
from wcompress.directories.results import from_record, to_record
from wcompress.directories.shard import ShardDone, ShardJob, pack_shard
from wcompress.directories.source import SideFile
from wcompress.errors import ArchiveError, OutputError, WCompressError
from wcompress.files import not_written
from wcompress.progress import Progress

NO_DIGEST = "0" * 64
"""Stands for a SHA-256 that is not known yet."""


@dataclass(frozen=True)
class Plan:
    """What is to be packed, known before any shard is.

    Attributes:
        index: of the output; `source_sha256`, `archive_sha256`, `archive_bytes` and `energy` are not known yet.
        source: the model folder, for readers' information.
        n_parts: into how many parts `--shard` divides the work; None where it does not.
        most_bytes: that the whole output may take; None without a target of size.
        left_out, warnings: see `Source`.
    """

    index: Index
    source: str
    n_parts: int | None = None
    most_bytes: int | None = None
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def is_for(self, other: Plan) -> bool:
        """Whether both plan the same output from the same model."""
        return self.index == other.index

    def to_bytes(self) -> bytes:
        """The content of `plan.json`."""
        document = {**asdict(self), "index": json.loads(self.index.to_bytes())}
        return json.dumps(document, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Plan:
        """What `to_bytes` wrote.

        Raises:
            ValueError, TypeError, KeyError, ArchiveError: it is something else.
        """
        fields = json.loads(content)
        index = index_of(fields.pop("index"))
        left_out, warnings = (tuple(fields.pop(name)) for name in ("left_out", "warnings"))
        return cls(index, left_out=left_out, warnings=warnings, **fields)


class Work:
    """The folder in which one output comes to be.

    Args:
        target: where the output is to appear.
        plan: what it is to hold.
    """

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.path = work_path(target)
        self.folder = self.path / "folder"

    def begin(self, *, resume: bool, force: bool, shared: bool) -> None:
        """Makes the folder, or goes on with the one that is there.

        Args:
            resume: go on with what an interrupted pack left.
            force: start anew where there is such a folder and `resume` is off.
            shared: others pack further shards in the same folder.

        Raises:
            OutputError: there is such a folder, and neither was asked for, or it is of other work.
        """
        check_replaceable(self.target, self.replaced)
        where = shown(self.path)
        if self.path.exists():
            earlier = read_plan(self.path)
            if earlier is None and not _may_be_work(self.path):
                raise OutputError(f"{where}: is in the way, and no work of wcompress; move it, or name another output")
            if shared and earlier is not None and not (self.plan.is_for(earlier) and same_parts(self.plan, earlier)):
                raise OutputError(
                    f"{where}: was begun from another model, with other options or with another N of --shard I/N;"
                    " delete it, or name another output"
                )
            if not (shared or resume or earlier is None):
                if not force:
                    raise OutputError(
                        f"{where}: holds the work of an interrupted pack; go on with --resume, or start anew with -f"
                    )
                shutil.rmtree(self.path, ignore_errors=True)
        try:
            for folder in (self.path, self.folder, self.path / "records"):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise not_written(self.path, error) from error
        write_bytes(self.path / "plan.json", self.plan.to_bytes())

    @property
    def replaced(self) -> set[str]:
        """Names of files in the target that may go: those made again, and those that a pack made before."""
        names = self.plan.index.names
        with contextlib.suppress(ArchiveError):
            names = names | read_index(self.target).names
        return names

    def add_side_files(self, side_files: Iterable[SideFile]) -> None:
        """Copies the side files that are not there yet.

        Raises:
            CheckpointError: one was changed since the plan was made.
            OutputError: one cannot be written.
        """
        expected = {file.name: file for file in self.plan.index.files}
        for side in side_files:
            target, wanted = self.folder / side.name, expected[side.name].sha256
            if target.is_file() and sha256_of(target) == wanted:
                continue
            if copy_file(side.path, target) != wanted:
                raise damaged(shown(side.path), "was changed while the folder was packed; pack it again")

    def done(self, job: ShardJob) -> ShardDone | None:
        """What was recorded of a shard, if its source and options are what they were and its archive is whole."""
        found = self.recorded(job.name)
        if found is None or found.entry.options != job.fingerprint:
            return None
        entry, archive = found.entry, self.folder / found.entry.archive
        if not archive.is_file() or archive.stat().st_size != entry.archive_bytes:
            return None
        if sha256_of(Path(job.source)) != entry.source_sha256 or sha256_of(archive) != entry.archive_sha256:
            return None
        return found

    def recorded(self, name: str) -> ShardDone | None:
        """The record of a shard; None where there is none that can be read."""
        try:
            document = json.loads((self.path / "records" / f"{name}.json").read_bytes())
            entry = dict(document["entry"])
            entry.pop("archive", None)
            return ShardDone(ShardEntry(**entry), from_record(document["result"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def finish(self, done: Sequence[ShardDone]) -> Index:
        """Writes the index and gives the folder its final name.

        Args:
            done: all shards, in order.

        Returns:
            The index.

        Raises:
            OutputError: it cannot be written.
        """
        index = replace(self.plan.index, shards=tuple(shard.entry for shard in done))
        write_bytes(self.folder / INDEX_NAME, index.to_bytes())
        try:
            for name in files_in(self.folder) - index.names:  # of earlier plans, or cut off
                (self.folder / name).unlink()
            wanted = {parent for name in index.names for parent in (self.folder / name).parents}
            for folder, _, _ in os.walk(self.folder, topdown=False):
                if Path(folder) not in wanted:
                    Path(folder).rmdir()
        except OSError as error:
            raise not_written(self.target, error) from error
        place_folder(self.folder, self.target, self.replaced)
        shutil.rmtree(self.path, ignore_errors=True)
        return index

    def abandon(self) -> bool:
        """Removes the folder unless there is work in it to go on with; says whether it is still there."""
        if any(self.recorded(shard.name) for shard in self.plan.index.shards):
            return True
        self.discard()
        return False

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def do_job(job: ShardJob, progress: Progress | None = None, pack_file: Callable[..., PackResult] = pack) -> ShardDone:
    """Packs a shard into the folder of a `Work`, and records that it is done; arguments as for `pack_shard`.

    Raises:
        WCompressError: see `pack_shard`.
    """
    done = pack_shard(job, progress, pack_file)
    if not job.options.dry_run:
        record = {"entry": asdict(done.entry), "result": to_record(done.result)}
        write_bytes(Path(job.folder).parent / "records" / f"{job.name}.json", json.dumps(record).encode())
    return done


def _may_be_work(path: Path) -> bool:
    # Another part may just be about to write the plan.
    return path.is_dir() and all(
        entry.name in ("folder", "records") or entry.name.startswith(".wcompress-") for entry in path.iterdir()
    )


def work_path(target: Path) -> Path:
    """The folder to work in for an output."""
    return target.with_name(target.name + WORK_SUFFIX)


def same_parts(plan: Plan, other: Plan) -> bool:
    """Whether two plans divide the shards in the same way."""
    return plan.n_parts == other.n_parts


def read_plan(path: Path) -> Plan | None:
    """The plan in a work folder; None where there is none that can be read."""
    try:
        return Plan.from_bytes((path / "plan.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, WCompressError):
        return None


def check_side_files(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Names of side files that are missing or changed.

    Args:
        folder: that holds them.
        files: name → its row of the index.
    """
    return [
        name for name, file in files.items() if not (folder / name).is_file() or sha256_of(folder / name) != file.sha256
    ]


def missing_shards(names: Sequence[str], plan: Plan) -> str:
    """One line on shards that are still to be packed."""
    if plan.n_parts is None:
        return f"{listed(names)} missing; go on with `pack --resume`"
    order = [shard.name for shard in plan.index.shards]
    parts = sorted({order.index(name) % plan.n_parts + 1 for name in names})
    commands = ", ".join(f"{part}/{plan.n_parts}" for part in parts)
    return f"{listed(names)} missing; pack with --shard {commands} first"
