"""What reading an archive asks of its method. No training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.methods.lossless import LosslessReader
from wcompress.codec.methods.paper import PaperReader
from wcompress.codec.methods.trellis import VaeReader

Section = Callable[[str], bytes]
"""Gives a section's payload by name, empty for none."""


class CodedReader(Protocol):
    """Restores coded tensors."""

    def restore(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named, or all."""


class StoredMethod(Protocol):
    """How a method's archives are read.

    Attributes:
        is_exact: coded tensors come back bit for bit.
        magnitudes: the section that holds the root mean square of each coded tensor, float64; empty for none.
        latent_bytes: a latent's number in section `latents`, where the manifest does not tell how many there are; 0
            where there is no telling.
    """

    is_exact: ClassVar[bool]
    magnitudes: ClassVar[str]
    latent_bytes: ClassVar[int]

    def open(self, entries: Sequence[TensorEntry], section: Section, version: int, padding: int, /) -> CodedReader:
        """Read what all coded tensors of a group have in common.

        Args:
            entries: the coded tensors, in order, with the shapes of their parts.
            section: of the group.
            version: the archive's format version.
            padding: zeros at the end of the last block.

        Raises:
            ArchiveError: the sections do not hold what the entries say.
        """


class _Trellis:
    is_exact: ClassVar[bool] = False
    magnitudes: ClassVar[str] = ""
    latent_bytes: ClassVar[int] = 0

    def open(self, entries: Sequence[TensorEntry], section: Section, version: int, _padding: int, /) -> CodedReader:
        names = ("decoder", "latents", "tables", "symbols")
        return VaeReader(entries, {name: section(name) for name in names}, version)


class _Paper:
    is_exact: ClassVar[bool] = False
    magnitudes: ClassVar[str] = "scales"
    latent_bytes: ClassVar[int] = 2

    def open(self, entries: Sequence[TensorEntry], section: Section, version: int, padding: int, /) -> CodedReader:
        payloads = [section(name) for name in ("decoder", "latents", "scales")]
        return PaperReader(entries, padding, *payloads, coded=version > 2)


class _Lossless:
    is_exact: ClassVar[bool] = True
    magnitudes: ClassVar[str] = ""
    latent_bytes: ClassVar[int] = 0

    def open(self, entries: Sequence[TensorEntry], section: Section, _version: int, _padding: int, /) -> CodedReader:
        return LosslessReader(entries, section("symbols"))


STORED: Mapping[str, StoredMethod] = {"vae": _Trellis(), "paper": _Paper(), "lossless": _Lossless()}
"""By name, all of `wcompress.codec.container.manifest.METHODS`."""
