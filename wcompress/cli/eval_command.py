"""`wcompress eval`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import Output, common_options, data_dir_option, figures_table

_EPILOG = """Examples:

\b
  wcompress eval model.pt --task mnist-fnn
  wcompress eval model.pt.wcz --task my_task.py
"""


@click.command("eval", epilog=_EPILOG)
@click.argument("model_or_archive", type=click.Path(path_type=Path))
@click.option(
    "--task", required=True, help="Task to score on: a built-in name, path/to/file.py or package.module:attribute."
)
@click.option("--key", help="Entry of the checkpoint that holds the model, if that is not obvious.")
@data_dir_option
@common_options
def command(out: Output, model_or_archive: Path, task: str, key: str | None, data_dir: Path | None) -> None:
    """Score MODEL_OR_ARCHIVE on a task's held-out examples; an archive is restored first."""
    from wcompress.evaluate import evaluate

    result = evaluate(model_or_archive, task, data_dir=data_dir, key=key)
    rows = [
        ("task", result.task),
        ("dataset", result.dataset),
        ("score", f"{result.score:.2f} {'%' if result.unit == 'percent' else result.unit}"),
        ("examples", f"{result.n_examples:,}" if result.n_examples else "not stated"),
    ]
    out.result(result.to_json(), figures_table(str(model_or_archive), rows))
