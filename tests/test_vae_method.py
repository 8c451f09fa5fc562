"""Method `vae`: what is stored restores, meets its target from the safe side, and is refused when damaged."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import wcompress
from wcompress.archive import ArchiveReader
from wcompress.codec import kinds
from wcompress.codec.container import groups
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.methods.trellis import VaeReader
from wcompress.codec.models.class_tables.encoder import ClassEncoder
from wcompress.codec.models.class_tables.tables import (
    ClassTables,
    count_symbols,
    decode_symbols,
    encode_symbols,
    fit_tables,
)
from wcompress.codec.models.context.model import check_length
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.options import PackOptions
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.sequence import LAYOUTS, Sequencing, choose_layout
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import N_STATES, quantisers, trellis
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import EncoderConfig, Solution
from wcompress.codec.rate_control.step_rule import StepRule, multiplier
from wcompress.codec.rate_control.step_search import Target
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.errors import ArchiveError, OptionError, TargetUnreachable
from wcompress.fidelity import compare, same_bits
from wcompress.vae.prior import N_CLASSES, PriorDecoder, classes_of

SMALL_VAE = PackOptions(method="vae", block_size=256, latent_dim=8, effort=2, device="cpu")


def striped(rows: int = 96, columns: int = 64) -> torch.Tensor:
    """Weights whose scale varies from row to row, as a prior can learn."""
    rng = np.random.default_rng(3)
    scales = np.exp2(np.sin(np.arange(rows) / 5) * 2)
    return torch.from_numpy(rng.normal(size=(rows, columns)) * scales[:, None]).float()


@pytest.fixture
def vae_archive(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "m.wcz"
    wcompress.pack({**tensors, "striped": striped()}, path, SMALL_VAE, sqnr=15)
    return path


def test_everything_is_restored(vae_archive: Path, tensors: dict[str, torch.Tensor]) -> None:
    restored = wcompress.load(vae_archive)
    assert list(restored) == [*tensors, "striped"]
    for name, tensor in tensors.items():
        assert (restored[name].dtype, restored[name].shape) == (tensor.dtype, tensor.shape), name
    for name in ("norm.num_batches_tracked", "mask", "phase", "broken", "empty", "zeros", "scalar"):
        assert same_bits(restored[name], tensors[name].contiguous()), name
    relative = (restored["norm.running_var"] / tensors["norm.running_var"] - 1).abs()
    assert relative.max() < 0.02
    with wcompress.open(vae_archive) as opened:
        for name in opened.keys():  # noqa: SIM118 - an archive is no dict
            assert same_bits(opened.get_tensor(name), restored[name]), name


@pytest.mark.parametrize("effort", [1, 7])
def test_targets_are_met_from_the_safe_side(tmp_path: Path, effort: int) -> None:
    model = {
        "a": striped(),
        "b": torch.randn(80, 80, generator=torch.Generator().manual_seed(0)),
        "bias": torch.ones(80),
    }
    path = tmp_path / "m.wcz"

    def packed(**target: float) -> wcompress.PackResult:
        return wcompress.pack(model, path, SMALL_VAE, force=True, effort=effort, **target)

    for sqnr in (5.0, 14.0, 40.0):
        result = packed(sqnr=sqnr)
        assert result.sqnr_db is not None
        assert sqnr <= result.sqnr_db <= sqnr + 0.2
        assert compare(model, wcompress.load(path)).sqnr_db == pytest.approx(result.sqnr_db)
    for bits in (1.2, 3.0, 9.0):
        result = packed(bits_per_weight=bits)
        assert result.bits_per_param is not None
        assert 0.98 * bits <= result.bits_per_param <= bits
        assert result.archive_bytes == path.stat().st_size
    result = packed(ratio=12.0)
    assert 12.0 <= result.ratio <= 12.0 * 1.02


def test_more_effort_is_smaller(tmp_path: Path) -> None:
    model = {"w": torch.randn(200, 150, generator=torch.Generator().manual_seed(0))}
    sizes = [
        wcompress.pack(model, tmp_path / f"{effort}.wcz", SMALL_VAE, effort=effort, sqnr=12).archive_bytes
        for effort in (1, 3, 5)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.985 * sizes[0]


def test_the_prior_pays_where_scales_vary_and_is_left_out_where_not(tmp_path: Path) -> None:
    flat = {"w": torch.randn(96, 64, generator=torch.Generator().manual_seed(0))}
    without = wcompress.pack(flat, tmp_path / "flat.wcz", SMALL_VAE, sqnr=12)
    assert without.n_latents is None
    assert without.sections.get("latents", 0) == 0
    # Under class tables; where the weights before tell the scale, latents rarely pay for themselves.
    varied = striped(256, 64).numpy()
    sequencing = Sequencing(((256, 64),), ("rows",), SMALL_VAE.block_size, SMALL_VAE.latent_dim)
    weights = sequencing.flatten([varied])

    def found(use_prior: bool) -> Solution:
        config = EncoderConfig(trellis(8), use_prior=use_prior, prior_steps=300)
        return ClassEncoder(weights, sequencing, config).solve(0.3 * float(varied.std()))

    with_prior, plain = found(True), found(False)
    assert with_prior.model.scales.latents.any()
    assert not plain.model.scales.latents.size
    bits = [solution.header_bits + solution.symbol_bits for solution in (with_prior, plain)]
    assert bits[0] < 0.9 * bits[1]


def test_weights_before_tell_scales_and_signs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(128, 128, generator=generator)
    smooth = torch.nn.functional.avg_pool1d(white, 5, 1, 2, count_include_pad=False) * 5**0.5
    models = {"white": white, "striped": white * striped(128, 1).abs(), "smooth": smooth}
    sizes = {
        name: wcompress.pack({"w": w}, tmp_path / name, SMALL_VAE, sqnr=12).archive_bytes for name, w in models.items()
    }
    assert sizes["striped"] < 0.9 * sizes["white"]
    assert sizes["smooth"] < 0.8 * sizes["white"]


def test_unreachable_targets_write_nothing(tmp_path: Path) -> None:
    model = {"w": torch.randn(40, 40), "n": torch.randint(0, 2**60, (100,))}
    for target in ({"ratio": 500.0}, {"bits_per_weight": 0.01}):
        with pytest.raises(TargetUnreachable) as caught:
            wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, **target)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.wcz").exists()


def test_targets_exclude_each_other_and_other_methods() -> None:
    with pytest.raises(OptionError, match="one target"):
        dataclasses.replace(SMALL_VAE, sqnr=10, ratio=10)
    with pytest.raises(OptionError, match="cannot aim"):
        PackOptions(method="lossless", ratio=10)
    with pytest.raises(OptionError, match="ratio"):
        dataclasses.replace(SMALL_VAE, ratio=-1)
    with pytest.raises(OptionError, match="power of two"):
        wcompress.pack({"w": torch.ones(9, 9)}, "never.wcz", SMALL_VAE, latent_dim=7)


def test_repeatable(tmp_path: Path) -> None:
    model = {"w": striped()}
    for name in ("a", "b"):
        wcompress.pack(model, tmp_path / name, SMALL_VAE, ratio=10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tiny_model_makes_a_tiny_archive(tmp_path: Path) -> None:
    result = wcompress.pack({"w": torch.randn(3, 3), "b": torch.randn(1)}, tmp_path / "m.wcz", SMALL_VAE)
    assert result.archive_bytes < 300


def test_damage_is_an_archive_error(vae_archive: Path) -> None:
    whole = vae_archive.read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        vae_archive.write_bytes(damaged)
        with pytest.raises(ArchiveError):
            wcompress.load(vae_archive)


def test_hostile_sections_are_refused_or_restore_something_else(vae_archive: Path) -> None:
    """With every checksum put right, so that only the decoder's own checks stand."""
    from tests.test_codec import rewrite
    from wcompress.archive import ArchiveReader

    whole = vae_archive.read_bytes()
    expected = wcompress.load(vae_archive)
    n_refused = 0
    rng = np.random.default_rng(0)
    with ArchiveReader(vae_archive) as reader:
        payloads = {entry.name: reader.section(entry.name) for entry in reader.entries}
    for name in ("decoder", "tables", "symbols", "fine"):
        for _ in range(25):
            damaged = bytearray(payloads[name])
            for _ in range(int(rng.integers(1, 4))):
                damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            if rng.random() < 0.3:
                damaged = damaged[: int(rng.integers(len(damaged)))]
            vae_archive.write_bytes(whole)
            rewrite(vae_archive, **{name: bytes(damaged)})
            try:
                restored = wcompress.load(vae_archive)
            except ArchiveError:
                n_refused += 1
                continue
            # A weight of the prior may change without any class changing.
            assert all(same_bits(restored[key], tensor) for key, tensor in expected.items())
    assert n_refused > 90


