"""Writing a model of several groups: each is encoded, restored, compared with the original, written and forgotten."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wcompress.archive import ArchiveWriter
from wcompress.checkpoint import Checkpoint
from wcompress.codec.container.groups import slabs
from wcompress.codec.container.manifest import GROUPED_VERSION, QUICK_VERSION, Manifest, TensorEntry
from wcompress.codec.digest import TensorsDigest
from wcompress.codec.encoded import Encoded
from wcompress.codec.grouped_encoding import GroupedEncoding
from wcompress.codec.methods.stored import STORED
from wcompress.codec.options import PackOptions
from wcompress.codec.rate_control.floors import Floors
from wcompress.codec.restoring import restore_group
from wcompress.codec.results import TensorChoice
from wcompress.codec.storage.dtypes import empty
from wcompress.fidelity import Comparison, ErrorFigures
from wcompress.progress import Progress
from wcompress.threads import in_order

CHECKING = "checking what the archive restores to"

GROUPS_AT_ONCE = 4
"""Groups in memory, at most."""

_STAGE = "group {} of {}"
_PROGRESS_PARTS = 1000


@dataclass(frozen=True)
class Written:
    """An archive that was written.

    Attributes:
        manifest: of it.
        digest: of what it restores to, 32 bytes.
        sections: bytes by section name; they add up to the file's size.
        figures: what it restores to against the original.
        floors: that hold for every tensor and row; None where there are none.
        warnings: one line each.
        seconds: by what they were spent on.
        restored: what it restores to, by name; empty where that is not kept.
        choices: the tensors for which a rule chose.
    """

    manifest: Manifest
    digest: bytes
    sections: dict[str, int]
    figures: ErrorFigures
    floors: Floors | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    restored: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    choices: tuple[TensorChoice, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return sum(self.sections.values())


def write_groups(
    encoding: GroupedEncoding,
    checkpoint: Checkpoint,
    options: PackOptions,
    path: Path,
    progress: Progress | None,
    *,
    keep_restored: bool,
    refined: bool = False,
    once: bool = False,
) -> Written:
    """Encodes and writes all groups, in as many passes as the target takes.

    Args:
        encoding: of the model.
        checkpoint: the model.
        options: how to pack.
        path: of the archive, which does not exist yet.
        progress: called as the work goes on.
        keep_restored: whether the restored tensors are to be returned.
        refined: see `wcompress.codec.container.manifest.Manifest`.
        once: one pass will do, whether or not the target is met.
    """
    while True:
        written = _one_pass(encoding, checkpoint, options, path, progress, keep_restored=keep_restored, refined=refined)
        if once or not encoding.again(written.figures.sqnr_db, written.n_bytes):
            return written
        path.unlink()


def _one_pass(
    encoding: GroupedEncoding,
    checkpoint: Checkpoint,
    options: PackOptions,
    path: Path,
    progress: Progress | None,
    *,
    keep_restored: bool,
    refined: bool,
) -> Written:
    entries, groups = encoding.entries, encoding.groups
    comparison = Comparison(exact=STORED[options.method].is_exact)
    restored = _Restored(entries, keep_all=keep_restored)
    n_latents = padding = 0
    spent = {"encode": 0.0, "check": 0.0}
    n_done, n_all = 0, sum(entry.numel for entry in entries if entry.kind != "tie")
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(ArchiveWriter(path, QUICK_VERSION if options.is_quick else GROUPED_VERSION))
        encoded_groups = stack.enter_context(contextlib.closing(_encoded(encoding, spent)))
        for number, (encoded, tensors) in encoded_groups:
            start = time.perf_counter()
            of_group = slabs(entries, groups[number])
            n_done += sum(slab.entry.numel for slab in of_group)
            n_latents += encoded.n_latents
            padding += encoded.padding
            for name, payload in encoded.payloads.items():
                if payload:
                    writer.add(name, payload, number)
            for slab in of_group:
                name, tensor = slab.entry.name, tensors[slab.entry.name]
                original = checkpoint.tensors[name]
                if slab.is_whole:
                    comparison.add(name, original, tensor)
                else:
                    some = original[slab.part.start : slab.part.stop]
                    comparison.add(name, some, tensor, slab_of=tuple(original.shape))
                checkpoint.release(name, slab.part.start, slab.part.stop)
                restored.add(slab.part.index, slab.part.start, tensor)
            spent["check"] += time.perf_counter() - start
            if progress is not None:
                stage = _STAGE.format(number + 1, len(groups))
                progress(round(_PROGRESS_PARTS * n_done / max(n_all, 1)), _PROGRESS_PARTS, {"stage": stage})
        restored.finish()
        for name, owner in checkpoint.ties.items():
            comparison.tie(name, owner)
        figures = comparison.figures()
        manifest = Manifest(
            method=options.method,
            source=checkpoint.source,
            tensors=entries,
            padding=padding,
            n_latents=n_latents,
            sqnr_db=figures.sqnr_db,
            metadata=dict(checkpoint.metadata),
            worst=figures.worst,
            groups=groups,
            refined=refined,
            quick=options.is_quick,
        )
        writer.add("manifest", manifest.to_bytes())
        digest = restored.digest.digest()
        sections = writer.finish(digest)
    return Written(
        manifest,
        digest,
        sections,
        figures,
        encoding.floors,
        encoding.warnings,
        spent,
        restored.named(),
        encoding.choices,
    )


def _encoded(
    encoding: GroupedEncoding, spent: dict[str, float]
) -> Generator[tuple[int, tuple[Encoded, dict[str, torch.Tensor]]], None, None]:
    """Each group, encoded and restored again; as many at once as there are threads, four at most.

    While one is written others are at work.
    """

    def one(number: int) -> tuple[Encoded, dict[str, torch.Tensor]]:
        encoded = encoding.encode(number)
        return encoded, restore_group(encoded)

    with contextlib.closing(in_order(one, range(len(encoding.groups)), GROUPS_AT_ONCE)) as found:
        for number in range(len(encoding.groups)):
            start = time.perf_counter()
            group = next(found)
            spent["encode"] += time.perf_counter() - start
            yield number, group


class _Restored:
    """Restored parts as they come, in order: their digest, and the tensors that are needed again."""

    def __init__(self, entries: tuple[TensorEntry, ...], *, keep_all: bool) -> None:
        self.digest = TensorsDigest()
        self._entries, self._keep_all = entries, keep_all
        tied = {entry.tie_to for entry in entries if entry.tie_to is not None}
        self._kept = set(range(len(entries))) if keep_all else tied
        self._held: dict[int, torch.Tensor] = {}
        self._at = 0  # entries begun

    def add(self, index: int, start: int, tensor: torch.Tensor) -> None:
        """Part of the tensor with this entry, from index `start` of its first dimension."""
        entry = self._entries[index]
        if start == 0:
            self._ties_before(index)
            self.digest.begin(entry.name, entry.dtype, entry.shape)
            self._at = index + 1
        self.digest.add(tensor)
        if index not in self._kept:
            return
        if tuple(tensor.shape) == entry.shape:
            self._held[index] = tensor
            return
        if start == 0:
            self._held[index] = empty(entry.shape, tensor.dtype)
        self._held[index][start : start + len(tensor)] = tensor

    def finish(self) -> None:
        """After the last part."""
        self._ties_before(len(self._entries))

    def named(self) -> dict[str, torch.Tensor]:
        """All tensors by name, in order, where they are all kept."""
        if not self._keep_all:
            return {}
        places = {e.name: i if e.tie_to is None else e.tie_to for i, e in enumerate(self._entries)}
        return {name: self._held[place] for name, place in places.items()}

    def _ties_before(self, index: int) -> None:
        for place in range(self._at, index):
            entry = self._entries[place]
            assert entry.tie_to is not None
            self.digest.begin(entry.name, entry.dtype, entry.shape)
            self.digest.add(self._held[entry.tie_to])
        self._at = index
