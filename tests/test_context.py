"""The context model's coder: what it writes it reads, whatever the symbols, and its tables are the same everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from wcompress.codec.models.context import model as context_model
from wcompress.codec.models.context.encoder import ContextEncoder
from wcompress.codec.models.context.model import N_SETS, ContextModel, ScaleNetwork
from wcompress.codec.models.context.prior_trial import NEUTRAL, best_told
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis, trellis
from wcompress.codec.rate_control.solution import EncoderConfig
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.context.state import N_FEATURES
from wcompress.entropy.context.tables import MAX_SYMBOL, N_TAPS, SQUASH, STRETCH
from wcompress.errors import ArchiveError
from wcompress.vae import prior_training
from wcompress.vae.prior import N_CLASSES, PriorDecoder

SEQUENCING = Sequencing(((40, 30), (16, 4, 3, 3), (7, 5)), ("rows", "positions", "columns"), 256, 8, 2)


def random_model(rng: np.random.Generator, n_sets: int, *, prior: bool = False) -> ContextModel:
    """A model with everything in it."""
    width = N_FEATURES + 1
    network = ScaleNetwork(
        rng.integers(-20, 20, width), rng.integers(-40, 40, (5, width)), rng.integers(-30, 30, 5).astype(np.int64)
    )
    scales = ScaleModel((3, -9, 17), None, np.zeros((0, 8), np.int64))
    if prior:
        decoder = PriorDecoder(40, rng.integers(-9, 9, (1, 5)), np.array([3]), rng.integers(-9, 9, (1, 5)), -2)
        scales = dataclasses.replace(scales, prior=decoder, latents=rng.integers(-3, 4, (SEQUENCING.n_blocks, 8)))
    taps = rng.integers(-60, 60, (3, N_TAPS))
    taps[2] = 0
    return ContextModel(scales, network, taps, (5, 64, 0), n_sets)


def random_symbols(rng: np.random.Generator, spread: float) -> np.ndarray:
    return np.rint(rng.laplace(size=SEQUENCING.n_weights) * spread).astype(np.int32)


def decode(
    model: ContextModel, data: bytes, machine: Trellis, units: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Symbols and ratios of units, in order."""
    found: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    model.decode(data, SEQUENCING, machine, units, lambda unit, *parts: found.__setitem__(unit, parts))
    return [found[unit] for unit in units]


@pytest.mark.parametrize("n_states", [1, 8])
@pytest.mark.parametrize("n_sets", N_SETS)
@pytest.mark.parametrize("spread", [0.2, 2.0, 300.0])
def test_symbols_round_trip(n_states: int, n_sets: int, spread: float) -> None:
    rng = np.random.default_rng(int(10 * spread) + n_states + n_sets)
    model, machine, symbols = (
        random_model(rng, n_sets, prior=n_sets == 2),
        trellis(n_states),
        random_symbols(rng, spread),
    )
    data = model.encode(symbols, SEQUENCING, machine)
    tables, decoder = BitWriter(), BitWriter()
    latents = model.write(tables, decoder)
    readers = BitReader(tables.to_bytes(), "tables"), BitReader(decoder.to_bytes(), "decoder")
    again = ContextModel.read(*readers, latents, SEQUENCING)
    for reader in readers:
        reader.finish()
    described = model.describe(symbols, SEQUENCING, machine)
    n_units = len(SEQUENCING.unit_starts) - 1
    decoded = decode(again, data, machine, range(n_units))
    assert np.array_equal(np.concatenate([part for part, _ in decoded]), symbols)
    assert np.array_equal(np.concatenate([part for _, part in decoded]), described.ratios)
    with pytest.raises(ArchiveError):
        decode(again, data[:-1], machine, range(n_units))


def test_streams_decode_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_model, "TRELLIS_UNITS", 1)
    rng = np.random.default_rng(1)
    model, machine, symbols = random_model(rng, 2), trellis(4), random_symbols(rng, 1.0)
    data = model.encode(symbols, SEQUENCING, machine)
    for unit in range(len(SEQUENCING.unit_starts) - 1):
        start, end = SEQUENCING.unit_starts[unit : unit + 2]
        ((part, _),) = decode(model, data, machine, [unit])
        assert np.array_equal(part, symbols[start:end])


