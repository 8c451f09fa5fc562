"""Model folders packed with a task: scores, calibration and drops as of a single file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import wcompress
from tests.folders import FAST, contents, make_model
from wcompress.checkpoint import read_checkpoint
from wcompress.errors import OptionError
from wcompress.refine.distil import divergence

Cli = Callable[..., tuple[int, str, str]]


class Layer(nn.Module):
    """The network of `make_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(40, 32, bias=False), nn.Linear(32, 40, bias=False)
        self.bias = nn.Parameter(torch.zeros(40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.up(x).relu()) + self.bias
        return y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers[0](x)
        return y


class Task:
    """Agreement with what the folder's weights answer, on inputs of few dimensions."""

    name, dataset = "largest", "noise"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(900, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
        original = Model()
        original.load_state_dict(read_checkpoint("model").tensors)
        with torch.no_grad():
            self.y = original(self.x).argmax(1)

    def build(self) -> nn.Module:
        return Model()

    def calibration(self) -> tuple[torch.Tensor, ...]:
        return self.x[:300].split(64)

    def _score(self, model: nn.Module, part: slice) -> float:
        with torch.no_grad():
            return 100 * float((model(self.x[part]).argmax(1) == self.y[part]).float().mean())

    def validate(self, model: nn.Module) -> float:
        return self._score(model, slice(300, 600))

    def evaluate(self, model: nn.Module) -> float:
        return self._score(model, slice(600, 900))


def distance(folder: Path) -> float:
    """Of outputs for test inputs from those of the original."""
    models, task = [Model(), Model()], Task()
    models[0].load_state_dict(read_checkpoint("model").tensors)
    models[1].load_state_dict(wcompress.load(folder))
    with torch.no_grad():
        return float(divergence(*(model(task.x[600:]) for model in models)))


TASK = ("--task", f"{Path(__file__)}:Task")


def test_a_folder_is_calibrated_to_a_size_and_scored(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "safetensors", 1)
    given, before = ("pack", "model", *TASK, "--bits-per-weight", 5, "--effort", 1, "--json"), contents(model)
    found = {}
    for way in ("off", "on"):
        code, out, _ = cli(*given, "-o", f"{way}.wcz", "--calibrate", way)
        assert code == 0
        found[way] = json.loads(out)
        size = sum(map(len, contents(tmp_path / f"{way}.wcz").values()))
        assert found[way]["archive_bytes"] == size <= 5 * found[way]["n_params"] / 8
    assert found["on"]["task"]["chosen"] == "calibrated"
    assert found["on"]["task"]["score_before"] == 100
    assert distance(tmp_path / "on.wcz") < 0.6 * distance(tmp_path / "off.wcz")
    assert json.loads(cli("eval", "on.wcz", *TASK, "--json")[1])["score"] == found["on"]["task"]["score_after"]
    assert cli("unpack", "on.wcz", "-o", "back", "-q")[0] == 0
    assert contents(tmp_path / "back").keys() == before.keys() == contents(model).keys()


def test_a_folder_keeps_to_a_drop(cli: Cli, tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bin", 1)
    code, out, _ = cli("pack", "model", *TASK, "--max-drop", 3, "--refine", "off", "--effort", 1, "--json")
    assert code == 0
    task = json.loads(out)["task"]
    assert 0 <= task["validation_drop"] <= task["allowed_drop"] == 3
    assert not list(tmp_path.glob("model.wcz.*"))


def test_a_dry_run_of_a_folder_is_scored(cli: Cli, tmp_path: Path) -> None:
    make_model(tmp_path / "model", "safetensors", 1)
    code, out, _ = cli("pack", "model", *TASK, "--effort", 1, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["task"]["score_after"] > 90
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_shards_and_a_task_are_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model", "safetensors", 1)
    make_model(tmp_path / "shards", "safetensors", 2)
    with pytest.raises(OptionError, match=r"in 2 shards; name shards/model.safetensors.index.json"):
        wcompress.pack("shards", task=Task(), **FAST)
    assert not Path("shards.wcz").exists()
    assert not Path("shards.wcz.part").exists()
