"""`wcompress demo`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wcompress.cli.common import Output, common_options, decibels, n_bytes, result_console, times
from wcompress.cli.standard_output import not_standard_output

if TYPE_CHECKING:
    from rich.table import Table

    from wcompress.report.pipeline import BaselineRun

_EPILOG = """Examples:

\b
  wcompress demo
  wcompress demo -o demo-output                keeps models and archives
"""

_WIDE = 100
"""Columns that the table of all figures takes."""


@click.command("demo", epilog=_EPILOG)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=not_standard_output,
    help="Folder for the models and archives.  [default: keep nothing]",
)
@click.option(
    "--effort", type=click.IntRange(1, 9), default=3, show_default=True, help="From 1 (fast) to 9 (smallest archive)."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads.")
@common_options
def command(out: Output, output: Path | None, effort: int, threads: int) -> None:
    """Train four small networks on embedded data, pack them, restore them, and score both.

    The data are scikit-learn's 1,797 handwritten digits, scaled to 28×28; nothing is downloaded.
    """
    from wcompress.files import output_folder
    from wcompress.progress import part
    from wcompress.report.paper import PAPER
    from wcompress.report.pipeline import measure_baseline
    from wcompress.tasks import load_embedded

    with contextlib.ExitStack() as stack:
        if output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wcompress-demo-")))
        else:
            folder = stack.enter_context(output_folder(output, force=out.force))
        data = load_embedded()
        runs: list[BaselineRun] = []
        with out.progress("", announce=True) as progress:
            names = list(PAPER)
            for number, name in enumerate(names):
                run = measure_baseline(
                    name,
                    folder,
                    data=data,
                    method="vae",
                    effort=effort,
                    threads=threads,
                    force=out.force,
                    progress=part(progress, number / len(names), (number + 1) / len(names)),
                )
                runs.append(run)
    out.result(
        {"dataset": data.dataset, "models": [run.to_json() for run in runs]}, runs_table(runs, result_console().width)
    )
    out.message(
        "Each model was trained, packed into an archive, restored from that archive alone, and scored again.\n"
        "ratio = size of the weights / size of the archive, every byte counted; lost = points of accuracy.\n"
        "Next: wcompress pack --ratio or --bits-per-weight for another size; --max-drop, with a task, for the smallest."
    )
    if output is not None:
        out.message(f"written to {output}: the models (.pt), the archives (.wcz), the restored models (.safetensors)")


def runs_table(runs: Sequence[BaselineRun], width: int) -> Table:
    """One row a model: sizes, ratio, the paper's ratio or else the SQNR, scores before and after.

    Args:
        runs: what was measured.
        width: columns of the console; a narrow one gets fewer figures rather than cut ones.
    """
    from rich.table import Table

    by_latents = any(run.pack.latent_ratio for run in runs)
    columns = {
        "model": [run.name for run in runs],
        "parameters": [f"{run.pack.n_params:,}" for run in runs],
        "weights": [n_bytes(run.pack.original_bytes) for run in runs],
        "archive": [n_bytes(run.pack.archive_bytes) for run in runs],
        "ratio": [times(run.pack.ratio) for run in runs],
        "latent ratio": [times(run.pack.latent_ratio) for run in runs] if by_latents else [],
        "SQNR": [] if by_latents else [decibels(run.pack.sqnr_db) for run in runs],
        "accuracy": [f"{run.score_before:.2f} %" for run in runs],
        "restored": [f"{run.score_after:.2f} %" for run in runs],
        "lost": [f"{run.drop:+.2f}" for run in runs],
    }
    left_out = () if width >= _WIDE else ("parameters", "weights", "SQNR", "accuracy")
    kept = {heading: cells for heading, cells in columns.items() if cells and heading not in left_out}
    title = f"Test accuracy on {runs[0].dataset}, and the size of the archives"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in kept:
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for row in zip(*kept.values(), strict=True):
        table.add_row(*row)
    return table
