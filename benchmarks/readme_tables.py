"""Puts the committed results into README's tables, between `<!-- table: FILE -->` and `<!-- end -->`.

    python -m benchmarks.readme_tables

`tests/test_examples.py` fails when README and results differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import refine_few
from benchmarks.common import markdown_table
from benchmarks.curves import accuracy_means, function_means, number
from benchmarks.rate_distortion import GAP_WANTED
from benchmarks.refine import tables

ROOT = Path(__file__).parent.parent


def _reproduce(result: dict[str, Any]) -> str:
    heading = ["model", "parameters", "accuracy", "restored", "latent ratio (the paper's)", "ratio (every byte)"]
    rows = [
        [
            row["model"],
            f"{row['n_params']:,}",
            f"{row['score_before']:.2f} %",
            f"{row['score_after']:.2f} %",
            f"{row['latent_ratio']:.1f}x",
            f"**{row['ratio']:.2f}x**",
        ]
        for row in result["models"]
    ]
    return markdown_table(heading, rows)


def _equal_sqnr(result: dict[str, Any]) -> str:
    heading = ["model", "effort", "SQNR", "bits a weight", "wcompress", "NNCodec", "saved", "wanted", ""]
    rows = [
        [
            row["model"],
            str(row["effort"]),
            f"{point['sqnr_db']:.2f} dB",
            f"{point['bits_per_param']:.3f}",
            f"{point['n_bytes']:,} B",
            f"{point['nncodec_bytes']:,.0f} B",
            f"**{point['saving_percent']:.1f} %**",
            "–" if point["wanted_percent"] is None else f"{point['wanted_percent']:.0f} %",
            _met(point["met"]),
        ]
        for row in _in_order(result["rows"])
        for point in row["points"]
    ]
    names = ("fp16", "int8", "int8+zstd", "int4", "int4+zstd", "zstd", "zipnn")
    others = [
        [row["model"], *(_format_of(row, name) for name in names)]
        for row in {row["model"]: row for row in _in_order(result["rows"])}.values()
    ]
    return (
        "Whole archives at an equal SQNR; NNCodec's bytes interpolated between its own, the best of five settings:\n\n"
        f"{markdown_table(heading, rows)}\n\n"
        "Formats that have one quality only:\n\n"
        f"{markdown_table(['model', *names[:-1], 'ZipNN'], others)}"
    )


def _format_of(row: dict[str, Any], name: str) -> str:
    found = next(other for other in row["others"] if other["name"] == name)
    quality = "exact" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
    return f"{row['original_bytes'] / found['n_bytes']:.2f}x, {quality}"


def _equal_accuracy(result: dict[str, Any]) -> str:
    heading = ["model", "effort", "accuracy", "drop", "wcompress", "NNCodec", "saved", "by seed"]
    rows = [
        [
            row["model"],
            str(row["effort"]),
            f"{row['score_before']:.2f} %",
            f"{row['drop']:.1f}",
            f"{number(row['n_bytes'], ',.0f')} B, {number(row['ratio'], '.1f')}x",
            f"{number(row['nncodec_bytes'], ',.0f')} B, {number(row['nncodec_ratio'], '.1f')}x",
            f"**{number(row['saving_percent'], '.1f')} %**",
            "–" if (spread := row["saving_percent_spread"]) is None else f"{spread[0]:.1f} to {spread[1]:.1f} %",
        ]
        for row in _in_order(accuracy_means(result["rows"]))
    ]
    return (
        "Bytes at an equal loss of test accuracy, without data, means over training seeds; wanted: 10 % saved on"
        f" average, nowhere more bytes:\n\n{markdown_table(heading, rows)}"
    )


def _equal_function(result: dict[str, Any]) -> str:
    heading = ["output error", "effort", "wcompress", "NNCodec", "with `opt_qp`", "saved", "on `opt_qp`", "wanted", ""]
    rows = [
        [
            f"−{row['level_db']:.0f} dB",
            str(row["effort"]),
            f"{number(row['n_bytes'], ',.0f')} B",
            f"{number(row['nncodec_bytes'], ',.0f')} B",
            f"{number(row['nncodec_opt_qp_bytes'], ',.0f')} B",
            f"**{number(row['saving_percent'], '.1f')} %**",
            f"{number(row['saving_on_opt_qp_percent'], '.1f')} %",
            "10 %",
            _met(None if row["saving_percent"] is None else row["saving_percent"] >= 10),
        ]
        for row in function_means(result["rows"])
    ]
    return (
        "Bytes at an equal error of the output, a residual network with BatchNorm and tensors of very different scales,"
        f" means over training seeds:\n\n{markdown_table(heading, rows)}"
    )


def _rate_distortion(result: dict[str, Any]) -> str:
    heading = ["source", "weights", "effort", "SQNR", "bits a weight", "above the bound", "wanted", ""]
    highest = max(row["effort"] for row in result["points"])
    rows = []
    for row in result["points"]:
        # What was asked for: the Gaussian, at the highest effort.
        judged = row["source"] == "gaussian" and row["effort"] == highest
        rows.append(
            [
                row["source"],
                f"{row['n_weights']:,}",
                str(row["effort"]),
                f"{row['sqnr_db']:.2f} dB",
                f"{row['bits_per_param']:.3f}",
                f"**{row['gap_bits']:.3f}**",
                f"≤ {GAP_WANTED}" if judged else "–",
                _met(row["gap_bits"] <= GAP_WANTED if judged else None),
            ]
        )
    return (
        "Bits a weight above the Shannon bound, every byte of the archive counted; of the Laplacian the lower bound,"
        f" which no code reaches at few bits:\n\n{markdown_table(heading, rows)}"
    )


def _lossless(result: dict[str, Any]) -> str:
    heading = ["model", "dtype", "wcompress", "zstd -19", "ZipNN", "wanted", ""]
    rows = [
        [
            row["model"],
            row["dtype"],
            f"**{row['ratio']:.3f}x**",
            f"{row['zstd_ratio']:.3f}x",
            f"{row['zipnn_ratio']:.3f}x",
            "–" if row["wanted_ratio"] is None else f"{row['wanted_ratio']:.2f}x",
            _met(row["met"]),
        ]
        for row in _in_order(result["rows"])
    ]
    return f"`--method lossless`, every bit restored:\n\n{markdown_table(heading, rows)}"


def _speed(result: dict[str, Any]) -> str:
    tables: list[str] = []
    library = [row for row in result["rows"] if row["what"] == "library"]
    if library:
        heading = ["", "weights", "bits a weight", "encode", "decode", "encodes", "decodes"]
        rows = [
            [
                row["name"] if row["effort"] is None else f"wcompress, {row['name']}",
                f"{row['n_params']:,}",
                f"{row['bits_per_param']:.2f}",
                f"{row['encode_s']['median']:.2f} s",
                f"{row['decode_s']['median']:.2f} s",
                *(
                    "" if row["effort"] is None else _times_as_fast(row, name, met)
                    for name, met in (("encodes", "encode_met"), ("decodes", "decode_met"))
                ),
            ]
            for row in library
        ]
        tables.append(
            "Gaussian weights at about 2 bits, medians; wanted of NNCodec's speed: 5 times to encode at effort 1, a"
            f" third at the default effort, twice to decode:\n\n{markdown_table(heading, rows)}"
        )
    commands = [row for row in result["rows"] if row["what"] == "command"]
    if commands:
        heading = ["command", "model", "first run", "later runs", "wanted", ""]
        rows = [
            [
                f"`wcompress {row['name']}`",
                row["model"],
                f"{row['first_s']:.1f} s",
                f"{row['again_s']['median']:.1f} s",
                f"< {row['limit_s']:.0f} s",
                _met(row["first_met"] and row["again_met"]),
            ]
            for row in commands
        ]
        tables.append(f"The commands, from start to end:\n\n{markdown_table(heading, rows)}")
    return "\n\n".join(tables)


def _times_as_fast(row: dict[str, Any], name: str, met: str) -> str:
    return f"{row[f'{name}_times_as_fast']:.2f} times as fast{'' if row[met] is None else f', {_met(row[met])}'}"


def _ablation(result: dict[str, Any]) -> str:
    heading = ["model", "effort", "SQNR", "tables", "tables and VAE", "context", "context and VAE", "latents"]
    rows = []
    for row in _in_order(result["rows"]):
        sizes = row["bytes_at_equal_sqnr"]
        rows.append(
            [row["model"], str(row["effort"]), f"{row['sqnr_db']:.2f} dB"]
            + [f"{sizes[name]:,.0f} B" for name in heading[3:7]]
            + [" / ".join(f"{row['n_latents'][name]:,}" for name in (heading[4], heading[6]))]
        )
    return f"What each part of the model saves, at an equal SQNR:\n\n{markdown_table(heading, rows)}"


def _refine(result: dict[str, Any]) -> str:
    return (
        f"{tables(result['rows'])}\n\n"
        "![Points of accuracy lost against the ratio, for the four networks](benchmarks/results/refine.png)\n\n"
        "Points are means over training seeds, bars go from the least to the most. Every byte is counted but at the"
        " paper's point, hollow, which counts latents only, as its authors do. The numbers are in"
        " [refine.csv](benchmarks/results/refine.csv), NNCodec's in [peers/](benchmarks/results/peers) as"
        " `wcompress report --peers` takes them."
    )


def _refine_few(result: dict[str, Any]) -> str:
    heading = ["model", "inputs", "training seeds", "ratio, mean (least – most)", "wanted", "drop on test, mean (most)"]
    heading += ["time", "without data"]
    rows = []
    for row in refine_few.summary(result["rows"]):
        met = None if row["goal"] is None else row["ratio"] >= row["goal"] and row["most_drop"] <= refine_few.MAX_DROP
        plain = row["ratio_without_data"]
        rows.append(
            [
                row["model"],
                f"{row['n_calibration']:,}",
                str(row["n_seeds"]),
                f"**{row['ratio']:.0f}x** ({row['least_ratio']:.0f} – {row['most_ratio']:.0f})",
                "" if met is None else f"{row['goal']:.0f}x at ≤ {refine_few.MAX_DROP:g} point: {_met(met)}",
                f"{row['drop']:.2f} ({row['most_drop']:.2f})",
                f"≤ {row['seconds']:.0f} s",
                "" if plain is None else f"{plain:.0f}x",
            ]
        )
    return (
        "`--max-drop 1.0` with few training images, without labels; the drop is allowed on the validation split and"
        f" reported on the test set:\n\n{markdown_table(heading, rows)}"
    )


def _met(met: bool | None) -> str:
    return {True: "met", False: "missed", None: ""}[met]


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, whatever the order they were measured in; otherwise as they are."""
    return sorted(rows, key=lambda row: _ORDER.index(row["model"]))


_ORDER = ["gaussian", "laplacian", "mnist-fnn", "mnist-cnn", "mnist-rnn", "mnist-lstm", "blazeface", "silero"]

RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "benchmarks/results/reproduce.json": _reproduce,
    "benchmarks/results/equal_sqnr.json": _equal_sqnr,
    "benchmarks/results/equal_accuracy.json": _equal_accuracy,
    "benchmarks/results/equal_function.json": _equal_function,
    "benchmarks/results/rate_distortion.json": _rate_distortion,
    "benchmarks/results/lossless.json": _lossless,
    "benchmarks/results/speed.json": _speed,
    "benchmarks/results/ablation.json": _ablation,
    "benchmarks/results/refine.json": _refine,
    "benchmarks/results/refine_few.json": _refine_few,
}


def filled(text: str, root: Path = ROOT) -> str:
    """README with every table as its result file says; nothing where the result is not there."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        if not (root / name).exists():
            return f"<!-- table: {name} -->\n<!-- end -->"
        result = json.loads((root / name).read_text())
        return f"<!-- table: {name} -->\n{RENDERERS[name](result)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
