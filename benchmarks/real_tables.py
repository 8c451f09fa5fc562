"""The tables of docs/benchmarks.md about real and large models; see `benchmarks.tables`."""

from __future__ import annotations

from typing import Any

from benchmarks.common import markdown_table
from benchmarks.curves import number
from wcompress.codec.options import PackOptions

Results = dict[str, dict[str, Any]]
DEFAULT_EFFORT = PackOptions().effort


def real_models(results: Results) -> str:
    heading = ["model", "parameters", "bytes", "bits", "worst tensor", "worst row", "mean cosine", "same answer"]
    heading += ["output", "weights alone", "the rest alone"]
    rows = []
    for row in sorted(results["real_models"]["rows"], key=lambda row: (row["output"] is None, -row["n_params"])):
        output = row["output"] or {}
        rows.append(
            [
                row["model"],
                f"{row['n_params']:,}",
                f"{row['n_bytes']:,} B",
                f"{row['bits_per_param']:.2f}",
                f"{row['worst_tensor_db']:.1f} dB",
                f"{row['worst_row_db']:.1f} dB",
                number(output.get("mean_cosine"), ".4f"),
                f"{number(output.get('agreement'), '.1f')} %" if output else "–",
                *(
                    f"{output[name]:.1f} dB" if output else "–"
                    for name in ("snr_db", "weights_snr_db", "others_snr_db")
                ),
            ]
        )
    return markdown_table(heading, rows)


def scale(results: Results) -> str:
    heading = ["model", "options", "bytes", "bits", "SQNR", "above R(D)", "pack", "memory", "unpack", "memory"]
    rows = [
        [
            row["model"],
            row["options"],
            f"{row['n_bytes']:,} B",
            f"{row['bits_per_param']:.3f}",
            f"{row['sqnr_db']:.2f} dB",
            "–" if row["bits_above_rd"] is None else f"{row['bits_above_rd']:.3f} bits",
            f"{row['pack_s']:.0f} s ({row['pack_cpu_s']:.0f} s of CPU)",
            f"{row['pack_peak_mb']:.0f} MB",
            f"{row['unpack_s']:.1f} s",
            f"{row['unpack_peak_mb']:.0f} MB",
        ]
        for row in results["scale"]["rows"]
    ]
    return markdown_table(heading, rows)


def efforts(results: Results) -> str:
    heading = [
        "model",
        "effort",
        "states",
        "bytes",
        "more than the default",
        "SQNR",
        "CPU",
        "of the default's",
        "memory",
    ]
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in results["efforts"]["rows"]:
        by_model.setdefault(row["model"], []).append(row)
    rows = []
    for model, of_model in by_model.items():
        default = next((row for row in of_model if row["effort"] == DEFAULT_EFFORT), None)
        for row in sorted(of_model, key=lambda row: row["effort"]):
            more = times = None
            if default is not None:
                more = 100 * (row["bytes_at_equal_sqnr"] / default["bytes_at_equal_sqnr"] - 1)
                times = row["pack_cpu_s"] / default["pack_cpu_s"]
            rows.append(
                [
                    model,
                    str(row["effort"]),
                    f"{row['n_states']:,}",
                    f"{row['n_bytes']:,} B",
                    f"{number(more, '+.1f')} %",
                    f"{row['sqnr_db']:.2f} dB",
                    f"{row['pack_cpu_s']:.1f} s",
                    f"{number(times, '.2f')} times",
                    f"{row['pack_peak_mb']:.0f} MB",
                ]
            )
    return markdown_table(heading, rows)


