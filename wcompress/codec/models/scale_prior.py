"""Which class each sub-block of weights belongs to, as the archive says it.

A base scale for each tensor, and, where it pays, the VAE prior: a latent for each block and a small decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.entropy.coder import Decoder, Encoder
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.errors import ArchiveError
from wcompress.vae.prior import KERNEL, WEIGHT_BITS, PriorDecoder, classes_of

Ints = npt.NDArray[np.int64]

_MAX_HIDDEN = 64


@dataclass(frozen=True)
class ScaleModel:
    """Bases and, perhaps, a prior with its latents.

    Attributes:
        bases: base scale of each coded tensor, log₂ of its mean magnitude in steps, in units of 1/8 octave.
        prior: None where the bases alone are cheaper.
        latents: int64 `[n_blocks, latent_dim]`; empty without a prior.
    """

    bases: tuple[int, ...]
    prior: PriorDecoder | None
    latents: Ints

    def classes(self, tensor_of_sub: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """The class of each sub-block.

        Args:
            tensor_of_sub: index of the tensor in which each sub-block begins, `[n_sub_blocks]`.
        """
        scales = np.array(self.bases, np.int64)[tensor_of_sub] << WEIGHT_BITS
        if self.prior is not None:
            scales = scales + self.prior(self.latents).reshape(-1)[: len(scales)]
        return classes_of(scales / (1 << WEIGHT_BITS))

    def write(self, out: BitWriter) -> bytes:
        """Bases and decoder go to `out`; the latents' stream is returned, empty without a prior."""
        before = 0
        for base in self.bases:
            out.write_exp_golomb(zigzag(base - before), 2)
            before = base
        out.write(self.prior is not None, 1)
        if self.prior is None:
            return b""
        out.write_exp_golomb(self.prior.n_hidden)
        for value in _weights(self.prior):
            out.write_exp_golomb(zigzag(value), 2)
        table = fit_latent_table(self.latents)
        table.write(out)
        encoder = Encoder()
        encoder.add(self.latents.reshape(-1).astype(np.int32), table)
        return encoder.to_bytes()

    @classmethod
    def read(cls, data: BitReader, latent_bytes: bytes, n_tensors: int, n_blocks: int, latent_dim: int) -> ScaleModel:
        """Undo `write`.

        Raises:
            ArchiveError: it is malformed.
        """
        bases: list[int] = []
        before = 0
        for _ in range(n_tensors):
            before += unzigzag(data.read_exp_golomb(2))
            if abs(before) > 1 << 12:
                raise ArchiveError(f"scales: a base of {before}; the archive is damaged")
            bases.append(before)
        if not data.read(1):
            return cls(tuple(bases), None, np.zeros((0, latent_dim), np.int64))
        n_hidden = data.read_exp_golomb()
        if n_hidden > _MAX_HIDDEN:
            raise ArchiveError(f"prior: {n_hidden} channels; the archive is damaged")
        values = [unzigzag(data.read_exp_golomb(2)) for _ in range(2 + n_hidden * (2 * KERNEL + 1))]
        if max(map(abs, values)) > 127:
            raise ArchiveError("prior: a weight is out of range; the archive is damaged")
        table = FrequencyTable.read(data)
        if table.limit > 127:
            raise ArchiveError("latents: a table is out of range; the archive is damaged")
        latents = Decoder(latent_bytes, "latents").take(n_blocks * latent_dim, table).astype(np.int64)
        return cls(tuple(bases), _prior(values, n_hidden), latents.reshape(n_blocks, latent_dim))


def fit_latent_table(latents: Ints) -> FrequencyTable:
    """The table of all latents of a model."""
    limit = int(np.abs(latents).max(initial=0))
    return fit_table(np.bincount(latents.reshape(-1) + limit, minlength=2 * limit + 1).astype(np.float64))


def _weights(prior: PriorDecoder) -> list[int]:
    parts = (prior.weights_in.reshape(-1), prior.biases_in, prior.weights_out.reshape(-1))
    return [prior.skip, prior.bias_out, *(int(v) for part in parts for v in part)]


def _prior(values: list[int], n_hidden: int) -> PriorDecoder:
    array = np.array(values[2:], np.int64)
    split = n_hidden * KERNEL
    return PriorDecoder(
        skip=values[0],
        weights_in=array[:split].reshape(n_hidden, KERNEL),
        biases_in=array[split : split + n_hidden],
        weights_out=array[split + n_hidden :].reshape(n_hidden, KERNEL),
        bias_out=values[1],
    )
