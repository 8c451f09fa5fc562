"""Every tensor, row and channel keeps a quality of its own, whatever the scales of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wcompress
from wcompress.codec.kinds import VaeKinds
from wcompress.codec.plan import plan_tensors
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import BOTH, FIRST, SECOND, WHOLE, OwnScales
from wcompress.codec.rate_control.floors import Floors
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.fidelity import compare, same_bits

FAST = {"device": "cpu", "seed": 0}
RATIOS = [1.0, 10.0, 1e2, 1e4, 1e6]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(n: int, ratio: float, seed: int = 1) -> torch.Tensor:
    """Scales from 1/ratio to 1 in random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.logspace(-float(torch.tensor(ratio).log10()), 0, n)[order]


def db(signal: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(signal / noise.clamp_min(1e-300))


def tensor_db(original: torch.Tensor, restored: torch.Tensor) -> float:
    w, error = original.double(), original.double() - restored.double()
    return float(db(w.square().sum(), error.square().sum()))


def least_db(original: torch.Tensor, restored: torch.Tensor, *axes: int) -> float:
    """The least SQNR of any index along the axes, dB."""
    w, error = original.double(), original.double() - restored.double()
    others = [axis for axis in range(w.ndim) if axis not in axes]
    signal, noise = w.square().sum(others), error.square().sum(others)
    return float(db(signal, noise)[signal > 0].min())


def packed(tmp_path: Path, model: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    path = tmp_path / "m.wcz"
    result = wcompress.pack(model, path, force=True, **{"effort": 1, **FAST, **options})
    restored = wcompress.load(path)
    assert wcompress.verify(path, model).ok
    worst = compare(model, restored).worst
    assert (result.worst is None) == (worst is None)
    return restored


@pytest.mark.parametrize("effort", [1, 5, 9])
@pytest.mark.parametrize("ratio", RATIOS)
def test_tensors_of_different_scales(tmp_path: Path, ratio: float, effort: int) -> None:
    model = {"a": normal(64, 96) * ratio, "b": normal(64, 96, seed=1)}
    for target in ({}, {"sqnr": 22.0}):
        restored = packed(tmp_path, model, effort=effort, **target)
        for name, tensor in model.items():
            assert tensor_db(tensor, restored[name]) >= 15
            assert least_db(tensor, restored[name], 0) >= 8


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("target", [{}, {"sqnr": 22.0}, {"sqnr": 30.0}])
def test_rows_channels_and_experts_of_different_scales(tmp_path: Path, ratio: float, target: dict[str, float]) -> None:
    model = {
        "rows": normal(80, 48) * spread(80, ratio)[:, None],
        "columns": normal(80, 48) * spread(48, ratio),
        "kernels": normal(40, 24, 3, 3) * spread(40, ratio)[:, None, None, None],
        "inputs": normal(40, 24, 3, 3) * spread(24, ratio)[None, :, None, None],
        "pointwise": normal(40, 24, 1, 1)
        * spread(24, ratio)[None, :, None, None]
        * spread(40, ratio)[:, None, None, None],
        "experts": normal(6, 20, 40) * spread(6, ratio)[:, None, None],
        "expert_rows": normal(6, 20, 40) * spread(120, ratio).reshape(6, 20, 1),
    }
    restored = packed(tmp_path, model, **target)
    for name, tensor in model.items():
        assert tensor_db(tensor, restored[name]) >= 15, name
        assert least_db(tensor, restored[name], 0) >= 8, name
        assert least_db(tensor, restored[name], 1) >= 8, name
    assert least_db(model["expert_rows"], restored["expert_rows"], 0, 1) >= 8


@pytest.mark.parametrize("size", [1e1, 1e3, 1e6, 1e12, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("effort", [1, 5])
def test_an_outlier_hides_nothing(tmp_path: Path, size: float, effort: int) -> None:
    w = 0.02 * normal(96, 64)
    w[17, 5] = size
    restored = packed(tmp_path, {"w": w, "v": normal(64, 64)}, effort=effort)["w"]
    rest = torch.ones_like(w, dtype=torch.bool)
    rest[17, 5] = False
    if not abs(size) <= 100:
        assert same_bits(w[17:18, 5:6].contiguous(), restored[17:18, 5:6].contiguous())
    clean, back = torch.where(rest, w, 0), torch.where(rest, restored, 0)
    assert tensor_db(clean, back) >= 15
    assert least_db(clean, back, 0) >= (8 if size > 100 or size != size else 3)


def test_heavy_tails(tmp_path: Path) -> None:
    torch.manual_seed(0)
    w = torch.distributions.StudentT(1.5).sample((128, 128))
    restored = packed(tmp_path, {"w": w})["w"]
    error = (w - restored).double().square().sum(1) / w.double().square().sum(1)
    assert float(error.median().sqrt()) < 0.4
    assert least_db(w, restored, 0) >= 8


def test_what_is_no_weight_is_kept_exactly(tmp_path: Path) -> None:
    position = torch.arange(64.0)
    model = {
        "w": 0.02 * normal(256, 64),
        "tril": torch.ones(128, 128).tril(),
        "minus": torch.full((64, 64), -1e9).triu(1),
        "infinite": torch.full((64, 64), float("-inf")).triu(1),
        "pruned": (normal(128, 64, seed=3) > 0).float(),
        "positions": position.repeat(4, 1),
        "ones": torch.ones(40, 40),
        "ternary": torch.randint(-1, 2, (100, 100), generator=torch.Generator().manual_seed(0)).float() * 0.37,
        "powers": torch.exp2(torch.randint(-2, 2, (60, 60), generator=torch.Generator().manual_seed(0)).float()),
        "scales": torch.exp2(position.round()).reshape(8, 8),
    }
    restored = packed(tmp_path, model)
    for name, tensor in model.items():
        assert (name == "w") != same_bits(tensor, restored[name]), name
    assert tensor_db(model["w"], restored["w"]) >= 15


def test_scaled_storage_forms_keep_their_own_scale(tmp_path: Path) -> None:
    model = {
        "w": (100 * normal(128, 128)).clamp(-448, 448).to(torch.float8_e4m3fn),
        "w_scale": torch.rand(128, 1, generator=torch.Generator().manual_seed(0)) * 1e-4,
        "embedding": (0.02 * normal(300, 64)).bfloat16(),
        "lora_A": 0.05 * normal(8, 256),
        "lora_B": 1e-4 * normal(256, 8),
        "weight_v": 0.01 * normal(64, 32, 3),
        "base": normal(128, 128),
    }
    for target in ({}, {"sqnr": 22.0}):
        restored = packed(tmp_path, model, **target)
        for name, tensor in model.items():
            assert tensor_db(tensor, restored[name]) >= 15, name
            assert least_db(tensor, restored[name], 0) >= 8, name
        product = model["lora_B"].double() @ model["lora_A"].double()
        assert tensor_db(product, restored["lora_B"].double() @ restored["lora_A"].double()) >= 12


def test_a_dead_channel_spoils_no_variance(tmp_path: Path) -> None:
    variance = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 3
    variance[5] = 0
    model = {
        "conv.weight": normal(64, 16, 3, 3),
        "bn.weight": 1 + 0.1 * normal(64),
        "bn.bias": normal(64),
        "bn.running_mean": normal(64),
        "bn.running_var": variance,
    }
    restored = packed(tmp_path, model)
    for name in list(model)[1:]:
        assert torch.equal(model[name].sign(), restored[name].sign())
    assert float((restored["bn.running_var"] / variance - 1)[variance > 0].abs().max()) < 0.02


def test_extra_state_is_exact(tmp_path: Path) -> None:
    model = {"w": normal(64, 64), "layer._extra_state": normal(40, 40, seed=1), "_extra_state": normal(70, 30, seed=2)}
    restored = packed(tmp_path, model)
    assert all(same_bits(tensor, restored[name]) for name, tensor in model.items() if name != "w")


def test_rows_that_are_nothing_stay_nothing(tmp_path: Path) -> None:
    w = normal(64, 64)
    w[::2] = 0
    restored = packed(tmp_path, {"w": w})["w"]
    assert not restored[::2].any()


def test_long_rows_of_numbers_are_coded_as_matrices_are(tmp_path: Path) -> None:
    w = 0.02 * normal(300_000)
    sizes = {}
    for name, tensor in (("flat", w), ("matrix", w.reshape(300, 1000))):
        path = tmp_path / f"{name}.wcz"
        sizes[name] = wcompress.pack({"w": tensor}, path, sqnr=20.0, effort=1, **FAST).archive_bytes
    assert sizes["flat"] < 1.02 * sizes["matrix"]
    mixed = {"w": torch.cat([0.01 * normal(50_000), 5 * normal(50_000, seed=1)])}
    restored = packed(tmp_path, mixed)["w"]
    assert tensor_db(mixed["w"][:49_000], restored[:49_000]) >= 8


@settings(max_examples=15, deadline=None)
@given(ratio=st.floats(1, 1e6), n_rows=st.integers(8, 70), n_columns=st.integers(8, 70), sqnr=st.floats(16, 40))
def test_floors_hold_beside_any_target(
    tmp_path_factory: pytest.TempPathFactory, ratio: float, n_rows: int, n_columns: int, sqnr: float
) -> None:
    model = {"w": normal(n_rows, n_columns) * spread(n_rows, ratio)[:, None], "v": normal(50, 50) / ratio}
    path = tmp_path_factory.mktemp("any") / "m.wcz"
    result = wcompress.pack(model, path, sqnr=sqnr, effort=1, **FAST)
    restored = wcompress.load(path)
    assert result.sqnr_db is None or result.sqnr_db >= sqnr
    floors = Floors.at(sqnr)
    for name, tensor in model.items():
        assert tensor_db(tensor, restored[name]) >= floors.tensor_db - 0.05
        if tensor.numel() >= 8 * tensor.shape[0]:
            assert least_db(tensor, restored[name], 0) >= floors.row_db - 0.05


def test_the_worst_is_told(tmp_path: Path) -> None:
    model = {"w": normal(64, 64), "small": 1e-3 * normal(64, 64, seed=1)}
    path = tmp_path / "m.wcz"
    result = wcompress.pack(model, path, sqnr=22.0, effort=1, **FAST)
    restored = wcompress.load(path)
    assert result.worst is not None
    assert result.worst.tensor == "small"
    assert result.worst.sqnr_db == pytest.approx(tensor_db(model["small"], restored["small"]), abs=1e-6)
    assert result.worst.row_sqnr_db == pytest.approx(least_db(model["small"], restored["small"], 0), abs=1e-6)
    shown = wcompress.inspect(path).worst
    assert shown is not None
    assert (shown.tensor, shown.sqnr_db) == ("small", round(result.worst.sqnr_db, 1))
    assert result.floors is not None
    assert result.floors.tensor_db == pytest.approx(Floors.at(result.sqnr_db or 0).tensor_db, abs=0.01)
    checked = wcompress.verify(path, model).tensors
    assert checked is not None
    assert checked["small"].sqnr_db == pytest.approx(result.worst.sqnr_db)
    assert not result.warnings
    coarse = wcompress.pack(model, path, sqnr=4.0, effort=1, force=True, **FAST)
    assert any("keeps only" in warning for warning in coarse.warnings)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2), (3, 4, 8, 8), (2500,), ()])
@pytest.mark.parametrize("kind", [WHOLE, FIRST, SECOND, BOTH])
def test_scales_are_read_as_they_were_written(shape: tuple[int, ...], kind: int) -> None:
    if kind > FIRST and len(shape) < 2:
        return
    sequencing = Sequencing((shape,), ("columns" if len(shape) > 1 else "rows",), 64, 4)
    from wcompress.codec.quantiser.step_scales import n_exponents

    generator = torch.Generator().manual_seed(0)
    row = tuple(torch.randint(-40, 40, (n_exponents(kind, shape),), generator=generator).tolist())
    scales = OwnScales((row,), (kind,))
    out = BitWriter()
    scales.write(out)
    assert OwnScales.read(BitReader(out.to_bytes(), "tables"), sequencing, 5) == scales
    multipliers = torch.from_numpy(scales.multipliers(sequencing, 0, sequencing.n_weights))
    placed = sequencing.unflatten(0, multipliers)
    for _ in range(20):
        at = tuple(int(torch.randint(0, n, (1,), generator=generator)) for n in shape)
        if kind == WHOLE or not shape:
            exponent = row[0]
        elif len(shape) == 1:
            exponent = row[at[0] // 1024]
        elif kind == BOTH:
            pairs = len(row) == shape[0] * shape[1] and len(shape) > 2
            exponent = row[at[0] * shape[1] + at[1]] if pairs else row[at[0]] + row[shape[0] + at[1]]
        else:
            exponent = row[at[kind - FIRST]]
        assert float(placed[at]) == pytest.approx(2.0 ** (exponent / 4))


def test_a_plan_names_what_it_keeps_beside_the_rest(tmp_path: Path) -> None:
    w = normal(64, 64)
    w[3, 4], w[9, 9] = float("nan"), float("-inf")
    path = tmp_path / "m.pt"
    torch.save({"w": w, "b": normal(64)}, path)
    checkpoint = wcompress.checkpoint.read_checkpoint(path)
    plan = plan_tensors(checkpoint, VaeKinds(checkpoint))
    assert [entry.kind for entry in plan.entries] == ["coded", "fine"]
    places, values = plan.exceptions[0]
    assert places.tolist() == [3 * 64 + 4, 9 * 64 + 9]
    assert same_bits(values, w.reshape(-1)[[3 * 64 + 4, 9 * 64 + 9]])