def test_few_bytes_ask_for_little() -> None:
    """Readers bound what they allocate by the bytes that are there."""

    def opened(shape: tuple[int, ...], block_size: int, own_scales: list[int]) -> None:
        tables = BitWriter()
        for byte in struct.pack("<d", 1.0):
            tables.write(byte, 8)
        tables.write(0, 4)
        tables.write_exp_golomb(block_size, 8)
        tables.write_exp_golomb(1, 4)
        tables.write(0, 2)
        for bit in own_scales:
            tables.write(bit, 1)
        sections = {
            "tables": tables.to_bytes() + bytes(20),
            "decoder": bytes(20),
            "latents": b"",
            "symbols": b"\x01\x00",
        }
        VaeReader([TensorEntry("w", "float32", shape, "coded")], sections, 3).restore()

    for shape, block_size, bits in (((0, 3), 0, [0]), ((), 64, [1, 1]), ((1 << 14, 1 << 14), 1 << 20, [0] * 50)):
        with pytest.raises(ArchiveError):
            opened(shape, block_size, bits)
    with pytest.raises(ArchiveError, match="in 6 bytes"):
        check_length(100_000, 6)


def test_odd_models(tmp_path: Path) -> None:
    models = {
        "zeros": {"w": torch.zeros(20, 20)},
        "constant": {"w": torch.full((20, 20), 3.25)},
        "one huge": {"w": torch.cat([torch.randn(400), torch.tensor([1e6])]).reshape(1, 401)},
        "double": {"w": torch.randn(20, 20).double() * 1e200},
        "tiny": {"w": torch.randn(20, 20) * 1e-38},
        "half": {"w": torch.randn(20, 20).half() * 100, "b": torch.randn(7).bfloat16()},
        "many dims": {"w": torch.randn(2, 3, 4, 5, 6)},
        "long": {"w": torch.randn(1, 5000), "v": torch.randn(5000, 1)},
        "nothing": {"b": torch.randn(5)},
    }
    for name, model in models.items():
        result = wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, force=True)
        assert wcompress.verify(tmp_path / "m.wcz", model).ok, name
        json.dumps(result.to_json(), allow_nan=False)
        for key, tensor in wcompress.load(tmp_path / "m.wcz").items():
            assert torch.isfinite(tensor.double()).all(), (name, key)


