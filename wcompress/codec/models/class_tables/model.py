"""Symbols ↔ bytes under frequency tables, a pair for each class of scales: fast, for models of many millions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.class_tables.tables import ClassTables, decode_symbols, encode_symbols
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.entropy.bits import BitReader, BitWriter

Symbols = npt.NDArray[np.int32]
UseUnit = Callable[[int, Symbols, npt.NDArray[np.int8] | None], None]
"""Takes a unit's number, its symbols, and how signs were expected, if they were; called from several threads."""


@dataclass(frozen=True)
class ClassModel:
    """The model.

    Attributes:
        scales: says each sub-block's class.
        tables: of the classes.
    """

    scales: ScaleModel
    tables: ClassTables

    def write(self, tables: BitWriter, decoder: BitWriter) -> bytes:
        """Frequency tables go to `tables`, scales to `decoder`; the latents' stream is returned."""
        self.tables.write(tables)
        return self.scales.write(decoder)

    @classmethod
    def read(cls, tables: BitReader, decoder: BitReader, latents: bytes, sequencing: Sequencing) -> ClassModel:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        found = ClassTables.read(tables)
        n_tensors = len(sequencing.shapes)
        return cls(ScaleModel.read(decoder, latents, n_tensors, sequencing.n_blocks, sequencing.latent_dim), found)

    def encode(self, symbols: Symbols, sequencing: Sequencing, machine: Trellis) -> bytes:
        """The `symbols` section."""
        return encode_symbols(
            symbols,
            sequencing.unit_starts,
            self.scales.classes(sequencing.tensor_of_sub),
            sequencing.sub_shift,
            machine,
            self.tables,
        )

    def decode(self, data: bytes, sequencing: Sequencing, machine: Trellis, units: Sequence[int], use: UseUnit) -> None:
        """Decode some trellis units; `use` gets each one, and no ratios, for signs are never expected.

        Raises:
            ArchiveError: the section is malformed.
        """
        classes = self.scales.classes(sequencing.tensor_of_sub)
        starts, shift = sequencing.unit_starts, sequencing.sub_shift
        decode_symbols(
            data, starts, classes, shift, machine, self.tables, units, lambda unit, symbols: use(unit, symbols, None)
        )
