"""The progress line at any width, its time left, and how the parts of a job share one scale."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress as Display

import wcompress
from wcompress.cli.progress import Tracker, number, progress_line, seconds_left
from wcompress.progress import Progress, part

LONG = "distilbert-base-uncased-finetuned-sst-2-english.safetensors"
STAGE = "finding the step size"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rendered(display: Display, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(display.make_tasks_table(display.tasks))
    lines = captured.get().splitlines()
    assert len(lines) == 1
    assert cell_len(lines[0]) <= width
    return lines[0].rstrip()


def tracked(description: str) -> tuple[Display, Tracker, Clock]:
    clock = Clock()
    display = progress_line(Console(file=io.StringIO(), width=60))
    display.get_time = clock
    return display, Tracker(display, description), clock


def test_sixty_columns_hold_stage_bar_share_and_time_left() -> None:
    display, tracker, clock = tracked(LONG)
    clock.now = 90.0
    tracker.update(1, 4, {"stage": STAGE, "bytes": 123456.0})
    line = rendered(display, 60)
    assert line.endswith("25 %  0:04:30")
    assert STAGE in line
    assert line.startswith("distil")
    assert re.search("━{3,}─{9,}", line)


@given(
    st.integers(20, 200),
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=80),
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=60),
    st.floats(0, 1),
)
def test_the_bar_outlives_every_description(width: int, description: str, stage: str, share: float) -> None:
    display, tracker, clock = tracked(description)
    clock.now = 7.0
    tracker.update(round(1000 * share), 1000, {"stage": stage, "loss": 1e-9, "bytes": 1e12})
    line = rendered(display, width)
    bar = re.search("[━─]{4,}", line)
    assert bar, line
    if width >= 40:
        assert len(bar[0]) >= 12
    assert re.search(r"\d+ %  [-\d]+:[-\d]{2}:[-\d]{2}", line)


def test_figures_are_shown_where_there_is_room() -> None:
    display, tracker, _ = tracked("m.pt")
    tracker.update(1, 2, {"stage": STAGE, "bytes": 123456.0, "drop": 0.00012})
    assert "bytes 123,456" in rendered(display, 160)
    assert "bytes" not in rendered(display, 60)


@given(st.floats(allow_infinity=True, allow_nan=True))
def test_no_figure_is_in_scientific_notation(value: float) -> None:
    assert re.fullmatch(r"-?[\d,]+(\.\d{1,3})?|–", number(value))


def test_figures_keep_what_matters() -> None:
    assert [number(v) for v in (1e5, 123456.7, 42.123, 3.14159, 0.0354, 1000.0)] == [
        "100,000",
        "123,457",
        "42.1",
        "3.14",
        "0.035",
        "1,000",
    ]


def test_time_left_follows_the_whole_job() -> None:
    assert seconds_left(0.0, 0.0, 5.0) is None
    assert seconds_left(0.25, 30.0, 30.0) == 90.0
    assert seconds_left(0.25, 30.0, 50.0) == 70.0  # it counts down between reports
    assert seconds_left(0.25, 30.0, 500.0) == 0.0


def test_the_bar_never_goes_back() -> None:
    display, tracker, clock = tracked("m.pt")
    clock.now = 10.0
    tracker.update(5, 10, {"stage": "first"})
    tracker.update(1, 10, {"stage": "second"})
    line = rendered(display, 60)
    assert "50 %" in line
    assert "second" in line


Report = tuple[int, int, Mapping[str, float | str]]


def test_parts_share_one_scale() -> None:
    reports: list[Report] = []

    def note(done: int, total: int, figures: Mapping[str, float | str]) -> None:
        reports.append((done, total, figures))

    outer = part(note, 0.5, 1.0)
    inner = part(outer, 0.0, 0.5, "inner")
    assert outer is not None
    assert inner is not None
    inner(1, 2, {"loss": 1.0})
    inner(2, 2, {})
    inner(1, 9, {})  # it starts over
    outer(7, 5, {})  # more than all is all
    shares = [done / total for done, total, _ in reports]
    assert shares == pytest.approx([0.5, 0.625, 0.75, 0.75, 1.0], abs=1e-3)
    assert [figures.get("stage") for _, _, figures in reports] == ["inner", "inner", "inner", "inner", None]
    assert part(None, 0.0, 1.0, "nobody listens") is None


@pytest.mark.parametrize("effort", [1, 3])
@pytest.mark.parametrize("method", ["vae", "paper"])
def test_packing_reports_one_growing_scale_with_stages(tmp_path: Path, effort: int, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"w": torch.randn(64, 64, generator=generator)}
    reports: list[Report] = []
    progress: Progress = lambda *report: reports.append(report)  # noqa: E731
    wcompress.pack(
        tensors,
        tmp_path / "m.wcz",
        method=method,
        effort=effort,
        block_size=64,
        latent_dim=4,
        hidden=(16,),
        progress=progress,
    )
    shares = [done / total for done, total, _ in reports]
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    assert all("stage" in figures for _, _, figures in reports)