def test_a_large_scale_before_a_norm_does_not_hide_the_other_layers(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    model = {
        "small.weight": 1000 * torch.randn(16, 3, 3, 3, generator=rng),
        "bn1.running_var": 1e6 * torch.ones(16),
        "large.weight": torch.randn(64, 64, 3, 3, generator=rng),
        "bn2.running_var": torch.ones(64),
    }
    wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE)
    restored = wcompress.load(tmp_path / "m.wcz")
    for name in ("small.weight", "large.weight"):
        error = float((restored[name] - model[name]).square().sum() / model[name].square().sum())
        assert error < 10**-2.15, name


def own_scales(tensors: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor]) -> OwnScales:
    return StepRule.of(tensors, coded, by_sqnr=False).scales


def test_scales_of_their_own_where_a_norm_follows(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    scales = torch.exp2(torch.arange(16.0) - 8)
    model = {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=rng) * scales[:, None, None, None],
        "bn.weight": torch.ones(16),
        "bn.bias": torch.zeros(16),
        "bn.running_mean": torch.zeros(16),
        "bn.running_var": scales.square(),
        "fc.weight": torch.randn(10, 16, generator=rng),
    }
    coded = {name: model[name] for name in ("conv.weight", "fc.weight")}
    exponents = own_scales(model, coded).exponents
    assert len(exponents[0]) == 16
    assert np.allclose(np.diff(exponents[0]), 4, atol=2)
    assert len(exponents[1]) == 1
    # Relative squared errors go with the number of weights: 1152 / 160 is 1.4 octaves of the step.
    expected = exponents[1][0] + 4 * (float(torch.log2(scales).mean()) + 1.4)
    assert sum(exponents[0]) / 16 == pytest.approx(expected, abs=2)
    # Where no norm follows, steps go with the fourth root of the energy, and recurrent weights get finer ones.
    energy = {"a": torch.ones(64, 16), "b": 4 * torch.ones(16, 16), "rnn.weight_hh_l0": torch.ones(32, 32)}
    assert own_scales(energy, energy) == OwnScales(((1,), (3,), (-1,)))
    # With gates with its root.
    energy = {"a": torch.ones(64, 16), "b": 4 * torch.ones(16, 16), "lstm.weight_hh_l0": torch.ones(64, 16)}
    exponents = own_scales(energy, energy).exponents
    assert exponents[1][0] - exponents[0][0] == 4
    assert exponents[0][0] - exponents[2][0] == 2
    assert own_scales({"a": torch.ones(9, 9)}, {"a": torch.ones(9, 9)}) == OwnScales(((0,),))
    wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, bits_per_weight=6)
    restored = wcompress.load(tmp_path / "m.wcz")
    for name in coded:
        error = (restored[name] - model[name]).flatten(1).square().sum(1) / model[name].flatten(1).square().sum(1)
        assert error.max() < 0.15, name


