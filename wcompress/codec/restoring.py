"""Section payloads → tensors, whatever the method. Imports no training code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from wcompress.codec.container.manifest import METHOD_VERSIONS, Manifest, TensorEntry
from wcompress.codec.methods.lossless import LosslessReader
from wcompress.codec.methods.paper import PaperReader
from wcompress.codec.methods.trellis import VaeReader
from wcompress.codec.storage.exact import decode_raw
from wcompress.codec.storage.exceptions import Positions, decode_exceptions, with_exceptions
from wcompress.codec.storage.near_exact import decode_fine

if TYPE_CHECKING:
    from wcompress.checkpoint import Checkpoint
    from wcompress.codec.encoding import Encoded

SectionSource = Callable[[str], bytes]


class CodedReader(Protocol):
    """Restores coded tensors."""

    def restore(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named, or all."""


class Restorer:
    """Restores the tensors of an archive, decoding what it is asked for.

    Args:
        manifest: of the archive.
        section: gives a section's payload by name, empty for none.
        version: the archive's format version.
    """

    def __init__(self, manifest: Manifest, section: SectionSource, version: int) -> None:
        self._manifest = manifest
        self._section = section
        self._version = version
        self._coded: CodedReader | None = None
        self._exceptions: dict[str, tuple[Positions, torch.Tensor]] | None = None
        self._raw: bytes | None = None
        self._fine: dict[str, torch.Tensor] | None = None

    def restore(self, entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
        """Some tensors, none of them a tie, in memory of their own.

        Raises:
            ArchiveError: the archive is damaged.
        """
        tensors: dict[str, torch.Tensor] = {}
        if self._exceptions is None:
            self._exceptions = self._open_exceptions()
        coded = [entry.name for entry in entries if entry.kind == "coded"]
        if coded:
            if self._coded is None:
                self._coded = self._open_coded()
            tensors |= self._coded.restore(coded)
        raw = {entry.name for entry in entries if entry.kind == "raw"}
        if raw:
            if self._raw is None:
                self._raw = self._section("raw")
            tensors |= decode_raw(self._raw, self._manifest.of_kind("raw"), self._version, raw)
        fine = [entry.name for entry in entries if entry.kind == "fine"]
        if fine:
            if self._fine is None:
                self._fine = decode_fine(self._section("fine"), self._manifest.of_kind("fine"), self._version)
            # What was decoded once for all stays as it is, whatever a caller does to a tensor.
            tensors |= {name: self._fine[name].clone() for name in fine}
        for name in coded:
            if name in self._exceptions:
                tensors[name] = with_exceptions(tensors[name], *self._exceptions[name])
        return tensors

    def _open_exceptions(self) -> dict[str, tuple[Positions, torch.Tensor]]:
        entries = self._manifest.tensors
        found = decode_exceptions(self._section("exceptions"), entries, self._version)
        return {entries[index].name: exceptions for index, exceptions in found.items()}

    def _open_coded(self) -> CodedReader:
        manifest, section = self._manifest, self._section
        entries = manifest.of_kind("coded")
        if manifest.method == "paper":
            payloads = [section(name) for name in ("decoder", "latents", "scales")]
            return PaperReader(entries, manifest.padding, *payloads, coded=self._version > 2)
        if manifest.method == "lossless":
            return LosslessReader(entries, section("symbols"))
        return VaeReader(
            entries, {name: section(name) for name in ("decoder", "latents", "tables", "symbols")}, self._version
        )


def restore_encoded(checkpoint: Checkpoint, encoded: Encoded) -> dict[str, torch.Tensor]:
    """What a receiver will see of an encoded model, restored by the receiver's own code from the sections."""
    owners = Restorer(
        encoded.manifest(checkpoint), lambda name: encoded.payloads.get(name, b""), METHOD_VERSIONS[encoded.method]
    ).restore([entry for entry in encoded.entries if entry.kind != "tie"])
    return {name: owners[checkpoint.ties.get(name, name)] for name in checkpoint.tensors}
