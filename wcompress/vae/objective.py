"""The evidence lower bound of the weight VAE, in nats.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", equations 3 and 4.
"""

from __future__ import annotations

import torch


def reparameterise(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A sample z = μ + σ ⊙ ε of the posterior (equation 4), all `[n, latent_dim]`, ε standard normal."""
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) summed over a block's latents, in nats, `[n, latent_dim]` → `[n]`."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def reconstruction_nats(x: torch.Tensor, reconstructed: torch.Tensor, sigma: float) -> torch.Tensor:
    """−log N(x; x̂, σ²) without its constant, summed over a block, in nats, `[n, block_size]` → `[n]`."""
    return (x - reconstructed).square().sum(dim=1) / (2 * sigma**2)