def test_fewer_weights_become_zero_where_that_costs_more() -> None:
    linear, recurrent, gated = torch.ones(8, 8), {"weight_hh_l0": torch.ones(8, 8)}, {"weight_hh_l0": torch.ones(32, 8)}
    norm = {"conv.weight": torch.ones(8, 4, 3, 3), "bn.running_var": torch.ones(8)}
    assert multiplier({"w": linear}) == multiplier(recurrent) > multiplier(gated) == multiplier(norm)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_undo_themselves(layout: str) -> None:
    arrays = [np.arange(24.0).reshape(2, 3, 4), np.arange(6.0).reshape(3, 2)]
    sequencing = Sequencing(((2, 3, 4), (3, 2)), (layout, "columns"), 8, 2)
    flat = sequencing.flatten(arrays)
    assert sequencing.n_blocks == 4
    for index, array in enumerate(arrays):
        start, end = sequencing.starts[index : index + 2]
        assert np.array_equal(sequencing.unflatten(index, torch.from_numpy(flat[start:end])), array)


def test_layouts_follow_the_structure() -> None:
    rows = striped(128, 128).double().numpy()
    assert choose_layout(rows, 32) == "rows"
    assert choose_layout(rows.T.copy(), 32) == "columns"
    assert choose_layout(np.random.default_rng(0).normal(size=(128, 128)), 32) == "rows"
    kernels = np.random.default_rng(0).normal(size=(64, 64, 3)) * np.array([0.1, 1.0, 3.0])
    assert choose_layout(kernels, 32) == "positions"


@pytest.mark.parametrize("n_states", N_STATES)
def test_symbols_round_trip(n_states: int) -> None:
    rng = np.random.default_rng(n_states)
    machine = trellis(n_states)
    classes = rng.integers(0, N_CLASSES, 40).astype(np.int32)
    each = np.repeat(classes, 16)[:630]
    symbols = np.rint(rng.laplace(size=630) * 2.0 ** (each / 2 - 4) / 2).astype(np.int32)
    units = np.array([0, 256, 512, 630], np.int64)
    tables = fit_tables(count_symbols(symbols, quantisers(symbols, units, machine), classes, 4))
    writer = BitWriter()
    tables.write(writer)
    tables = ClassTables.read(BitReader(writer.to_bytes(), "test"))
    data = encode_symbols(symbols, units, classes, 4, machine, tables)
    decoded: dict[int, np.ndarray] = {}
    decode_symbols(data, units, classes, 4, machine, tables, range(3), decoded.__setitem__)
    assert np.array_equal(np.concatenate([decoded[unit] for unit in range(3)]), symbols)
    decoded.clear()
    decode_symbols(data, units, classes, 4, machine, tables, [1], decoded.__setitem__)
    assert list(decoded) == [1]
    assert np.array_equal(decoded[1], symbols[256:512])


def test_the_priors_decoder_is_what_it_says() -> None:
    rng = np.random.default_rng(5)
    decoder = PriorDecoder(
        skip=130 // 2,
        weights_in=rng.integers(-127, 128, (3, 5)),
        biases_in=rng.integers(-127, 128, 3),
        weights_out=rng.integers(-127, 128, (3, 5)),
        bias_out=-7,
    )
    z = rng.integers(-5, 6, (2, 9))
    out = decoder(z)
    for block in range(2):
        padded = [0, 0, *(int(v) for v in z[block]), 0, 0]
        hidden = [
            [
                max(0, int(decoder.biases_in[c]) + sum(int(decoder.weights_in[c, t]) * padded[j + t] for t in range(5)))
                for j in range(9)
            ]
            for c in range(3)
        ]
        for j in range(9):
            total = sum(
                int(decoder.weights_out[c, t]) * hidden[c][j + t - 2]
                for c in range(3)
                for t in range(5)
                if 0 <= j + t - 2 < 9
            )
            assert out[block, j] == 65 * padded[j + 2] - 7 + (total >> 5)
    assert classes_of(np.array([-1000.0, -32.0, -30.1, -29.9, 0.0, 1000.0])).tolist() == [0, 0, 0, 1, 8, 32]


