"""Checking an archive: that it is intact, and how far what it restores to is from a model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from wcompress.checkpoint import Checkpoint, read_checkpoint
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.methods.paper import root_mean_square
from wcompress.codec.methods.stored import STORED
from wcompress.codec.reading import Archive
from wcompress.codec.results import VerifyResult
from wcompress.codec.storage.dtypes import is_as_float16
from wcompress.fidelity import Comparison, ErrorFigures, is_finite, same_bits

_SQNR_TOLERANCE_DB = 0.01
_NEAR = {"coded": 1.5, "fine": 0.2}
"""How large the error of a tensor may be, in its own size, if it was packed from the model."""


def verify(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    *,
    key: str | None = None,
) -> VerifyResult:
    """Compare every checksum, decode everything, and, given a model, measure the difference; a group at a time.

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
        original = None if against is None else read_checkpoint(against, key=key)
        errors = [] if original is None else _differences(original, archive.manifest.tensors)
        if original is None or errors:
            for _ in archive.each_part():
                pass
            return VerifyResult(archive.sha256, errors=tuple(errors))
        comparison, origins = Comparison(), _Origins(archive)
        for entry, part, tensor in archive.each_part():
            whole = original.tensors[entry.name]
            if part.stop is None:
                comparison.add(entry.name, whole, tensor)
                origins.add(entry, whole, tensor)
            else:
                some = whole[part.start : part.stop]
                comparison.add(entry.name, some, tensor, slab_of=tuple(whole.shape))
                origins.add(entry, some, tensor)
            original.release(entry.name, part.start, part.stop)
        figures = comparison.figures()
        errors = [*origins.errors(), *_unlike_record(archive, figures)]
        return VerifyResult(
            archive.sha256, figures.sqnr_db, figures.max_abs_error, figures.lossless, tuple(errors), figures.tensors
        )


class _Origins:
    """Whether tensors can have been packed from a model's.

    Some methods keep each tensor's root mean square. For all of them, no tensor is restored much worse than zeros
    would be, and a fine one far better. Of refined values nothing of the kind is known.
    """

    def __init__(self, archive: Archive) -> None:
        manifest = archive.manifest
        self._refined = manifest.refined
        self._scales: Iterator[float] | None = None
        if section := STORED[manifest.method].magnitudes:
            self._scales = iter(np.frombuffer(archive.section(section), "<f8").tolist())
        self._other: dict[str, None] = {}  # raw tensors that are not the model's
        self._foreign: dict[str, None] = {}
        self._energies: dict[str, tuple[float, float, str]] = {}  # of a tensor's weights and errors, and its kind
        self._differing: set[str] = set()

    def add(self, entry: TensorEntry, w: torch.Tensor, restored: torch.Tensor) -> None:
        """Part of a tensor, and what it was restored to."""
        if entry.kind == "tie":
            return
        same = same_bits(w, restored)
        if entry.kind == "raw":
            if not same and not is_as_float16(w, restored):
                self._other[entry.name] = None
            return
        if self._refined:
            return
        values, found = w.double(), restored.double()
        if self._scales is not None and entry.kind == "coded":
            scale = next(self._scales)
            if not (is_finite(w) and abs(root_mean_square(values.numpy()) - scale) <= 1e-9 * scale) and not same:
                self._foreign[entry.name] = None
        if same:
            error = 0.0
        else:
            self._differing.add(entry.name)
            finite = values.isfinite()
            odd, other = values[~finite], found[~finite]
            if not bool(((odd == other) | (odd.isnan() & other.isnan())).all()):
                self._foreign[entry.name] = None
            error = float((values - found)[finite].square().sum())
        energy, noise, _ = self._energies.get(entry.name, (0.0, 0.0, ""))
        self._energies[entry.name] = (
            energy + float(values.nan_to_num(0, 0, 0).square().sum()),
            noise + error,
            entry.kind,
        )

    def errors(self) -> list[str]:
        """One line each."""
        found = [f"tensor {name!r} is kept bit for bit, and is not that of the model" for name in self._other]
        for name, (energy, noise, kind) in self._energies.items():
            if name in self._differing and not math.sqrt(noise) <= _NEAR[kind] * math.sqrt(energy):
                self._foreign[name] = None
        return found + [f"tensor {name!r} was made from other values" for name in self._foreign]


def _unlike_record(archive: Archive, figures: ErrorFigures) -> list[str]:
    recorded, measured = archive.manifest.sqnr_db, figures.sqnr_db
    if recorded is None and measured is None:
        return []
    if recorded is not None and measured is not None and abs(recorded - measured) <= _SQNR_TOLERANCE_DB:
        return []
    return [
        f"the archive records {_db(recorded)} against the model it was made from, this one gives {_db(measured)}:"
        " it was made from another model"
    ]


def _db(value: float | None) -> str:
    return "no SQNR" if value is None else f"an SQNR of {value:.2f} dB"


def _differences(original: Checkpoint, entries: Sequence[TensorEntry]) -> list[str]:
    held = {entry.name: entry for entry in entries}
    errors = [f"tensor {name!r} of the model is not in the archive" for name in original.tensors if name not in held]
    errors += [f"tensor {name!r} of the archive is not in the model" for name in held if name not in original.tensors]
    for name, tensor in original.tensors.items():
        other = held.get(name)
        if other is not None and (other.shape != tuple(tensor.shape) or f"torch.{other.dtype}" != str(tensor.dtype)):
            errors.append(
                f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)} in the model,"
                f" torch.{other.dtype} {list(other.shape)} in the archive"
            )
    return errors
