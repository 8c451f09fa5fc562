"""The progress line: what is being done, a bar, the share done, and the time left, however narrow the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_MIN_BAR, _MAX_BAR = 12, 40
_SHARE_AND_ETA = len(" 100 %  0:00:00")
_MIN_DESCRIPTION = 6


def progress_line(console: Console) -> Progress:
    """A rich progress display of one line, removed when it ends.

    Args:
        console: to draw on; the line never wraps at its width.
    """
    return Progress(_LineColumn(), console=console, transient=True, expand=True, redirect_stdout=False)


class Tracker:
    """Moves one line of a display through a whole job; the callback that the library calls is `update`.

    Args:
        display: made by `progress_line`.
        description: of the job, such as the name of the file.
    """

    def __init__(self, display: Progress, description: str) -> None:
        self._display = display
        self._share = 0.0
        self._task = display.add_task(description, total=1.0, stage="", figures="", reported=(0.0, 0.0))

    def update(self, done: int, total: int, figures: Mapping[str, float | str]) -> None:
        """See `wcompress.progress.Progress`. A share that goes back is ignored: a bar only grows."""
        share = min(1.0, done / max(1, total))
        task = self._display.tasks[self._display.task_ids.index(self._task)]
        changes: dict[str, Any] = {}
        if share > self._share:
            self._share = share
            changes["reported"] = (share, task.elapsed or 0.0)
        if "stage" in figures:
            changes["stage"] = str(figures["stage"])
        numbers = {name: value for name, value in figures.items() if not isinstance(value, str)}
        text = "  ".join(f"{name} {number(value)}" for name, value in numbers.items())
        self._display.update(self._task, completed=self._share, figures=text, **changes)


def number(value: float) -> str:
    """A figure in at most about four digits, never in scientific notation: `123,457`, `12.3`, `0.035`."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def seconds_left(share: float, at: float, now: float) -> float | None:
    """What is left of a job that goes on as it has gone so far.

    Args:
        share: done when last reported, 0 to 1.
        at: seconds since the start when it was reported.
        now: seconds since the start.

    Returns:
        Seconds; None while nothing is known.
    """
    if share <= 0 or at <= 0:
        return None
    return max(0.0, at / share - now)


class _LineColumn(ProgressColumn):
    def render(self, task: Task) -> _Line:
        share, at = task.fields["reported"]
        left = seconds_left(share, at, task.elapsed or 0.0)
        return _Line(task.description, task.fields["stage"], task.completed, left, task.fields["figures"])


class _Line:
    """One line, laid out for the width that there is: the description gives way first, then the figures."""

    def __init__(self, description: str, stage: str, share: float, left: float | None, figures: str) -> None:
        self._description, self._stage, self._share, self._left = description, stage, share, left
        self._figures = figures

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(options.max_width, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        label = _label(self._description, self._stage, width - _MIN_BAR - _SHARE_AND_ETA - 1)
        room = width - cell_len(label) - bool(label) - _SHARE_AND_ETA
        bar = max(0, min(_MAX_BAR, room))
        done = round(bar * self._share)
        full, empty = ("#", "-") if options.ascii_only else ("━", "─")
        share_and_eta = f" {math.floor(100 * self._share):3d} %  {_clock(self._left)}"
        line = Text(f"{label} " if label else "", no_wrap=True, overflow="crop")
        line.append(full * done, "bar.complete").append(empty * (bar - done), "bar.back").append(share_and_eta)
        if self._figures and cell_len(self._figures) + 2 <= room - bar:
            line.append(f"  {self._figures}", "dim")
        yield line


def _label(description: str, stage: str, width: int) -> str:
    """`description: stage` in at most `width` cells. Of the two, the description is shortened first."""
    if not (description and stage):
        return _shortened(description or stage, width)
    room = width - cell_len(stage) - 2
    if room >= min(cell_len(description), _MIN_DESCRIPTION):
        return f"{_shortened(description, room)}: {stage}"
    return _shortened(stage, width)


def _shortened(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    return "" if width < 2 else set_cell_size(text, width - 1).rstrip() + "…"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    whole = math.ceil(seconds)
    return f"{whole // 3600:d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
