"""The VAE learns, repeatably; its integer decoder is exact and proves it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wcompress.errors import ArchiveError
from wcompress.vae.integer import IntegerDecoder, quantise_decoder
from wcompress.vae.networks import FullyConnectedVAE
from wcompress.vae.objective import kl_divergence, reconstruction_nats
from wcompress.vae.training import TrainingConfig, train_vae

CONFIG = TrainingConfig(hidden=(32,), latent_dim=8, epochs=150, learning_rate=4e-3)


def make_blocks(n_blocks: int = 12, block_size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_blocks, block_size))


def test_sizes_are_the_papers() -> None:
    vae = FullyConnectedVAE(2048, 64, (512,))
    mean, log_variance = vae.encode(torch.zeros(3, 2048))
    assert mean.shape == log_variance.shape == (3, 64)
    assert vae.decode(mean).shape == (3, 2048)


def test_objective_against_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 4), torch.randn(5, 4)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1)
    assert torch.allclose(kl_divergence(mean, log_variance), expected, atol=1e-5)
    x, y, sigma = torch.randn(5, 7), torch.randn(5, 7), 0.3
    likelihood = torch.distributions.Normal(y, sigma)
    difference = -likelihood.log_prob(x).sum(1) + likelihood.log_prob(y).sum(1)
    assert torch.allclose(reconstruction_nats(x, y, sigma), difference, atol=1e-3)


def test_training_memorises_the_true_set_and_keeps_its_history() -> None:
    seen: list[int] = []
    trained = train_vae(make_blocks(), CONFIG, lambda done, _total, _figures: seen.append(done))
    history = trained.history
    assert history.test_mse < 0.05
    assert seen == list(range(1, 151))
    assert [epoch for epoch, _ in history.train] == seen
    assert [epoch for epoch, _ in history.validation] == [*range(20, 150, 20), 150]
    assert history.validation[-1][1] < 0.5 * history.validation[0][1]
    assert trained.latents.shape == (12, 8)


def test_training_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    config = dataclasses.replace(CONFIG, epochs=5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = train_vae(make_blocks(), config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = train_vae(make_blocks(), config)
    other = train_vae(make_blocks(), dataclasses.replace(config, seed=1))
    assert np.array_equal(first.latents, again.latents)
    assert not np.array_equal(first.latents, other.latents)


def test_early_stopping_keeps_the_best() -> None:
    # With a huge learning rate the loss explodes, and validation stops falling.
    config = dataclasses.replace(CONFIG, epochs=500, patience=40, learning_rate=1.0)
    history = train_vae(make_blocks(), config).history
    assert history.stopped_early
    assert len(history.train) < 500


def trained_decoder() -> tuple[IntegerDecoder, np.ndarray, np.ndarray]:
    trained = train_vae(make_blocks(), CONFIG)
    decoder, latents = quantise_decoder(trained.layers, trained.latents, 400.0)
    activations = trained.latents
    for index, (weight, bias) in enumerate(trained.layers):
        activations = activations @ weight.T + bias
        if index < len(trained.layers) - 1:
            activations = np.maximum(activations, 0)
    return decoder, latents, activations


def test_integer_decoder_follows_the_float_one() -> None:
    decoder, latents, expected = trained_decoder()
    error = decoder(latents) - expected
    assert np.square(error).mean() < 2e-6 * np.square(expected).mean()


def test_integer_decoder_is_exact() -> None:
    """Python's unbounded integers give the same sums, whatever the batch."""
    decoder, latents, _ = trained_decoder()
    out = decoder(latents)
    for row, z in enumerate(latents):
        a = [int(v) for v in z]
        for index, (weight, bias) in enumerate(zip(decoder.weights, decoder.biases, strict=True)):
            s = [
                sum(int(w) * v for w, v in zip(line, a, strict=True)) + int(b)
                for line, b in zip(weight, bias, strict=True)
            ]
            if index < len(decoder.shifts):
                shift = decoder.shifts[index]
                a = [(max(v, 0) + (1 << shift >> 1)) >> shift for v in s]
        assert out[row].tolist() == [v * decoder.output_scale for v in s]
        assert np.array_equal(decoder(latents[row : row + 1])[0], out[row])


def test_integer_decoder_round_trips_through_bytes() -> None:
    decoder, latents, _ = trained_decoder()
    again = IntegerDecoder.from_bytes(decoder.to_bytes(), coded=True)
    assert again.sizes == decoder.sizes == (8, 32, 64)
    assert again.shifts == decoder.shifts
    assert np.array_equal(again(latents), decoder(latents))


def test_a_decoder_that_could_round_is_refused() -> None:
    decoder, _, _ = trained_decoder()
    biases = (decoder.biases[0], decoder.biases[1] + 2.0**52)
    with pytest.raises(ArchiveError, match="layer 1"):
        IntegerDecoder.from_bytes(dataclasses.replace(decoder, biases=biases).to_bytes(), coded=True)
    wide = dataclasses.replace(decoder, weights=tuple(w * 0 + 32767 for w in decoder.weights), shifts=(0,))
    with pytest.raises(ArchiveError):
        # 8 · 32767 · 32768 in, unshifted, times 32 · 32767: about 2^53
        dataclasses.replace(wide, biases=(wide.biases[0] + 2.0**48, wide.biases[1])).check_bounds()


def test_malformed_decoders_are_refused() -> None:
    data = trained_decoder()[0].to_bytes()
    for length in range(0, len(data), 97):
        with pytest.raises(ArchiveError):
            IntegerDecoder.from_bytes(data[:length], coded=True)
    with pytest.raises(ArchiveError, match="too many"):
        IntegerDecoder.from_bytes(data + b"\0", coded=True)
    with pytest.raises(ArchiveError, match="layers"):
        IntegerDecoder.from_bytes(b"\x00", coded=True)


def test_latents_that_carry_nothing_keep_the_biases() -> None:
    layers = [(np.full((3, 2), 0.1), np.array([0.5, -0.25, 0.125])), (np.eye(4, 3), np.array([1.0, -2.0, 3.0, 4.0]))]
    decoder, latents = quantise_decoder(layers, np.full((2, 2), 1e-12), 400.0)
    decoder.check_bounds()
    assert np.allclose(decoder(latents)[0], [1.5, -2.0, 3.125, 4.0], rtol=1e-3)
