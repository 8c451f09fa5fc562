"""`wcompress report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wcompress.cli.common import Output, common_options, data_dir_option, model_options, parse_sizes, times
from wcompress.cli.standard_output import not_standard_output

if TYPE_CHECKING:
    from wcompress.report.rows import Row
    from wcompress.report.sweep_results import MeanReport, Report

_EPILOG = """Examples:

\b
  wcompress report model.pt --task mnist-fnn -o report
  wcompress report model.pt --task my_task.py -o report -f --json
  wcompress report model.pt --task mnist-fnn -o report --refine on     minutes for each refined point
  wcompress report seed0.pt seed1.pt seed2.pt --task mnist-fnn -o report     means and ranges
  wcompress report model.pt --task mnist-fnn -o report --peers peers.json

\b
A file for --peers; the spreads ([least, most]), the task and the dataset are optional:
  {"task": "mnist-fnn", "dataset": "mnist", "peers": [
    {"label": "NNCodec 2", "ratio": 28.7, "score": 97.9, "ratio_spread": [26.8, 31.1]}]}
"""


@click.command("report", epilog=_EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--task", required=True, help="Task to score on: a built-in name, path/to/file.py or package.module:attribute."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=not_standard_output,
    required=True,
    help="Folder for the report.",
)
@click.option(
    "--refine",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="Also train on the task's inputs while quantising, at several drops.",
)
@click.option(
    "--method", type=click.Choice(["vae", "paper"]), default="vae", show_default=True, help="As for `wcompress pack`."
)
@click.option(
    "--peers", type=click.Path(path_type=Path), help="JSON file with points measured elsewhere, to draw as well."
)
@click.option("--hidden", default="512", show_default=True, help="Sizes of the VAE's hidden layers, such as 512,256.")
@model_options
@data_dir_option
@common_options
def command(
    out: Output,
    models: tuple[Path, ...],
    task: str,
    output: Path,
    refine: str,
    method: str,
    peers: Path | None,
    hidden: str,
    key: str | None,
    effort: int,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Pack MODEL at several settings and compare ratio and accuracy with fp16, int8, int4 and zstd.

    Several MODELs are treated as trainings of one network with different seeds: the report shows means and ranges.
    Writes report.json, report.csv, report.md, report.html and a figure. Every ratio counts every byte;
    the paper's own point, for a task of its four networks on MNIST, is drawn as counting latents only.
    """
    from wcompress.codec.options import PackOptions
    from wcompress.report.render import finite
    from wcompress.report.sweep import report, report_means

    options = PackOptions(
        method=method,
        refine=refine,
        hidden=parse_sizes(hidden),
        effort=effort,
        seed=seed,
        device=device,
        threads=threads,
        key=key,
    )
    with out.progress("", announce=True) as progress:
        others: dict[str, Any] = {
            "options": options,
            "peers": peers,
            "data_dir": data_dir,
            "force": out.force,
            "progress": progress,
        }
        made: Report | MeanReport = (
            report(models[0], task, output, **others)
            if len(models) == 1
            else report_means(models, task, output, **others)
        )
    from rich.markup import escape
    from rich.table import Table

    names = ", ".join(model.name for model in models)
    title = f"{names}, {task}" + (f": means of {len(models)}, least – most" if len(models) > 1 else "")
    table = Table("", "ratio, every byte", "latent ratio, the paper's", "score", title=escape(title))
    table.add_row("original", "1.00x", "–", f"{made.score_before:.2f} %")
    for row in made.rows:
        name = row.name
        if row.kind == "archive":
            name += f", SQNR {row.figures['sqnr_db'] or 0:.1f} dB"
        ratio, score = _with_spread(row, "ratio", times), _with_spread(row, "score", lambda value: f"{value:.2f}")
        table.add_row(escape(name), ratio, times(row.figures["latent_ratio"]), f"{score} %")
    out.result(finite(made.to_json()), table)
    out.message(f"wrote {output / 'report.html'}, and .md, .csv, .json beside it")


def _with_spread(row: Row, name: str, show: Callable[[float], str]) -> str:
    value = row.figures[name]
    assert value is not None
    spread = row.spreads.get(name)
    return show(value) + (f" ({show(spread[0])} – {show(spread[1])})" if spread else "")
