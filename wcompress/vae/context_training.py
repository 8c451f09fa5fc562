"""Training what tells a weight's scale from the weights before it, on its size in bits.

The loss is what the weights take under a distribution of the predicted scale, half Laplacian, half Gaussian, as in
`wcompress.codec.models.context.rates`; with latents, their bits and those of the decoder are added and the loss is the
negative ELBO.

Source: Minnen et al., "Joint autoregressive and hierarchical priors for learned image compression", arXiv 1809.02736.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wcompress.vae.adam import Adam

Ints = npt.NDArray[np.int64]

_UNITS = 32
_LARGEST = 127
_BATCH = 16384
_MANY, _ENOUGH = 1 << 19, 1 << 18  # of more weights than the first, so many are trained on


@dataclass(frozen=True)
class NetworkConfig:
    """How to train.

    Attributes:
        n_hidden: hidden units.
        steps: of Adam.
        learning_rate: at the start; it falls as a cosine.
        seed: of initialisation and batches.
    """

    n_hidden: int = 8
    steps: int = 300
    learning_rate: float = 0.02
    seed: int = 0


def _rounded(x: torch.Tensor) -> torch.Tensor:
    # To units of 1/32, the gradient passed straight through.
    rounded: torch.Tensor = x + ((x * _UNITS).round().clamp(-_LARGEST, _LARGEST) / _UNITS - x).detach()
    return rounded


def train_network(
    features: npt.NDArray[np.int16],
    magnitudes: npt.NDArray[np.float32],
    base_logs: npt.NDArray[np.float32],
    config: NetworkConfig,
    start: tuple[Ints, Ints, Ints] | None = None,
) -> tuple[Ints, Ints, Ints]:
    """Train the network.

    Args:
        features: `[n, n_features]`, in 1/16 octave.
        magnitudes: of the weights, in steps, `[n]`.
        base_logs: log2 of the base scale of each, `[n]`.
        config: how to train.
        start: weights to go on from.

    Returns:
        `linear [n_features + 1]`, `weights_in [n_hidden, n_features + 1]`, `weights_out [n_hidden]`, in units of 1/32.
    """
    if len(features) > _MANY:
        some = np.sort(np.random.default_rng(config.seed).integers(0, len(features), _ENOUGH))
        features, magnitudes, base_logs = features[some], magnitudes[some], base_logs[some]
    n, width = len(features), features.shape[1] + 1
    generator = torch.Generator().manual_seed(config.seed)
    if start is None:
        linear = torch.zeros(width)
        weights_in = 0.3 * torch.randn(config.n_hidden, width, generator=generator)
        weights_out = torch.zeros(config.n_hidden)
    else:
        linear, weights_in, weights_out = (torch.from_numpy(part).float() / _UNITS for part in start)
    parameters = [part.requires_grad_() for part in (linear, weights_in, weights_out)]
    x = torch.ones(n, width)
    x[:, :-1] = torch.from_numpy(features).float() / 16
    m, base = torch.from_numpy(magnitudes), torch.from_numpy(base_logs)
    optimizer = Adam(parameters, config.learning_rate, config.steps)
    for _ in range(config.steps):
        chosen = torch.randint(n, (min(n, _BATCH),), generator=generator)
        part = x[chosen]
        hidden = torch.relu(part @ _rounded(weights_in).T)
        scale = torch.exp2((base[chosen] + part @ _rounded(linear) + hidden @ _rounded(weights_out)).clamp(-6, 18))
        # Of a Laplacian, up to a constant; the small summand stands for the width of the quantiser's cells.
        loss = (torch.log2(scale + 0.1) + (m[chosen] + 0.1) / (scale + 0.1) / np.log(2)).mean()
        optimizer.step(loss)
    units = [(part.detach() * _UNITS).round().clamp(-_LARGEST, _LARGEST) for part in parameters]
    linear_units, in_units, out_units = (part.numpy().astype(np.int64) for part in units)
    return linear_units, in_units, out_units
