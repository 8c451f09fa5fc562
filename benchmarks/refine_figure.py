"""Draws accuracy lost against true ratio for the four baselines, from committed results and nothing else.

`python -m benchmarks.refine` calls it at its end, `python -m benchmarks.refine --figure-only` nothing but it. Drawn are
refined archives (`refine.json`), ours without data and NNCodec 2 (`equal_accuracy.json`), and what the paper prints,
which counts latents only. Points are means over training seeds, bars go from the least to the most. Of the curves
without data the ratios are those at equal drops, interpolated as `benchmarks.equal_accuracy` tells.

Writes `refine.png`, its numbers as `refine.csv`, and NNCodec's points as `peers/MODEL.json`, for `wcompress report
--peers`.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.curves import means
from benchmarks.models import BASELINES, DEFAULT_EFFORT
from benchmarks.peers import ACCURACY_SETTINGS, least_bytes
from wcompress.blocks import BLOCK_SIZE
from wcompress.report.figures import BLUE, PURPLE, RED, SKY, Mark, drawing, plain_log_ticks, plot_marks
from wcompress.report.paper import LATENT_DIM, PAPER
from wcompress.report.peers import PeerPoint

LEVELS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Points lost, at which the curves without data are drawn."""
NNCODEC = f"NNCodec 2, best of {len(ACCURACY_SETTINGS)} settings"
SERIES = {
    "refined": ("*-", PURPLE, "wcompress --max-drop, refined on the task's inputs"),
    "data-free": ("o-", BLUE, "wcompress without data"),
    "nncodec": ("<--", SKY, f"{NNCODEC}, without data"),
    "paper": ("D", RED, "the paper's claim: latents only, as its authors count; no file size"),
}
"""Marker and line, colour, legend."""
_STYLES: dict[str, dict[str, Any]] = {"refined": {"markersize": 12}, "paper": {"markerfacecolor": "white"}}
_DIGITS = 3
"""After the point: far below any spread, and the same on every machine."""


@dataclass(frozen=True)
class Drawn:
    """A point of the figure.

    Attributes:
        model: name of the baseline.
        series: one of `SERIES`.
        n_seeds: trainings that it is a mean over.
        mark: `score` holds points lost.
    """

    model: str
    series: str
    n_seeds: int
    mark: Mark