def real_peers(results: Results) -> str:
    heading = ["model", "peer", "bits", "SQNR", "peer's bytes", "wcompress", "saved", "aim", "effort 1", "saved"]
    found: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for row in results["real_peers"]["rows"]:
        found.setdefault((row["peer"], row["model"], row["bits"]), {})[row["effort"]] = row
    rows = []
    sizes = {row["model"]: row["n_params"] for row in results["real_peers"]["rows"]}
    for peer, model, bits in sorted(found, key=lambda key: (key[0] != "nncodec", sizes[key[1]], key[2])):
        by_effort = found[peer, model, bits]
        if DEFAULT_EFFORT not in by_effort:
            continue
        best, fast = by_effort[DEFAULT_EFFORT], by_effort.get(1)
        rows.append(
            [
                model,
                {"nncodec": "NNCodec", "entropack": "EntroPack"}[peer],
                f"{bits:.0f}",
                f"{best['sqnr_db']:.2f} dB",
                f"{best['peer_bytes']:,.0f} B",
                f"{best['n_bytes']:,} B",
                f"**{best['saving_percent']:.1f} %**",
                "–" if best["wanted_percent"] is None else f"{best['wanted_percent']:.0f} %",
                *(["–", "–"] if fast is None else [f"{fast['n_bytes']:,} B", f"{fast['saving_percent']:.1f} %"]),
            ]
        )
    return markdown_table(heading, rows)


def large_lossless(results: Results) -> str:
    heading = ["codec", "ratio", "pack, CPU", "times ZipNN's", "wall", "memory", "unpack, CPU", "times ZipNN's", "wall"]
    heading += ["memory"]
    found = {row["name"]: row for row in results["large_lossless"]["rows"]}
    zipnn = found.get("zipnn", {})
    rows = []
    for name, row in found.items():
        if row["unavailable"]:
            rows.append([name, f"unavailable: {row['unavailable']}", *["–"] * (len(heading) - 2)])
            continue
        cells = [name, f"**{row['ratio']:.3f}x**"]
        for what in ("pack", "unpack"):
            base = zipnn.get(f"{what}_cpu_s")
            cells += [
                f"{row[f'{what}_cpu_s']:.1f} s",
                "–" if base is None else f"{row[f'{what}_cpu_s'] / base:.1f}",
                f"{row[f'{what}_s']:.1f} s",
                f"{row[f'{what}_peak_mb']:.0f} MB",
            ]
        rows.append(cells)
    return markdown_table(heading, rows)


def large_folder(results: Results) -> str:
    heading = [
        "effort",
        "model",
        "ratio",
        "SQNR",
        "pack",
        "memory",
        "unpack",
        "memory",
        "one tensor",
        "of the files read",
    ]
    rows = [
        [
            f"{row['effort']}",
            f"{row['original_bytes'] / 1e9:.1f} GB",
            f"{row['original_bytes'] / row['n_bytes']:.2f}x",
            f"{row['sqnr_db']:.2f} dB",
            f"**{row['pack_mb_s']:.0f} MB/s**",
            f"{row['pack_peak_mb']:.0f} MB",
            f"**{row['unpack_mb_s']:.0f} MB/s**",
            f"{row['unpack_peak_mb']:.0f} MB",
            f"{row['one_tensor']['tensor_bytes'] / 1e6:.1f} MB in {1000 * row['one_tensor']['s']:.0f} ms",
            f"{100 * row['one_tensor']['read_share']:.2f} %",
        ]
        for row in results["large_folder"]["rows"]
        if row["model"] == "generated"
    ]
    return markdown_table(heading, rows)


def engines(results: Results) -> str:
    rows = [
        [
            row["engine"],
            f"{row['effort']}",
            f"{row['s']:.1f} s",
            f"{row['undisturbed_s']:.1f} s" if "undisturbed_s" in row else "–",
            f"{row.get('kills', 0)}",
            "yes" if row["same_bytes"] else "no",
        ]
        for row in results["engines"]["rows"]
    ]
    heading = ["engine", "effort", "time", "without kills", "workers killed", "the bytes of one process"]
    return markdown_table(heading, rows)


def dry_runs(results: Results) -> str:
    heading = [
        "model",
        "effort",
        "dry run",
        "memory",
        "bytes told",
        "packed",
        "time told",
        "packed",
        "memory told",
        "packed",
    ]
    rows = []
    for row in results["large_folder"]["rows"]:
        dry, packed = row["dry_run"], row["model"] == "generated"
        rows.append(
            [
                f"{row['model']}, {row['original_bytes'] / 1e9:.1f} GB",
                f"{row['effort']}",
                f"{dry['s']:.0f} s",
                f"{dry['peak_mb']:.0f} MB",
                f"{dry['archive_bytes']:,} B",
                f"{row['n_bytes']:,} B" if packed else "–",
                f"{dry['seconds']:.0f} s",
                f"{row['pack_s']:.0f} s" if packed else "–",
                f"{dry['peak_bytes'] / 1e6:.0f} MB",
                f"{row['pack_peak_mb']:.0f} MB" if packed else "–",
            ]
        )
    return markdown_table(heading, rows)


