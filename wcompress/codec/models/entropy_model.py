"""What a model of symbols offers, whichever it is: `class_tables` for speed, `context` for size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.entropy.bits import BitReader, BitWriter

Symbols = npt.NDArray[np.int32]
UseUnit = Callable[[int, Symbols, npt.NDArray[np.int8] | None], None]
"""Takes a unit's number, its symbols, and how signs were expected, if they were; called from several threads."""


class EntropyModel(Protocol):
    """What symbols are coded under: it is stored, and turns the symbols of all coded tensors into bytes and back.

    Symbols are int32 `[n_weights]`, in the order of a `Sequencing`, as a `Trellis` gives them.

    Attributes:
        code: of the kind of model, in archives. Literal, append-only.
        unit_blocks: blocks in a trellis unit, which is the least that is decoded.
        expects_signs: it says of a weight which sign is likely; restored weights may then be shifted that way.
        base_unit: bases are moved by multiples of it, in 1/8 octave, when the step changes.
    """

    code: ClassVar[int]
    unit_blocks: ClassVar[int]
    expects_signs: ClassVar[bool]
    base_unit: ClassVar[int]

    @property
    def scales(self) -> ScaleModel:
        """How large the weights of each tensor and sub-block are."""

    def with_bases(self, bases: Sequence[int]) -> Self:
        """The same with other base scales, one for each tensor."""

    def check(self) -> None:
        """Say that a reader takes the model.

        Raises:
            TableTooWideError: it does not.
        """

    def write(self, tables: BitWriter, decoder: BitWriter) -> bytes:
        """Write the model itself to two sections; the `latents` section is returned."""

    @classmethod
    def check_length(cls, sequencing: Sequencing, n_bytes: int) -> None:
        """Say that so many bytes can hold the symbols, before memory for these is taken.

        Raises:
            ArchiveError: they cannot.
        """

    @classmethod
    def read(cls, tables: BitReader, decoder: BitReader, latents: bytes, sequencing: Sequencing) -> Self:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """

    def encode(self, symbols: Symbols, sequencing: Sequencing, machine: Trellis) -> bytes:
        """The `symbols` section."""

    def decode(self, data: bytes, sequencing: Sequencing, machine: Trellis, units: Sequence[int], use: UseUnit) -> None:
        """Undo `encode` for some trellis units, each of which is given to `use`.

        Raises:
            ArchiveError: the section is malformed.
        """

    def tensor_bits(
        self, symbols: Symbols, sequencing: Sequencing, machine: Trellis, indices: Sequence[int]
    ) -> dict[int, float]:
        """About what the symbols of some tensors take in `encode`, bits by index of the tensor."""
