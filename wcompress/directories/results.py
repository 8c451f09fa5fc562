"""Figures of a folder of archives: sums over its archives."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.results import ArchiveSummary, InspectResult, PackResult, VerifyResult
from wcompress.codec.unpacking import UnpackResult
from wcompress.fidelity import TensorError, Worst, computable, energy


@dataclass(frozen=True)
class FolderPackResult(PackResult):
    """What packing a folder did: sums, and the result of each shard.

    Attributes:
        shards: one for each archive made, in order.
        n_side_files, side_file_bytes: kept byte for byte; a part of `archive_bytes`.
        work: the folder in which the work lies until `join`; None where all is done.
    """

    shards: tuple[PackResult, ...] = ()
    n_side_files: int = 0
    side_file_bytes: int = 0
    work: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `pack --json` prints: sums, with the shards' objects under `shards`."""
        return {
            **super().to_json(),
            "shards": [shard.to_json() for shard in self.shards],
            "side_files": {"count": self.n_side_files, "bytes": self.side_file_bytes},
            "work": self.work,
        }


@dataclass(frozen=True)
class FolderInspectResult(InspectResult):
    """What is in a folder of archives, without decoding.

    Attributes:
        shards: one for each archive, in order.
        n_side_files, side_file_bytes: kept byte for byte; a part of `archive_bytes`.
    """

    shards: tuple[InspectResult, ...] = ()
    n_side_files: int = 0
    side_file_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints: sums, with the shards' objects under `shards`."""
        return {
            **super().to_json(),
            "shards": [shard.to_json() for shard in self.shards],
            "side_files": {"count": self.n_side_files, "bytes": self.side_file_bytes},
        }


