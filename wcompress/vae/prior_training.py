"""Training the VAE prior on the archive's size in bits.

The loss is the ELBO as it will be paid: the symbols' code lengths under the class that the decoder predicts, the
latents' code lengths under their prior, and the decoder's own weights. The code lengths of each sub-block under each
class are computed once from the frequency tables, so a step costs the same whatever the model's size.

Source: Ballé et al., arXiv 1802.01436 (uniform noise stands for rounding while training); amortised inference by an
encoder, then refined for each latent, as in Ene et al., "Leveraging EfficientNet and Amortized Stochastic Variational
Inference…", 2024.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from wcompress.vae.adam import Adam
from wcompress.vae.prior import (
    KERNEL,
    LOWEST_SCALE,
    N_CLASSES,
    UNITS_PER_CLASS,
    UNITS_PER_OCTAVE,
    WEIGHT_BITS,
    PriorDecoder,
)

_MAX_BATCH_BLOCKS = 256
_LATENT_RANGE = 16

_global_generator = threading.Lock()
"""Of torch's, from which layers draw their first weights; groups of a model may train at the same time."""


@dataclass(frozen=True)
class PriorConfig:
    """How to train.

    Attributes:
        n_hidden: channels of the decoder.
        steps: of Adam.
        learning_rate: at the start; it falls as a cosine.
        seed: of initialisation and noise.
        device: a torch device name.
    """

    n_hidden: int = 8
    steps: int = 400
    learning_rate: float = 0.02
    seed: int = 0
    device: str = "cpu"


