"""What a report's table and figure are made of: rows of figures, means of them over models, and the best of all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wcompress.report.figures import Mark

FIGURES = ("archive_bytes", "ratio", "latent_ratio", "score", "drop", "sqnr_db")
"""Of every row; None for one that it does not have."""

Spread = tuple[float, float]
"""The least and the most."""


@dataclass(frozen=True)
class Row:
    """One archive, baseline or peer, measured.

    Attributes:
        kind: `archive`, `baseline` or `peer`.
        name: in tables.
        label: in the figure.
        figures: by the names in `FIGURES`: bytes, ratios, percent, points, dB.
        spreads: of some figures the least and the most; none where there was one measurement.
        refined: an archive of weights that were trained while quantising.
    """

    kind: str
    name: str
    label: str
    figures: Mapping[str, float | None]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    refined: bool = False

    @property
    def mark(self) -> Mark:
        """The point to draw, by true ratio."""
        return self._mark(self.label, "ratio")

    @property
    def named_mark(self) -> Mark:
        """The same under the name that tables have."""
        return self._mark(self.name, "ratio")

    @property
    def latent_mark(self) -> Mark | None:
        """The point by the paper's accounting; None where the archive has no latents."""
        return None if self.figures["latent_ratio"] is None else self._mark(self.label, "latent_ratio")

    def _mark(self, label: str, ratio: str) -> Mark:
        across, up = self.figures[ratio], self.figures["score"]
        assert across is not None
        assert up is not None
        return Mark(label, across, up, self.spreads.get(ratio), self.spreads.get("score"))


def mean_rows(models: Sequence[Sequence[Row]]) -> tuple[Row, ...]:
    """Means over models, setting by setting.

    Args:
        models: for each model its rows.

    Returns:
        Rows in the order of the first model's. A row that any of the models lacks is left out, so that every mean is
        over all of them. A figure that some lack is None.
    """
    found: list[Row] = []
    for first in models[0]:
        same = [row for rows in models for row in rows if (row.kind, row.name) == (first.kind, first.name)]
        if len(same) < len(models):
            continue
        means: dict[str, float | None] = {}
        spreads: dict[str, Spread] = {}
        for name in FIGURES:
            values = [value for row in same if (value := row.figures[name]) is not None]
            whole = len(values) == len(same)
            means[name] = None
            if whole:
                spreads[name] = least, most = min(values), max(values)
                means[name] = min(max(statistics.fmean(values), least), most)  # which rounding may take it beyond
        found.append(Row(first.kind, first.name, first.label, means, spreads, first.refined))
    return tuple(found)


def pareto_front(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Those marks than which no other is at least as good in both ratio and score and better in one, by ratio."""
    front: list[Mark] = []
    for mark in sorted(finite_marks(marks), key=lambda m: (-m.ratio, -m.score)):
        if not front or mark.score > front[-1].score:
            front.append(mark)
    return tuple(reversed(front))


def finite_marks(marks: Sequence[Mark]) -> list[Mark]:
    """A task may fail to score a model that is broken beyond use."""
    return [mark for mark in marks if math.isfinite(mark.score)]
