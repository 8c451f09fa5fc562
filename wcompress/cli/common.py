"""Options that every command has, and where its output goes."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wcompress import __version__
from wcompress.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Command = TypeVar("Command", bound=Callable[..., Any])
ProgressCallback = Callable[[int, int, dict[str, float]], None]


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
        """One line on stderr, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """One line on stderr when verbose."""
        if self.verbose and not self.quiet:
            click.echo(text, err=True)

    def result(self, document: dict[str, Any], *tables: Table) -> None:
        """The result: JSON, or tables when a person reads it."""
        if self.as_json:
            click.echo(json.dumps(document, allow_nan=False))
            return
        console = stdout_console()
        for table in tables:
            console.print(table)

    @contextlib.contextmanager
    def progress(self, description: str) -> Iterator[ProgressCallback]:
        """A progress bar with an ETA on stderr, where that is a terminal.

        Yields:
            A function of work done, work in all, and figures to show.
        """
        if self.quiet or self.no_progress or not sys.stderr.isatty():
            yield lambda _done, _total, _figures: None
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            row = bar.add_task(escape(description), total=None, figures="")

            def update(done: int, total: int, figures: dict[str, float]) -> None:
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                bar.update(row, completed=done, total=total, figures=text)

            yield update

    @contextlib.contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """Progress of work in named stages, each with its own bar; one line a stage where there is no terminal.

        Yields:
            A function of the stage's name, its work done, and its work in all.
        """
        if self.quiet:
            yield lambda _stage, _done, _total: None
            return
        with contextlib.ExitStack() as stack:
            current: list[Any] = [None, None]
            start = time.perf_counter()

            def update(stage: str, done: int, total: int) -> None:
                if stage != current[0]:
                    stack.close()
                    self.message(f"[{time.perf_counter() - start:5.0f} s] {stage}")
                    current[:] = [stage, stack.enter_context(self.progress(stage))]
                current[1](done, total, {})

            yield update


def stdout_console() -> Console:
    """A rich console on stdout; where that is no terminal, wide enough that no table is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def figures_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Two columns, names and figures."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def common_options(function: Command) -> Command:
    """Add -f, -q, -v, --json, --no-progress and --version; the command gets an `Output` as its first argument."""

    @click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
    @click.option("-q", "--quiet", is_flag=True, help="No messages, no progress.")
    @click.option("-v", "--verbose", is_flag=True, help="More messages.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
    @click.option("--no-progress", is_flag=True, help="No progress bars.")
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
        help="Folder that holds MNIST's four idx files in a folder `mnist`.  [default: $WCOMPRESS_DATA]",
    )(function)


def model_options(function: Command) -> Command:
    """Add what reading a checkpoint and running the VAE need: --key, --seed, --effort, --device, --threads."""
    options = [
        click.option("--key", help="Entry of the checkpoint that holds the model, where that is not plain."),
        *compute_options(),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def compute_options() -> list[Callable[[Command], Command]]:
    """--effort, --seed, --device, --threads."""
    return [
        click.option("--effort", type=click.IntRange(1, 9), default=5, show_default=True, help="1 fast, 9 small."),
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of everything random."
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="To train on.",
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
        raise OptionError(
            f"--hidden {text!r}: whole numbers with commas between them expected, such as 512,256"
        ) from error


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
