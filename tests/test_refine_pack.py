"""Packing with refinement, from the command line and from Python: goals kept, failures clean, work resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wcompress
from tests.test_refine import Toy, trained
from wcompress.cli import run
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.refine import packing as refine_packing
from wcompress.refine.engine import Refiner
from wcompress.refine.inputs import Inputs
from wcompress.tasks import load_task

__all__ = ["trained"]
ROOT = Path(__file__).parent.parent
FAST = {"method": "vae", "effort": 1, "threads": 1, "device": "cpu"}


def test_max_drop_is_kept_and_beats_packing_without_data(trained: dict[str, Tensor], tmp_path: Path) -> None:
    refined = wcompress.pack(trained, tmp_path / "a.wcz", task=Toy(), max_drop=3.0, **FAST)
    plain = wcompress.pack(trained, tmp_path / "b.wcz", task=Toy(), max_drop=3.0, refine="off", **FAST)
    task = Toy()
    for result in (refined, plain):
        model = task.build()
        model.load_state_dict(wcompress.load(result.archive))
        original = task.build()
        original.load_state_dict(trained)
        assert task.validate(original) - task.validate(model) <= 3.0
    assert refined.archive_bytes < plain.archive_bytes
    assert not list(tmp_path.glob("*.refine"))
    assert wcompress.verify(refined.archive).ok


def test_a_size_is_kept_with_the_best_score(trained: dict[str, Tensor], tmp_path: Path) -> None:
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=Toy(), refine="on", ratio=7.0, **FAST)
    assert result.ratio >= 7.0
    assert result.task is not None
    assert result.task.drop < 5


def test_an_unreachable_drop_names_the_nearest_and_writes_nothing(trained: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable, match="nearest"):
        wcompress.pack(trained, tmp_path / "a.wcz", task=Toy(), max_drop=-60.0, **FAST)
    assert not (tmp_path / "a.wcz").exists()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"max_drop": 1.0, "ratio": 10.0}, "only one target"),
        ({"max_drop": 1.0, "method": "paper"}, "method vae"),
        ({"refine": "on", "sqnr": 20.0}, "refine"),
        ({"refine": "maybe"}, "auto, on or off"),
        ({"resume": True}, "nothing is refined"),
        ({"max_drop": 1.0, "resume": True}, "no checkpoint"),
    ],
)
def test_options_that_contradict(trained: dict[str, Tensor], tmp_path: Path, wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        wcompress.pack(trained, tmp_path / "a.wcz", task=Toy(), **{**FAST, **wanted})


def test_without_a_task_nothing_can_be_refined(trained: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="need a task"):
        wcompress.pack(trained, tmp_path / "a.wcz", max_drop=1.0, **FAST)


def test_what_was_interrupted_goes_on(trained: dict[str, Tensor], tmp_path: Path) -> None:
    output = tmp_path / "a.wcz"
    whole = wcompress.pack(trained, tmp_path / "whole.wcz", task=Toy(), max_drop=2.0, **FAST)
    seen = []

    def stop(done: int, _total: int, figures: dict[str, float]) -> None:
        seen.append(figures)
        if done > 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wcompress.pack(trained, output, task=Toy(), max_drop=2.0, progress=stop, **FAST)
    assert not output.exists()
    assert [path.name for path in tmp_path.glob("a.wcz*")] == ["a.wcz.refine"]
    assert {"bytes", "drop", "MB"} <= set().union(*seen)
    first: list[int] = []
    resumed = wcompress.pack(
        trained, output, task=Toy(), max_drop=2.0, resume=True, progress=lambda n, _t, _f: first.append(n), **FAST
    )
    assert next(n for n in first if n) > 300
    assert resumed.archive_bytes == whole.archive_bytes
    assert resumed.sha256 == whole.sha256
    assert not output.with_name("a.wcz.refine").exists()


def test_half_precision_and_ties(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    half = {name: value.half() for name, value in trained.items()}
    result = wcompress.pack(half, tmp_path / "a.wcz", task=Toy(), max_drop=3.0, **FAST)
    restored = wcompress.load(result.archive)
    assert {value.dtype for value in restored.values()} == {torch.float16}


def test_no_data_means_made_up_inputs(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    (tmp_path / "task.py").write_text(
        "from tests.test_refine import Toy\n"
        "class Blind(Toy):\n    input_shape = (16,)\n    def calibration(self):\n        return []\n"
        "task = Blind\n"
    )
    task = load_task(str(tmp_path / "task.py"))
    assert task.input_shape == (16,)  # type: ignore[attr-defined]
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=task, refine="on", ratio=4.0, **FAST)
    assert result.ratio >= 4.0


def test_the_distance_of_a_task_is_used(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    class Own(Toy):
        calls = 0

        def distance(self, original: Tensor, restored: Tensor) -> Tensor:
            Own.calls += 1
            return (original - restored).abs().mean()

    wcompress.pack(trained, tmp_path / "a.wcz", task=Own(), max_drop=3.0, **FAST)
    assert Own.calls > 100


@pytest.mark.parametrize(
    ("n_enough", "shape", "own", "pulls"),
    [(700, (16,), False, False), (900, (16,), False, True), (900, (16,), True, False), (900, (16, 16), False, False)],
)
def test_few_inputs_are_varied_strongly_and_weights_kept_near(
    n_enough: int,
    shape: tuple[int, ...],
    own: bool,
    pulls: bool,
    trained: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []

    class Seen(Refiner):
        def __init__(self, task: Any, checkpoint: Any, inputs: Inputs, distance: Any, config: Any, device: str) -> None:
            told.extend([inputs._few, config.start_strength < 1, config.pull > 0])
            super().__init__(task, checkpoint, inputs, distance, config, device)

    class Shaped(Toy):
        def build(self) -> nn.Module:
            return First(*super().build())

        def calibration(self) -> Iterator[Tensor]:
            for part in super().calibration():
                yield part if shape == (16,) else part[:, :, None].repeat(1, 1, 16)

    class First(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x if x.ndim == 2 else x[:, :, 0])
            return found

    task: Any = Shaped()
    if own:
        task.augment = lambda batch, _generator: batch
    monkeypatch.setattr(refine_packing, "Refiner", Seen)
    monkeypatch.setattr(refine_packing, "_FEW_INPUTS", n_enough)
    monkeypatch.setattr(refine_packing, "n_steps", lambda *_: 20)
    wcompress.pack(trained, tmp_path / "a.wcz", task=task, max_drop=3.0, **FAST)
    assert told == [n_enough > 800, n_enough > 800, pulls]


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_examples_pack_within_their_drop(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "examples" / f"{name}_task.py"
    model = tmp_path / f"{name}.pt"
    subprocess.run([sys.executable, str(script), str(model)], check=True, capture_output=True)
    options = ["--method", "vae", "--max-drop", "3", "--effort", "1", "--threads", "1", "--json"]
    assert run(["pack", str(model), "--task", str(script), *options]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["ratio"] > 8
    assert document["task"]["drop"] < 6
