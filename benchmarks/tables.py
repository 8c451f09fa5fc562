"""Fills the tables of README.md, docs/benchmarks.md and docs/paper.md from the committed results.

    python -m benchmarks.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is around it is written by hand.
`tests/test_examples.py` fails where a document and the results differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lenet, real_tables, refine, refine_few
from benchmarks.common import markdown_table
from benchmarks.curves import accuracy_means, function_means, number

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/paper.md")
_MAX_DROP = 0.5
"""Points, in README's table."""

Results = dict[str, dict[str, Any]]
"""What `benchmarks/results/NAME.json` holds, by name."""


def _summary(results: Results) -> str:
    """The baselines at three qualities, every byte counted."""
    exact = {row["model"]: row["ratio"] for row in results["lossless"]["rows"] if row["dtype"] == "float32"}
    data_free = {
        row["model"]: row for row in accuracy_means(results["equal_accuracy"]["rows"]) if row["drop"] == _MAX_DROP
    }
    refined = {row["model"]: row for row in refine.summary(results["refine"]["rows"]) if row["max_drop"] == _MAX_DROP}
    heading = [
        "times smaller",
        "every bit kept",
        f"≤ {_MAX_DROP} points lost, without data",
        f"≤ {_MAX_DROP} points lost, retrained",
        f"NNCodec 2, {_MAX_DROP} points lost, without data",
    ]
    rows = [
        [
            model,
            f"{exact[model]:.2f}x",
            f"{number(data_free[model]['ratio'], '.1f')}x",
            f"**{refined[model]['ratio']:.0f}x**",
            f"{number(data_free[model]['nncodec_ratio'], '.1f')}x",
        ]
        for model in _ORDER
        if model in exact and model in data_free and model in refined
    ]
    return markdown_table(heading, rows)


def _reproduce(results: Results) -> str:
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
        for row in results["reproduce"]["models"]
    ]
    return markdown_table(heading, rows)


def _equal_sqnr(results: Results) -> str:
    heading = ["model", "effort", "SQNR", "bits per weight", "wcompress", "NNCodec", "saved"]
    rows = [
        [
            row["model"],
            str(row["effort"]),
            f"{point['sqnr_db']:.2f} dB",
            f"{point['bits_per_param']:.3f}",
            f"{point['n_bytes']:,} B",
            f"{point['nncodec_bytes']:,.0f} B",
            f"**{point['saving_percent']:.1f} %**",
        ]
        for row in _in_order(results["equal_sqnr"]["rows"])
        for point in row["points"]
    ]
    return markdown_table(heading, rows)


def _plain_formats(results: Results) -> str:
    names = ("fp16", "int8", "int8+zstd", "int4", "int4+zstd", "zstd", "zipnn")
    rows = [
        [row["model"], *(_format_of(row, name) for name in names)]
        for row in {row["model"]: row for row in _in_order(results["equal_sqnr"]["rows"])}.values()
    ]
    return markdown_table(["model", *names[:-1], "ZipNN"], rows)


def _format_of(row: dict[str, Any], name: str) -> str:
    found = next(other for other in row["others"] if other["name"] == name)
    quality = "exact" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
    return f"{row['original_bytes'] / found['n_bytes']:.2f}x, {quality}"


def _equal_accuracy(results: Results) -> str:
    heading = ["model", "effort", "accuracy", "points lost", "wcompress", "NNCodec", "saved", "range over trainings"]
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
        for row in _in_order(accuracy_means(results["equal_accuracy"]["rows"]))
    ]
    return markdown_table(heading, rows)


def _equal_function(results: Results) -> str:
    heading = ["output error", "effort", "wcompress", "NNCodec", "NNCodec with `opt_qp`", "saved", "saved on `opt_qp`"]
    rows = [
        [
            f"−{row['level_db']:.0f} dB",
            str(row["effort"]),
            f"{number(row['n_bytes'], ',.0f')} B",
            f"{number(row['nncodec_bytes'], ',.0f')} B",
            f"{number(row['nncodec_opt_qp_bytes'], ',.0f')} B",
            f"**{number(row['saving_percent'], '.1f')} %**",
            f"{number(row['saving_on_opt_qp_percent'], '.1f')} %",
        ]
        for row in function_means(results["equal_function"]["rows"])
    ]
    return markdown_table(heading, rows)