def test_scale_models_round_trip() -> None:
    rng = np.random.default_rng(6)
    prior = PriorDecoder(9, rng.integers(-127, 128, (2, 5)), rng.integers(-9, 9, 2), rng.integers(-9, 9, (2, 5)), 3)
    for model in (
        ScaleModel((5, -40, 7), prior, rng.integers(-3, 4, (4, 8))),
        ScaleModel((5,), None, np.zeros((0, 8), np.int64)),
    ):
        writer = BitWriter()
        latents = model.write(writer)
        reader = BitReader(writer.to_bytes(), "test")
        again = ScaleModel.read(reader, latents, len(model.bases), 4, 8)
        reader.finish()
        assert again.bases == model.bases
        assert np.array_equal(again.latents, model.latents)
        where = np.zeros(30, np.intp)
        assert np.array_equal(again.classes(where), model.classes(where))


def test_few_bits_ask_for_a_smaller_lagrangian() -> None:
    config = EncoderConfig(trellis(4), multiplier=0.4)
    found = [config.multiplier_at(bits) for bits in (0.1, 0.5, 1.0, 1.5, 2.0, 8.0)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.15)
    assert found[1] < found[2] < found[3]
    assert found[-1] == 0.4
    assert EncoderConfig(trellis(4), multiplier=0.1).multiplier_at(8.0) == 0.1


def test_the_lagrangian_follows_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At few bits, what is found takes less than with the one that is right for many."""
    w = torch.from_numpy(np.random.default_rng(0).laplace(size=(64, 1024)) * np.geomspace(0.2, 5, 64)[:, None]).float()

    def bits() -> float:
        result = wcompress.pack({"w": w}, tmp_path / "m.wcz", SMALL_VAE, sqnr=5.0, effort=3, force=True)
        assert result.bits_per_param is not None
        assert result.sqnr_db is not None
        return result.bits_per_param - (result.sqnr_db - 5.0) / 6.02

    found = bits()
    monkeypatch.setattr(EncoderConfig, "multiplier_at", lambda self, _bits: self.multiplier)
    assert found < 0.997 * bits()


@pytest.mark.parametrize("effort", [1, 5])
def test_a_weight_far_out_is_kept(effort: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class tables end at 2047; what lies beyond asks for the context model."""
    monkeypatch.setattr(groups, "MOST_TOGETHER", 0)
    w = torch.randn(100, 250, generator=torch.Generator().manual_seed(0))
    w[3, 7] = 300.0
    result = wcompress.pack({"w": w}, tmp_path / "m.wcz", SMALL_VAE, effort=effort, sqnr=45)
    assert result.sqnr_db is not None
    assert result.sqnr_db >= 45
    assert float(wcompress.load(tmp_path / "m.wcz")["w"][3, 7]) == pytest.approx(300, abs=0.1)


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, 1e33, 1.4e-45, 1e-38])
def test_large_models_of_extreme_weights(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", 0)
    signs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).sign()
    model = {"w": value * signs, "v": value * signs.clamp_min(0)}
    wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, sqnr=15, effort=1)
    for name, tensor in wcompress.load(tmp_path / "m.wcz").items():
        assert torch.isfinite(tensor).all(), name
        if abs(value) > 1e-40:  # below, float32 has no room for what lies between
            assert float((tensor.double() - model[name].double()).norm()) < 0.3 * float(model[name].double().norm())


