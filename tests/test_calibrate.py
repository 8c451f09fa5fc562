"""Calibration: moments of inputs, what outputs cost, and archives that spend bits accordingly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional

import wcompress
from wcompress.calibrate import packing
from wcompress.calibrate.calibration import DAMPING, Calibration, Split
from wcompress.calibrate.moments import Collector
from wcompress.calibrate.outputs import sensitivities, squared_gradients
from wcompress.checkpoint import read_checkpoint
from wcompress.codec.container import groups
from wcompress.codec.rate_control import search
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.errors import OptionError, TaskError

FAST: dict[str, Any] = {"effort": 2, "threads": 1, "device": "cpu"}


class Net(nn.Module):
    """Inputs of few dimensions behind 48 numbers, so that much can be fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(48, 96), nn.Linear(96, 96), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(functional.relu(self.second(functional.relu(self.first(x)))))
        return scores


class Task:
    """Five directions, told apart."""

    name, dataset, n_examples = "directions", "noise", 400

    def __init__(self, n_inputs: int = 600) -> None:
        generator = torch.Generator().manual_seed(1)
        basis = torch.randn(6, 48, generator=generator)
        self.x = torch.randn(1400, 6, generator=generator) @ basis
        self.x += 0.05 * torch.randn(1400, 48, generator=generator)
        self.y = (self.x @ torch.randn(48, 5, generator=generator)).argmax(1)
        self._n_inputs = n_inputs

    def build(self) -> nn.Module:
        return Net()

    def calibration(self) -> Iterator[Tensor]:
        yield from self.x[: self._n_inputs].split(100)

    def _score(self, model: nn.Module, part: slice) -> float:
        with torch.no_grad():
            return 100 * float((model(self.x[part]).argmax(1) == self.y[part]).float().mean())

    def validate(self, model: nn.Module) -> float:
        return self._score(model, slice(600, 1000))

    def evaluate(self, model: nn.Module) -> float:
        return self._score(model, slice(1000, 1400))


@pytest.fixture(autouse=True)
def one_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trials."""
    monkeypatch.setattr(packing, "DAMPINGS", (DAMPING,))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    task = Task()
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss = functional.cross_entropy(model(task.x[:600]), task.y[:600])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def distance(trained: dict[str, Tensor], archive: str | Path) -> float:
    """KL divergence on the test inputs, in nats."""
    task, models = Task(), []
    for tensors in (trained, wcompress.load(archive)):
        models.append(task.build())
        models[-1].load_state_dict(tensors)
    with torch.no_grad():
        a, b = (functional.log_softmax(model(task.x[1000:]), 1) for model in models)
    return float(functional.kl_div(b, a, log_target=True, reduction="batchmean"))


def error_energy(model: nn.Module, name: str, x: Tensor) -> tuple[float, float]:
    """Of a change in one weight tensor: what the moments say of the output's mean square, and what it is."""
    collector = Collector(model)
    collector.run([x])
    weight = dict(model.named_parameters())[name]
    change = 0.1 * torch.randn_like(weight)
    moments = collector.moments[name]
    rows = change.detach().double().reshape(len(moments.mean), -1, moments.mean.shape[-1])
    told = float(torch.einsum("gri,gij,grj->", rows, moments.mean, rows))
    with torch.no_grad():
        before = model(x)
        weight += change
        after = model(x)
    return told, float((after - before).double().square().mean() * len(weight))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (30, 5, 12)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), (4, 6, 9, 11)),
        (nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=3, bias=False), (4, 6, 8, 8)),
        (nn.Conv2d(8, 8, 5, groups=8), (4, 8, 9, 9)),
        (nn.Conv1d(5, 6, 4, stride=3, padding=2), (6, 5, 40)),
        (nn.Conv2d(8, 6, 1), (4, 8, 5, 5)),
    ],
)
def test_moments_tell_the_error_of_a_layers_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    told, found = error_energy(nn.Sequential(layer).eval(), "0.weight", torch.randn(shape) + 0.5)
    assert told == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_moments_of_recurrent_layers(kind: type[nn.RNNBase], batch_first: bool) -> None:
    torch.manual_seed(0)
    layer: Any = kind(6, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 9, 6)
    collector = Collector(nn.Sequential(layer).eval())
    collector.run([x])
    found = {name: one.mean[0] for name, one in collector.moments.items()}
    assert set(found) == {f"0.{name}" for name, _ in layer.named_parameters() if "weight" in name}
    flat = x.reshape(-1, 6).double()
    assert torch.allclose(found["0.weight_ih_l0"], flat.T @ flat / len(flat))
    assert torch.allclose(found["0.weight_ih_l0_reverse"], flat.T @ flat / len(flat))
    # The last layer's inputs are what the whole layer before gives.
    one: Any = kind(6, 5, bidirectional=True, batch_first=batch_first)
    one.load_state_dict({k: v for k, v in layer.state_dict().items() if "_l0" in k})
    hidden = one(x)[0].detach().reshape(-1, 10).double()
    assert torch.allclose(found["0.weight_ih_l1"], hidden.T @ hidden / len(hidden), atol=1e-6)
    forward = one(x)[0][..., :5].detach()
    before = (forward[:, :-1] if batch_first else forward[:-1]).reshape(-1, 5).double()
    assert torch.allclose(found["0.weight_hh_l0"], before.T @ before / (4 * 9), atol=1e-6)


