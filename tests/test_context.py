"""The context model's coder: what it writes it reads, whatever the symbols, and its tables are the same everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from wcompress.codec.models.context import model as context_model
from wcompress.codec.models.context.encoder import ContextEncoder, _most_saved
from wcompress.codec.models.context.model import N_SETS, ContextModel, ScaleNetwork
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis, trellis
from wcompress.codec.rate_control.solution import EncoderConfig
from wcompress.entropy import context
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.context import N_TAPS
from wcompress.entropy.workspace import N_FEATURES
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
        assert max(np.abs(part).max() for part, _ in decoded) <= context.MAX_SYMBOL


def test_tables_do_not_depend_on_the_math_library() -> None:
    """No entry is near where rounding turns, so that errors of a few units in the last place change nothing."""
    exact = [65536 / (1 + math.exp(-x / 256)) for x in range(-2047, 2048)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-6
    logs = [16 * math.log2(1 + (i + 0.5) / 256) for i in range(256)]
    assert min(min(value % 1, 1 - value % 1) for value in logs) > 1e-6
    assert context.SQUASH.tolist() == [round(value) for value in exact]
    assert context.SQUASH[2047] == 32768
    assert np.all(np.diff(context.STRETCH) >= 0)
    assert np.abs(context.SQUASH[context.STRETCH + 2047] - (16 * np.arange(4096) + 8))[40:-40].max() < 80


def test_a_prior_is_trained_only_where_classes_would_save(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full((64, N_CLASSES), 100.0, np.float32)
    flat[:, N_CLASSES // 2] = 99.0
    assert _most_saved(flat, 8) == pytest.approx(0.0, abs=1.0)
    varied = flat.copy()
    varied[np.arange(64), np.random.default_rng(0).integers(11, 16, 64)] = 50.0
    assert 64 * (99 - 50 - 5) < _most_saved(varied, 8) < 64 * (99 - 50)

    def trained(*_args: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(prior_training, "train_prior", trained)
    rng = np.random.default_rng(0)
    even = rng.normal(size=2000) * 4
    config = EncoderConfig(trellis(1), prior_steps=10)
    for weights, worth in ((even, False), (even * np.repeat(2.0 ** (6 * rng.random(250)), 8), True)):
        encoder = ContextEncoder(weights, Sequencing(((2000,),), ("rows",), 64, 8, 4), config)
        with pytest.raises(AssertionError, match="trained") if worth else contextlib.nullcontext():
            encoder.describe(1.0, np.rint(weights).astype(np.int32))
