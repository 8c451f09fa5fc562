"""The decoder as unpacking runs it: integers only, so that every machine restores the same bytes.

Weights and latents are small integers, a layer is an integer matrix product plus integer biases, ReLU and a rounding
right shift bring it back to size. The products are computed in float64, which is exact in any order of summation
while every partial sum stays below 2^53; `IntegerDecoder.check_bounds` proves that from the weights alone.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.entropy.coder import Decoder, Encoder
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.errors import ArchiveError
from wcompress.wire import ByteCursor, encode_varint

Floats = npt.NDArray[np.float64]

_EXACT_LIMIT = 2.0**53
_LARGEST = 2047
_ACTIVATION_MAX = 32767
_BATCH_BLOCKS = 1024


@dataclass(frozen=True)
class IntegerDecoder:
    """A fully connected decoder in integers.

    Attributes:
        weights: float64 arrays that hold whole numbers, `[n_out, n_in]` each.
        biases: float64 arrays that hold integers, `[n_out]` each.
        shifts: for each hidden layer, how many bits its activations are shifted right, 0 to 52.
        output_scale: what one unit of the last layer's sums is worth.
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    shifts: tuple[int, ...]
    output_scale: float

    @property
    def latent_dim(self) -> int:
        """Numbers in a latent."""
        return int(self.weights[0].shape[1])

    @property
    def block_size(self) -> int:
        """Parameters in a block."""
        return int(self.weights[-1].shape[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of all layers, from latent to block."""
        return (self.latent_dim, *(int(w.shape[0]) for w in self.weights))

    def check_bounds(self) -> None:
        """Prove that no sum can reach 2^53, whatever the latents.

        Raises:
            ArchiveError: one could.
        """
        bound = np.full(self.latent_dim, 32768.0)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            sums = np.abs(weight) @ bound + np.abs(bias)
            if not float(sums.max(initial=0.0)) < _EXACT_LIMIT / 2:
                raise ArchiveError(f"decoder layer {index}: sums could exceed 2^53; the archive is damaged")
            if index < len(self.shifts):
                bound = np.floor(sums / 2.0 ** self.shifts[index]) + 1

    def __call__(self, latents: npt.NDArray[np.integer]) -> Floats:
        """Whole latents `[n, latent_dim]` → restored blocks float64 `[n, block_size]`, before tensor scales."""
        out = np.empty((len(latents), self.block_size))
        for start in range(0, len(latents), _BATCH_BLOCKS):
            activations = latents[start : start + _BATCH_BLOCKS].astype(np.float64)
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                activations = activations @ weight.T + bias
                if index < len(self.shifts):
                    # floor(max(a, 0) / 2^s + 1/2): a power of two divides exactly.
                    activations = np.floor(np.maximum(activations, 0.0) * 2.0 ** -self.shifts[index] + 0.5)
            out[start : start + _BATCH_BLOCKS] = activations * self.output_scale
        return out

    def to_bytes(self) -> bytes:
        """The `decoder` section, see docs/format.md."""
        parts = [encode_varint(len(self.weights)), *(encode_varint(size) for size in self.sizes)]
        parts += [encode_varint(shift) for shift in self.shifts]
        parts.append(struct.pack("<d", self.output_scale))
        for weight, bias in zip(self.weights, self.biases, strict=True):
            parts.append(encode_integers(weight.astype(np.int32)))
            parts += [encode_varint(zigzag(int(value))) for value in bias]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, *, coded: bool) -> IntegerDecoder:
        """Read the `decoder` section.

        Args:
            data: its payload.
            coded: as `to_bytes` writes it; format version 1 had plain 16-bit weights and 64-bit biases.

        Raises:
            ArchiveError: it is malformed, or could compute inexactly.
        """
        cursor = ByteCursor(data, "decoder")
        n_layers = cursor.varint()
        if not 1 <= n_layers <= cursor.remaining:
            raise ArchiveError(f"decoder: {n_layers} layers; the archive is damaged")
        sizes = [cursor.varint() for _ in range(n_layers + 1)]
        shifts = tuple(cursor.varint() for _ in range(n_layers - 1))
        if min(sizes) < 1 or max(shifts, default=0) > 52:
            raise ArchiveError(f"decoder: sizes {sizes} with shifts {shifts} are impossible; the archive is damaged")
        (output_scale,) = struct.unpack("<d", cursor.take(8))
        if not np.isfinite(output_scale):
            raise ArchiveError("decoder: output scale is not finite; the archive is damaged")
        weights, biases = [], []
        for n_in, n_out in itertools.pairwise(sizes):
            # take() compares with the bytes that are there before anything is allocated.
            if coded:
                weight = decode_integers(cursor, n_in * n_out)
                bias = np.array([unzigzag(cursor.varint()) for _ in range(n_out)], np.int64)
            else:
                weight = np.frombuffer(cursor.take(2 * n_in * n_out), "<i2").astype(np.int32)
                bias = np.frombuffer(cursor.take(8 * n_out), "<i8")
            weights.append(weight.reshape(n_out, n_in).astype(np.float64))
            biases.append(bias.astype(np.float64))
        cursor.finish()
        decoder = cls(tuple(weights), tuple(biases), shifts, output_scale)
        decoder.check_bounds()
        return decoder


def encode_integers(values: npt.NDArray[np.int32]) -> bytes:
    """Whole numbers within ±2047 under a frequency table of their own: varint length, table, varint length, stream."""
    flat = values.reshape(-1).astype(np.int32)
    limit = int(np.abs(flat).max(initial=0))
    table = fit_table(np.bincount(flat + limit, minlength=2 * limit + 1).astype(np.float64))
    writer, encoder = BitWriter(), Encoder()
    table.write(writer)
    encoder.add(flat, table)
    parts = (writer.to_bytes(), encoder.to_bytes())
    return b"".join(encode_varint(len(part)) + part for part in parts)


def decode_integers(cursor: ByteCursor, n: int) -> npt.NDArray[np.int32]:
    """Undo `encode_integers`, int32 `[n]`.

    Raises:
        ArchiveError: it is malformed.
    """
    reader = BitReader(cursor.take(cursor.varint()), "decoder")
    table = FrequencyTable.read(reader)
    reader.finish()
    data = cursor.take(cursor.varint())
    # A stream of likely symbols is short, but thousands of them take a byte.
    if n > 4096 * (len(data) + 1):
        raise ArchiveError(f"decoder: {n} numbers in {len(data)} bytes; the archive is damaged")
    return Decoder(data, "decoder").take(n, table)


def quantise_decoder(
    layers: Sequence[tuple[Floats, Floats]], latents: Floats, resolution: float
) -> tuple[IntegerDecoder, npt.NDArray[np.int32]]:
    """Round a trained decoder and its latents.

    Args:
        layers: weights `[n_out, n_in]` and biases `[n_out]` of each layer, ReLU between.
        latents: `[n_blocks, latent_dim]`, also used to see how large activations get.
        resolution: the root mean square of weights in units of their step; of latents four times as many.

    Returns:
        The integer decoder and the latents it takes, int32 `[n_blocks, latent_dim]`, within ±2047.
    """
    unit = _step(latents, 4 * resolution)
    latents_q = np.rint(latents / unit).astype(np.int32)
    activations = latents_q.astype(np.float64)
    weights, biases, shifts = [], [], []
    for index, (weight, bias) in enumerate(layers):
        # A latent that carries nothing makes `unit` tiny; the biases must still fit far below 2^53.
        weight_step = max(_step(weight, resolution), float(np.abs(bias).max(initial=0.0)) / (unit * 2.0**40))
        weights.append(np.rint(weight / weight_step))
        unit *= weight_step
        biases.append(np.rint(bias / unit))
        if index < len(layers) - 1:
            sums = np.maximum(activations @ weights[-1].T + biases[-1], 0.0)
            shift = max(0, int(np.ceil(np.log2(max(float(sums.max(initial=0.0)), 1.0) / _ACTIVATION_MAX))))
            shifts.append(shift)
            activations = np.floor(sums * 2.0**-shift + 0.5)
            unit *= 2.0**shift
    return IntegerDecoder(tuple(weights), tuple(biases), tuple(shifts), float(unit)), latents_q


def _step(values: Floats, resolution: float) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 1.0
    rms = largest * float(np.sqrt(np.mean(np.square(values / largest))))
    return max(rms / resolution, largest / _LARGEST)