def _rate_distortion(results: Results) -> str:
    heading = ["source", "weights", "effort", "SQNR", "bits per weight", "above the bound"]
    rows = [
        [
            row["source"],
            f"{row['n_weights']:,}",
            str(row["effort"]),
            f"{row['sqnr_db']:.2f} dB",
            f"{row['bits_per_param']:.3f}",
            f"**{row['gap_bits']:.3f}**",
        ]
        for row in results["rate_distortion"]["points"]
    ]
    return markdown_table(heading, rows)


def _lossless(results: Results) -> str:
    heading = ["model", "dtype", "wcompress", "zstd -19", "ZipNN"]
    rows = [
        [
            row["model"],
            row["dtype"],
            f"**{row['ratio']:.3f}x**",
            f"{row['zstd_ratio']:.3f}x",
            f"{row['zipnn_ratio']:.3f}x",
        ]
        for row in _in_order(results["lossless"]["rows"])
    ]
    return markdown_table(heading, rows)


def _speed(results: Results) -> str:
    heading = ["", "weights", "bits per weight", "encode", "decode", "encodes", "decodes"]
    rows = [
        [
            row["name"] if row["effort"] is None else f"wcompress, {row['name']}",
            f"{row['n_params']:,}",
            f"{row['bits_per_param']:.2f}",
            f"{row['encode_s']['median']:.2f} s",
            f"{row['decode_s']['median']:.2f} s",
            *("" if row["effort"] is None else _times_as_fast(row, name) for name in ("encodes", "decodes")),
        ]
        for row in results["speed"]["rows"]
        if row["what"] == "library"
    ]
    return markdown_table(heading, rows)