def test_embeddings_count_and_shared_weights_are_summed_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.a = nn.Embedding(10, 4), nn.Linear(4, 4)
            self.b = self.a
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            scores: Tensor = self.head(self.b(self.a(self.words(ids)))).mean(1)
            return scores

    model, ids = Shared().eval(), torch.tensor([[1, 2, 2], [2, 3, 9]])
    collector = Collector(model)
    collector.run([ids])
    assert set(collector.moments) == {"words.weight", "head.weight", "a.weight", "b.weight"}
    assert collector.moments["words.weight"].total is not None
    assert collector.moments["words.weight"].total[0].tolist() == [0, 1, 3, 1, 0, 0, 0, 0, 0, 1]
    assert collector.moments["a.weight"].n == 12
    gradients = squared_gradients(model, [ids], as_classes=True, n_draws=1, seed=0, by_column=["words.weight"])
    found = sensitivities(model.state_dict(), collector.moments, gradients)
    assert found["words.weight"].transposed
    assert found["words.weight"].feedback((10, 4)).layout == "rows"
    assert found["a.bias"].inputs is None


class Odd(nn.Module):
    """Modules used in ways that hooks have to bear."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name, self.normed = nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.same = nn.Conv1d(1, 2, 5, padding="same", padding_mode="circular")
        self.stepped = nn.LSTM(8, 4)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.words = nn.Embedding(6, 8, sparse=True)
        self.unused = nn.Linear(8, 30)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.normed(self.by_name(input=x)) + self.words(torch.zeros(len(x), dtype=torch.long))
        y, _ = self.stepped(x[None], (torch.zeros(1, len(x), 4), torch.zeros(1, len(x), 4)))
        z, _ = self.cross(x[:, None], key=2 * x[:, None], value=x[:, None])
        return {"scores": y[0] + self.same(x[:, None]).sum((1, 2))[:, None] + z.sum((1, 2))[:, None]}


def test_odd_modules_are_borne_and_left_out() -> None:
    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(30, 8)
    collector = Collector(model)
    collector.run(x.split(10))
    found = collector.moments
    assert torch.allclose(found["by_name.weight"].mean[0], x.double().T @ x.double() / 30)
    assert {"words.weight", "same.weight"} < set(found)
    assert not [name for name in found if name.startswith(("stepped", "cross.in_proj", "normed"))]
    gradients = squared_gradients(model, x.split(10), as_classes=True, n_draws=2, seed=0)
    costs = sensitivities(dict(model.named_parameters()), found, gradients)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    logs = {name: one.feedback(shapes[name]).log_cost for name, one in costs.items()}
    assert logs["unused.weight"] == pytest.approx(min(logs.values()))  # on which no output depends
    parts = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    rule = StepRule.calibrated(parts, {name: costs[name].feedback(shapes[name]) for name in parts})
    exponents = [row[0] for row in rule.scales.exponents]
    assert max(exponents) - sorted(exponents)[len(exponents) // 2] <= 20  # about four octaves of a step


def test_a_sequence_without_a_batch_has_steps() -> None:
    torch.manual_seed(0)
    layer, x = nn.RNN(3, 4), torch.randn(20, 3)
    collector = Collector(nn.Sequential(layer).eval())
    collector.run([x])
    assert collector.moments["0.weight_hh_l0"].n == 20
    assert collector.moments["0.weight_hh_l0"].mean.any()


def test_of_many_places_a_fair_part_is_looked_at() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    collector = Collector(nn.Sequential(layer).eval())
    collector.run([torch.ones(64, 1, 64, 64)])
    found = collector.moments["0.weight"]
    assert found.n == 64 * 64
    assert float(found.mean[0, 3, 3]) == pytest.approx(63 / 64, abs=0.03)  # the left tap


class Spoilt(Task):
    """Something is wrong with its inputs."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self._wrong = wrong

    def calibration(self) -> Iterator[Tensor]:
        for number, batch in enumerate(super().calibration()):
            if self._wrong == "double":
                yield batch.double()
            elif self._wrong == "later" and number == 2:
                yield batch[:, :7]
            elif self._wrong == "raises":
                raise NotImplementedError("no inputs here")
            elif self._wrong == "nan" and number == 1:
                yield torch.full_like(batch, float("nan"))
            else:
                yield batch