def test_more_units_than_bytes_are_refused() -> None:
    entry = TensorEntry("w", "float64", (1 << 35,), "coded")
    out = BitWriter()
    for byte in np.array([1.0], "<f8").tobytes():
        out.write(byte, 8)
    out.write(0, 4)
    out.write_exp_golomb(1 << 20, 8)
    out.write_exp_golomb(1, 4)
    out.write(0, 2)
    out.write(0, 1)
    Levels().write(out)
    out.write(0, 1)
    sections = {"decoder": b"\0" * 9, "latents": b"", "tables": out.to_bytes() + bytes(40), "symbols": bytes(64)}
    with pytest.raises(ArchiveError, match="more units"):
        VaeReader([entry], sections, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_of_rows_follow_the_layout(layout: str) -> None:
    shapes = ((4, 3, 2, 2), (5, 6), (0, 3), (7, 2))
    layouts = (layout, "columns", "rows", "rows")
    sequencing = Sequencing(shapes, layouts, 8, 2)
    scales = OwnScales(tuple(tuple(range(4 * i, 4 * i + 4 * max(shape[0], 1), 4)) for i, shape in enumerate(shapes)))
    full = [
        2.0 ** (i + np.arange(shape[0], dtype=float)).reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
        for i, shape in enumerate(shapes)
    ]
    expected = sequencing.flatten(full)
    for first, last in ((0, len(expected)), (5, 61), (47, 49), (48, 78)):
        assert np.array_equal(scales.multipliers(sequencing, first, last), expected[first:last])


def test_many_states_never_lose_what_few_have_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    few = VaeSearch._with_few_states

    def recorded(self: VaeSearch, target: Target, guess: float) -> Solution:
        solution = few(self, target, guess)
        assert solution.machine.n_states < self._encoder.config.machine.n_states
        found.append(self.n_bytes(solution))
        return solution

    monkeypatch.setattr(VaeSearch, "_with_few_states", recorded)
    for seed, size, sqnr in ((10, 25, 0.9446280002593994), (3, 34, 1.56), (1, 13, 43.98), (15, 40, 9.81)):
        generator = torch.Generator().manual_seed(seed)
        torch.randint(8, 48, (1,), generator=generator)
        w = torch.randn(size, size, generator=generator) * torch.rand(size, 1, generator=generator)
        result = wcompress.pack({"w": w}, tmp_path / "m.wcz", method="vae", sqnr=sqnr, force=True, device="cpu")
        assert result.sqnr_db is not None
        assert result.sqnr_db >= sqnr
        assert result.archive_bytes <= found[-1] + 2


def test_a_search_takes_bounded_memory() -> None:
    model = {"w": torch.randn(600, 600, generator=torch.Generator().manual_seed(0))}

    def n_states(block_size: int) -> int:
        search = VaeSearch(
            model,
            {},
            StepRule.of(model, model, by_sqnr=True),
            block_size=block_size,
            latent_dim=64,
            effort=9,
            seed=0,
            device="cpu",
        )
        return search._encoder.config.machine.n_states

    assert n_states(2048) == 16384
    assert n_states(1 << 17) == 1024


def test_an_empty_tensor_may_be_coded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_is_matrix", lambda tensor: tensor.ndim >= 2)
    model = {"w": striped(), "nothing": torch.zeros(0, 5), "half": torch.zeros(2, 0, dtype=torch.float16)}
    wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, sqnr=12)
    restored = wcompress.load(tmp_path / "m.wcz")
    assert {name: (t.dtype, t.shape) for name, t in restored.items()} == {
        name: (t.dtype, t.shape) for name, t in model.items()
    }


def test_versions_before_4_have_few_states(tmp_path: Path) -> None:
    path = tmp_path / "m.wcz"
    wcompress.pack({"w": striped()}, path, SMALL_VAE, sqnr=12, effort=5)
    with ArchiveReader(path) as archive:
        sections = {name: archive.section(name) for name in ("decoder", "latents", "tables", "symbols")}
    entry = TensorEntry("w", "float32", (96, 64), "coded")
    VaeReader([entry], sections, 5).restore()
    with pytest.raises(ArchiveError, match="trellis"):
        VaeReader([entry], sections, 3)


@pytest.mark.parametrize("most", [0, 1 << 21])
@pytest.mark.parametrize("effort", [1, 3])
def test_more_bits_than_symbols_have_are_not_asked_of_them(
    most: int, effort: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", most)
    model = {"w": striped(), "v": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    for target in ({"ratio": 2.0}, {"bits_per_weight": 20.0}, {"bits_per_weight": 300.0}, {"sqnr": 72.0}):
        result = wcompress.pack(model, tmp_path / "m.wcz", SMALL_VAE, effort=effort, force=True, **target)
        assert result.sqnr_db is not None
        assert result.sqnr_db >= 72.0, target
        assert result.ratio > 2.0
    with pytest.raises(TargetUnreachable, match=r"[78]\d\.\d\d dB is the nearest.*lossless"):
        wcompress.pack(model, tmp_path / "n.wcz", SMALL_VAE, effort=effort, sqnr=120.0)
