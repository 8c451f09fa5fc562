"""Symbols ↔ bytes under frequency tables, a pair for each class of scales: fast, for models of many millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.codec.scales import ScaleModel
from wcompress.codec.symbols import ClassTables, decode_symbols, encode_symbols
from wcompress.codec.weights import Sequencing
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.quantize.trellis import Trellis

Symbols = npt.NDArray[np.int32]


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
        return encode_symbols(symbols, sequencing.unit_starts, self._classes(sequencing), machine, self.tables)

    def decode(
        self, data: bytes, sequencing: Sequencing, machine: Trellis, units: Sequence[int]
    ) -> list[tuple[Symbols, None]]:
        """The symbols of some trellis units; signs are never expected.

        Raises:
            ArchiveError: the section is malformed.
        """
        classes = self._classes(sequencing)
        return [
            (symbols, None)
            for symbols in decode_symbols(data, sequencing.unit_starts, classes, machine, self.tables, units)
        ]

    def _classes(self, sequencing: Sequencing) -> Symbols:
        classes = self.scales.classes(sequencing.tensor_of_sub)
        return np.repeat(classes, sequencing.sub_size)[: sequencing.n_weights]
