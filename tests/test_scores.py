"""What a task's scores mean: units and directions are noticed or declared; drops are told with their uncertainty."""

from __future__ import annotations

import json
import math
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wcompress
from tests.test_refine import Toy, trained
from wcompress.cli import run
from wcompress.codec.results import TaskScore
from wcompress.errors import OptionError, TaskError
from wcompress.evaluate import _shuffled, build_model
from wcompress.refine import packing as refine_packing
from wcompress.refine.margin import Validation
from wcompress.tasks import Scale, Score, observe, standard_error

__all__ = ["trained"]
FAST: dict[str, Any] = {"effort": 1, "threads": 1, "device": "cpu"}


class Graded(Toy):
    """`Toy` with scores of another kind.

    Args:
        grade: model, images and labels → score.
        **declared: attributes of the task.
    """

    def __init__(self, grade: Callable[[nn.Module, Tensor, Tensor], Any], **declared: Any) -> None:
        super().__init__()
        self._grade = grade
        for name, value in declared.items():
            setattr(self, name, value)

    def _score(self, model: nn.Module, part: slice) -> Any:
        with torch.no_grad():
            return self._grade(model, self.x[part], self.y[part])


def share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(nn.functional.cross_entropy(model(x), y))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_self: Any) -> None:
        pytest.fail("long work began")

    monkeypatch.setattr(refine_packing.RefineSearch, "run", run)
    monkeypatch.setattr(refine_packing, "encode", run)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("refine", ["on", "off"])
@pytest.mark.parametrize(
    ("task", "advice"),
    [
        (Graded(share), 'unit = "fraction"'),
        (Graded(lambda *a: torch.tensor(share(*a))), 'unit = "fraction"'),
        (Graded(lambda *a: 100 * share(*a), unit="fraction"), "set unit"),
        (Graded(lambda *_: math.nan), "finite number"),
        (Graded(lambda *_: math.inf), "finite number"),
        (Graded(lambda *_: 97.0), "ruined weights too"),
        (Graded(lambda *_: 0.97, unit="fraction"), "ruined weights too"),
        (Graded(lambda *_: "fine"), "should give a number"),
        (Graded(lambda *a: -loss(*a)), "set unit"),
        (Graded(lambda *a: 1000 * share(*a)), "set unit"),
        (Graded(lambda *a: 20 * loss(*a)), "higher_is_better = False"),
        (Graded(lambda *a: 100 * (1 - share(*a))), "higher_is_better = False"),
        (Graded(loss, unit="nats"), "higher_is_better = False"),
        (Graded(loss, higher_is_better=False), "but no unit"),
        (Graded(share, unit="fraction", higher_is_better=False), "higher_is_better = True"),
    ],
)
def test_scores_that_are_misunderstood_are_refused(
    task: Any, advice: str, refine: str, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=advice) as caught:
        wcompress.pack(trained, tmp_path / "a.wcz", task=task, max_drop=2.0, refine=refine, **FAST)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_fraction_is_noticed_where_it_is_only_reported(trained: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match='unit = "fraction"'):
        wcompress.pack(trained, tmp_path / "a.wcz", task=Graded(share), **FAST)


