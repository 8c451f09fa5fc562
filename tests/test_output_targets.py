"""Targets by function: an SNR of the outputs, or a KL divergence of the classes, for inputs that are held out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import wcompress
from wcompress.calibrate import packing
from wcompress.calibrate.calibration import DAMPING, Split
from wcompress.calibrate.likeness import KlCriterion, Likeness, SnrCriterion
from wcompress.checkpoint import read_checkpoint
from wcompress.cli import run
from wcompress.codec.container import groups
from wcompress.codec.options import PackOptions
from wcompress.deadline import Deadline
from wcompress.errors import OptionError, TaskError
from wcompress.refine import coarsest
from wcompress.refine.coarsest import Found, Reached, Trials

FAST: dict[str, Any] = {"effort": 2, "threads": 1, "device": "cpu"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(24, 64), nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(functional.relu(self.first(x)))
        return scores


class Task:
    """Has no scores."""

    name = "noise"

    def __init__(self, n_inputs: int = 200) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n_inputs, 5, generator=generator) @ torch.randn(5, 24, generator=generator)

    def build(self) -> nn.Module:
        return Net()

    def calibration(self) -> Iterator[Any]:
        yield from self.x.split(50)


class Scored(Task):
    """Has a score that is no percentage."""

    unit, higher_is_better = "squares", False

    def validate(self, model: nn.Module) -> float:
        with torch.no_grad():
            return 1000 + float(model(self.x).square().mean())

    evaluate = validate


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = Net()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def likeness_of(task: Any, tensors: dict[str, Tensor]) -> Likeness:
    split = Split.of(task, read_checkpoint(tensors), seed=0)
    assert split is not None
    return Likeness(split)


def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * 1.01 + 0.001 for name, tensor in tensors.items()}


@pytest.fixture(autouse=True)
def one_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trials."""
    monkeypatch.setattr(packing, "DAMPINGS", (DAMPING,))


def test_output_snr_leaves_each_outputs_mean_out() -> None:
    tensors = weights()
    tensors["last.bias"] += 100  # a constant is no signal
    likeness = likeness_of(Task(), tensors)
    split = Split.of(Task(), read_checkpoint(tensors), seed=0)
    assert split is not None
    x = torch.cat([batch for batch in split.held_out if isinstance(batch, Tensor)])
    assert len(x) == 40
    assert not {tuple(row) for row in x.tolist()} & {tuple(row) for batch in split.seen for row in batch.tolist()}
    models = [Net(), Net()]
    models[0].load_state_dict(tensors)
    models[1].load_state_dict(moved(tensors))
    with torch.no_grad():
        y, other = (model(x).double() for model in models)
    wanted = 10 * math.log10(float((y - y.mean(0)).square().sum() / (y - other).square().sum()))
    assert likeness.output_snr_db(moved(tensors)) == pytest.approx(wanted, abs=1e-6)
    assert likeness.output_snr_db(tensors) == math.inf
    assert likeness.output_snr_db({name: torch.full_like(t, math.nan) for name, t in tensors.items()}) == -math.inf
    kl = functional.kl_div(other.log_softmax(1), y.log_softmax(1), log_target=True, reduction="batchmean")
    assert likeness.kl_nats(moved(tensors)) == pytest.approx(float(kl), rel=1e-6)
    assert likeness.kl_nats(tensors) == 0
    assert likeness.kl_nats({name: torch.full_like(t, math.nan) for name, t in tensors.items()}) == math.inf


class Sequences(Task):
    """Sequences of different lengths, whose logits lie beside something else; one token never comes."""

    def build(self) -> nn.Module:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = Net()

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                scores = self.net(x)
                never = torch.full((*scores.shape[:2], 1), -math.inf)
                return {"hidden": x, "n": torch.arange(3), "logits": torch.cat([scores, never], 2)}

        return Model()

    def calibration(self) -> Iterator[Any]:
        start = 0
        for number in range(90):
            length = 1 + number % 3
            yield self.x[start : start + length][None]
            start += length