@pytest.mark.parametrize("wrong", ["double", "later", "raises", "nan"])
def test_inputs_that_fail_do_not_end_a_pack(trained: dict[str, Tensor], tmp_path: Path, wrong: str) -> None:
    options = {"task": Spoilt(wrong), "ratio": 20.0, **FAST}
    result = wcompress.pack(trained, tmp_path / "a.wcz", **options)
    assert result.task is not None
    if wrong in ("later", "raises"):
        assert result.task.chosen == "data-free"
        assert any("calibration failed" in warning for warning in result.warnings)
        with pytest.raises(TaskError, match="calibration"):
            wcompress.pack(trained, tmp_path / "b.wcz", calibrate="on", **options)
        assert not (tmp_path / "b.wcz").exists()
    elif wrong == "double":
        assert result.task.chosen == "calibrated"
    assert distance(trained, tmp_path / "a.wcz") < 5


def test_tied_weights_in_any_order_are_calibrated() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(50, 12), nn.Linear(12, 50, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            scores: Tensor = self.head(self.words(ids))
            return scores

    class Words(Task):
        def build(self) -> nn.Module:
            return Tied()

        def calibration(self) -> Iterator[Tensor]:
            yield from torch.arange(200).remainder(37).split(50)

    weight = torch.randn(50, 12)
    checkpoint = read_checkpoint({"head.weight": weight, "words.weight": weight})
    split = Split.of(Words(), checkpoint, seed=0)
    assert split is not None
    calibration = Calibration.on(split, checkpoint, seed=0)
    assert {name for name, one in calibration.found.items() if one.transposed} == {"head.weight", "words.weight"}


@pytest.mark.parametrize("effort", [1, 2])
def test_every_effort_has_a_trellis(
    trained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: int
) -> None:
    monkeypatch.setattr(search, "n_states_of", lambda *_: 1)
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=Task(), bits_per_weight=1.2, **{**FAST, "effort": effort})
    assert result.task is not None
    assert result.task.chosen == "calibrated"


def test_a_time_limit_ends_the_trials(trained: dict[str, Tensor], tmp_path: Path) -> None:
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=Task(), ratio=20.0, time_limit=1e-3, **FAST)
    assert any("trials of calibration" in warning for warning in result.warnings)
    assert result.ratio >= 20


def test_squared_gradients_are_those_of_the_squared_error() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3, bias=False)), torch.randn(50, 5)
    found = squared_gradients(model, x.split(10), as_classes=False, n_draws=400, seed=0, by_column=["0.weight"])
    # Of a linear layer a weight's squared error costs its input's mean square, whatever the output.
    expected = x.double().square().mean(0)
    columns = found["0.weight"].columns
    assert columns is not None
    assert torch.allclose(columns, 3 * expected, rtol=0.1)
    assert torch.allclose(found["0.weight"].rows, expected.sum().expand(3), rtol=0.1)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_at_a_size_outputs_are_nearer(trained: dict[str, Tensor], tmp_path: Path) -> None:
    found = {}
    for calibrate in ("auto", "off"):
        path = tmp_path / f"{calibrate}.wcz"
        result = wcompress.pack(trained, path, task=Task(), bits_per_weight=1.2, calibrate=calibrate, **FAST)
        assert result.bits_per_param <= 1.2
        assert result.task is not None
        found[calibrate] = distance(trained, path)
        assert result.task.chosen == ("calibrated" if calibrate == "auto" else "data-free")
    assert found["auto"] < 0.4 * found["off"]


