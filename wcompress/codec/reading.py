"""Opening archives: one tensor or all of them, and checking what comes out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

import torch

from wcompress.archive import ArchiveReader
from wcompress.checkpoint import state_metadata
from wcompress.codec.container.groups import places
from wcompress.codec.container.manifest import Manifest, Part, TensorEntry
from wcompress.codec.digest import TensorsDigest, tensors_digest
from wcompress.codec.methods.stored import STORED
from wcompress.codec.names import suggestion
from wcompress.codec.restoring import Restorer
from wcompress.codec.results import InspectResult, TensorRow
from wcompress.codec.slices import TensorSlice
from wcompress.codec.storage.dtypes import entry_dtype
from wcompress.errors import ArchiveError, ChecksumMismatch


class Archive:
    """An open archive; a context manager, and a collection of tensor names.

    Opening reads the index and the manifest; tensors are decoded when asked for. Threads may share one: they decode
    one after the other. What one call returns shares no memory with what another does.

    Args:
        path: the archive.

    Raises:
        ArchiveError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.RLock()  # of the file's position, and of what is decoded once
        self._closed = False
        self._reader = ArchiveReader(path)
        try:
            self.manifest = Manifest.from_bytes(self._reader.section("manifest"))
            for entry in self.manifest.tensors:
                entry_dtype(entry)
        except ArchiveError as error:
            self.close()
            raise self._placed(error) from error
        self._method = STORED[self.manifest.method]
        self._entries = {entry.name: entry for entry in self.manifest.tensors}
        self._restorer = Restorer(self.manifest, self._reader.section, self._reader.version)

    def keys(self) -> list[str]:
        """Tensor names, in the source's order."""
        return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def sha256(self) -> str:
        """SHA-256 of the restored tensors as the archive records it, hexadecimal."""
        return self._reader.digest.hex()

    def get_tensor(self, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """Decode one tensor; of the others, nothing that it does not depend on.

        Raises:
            KeyError: there is no tensor of that name.
            ArchiveError: the archive is damaged.
        """
        entry = self._owner(name)
        return self._restore([entry])[entry.name].to(device)

    def get_slice(self, name: str) -> TensorSlice:
        """One tensor that is decoded when it is indexed, as safetensors' `get_slice` gives it.

        Raises:
            KeyError: there is no tensor of that name.
        """
        entry = self._owner(name)
        return TensorSlice(entry.dtype, entry.shape, lambda start, stop: self.get_rows(name, start, stop))

    def get_rows(self, name: str, start: int, stop: int | None = None) -> tuple[torch.Tensor, int]:
        """Decode the slabs of a tensor that hold some indices of its first dimension.

        Args:
            name: of the tensor.
            start, stop: of the first dimension; None for its end.

        Returns:
            What was decoded, and which index of the first dimension it begins with.

        Raises:
            KeyError: there is no tensor of that name.
            ArchiveError: the archive is damaged.
        """
        entry = self._owner(name)
        try:
            with self._lock:
                self._check_open()
                return self._restorer.restore_rows(entry, start, stop)
        except ArchiveError as error:
            raise self._placed(error) from error

    def load(self, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """Decode the tensors named, or all; tied names share one tensor.

        When all are decoded, they are compared with the archive's SHA-256.

        Raises:
            KeyError: there is no tensor of a name.
            ChecksumMismatch: the restored tensors are not those that were packed.
            ArchiveError: the archive is damaged.
        """
        wanted = self.keys() if names is None else list(names)
        owners = {name: self._owner(name) for name in wanted}
        unique = {entry.name: entry for entry in owners.values()}
        restored = self._restore(list(unique.values()))
        tensors = {name: restored[owner.name] for name, owner in owners.items()}
        if names is None:
            self._check_digest(tensors_digest(tensors))
        moved = {name: tensor.to(device) for name, tensor in restored.items()}
        return {name: moved[owner.name] for name, owner in owners.items()}

    def section(self, name: str) -> bytes:
        """The payload of a section of the first group, its checksum compared; empty where there is none.

        Raises:
            ArchiveError: it is damaged.
        """
        with self._lock:
            self._check_open()
            return self._reader.section(name)

    def each_part(self) -> Iterator[tuple[TensorEntry, Part, torch.Tensor]]:
        """Decodes everything in order, a group at a time, and compares it with the archive's SHA-256 at the end.

        Yields:
            A tensor's entry, the part of its first dimension, and the values of that part. Ties are given again.

        Raises:
            ChecksumMismatch: the restored tensors are not those that were packed.
            ArchiveError: the archive is damaged.
        """
        manifest, digest = self.manifest, TensorsDigest()
        located = places(manifest.groups, len(manifest.tensors)) if manifest.groups else []
        held: tuple[int, dict[str, torch.Tensor]] | None = None
        for index, entry in enumerate(manifest.tensors):
            digest.begin(entry.name, entry.dtype, entry.shape)
            owner = index if entry.tie_to is None else entry.tie_to
            for number, part in located[owner] if located else [(0, Part(owner))]:
                if held is None or held[0] != number:
                    held = None  # before the next one is made
                    held = number, self._restored_group(number)
                tensor = held[1][manifest.tensors[owner].name]
                digest.add(tensor)
                yield entry, Part(index, part.start, part.stop), tensor
        self._check_digest(digest.digest())

    def _restored_group(self, number: int) -> dict[str, torch.Tensor]:
        try:
            with self._lock:
                self._check_open()
                return self._restorer.restore_group(number)
        except ArchiveError as error:
            raise self._placed(error) from error

    def _check_digest(self, digest: bytes) -> None:
        if digest != self._reader.digest:
            raise ChecksumMismatch(
                f"{self._reader.path}: the restored tensors differ from those that were packed"
                f" (SHA-256 {digest.hex()}, expected {self._reader.digest.hex()}); get a fresh copy"
            )

    def versions(self) -> state_metadata.Versions | None:
        """What the source's `state_dict()._metadata` said of each module; None where it had none."""
        text = self.manifest.metadata.get(state_metadata.KEY)
        return None if text is None else state_metadata.from_text(text, self._entries)

    def check(self) -> None:
        """Compare every section's checksum.

        Raises:
            ArchiveError: one differs.
        """
        with self._lock:
            self._check_open()
            self._reader.check()

    def _owner(self, name: str) -> TensorEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise KeyError(f"{self._reader.path}: no tensor {name!r}{suggestion(str(name), self._entries)}")
        return entry if entry.tie_to is None else self.manifest.tensors[entry.tie_to]

    def _restore(self, entries: list[TensorEntry]) -> dict[str, torch.Tensor]:
        try:
            with self._lock:
                self._check_open()
                return self._restorer.restore(entries)
        except ArchiveError as error:
            raise self._placed(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self._reader.path}: the archive is closed; read its tensors before")

    def _placed(self, error: ArchiveError) -> ArchiveError:
        path = str(self._reader.path)
        return error if path in str(error) else type(error)(f"{path}: {error}")

    def inspect(self) -> InspectResult:
        """The archive in figures; checksums are compared, nothing is decoded.

        Raises:
            ArchiveError: the archive is damaged.
        """
        self.check()
        manifest, sections = self.manifest, self._reader.section_bytes
        dtypes = [entry_dtype(entry) for entry in manifest.tensors]
        sized = list(zip(manifest.tensors, dtypes, strict=True))
        return InspectResult(
            archive=str(self._reader.path),
            source=manifest.source,
            method=manifest.method,
            n_params=sum(entry.numel for entry, dtype in sized if dtype.is_floating_point),
            n_tensors=len(manifest.tensors),
            original_bytes=sum(entry.numel * dtype.itemsize for entry, dtype in sized),
            archive_bytes=self._reader.n_bytes,
            n_latents=manifest.n_latents or self._latents_of(sections.get("latents", 0)) or None,
            sections=sections,
            sqnr_db=manifest.sqnr_db,
            sha256=self._reader.digest.hex(),
            worst=manifest.worst,
            version=self._reader.version,
            padding=manifest.padding,
            tensors=tuple(
                TensorRow(e.name, e.dtype, e.shape, e.kind, self._kept(self._owner(e.name).kind))
                for e in manifest.tensors
            ),
        )

    def _kept(self, kind: str) -> str:
        exact = kind == "raw" or self._method.is_exact
        return "exact" if exact else "nearly exact" if kind == "fine" else "lossy"

    def _latents_of(self, n_bytes: int) -> int:
        return n_bytes // self._method.latent_bytes if self._method.latent_bytes else 0

    def close(self) -> None:
        """Close the file; what was restored stays."""
        with self._lock:
            self._closed = True
            self._reader.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """Open an archive to read tensors one by one, as a context manager.

    Raises:
        ArchiveError: it cannot be read.
    """
    return Archive(path)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Restore a state_dict from an archive.

    Args:
        path: the archive.
        device: where the tensors are to be.

    Returns:
        Name → tensor, in the source's order, tied names sharing one tensor. It has the source's `_metadata`, which
        `load_state_dict` reads, where there was one.

    Raises:
        ArchiveError: the archive is damaged, or what it restores to is not what was packed.
    """
    with Archive(path) as archive:
        archive.check()
        return state_metadata.attached(archive.load(device=device), archive.versions())


def inspect(path: str | os.PathLike[str]) -> InspectResult:
    """An archive in figures, without decoding it.

    Raises:
        ArchiveError: the archive is damaged.
    """
    with Archive(path) as archive:
        return archive.inspect()
