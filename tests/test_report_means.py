"""Reports of several trainings of one network, and of peers that others measured."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_cli import one_line
from tests.test_report import TINY, TinyTask
from wcompress.api import pack
from wcompress.cli import run
from wcompress.codec.options import PackOptions
from wcompress.errors import OptionError
from wcompress.report.figures import Mark, ratio_against_score
from wcompress.report.peers import PeerPoint, read_peers
from wcompress.report.rows import FIGURES, Row, mean_rows
from wcompress.report.sweep import MeanReport, SweepSetting, report, report_means

SETTINGS = [SweepSetting(f"latent {n}", replace(TINY, latent_dim=n)) for n in (4, 2)]
TASK = """
import torch
from torch import nn


class task:
    name, dataset, n_examples = "two", "made up", 50

    def build(self):
        return nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 2))

    def calibration(self):
        yield torch.zeros(1, 2)

    def validate(self, model):
        return 50.0

    evaluate = validate
"""


def tiny(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.clone() for name, tensor in TinyTask().build().state_dict().items()}


@pytest.fixture(scope="module")
def peers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "peers.json"
    rows = [
        {"label": "a peer", "ratio": 3.0, "score": 90.0, "ratio_spread": [2.5, 3.5], "score_spread": [80, 95]},
        {"label": "a peer", "ratio": 1e6, "score": 1.0},
    ]
    path.write_text(json.dumps({"dataset": "made up <b>", "peers": rows, "provenance": {}}))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, peers_file: Path) -> MeanReport:
    folder = tmp_path_factory.mktemp("means")
    for seed in (0, 1, 2):
        torch.save(tiny(seed), folder / f"seed{seed}.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wcompress.codec.packers.paper._EPOCHS_PER_EFFORT", 12)
        return report_means(
            [folder / f"seed{seed}.pt" for seed in (0, 1, 2)],
            TinyTask(name="tiny"),
            folder / "out",
            options=TINY,
            settings=SETTINGS,
            peers=peers_file,
        )


def test_means_agree_with_the_models_and_the_csv(swept: MeanReport) -> None:
    document = json.loads((swept.folder / "report.json").read_text())
    assert document["kind"] == "sweep_means"
    assert document["n_models"] == 3
    models = document["models"]
    assert [model["model"] for model in models] == ["seed0.pt", "seed1.pt", "seed2.pt"]
    scores = [model["score_before"] for model in models]
    assert document["score_before"] == statistics.fmean(scores)
    assert document["score_before_spread"] == [min(scores), max(scores)]
    assert [point["label"] for point in document["points"]] == ["latent 4", "latent 2"]
    for kind, get in (("points", lambda row: row["task"]["score_after"]), ("baselines", lambda row: row["score"])):
        for i, point in enumerate(document[kind]):
            rows = [model[kind][i] for model in models]
            for name in ("ratio", "archive_bytes"):
                values = [row[name] for row in rows]
                assert point[name] == pytest.approx(statistics.fmean(values), rel=1e-12)
                assert min(values) <= point[name] <= max(values)
                assert point[f"{name}_spread"] == [min(values), max(values)]
            after = [get(row) for row in rows]
            assert point["score"] == pytest.approx(statistics.fmean(after))
            drops = [before - score for before, score in zip(scores, after, strict=True)]
            assert point["drop_spread"] == [min(drops), max(drops)]
    with (swept.folder / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["kind"] for row in table] == ["archive"] * 2 + ["baseline"] * 6 + ["peer"] * 2
    for row, point in zip(table, [*document["points"], *document["baselines"]], strict=False):
        assert float(row["ratio"]) == point["ratio"]
        assert [float(row["score_least"]), float(row["score_most"])] == point["score_spread"]
        assert [float(row["ratio_least"]), float(row["ratio_most"])] == point["ratio_spread"]
    assert (swept.folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_what_the_bars_are_and_whose_the_peers(swept: MeanReport) -> None:
    text = (swept.folder / "report.md").read_text()
    assert "means over the 3 models" in text
    assert "error bars show the range" in text
    assert "every byte counted" in text
    assert "Peers were not measured here" in text


def test_peers_stand_in_every_file_and_in_the_front(swept: MeanReport, peers_file: Path) -> None:
    document = json.loads((swept.folder / "report.json").read_text())
    assert document["peers"] == json.loads(peers_file.read_text())["peers"]
    assert {"name": "a peer", "ratio": 1e6, "score": 1.0} in document["pareto"]
    with (swept.folder / "report.csv").open(newline="") as file:
        first, second = list(csv.DictReader(file))[-2:]
    assert (first["ratio_least"], first["score_most"], first["archive_bytes"]) == ("2.5", "95.0", "")
    assert (second["ratio_least"], second["pareto"]) == ("", "yes")


def test_one_model_keeps_its_document(tmp_path: Path, peers_file: Path) -> None:
    found = report(tiny(0), TinyTask(), tmp_path / "out", settings=[], peers=peers_file)
    document = found.to_json()
    assert document["kind"] == "sweep"
    assert len(document["peers"]) == 2
    assert "models" not in document
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        assert "archive_bytes_least" not in next(csv.reader(file))


def test_settings_that_a_model_lacks_are_left_out() -> None:
    def row(name: str, value: float, sqnr: float | None = 1.0) -> Row:
        return Row("archive", name, name, {**dict.fromkeys(FIGURES, value), "sqnr_db": sqnr})

    (mean,) = mean_rows([[row("a", 1.0), row("b", 2.0)], [row("b", 4.0, None), row("c", 9.0)]])
    assert (mean.name, mean.figures["ratio"], mean.spreads["ratio"]) == ("b", 3.0, (2.0, 4.0))
    assert mean.figures["sqnr_db"] is None
    assert "sqnr_db" not in mean.spreads


def test_figures_draw_bars_refined_points_peers_and_the_paper() -> None:
    mark = Mark("a", 2.0, 50.0)
    wide = replace(mark, ratio_spread=(1.0, 4.0))
    tall = replace(mark, score_spread=(40.0, 60.0))

    def draw(point: Mark, **others: Any) -> bytes:
        return ratio_against_score([point], [], [], [], 50.0, title="t", method="vae", **others)

    drawn = [
        draw(mark),
        draw(wide),
        draw(tall),
        draw(mark, refined=[mark]),
        draw(mark, peers=[mark]),
        draw(mark, paper=mark),
        draw(mark, n_models=3),
    ]
    assert len(set(drawn)) == len(drawn)


def test_only_trainings_of_one_network_have_means(tmp_path: Path) -> None:
    model = tmp_path / "a.pt"
    torch.save(tiny(0), model)
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "b.pt")
    for models, message in (
        ([model, model], "passed twice"),
        ([model], "need two or more"),
        ([model, tmp_path / "b.pt"], r"b\.pt: tensor '0\.weight' differs from a\.pt"),
        ([tiny(0), {**tiny(1), "more": torch.ones(1)}], "tensor 'more'"),
        ([tiny(0), {name: tensor.double() for name, tensor in tiny(1).items()}], "differs from"),
    ):
        with pytest.raises(OptionError, match=message):
            report_means(models, TinyTask(), tmp_path / "out", settings=[], force=True)


def test_peers_are_read_from_a_list_too(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    row = {"label": "x", "ratio": 2, "score": 50}
    path.write_text(json.dumps([row]))
    assert read_peers(path).points == (PeerPoint("x", 2.0, 50.0),)


GOOD = {"label": "x", "ratio": 2.0, "score": 50.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({}, "no list of peers"),
        ([], "no list of peers"),
        ({"peers": 3}, "no list of peers"),
        ({"peers": [GOOD], "dataset": 3}, "'dataset' is not text"),
        ([3], "peer 1: not an object"),
        ([GOOD, {**GOOD, "label": ""}], "peer 2: 'label'"),
        ([{**GOOD, "ratio": "2"}], "peer 1: 'ratio' is missing or not a finite number"),
        ([{**GOOD, "ratio": True}], "'ratio' is missing or not a finite number"),
        ([{**GOOD, "ratio": 0}], "'ratio' is 0"),
        ([{**GOOD, "ratio": 10**400}], "not a finite number"),
        ([{**GOOD, "score": float("nan")}], "'score' is missing or not a finite number"),
        ([{"label": "x", "ratio": 2.0}], "'score' is missing"),
        ([{**GOOD, "scroe": 2}], "unknown key 'scroe'"),
        ([{**GOOD, "ratio_spread": [1]}], r"'ratio_spread' is not \[least, most\]"),
        ([{**GOOD, "ratio_spread": [3, 4]}], "which does not include 2"),
        ([{**GOOD, "ratio_spread": [0, 4]}], "is 0 to 4"),
        ([{**GOOD, "score_spread": [40, "60"]}], "'score_spread' is missing or not a finite number"),
    ],
)
def test_bad_peers_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "peers.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(OptionError, match=message) as caught:
        report(tiny(0), TinyTask(), tmp_path / "out", settings=[], peers=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("about", [{"dataset": "mnist"}, {"task": "mnist-fnn"}])
def test_peers_of_another_task_are_refused(tmp_path: Path, about: dict[str, str]) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({**about, "peers": [GOOD]}))
    with pytest.raises(OptionError, match="peers were scored with"):
        report(tiny(0), TinyTask(), tmp_path / "out", settings=[], peers=path)


def test_the_command_takes_several_models_and_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wcompress.report.sweep.SWEEP_LATENT_DIMS", (4,))
    (tmp_path / "two.py").write_text(TASK)
    for seed in (0, 1):
        torch.save(tiny(seed), tmp_path / f"{seed}.pt")
    (tmp_path / "peers.json").write_text(json.dumps([GOOD]))
    quick = ("--task", "two.py", "-o", "out", "--method", "paper", "--hidden", "8", "--effort", "1", "--threads", "1")
    arguments = ("report", "0.pt", "1.pt", "--peers", "peers.json", *quick)
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["n_models"], len(document["peers"])) == (2, 1)
    assert document["points"][0]["ratio_spread"][0] <= document["points"][0]["ratio"]
    (tmp_path / "peers.json").write_text("[]")
    assert run([*arguments, "-f", "-q"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert one_line(err)
    assert "peers.json" in err
    assert run(["report", "0.pt", *quick, "-f", "-q"]) == 0
    out = capfd.readouterr().out
    assert "every byte" in out
    assert "paper, latent 4" in out


def test_refined_points_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(model: Any, name: str, _options: PackOptions, **others: Any) -> Any:
        return pack(model, name, TINY, **others)

    monkeypatch.setattr("wcompress.codec.packers.paper._EPOCHS_PER_EFFORT", 12)
    monkeypatch.setattr("wcompress.report.sweep.pack", quick)
    plain = PackOptions(bits_per_weight=4.0)
    settings = [SweepSetting("4 bits", plain), SweepSetting("refined, −1", PackOptions(refine="on", max_drop=1.0))]
    document = report(tiny(0), TinyTask(), tmp_path / "out", settings=settings).to_json()
    assert [point["refined"] for point in document["points"]] == [False, True]