def _times_as_fast(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_times_as_fast']:.2f} times as fast"


def _command_times(results: Results) -> str:
    by_model: dict[str, dict[str, Any]] = {}
    for row in results["speed"]["rows"]:
        if row["what"] == "command":
            by_model.setdefault(row["model"], {})[row["name"]] = row
    rows = [
        [
            model,
            *(
                f"{seconds:.1f} s"
                for name in ("pack", "unpack")
                for seconds in (commands[name]["first_s"], commands[name]["again_s"]["median"])
            ),
        ]
        for model, commands in by_model.items()
    ]
    heading = ["model", "`wcompress pack`, first run", "later runs", "`wcompress unpack`, first run", "later runs"]
    return markdown_table(heading, rows)


def _ablation(results: Results) -> str:
    names = ["tables", "tables and VAE", "context", "context and VAE"]
    heading = ["model", "weights", "SQNR", *names, "latents stored", "VAE saves", "CPU"]
    rows = []
    for row in sorted(results["ablation"]["rows"], key=lambda row: row["n_params"]):
        sizes, latents, cpu = row["bytes_at_equal_sqnr"], row["n_latents"], row["pack_cpu_s"]
        without, default = names[2:]
        rows.append(
            [
                row["model"],
                f"{row['n_params']:,}",
                f"{row['sqnr_db']:.2f} dB",
                *(f"{sizes[name]:,.0f} B" if name in sizes else "–" for name in names),
                " / ".join(f"{latents[name]:,}" if name in latents else "–" for name in (names[1], default)),
                f"{100 * (1 - sizes[default] / sizes[without]):.1f} %",
                f"{cpu[without]:.1f} / {cpu[default]:.1f} s",
            ]
        )
    return markdown_table(heading, rows)


def _refine(results: Results) -> str:
    return refine.table(results["refine"]["rows"])


def _lenet(results: Results) -> str:
    return lenet.table(results["lenet"]["rows"])


def _refine_few(results: Results) -> str:
    heading = ["model", "inputs", "trainings", "ratio, mean (range)", "test points lost, mean (most)", "time"]
    heading += ["ratio without data"]
    rows = []
    for row in refine_few.summary(results["refine_few"]["rows"]):
        plain = row["ratio_without_data"]
        rows.append(
            [
                row["model"],
                f"{row['n_calibration']:,}",
                str(row["n_seeds"]),
                f"**{row['ratio']:.0f}x** ({row['least_ratio']:.0f} – {row['most_ratio']:.0f})",
                f"{row['drop']:.2f} ({row['most_drop']:.2f})",
                f"≤ {row['seconds']:.0f} s",
                "" if plain is None else f"{plain:.0f}x",
            ]
        )
    return markdown_table(heading, rows)


def _floors(results: Results) -> str:
    heading = ["model", "SQNR", "bytes", "more than without", "worst tensor", "without", "worst row", "without"]
    rows = [
        [
            row["model"],
            f"{row['sqnr_db']:.2f} dB",
            f"{row['n_bytes']:,} B",
            f"**{100 * (row['n_bytes'] / row['bytes_without'] - 1):.1f} %**",
            *(
                f"{number(row[f'worst_{what}_db{suffix}'], '.1f')} dB"
                for what in ("tensor", "row")
                for suffix in ("", "_without")
            ),
        ]
        for row in _in_order(results["floors"]["rows"])
    ]
    return markdown_table(heading, rows)


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, whatever the order they were measured in; otherwise as they are."""
    return sorted(rows, key=lambda row: _ORDER.index(row["model"]))


_ORDER = ["gaussian", "laplacian", "mnist-fnn", "mnist-cnn", "mnist-rnn", "mnist-lstm", "blazeface", "silero"]

TABLES: dict[str, tuple[Callable[[Results], str], tuple[str, ...]]] = {
    "summary": (_summary, ("lossless", "equal_accuracy", "refine")),
    "reproduce": (_reproduce, ("reproduce",)),
    "equal-sqnr": (_equal_sqnr, ("equal_sqnr",)),
    "plain-formats": (_plain_formats, ("equal_sqnr",)),
    "equal-accuracy": (_equal_accuracy, ("equal_accuracy",)),
    "equal-function": (_equal_function, ("equal_function",)),
    "rate-distortion": (_rate_distortion, ("rate_distortion",)),
    "lossless": (_lossless, ("lossless",)),
    "large-folder": (real_tables.large_folder, ("large_folder",)),
    "dry-runs": (real_tables.dry_runs, ("large_folder",)),
    "engines": (real_tables.engines, ("engines",)),
    "large-lossless": (real_tables.large_lossless, ("large_lossless",)),
    "speed": (_speed, ("speed",)),
    "command-times": (_command_times, ("speed",)),
    "ablation": (_ablation, ("ablation",)),
    "floors": (_floors, ("floors",)),
    "real-models": (real_tables.real_models, ("real_models",)),
    "scale": (real_tables.scale, ("scale",)),
    "efforts": (real_tables.efforts, ("efforts",)),
    "real-peers": (real_tables.real_peers, ("real_peers",)),
    "calibrated-drop": (real_tables.calibrated_drop, ("calibrated",)),
    "calibrated-few": (real_tables.calibrated_few, ("calibrated",)),
    "calibrated-function": (real_tables.calibrated_function, ("calibrated",)),
    "calibrated-levels": (real_tables.calibrated_levels, ("calibrated",)),
    "refine": (_refine, ("refine",)),
    "lenet": (_lenet, ("lenet",)),
    "refine-few": (_refine_few, ("refine_few",)),
}
"""What makes each table, and the results it is made of."""


def filled(text: str, root: Path = ROOT) -> str:
    """A document with every table as the result files have it; empty where a result file is missing.

    Args:
        text: of the document.
        root: of the repository.

    Raises:
        KeyError: the document names a table that is not in `TABLES`.
    """

    def table(match: re.Match[str]) -> str:
        render, names = TABLES[match[1]]
        files = {name: root / "benchmarks" / "results" / f"{name}.json" for name in names}
        if not all(path.exists() for path in files.values()):
            return f"<!-- table: {match[1]} -->\n<!-- end -->"
        results = {name: json.loads(path.read_text()) for name, path in files.items()}
        return f"<!-- table: {match[1]} -->\n{render(results)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = ROOT / document
        path.write_text(filled(path.read_text()))