def points(refined: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """What is drawn.

    Args:
        refined: rows of `refine.json`.
        compared: rows of `equal_accuracy.json`.
    """
    found: list[Drawn] = []
    for model in BASELINES:
        some = sorted((row for row in refined if row["model"] == model), key=lambda row: row["max_drop"])
        found += [
            _point(model, "refined", row["n"], f"{row['max_drop']:g} allowed", row)
            for row in means(some, ("max_drop",), ("ratio", "drop"))
        ]
        curves = _curves([row for row in compared if row["model"] == model and row["effort"] == DEFAULT_EFFORT])
        found += [
            _point(model, series, row["n"], "", row)
            for series in ("data-free", "nncodec")
            for row in means([row for row in curves if row["series"] == series], ("level",), ("ratio", "drop"))
            if row["ratio"] is not None
        ]
        printed = PAPER[model]
        mark = Mark("", BLOCK_SIZE / LATENT_DIM, float(printed.score_before - printed.score_after))
        found.append(Drawn(model, "paper", 1, mark))
    return found


def _point(model: str, series: str, n_seeds: int, label: str, row: Mapping[str, Any]) -> Drawn:
    spreads = [tuple(row[f"{name}_spread"]) if n_seeds > 1 else None for name in ("ratio", "drop")]
    return Drawn(model, series, n_seeds, Mark(label, row["ratio"], row["drop"], *spreads))


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ratios at each level, seed by seed; None where a curve does not reach it."""
    found: list[dict[str, Any]] = []
    for row in rows:
        n_bytes = 4 * PAPER[row["model"]].n_params  # float32, and the baselines have just the paper's counts
        theirs = [curve["points"] for curve in row["nncodec_curves"]]
        for series, curves in (("data-free", [row["curve"]]), ("nncodec", theirs)):
            for level in LEVELS:
                size = least_bytes(curves, row["score_before"] - level)
                ratio = None if size is None else n_bytes / size
                found.append({"series": series, "level": level, "ratio": ratio, "drop": level})
    return found


def peers(drawn: Sequence[Drawn], compared: Sequence[Mapping[str, Any]]) -> dict[str, list[PeerPoint]]:
    """NNCodec's points by model, as `wcompress report --peers` takes them: scores instead of points lost.

    Args:
        drawn: what `points` gave.
        compared: rows of `equal_accuracy.json`.
    """
    found: dict[str, list[PeerPoint]] = {}
    for point in drawn:
        if point.series != "nncodec":
            continue
        rows = [row for row in compared if row["model"] == point.model and row["effort"] == DEFAULT_EFFORT]
        scores = [row["score_before"] - point.mark.score for row in rows]
        spread = (min(scores), max(scores)) if len(scores) > 1 else None
        peer = PeerPoint(NNCODEC, point.mark.ratio, statistics.fmean(scores), point.mark.ratio_spread, spread)
        found.setdefault(point.model, []).append(peer)
    return found


def texts(folder: Path) -> dict[str, str]:
    """The files of numbers: name below the folder of results → content.

    Args:
        folder: that holds the results to draw from; those that are not there are not drawn.
    """
    drawn, compared, dataset = _read(folder)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    columns = ["ratio", "ratio_least", "ratio_most", "drop", "drop_least", "drop_most"]
    writer.writerow(["model", "series", "setting", "n_seeds", *columns])
    for point in drawn:
        mark = point.mark
        numbers = [mark.ratio, *(mark.ratio_spread or ("", "")), mark.score, *(mark.score_spread or ("", ""))]
        cells = _rounded(numbers)
        writer.writerow([point.model, point.series, mark.label, point.n_seeds, *cells])
    found = {"refine.csv": out.getvalue()}
    for model, some in peers(drawn, compared).items():
        rows = [{key: _rounded(value) for key, value in peer.to_json().items()} for peer in some]
        document = {"task": model, "dataset": dataset, "peers": rows}
        found[f"peers/{model}.json"] = json.dumps(document, indent=1, allow_nan=False) + "\n"
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _read(folder: Path) -> tuple[list[Drawn], list[dict[str, Any]], str]:
    documents = []
    for name in ("refine", "equal_accuracy"):
        path = folder / f"{name}.json"
        documents.append(json.loads(path.read_text()) if path.exists() else {"rows": []})
    refined, compared = documents
    return points(refined["rows"], compared["rows"]), compared["rows"], compared.get("dataset", "mnist")


def picture(drawn: Sequence[Drawn]) -> bytes:
    """The figure as PNG: a panel for each baseline, log ratio across, points lost downwards."""
    with drawing(width=11, height=8.6) as (figure, png):
        for position, model in enumerate(BASELINES, start=1):
            axes = figure.add_subplot(2, 2, position)
            axes.set_xscale("log")
            seeds: list[str] = []
            for name, (form, colour, label) in SERIES.items():
                some = [point for point in drawn if (point.model, point.series) == (model, name)]
                marks = [point.mark for point in some]
                plot_marks(axes, marks, form, colour, label, **_STYLES.get(name, {}))
                if some and name != "paper":
                    seeds.append(f"{name} {some[0].n_seeds}")
                for mark in marks:
                    axes.annotate(mark.label, (mark.ratio, mark.score), (7, 5), textcoords="offset points", fontsize=9)
            axes.margins(x=0.1)
            axes.set_ylim(max([1.6, *(point.mark.score + 0.1 for point in drawn)]), -0.15)
            plain_log_ticks(axes.xaxis)
            axes.set_title(f"{model} (trainings: {', '.join(seeds)})", fontsize=11)
            axes.set_xlabel("ratio (×): bytes of the model / every byte of the file")
            axes.set_ylabel("points of test accuracy lost")
        figure.suptitle(
            "Accuracy lost against ratio on MNIST, every byte counted; further up and right is better\n"
            "means over trainings, bars from the least to the most",
            fontsize=12,
        )
        handles = {label: handle for axes in figure.axes for handle, label in zip(*_legend(axes), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=10)
    return png.getvalue()


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, labels


def write(folder: Path) -> list[Path]:
    """Draw and write everything into the folder of results.

    Args:
        folder: that holds the results to draw from.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for name, text in texts(folder).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        written.append(path)
    image = folder / "refine.png"
    image.write_bytes(picture(_read(folder)[0]))
    return [image, *written]
