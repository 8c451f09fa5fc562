"""Method `paper`: the archive holds a latent for each block and the VAE's decoder; its mean is the restored weights.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", sections 3 and 4. Beyond the
paper: each tensor is divided by its root mean square before it enters a block (8 bytes a tensor in the archive), so
that the VAE spends its precision on every tensor alike; decoder and latents are rounded to whole numbers, as coarsely
as costs the restored weights next to nothing, and entropy-coded; decoding is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from wcompress.blocks import BlockLayout, from_blocks, to_blocks
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.storage.dtypes import entry_dtype, round_to_dtype
from wcompress.errors import ArchiveError
from wcompress.vae.integer import IntegerDecoder, decode_integers, encode_integers, quantise_decoder
from wcompress.wire import ByteCursor

if TYPE_CHECKING:  # unpacking must not import training code
    from wcompress.progress import Progress
    from wcompress.vae.training import TrainingConfig, TrainingHistory

Floats = npt.NDArray[np.float64]

_RESOLUTIONS = (2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 64.0, 400.0)
_ADDED_ERROR = 0.02


@dataclass(frozen=True)
class PaperSections:
    """What the method stores.

    Attributes:
        decoder, latents, scales: section payloads.
        padding: zeros at the end of the last block.
        n_latents: numbers in all latents.
        history: of the training; None when there was nothing to train on.
    """

    decoder: bytes
    latents: bytes
    scales: bytes
    padding: int
    n_latents: int
    history: TrainingHistory | None


def encode_paper(
    tensors: Mapping[str, torch.Tensor], block_size: int, config: TrainingConfig, progress: Progress | None
) -> PaperSections:
    """Train a VAE on the tensors' blocks and encode them.

    Args:
        tensors: finite float tensors, contiguous, on the CPU.
        block_size: parameters in a block.
        config: how to train.
        progress: called as training goes on.
    """
    from wcompress.vae.training import train_vae

    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    scales = {name: root_mean_square(array) for name, array in arrays.items()}
    blocks, layout = to_blocks({name: a / (scales[name] or 1.0) for name, a in arrays.items()}, block_size)
    scale_bytes = np.array(list(scales.values()), dtype="<f8").tobytes()
    if layout.n_blocks == 0:
        return PaperSections(b"", b"", scale_bytes, 0, 0, None)
    trained = train_vae(blocks, config, progress)
    decoder, latents = coarsest_decoder(trained.layers, trained.latents, blocks)
    return PaperSections(
        decoder.to_bytes(),
        encode_integers(latents),
        scale_bytes,
        layout.padding,
        latents.size,
        trained.history,
    )


def coarsest_decoder(
    layers: Sequence[tuple[Floats, Floats]], latents: Floats, blocks: Floats
) -> tuple[IntegerDecoder, npt.NDArray[np.int32]]:
    """The coarsest rounding of a trained decoder that adds little to the squared error the VAE leaves itself.

    Args:
        layers, latents: as for `quantise_decoder`.
        blocks: what the VAE was trained on, `[n_blocks, block_size]`.

    Returns:
        As `quantise_decoder`.
    """
    finest = quantise_decoder(layers, latents, _RESOLUTIONS[-1])
    least = float(np.square(finest[0](finest[1]) - blocks).sum())
    for resolution in _RESOLUTIONS[:-1]:
        found = quantise_decoder(layers, latents, resolution)
        if float(np.square(found[0](found[1]) - blocks).sum()) <= (1 + _ADDED_ERROR) * least:
            return found
    return finest


def root_mean_square(values: Floats) -> float:
    """√(mean w²) of finite float64 values, 0 for an empty or all-zero tensor; never overflows."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))


class PaperReader:
    """Restores tensors from the sections of method `paper`.

    Args:
        entries: the coded tensors, in order.
        padding: as the manifest records it.
        decoder, latents, scales: section payloads.
        coded: whether decoder and latents are entropy-coded, as they are since format version 3.

    Raises:
        ArchiveError: the sections do not hold what the entries say.
    """

    def __init__(
        self,
        entries: Sequence[TensorEntry],
        padding: int,
        decoder: bytes,
        latents: bytes,
        scales: bytes,
        *,
        coded: bool,
    ) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(scales) != 8 * len(entries):
            raise ArchiveError(
                f"scales: {8 * len(entries)} bytes expected, {len(scales)} found; the archive is damaged"
            )
        self._scales = dict(zip(self._entries, np.frombuffer(scales, "<f8"), strict=True))
        names, shapes = tuple(self._entries), tuple(entry.shape for entry in entries)
        n_params = sum(entry.numel for entry in entries)
        if n_params == 0:
            self._decoder = None
            return
        self._decoder = IntegerDecoder.from_bytes(decoder, coded=coded)
        self._layout = BlockLayout(names, shapes, self._decoder.block_size)
        n_latents = self._layout.n_blocks * self._decoder.latent_dim
        if padding != self._layout.padding or not (coded or len(latents) == 2 * n_latents):
            raise ArchiveError(
                f"latents: {n_latents} numbers with padding {self._layout.padding} expected, {len(latents)} bytes"
                f" with padding {padding} found; the archive is damaged"
            )
        if coded:
            cursor = ByteCursor(latents, "latents")
            values = decode_integers(cursor, n_latents)
            cursor.finish()
        else:
            values = np.frombuffer(latents, "<i2").astype(np.int32)
        self._latents = values.reshape(self._layout.n_blocks, self._decoder.latent_dim)

    def restore(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named, or all; only the blocks they lie in are decoded.

        Args:
            names: tensors of the entries given; adjacent ones are cheapest together.
        """
        wanted = tuple(self._entries) if names is None else tuple(names)
        if self._decoder is None:
            return {name: self._to_tensor(name, np.zeros(self._entries[name].shape)) for name in wanted}
        size = self._layout.block_size
        spans = [self._layout.span(name) for name in wanted]
        first = min((start for start, _ in spans), default=0) // size
        last = -(-max((end for _, end in spans), default=0) // size)
        blocks = self._decoder(self._latents[first:last])
        arrays = from_blocks(blocks, self._layout, wanted, first)
        return {name: self._to_tensor(name, arrays[name]) for name in wanted}

    def _to_tensor(self, name: str, array: Floats) -> torch.Tensor:
        scale = self._scales[name]
        values = array * scale if scale else np.zeros(array.shape)
        return round_to_dtype(values, entry_dtype(self._entries[name]))
