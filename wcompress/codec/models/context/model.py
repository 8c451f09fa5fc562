"""Symbols ↔ bytes under a model of scales and signs that follows the symbols themselves.

What is stored is little: a base scale for each tensor, a network of some hundred small whole numbers, the weights of
the neighbours that predict signs, and, where they pay, the VAE prior's decoder and latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.entropy_model import Symbols, UseUnit
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.entropy.context.state import N_FEATURES, workspace
from wcompress.entropy.context.tables import N_TAPS, TABLES
from wcompress.entropy.context.unit import run_unit
from wcompress.errors import ArchiveError
from wcompress.threads import in_threads
from wcompress.wire import ByteCursor, encode_varint

Ints = npt.NDArray[np.int64]

N_SETS = (1, 2, 5)
"""How many sets of probabilities can be mixed. Literal, append-only."""

TRELLIS_UNITS = 128
"""Trellis units that share a stream, and what is learnt in it."""

BASE_RANGE = (-64, 200)
_MAX_HIDDEN = 64
_MAX_WEIGHT = 127
# round(2^20 · 2^(f/8)), f = 0 … 7; part of the format.
_EIGHTHS = (1048576, 1143480, 1246974, 1359835, 1482910, 1617125, 1763488, 1923097)


@dataclass(frozen=True)
class ScaleNetwork:
    """Features of a weight → its scale, in whole numbers.

    Attributes:
        linear: `[N_FEATURES + 1]`, units of 1/32; the last is for a constant.
        weights_in: `[n_hidden, N_FEATURES + 1]`, followed by ReLU.
        weights_out: `[n_hidden]`.
    """

    linear: Ints
    weights_in: Ints
    weights_out: Ints

    @classmethod
    def nothing(cls) -> ScaleNetwork:
        """The network that leaves the base scales as they are."""
        width = N_FEATURES + 1
        return cls(np.zeros(width, np.int64), np.zeros((0, width), np.int64), np.zeros(0, np.int64))

    def write(self, out: BitWriter) -> None:
        """The number of hidden units, then all weights."""
        out.write_exp_golomb(len(self.weights_out))
        for part in (self.linear, self.weights_in, self.weights_out):
            for value in part.reshape(-1):
                out.write_exp_golomb(zigzag(int(value)), 3)

    @classmethod
    def read(cls, data: BitReader) -> ScaleNetwork:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        n_hidden, width = data.read_exp_golomb(), N_FEATURES + 1
        if n_hidden > _MAX_HIDDEN:
            raise ArchiveError(f"decoder: {n_hidden} hidden units; the archive is damaged")
        values = [unzigzag(data.read_exp_golomb(3)) for _ in range(width + n_hidden * (width + 1))]
        if max(map(abs, values)) > _MAX_WEIGHT:
            raise ArchiveError("decoder: a weight is out of range; the archive is damaged")
        array = np.array(values, np.int64)
        split = width * (n_hidden + 1)
        return cls(array[:width], array[width:split].reshape(n_hidden, width), array[split:])


@dataclass(frozen=True)
class Description:
    """What the model says of each weight, given all symbols.

    Attributes:
        features: int16 `[n, N_FEATURES]`, in 1/16 octave.
        scales: int16 `[n]`, 0 to `N_SCALES` − 1, in 1/8 octave.
        ratios: int8 `[n]`, −7 to 7: how strongly a sign is expected, and which.
    """

    features: npt.NDArray[np.int16]
    scales: npt.NDArray[np.int16]
    ratios: npt.NDArray[np.int8]


@dataclass(frozen=True)
class ContextModel:
    """The model, an `EntropyModel`.

    Attributes:
        scales: base of each tensor, and the VAE prior where there is one.
        network: from features to scales.
        taps: `[n_tensors, N_TAPS]`, in units of 1/64: how neighbours predict a weight.
        lags: a distance of each tensor at which weights are alike, 0 for none.
        n_sets: sets of probabilities that are mixed.
    """

    code: ClassVar[int] = 1
    unit_blocks: ClassVar[int] = 4  # part of the format
    expects_signs: ClassVar[bool] = True
    base_unit: ClassVar[int] = 1

    scales: ScaleModel
    network: ScaleNetwork
    taps: Ints
    lags: tuple[int, ...]
    n_sets: int = 1
    _cache: dict[str, Ints] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def plain(cls, scales: ScaleModel, lags: Sequence[int]) -> ContextModel:
        """A model that knows the bases alone."""
        return cls(scales, ScaleNetwork.nothing(), np.zeros((len(lags), N_TAPS), np.int64), tuple(lags))

    def moved(self, n_eighths: int) -> ContextModel:
        """The same for a step that is so many eighths of an octave smaller."""
        low, high = BASE_RANGE
        return self.with_bases([max(low, min(high, base + n_eighths)) for base in self.scales.bases])

    def with_bases(self, bases: Sequence[int]) -> ContextModel:
        """The same with other base scales, one for each tensor."""
        return replace(self, scales=replace(self.scales, bases=tuple(bases)), _cache={})

    def check(self) -> None:
        """A reader takes any such model."""

    def write(self, tables: BitWriter, decoder: BitWriter) -> bytes:
        """Taps and lags go to `tables`, scales and network to `decoder`; the latents' stream is returned."""
        tables.write(N_SETS.index(self.n_sets), 2)
        for lag, row in zip(self.lags, self.taps, strict=True):
            tables.write_exp_golomb(lag)
            used = bool(row.any())
            tables.write(used, 1)
            if used:
                for value in row:
                    tables.write_exp_golomb(zigzag(int(value)), 3)
        latents = self.scales.write(decoder)
        self.network.write(decoder)
        return latents

    @classmethod
    def check_length(cls, sequencing: Sequencing, n_bytes: int) -> None:
        """Say that so many bytes can hold the symbols.

        Raises:
            ArchiveError: they cannot.
        """
        check_length(sequencing.n_weights, n_bytes + 4 * (len(stream_starts(sequencing)) - 1))

    @classmethod
    def read(cls, tables: BitReader, decoder: BitReader, latents: bytes, sequencing: Sequencing) -> ContextModel:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        which = tables.read(2)
        if which >= len(N_SETS):
            raise ArchiveError(f"tables: {which} is no number of sets; the archive is damaged")
        taps = np.zeros((len(sequencing.shapes), N_TAPS), np.int64)
        lags: list[int] = []
        for row in taps:
            lags.append(tables.read_exp_golomb())
            if tables.read(1):
                row[:] = [unzigzag(tables.read_exp_golomb(3)) for _ in range(N_TAPS)]
        if np.abs(taps).max(initial=0) > _MAX_WEIGHT or max(lags, default=0) > 1 << 32:
            raise ArchiveError("tables: a tap or a lag is out of range; the archive is damaged")
        scales = ScaleModel.read(decoder, latents, len(lags), sequencing.n_blocks, sequencing.latent_dim)
        low, high = BASE_RANGE
        if any(not low <= base <= high for base in scales.bases):
            raise ArchiveError("decoder: a base is out of range; the archive is damaged")
        return cls(scales, ScaleNetwork.read(decoder), taps, tuple(lags), N_SETS[which])

    def describe(self, symbols: Symbols, sequencing: Sequencing, machine: Trellis) -> Description:
        """Features, scales and ratios of all weights."""
        n = len(symbols)
        out = Description(np.zeros((n, N_FEATURES), np.int16), np.zeros(n, np.int16), np.zeros(n, np.int8))
        n_streams = len(stream_starts(sequencing)) - 1
        in_threads(
            lambda stream: self._run(stream, symbols, sequencing, machine, np.zeros(0, np.uint8), describe=out),
            range(n_streams),
        )
        return out

    def encode(
        self, symbols: Symbols, sequencing: Sequencing, machine: Trellis, streams: Sequence[int] | None = None
    ) -> bytes:
        """The `symbols` section: of each stream, or of some, a varint length and its bytes."""
        starts = stream_starts(sequencing)

        def encoded(stream: int) -> bytes:
            buffer = np.zeros(64 + 5 * int(starts[stream + 1] - starts[stream]), np.uint8)
            n_bytes = self._run(stream, symbols, sequencing, machine, buffer)
            assert n_bytes >= 0, "five bytes a symbol did not do"
            return buffer[:n_bytes].tobytes()

        parts = in_threads(encoded, range(len(starts) - 1) if streams is None else streams)
        return b"".join(encode_varint(len(part)) + part for part in parts)

    def decode(self, data: bytes, sequencing: Sequencing, machine: Trellis, units: Sequence[int], use: UseUnit) -> None:
        """Decode some trellis units; `use` gets each one, and how signs were expected (see `Description.ratios`).

        Raises:
            ArchiveError: the section is malformed.
        """
        cursor = ByteCursor(data, "symbols")
        parts = [cursor.take(cursor.varint()) for _ in range(len(stream_starts(sequencing)) - 1)]
        cursor.finish()
        for part, (start, end) in zip(parts, itertools.pairwise(stream_starts(sequencing)), strict=True):
            check_length(int(end - start), len(part) + 4)
        n = sequencing.n_weights
        symbols = np.zeros(n, np.int32)
        out = Description(np.zeros((0, N_FEATURES), np.int16), np.zeros(n, np.int16), np.zeros(n, np.int8))

        def decoded(stream: int) -> int:
            buffer = np.frombuffer(parts[stream], np.uint8).copy()
            return self._run(stream, symbols, sequencing, machine, buffer, describe=out, decode=True)

        streams = sorted({unit // TRELLIS_UNITS for unit in units})
        if min(in_threads(decoded, streams), default=0) < 0:
            raise ArchiveError("symbols: a symbol is out of range; the archive is damaged")
        for unit in units:
            span = slice(int(sequencing.unit_starts[unit]), int(sequencing.unit_starts[unit + 1]))
            use(unit, symbols[span], out.ratios[span])

    def tensor_bits(
        self, symbols: Symbols, sequencing: Sequencing, machine: Trellis, indices: Sequence[int]
    ) -> dict[int, float]:
        """What some tensors add to the bytes of those before them, bits by index of the tensor."""

        def bits_before(n_tensors: int) -> int:
            # They are coded as they are in the whole.
            if not n_tensors or not sequencing.starts[n_tensors]:
                return 0
            part = replace(sequencing, shapes=sequencing.shapes[:n_tensors], layouts=sequencing.layouts[:n_tensors])
            some = replace(
                self,
                scales=replace(self.scales, bases=self.scales.bases[:n_tensors]),
                taps=self.taps[:n_tensors],
                lags=self.lags[:n_tensors],
            )
            return 8 * len(some.encode(symbols[: part.n_weights], part, machine))

        ends = sorted({end for index in indices for end in (index, index + 1)})
        totals = dict(zip(ends, in_threads(bits_before, ends), strict=True))
        return {index: float(totals[index + 1] - totals[index]) for index in indices}

    def _run(
        self,
        stream: int,
        symbols: Symbols,
        sequencing: Sequencing,
        machine: Trellis,
        buffer: npt.NDArray[np.uint8],
        *,
        describe: Description | None = None,
        decode: bool = False,
    ) -> int:
        first, last = (int(v) for v in stream_starts(sequencing)[stream : stream + 2])
        empty = Description(np.zeros((0, N_FEATURES), np.int16), np.zeros(0, np.int16), np.zeros(0, np.int8))
        out = describe or empty
        n_sets = self.n_sets if describe is None or decode else 0
        return int(
            run_unit(
                first,
                last,
                int(np.searchsorted(sequencing.starts, first, side="right")) - 1,
                int(np.searchsorted(sequencing.unit_starts, first, side="right")) - 1,
                decode,
                symbols,
                sequencing.unit_starts,
                machine.next_state,
                sequencing.starts,
                sequencing.columns,
                np.array(self.lags, np.int64),
                self._bases(),
                self._latent_scales(),
                sequencing.sub_size.bit_length() - 1,
                self.network.linear,
                self.network.weights_in,
                self.network.weights_out,
                self.taps,
                n_sets,
                TABLES,
                buffer,
                len(buffer),
                workspace(last - first, int(sequencing.columns.max()), n_sets),
                out.features,
                out.scales,
                out.ratios,
            )
        )

    def _bases(self) -> Ints:
        # 2^(base/8) with 12 bits after the point.
        whole = [(base >> 3) - 8 for base in self.scales.bases]
        values = [_EIGHTHS[base & 7] for base in self.scales.bases]
        return np.array([v << w if w >= 0 else v >> -w for v, w in zip(values, whole, strict=True)], np.int64)

    def _latent_scales(self) -> Ints:
        # From 1/8 octave · 2^-5 to 1/16 octave.
        if "latent_scales" not in self._cache:
            prior = self.scales.prior
            scales = np.zeros(0, np.int64) if prior is None else prior(self.scales.latents).reshape(-1) >> 4
            self._cache["latent_scales"] = scales
        return self._cache["latent_scales"]


def check_length(n_symbols: int, n_bytes: int) -> None:
    """A symbol takes at least log2(65536 / 65512) bits, so the bytes bound the symbols.

    Raises:
        ArchiveError: there are more.
    """
    if n_symbols > 16384 * n_bytes:
        raise ArchiveError(f"symbols: {n_symbols} of them in {n_bytes} bytes; the archive is damaged")


def stream_starts(sequencing: Sequencing) -> Ints:
    """Where each stream begins, and where the last ends."""
    starts = sequencing.unit_starts[:-1:TRELLIS_UNITS]
    return np.append(starts, sequencing.n_weights).astype(np.int64)