def test_the_archive_is_the_same_again(trained: dict[str, Tensor], tmp_path: Path) -> None:
    contents = []
    for number, threads in enumerate((1, 2)):
        path = tmp_path / f"{number}.wcz"
        torch.manual_seed(number)
        wcompress.pack(trained, path, task=Task(), ratio=20.0, **{**FAST, "threads": threads})
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_groups_of_a_large_model_are_calibrated_too(
    trained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_TOGETHER", 4000)
    monkeypatch.setattr(groups, "GROUP_SIZE", 3000)
    found = {}
    for calibrate in ("on", "off"):
        path = tmp_path / f"{calibrate}.wcz"
        result = wcompress.pack(trained, path, task=Task(), bits_per_weight=1.5, calibrate=calibrate, **FAST)
        assert result.bits_per_param <= 1.5
        found[calibrate] = distance(trained, path)
        assert wcompress.verify(path, against=trained).ok
    assert found["on"] < 0.8 * found["off"]


def test_a_drop_without_training_takes_fewer_bytes(trained: dict[str, Tensor], tmp_path: Path) -> None:
    results = {}
    for calibrate in ("on", "off"):
        path = tmp_path / f"{calibrate}.wcz"
        results[calibrate] = wcompress.pack(
            trained, path, task=Task(), max_drop=4.0, refine="off", calibrate=calibrate, **FAST
        )
        task = results[calibrate].task
        assert task is not None
        assert task.validation_drop is not None
        assert task.validation_drop <= 4.0
    assert results["on"].archive_bytes < 0.8 * results["off"].archive_bytes


@pytest.mark.parametrize("n_inputs", [0, 20])
def test_with_too_few_inputs_the_codec_goes_by_the_weights(
    trained: dict[str, Tensor], tmp_path: Path, n_inputs: int
) -> None:
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=Task(n_inputs), ratio=10.0, **FAST)
    assert result.task is not None
    assert result.task.chosen == "data-free"
    assert result.task.reason is not None
    assert "fewer than" in result.task.reason


def test_few_inputs_do_no_harm(trained: dict[str, Tensor], tmp_path: Path) -> None:
    found = {}
    for calibrate in ("auto", "off"):
        path = tmp_path / f"{calibrate}.wcz"
        wcompress.pack(trained, path, task=Task(100), bits_per_weight=1.2, calibrate=calibrate, **FAST)
        found[calibrate] = distance(trained, path)
    assert found["auto"] <= found["off"]


def test_held_out_inputs_choose(trained: dict[str, Tensor]) -> None:
    split = Split.of(Task(), read_checkpoint(trained), seed=0)
    assert split is not None
    assert split.n_inputs == 480
    assert sum(len(batch) for batch in split.held_out) == 120
    assert split.distance(trained) == 0.0
    assert split.distance({name: 2 * tensor for name, tensor in trained.items()}) > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"calibrate": "maybe"},
        {"calibrate": "on"},
        {"calibrate": "on", "sqnr": 20.0},
        {"calibrate": "on", "max_drop": 1.0},
        {"calibrate": "on", "ratio": 10.0, "tensor": {"first": 4}},
    ],
)
def test_options_that_contradict(trained: dict[str, Tensor], tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="calibrate"):
        wcompress.pack(trained, tmp_path / "a.wcz", task=Task(), **{**FAST, **options})


def test_without_a_task_nothing_can_be_calibrated(trained: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="task"):
        wcompress.pack(trained, tmp_path / "a.wcz", ratio=10.0, calibrate="on", **FAST)


def test_the_command_says_what_was_chosen(trained: dict[str, Tensor], tmp_path: Path) -> None:
    from wcompress.cli import cli

    torch.save(trained, tmp_path / "model.pt")
    task = f"{__name__}:Task"
    found = CliRunner().invoke(
        cli, ["pack", str(tmp_path / "model.pt"), "--task", task, "--ratio", "20", "--effort", "2", "--json"]
    )
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["task"]["chosen"] == "calibrated"
    assert told["warnings"] == []
