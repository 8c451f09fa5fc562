"""`wcompress reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import Output, common_options, compute_options, data_dir_option, result_console
from wcompress.cli.demo_command import runs_table
from wcompress.cli.standard_output import not_standard_output

_EPILOG = """Examples:

\b
  wcompress reproduce -o reproduction
  wcompress reproduce -o reproduction --data-dir ~/data --seed 1
"""


@click.command("reproduce", epilog=_EPILOG)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=not_standard_output,
    required=True,
    help="Folder for the report and the models.",
)
@data_dir_option
@common_options
def command(
    out: Output,
    output: Path,
    effort: int,
    seed: int,
    device: str,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Train the paper's four models, pack, restore and score them, and write its tables and figures.

    Tables 1 and 2, figures 2 to 5 and the latent-size sweep, as data and pictures, in one report.md and one
    self-contained report.html, with the true ratio always beside the paper's. Takes some minutes on MNIST.
    """
    from wcompress.report.reproduce import reproduce

    with out.progress("", announce=True) as progress:
        made = reproduce(
            output,
            data_dir=data_dir,
            seed=seed,
            effort=effort,
            device=device,
            threads=threads,
            force=out.force,
            progress=progress,
        )
    out.result(made.to_json(), runs_table(made.runs, result_console().width))
    out.message(f"wrote {output / 'report.html'}, and .md, .csv, .json and pictures beside it")


for _option in reversed(compute_options()):
    command = _option(command)