def test_sequences_of_any_length_are_compared_by_position() -> None:
    tensors = {f"net.{name}": tensor for name, tensor in weights().items()}
    likeness = likeness_of(Sequences(), tensors)
    split = Split.of(Sequences(), read_checkpoint(tensors), seed=0)
    assert split is not None
    assert len(split.held_out) == 18
    models = [Net(), Net()]
    for model, found in zip(models, (weights(), moved(weights())), strict=True):
        model.load_state_dict(found)
    x = torch.cat([batch[0] for batch in split.held_out if isinstance(batch, Tensor)])
    with torch.no_grad():
        y, other = (model(x).double() for model in models)
    kl = functional.kl_div(other.log_softmax(1), y.log_softmax(1), log_target=True, reduction="batchmean")
    assert likeness.kl_nats(moved(tensors)) == pytest.approx(float(kl), rel=1e-6)
    signal = sum((part - part.mean(0)).double().square().sum() for part in (x, y))
    wanted = 10 * math.log10(float(signal / (y - other).square().sum()))
    assert likeness.output_snr_db(moved(tensors)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: {"ids": y.argmax(1)}, "no float tensor"),
        (lambda y: 0 * y, "same for every input"),
    ],
)
def test_outputs_that_have_no_snr(change: Callable[[Tensor], Any], told: str) -> None:
    class Odd(Task):
        def build(self) -> nn.Module:
            class Model(Net):
                def forward(self, x: Tensor) -> Any:
                    return change(super().forward(x))

            return Model()

    likeness = likeness_of(Odd(), weights())
    with pytest.raises(TaskError, match=told):
        likeness.output_snr_db(weights())
    assert likeness.figures(weights())[0] is None


class OneNumber(Task):
    def build(self) -> nn.Module:
        class Model(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)[:, :1]

        return Model()


@pytest.mark.parametrize("calibrate", ["auto", "off"])
def test_an_output_snr_is_kept_and_calibration_saves(tmp_path: Path, calibrate: str) -> None:
    tensors, path = weights(), tmp_path / "m.wcz"
    result = wcompress.pack(tensors, path, task=Scored(), output_snr=15.0, calibrate=calibrate, **FAST)
    assert result.task is not None
    snr_db, kl_nats = likeness_of(Scored(), tensors).figures(wcompress.load(path))
    assert snr_db is not None
    assert 15 <= snr_db < 17.5  # archives nearby, 1.5 % smaller, do not keep it
    assert (result.task.output_snr_db, result.task.kl_nats) == (snr_db, kl_nats)
    assert result.task.chosen == ("calibrated" if calibrate == "auto" else "data-free")
    assert result.archive_bytes in (range(850) if calibrate == "auto" else range(1000, 1200))
    assert result.task.unit == "squares"
    assert result.task.score_before > 1000
    assert wcompress.verify(path, tensors).ok
    assert result.floors is None
    assert not result.warnings
    if calibrate == "off":
        return
    wcompress.pack(tensors, tmp_path / "b.wcz", task=Scored(), output_snr=15.0, **{**FAST, "threads": 2})
    assert (tmp_path / "b.wcz").read_bytes() == path.read_bytes()


def test_a_large_model_is_measured_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", 500)
    monkeypatch.setattr(groups, "GROUP_SIZE", 1000)
    tensors, path = weights(), tmp_path / "m.wcz"
    result = wcompress.pack(tensors, path, task=Task(), max_kl=0.01, **FAST)
    assert result.task is not None
    assert result.task.kl_nats is not None
    assert likeness_of(Task(), tensors).kl_nats(wcompress.load(path)) == result.task.kl_nats <= 0.01
    assert path.stat().st_size == result.archive_bytes
    assert result.task.chosen == "calibrated"
    assert wcompress.inspect(path).version == 6
    assert wcompress.verify(path, tensors).ok


