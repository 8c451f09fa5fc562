"""Reading archives and folders of archives: all of it, or one tensor; what is inside; whether it is whole."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from wcompress.checkpoint import read_checkpoint, state_metadata
from wcompress.checkpoint.messages import shown
from wcompress.codec import reading, verifying
from wcompress.codec.names import suggestion
from wcompress.codec.reading import Archive
from wcompress.codec.results import InspectResult, VerifyResult
from wcompress.codec.slices import TensorSlice
from wcompress.directories.folders import sha256_of
from wcompress.directories.headers import check_agreement
from wcompress.directories.index import INDEX_NAME, ShardEntry, is_folder, read_index
from wcompress.directories.results import FolderInspectResult, sums, verified, weights_energy
from wcompress.directories.source import Source, find_source, read_weight_map
from wcompress.errors import ArchiveError, CheckpointError, ChecksumMismatch, OptionError

_ADVICE = "get a fresh copy of the folder"


class FolderArchive:
    """An open folder of archives; a context manager, and a collection of tensor names.

    Opening reads the indices; an archive is opened when a tensor of it is asked for, and at most one is open. Threads
    may share a folder: they decode one after the other.

    Args:
        path: the folder.

    Raises:
        ArchiveError: it is none, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # of the archive that is open
        self.index = read_index(path)
        self._shards = {shard.name: shard for shard in self.index.shards}
        self._homes = self._read_homes()
        self._opened: tuple[str, Archive] | None = None

    def keys(self) -> list[str]:
        """Tensor names, in the model's order."""
        if self._homes is None:
            with self._lock:
                return self.shard(self.index.shards[0]).keys()
        return list(self._homes)

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in (self.keys() if self._homes is None else self._homes)

    def get_tensor(self, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """Decode one tensor; no archive is opened but the one that holds it.

        Raises:
            KeyError: there is no tensor of that name.
            ArchiveError: the archive is damaged.
        """
        home = self._home(name)
        with self._lock:
            return self.shard(self._shards[home]).get_tensor(name, device)

    def _home(self, name: str) -> str:
        if self._homes is None:
            return self.index.shards[0].name
        if name not in self._homes:
            raise KeyError(f"{self.path}: no tensor {name!r}{suggestion(str(name), self._homes)}")
        return self._homes[name]

    def get_slice(self, name: str) -> TensorSlice:
        """One tensor that is decoded when it is indexed; see `Archive.get_slice`.

        Raises:
            KeyError: there is no tensor of that name.
            ArchiveError: the archive is damaged.
        """
        with self._lock:
            found = self.shard(self._shards[self._home(name)]).get_slice(name)
        return found.restored_by(lambda start, stop: self._rows(name, start, stop))

    def _rows(self, name: str, start: int, stop: int | None) -> tuple[torch.Tensor, int]:
        with self._lock:
            return self.shard(self._shards[self._home(name)]).get_rows(name, start, stop)

    def load(self, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """Decode the tensors named, or all, one archive after the other.

        Raises:
            KeyError: there is no tensor of a name.
            ArchiveError: an archive is damaged.
        """
        order = self.keys() if names is None else list(names)
        found: dict[str, torch.Tensor] = {}
        for shard in self.index.shards:
            ours = None
            if names is not None:
                ours = [name for name in order if self._homes is None or self._homes[name] == shard.name]
                if not ours:
                    continue
            with self._lock:
                found |= self.shard(shard).load(ours, device)
        return {name: found[name] for name in order}

    def versions(self) -> state_metadata.Versions | None:
        """What the source's `state_dict()._metadata` said of each module; None where it had none."""
        versions = state_metadata.Versions()
        for shard in self.index.shards:
            versions.update(self.shard(shard).versions() or {})
        return versions or None

    def shard(self, entry: ShardEntry) -> Archive:
        """The archive of a shard, open until another is asked for.

        Raises:
            ArchiveError: it is missing, or not the one that the index names.
        """
        if self._opened is not None and self._opened[0] == entry.name:
            return self._opened[1]
        self.close()
        path = self.path / entry.archive
        _check_size(path, entry.archive_bytes)
        archive = Archive(path)
        try:
            if self._homes is not None:
                names = [name for name, home in self._homes.items() if home == entry.name]
                with _of_an_archive():
                    check_agreement(shown(self.path / INDEX_NAME), entry.archive, names, dict.fromkeys(archive.keys()))
        except BaseException:
            archive.close()
            raise
        self._opened = (entry.name, archive)
        return archive

    def check(self) -> None:
        """Compare every file with the index.

        Raises:
            ArchiveError: one is missing or differs.
        """
        for shard in self.index.shards:
            _check_file(self.path / shard.archive, shard.archive_bytes, shard.archive_sha256)
        for file in self.index.files:
            _check_file(self.path / file.name, file.bytes, file.sha256)

    def inspect(self) -> FolderInspectResult:
        """The folder in figures: sums over its archives. Checksums are compared, nothing is decoded.

        Raises:
            ArchiveError: it is damaged.
        """
        self.check()
        shards = tuple(self.shard(shard).inspect() for shard in self.index.shards)
        n_side_bytes = sum(file.bytes for file in self.index.files)
        figures = sums(
            shards,
            [shard.energy for shard in self.index.shards],
            index=(self.path / INDEX_NAME).stat().st_size,
            side=n_side_bytes,
        )
        return FolderInspectResult(
            archive=str(self.path),
            source=self.index.weight_index or self.index.shards[0].name,
            **figures,
            version=max(shard.version for shard in shards),
            padding=sum(shard.padding for shard in shards),
            tensors=tuple(row for shard in shards for row in shard.tensors),
            shards=shards,
            n_side_files=len(self.index.files),
            side_file_bytes=n_side_bytes,
        )

    def close(self) -> None:
        """Close the archive that is open."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def __enter__(self) -> FolderArchive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read_homes(self) -> dict[str, str] | None:
        if self.index.weight_index is None:
            return None
        path = self.path / self.index.weight_index
        row = next(file for file in self.index.files if file.name == self.index.weight_index)
        _check_file(path, row.bytes, row.sha256)
        with _of_an_archive():
            homes = read_weight_map(path)
        if set(homes.values()) != set(self._shards):
            raise ArchiveError(f"{shown(path)}: names other shards than {INDEX_NAME} does; {_ADVICE}")
        return homes


def open_archive(path: str | os.PathLike[str]) -> Archive | FolderArchive:
    """Open an archive, or a folder of archives, to read tensors one by one, as a context manager.

    Raises:
        ArchiveError: it cannot be read.
    """
    return FolderArchive(path) if is_folder(path) else Archive(path)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Restore a state_dict from an archive, or from a folder of archives, one after the other.

    Args:
        path: the archive or the folder.
        device: where the tensors are to be.

    Returns:
        Name → tensor, in the source's order, tied names sharing one tensor. It has the source's `_metadata`, which
        `load_state_dict` reads, where there was one.

    Raises:
        ArchiveError: the archive is damaged, or what it restores to is not what was packed.
    """
    if not is_folder(path):
        return reading.load(path, device)
    with FolderArchive(path) as folder:
        folder.check()
        return state_metadata.attached(folder.load(device=device), folder.versions())


def inspect(path: str | os.PathLike[str]) -> InspectResult:
    """An archive or a folder of archives in figures, without decoding it.

    Raises:
        ArchiveError: the archive is damaged.
    """
    if not is_folder(path):
        return reading.inspect(path)
    with FolderArchive(path) as folder:
        return folder.inspect()


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    *,
    key: str | None = None,
) -> VerifyResult:
    """Compare every checksum, decode everything, and, given a model, measure the difference.

    Args:
        path: the archive, or the folder of archives.
        against: the model it was made from; of a folder, the folder.
        key: entry of `against` that holds the model, see `read_checkpoint`.

    Returns:
        Error figures and what is wrong; damage itself is raised.

    Raises:
        ArchiveError: the archive is damaged.
        CheckpointError: `against` cannot be read.
        OptionError: `against` is no folder, and there are several archives.
    """
    if not is_folder(path):
        return verifying.verify(path, against, key=key)
    with FolderArchive(path) as folder:
        folder.check()
        errors: list[str] = []
        originals, source = _originals(folder, against, errors)
        shards, energies = [], []
        for shard in folder.index.shards:
            folder.shard(shard)  # which compares its names with the index
            folder.close()
            original = originals.get(shard.name)
            result = verifying.verify(folder.path / shard.archive, original, key=key)
            named = tuple(f"{shard.name}: {error}" for error in result.errors)
            shards.append(replace(result, errors=named if len(folder.index.shards) > 1 else result.errors))
            energies.append(0.0 if result.sqnr_db is None or original is None else _energy(original, key))
        if source is not None:
            errors += _differing_files(folder, source)
        return verified(shards, energies, errors, compared=against is not None and not errors)


def _originals(
    folder: FolderArchive, against: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None, errors: list[str]
) -> tuple[dict[str, str | os.PathLike[str] | Mapping[str, torch.Tensor]], Source | None]:
    """What each shard is to be compared with, and the folder that it is in."""
    if against is None:
        return {}, None
    if not isinstance(against, Mapping) and is_folder(against):
        source = find_source(against)
        wanted = [shard.name for shard in folder.index.shards]
        given: dict[str, str | os.PathLike[str] | Mapping[str, torch.Tensor]] = {
            shard.name: shard.path for shard in source.shards
        }
        errors += [f"shard '{shown(name)}' is not in the model" for name in wanted if name not in given]
        errors += [f"shard '{shown(name)}' of the model is not in the folder" for name in given if name not in wanted]
        return given, source
    if len(folder.index.shards) == 1:
        return {folder.index.shards[0].name: against}, None
    named = "a dict of tensors" if isinstance(against, Mapping) else shown(os.fspath(against))
    raise OptionError(f"against {named}: the archives were made of several shards; name the folder that holds them")


def _energy(original: str | os.PathLike[str] | Mapping[str, torch.Tensor], key: str | None) -> float:
    return weights_energy(read_checkpoint(original, key=key).tensors)


def _differing_files(folder: FolderArchive, source: Source) -> Iterator[str]:
    given = {side.name: side for side in source.side_files}
    for file in folder.index.files:
        side = given.pop(file.name, None)
        if side is None:
            yield f"side file '{shown(file.name)}' is not in the model's folder"
        elif side.n_bytes != file.bytes or sha256_of(side.path) != file.sha256:
            yield f"side file '{shown(file.name)}' is not that of the model's folder"
    for name in given:
        yield f"side file '{shown(name)}' of the model's folder is not in the archive"


@contextlib.contextmanager
def _of_an_archive() -> Iterator[None]:
    """What a checkpoint's reader finds in a folder of archives is damage of that folder."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        raise ArchiveError(f"{error}; {_ADVICE}") from error


def _check_size(path: Path, n_bytes: int) -> None:
    try:
        found = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise ArchiveError(f"{shown(path)}: cannot be read ({error.strerror}); {_ADVICE}") from error
    if found is None:
        raise ArchiveError(f"{shown(path)}: is missing; {_ADVICE}")
    if found != n_bytes:
        raise ArchiveError(f"{shown(path)}: has {found:,} bytes, {n_bytes:,} expected; {_ADVICE}")


def _check_file(path: Path, n_bytes: int, sha256: str) -> None:
    _check_size(path, n_bytes)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ArchiveError(f"{shown(path)}: cannot be read ({error.strerror}); {_ADVICE}") from error
    if found != sha256:
        raise ChecksumMismatch(f"{shown(path)}: is not what was packed (SHA-256 {found}); {_ADVICE}")
