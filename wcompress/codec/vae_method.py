"""Method `vae`: what it stores, and restoring it.

Source: an entropy-coded trellis quantiser (wcompress/quantize) under a VAE prior (wcompress/vae/prior.py): the scale
hyperprior of Ballé et al., arXiv 1802.01436, on the blocks of Cheng et al.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.class_model import ClassModel
from wcompress.codec.context_model import ContextModel, check_length, stream_starts
from wcompress.codec.levels import LEVEL_UNITS, Levels
from wcompress.codec.manifest import TensorEntry
from wcompress.codec.own_scales import OwnScales
from wcompress.codec.raw import entry_dtype, round_to_dtype
from wcompress.codec.weights import CONTEXT_UNIT_BLOCKS, LAYOUTS, Sequencing
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.errors import ArchiveError
from wcompress.quantize.trellis import N_STATES, Trellis, quantisers, trellis

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class VaeCode:
    """Coded tensors as they are stored.

    Attributes:
        sequencing: layouts, blocks and units.
        machine: the trellis.
        step: of the quantiser, before a tensor's own scale.
        own_scales: what each tensor's or row's step is multiplied by.
        model: what the symbols are coded under.
        levels: of the quantisers.
        symbols: int32 `[n_weights]`.
    """

    sequencing: Sequencing
    machine: Trellis
    step: float
    own_scales: OwnScales
    model: ContextModel | ClassModel
    levels: Levels
    symbols: Ints

    def to_sections(self) -> dict[str, bytes]:
        """Payloads by section name."""
        out = BitWriter()
        sequencing = self.sequencing
        for byte in struct.pack("<d", self.step):
            out.write(byte, 8)
        out.write(N_STATES.index(self.machine.n_states), 4)
        out.write_exp_golomb(sequencing.block_size, 8)
        out.write_exp_golomb(sequencing.latent_dim, 4)
        for layout in sequencing.layouts:
            out.write(LAYOUTS.index(layout), 2)
        self.own_scales.write(out)
        self.levels.write(out)
        by_context = isinstance(self.model, ContextModel)
        out.write(by_context, 1)
        if by_context:
            self.levels.write_shifts(out)
        scales = BitWriter()
        latents = self.model.write(out, scales)
        symbols = self.model.encode(self.symbols, sequencing, self.machine)
        return {"decoder": scales.to_bytes(), "latents": latents, "tables": out.to_bytes(), "symbols": symbols}

    def restored(self, ratios: npt.NDArray[np.int8] | None) -> Floats:
        """The whole sequence of restored weights, float64 `[n_weights]`, given what signs were expected."""
        which = quantisers(self.symbols, self.sequencing.unit_starts, self.machine)
        return restore_weights(self, self.symbols, which, ratios, 0)


def restore_weights(
    code: VaeCode, symbols: Ints, which: npt.NDArray[np.uint8], ratios: npt.NDArray[np.int8] | None, first: int
) -> Floats:
    """Symbols from position `first` of the sequence on → weights, float64.

    Exact: a whole number times a power-of-two fraction of the step, times the own scale, each rounded once.
    """
    units = code.levels.units(symbols, which, code.machine, ratios)
    multipliers = code.own_scales.multipliers(code.sequencing, first, first + len(symbols))
    result: Floats = (units * (code.step / LEVEL_UNITS)) * multipliers
    return result


class VaeReader:
    """Restores tensors from the sections of method `vae`.

    Args:
        entries: the coded tensors, in order.
        sections: payloads by name: `decoder`, `latents`, `tables`, `symbols`.
        version: the archive's format version; 2 knows class tables alone.

    Raises:
        ArchiveError: the sections do not hold what the entries say.
    """

    def __init__(self, entries: Sequence[TensorEntry], sections: dict[str, bytes], version: int) -> None:
        self._entries = {entry.name: index for index, entry in enumerate(entries)}
        self._rows = entries
        self._data = sections["symbols"]
        data = BitReader(sections["tables"], "tables")
        (step,) = struct.unpack("<d", bytes(data.read(8) for _ in range(8)))
        code = data.read(4)
        block_size, latent_dim = data.read_exp_golomb(8), data.read_exp_golomb(4)
        layouts = [data.read(2) for _ in entries]
        n_weights = sum(entry.numel for entry in entries)
        if not math.isfinite(step) or code >= len(N_STATES) or max(layouts, default=0) >= len(LAYOUTS):
            raise ArchiveError("tables: an impossible step, trellis or layout; the archive is damaged")
        if any(layouts[i] and len(entry.shape) < 2 for i, entry in enumerate(entries)):
            raise ArchiveError("tables: a row of numbers cannot be turned around; the archive is damaged")
        check_block_size(block_size, latent_dim)
        # A symbol may take next to nothing, but not nothing: a stream of 16 units of 32 blocks has a byte of its own.
        if n_weights > 512 * block_size * max(1, len(self._data)):
            raise ArchiveError("symbols: more weights than the section can hold; the archive is damaged")
        sequencing = Sequencing(
            tuple(entry.shape for entry in entries), tuple(LAYOUTS[i] for i in layouts), block_size, latent_dim
        )
        own_scales = OwnScales.read(data, sequencing)
        levels = Levels.read(data)
        decoder = BitReader(sections["decoder"], "decoder")
        model: ContextModel | ClassModel
        if version > 2 and data.read(1):
            sequencing = replace(sequencing, unit_blocks=CONTEXT_UNIT_BLOCKS)
            check_length(n_weights, len(self._data) + 4 * (len(stream_starts(sequencing)) - 1))
            levels = levels.read_shifts(data)
            model = ContextModel.read(data, decoder, sections["latents"], sequencing)
        else:
            model = ClassModel.read(data, decoder, sections["latents"], sequencing)
        data.finish()
        decoder.finish()
        self._code = VaeCode(
            sequencing, trellis(N_STATES[code]), step, own_scales, model, levels, np.zeros(0, np.int32)
        )

    def restore(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named, or all; only the units they lie in are decoded."""
        wanted = list(self._entries) if names is None else list(names)
        sequencing = self._code.sequencing
        spans = {name: sequencing.starts[self._entries[name] : self._entries[name] + 2] for name in wanted}
        needed: set[int] = set()
        for start, end in spans.values():
            if end > start:
                first = int(np.searchsorted(sequencing.unit_starts, start, side="right")) - 1
                last = int(np.searchsorted(sequencing.unit_starts, end, side="left"))
                needed |= set(range(first, last))
        units = self._decode(sorted(needed))
        tensors: dict[str, torch.Tensor] = {}
        for name, (start, end) in spans.items():
            index = self._entries[name]
            parts = [
                weights[max(0, start - at) : end - at]
                for at, weights in units
                if at < end and at + len(weights) > start
            ]
            flat = np.concatenate(parts) if parts else np.zeros(0)
            tensors[name] = round_to_dtype(sequencing.unflatten(index, flat), entry_dtype(self._rows[index]))
        return tensors

    def _decode(self, units: list[int]) -> list[tuple[int, Floats]]:
        code, starts = self._code, self._code.sequencing.unit_starts
        decoded = code.model.decode(self._data, code.sequencing, code.machine, units)
        result = []
        for unit, (symbols, ratios) in zip(units, decoded, strict=True):
            at = int(starts[unit])
            which = quantisers(symbols, np.array([0, len(symbols)], np.int64), code.machine)
            result.append((at, restore_weights(code, symbols, which, ratios, at)))
        return result


def check_block_size(block_size: int, latent_dim: int) -> None:
    """A block is cut into as many sub-blocks as a latent has numbers, each a power of two of weights.

    Raises:
        ArchiveError: it is not.
    """
    sub_size = block_size // max(latent_dim, 1)
    if (
        latent_dim < 1
        or not 1 <= block_size <= 1 << 20
        or sub_size * latent_dim != block_size
        or sub_size & (sub_size - 1)
    ):
        raise ArchiveError(f"tables: blocks of {block_size} with latents of {latent_dim}; the archive is damaged")
