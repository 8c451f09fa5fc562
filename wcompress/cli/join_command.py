"""`wcompress join`."""

from __future__ import annotations

from pathlib import Path

import click

from wcompress.cli.common import Output, common_options
from wcompress.cli.inputs import Answer, answer_each
from wcompress.cli.pack_command import answer

_EPILOG = """Examples:

\b
  wcompress pack llama -o llama.wcz --shard 1/2    on one machine
  wcompress pack llama -o llama.wcz --shard 2/2    on another
  wcompress join llama.wcz                         when both are done
"""


@click.command("join", epilog=_EPILOG)
@click.argument("outputs", metavar="OUTPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def command(out: Output, outputs: tuple[Path, ...]) -> None:
    """Put the parts together that `pack MODEL -o OUTPUT --shard I/N` packed for every I from 1 to N.

    They lie in the folder OUTPUT.part, on a file system that the machines share or copied there from each. All are
    checked; the folder OUTPUT then is the same as that of one pack of MODEL. Exits with 2 if a part is missing, and
    with 4 if one is damaged.
    """

    def work(output: Path) -> Answer:
        from wcompress.directories.packing import join_folder

        result = join_folder(output, force=out.force)
        return answer(out, Path(result.source), result)

    answer_each(out, outputs, work)
