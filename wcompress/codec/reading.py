"""Opening archives: one tensor or all of them, and checking what comes out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

import numpy as np
import torch

from wcompress.archive import ArchiveReader
from wcompress.checkpoint import Checkpoint, read_checkpoint, state_metadata
from wcompress.codec.container.groups import places
from wcompress.codec.container.manifest import Manifest, Part, TensorEntry
from wcompress.codec.digest import TensorsDigest, tensors_digest
from wcompress.codec.methods.paper import root_mean_square
from wcompress.codec.names import suggestion
from wcompress.codec.restoring import Restorer
from wcompress.codec.results import InspectResult, TensorRow, VerifyResult
from wcompress.codec.slices import TensorSlice
from wcompress.codec.storage.dtypes import entry_dtype, is_as_float16
from wcompress.errors import ArchiveError, ChecksumMismatch
from wcompress.fidelity import compare, is_finite, same_bits

_SQNR_TOLERANCE_DB = 0.01


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
        return TensorSlice(entry.dtype, entry.shape, lambda: self.get_tensor(name))

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
            n_latents=manifest.n_latents
            or (sections.get("latents", 0) // 2 if manifest.method == "paper" else 0)
            or None,
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
        exact = kind == "raw" or self.manifest.method == "lossless"
        return "exact" if exact else "nearly exact" if kind == "fine" else "lossy"

    def foreign(self, original: Mapping[str, torch.Tensor], restored: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of coded and fine tensors that cannot have been packed from `original`.

        Method `paper` keeps each tensor's root mean square. For all methods, no tensor is restored much worse than
        zeros would be, and a fine one far better. Of refined values nothing of the kind is known.
        """
        foreign: list[str] = []
        if self.manifest.refined:
            return foreign
        scales = iter(np.frombuffer(self._reader.section("scales"), "<f8"))
        for entry in self.manifest.tensors:
            if entry.kind not in ("coded", "fine"):
                continue
            w = original[entry.name].double()
            same = _is_near(w, restored[entry.name].double(), 0.2 if entry.kind == "fine" else 1.5)
            if self.manifest.method == "paper":
                scale = float(next(scales))
                same = same and is_finite(w) and abs(root_mean_square(w.numpy()) - scale) <= 1e-9 * scale
            if not same and not same_bits(original[entry.name], restored[entry.name]):
                foreign.append(entry.name)
        return foreign

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


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    *,
    key: str | None = None,
) -> VerifyResult:
    """Compare every checksum, decode everything, and, given a model, measure the difference.

    Args:
        path: the archive.
        against: the model it was made from.
        key: entry of `against` that holds the model, see `read_checkpoint`.

    Returns:
        Error figures and what is wrong; damage itself is raised.

    Raises:
        ArchiveError: the archive is damaged.
        CheckpointError: `against` cannot be read.
    """
    with Archive(path) as archive:
        archive.check()
        restored = archive.load()
        sha256 = archive.inspect().sha256
        if against is None:
            return VerifyResult(sha256)
        original = read_checkpoint(against, key=key)
        errors = _differences(original, restored)
        if errors:
            return VerifyResult(sha256, errors=tuple(errors))
        errors += [
            f"tensor {entry.name!r} is kept bit for bit, and is not that of the model"
            for entry in archive.manifest.of_kind("raw")
            if not same_bits(original.tensors[entry.name], restored[entry.name])
            and not is_as_float16(original.tensors[entry.name], restored[entry.name])
        ]
        errors += [
            f"tensor {name!r} was made from other values" for name in archive.foreign(original.tensors, restored)
        ]
        figures = compare(original.tensors, restored)
        recorded = archive.manifest.sqnr_db
        if (recorded is None) != (figures.sqnr_db is None) or (
            recorded is not None
            and figures.sqnr_db is not None
            and abs(recorded - figures.sqnr_db) > _SQNR_TOLERANCE_DB
        ):
            errors.append(
                f"the archive records {_db(recorded)} against the model it was made from, this one gives"
                f" {_db(figures.sqnr_db)}: it was made from another model"
            )
        return VerifyResult(
            sha256, figures.sqnr_db, figures.max_abs_error, figures.lossless, tuple(errors), figures.tensors
        )


def _is_near(w: torch.Tensor, restored: torch.Tensor, allowed: float) -> bool:
    """Whether the error is at most so many times the size of `w`, and NaNs and infinities are where they were."""
    finite = w.isfinite()
    odd, other = w[~finite], restored[~finite]
    if not bool(((odd == other) | (odd.isnan() & other.isnan())).all()):
        return False
    return float((w - restored)[finite].norm()) <= allowed * float(w[finite].norm())


def _db(value: float | None) -> str:
    return "no SQNR" if value is None else f"an SQNR of {value:.2f} dB"


def _differences(original: Checkpoint, restored: Mapping[str, torch.Tensor]) -> list[str]:
    errors = [
        f"tensor {name!r} of the model is not in the archive" for name in original.tensors if name not in restored
    ]
    errors += [
        f"tensor {name!r} of the archive is not in the model" for name in restored if name not in original.tensors
    ]
    for name, tensor in original.tensors.items():
        other = restored.get(name)
        if other is not None and (other.shape != tensor.shape or other.dtype != tensor.dtype):
            errors.append(
                f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)} in the model,"
                f" {other.dtype} {list(other.shape)} in the archive"
            )
    return errors