def calibrated_drop(results: Results) -> str:
    heading = ["model", "training", "bytes", "ratio", "aim", "lost on validation", "lost on test", "time", "chosen"]
    rows = [
        [
            row["model"],
            f"{row['seed']}",
            f"**{row['n_bytes']:,} B**",
            f"{row['ratio']:.1f}x",
            "–" if row["wanted_bytes"] is None else f"{row['wanted_bytes']:,} B",
            f"{row['validation_drop']:.2f}",
            f"{row['test_drop']:.2f}",
            f"{row['s']:.0f} s",
            row["chosen"],
        ]
        for row in _of_kind(results, "drop")
    ]
    return markdown_table(heading, rows)


def calibrated_few(results: Results) -> str:
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in _of_kind(results, "few inputs"):
        found.setdefault((row["model"], row["seed"]), {})[row["n_inputs"]] = row
    counts = sorted({n for by_count in found.values() for n in by_count})
    heading = ["model", "training", "bytes", *(f"{n:,} inputs" if n else "none" for n in counts)]
    rows = [
        [
            model,
            f"{seed}",
            f"{by_count[min(by_count)]['n_bytes']:,} B",
            *(f"{by_count[n]['kl_nats']:.4f}" if n in by_count else "–" for n in counts),
        ]
        for (model, seed), by_count in found.items()
    ]
    return markdown_table(heading, rows)


def calibrated_function(results: Results) -> str:
    heading = ["model", "target", "without data", "calibrated", "saved", "held out", "test images", "lost on test"]
    found: dict[tuple[str, str, int, float], dict[str, dict[str, Any]]] = {}
    for row in _of_kind(results, "function target"):
        found.setdefault((row["model"], row["target"], row["seed"], row["level"]), {})[row["way"]] = row
    rows = []
    for (model, target, _, level), by_way in found.items():
        if len(by_way) < 2:
            continue
        before, after = by_way["data-free"], by_way["calibrated"]
        key, words = {"output_snr": ("output_snr_db", "{:.2f} dB"), "max_kl": ("kl_nats", "{:.4f} nats")}[target]
        rows.append(
            [
                model,
                {"output_snr": f"{level:g} dB", "max_kl": f"{level:g} nats"}[target],
                f"{before['n_bytes']:,} B",
                f"{after['n_bytes']:,} B",
                f"**{100 * (1 - after['n_bytes'] / before['n_bytes']):.1f} %**",
                words.format(after[key]),
                words.format(after[f"test_{key}"]),
                f"{after['test_drop']:.2f}",
            ]
        )
    return markdown_table(heading, rows)


def calibrated_levels(results: Results) -> str:
    heading = ["network", "training", "at", "without data", "calibrated", "saved"]
    found: dict[tuple[str, int, float], dict[str, float | None]] = {}
    for row in _of_kind(results, "levels"):
        for point in row["at"]:
            found.setdefault((row["model"], row["seed"], point["level"]), {})[row["way"]] = point["n_bytes"]
    rows = []
    for (model, seed, level), by_way in found.items():
        before, after = by_way.get("data-free"), by_way.get("calibrated")
        saved = None if before is None or after is None else 100 * (1 - after / before)
        rows.append(
            [
                model,
                f"{seed}",
                _LEVELS[model].format(level),
                *("–" if n is None else f"{n:,.0f} B" for n in (before, after)),
                "–" if saved is None else f"**{saved:.1f} %**",
            ]
        )
    return markdown_table(heading, rows)


_LEVELS = {
    "residual": "{:.0f} dB of the output",
    "efficientnet-lite0": "{:.0f} % the same answer",
    "minilm": "mean cosine {:.3f}",
}


def _of_kind(results: Results, kind: str) -> list[dict[str, Any]]:
    return [row for row in results["calibrated"]["rows"] if row["kind"] == kind]
