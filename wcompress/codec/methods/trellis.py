"""Method `vae`: what it stores, and restoring it.

Source: an entropy-coded trellis quantiser (`codec/quantiser`) under a VAE prior (`vae/prior.py`): the scale
hyperprior of Ballé et al., arXiv 1802.01436, on the blocks of Cheng et al.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.models.class_tables.model import ClassModel
from wcompress.codec.models.context.model import ContextModel
from wcompress.codec.models.entropy_model import EntropyModel
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.sequence import LAYOUTS, Sequencing
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import N_STATES, Trellis, quantisers, trellis
from wcompress.codec.quantiser.views import Scales, View, look_up
from wcompress.codec.storage.dtypes import empty, entry_dtype, round_to_dtype
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.errors import ArchiveError
from wcompress.fidelity import as_bytes, farthest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

_MOST_LOOKED_UP = 1 << 16  # values in a table
_NO_TABLE = np.zeros((0, 0), np.uint8)
_MACHINES_BEFORE_4 = 8  # format versions before 4 have trellises of up to 256 states
_MODELS: tuple[type[EntropyModel], ...] = (ClassModel, ContextModel)
"""By their code."""


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
    model: EntropyModel
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
        out.write(self.model.code, 1)
        if self.model.expects_signs:
            self.levels.write_shifts(out)
        scales = BitWriter()
        latents = self.model.write(out, scales)
        symbols = self.model.encode(self.symbols, sequencing, self.machine)
        return {"decoder": scales.to_bytes(), "latents": latents, "tables": out.to_bytes(), "symbols": symbols}

    def restored(self, ratios: npt.NDArray[np.int8] | None) -> Floats:
        """What the symbols restore to before it is rounded to a dtype, float64 `[n_weights]`.

        Args:
            ratios: how signs were expected, None for not at all.
        """
        which = quantisers(self.symbols, self.sequencing.unit_starts, self.machine)
        multipliers = self.own_scales.multipliers(self.sequencing, 0, self.sequencing.n_weights)
        return self.levels.restored(self.symbols, which, self.machine, ratios, self.step, multipliers)

    def scales(self, index: int, limit: int) -> Scales | None:
        """The scales of tensor `index`, where its weights can be looked up by symbol and scale.

        Args:
            index: of the tensor.
            limit: the largest magnitude of its symbols.

        Returns:
            None under a trellis of several states, or where the table would be large.
        """
        if self.machine.n_states > 1 or limit > _MOST_LOOKED_UP:
            return None
        found = Scales.of(self.own_scales, self.sequencing, index)
        return found if found is not None and len(found.scales) * (2 * limit + 1) <= _MOST_LOOKED_UP else None

    def squared_error(
        self, weights: npt.NDArray[np.floating], multipliers: Floats, ratios: npt.NDArray[np.int8] | None
    ) -> float:
        """Σ (weight − restored)² over the sequence.

        Args:
            weights: of any float dtype, `[n_weights]`.
            multipliers: as `OwnScales.multipliers` gives them for all weights.
            ratios: how signs were expected, None for not at all.
        """
        which = quantisers(self.symbols, self.sequencing.unit_starts, self.machine)
        return self.levels.squared_error(self.symbols, which, self.machine, ratios, self.step, multipliers, weights)


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
        n_machines = len(N_STATES) if version > 3 else _MACHINES_BEFORE_4
        if not math.isfinite(step) or code >= n_machines or max(layouts, default=0) >= len(LAYOUTS):
            raise ArchiveError("tables: an impossible step, trellis or layout; the archive is damaged")
        if any(layouts[i] and len(entry.shape) < 2 for i, entry in enumerate(entries)):
            raise ArchiveError("tables: a 1-D tensor cannot be transposed; the archive is damaged")
        check_block_size(block_size, latent_dim)
        # A symbol may take next to nothing, but not nothing: a stream of 16 units of 32 blocks has a byte of its own.
        if n_weights > 512 * block_size * max(1, len(self._data)):
            raise ArchiveError("symbols: more weights than the section can hold; the archive is damaged")
        sequencing = Sequencing(
            tuple(entry.shape for entry in entries), tuple(LAYOUTS[i] for i in layouts), block_size, latent_dim
        )
        own_scales = OwnScales.read(data, sequencing, version)
        levels = Levels.read(data)
        decoder = BitReader(sections["decoder"], "decoder")
        kind = _MODELS[data.read(1) if version > 2 else ClassModel.code]
        sequencing = replace(sequencing, unit_blocks=kind.unit_blocks)
        kind.check_length(sequencing, len(self._data))
        if kind.expects_signs:
            levels = levels.read_shifts(data)
        model = kind.read(data, decoder, sections["latents"], sequencing)
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
        try:
            flat = {
                name: empty((int(end - start),), entry_dtype(self._rows[self._entries[name]]))
                for name, (start, end) in spans.items()
            }
        except (MemoryError, RuntimeError) as error:
            n_wanted = sum(int(end - start) for start, end in spans.values())
            raise ArchiveError(f"no memory for {n_wanted} weights; restore fewer tensors at once") from error
        code = self._code
        looked_up: dict[str, tuple[int, Scales | None, npt.NDArray[Any]]] = {}

        def table(name: str, limit: int, dtype: torch.dtype) -> tuple[Scales | None, npt.NDArray[Any]]:
            # What the symbols of a tensor stand for, in its dtype.
            known, scales, values = looked_up.get(name, (-1, None, _NO_TABLE))
            if known < limit:
                limit += limit >> 2
                scales = code.scales(self._entries[name], limit)
                if scales is not None:
                    found = code.levels.table(code.machine, limit, code.step, scales.scales)
                    words = as_bytes(round_to_dtype(found.reshape(-1), dtype)).numpy()
                    values = words.view(f"u{dtype.itemsize}").reshape(found.shape)
                looked_up[name] = limit, scales, values
            return scales, values

        def restored(unit: int, symbols: Ints, ratios: npt.NDArray[np.int8] | None) -> None:
            at = int(sequencing.unit_starts[unit])
            if code.machine.n_states == 1 and ratios is None:
                limit, stop = int(farthest(symbols)), at + len(symbols)
                for name, index, first, last in parts(at, stop):
                    scales, values = table(name, limit, flat[name].dtype)
                    if scales is None:
                        break
                    inner = View.of(sequencing, index).inner
                    start = int(sequencing.starts[index])
                    out = as_bytes(flat[name][first - start : last - start]).numpy().view(values.dtype)
                    look_up(symbols[first - at : last - at], first - start, scales, inner, values, out)
                else:
                    return
            which = quantisers(symbols, np.array([0, len(symbols)], np.int64), code.machine)
            multipliers = code.own_scales.multipliers(sequencing, at, at + len(symbols))
            weights = code.levels.restored(symbols, which, code.machine, ratios, code.step, multipliers)
            for name, index, first, last in parts(at, at + len(weights)):
                start = int(sequencing.starts[index])
                part = round_to_dtype(weights[first - at : last - at], flat[name].dtype)
                as_bytes(flat[name][first - start : last - start]).numpy()[:] = as_bytes(part).numpy()

        def parts(at: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
            # Of what lies between two places of the sequence, the tensors that are wanted, and from where to where.
            begin, end = np.searchsorted(sequencing.starts, [at, stop], side="left")
            for index in range(max(0, int(begin) - 1), int(end)):
                first, last = (int(v) for v in sequencing.starts[index : index + 2])
                name = self._rows[index].name
                if max(first, at) < min(last, stop) and name in flat:
                    yield name, index, max(first, at), min(last, stop)

        code.model.decode(self._data, sequencing, code.machine, sorted(needed), restored)
        return {name: sequencing.unflatten(self._entries[name], tensor) for name, tensor in flat.items()}


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
