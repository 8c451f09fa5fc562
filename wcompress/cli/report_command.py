"""`wcompress report`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import Output, common_options, data_dir_option, model_options, parse_sizes, times

_EPILOG = """Examples:

\b
  wcompress report model.pt --task mnist-fnn -o report
  wcompress report model.pt --task my_task.py -o report -f --json
  wcompress report model.pt --task mnist-fnn -o report --refine on     minutes for each refined point
"""


@click.command("report", epilog=_EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="A built-in name, path/to/file.py or package.module:attribute.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the report.")
@click.option(
    "--refine",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="Also train on the task's inputs while quantising, at several drops.",
)
@click.option(
    "--method", type=click.Choice(["vae", "paper"]), default="vae", show_default=True, help="How weights are coded."
)
@click.option("--hidden", default="512", show_default=True, help="Sizes of the VAE's hidden layers, such as 512,256.")
@model_options
@data_dir_option
@common_options
def command(
    out: Output,
    model: Path,
    task: str,
    output: Path,
    refine: str,
    method: str,
    hidden: str,
    key: str | None,
    effort: int,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Pack MODEL at several settings and show ratio against accuracy, beside what one would try first.

    Writes report.json, report.csv, report.md, report.html and a figure. Every ratio counts every byte.
    """
    from wcompress.codec.options import PackOptions
    from wcompress.report.sweep import report

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
    with out.stages() as progress:
        made = report(model, task, output, options=options, data_dir=data_dir, force=out.force, progress=progress)
    from rich.markup import escape
    from rich.table import Table

    document = made.to_json()
    table = Table("", "ratio, every byte", "latent ratio, the paper's", "score", title=escape(f"{model.name}, {task}"))
    table.add_row("original", "1.00x", "–", f"{document['score_before']:.2f} %")
    for point in document["points"]:
        table.add_row(
            f"{point['method']}, SQNR {point['sqnr_db'] or 0:.1f} dB",
            times(point["ratio"]),
            times(point["latent_ratio"]),
            f"{point['task']['score_after']:.2f} %",
        )
    for point in document["baselines"]:
        table.add_row(point["name"], times(point["ratio"]), "–", f"{point['score']:.2f} %")
    out.result(document, table)
    out.message(f"written: {output / 'report.html'}, and .md, .csv, .json beside it")
