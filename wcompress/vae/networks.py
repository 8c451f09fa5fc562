"""The fully connected VAE.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", sections 2 and 4; Kingma and
Welling, arXiv 1312.6114.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with a ReLU between each two.

    ReLU is the one non-linearity that integers compute exactly, which the decoder depends on.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class FullyConnectedVAE(nn.Module):
    """block_size → hidden → 2 · latent_dim, and latent_dim → reversed hidden → block_size.

    Args:
        block_size: parameters in a block.
        latent_dim: numbers in a latent `z`.
        hidden: sizes of the layers between, in the encoder's order.
    """

    def __init__(self, block_size: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = fully_connected([block_size, *hidden, 2 * latent_dim])
        self.decoder = fully_connected([latent_dim, *reversed(hidden), block_size])

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks `[n, block_size]` → mean and log-variance of the Gaussian posterior, each `[n, latent_dim]`."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents `[n, latent_dim]` → mean of the Gaussian likelihood, `[n, block_size]`."""
        mean: torch.Tensor = self.decoder(z)
        return mean