class _Prior(nn.Module):
    def __init__(self, n_hidden: int) -> None:
        super().__init__()
        self.encoder_in = nn.Conv1d(1, 16, KERNEL, padding=KERNEL // 2)
        self.encoder_out = nn.Conv1d(16, 1, KERNEL, padding=KERNEL // 2)
        self.encoder_skip = nn.Parameter(torch.tensor(1.0))
        self.skip = nn.Parameter(torch.tensor(4.0))
        self.weights_in = nn.Parameter(0.3 * torch.randn(n_hidden, 1, KERNEL))
        self.biases_in = nn.Parameter(torch.zeros(n_hidden))
        self.weights_out = nn.Parameter(0.1 * torch.randn(1, n_hidden, KERNEL))
        self.bias_out = nn.Parameter(torch.zeros(1))
        # log-probabilities of z = −16 … 16, falling by a bit a step at first
        start = -math.log(2) * torch.arange(-_LATENT_RANGE, _LATENT_RANGE + 1).abs().float()
        self.latent_logits = nn.Parameter(start)
        nn.init.zeros_(self.encoder_out.weight)
        if self.encoder_out.bias is not None:
            nn.init.zeros_(self.encoder_out.bias)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Sub-block scales less the tensor's, in octaves `[n, latent_dim]` → z before rounding."""
        hidden = functional.relu(self.encoder_in(features[:, None, :]))
        z: torch.Tensor = 2 * self.encoder_skip * features + self.encoder_out(hidden)[:, 0, :]
        return z.clamp(-_LATENT_RANGE + 1, _LATENT_RANGE - 1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z → scale in units of 1/8 octave, with the integer decoder's rounded weights."""
        hidden = functional.relu(
            functional.conv1d(z[:, None, :], _rounded(self.weights_in), _rounded(self.biases_in), padding=KERNEL // 2)
        )
        out = functional.conv1d(hidden, _rounded(self.weights_out), _rounded(self.bias_out), padding=KERNEL // 2)
        scale: torch.Tensor = out[:, 0, :] + _rounded(self.skip) * z
        return scale

    def latent_bits(self, z: torch.Tensor) -> torch.Tensor:
        """Code lengths of noisy latents under the learned prior, by linear interpolation."""
        p = functional.softmax(self.latent_logits, dim=0)
        position = z + _LATENT_RANGE
        below = position.detach().floor().clamp(0, 2 * _LATENT_RANGE - 1).long()
        fraction = position - below
        return -torch.log2(p[below] * (1 - fraction) + p[below + 1] * fraction + 1e-9)

    def weight_bits(self) -> torch.Tensor:
        """About what the decoder's weights will take, in bits."""
        parameters = (self.weights_in, self.biases_in, self.weights_out, self.bias_out, self.skip)
        bits = [(1.5 + 2 * torch.log2(1 + p.abs() * 2**WEIGHT_BITS)).sum() for p in parameters]
        return torch.stack(bits).sum()


def _rounded(x: torch.Tensor) -> torch.Tensor:
    # To units of 2^-WEIGHT_BITS with the gradient passed straight through.
    scaled = x * 2**WEIGHT_BITS
    rounded: torch.Tensor = (scaled + (scaled.round().clamp(-127, 127) - scaled).detach()) / 2**WEIGHT_BITS
    return rounded


def train_prior(
    features: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float32],
    bases: npt.NDArray[np.float64],
    training_blocks: npt.NDArray[np.int64],
    config: PriorConfig,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[PriorDecoder, npt.NDArray[np.int64]]:
    """Train a prior and encode the blocks with it.

    Args:
        features: log₂ of each sub-block's mean magnitude in steps, `[n_blocks, latent_dim]`.
        costs: bits of each sub-block's symbols under each class, for the blocks to train on,
            `[n_training_blocks, latent_dim, N_CLASSES]`.
        bases: the base scale of the tensor each sub-block lies in, in units of 1/8 octave, `[n_blocks, latent_dim]`.
        training_blocks: their indices, `[n_training_blocks]`.
        config: how to train.
        progress: called every few steps.

    Returns:
        The integer decoder, and latents int64 `[n_blocks, latent_dim]`.
    """
    device = torch.device(config.device)
    generator = torch.Generator(device=device).manual_seed(config.seed)
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        prior = _Prior(config.n_hidden).to(device)
    everything = torch.from_numpy(features - bases / UNITS_PER_OCTAVE).float().to(device)
    base = torch.from_numpy(bases[training_blocks]).float().to(device)
    x = everything[torch.from_numpy(training_blocks).to(device)]
    cost = torch.from_numpy(costs).float().to(device)
    # The decoder is paid for once, by all blocks; the loss sees only those trained on.
    share = len(x) / len(everything)
    n_sub_blocks = cost.numel() // N_CLASSES
    optimizer = Adam(list(prior.parameters()), config.learning_rate, config.steps)
    for step in range(1, config.steps + 1):
        chosen: torch.Tensor | slice = slice(None)
        n_batch = len(x)
        if len(x) > _MAX_BATCH_BLOCKS:
            n_batch = _MAX_BATCH_BLOCKS
            chosen = torch.randint(len(x), (n_batch,), generator=generator, device=device)
        y = prior.encode(x[chosen])
        # Noise at first, which has a gradient; rounding at last, which is what will be stored.
        noise = torch.rand(y.shape, generator=generator, device=device) - 0.5
        z = y + noise if step < 0.6 * config.steps else y + (y.round() - y).detach()
        position = (prior.decode(z) + base[chosen] - LOWEST_SCALE) / UNITS_PER_CLASS
        symbol_bits = _interpolated(cost[chosen], position.clamp(0, N_CLASSES - 1))
        bits = (symbol_bits + prior.latent_bits(z)).sum() * (len(x) / n_batch) + share * prior.weight_bits()
        loss = bits / n_sub_blocks
        optimizer.step(loss)
        if progress is not None and step % 20 == 0:
            progress(step, config.steps, {"bits/sub-block": float(loss)})
    with torch.no_grad():
        latents = (
            torch.cat([prior.encode(part).round() for part in everything.split(4096)]).cpu().numpy().astype(np.int64)
        )
    return _integer_decoder(prior), latents


def _interpolated(cost: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    below = position.detach().floor().clamp(0, N_CLASSES - 2).long()
    fraction = position - below
    low = cost.gather(2, below[:, :, None])[:, :, 0]
    high = cost.gather(2, below[:, :, None] + 1)[:, :, 0]
    return low + (high - low) * fraction


def _integer_decoder(prior: _Prior) -> PriorDecoder:
    def units(x: torch.Tensor) -> npt.NDArray[np.int64]:
        rounded = (x.detach() * 2**WEIGHT_BITS).round().clamp(-127, 127)
        return np.asarray(rounded.cpu().numpy(), dtype=np.int64)

    return PriorDecoder(
        skip=int(units(prior.skip)),
        weights_in=units(prior.weights_in)[:, 0, :],
        biases_in=units(prior.biases_in),
        weights_out=units(prior.weights_out)[0],
        bias_out=int(units(prior.bias_out)[0]),
    )
