"""Symbols ↔ bytes under frequency tables, a pair for each class of scales: fast, for models of many millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from wcompress.codec.models.class_tables.rates import parametric_rates, table_rates
from wcompress.codec.models.class_tables.tables import ClassTables, decode_symbols, encode_symbols
from wcompress.codec.models.entropy_model import Symbols, UseUnit
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import UNIT_BLOCKS, Sequencing
from wcompress.codec.quantiser.trellis import Trellis, quantisers
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.errors import ArchiveError
from wcompress.vae.prior import UNITS_PER_CLASS


@dataclass(frozen=True)
class ClassModel:
    """The model, an `EntropyModel`.

    Attributes:
        scales: says each sub-block's class.
        tables: of the classes.
    """

    code: ClassVar[int] = 0
    unit_blocks: ClassVar[int] = UNIT_BLOCKS
    expects_signs: ClassVar[bool] = False
    base_unit: ClassVar[int] = UNITS_PER_CLASS  # within a class's width the classes stay

    scales: ScaleModel
    tables: ClassTables

    def with_bases(self, bases: Sequence[int]) -> ClassModel:
        """The same with other base scales, one for each tensor."""
        return replace(self, scales=replace(self.scales, bases=tuple(bases)))

    def check(self) -> None:
        """Say that a reader takes the tables.

        Raises:
            TableTooWideError: one has too many magnitudes.
        """
        self.tables.check()

    def write(self, tables: BitWriter, decoder: BitWriter) -> bytes:
        """Frequency tables go to `tables`, scales to `decoder`; the latents' stream is returned."""
        self.tables.write(tables)
        return self.scales.write(decoder)

    @classmethod
    def check_length(cls, sequencing: Sequencing, n_bytes: int) -> None:
        """Every unit is coded by itself, and takes a byte at least.

        Raises:
            ArchiveError: there are more units than bytes.
        """
        if len(sequencing.unit_starts) - 1 > n_bytes:
            raise ArchiveError("symbols: more units than the section can hold; the archive is damaged")

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

    def tensor_bits(
        self, symbols: Symbols, sequencing: Sequencing, machine: Trellis, indices: Sequence[int]
    ) -> dict[int, float]:
        """What the symbols of some tensors take by the tables, bits by index of the tensor."""
        which = quantisers(symbols, sequencing.unit_starts, machine)
        limit = max(1, int(np.abs(symbols).max(initial=0)))
        rates = table_rates(self.tables, parametric_rates(machine, limit))
        classes = self.scales.classes(sequencing.tensor_of_sub)
        found = {}
        for index in indices:
            start, end = (int(v) for v in sequencing.starts[index : index + 2])
            of = classes[np.arange(start, end) >> sequencing.sub_shift]
            bits = rates[of, which[start:end], symbols[start:end] + limit]
            found[index] = float(bits.sum(dtype=np.float64))
        return found
