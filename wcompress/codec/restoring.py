"""Section payloads → tensors, whatever the method. Imports no training code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from wcompress.codec.container.groups import places, slabs
from wcompress.codec.container.manifest import METHOD_VERSIONS, Manifest, Part, TensorEntry
from wcompress.codec.methods.stored import STORED, CodedReader, Section
from wcompress.codec.storage.dtypes import empty
from wcompress.codec.storage.exact import decode_raw
from wcompress.codec.storage.exceptions import Positions, decode_exceptions, with_exceptions
from wcompress.codec.storage.near_exact import decode_fine
from wcompress.fidelity import as_bytes

if TYPE_CHECKING:
    from wcompress.checkpoint import Checkpoint
    from wcompress.codec.encoded import Encoded

SectionSource = Callable[[str, int], bytes]


class Restorer:
    """Restores the tensors of an archive, decoding what it is asked for.

    What a group needs to be decoded is kept until another group is asked for.

    Args:
        manifest: of the archive.
        section: gives a section's payload by name and group, empty for none.
        version: the archive's format version.
    """

    def __init__(self, manifest: Manifest, section: SectionSource, version: int) -> None:
        self._manifest, self._section, self._version = manifest, section, version
        groups = manifest.groups
        self._places = places(groups, len(manifest.tensors)) if groups else []
        self._indices = {entry.name: index for index, entry in enumerate(manifest.tensors)}
        self._current: tuple[int, GroupRestorer] | None = None

    def restore(self, entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
        """Some tensors, none of them a tie, in the order of their names.

        Raises:
            ArchiveError: the archive is damaged.
        """
        if not self._manifest.groups:
            return self._group(0).restore([entry.name for entry in entries])
        wanted: dict[int, list[tuple[TensorEntry, Part]]] = {}
        for entry in entries:
            for number, part in self._places[self._indices[entry.name]]:
                wanted.setdefault(number, []).append((entry, part))
        tensors: dict[str, torch.Tensor] = {}
        for number in sorted(wanted):
            found = self._group(number).restore([entry.name for entry, _ in wanted[number]])
            for entry, part in wanted[number]:
                tensor = found[entry.name]
                if part.stop is None:
                    tensors[entry.name] = tensor
                    continue
                # The whole is made once; slabs are written into it as they come.
                if entry.name not in tensors:
                    tensors[entry.name] = empty(entry.shape, tensor.dtype)
                as_bytes(tensors[entry.name][part.start : part.stop]).copy_(as_bytes(tensor))
        return {entry.name: tensors[entry.name] for entry in entries}

    def restore_rows(self, entry: TensorEntry, start: int, stop: int | None) -> tuple[torch.Tensor, int]:
        """The slabs of a tensor that hold the indices start to stop - 1 of its first dimension, and where they begin.

        Raises:
            ArchiveError: the archive is damaged.
        """
        located = self._places[self._indices[entry.name]] if self._places else []
        needed = [
            (number, part)
            for number, part in located
            if part.stop is not None and part.stop > start and (stop is None or part.start < stop)
        ]
        if not needed or len(needed) == len(located):
            return self.restore([entry])[entry.name], 0
        slabs_of = [self._group(number).restore([entry.name])[entry.name] for number, _ in needed]
        return (slabs_of[0] if len(slabs_of) == 1 else torch.cat(slabs_of)), needed[0][1].start

    def restore_group(self, number: int) -> dict[str, torch.Tensor]:
        """All parts of one group by their tensor's name."""
        return self._group(number).restore(None)

    def _group(self, number: int) -> GroupRestorer:
        if self._current is None or self._current[0] != number:
            self._current = None  # before the next one is made
            entries = self._manifest.tensors
            if self._manifest.groups:
                entries = tuple(slab.entry for slab in slabs(entries, self._manifest.groups[number]))
            section = self._section
            restorer = GroupRestorer(
                self._manifest.method,
                entries,
                lambda name: section(name, number),
                self._version,
                self._manifest.padding,
            )
            self._current = number, restorer
        return self._current[1]


class GroupRestorer:
    """Restores the tensors of one group.

    Args:
        method: of the archive.
        entries: of the group, with the shapes of its parts; of a model that is one group, of all tensors.
        section: gives a section's payload by name, empty for none.
        version: the archive's format version.
        padding: zeros at the end of the last block.
    """

    def __init__(
        self,
        method: str,
        entries: Sequence[TensorEntry],
        section: Section,
        version: int,
        padding: int,
    ) -> None:
        self._method, self._entries, self._padding = STORED[method], tuple(entries), padding
        self._kinds = {entry.name: entry.kind for entry in entries}
        self._section = section
        self._version = version
        self._coded: CodedReader | None = None
        self._exceptions: dict[str, tuple[Positions, torch.Tensor]] | None = None
        self._raw: bytes | None = None
        self._fine: dict[str, torch.Tensor] | None = None

    def restore(self, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """Some tensors by name, or all that are no ties, in memory of their own.

        Raises:
            ArchiveError: the archive is damaged.
        """
        wanted = [entry.name for entry in self._entries if entry.kind != "tie"] if names is None else list(names)
        tensors: dict[str, torch.Tensor] = {}
        if self._exceptions is None:
            self._exceptions = self._open_exceptions()
        coded = [name for name in wanted if self._kinds[name] == "coded"]
        if coded:
            if self._coded is None:
                entries = self._of_kind("coded")
                self._coded = self._method.open(entries, self._section, self._version, self._padding)
            tensors |= self._coded.restore(coded)
        raw = {name for name in wanted if self._kinds[name] == "raw"}
        if raw:
            if self._raw is None:
                self._raw = self._section("raw")
            tensors |= decode_raw(self._raw, self._of_kind("raw"), self._version, raw)
        fine = [name for name in wanted if self._kinds[name] == "fine"]
        if fine:
            if self._fine is None:
                self._fine = decode_fine(self._section("fine"), self._of_kind("fine"), self._version)
            # What was decoded once for all stays as it is, whatever a caller does to a tensor.
            tensors |= {name: self._fine[name].clone() for name in fine}
        for name in coded:
            if name in self._exceptions:
                tensors[name] = with_exceptions(tensors[name], *self._exceptions[name])
        return tensors

    def _of_kind(self, kind: str) -> tuple[TensorEntry, ...]:
        return tuple(entry for entry in self._entries if entry.kind == kind)

    def _open_exceptions(self) -> dict[str, tuple[Positions, torch.Tensor]]:
        found = decode_exceptions(self._section("exceptions"), self._entries, self._version)
        return {self._entries[index].name: exceptions for index, exceptions in found.items()}


def restore_encoded(checkpoint: Checkpoint, encoded: Encoded) -> dict[str, torch.Tensor]:
    """What a receiver will see of an encoded model, restored by the receiver's own code from the sections."""
    owners = restore_group(encoded)
    return {name: owners[checkpoint.ties.get(name, name)] for name in checkpoint.tensors}


def restore_group(encoded: Encoded) -> dict[str, torch.Tensor]:
    """The same of a group of a model, without ties."""
    payloads, version = encoded.payloads, METHOD_VERSIONS[encoded.method]
    restorer = GroupRestorer(
        encoded.method, encoded.entries, lambda name: payloads.get(name, b""), version, encoded.padding
    )
    return restorer.restore(None)
