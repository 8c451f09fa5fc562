"""What benchmarks compute from their measurements. The measurements themselves are not repeated here."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import wcompress
from benchmarks import lenet, refine, refine_figure, reproduce
from benchmarks.ablation import PARTS, bytes_at_equal_sqnr, pack_model
from benchmarks.common import merged, shown
from benchmarks.curves import Span, accuracy_means, means, walk
from benchmarks.equal_accuracy import verdict
from benchmarks.equal_function import ResNet, output_db, rescale, scores_with, weights_of
from benchmarks.equal_sqnr import bracketing_qps, level_at
from benchmarks.nncodec_worker import as_matrix, from_matrix
from benchmarks.peers import interpolate_bytes, least_bytes, qp_of_step, step_size
from benchmarks.real_peers import shared_bits
from benchmarks.speed import against
from benchmarks.tables import TABLES, filled
from wcompress.codec.rate_control.search import VaeSearch
from wcompress.codec.rate_control.solution import EncoderConfig
from wcompress.codec.rate_control.step_rule import StepRule
from wcompress.report.peers import read_peers
from wcompress.tasks import load_task
from wcompress.vae.training import TrainingConfig


def test_interpolation_is_linear_in_the_logarithm() -> None:
    assert interpolate_bytes([(10.0, 100.0), (20.0, 400.0)], 15.0) == pytest.approx(200.0)


def test_interpolation_drops_what_another_point_beats() -> None:
    points = [(10.0, 100.0), (9.0, 150.0), (20.0, 400.0), (19.0, 500.0)]
    assert interpolate_bytes(points, 15.0) == pytest.approx(200.0)
    # No fewer bytes are known than those of the cheapest point.
    assert interpolate_bytes(points, 9.5) == 100.0


@pytest.mark.parametrize("quality", [8.9, 20.1])
def test_nothing_is_extrapolated(quality: float) -> None:
    assert interpolate_bytes([(10.0, 100.0), (9.0, 150.0), (20.0, 400.0)], quality) is None


def test_the_best_curve_that_reaches_counts() -> None:
    curves = [[(10.0, 100.0), (12.0, 120.0)], [(10.0, 90.0), (20.0, 400.0)]]
    assert least_bytes(curves, 10.0) == 90.0
    assert least_bytes(curves, 20.0) == pytest.approx(400.0)
    assert least_bytes(curves, 21.0) is None


def test_steps_of_nncodec() -> None:
    assert step_size(0) == 1.0
    assert step_size(4) == 2.0
    assert step_size(-6) == 0.375
    assert all(qp_of_step(step_size(qp)) == qp for qp in range(-100, 100))


def test_a_walk_goes_on_until_it_has_what_is_asked() -> None:
    # Quality falls by one a number, but for a lucky point that shall not end the walk.
    asked: list[int] = []

    def measure(number: int) -> tuple[float, float]:
        asked.append(number)
        return (0.0 if number == 4 else 10.0 - number), 100.0 - number

    points = walk(measure, 2, (-20, 20), Span(low=5.0, high=9.0))
    assert points == [(float(10 - n) if n != 4 else 0.0, 100.0 - n) for n in range(8)]
    assert len(asked) == len(set(asked))


def test_a_walk_keeps_to_its_limits() -> None:
    assert walk(lambda number: (5.0, float(number)), 1, (0, 3), Span(low=0.0, high=9.0)) == [
        (5.0, 0.0),
        (5.0, 1.0),
        (5.0, 2.0),
        (5.0, 3.0),
    ]


def test_means_by_group() -> None:
    rows = [{"model": "a", "x": 1.0}, {"model": "b", "x": 5.0}, {"model": "a", "x": 3.0}, {"model": "b", "x": None}]
    assert means(rows, ["model"], ["x"]) == [
        {"model": "a", "n": 2, "x": 2.0, "x_spread": [1.0, 3.0]},
        {"model": "b", "n": 2, "x": None, "x_spread": None},
    ]


def accuracy_rows(*savings: float | None) -> list[dict[str, Any]]:
    figures = {"n_bytes": 1.0, "nncodec_bytes": 1.0, "ratio": 1.0, "nncodec_ratio": 1.0}
    return [
        {
            "model": f"m{i}",
            "effort": 5,
            "score_before": 98.0,
            "at": [{"drop": 1.0, **figures, "saving_percent": saving}],
        }
        for i, saving in enumerate(savings)
    ]


@pytest.mark.parametrize(
    ("savings", "end"),
    [
        ((25.0, 0.0, 8.0), "met"),
        ((40.0, -0.1), "missed"),
        ((9.0, 10.0), "missed"),
        ((40.0, None), "not all measured"),
    ],
)
def test_verdict_on_accuracy(savings: tuple[float | None, ...], end: str) -> None:
    assert verdict(accuracy_means(accuracy_rows(*savings))).endswith(end)


def test_qps_lie_on_both_sides_of_each_level() -> None:
    # Steeper than expected, and with a kink.
    def sqnr_at(qp: int) -> float:
        return -2.0 * qp - (3.0 if qp > -5 else 0.0)

    qps = bracketing_qps(sqnr_at, [4.0, 16.5], start=-20)
    for level in (4.0, 16.5):
        below, above = [qp for qp in qps if sqnr_at(qp) < level], [qp for qp in qps if sqnr_at(qp) >= level]
        assert min(below) == max(above) + 1
    assert len(qps) < 13


@pytest.mark.parametrize("start", [-30, -12, 3])
def test_the_level_lies_between_the_qps_around_the_bytes(start: int) -> None:
    def point_at(qp: int) -> tuple[float, float]:
        return -1.5 * qp, 1000.0 * 2 ** (-qp / 4)

    assert level_at(point_at, point_at(-7)[1], start) == pytest.approx(10.5)
    half_way = (point_at(-7)[1] + point_at(-8)[1]) / 2
    assert level_at(point_at, half_way, start) == pytest.approx(11.25)


def test_shared_bits_are_those_of_one_step() -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(64, 64)), "b": 4 * rng.normal(size=(64, 64)), "c": rng.normal(size=64)}
    found = shared_bits(arrays, 4.0)
    assert list(found) == ["a", "b"]
    assert sum(found.values()) == pytest.approx(8.0)
    assert found["b"] - found["a"] == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (24, 16), (3, 5), (32, 3, 3, 3)])
def test_a_matrix_for_a_peer_becomes_the_tensor_again(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    matrix = as_matrix(array)
    assert matrix.shape[1] % 8 == 0 or shape == (3, 5)
    assert np.array_equal(from_matrix(matrix, shape), array)


def test_speed_is_told_against_the_faster_setting() -> None:
    def row(encode_s: float, decode_s: float, effort: int | None = None) -> dict[str, Any]:
        return {"effort": effort, "encode_s": {"median": encode_s}, "decode_s": {"median": decode_s}}

    theirs = [row(10.0, 2.0), row(20.0, 1.0)]
    assert against(row(2.0, 0.6, 1), theirs, 5) == {
        "encodes_times_as_fast": 5.0,
        "decodes_times_as_fast": pytest.approx(1 / 0.6),
        "encode_met": True,
        "decode_met": False,
    }
    assert against(row(30.0, 0.5, 5), theirs, 5)["encode_met"]
    assert not against(row(30.1, 0.5, 5), theirs, 5)["encode_met"]
    assert against(row(30.0, 0.5, 9), theirs, 5)["encode_met"] is None


def test_a_bit_is_six_db() -> None:
    assert bytes_at_equal_sqnr(1000.0, 20.0, 26.0206, 800) == pytest.approx(1100.0)


def test_the_ablation_switches_the_prior_off() -> None:
    # Scales that come and go within a tensor: under class tables a VAE pays.
    generator = torch.Generator().manual_seed(0)
    scales = 2.0 ** (4 * torch.sin(torch.arange(64) / 3.0))
    weights = {"w": (torch.randn(64, 16, 64, generator=generator) * scales[:, None, None]).reshape(64, 1024)}
    with_it, without = (pack_model(weights, variant, 4, 10.0) for variant in ("tables and VAE", "tables"))
    assert with_it.n_latents
    assert not without.n_latents
    assert pack_model(weights, "context", 4, 10.0).n_bytes < with_it.n_bytes < without.n_bytes


def test_variants_of_the_ablation_differ_in_the_entropy_model_alone() -> None:
    model = {"w": torch.randn(200, 100, generator=torch.Generator().manual_seed(0))}

    def encoder_of(variant: str) -> tuple[str, EncoderConfig]:
        rule = StepRule.of(model, model, by_sqnr=True)
        options = {"block_size": 2048, "latent_dim": 64, "effort": 5, "seed": 0, "device": "cpu"}
        search = VaeSearch(model, {}, rule, parts=PARTS[variant], **options)
        return type(search._encoder).__name__, search._encoder.config

    configs = {variant: encoder_of(variant) for variant in PARTS}
    assert [kind for kind, _ in configs.values()] == ["ClassEncoder"] * 2 + ["ContextEncoder"] * 2
    assert [config.use_prior for _, config in configs.values()] == [False, True, False, True]
    first, *others = (dataclasses.replace(config, use_prior=True) for _, config in configs.values())
    assert first.machine.n_states == 16384
    assert all(other == first for other in others)


def test_rescaling_leaves_the_output_as_it_was() -> None:
    torch.manual_seed(0)
    model = ResNet().eval()
    images = torch.rand(8, 1, 8, 8)
    before = weights_of(model)
    rescale(model, 0)
    after = weights_of(model)
    assert output_db(scores_with(before, images), scores_with(after, images)) > 80
    ratio = float(after["blocks.0.conv1.weight"].norm() / before["blocks.0.conv1.weight"].norm())
    assert not math.isclose(ratio, 1, rel_tol=0.01)


def test_merged_rows_keep_what_they_were_measured_with() -> None:
    old = [{"model": "a", "x": 1, "run": 0}, {"model": "b", "x": 2, "run": 1}]
    rows, runs = merged(old, [{"commit": "1"}, {"commit": "2"}], [{"model": "a", "x": 3}], {"commit": "3"}, ["model"])
    assert [(row["x"], runs[row["run"]]["commit"]) for row in rows] == [(3, "3"), (2, "2")]
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--only", "--only"),
        ("a/b", "a/b"),
        (str(Path.cwd() / "models"), "models"),
        (f"--real={Path.cwd() / 'x'}", "--real=x"),
    ],
)
def test_results_name_no_absolute_path(argument: str, told: str) -> None:
    assert shown(argument) == told


SAMPLES: dict[str, list[dict[str, Any]]] = {
    "refine": [
        {
            "model": model,
            "seed": seed,
            "max_drop": max_drop,
            "ratio": (150.0 + 100 * seed) * 2 * max_drop,
            "drop": 0.3 + 0.2 * seed,
            "seconds": 9.0,
        }
        for max_drop in (1.0, 0.5)
        for model in ("mnist-cnn", "mnist-fnn")
        for seed in (0, 1)
    ],
    "lenet": [
        {
            "model": "lenet-5-caffe",
            "seed": seed,
            "effort": 7,
            "n_bytes": 1500 + 100 * seed,
            "ratio": 1150.0 - 50 * seed,
            "error": 0.9 + 0.05 * seed,
            "error_before": 0.6,
        }
        for seed in (0, 1)
    ],
    "refine_few": [
        {"model": "mnist-fnn", "seed": seed, "n_calibration": n, "ratio": ratio + seed, "drop": 0.6, "seconds": 9.0}
        for seed in (0, 2)
        for n, ratio in ((2000, 90.0), (0, 30.0))
    ],
    "equal_sqnr": [
        {
            "model": model,
            "effort": 5,
            "original_bytes": 4000,
            "points": [
                {
                    "sqnr_db": 12.5,
                    "bits_per_param": 2.0,
                    "n_bytes": 1000,
                    "nncodec_bytes": 1100.4,
                    "saving_percent": 9.1,
                    "wanted_percent": 6.0,
                    "met": True,
                }
            ],
            "others": [
                {"name": name, "n_bytes": 2000, "sqnr_db": None if name in ("zstd", "zipnn") else 40.0}
                for name in ("fp16", "int8", "int8+zstd", "int4", "int4+zstd", "zstd", "zipnn", "fp16+zstd")
            ],
        }
        for model in ("silero", "gaussian")
    ],
    "real_peers": [
        {
            "model": "resemblyzer",
            "peer": peer,
            "bits": 3.0,
            "effort": effort,
            "n_params": 1_400_000,
            "sqnr_db": 18.0,
            "n_bytes": 1000,
            "peer_bytes": 1050.5,
            "saving_percent": 4.8,
            "wanted_percent": wanted,
            "met": met,
        }
        for peer in ("entropack", "nncodec")
        for effort, wanted, met in ((1, None, None), (5, 7.0, False))
    ],
    "efforts": [
        {
            "model": "silero",
            "effort": effort,
            "n_states": 64,
            "n_bytes": 1200 - 20 * effort,
            "bytes_at_equal_sqnr": 1200.0 - 20 * effort,
            "sqnr_db": 22.1,
            "pack_cpu_s": 2.0 * effort,
            "pack_peak_mb": 400.0,
        }
        for effort in (5, 1)
    ],
    "ablation": [
        {
            "model": "mnist-fnn",
            "effort": 5,
            "n_params": 185300,
            "sqnr_db": 22.0,
            "pack_cpu_s": {"context": 9.0, "context and VAE": 10.0},
            "bytes_at_equal_sqnr": {
                "tables": 4000.0,
                "tables and VAE": 3000.4,
                "context": 2000.0,
                "context and VAE": 1999.0,
            },
            "n_latents": {"tables and VAE": 64, "context and VAE": 0},
        }
    ],
}


def table_of(name: str) -> str:
    render, needed = TABLES[name]
    return render({key: {"rows": SAMPLES[key]} for key in needed})


SAMPLED = sorted(name for name, (_, needed) in TABLES.items() if set(needed) <= set(SAMPLES))


@pytest.mark.parametrize("name", SAMPLED)
def test_tables_have_whole_rows(name: str) -> None:
    lines = table_of(name).splitlines()
    assert len(lines) > 2
    assert len({line.count("|") for line in lines}) == 1


def test_efforts_are_told_against_the_default() -> None:
    assert "| silero | 1 | 64 | 1,180 B | +7.3 % | 22.10 dB | 2.0 s | 0.20 times | 400 MB |" in table_of("efforts")


def test_savings_stand_beside_what_was_aimed_at() -> None:
    assert table_of("real-peers").count("**4.8 %** | 7 % |") == 2


def test_refined_means_stand_in_order() -> None:
    rows = [line for line in table_of("refine").splitlines() if line.startswith("| mnist")]
    order = [("mnist-fnn", "0.5"), ("mnist-cnn", "0.5"), ("mnist-fnn", "1"), ("mnist-cnn", "1")]
    assert [tuple(row.split(" | ")[:2]) for row in rows] == [(f"| {model}", drop) for model, drop in order]
    assert "**200x** (150 – 250) | 0.40 (0.50) | ≤ 9 s" in rows[0]
    assert "**400x** (300 – 500)" in rows[2]
    assert "| 2,000 | 2 | **91x** (90 – 92) | 0.60 (0.60) | ≤ 9 s | 31x |" in table_of("refine-few")


def test_lenets_stand_below_the_literature() -> None:
    rows = [line.split(" | ") for line in table_of("lenet").splitlines()]
    miracle = next(n for n, row in enumerate(rows) if len(row) > 1 and "MIRACLE" in row[1])
    assert rows[miracle][2:5] == ["1.52 KB", "1,110x", "0.96 %"]
    assert rows[miracle + 1][2:4] == ["**1,550 B** (1,500 – 1,600)", "1,125x"]
    assert rows[miracle + 1][4] in ("0.92 % (0.90 – 0.95)", "0.93 % (0.90 – 0.95)")


def test_a_lenet_may_lose_what_its_validation_error_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(_tensors: Any, _path: Path, *, max_drop: float, **_options: Any) -> Any:
        task = SimpleNamespace(score_before=99.4, score_after=99.1, validation_drop=0.2, chosen="refined")
        return SimpleNamespace(task=task, archive_bytes=int(1000 * max_drop), sections={}, ratio=2.0)

    monkeypatch.setattr(wcompress, "pack", pack)
    monkeypatch.setattr(lenet, "baseline_task", lambda _name: SimpleNamespace(validate=lambda _model: 99.25))
    monkeypatch.setattr(lenet, "build_model", lambda *_: None)
    row = lenet.measure("lenet-5-caffe", {}, 0, 5)
    assert row["max_drop"] == pytest.approx(0.25)
    assert (row["n_bytes"], row["error"]) == (250, pytest.approx(0.9))


def test_models_stand_in_order_and_exact_formats_say_so() -> None:
    text = table_of("equal-sqnr")
    assert text.index("| gaussian |") < text.index("| silero |")
    assert "2.00x, exact" in table_of("plain-formats")


def test_the_summary_shows_one_row_for_each_model_with_all_figures() -> None:
    results = {
        "lossless": {
            "rows": [{"model": m, "dtype": "float32", "ratio": 1.2} for m in ("mnist-cnn", "mnist-fnn", "silero")]
        },
        "equal_accuracy": {
            "rows": [
                {
                    **accuracy_rows(20.0)[0],
                    "model": model,
                    "at": [
                        {
                            "drop": drop,
                            "n_bytes": 1.0,
                            "nncodec_bytes": 1.0,
                            "ratio": 30.0 * drop,
                            "nncodec_ratio": 20.0 * drop,
                            "saving_percent": 1.0,
                        }
                        for drop in (0.5, 1.0)
                    ],
                }
                for model in ("mnist-fnn", "mnist-cnn")
            ]
        },
        "refine": {"rows": SAMPLES["refine"]},
    }
    lines = TABLES["summary"][0](results).splitlines()
    assert lines[2:] == [
        "| mnist-fnn | 1.20x | 15.0x | **200x** | 10.0x |",
        "| mnist-cnn | 1.20x | 15.0x | **200x** | 10.0x |",
    ]


def test_a_table_without_its_result_is_empty(tmp_path: Path) -> None:
    text = "<!-- table: ablation -->\nstale\n<!-- end -->"
    assert "stale" not in filled(text, tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/ablation.json").write_text(json.dumps({"rows": SAMPLES["ablation"]}))
    assert "3,000 B" in filled(filled(text, tmp_path), tmp_path)


def compared(seed: int, before: float, n_bytes: float) -> dict[str, Any]:
    """A row of `equal_accuracy`: ours loses a point for each halving, NNCodec needs a tenth more, at best."""
    curve = [[before - lost, n_bytes / 2**lost] for lost in (0, 1, 2)]
    worse = [[score, 3 * size] for score, size in curve]
    better = [[score, 1.1 * size] for score, size in curve]
    return {
        "model": "mnist-fnn",
        "seed": seed,
        "effort": 5,
        "score_before": before,
        "curve": curve,
        "nncodec_curves": [{"points": worse}, {"points": better}],
    }


def drawn_of(model: str, series: str, drawn: list[refine_figure.Drawn]) -> list[refine_figure.Drawn]:
    return [point for point in drawn if (point.model, point.series) == (model, series)]


def test_the_figure_holds_means_and_spreads_of_every_series() -> None:
    rows = [compared(0, 98.0, 40_000), compared(1, 99.0, 20_000)]
    drawn = refine_figure.points(SAMPLES["refine"], rows)
    half, whole = drawn_of("mnist-fnn", "refined", drawn)
    assert (half.mark.label, half.mark.ratio, half.mark.ratio_spread) == ("0.5 allowed", 200.0, (150.0, 250.0))
    assert half.mark.score_spread == (0.3, 0.5)
    assert whole.mark.label == "1 allowed"
    ours, theirs = (drawn_of("mnist-fnn", name, drawn) for name in ("data-free", "nncodec"))
    assert [point.mark.score for point in ours] == list(refine_figure.LEVELS)
    at_one = ours[refine_figure.LEVELS.index(1.0)]
    ratios = [4 * 185_300 / 20_000, 4 * 185_300 / 10_000]
    assert at_one.mark.ratio_spread == pytest.approx(tuple(ratios))
    assert at_one.mark.ratio == pytest.approx(sum(ratios) / 2)
    assert at_one.n_seeds == 2
    assert theirs[3].mark.ratio == pytest.approx(at_one.mark.ratio / 1.1)
    (paper,) = drawn_of("mnist-fnn", "paper", drawn)
    assert (paper.mark.ratio, paper.mark.score, paper.mark.ratio_spread) == (32.0, 1.0, None)
    assert drawn_of("mnist-rnn", "refined", drawn) == drawn_of("mnist-rnn", "nncodec", drawn) == []


def test_a_level_that_one_training_does_not_reach_is_not_drawn() -> None:
    short = compared(1, 99.0, 20_000)
    short["curve"] = short["curve"][:2]  # ends at a loss of one point
    drawn = refine_figure.points([], [compared(0, 98.0, 40_000), short])
    assert [point.mark.score for point in drawn_of("mnist-fnn", "data-free", drawn)] == [0.25, 0.5, 0.75, 1.0]
    alone = drawn_of("mnist-fnn", "data-free", refine_figure.points([], [short]))
    assert alone[0].mark.ratio_spread is None


def test_figure_only_measures_nothing_and_writes_peers_that_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "refine.json").write_text(json.dumps({"rows": SAMPLES["refine"], "runs": []}))
    (results / "equal_accuracy.json").write_text(
        json.dumps({"dataset": "mnist", "rows": [compared(0, 98.0, 40_000), compared(1, 99.0, 20_000)]})
    )
    before = (results / "refine.json").read_text()
    monkeypatch.setattr(refine, "RESULTS", results)
    monkeypatch.setattr("sys.argv", ["refine", "--figure-only"])
    refine.main()
    assert "**400x** (300 – 500)" in capsys.readouterr().out
    assert (results / "refine.json").read_text() == before
    assert (results / "refine.png").read_bytes().startswith(b"\x89PNG")
    read = read_peers(results / "peers" / "mnist-fnn.json")
    assert (read.task, read.dataset, len(read.points)) == ("mnist-fnn", "mnist", len(refine_figure.LEVELS))
    at_one = read.points[3]
    assert (at_one.score, at_one.score_spread) == (97.5, (97.0, 98.0))


def test_several_drops_are_measured_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, float]] = []

    def measure(name: str, _tensors: Any, seed: int, max_drop: float) -> dict[str, Any]:
        seen.append((name, seed, max_drop))
        scores = {"score_before": 98.0, "score_after": 97.7, "drop": 0.3, "seconds": 1.0}
        scores |= {"validation_drop": 0.28, "validation_error": 0.15}
        return {"model": name, "seed": seed, "max_drop": max_drop, "n_bytes": 10, "ratio": 200.0, **scores}

    monkeypatch.setattr(refine, "measure", measure)
    monkeypatch.setattr(refine, "baseline", lambda *_: {})
    monkeypatch.setattr(refine, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["refine", "--only", "mnist-fnn", "--seeds", "0,1", "--max-drop", "0.5,1.0"])
    refine.main()
    assert seen == [("mnist-fnn", seed, drop) for seed in (0, 1) for drop in (0.5, 1.0)]
    rows = json.loads((tmp_path / "refine.json").read_text())["rows"]
    assert [(row["seed"], row["max_drop"]) for row in rows] == [(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]
    assert "mnist-fnn,refined,1 allowed,2," in (tmp_path / "refine.csv").read_text()


def test_one_scale_for_the_whole_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCOMPRESS_OFFLINE", "1")
    monkeypatch.setattr(reproduce, "TrainingConfig", lambda: TrainingConfig(hidden=(16,), latent_dim=8, epochs=3))
    task = load_task("mnist-rnn")
    torch.save(task.build().state_dict(), tmp_path / "m.pt")
    # Three epochs restore next to nothing, so that about nine tenths are wrong.
    assert 5 < reproduce.drop_with_one_scale(tmp_path / "m.pt", "mnist-rnn", 100.0) <= 100
