"""Training the VAE on noisy copies of one parameter set.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", sections 3 and 4.2: 80 training
and 20 validation sets made from the one true set by adding noise, at most 500 epochs, early stopping, the true set as
the test. Here the training copies are drawn afresh at every step, from the same distribution.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from wcompress.progress import Progress
from wcompress.vae.networks import FullyConnectedVAE
from wcompress.vae.objective import kl_divergence, reconstruction_nats, reparameterise

_MAX_BATCH_BLOCKS = 512
_MAX_VALIDATION_BLOCKS = 4096
_STEPS_PER_EPOCH = 2  # 80 copies in batches of 40; one fresh copy stands in for each batch
_EPOCHS_PER_VALIDATION = 20


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        hidden: sizes of the hidden layers.
        latent_dim: numbers in a latent.
        epochs: the most epochs.
        patience: epochs without a better validation loss after which training stops.
        n_validation_sets: fixed noisy copies of the parameter set to validate on.
        noise: standard deviation of the added noise, as a fraction of a tensor's root mean square; also the standard
            deviation of the Gaussian likelihood, since it is what separates a copy from the truth.
        learning_rate: peak of the one-cycle schedule.
        seed: of initialisation, noise and sampling.
        device: a torch device name.
    """

    hidden: tuple[int, ...] = (512,)
    latent_dim: int = 64
    epochs: int = 500
    patience: int = 250
    n_validation_sets: int = 20
    noise: float = 0.05
    learning_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"


@dataclass
class TrainingHistory:
    """What happened, losses being −ELBO in nats per parameter (without the likelihood's constant).

    Attributes:
        train: `(epoch, loss)` of each epoch, mean over its steps.
        validation: `(epoch, loss)` wherever validated.
        test_mse: mean squared error on the true set, relative to its mean square.
        seconds: wall time.
        stopped_early: the validation loss stopped falling before the last epoch.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    test_mse: float = math.nan
    seconds: float = 0.0
    stopped_early: bool = False


@dataclass(frozen=True)
class TrainedVAE:
    """A decoder and the latents of the true parameter set.

    Attributes:
        layers: the decoder's weights `[n_out, n_in]` and biases `[n_out]`, float64, in order; ReLU lies between.
        latents: posterior means, float64 `[n_blocks, latent_dim]`.
        history: of the training.
    """

    layers: tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]
    latents: npt.NDArray[np.float64]
    history: TrainingHistory


def train_vae(blocks: npt.NDArray[np.float64], config: TrainingConfig, progress: Progress | None = None) -> TrainedVAE:
    """Train a VAE on noisy copies of `blocks` and encode `blocks` with it.

    The same blocks, configuration, machine and thread count give the same result.

    Args:
        blocks: float64 `[n_blocks, block_size]`, n_blocks ≥ 1, of about unit mean square.
        config: how to train.
        progress: called after each epoch.

    Source: Cheng et al., sections 3 and 4.2.
    """
    start = time.perf_counter()
    device = torch.device(config.device)
    x = torch.from_numpy(blocks).to(device=device, dtype=torch.float32)
    generator = torch.Generator(device=device).manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae = FullyConnectedVAE(x.shape[1], config.latent_dim, config.hidden).to(device)
    n_steps = config.epochs * _STEPS_PER_EPOCH
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=n_steps)
    validation_x = _validation_sets(x, config, generator)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, device=device)

    def step() -> torch.Tensor:
        batch = x
        if len(x) > _MAX_BATCH_BLOCKS:
            batch = x[torch.randint(len(x), (_MAX_BATCH_BLOCKS,), generator=generator, device=device)]
        noisy = batch + config.noise * normal(batch)
        mean, log_variance = vae.encode(noisy)
        reconstructed = vae.decode(reparameterise(mean, log_variance, normal(mean)))
        nats = reconstruction_nats(noisy, reconstructed, config.noise) + kl_divergence(mean, log_variance)
        loss = nats.mean() / x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    history = TrainingHistory()
    best_loss, best_epoch, best_state = math.inf, 0, copy.deepcopy(vae.state_dict())
    for epoch in range(1, config.epochs + 1):
        train_loss = float(torch.stack([step() for _ in range(_STEPS_PER_EPOCH)]).mean())
        history.train.append((epoch, train_loss))
        if epoch % _EPOCHS_PER_VALIDATION == 0 or epoch == config.epochs:
            validation_loss = _validation_loss(vae, validation_x, config.noise)
            history.validation.append((epoch, validation_loss))
            if validation_loss < best_loss:
                best_loss, best_epoch, best_state = validation_loss, epoch, copy.deepcopy(vae.state_dict())
            elif epoch - best_epoch >= config.patience:
                history.stopped_early = True
                break
        if progress is not None:
            progress(epoch, config.epochs, {"loss": train_loss})
    vae.load_state_dict(best_state)

    latents = _encode(vae, x)
    with torch.no_grad():
        errors = [(vae.decode(z) - b).square().sum() for z, b in zip(latents.split(4096), x.split(4096), strict=True)]
    history.test_mse = float(torch.stack(errors).sum() / x.square().sum().clamp_min(1e-30))
    history.seconds = time.perf_counter() - start
    layers = tuple(
        (_to_numpy(layer.weight), _to_numpy(layer.bias)) for layer in vae.decoder if isinstance(layer, torch.nn.Linear)
    )
    return TrainedVAE(layers, _to_numpy(latents), history)


def _validation_sets(x: torch.Tensor, config: TrainingConfig, generator: torch.Generator) -> torch.Tensor:
    # Of a large model a sample of blocks is enough to see the loss turn.
    n_blocks = min(len(x), max(1, _MAX_VALIDATION_BLOCKS // config.n_validation_sets))
    chosen = x[torch.randperm(len(x), generator=generator, device=x.device)[:n_blocks]]
    copies = chosen.repeat(config.n_validation_sets, 1)
    return copies + config.noise * torch.randn(copies.shape, generator=generator, device=x.device)


@torch.no_grad()
def _validation_loss(vae: FullyConnectedVAE, noisy: torch.Tensor, sigma: float) -> float:
    # At the posterior's mean, so that the figure moves with the model and not with the draw.
    mean, log_variance = vae.encode(noisy)
    nats = reconstruction_nats(noisy, vae.decode(mean), sigma) + kl_divergence(mean, log_variance)
    return float(nats.mean()) / noisy.shape[1]


@torch.no_grad()
def _encode(vae: FullyConnectedVAE, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.encode(part)[0] for part in x.split(4096)])


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()