def test_a_size_tells_what_outputs_keep(tmp_path: Path) -> None:
    result = wcompress.pack(weights(), tmp_path / "m.wcz", task=Scored(), ratio=8.0, **FAST)
    assert result.task is not None
    snr_db, kl_nats = likeness_of(Scored(), weights()).figures(wcompress.load(tmp_path / "m.wcz"))
    assert (result.task.output_snr_db, result.task.kl_nats) == (snr_db, kl_nats)
    assert snr_db is not None


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"output_snr": 20.0, "ratio": 5.0}, OptionError, "only one target"),
        ({"output_snr": 20.0, "max_kl": 0.1}, OptionError, "only one target"),
        ({"max_kl": -0.1}, OptionError, "max_kl -0.1"),
        ({"max_kl": math.inf}, OptionError, "max_kl inf"),
        ({"output_snr": math.nan}, OptionError, "output_snr nan"),
        ({"output_snr": 20.0, "method": "lossless"}, OptionError, "method lossless"),
        ({"max_kl": 0.1, "method": "paper"}, OptionError, "method paper"),
        ({"output_snr": 20.0, "refine": "on"}, OptionError, "refine"),
        ({"output_snr": 20.0, "task": None}, OptionError, "need a task"),
        ({"output_snr": 20.0, "task": Task(63)}, TaskError, "fewer than 64"),
        ({"max_kl": 0.1, "task": OneNumber()}, TaskError, "no class scores"),
        ({"ratio": 5.0}, TaskError, r"lacks validate\(\), evaluate\(\)"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        wcompress.pack(weights(), tmp_path / "m.wcz", **{**FAST, "task": Task(), **options})
    assert not (tmp_path / "m.wcz").exists()


def test_the_command_tells_the_figure_or_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, archive = tmp_path / "model.pt", tmp_path / "model.pt.wcz"
    torch.save(weights(), model)
    arguments = ["pack", str(model), "--task", f"{__name__}:Task", "--effort", "2"]
    assert run([*arguments, "--output-snr", "119", "--calibrate", "off"]) == 1
    told = capsys.readouterr().err
    assert "output SNR of 119 dB" in told
    assert "dB is the nearest" in told
    assert not archive.exists()
    assert run(["pack", str(model), "--max-kl", "0.1"]) == 2
    assert run([*arguments, "--max-kl", "-0.1"]) == 2
    capsys.readouterr()
    assert run([*arguments, "--max-kl", "0.01", "--calibrate", "off", "--json"]) == 0
    task = json.loads(capsys.readouterr().out)["task"]
    assert 0 < task["kl_nats"] <= 0.01
    assert task["output_snr_db"] > 0
    assert task["score_before"] is None
    assert run([*arguments, "--output-snr", "5", "--calibrate", "off", "--dry-run", "-f"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "For inputs held out, outputs have an SNR of" in told
    assert "KL divergence, inputs held out" in told
    assert "scored" not in told


@pytest.mark.parametrize("kind", [SnrCriterion, KlCriterion])
@pytest.mark.parametrize("needed", [0.3, 0.9, 2.0, 5.0, 15.0])
def test_a_smooth_criterion_is_met_in_few_archives(
    monkeypatch: pytest.MonkeyPatch, kind: type[SnrCriterion | KlCriterion], needed: float
) -> None:
    """Of a curve of 6 dB a bit, steeper near zero, from `needed` bits on."""
    tried = []

    def at(_: Trials, bits: float) -> Found:
        tried.append(bits)
        beyond = 6.02 * (bits - needed) + 3 * math.log2(bits / needed)
        return Found(None, round(1000 * bits), bits, Reached(0.0, beyond >= 0, beyond))  # type: ignore[arg-type]

    monkeypatch.setattr(Trials, "at", at)
    trials = Trials(None, kind(None, 1.0), PackOptions(), "cpu")  # type: ignore[arg-type]
    found = coarsest.coarsest(trials, None, Deadline(None), [], bits=(1 / 32, 24.0), start=2.0)
    assert 0 <= found.reached.beyond <= 0.2 or found.bits <= 1.02 * needed
    assert len(tried) <= 5
    assert found.n_bytes == round(1000 * min(bits for bits in tried if bits >= needed))


def test_noise_does_not_hold_the_search_up(monkeypatch: pytest.MonkeyPatch) -> None:
    n_tried = 0

    def at(_: Trials, bits: float) -> Found:
        nonlocal n_tried
        n_tried += 1
        beyond = 6 * math.log2(bits) + 1.5 * math.sin(1000 * bits)
        return Found(None, round(1000 * bits), bits, Reached(0.0, beyond >= 0, beyond))  # type: ignore[arg-type]

    monkeypatch.setattr(Trials, "at", at)
    trials = Trials(None, SnrCriterion(None, 1.0), PackOptions(), "cpu")  # type: ignore[arg-type]
    found = coarsest.coarsest(trials, None, Deadline(None), [], bits=(1 / 32, 24.0), start=2.0)
    assert found.reached.keeps
    assert 0.8 < found.bits < 1.25
    assert n_tried <= 12