@pytest.mark.parametrize("refine", ["on", "off"])
@pytest.mark.parametrize(
    ("task", "unit", "max_drop"),
    [
        (Graded(share, unit="fraction"), "percent", 3.0),
        (Graded(lambda *a: 100 * share(*a), unit="percent"), "percent", 3.0),
        (Graded(lambda *a: 1 - share(*a), unit="fraction", higher_is_better=False), "percent", 3.0),
        (Graded(loss, unit="nats", higher_is_better=False), "nats", 0.1),
        (Graded(lambda *a: -loss(*a), unit="log-likelihood"), "log-likelihood", 0.1),
    ],
)
def test_declared_scores_are_kept_to(
    task: Any, unit: str, max_drop: float, refine: str, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    result = wcompress.pack(trained, tmp_path / "a.wcz", task=task, max_drop=max_drop, refine=refine, **FAST)
    found = result.to_json()["task"]
    restored, original = Toy().build(), Toy().build()
    restored.load_state_dict(wcompress.load(result.archive))
    original.load_state_dict(trained)
    sign = 1 if getattr(task, "higher_is_better", True) else -1
    factor = 100 if getattr(task, "unit", "") == "fraction" else 1
    lost = sign * factor * (task.validate(original) - task.validate(restored))
    assert lost <= max_drop
    assert found["validation_drop"] == pytest.approx(lost, abs=1e-6)
    assert found["score_before"] == pytest.approx(factor * task.evaluate(original))
    assert found["drop"] == pytest.approx(sign * (found["score_before"] - found["score_after"]))
    assert (found["unit"], found["allowed_drop"], found["n_test"], found["n_validation"]) == (unit, max_drop, 200, 200)
    assert found["chosen"] in ("refined", "calibrated", "data-free")
    assert found["reason"]
    assert (found["validation_error"] is None) == (found["drop_error"] is None) == (unit != "percent")


class Batches(Toy):
    """`Toy` with calibration batches of another kind."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self._change = change

    def calibration(self) -> Iterator[Any]:
        for x, y in zip(self.x[:800].split(100), self.y[:800].split(100), strict=True):
            yield self._change(x, y)


def plain(x: Tensor, _y: Tensor) -> Any:
    return x


def named(x: Tensor, _y: Tensor) -> Any:
    return {"input": x}


@pytest.fixture(scope="module")
def without_labels(trained: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, str]:
    folder = tmp_path_factory.mktemp("alone")
    return {
        change: wcompress.pack(trained, folder / change.__name__, task=Batches(change), max_drop=3.0, **FAST).sha256
        for change in (plain, named)
    }


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        (lambda x, y: (x, y), plain),
        (lambda x, y: [x, y], plain),
        (lambda x, _y: (x,), plain),
        (lambda x, y: (x, y.tolist()), plain),
        (lambda x, y: (x, ["name"] * len(y)), plain),
        (lambda x, y: {"input": x, "labels": y}, named),
        (lambda x, y: {"input": x, "names": ["name"] * len(y)}, named),
    ],
)
def test_labels_beside_the_inputs_are_left_out(
    change: Any, alone: Any, without_labels: dict[Any, str], trained: dict[str, Tensor], tmp_path: Path
) -> None:
    beside = wcompress.pack(trained, tmp_path / "b.wcz", task=Batches(change), max_drop=3.0, **FAST)
    assert beside.sha256 == without_labels[alone]


def _fail(*_: Any) -> Any:
    raise OSError("no such\nimage")


def test_inputs_are_tried_before_any_scoring(trained: dict[str, Tensor], tmp_path: Path) -> None:
    task = Batches(_fail)
    task.evaluate = task.validate = lambda _model: pytest.fail("scored first")  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="no such image"):
        wcompress.pack(trained, tmp_path / "a.wcz", task=task, max_drop=2.0, **FAST)


def test_ruined_weights_of_any_dtype() -> None:
    dtypes = [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
    tensors = {str(d): torch.arange(-8, 8).reshape(4, 4).to(d) for d in dtypes} | {"": torch.empty(0, 3)}
    for name, tensor in _shuffled(tensors).items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
        assert torch.equal(tensor.double().sort().values.sum(), tensors[name].double().sum())


class LateFailure(Toy):
    def calibration(self) -> Iterator[Tensor]:
        yield self.x[:100]
        raise RuntimeError("a bad file")


class FailingLoader(Toy):
    def calibration(self) -> Any:
        return torch.utils.data.DataLoader([_Item()], batch_size=1, num_workers=0, collate_fn=_fail)  # type: ignore[arg-type]


class _Item:
    pass


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Batches(_fail), "no such image"),
        (FailingLoader(), "no such image"),
        (LateFailure(), "a bad file"),
        (Batches(lambda x, _y: x.numpy()), "ndarray"),
        (Batches(lambda x, _y: (x.numpy(), x)), "ndarray"),
        (Batches(lambda x, _y: x[:, :5]), "first batch"),
        (Batches(lambda _x, _y: {}), "empty"),
        (Batches(lambda _x, _y: None), "NoneType"),
        (Batches(lambda x, _y: x.sum()), "dimension"),
        (Graded(_fail), "no such image"),
    ],
)
def test_what_fails_in_a_task_fails_early_in_one_line(
    task: Any, told: str, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=told) as caught:
        wcompress.pack(trained, tmp_path / "a.wcz", task=task, max_drop=2.0, **FAST)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failing_loader_process_is_told_by_what_it_raised(trained: dict[str, Tensor], tmp_path: Path) -> None:
    error = RuntimeError(
        "Caught OSError in worker 0.\nOriginal Traceback (most recent call last):\n  x\nOSError: gone\n"
    )

    class Workers(Toy):
        def calibration(self) -> Iterator[Tensor]:
            raise error

    with pytest.raises(TaskError, match="OSError: gone") as caught:
        wcompress.pack(trained, tmp_path / "a.wcz", task=Workers(), max_drop=2.0, **FAST)
    assert "Original Traceback" not in str(caught.value)


def test_networks_of_several_inputs_keep_their_tuples() -> None:
    from wcompress.refine.inputs import understood

    pair = (torch.ones(4, 3), torch.ones(4, 3))
    model = nn.Bilinear(3, 3, 2)
    assert list(understood(model, [pair, pair])) == [pair, pair]


def test_mappings_of_a_tokenizer_are_batches() -> None:
    from wcompress.refine.inputs import understood

    class Words(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return (input_ids * attention_mask).float()

    ids, mask = torch.arange(12).view(3, 4), torch.ones(3, 4, dtype=torch.int64)
    batch = UserDict(input_ids=ids, offsets=ids, attention_mask=mask)
    assert list(understood(Words(), [batch])) == [{"input_ids": ids, "attention_mask": mask}]


def test_tied_names_and_buffers_outside_the_state_need_not_match() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("places", torch.arange(4), persistent=False)

        def forward(self, ids: Tensor) -> Tensor:
            return cast(Tensor, self.head(self.embedding(ids) * self.places.sum()))

    class Next(Toy):
        def build(self) -> nn.Module:
            return Words()

    weight = torch.randn(5, 3)
    for names in (["embedding.weight"], ["head.weight"]):
        model = build_model(Next(), {**dict.fromkeys(names, weight), "places": torch.zeros(4)})
        assert torch.equal(cast(Tensor, model.head.weight), weight)
        assert model.places.tolist() == [0, 1, 2, 3]
    for tensors in ({"places": torch.zeros(4)}, {"embedding.weight": weight, "other": weight}):
        with pytest.raises(TaskError, match="do not fit"):
            build_model(Next(), tensors)


def scores(right: Tensor) -> Score:
    each = 100.0 * right.double()
    return Score(float(each.mean()), len(each), each)


def test_errors_follow_from_what_is_known() -> None:
    scale = Scale()
    before, after = torch.ones(1000), torch.ones(1000)
    after[:20] = 0
    before[20:30] = 0
    changed = standard_error(scores(before), scores(after), scale)
    assert changed == pytest.approx(100 * math.sqrt(0.03 / 1000), rel=0.01)
    answers = [Score(99.0, 1000, None, torch.zeros(1000)), Score(98.0, 1000, None, (torch.arange(1000) < 30).double())]
    assert standard_error(answers[0], answers[1], scale) == pytest.approx(changed, rel=0.02)
    bound = standard_error(Score(99.0, 1000), Score(98.0, 1000), scale)
    assert bound == pytest.approx(100 * math.sqrt(0.03 / 1000))
    assert standard_error(Score(99.0), Score(98.0), scale) is None
    assert standard_error(Score(0.3, 1000), Score(0.4, 1000), Scale("nats", False, True)) is None


def test_examples_are_counted_and_answers_seen() -> None:
    task = Toy()
    found = observe(task, task.build(), "validation")
    assert found.n == 200
    assert found.answers is not None
    assert found.answers.shape == (200,)
    task.n_validation = 50  # type: ignore[attr-defined]
    assert observe(task, task.build(), "validation").n == 50


def test_fewer_examples_need_a_wider_margin() -> None:
    for n, kept in ((500, False), (50_000, True)):
        before, after = torch.ones(n), torch.ones(n)
        after[torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 250]] = 0  # 0.4 points
        found = Validation.of(scores(before), scores(after), Scale())
        assert found.drop == pytest.approx(0.4)
        assert found.keeps(0.5) is kept
    unchanged = Validation.of(scores(before), scores(before), Scale())
    assert unchanged.keeps(0.0)
    assert not Validation.of(scores(before), Score(math.nan), Scale()).keeps(100.0)


def test_examples_held_back_can_veto() -> None:
    before, after = torch.ones(4000), torch.ones(4000)
    after[3::4][:25] = 0  # all of what is lost is lost on what the search never sees
    found = Validation.of(scores(before), scores(after), Scale())
    assert found.searched == 0
    assert found.held_back == pytest.approx(2.5)
    assert found.drop + found.margin(1.0) < 1.0
    assert not found.keeps(1.0)


def test_a_candidate_without_a_finite_score_is_infinitely_worse() -> None:
    assert Scale().drop(90.0, math.nan) == Scale("nats", False, True).drop(0.3, math.inf) == math.inf
    assert TaskScore("a", "b", 90.0, math.nan, allowed_drop=1.0).exceeds
    assert TaskScore("a", "b", 90.0, math.nan).to_json()["drop"] is None


UNLUCKY = """
import torch
from tests.test_refine import Toy

class Unlucky(Toy):
    def evaluate(self, model):  # the packed model has few distinct weights
        return 95.0 if len(model[0].weight.unique()) > 300 else 80.0

task = Unlucky
"""


@pytest.fixture
def unlucky(tmp_path: Path, trained: dict[str, Tensor]) -> list[str]:
    (tmp_path / "task.py").write_text(UNLUCKY)
    torch.save(trained, tmp_path / "model.pt")
    model, output = str(tmp_path / "model.pt"), str(tmp_path / "a.wcz")
    return ["pack", model, "-o", output, "--task", str(tmp_path / "task.py"), "--effort", "1", "-f"]


def test_a_larger_drop_on_test_is_a_warning_and_for_those_who_ask_a_failure(
    unlucky: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*unlucky, "--max-drop", "3"]
    assert run(arguments) == 0
    shown = capfd.readouterr()
    assert "warning: the test set shows a drop of 15.00" in shown.err
    for row in ("drop allowed", "drop on validation, 200 examples", "drop on test, 200 examples", "chosen", "±"):
        assert row in shown.out
    assert run([*arguments, "--fail-on-test-drop", "--json"]) == 1
    document = json.loads(capfd.readouterr().out)
    assert document["task"]["drop"] == 15.0
    assert document["task"]["allowed_drop"] == 3.0
    assert any("more than the 3 points allowed" in line for line in document["warnings"])
    assert wcompress.verify(tmp_path / "a.wcz").ok


def test_failing_on_a_drop_needs_one_to_be_allowed(unlucky: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--refine", "on", "--ratio", "5"]):
        assert run([*unlucky, *more, "--fail-on-test-drop"]) == 2
        assert "--max-drop" in capfd.readouterr().err


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_time_limit_is_a_positive_number(limit: float) -> None:
    with pytest.raises(OptionError, match="time_limit"):
        wcompress.PackOptions(time_limit=limit)


def test_numpy_scores_and_arrays_for_each_example_are_taken() -> None:
    class Each(Toy):
        def validate_each(self, _model: nn.Module) -> Any:
            return np.array([True, False, True, True])

    found = observe(Each(), Each().build(), "validation")
    assert found.n == 4
    assert found.value == 0.75