@dataclass(frozen=True)
class FolderVerifyResult(VerifyResult):
    """Whether a folder of archives is whole; `shards` has each archive's result, in order."""

    shards: tuple[VerifyResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `verify --json` prints: figures of all, with the shards' objects under `shards`."""
        document = super().to_json()
        return {**document, "shards": [shard.to_json() for shard in self.shards]}


@dataclass(frozen=True)
class FolderUnpackResult(UnpackResult):
    """What unpacking a folder wrote.

    Attributes:
        shards: one for each file of weights, in order.
        n_side_files: written beside them.
    """

    shards: tuple[UnpackResult, ...] = ()
    n_side_files: int = 0


def digest_of(digests: Sequence[str]) -> str:
    """The SHA-256 that stands for a folder: its only archive's, or that of all archives' SHA-256 end to end.

    Empty where one of them is unknown.
    """
    if len(digests) == 1 or "" in digests:
        return digests[0] if len(digests) == 1 else ""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def weights_energy(tensors: Mapping[str, torch.Tensor]) -> float:
    """Σw² over the finite elements of floating-point tensors of two or more dimensions; 0 where that is too large."""
    total = 0.0
    for tensor in tensors.values():
        if not tensor.is_floating_point() or tensor.ndim < 2 or not tensor.numel():
            continue
        try:
            array = computable(tensor).reshape(-1).numpy()
        except (RuntimeError, TypeError):  # a dtype that torch cannot compute with
            continue
        found = energy(array)
        total += found if math.isfinite(found) else energy(array[np.isfinite(array)])
    return total if math.isfinite(total) else 0.0


def pooled_sqnr_db(parts: Iterable[tuple[float | None, float]]) -> float | None:
    """The SQNR of all parts together, in dB; None where none lost anything.

    Args:
        parts: of each its SQNR in dB, None where nothing is lost, and the energy of its weights.
    """
    signal = noise = 0.0
    for sqnr_db, of_weights in parts:
        signal += of_weights
        noise += 0.0 if sqnr_db is None else of_weights * 10 ** (-sqnr_db / 10)
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def worst_of(found: Iterable[Worst | None]) -> Worst | None:
    """The poorest tensor and the poorest row of several archives."""
    lossy = [worst for worst in found if worst is not None]
    if not lossy:
        return None
    tensor = min(lossy, key=lambda worst: worst.sqnr_db)
    rows = [(worst.row_sqnr_db, worst.row_tensor) for worst in lossy if worst.row_sqnr_db is not None]
    row_db, row_tensor = min(rows, key=lambda row: row[0], default=(None, None))
    return Worst(tensor.tensor, tensor.sqnr_db, row_db, row_tensor)


def sums(shards: Sequence[ArchiveSummary], energies: Sequence[float], *, index: int, side: int) -> dict[str, Any]:
    """Fields of `ArchiveSummary` that are sums over shards, without the names of archive and source.

    Args:
        shards: of all archives.
        energies: of their weights, see `pooled_sqnr_db`.
        index, side: bytes of the index and of the side files, which count as sections of their own.
    """
    sections: dict[str, int] = {}
    for shard in shards:
        for name, size in shard.sections.items():
            sections[name] = sections.get(name, 0) + size
    sections |= {"index": index, "side_files": side}
    return {
        "method": shards[0].method,
        "n_params": sum(shard.n_params for shard in shards),
        "n_tensors": sum(shard.n_tensors for shard in shards),
        "original_bytes": sum(shard.original_bytes for shard in shards),
        "archive_bytes": sum(shard.archive_bytes for shard in shards) + index + side,
        "n_latents": sum(shard.n_latents or 0 for shard in shards) or None,
        "sections": sections,
        "sqnr_db": pooled_sqnr_db(zip((shard.sqnr_db for shard in shards), energies, strict=True)),
        "sha256": digest_of([shard.sha256 for shard in shards]),
        "worst": worst_of(shard.worst for shard in shards),
    }


def floors_of(shards: Sequence[PackResult]) -> Floors | None:
    """The floors that hold for every tensor and row of all shards."""
    found = [shard.floors for shard in shards if shard.floors is not None]
    if not found:
        return None
    return Floors(**{name: min(getattr(floors, name) for floors in found) for name in asdict(found[0])})


def verified(
    shards: Sequence[VerifyResult], energies: Sequence[float], errors: Sequence[str], *, compared: bool
) -> FolderVerifyResult:
    """The result for a folder, from those of its archives and what else was found."""
    compared = compared and all(shard.lossless is not None for shard in shards)
    largest = [shard.max_abs_error for shard in shards if shard.max_abs_error is not None]
    tensors: dict[str, TensorError] = {}
    for shard in shards:
        tensors |= shard.tensors or {}
    return FolderVerifyResult(
        digest_of([shard.sha256 for shard in shards]),
        pooled_sqnr_db(zip((shard.sqnr_db for shard in shards), energies, strict=True)) if compared else None,
        max(largest, default=None),
        all(shard.lossless for shard in shards) if compared else None,
        (*(error for shard in shards for error in shard.errors), *errors),
        tensors if compared else None,
        tuple(shards),
    )


def to_record(result: PackResult) -> dict[str, Any]:
    """A shard's result as plain values, for `from_record`."""
    return {**asdict(replace(result, history=None)), "task": None}


def from_record(record: Mapping[str, Any]) -> PackResult:
    """What `to_record` wrote, also after a round trip through JSON.

    Raises:
        TypeError, KeyError: it is something else.
    """
    found = _revived(PackResult, record)
    assert isinstance(found, PackResult)
    return found


def _revived(kind: Any, value: Any) -> Any:
    """A value of a field's type, from the plain values that `asdict` and JSON make of it."""
    parts = get_args(kind)
    if value is None or kind is Any:
        return value
    if get_origin(kind) in (Union, UnionType):
        return _revived(next(part for part in parts if part is not type(None)), value)
    if get_origin(kind) is tuple:
        kinds = [parts[0]] * len(value) if parts[1:] == (...,) else parts
        return tuple(_revived(part, one) for part, one in zip(kinds, value, strict=True))
    if is_dataclass(kind) and isinstance(kind, type):
        # Names that the module imports for type checkers only.
        hints = get_type_hints(kind, localns={"TrainingHistory": object, "Floors": Floors})
        return kind(**{field.name: _revived(hints[field.name], value[field.name]) for field in fields(kind)})
    return value
