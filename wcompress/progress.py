"""How long-running work reports its progress, and how the parts of a job share one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, Mapping[str, float | str]], None]
"""Called with the work done, the work in all, and figures to show; a figure named `stage` says what is being done."""

_RESOLUTION = 10_000


def part(progress: Progress | None, start: float, end: float, stage: str | None = None) -> Progress | None:
    """The progress of one part of a job, mapped onto its share of the whole.

    Args:
        progress: of the whole job; None when nobody listens.
        start, end: the share that the part covers, 0 <= start <= end <= 1.
        stage: what the part does, shown in place of any `stage` that it reports itself.

    Returns:
        What the part calls; None when nobody listens. Where the part starts over, its share stays as it was until it is
        passed again: the whole never goes back.
    """
    if progress is None:
        return None
    whole = progress
    reached = start

    def update(done: int, total: int, figures: Mapping[str, float | str]) -> None:
        nonlocal reached
        reached = max(reached, start + (end - start) * min(1.0, done / max(1, total)))
        whole(round(_RESOLUTION * reached), _RESOLUTION, figures if stage is None else {**figures, "stage": stage})

    if stage is not None:
        update(0, 1, {})  # so that the stage is shown at once
    return update
