"""What benchmarks compute from their measurements. The measurements themselves are not repeated here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ablation import bytes_at_equal_sqnr, pack_model
from benchmarks.common import merged, shown
from benchmarks.curves import Span, accuracy_means, means, walk
from benchmarks.equal_accuracy import verdict
from benchmarks.equal_function import ResNet, output_db, rescale, scores_with, weights_of
from benchmarks.equal_sqnr import bracketing_qps
from benchmarks.peers import interpolate_bytes, least_bytes, qp_of_step, step_size
from benchmarks.readme_tables import RENDERERS, filled
from benchmarks.speed import against


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
        {"model": "mnist-fnn", "seed": seed, "ratio": 150.0 + 100 * seed, "drop": 0.3 + 0.2 * seed, "seconds": 9.0}
        for seed in (0, 1)
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
    "ablation": [
        {
            "model": "mnist-fnn",
            "effort": 5,
            "sqnr_db": 22.0,
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


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_tables_have_whole_rows(name: str) -> None:
    text = RENDERERS[f"benchmarks/results/{name}.json"]({"rows": SAMPLES[name]})
    for table in text.split("\n\n")[1::2]:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    if name == "refine":
        assert "**200x** (150 – 250)" in text
        assert "met" in text
    if name == "equal_sqnr":
        assert text.index("| gaussian |") < text.index("| silero |")
        assert "2.00x, exact" in text


def test_a_table_without_its_result_is_empty(tmp_path: Path) -> None:
    text = "<!-- table: benchmarks/results/ablation.json -->\nstale\n<!-- end -->"
    assert "stale" not in filled(text, tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/ablation.json").write_text(json.dumps({"rows": SAMPLES["ablation"]}))
    assert "3,000 B" in filled(filled(text, tmp_path), tmp_path)
