"""Options that every command has, and where its output goes."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wcompress import __version__
from wcompress.errors import OptionError
from wcompress.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from wcompress.directories.results import FolderInspectResult, FolderPackResult
    from wcompress.fidelity import Worst

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Output:
    """Results on stdout, everything else on stderr.

    Attributes:
        force: existing outputs may be replaced.
        quiet: no messages and no progress.
        verbose: more messages.
        as_json: the result as one JSON object.
        no_progress: no progress bars.
    """

    force: bool
    quiet: bool
    verbose: bool
    as_json: bool
    no_progress: bool

    def message(self, text: str) -> None:
        """One line on stderr, above any progress line, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr)  # and not click.echo, which would write into the progress line

    def detail(self, text: str) -> None:
        """One line on stderr when verbose."""
        if self.verbose and not self.quiet:
            print(text, file=sys.stderr)

    def result(self, document: dict[str, Any], *shown: RenderableType, err: bool = False) -> None:
        """The result: JSON, or tables and sentences when a person reads it.

        Args:
            document: the JSON object.
            *shown: the same for a person.
            err: what a person reads goes to stderr, since stdout carries the output itself.
        """
        if self.as_json:
            click.echo(json.dumps(document, allow_nan=False))
            return
        console = result_console(err=err)
        for part in shown:
            console.print(part)

    @contextlib.contextmanager
    def progress(self, description: str, *, announce: bool = False) -> Iterator[Progress]:
        """One progress line for a whole job on stderr, with the time left, where that is a terminal.

        Args:
            description: of the job.
            announce: also write one line when a stage begins, terminal or not; for jobs of many minutes.

        Yields:
            What the library calls as the work goes on; see `wcompress.progress`.
        """
        with contextlib.ExitStack() as stack:
            listeners: list[Progress] = []
            if announce and not self.quiet:
                listeners.append(self._announcer())
            if not (self.quiet or self.no_progress) and sys.stderr.isatty():
                from rich.console import Console

                from wcompress.checkpoint.messages import shown
                from wcompress.cli.progress import Tracker, progress_line

                display = stack.enter_context(progress_line(Console(stderr=True)))
                listeners.append(Tracker(display, shown(description)).update)

            def update(done: int, total: int, figures: Mapping[str, float | str]) -> None:
                for listener in listeners:
                    listener(done, total, figures)

            yield update

    def _announcer(self) -> Progress:
        start = time.perf_counter()
        announced = ""

        def update(_done: int, _total: int, figures: Mapping[str, float | str]) -> None:
            nonlocal announced
            stage = str(figures.get("stage", announced))
            if stage != announced:
                announced = stage
                self.message(f"[{time.perf_counter() - start:5.0f} s] {stage}")

        return update


def result_console(*, err: bool = False) -> Console:
    """A rich console on stdout or stderr; where that is no terminal, wide enough that no table is cut."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else 160, highlight=False)


def figures_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Two columns, names and figures."""
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.table import Table

    # As wide as its title, which would be wrapped otherwise.
    table = Table(title=escape(title), show_header=False, title_justify="left", min_width=cell_len(title))
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def worst_rows(worst: Worst | None) -> list[tuple[str, str]]:
    """Rows for the tensor and the row that lost most; none where nothing was lost."""
    if worst is None:
        return []
    from wcompress.checkpoint.messages import shown

    rows = [("worst tensor", f"{worst.sqnr_db:.1f} dB, {shown(worst.tensor)}")]
    if worst.row_sqnr_db is not None:
        rows.append(("worst row", f"{worst.row_sqnr_db:.1f} dB, of {shown(worst.row_tensor)}"))
    return rows


def folder_rows(result: FolderPackResult | FolderInspectResult) -> list[tuple[str, str]]:
    """Rows for the size of a folder of archives, and for what is in it."""
    return [
        ("archives", f"{n_bytes(sum(shard.archive_bytes for shard in result.shards))} in {len(result.shards):,}"),
        ("side files, byte for byte", f"{n_bytes(result.side_file_bytes)} in {result.n_side_files:,}"),
        ("all, with the index", n_bytes(result.archive_bytes)),
    ]


def plain(sentences: str) -> Text:
    """Sentences to print as they are, wrapped between words."""
    from rich.text import Text

    return Text(sentences)


def common_options(function: Command) -> Command:
    """Add -f, -q, -v, --json, --no-progress and --version; the command gets an `Output` as its first argument."""

    @click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
    @click.option("-q", "--quiet", is_flag=True, help="Show no messages and no progress.")
    @click.option("-v", "--verbose", is_flag=True, help="Show more messages.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
    @click.option("--no-progress", is_flag=True, help="Show no progress.")
    @click.version_option(__version__, prog_name="wcompress", message="%(prog)s %(version)s")
    @functools.wraps(function)
    def wrapper(
        *args: Any, force: bool, quiet: bool, verbose: bool, as_json: bool, no_progress: bool, **options: Any
    ) -> Any:
        return function(Output(force, quiet, verbose, as_json, no_progress), *args, **options)

    return wrapper  # type: ignore[return-value]


def data_dir_option(function: Command) -> Command:
    """Add --data-dir."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder that contains a folder `mnist` with the four idx files.  [default: $WCOMPRESS_DATA]",
    )(function)


def model_options(function: Command) -> Command:
    """Add what reading a checkpoint and running the VAE need: --key, --seed, --effort, --device, --threads."""
    options = [
        click.option("--key", help="Entry of the checkpoint that holds the model, if that is not obvious."),
        *compute_options(),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def compute_options() -> list[Callable[[Command], Command]]:
    """--effort, --seed, --device, --threads."""
    return [
        click.option(
            "--effort",
            type=click.IntRange(1, 9),
            default=5,
            show_default=True,
            help="From 1 (fast) to 9 (smallest archive).",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of everything random."
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Device to train on.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            help="CPU threads; archives do not depend on them.  [default: all]",
        ),
    ]


def parse_sizes(text: str) -> tuple[int, ...]:
    """`512,256` → (512, 256); empty for none.

    Raises:
        OptionError: not a list of whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise OptionError(f"--hidden {text!r}: expected whole numbers separated by commas, such as 512,256") from error


def n_bytes(value: int) -> str:
    """1234567 → `1,234,567 B`."""
    return f"{value:,} B"


def times(value: float | None) -> str:
    """A ratio: `31.8x`, two digits below ten."""
    if value is None:
        return "–"
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def decibels(value: float | None) -> str:
    """`31.80 dB`, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f} dB"