def test_what_is_likely_is_cheap() -> None:
    rng = np.random.default_rng(2)
    plain = ContextModel.plain(ScaleModel((-20, -20, -20), None, np.zeros((0, 8), np.int64)), (0, 0, 0))
    rare = (rng.random(SEQUENCING.n_weights) < 0.02).astype(np.int32)
    n_bits = 8 * len(plain.encode(rare, SEQUENCING, trellis(1)))
    p = rare.mean()
    entropy = len(rare) * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) + rare.sum()  # and a sign each
    assert n_bits < 1.25 * entropy + 40


def test_noise_is_refused_or_decoded_to_something_in_range() -> None:
    rng = np.random.default_rng(3)
    model, machine = random_model(rng, 5), trellis(8)
    n_units = len(SEQUENCING.unit_starts) - 1
    for _ in range(30):
        noise = bytes([100]) + rng.bytes(100)
        try:
            decoded = decode(model, noise, machine, range(n_units))
        except ArchiveError:
            continue
        assert max(np.abs(part).max() for part, _ in decoded) <= MAX_SYMBOL


def test_tables_do_not_depend_on_the_math_library() -> None:
    """No entry is near where rounding turns, so that errors of a few units in the last place change nothing."""
    exact = [65536 / (1 + math.exp(-x / 256)) for x in range(-2047, 2048)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-6
    logs = [16 * math.log2(1 + (i + 0.5) / 256) for i in range(256)]
    assert min(min(value % 1, 1 - value % 1) for value in logs) > 1e-6
    assert SQUASH.tolist() == [round(value) for value in exact]
    assert SQUASH[2047] == 32768
    assert np.all(np.diff(STRETCH) >= 0)
    assert np.abs(SQUASH[STRETCH + 2047] - (16 * np.arange(4096) + 8))[40:-40].max() < 80


def test_named_classes_save_where_scales_differ() -> None:
    flat = np.full((64, N_CLASSES), 100.0, np.float32)
    flat[:, NEUTRAL] = 99.0
    assert best_told(flat, 8).saved_bits == pytest.approx(0.0, abs=1.0)
    varied = flat.copy()
    classes = np.random.default_rng(0).integers(11, 16, 64)
    varied[np.arange(64), classes] = 50.0
    told = best_told(varied, 8)
    assert 64 * (99 - 50 - 5) < told.saved_bits < 64 * (99 - 50)
    assert np.array_equal(told.classes, classes - NEUTRAL)


def jumping(n: int, run: int, factor: float, share: float = 0.5) -> np.ndarray:
    """Normal weights `[n]` in runs that are larger by a factor in some places, which nothing foretells."""
    rng = np.random.default_rng(1)
    return rng.normal(size=n) * np.repeat(np.where(rng.random(n // run) < share, 1.0, factor), run)


def wandering(n: int, run: int, octaves: float) -> np.ndarray:
    """Normal weights `[n]` whose scale is drawn anew for each run."""
    rng = np.random.default_rng(1)
    return rng.normal(size=n) * np.repeat(2.0 ** (octaves * rng.normal(size=n // run)), run)


@pytest.mark.parametrize(
    ("weights", "step", "worth"),
    [
        (np.random.default_rng(0).normal(size=1 << 16), 0.5, False),
        (jumping(1 << 17, 32, 0.01, 0.7), 0.5, True),
        # By their costs names would save a fortieth, by the coder nothing.
        (wandering(1 << 17, 32, 0.4), 2.0, False),
    ],
)
def test_a_prior_is_trained_only_where_the_coder_would_be_told_something(
    monkeypatch: pytest.MonkeyPatch, weights: np.ndarray, step: float, worth: bool
) -> None:
    def trained(*_args: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(prior_training, "train_prior", trained)
    sequencing = Sequencing(((len(weights),),), ("rows",), 2048, 64, 4)
    encoder = ContextEncoder(weights, sequencing, EncoderConfig(trellis(1), prior_steps=100))
    with pytest.raises(AssertionError, match="trained") if worth else contextlib.nullcontext():
        encoder.describe(step, np.rint(weights / step).astype(np.int32))
