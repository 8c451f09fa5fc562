"""Targets are promises: met, or one line with the nearest figure in the unit that was asked for, and no archive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wcompress
from wcompress.codec import packing
from wcompress.codec.container import groups
from wcompress.codec.options import PackOptions
from wcompress.codec.rate_control.default_quality import default_sqnr_db
from wcompress.errors import TargetUnreachable


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 4], tensor[5, 5] = float("nan"), float("inf")
    return tensor


MODELS = {
    "rows": {"w": normal(5000)},
    "short rows": {"a": normal(70), "b": normal(900, seed=1), "c": normal(40, seed=2)},
    "integers": {"i": torch.arange(3000), "flag": torch.tensor(True)},
    "nan": {"w": with_nan(normal(80, 80))},
    "mixed": {
        "w": normal(64, 96),
        "b": normal(64),
        "i": torch.randint(0, 50, (100,), generator=torch.Generator().manual_seed(0)),
        "mask": torch.ones(32, 32).tril(),
        "half": normal(40, 40, seed=3).half(),
        "flat": normal(20_000, seed=4),
        "broken": with_nan(normal(16, 16)),
    },
    "scalar": {"s": torch.tensor(3.5)},
    "empty": {"e": torch.zeros(0, 5)},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("option", "value", "unit"),
    [
        ("ratio", 6.0, "a ratio of "),
        ("ratio", 1e6, "a ratio of "),
        ("bits_per_weight", 6.0, "bits a weight"),
        ("bits_per_weight", 1e-3, "bits a weight"),
        ("sqnr", 15.0, " dB"),
        ("sqnr", 119.0, " dB"),
    ],
)
def test_targets_are_met_or_refused_in_their_unit(
    tmp_path: Path, name: str, option: str, value: float, unit: str
) -> None:
    model, path = MODELS[name], tmp_path / "m.wcz"
    options = {option: value, "effort": 1, "device": "cpu"}
    try:
        result = wcompress.pack(model, path, **options)
    except TargetUnreachable as error:
        message = str(error)
        assert "\n" not in message
        assert "is the nearest" in message or "no floating-point numbers" in message
        assert message.count(unit) == 2 or "no floating-point numbers" in message or option == "sqnr"
        assert not path.exists()
        return
    assert path.stat().st_size == result.archive_bytes
    if option == "ratio":
        assert result.ratio >= value
    elif option == "bits_per_weight":
        assert result.bits_per_param is not None
        assert result.bits_per_param <= value
    else:
        assert result.sqnr_db is None or result.sqnr_db >= value
        checked = wcompress.verify(path, model).tensors
        assert checked is not None
        coded = [e.sqnr_db for key, e in checked.items() if e.sqnr_db is not None and model[key].numel() >= 5000]
        assert all(figure >= value - 8 for figure in coded)
    assert wcompress.verify(path, model).ok


@pytest.mark.parametrize("bits", [2.0, 6.0])
def test_large_models_with_scales_by_row_meet_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float
) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", 0)
    monkeypatch.setattr(groups, "GROUP_SIZE", 110_000)
    scales = torch.logspace(-3, 0, 2000)[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    model = {"w": normal(2000, 64) * scales[:, None], "v": normal(300, 300)}
    for effort in (1, 2) if bits < 3 else (1,):
        result = wcompress.pack(
            model, tmp_path / "m.wcz", bits_per_weight=bits, effort=effort, force=True, device="cpu"
        )
        assert result.bits_per_param is not None
        assert 0.98 * bits <= result.bits_per_param <= bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_rounding_to_the_dtype_is_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    model = {"w": normal(128, 128).to(dtype)}
    result = wcompress.pack(model, tmp_path / "m.wcz", sqnr=24.0, effort=1, device="cpu")
    assert result.sqnr_db is None or result.sqnr_db >= 24


def test_far_weights_of_a_large_model_cost_their_own_bytes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", 0)
    monkeypatch.setattr(groups, "GROUP_SIZE", 110_000)
    w = normal(400, 400)
    plain = wcompress.pack({"w": w}, tmp_path / "a.wcz", sqnr=40.0, effort=2, device="cpu")
    far = w.clone()
    far[7] *= 30  # no outlier of its row
    far[9, 9], far[11, 3] = 45, -48
    result = wcompress.pack({"w": far}, tmp_path / "b.wcz", bits_per_weight=8.0, effort=2, device="cpu")
    assert result.bits_per_param is not None
    assert result.bits_per_param <= 8
    assert wcompress.verify(tmp_path / "b.wcz", {"w": far}).ok
    assert plain.sqnr_db is not None


def test_what_does_not_restore_as_promised_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.wcz"
    model = {"w": normal(64, 64)}
    restore = packing.restore_encoded

    def wrong(*arguments: object) -> dict[str, torch.Tensor]:
        return {name: tensor * 1.5 for name, tensor in restore(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "restore_encoded", wrong)
    for options in ({"method": "lossless"}, {"sqnr": 20.0, "effort": 1}):
        with pytest.raises(TargetUnreachable):
            wcompress.pack(model, path, device="cpu", **options)
        assert list(tmp_path.iterdir()) == []


def test_the_default_follows_the_network() -> None:
    def default(n_layers: int, **more: torch.Tensor) -> float:
        layers = {f"layers.{i}.weight": torch.ones(16, 16) for i in range(n_layers)}
        return default_sqnr_db({**layers, **more})

    assert default(1) == default(6) == 22
    assert default(60) == pytest.approx(32)
    assert default(10_000) == pytest.approx(34)
    assert default(1, **{"lstm.weight_hh_l0": torch.ones(64, 16)}) == pytest.approx(30)
    assert default(6, **{"bn.running_var": torch.ones(16)}) == pytest.approx(38)


def test_floors_can_be_left_to_a_task(tmp_path: Path) -> None:
    model = {"w": normal(64, 64), "tiny": 1e-4 * normal(64, 64, seed=1)}
    free = PackOptions(floors=False, sqnr=20.0, effort=1, device="cpu")
    result = wcompress.pack(model, tmp_path / "m.wcz", free)
    assert result.floors is None
    assert not wcompress.load(tmp_path / "m.wcz")["tiny"].any()


@pytest.mark.parametrize("effort", [1, 5])
@pytest.mark.parametrize("target", [{"sqnr": 20.0}, {"ratio": 9.0}])
def test_a_time_limit_ends_a_search_with_what_it_has(tmp_path: Path, effort: int, target: dict[str, float]) -> None:
    model = {"w": normal(128, 96), "v": 0.01 * normal(64, 64, seed=1)}
    result = wcompress.pack(model, tmp_path / "a.wcz", effort=effort, time_limit=1e-6, device="cpu", **target)
    assert any("time limit of 1e-06 s ended the search" in line for line in result.warnings)
    assert result.ratio >= target.get("ratio", 0)
    assert result.sqnr_db is not None
    assert result.sqnr_db >= target.get("sqnr", 0)
    free = wcompress.pack(model, tmp_path / "b.wcz", effort=effort, time_limit=1e6, device="cpu", **target)
    assert not free.warnings


def heavy(power: int) -> torch.Tensor:
    return normal(64, 128) ** power


@pytest.mark.parametrize("power", [5, 7, 9, 13])
@pytest.mark.parametrize("target", [{}, {"sqnr": 22.0}, {"ratio": 6.0}, {"bits_per_weight": 5.0}])
def test_numbers_of_any_spread_are_packed(tmp_path: Path, power: int, target: dict[str, float]) -> None:
    lognormal = (0.3 * power * normal(60, 60)).exp() * normal(60, 60, seed=4).sign()
    for tensor in (heavy(power), lognormal):
        model = {"w": tensor, "v": normal(32, 32)}
        result = wcompress.pack(model, tmp_path / "m.wcz", effort=1, force=True, device="cpu", **target)
        assert wcompress.verify(tmp_path / "m.wcz", model).ok
        kept = result.worst is not None and (result.worst.row_sqnr_db or 0) >= (
            result.floors.row_db if result.floors else 0
        )
        assert kept or result.warnings


def test_every_size_in_reach_is_met(tmp_path: Path) -> None:
    model = {"fc1.weight": normal(32, 24), "fc1.bias": normal(32), "fc2.weight": normal(16, 32), "fc2.bias": normal(16)}
    blocks = {"w": torch.block_diag(*[normal(8, 8, seed=i) for i in range(16)]), "v": normal(64, 64)}
    for some, bits in ((model, [4 + 0.3 * i for i in range(20)]), (blocks, [3.5, 3.75, 4.0, 5.0])):
        for wanted in bits:
            result = wcompress.pack(
                some, tmp_path / "m.wcz", bits_per_weight=wanted, effort=1, force=True, device="cpu"
            )
            assert result.bits_per_param is not None
            assert result.bits_per_param <= wanted


def test_what_is_never_negative_stays_so(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = {
        "fc.weight": normal(16, 16),
        "bn.running_var": 2 * torch.rand(512, generator=generator),
        "bn.weight": 1 + 0.1 * normal(512),
        "norm.running_var": torch.logspace(-3, 0, 64).reshape(1, 64, 1, 1),
        "exp_avg_sq": 1e-4 * normal(64, 64).square(),
        "bias": normal(512),
    }
    wcompress.pack(model, tmp_path / "m.wcz", effort=1, device="cpu")
    restored = wcompress.load(tmp_path / "m.wcz")
    for name, tensor in model.items():
        if name != "fc.weight":
            assert torch.equal(tensor.sign(), restored[name].sign()), name


def test_rows_too_short_for_a_quality_are_no_warning(tmp_path: Path) -> None:
    result = wcompress.pack({"w": normal(64, 64), "n": normal(200, 1)}, tmp_path / "m.wcz", effort=1, device="cpu")
    assert not result.warnings
    assert result.worst is not None
    assert result.worst.row_tensor == "w"
