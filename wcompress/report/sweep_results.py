"""What a sweep found, of one model or as means over several."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcompress.codec.results import PackResult
from wcompress.report import render
from wcompress.report.baselines import BaselinePoint
from wcompress.report.figures import Mark
from wcompress.report.peers import PeerPoint
from wcompress.report.rows import FIGURES, Row, Spread, mean_rows, pareto_front


@dataclass(frozen=True)
class SweepPoint:
    """An archive, measured.

    Attributes:
        label: of its setting.
        pack: figures, the task's scores among them.
        refined: its weights were trained while quantising.
    """

    label: str
    pack: PackResult
    refined: bool = False

    @property
    def score(self) -> float:
        """Of what the archive restores to, percent."""
        assert self.pack.task is not None
        return self.pack.task.score_after

    def to_json(self) -> dict[str, Any]:
        """The object in `report.json`."""
        return {"label": self.label, "refined": self.refined, **self.pack.to_json()}


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What one model's report and that of several have in common.

    Attributes:
        folder: where it was written.
        method: of the archives.
        task, dataset, n_examples: what scored.
        score_before: of the model, percent; of several, their mean.
        original_bytes: of the model's tensors; of each, where there are several.
        peers: points that others measured.
        files: all that was written.
    """

    folder: Path
    method: str
    task: str
    dataset: str
    n_examples: int
    score_before: float
    original_bytes: int
    peers: tuple[PeerPoint, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def n_models(self) -> int:
        """How many models the figures are means over."""
        return 1

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models' file names."""
        raise NotImplementedError

    @property
    def measured(self) -> tuple[Row, ...]:
        """Archives, then baselines."""
        raise NotImplementedError

    @property
    def rows(self) -> tuple[Row, ...]:
        """Archives, baselines, peers."""
        return (*self.measured, *(peer.row(self.score_before) for peer in self.peers))

    @property
    def pareto(self) -> tuple[Mark, ...]:
        """Of all rows those that no other beats, by true ratio."""
        return pareto_front([row.named_mark for row in self.rows])

    def _about(self) -> dict[str, Any]:
        return {
            "task": {"name": self.task, "dataset": self.dataset, "n_examples": self.n_examples},
            "method": self.method,
            "score_before": self.score_before,
            "original_bytes": self.original_bytes,
        }

    def _ending(self) -> dict[str, Any]:
        return {
            "peers": [peer.to_json() for peer in self.peers],
            "pareto": [{"name": mark.label, "ratio": mark.ratio, "score": mark.score} for mark in self.pareto],
            "machine": render.machine(),
        }


@dataclass(frozen=True, kw_only=True)
class Report(_Sweep):
    """What a sweep of one model found.

    Attributes:
        model: its file name.
        points: archives, in the order of the settings.
        baselines: simple things to try first.
    """

    model: str
    points: tuple[SweepPoint, ...]
    baselines: tuple[BaselinePoint, ...]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The model's file name."""
        return (self.model,)

    @property
    def measured(self) -> tuple[Row, ...]:
        """Archives, then baselines."""
        return (*map(self._archive_row, self.points), *map(self._baseline_row, self.baselines))

    def _archive_row(self, point: SweepPoint) -> Row:
        pack, after = point.pack, point.score
        figures = dict(
            zip(
                FIGURES,
                (pack.archive_bytes, pack.ratio, pack.latent_ratio, after, self.score_before - after, pack.sqnr_db),
                strict=True,
            )
        )
        return Row("archive", f"{pack.method}, {point.label}", point.label, figures, refined=point.refined)

    def _baseline_row(self, point: BaselinePoint) -> Row:
        drop = self.score_before - point.score
        figures = dict(zip(FIGURES, (point.n_bytes, point.ratio, None, point.score, drop, None), strict=True))
        return Row("baseline", point.name, point.name, figures)

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "kind": "sweep",
            "model": self.model,
            **self._about(),
            "points": [point.to_json() for point in self.points],
            "baselines": [point.to_json() for point in self.baselines],
            **self._ending(),
        }


@dataclass(frozen=True, kw_only=True)
class MeanReport(_Sweep):
    """What a sweep of several trainings of one network found.

    Attributes:
        reports: of each model, in the order they were passed.
    """

    reports: tuple[Report, ...]

    @property
    def n_models(self) -> int:
        """How many models the figures are means over."""
        return len(self.reports)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models' file names."""
        return tuple(report.model for report in self.reports)

    @property
    def measured(self) -> tuple[Row, ...]:
        """Means over the models of archives, then of baselines; settings that every model reached."""
        return mean_rows([report.measured for report in self.reports])

    @property
    def score_before_spread(self) -> Spread:
        """The least and the most of the models' scores, percent."""
        scores = [report.score_before for report in self.reports]
        return min(scores), max(scores)

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`.

        `kind` is `sweep_means`. `points` and `baselines` hold means over the models, and under `NAME_spread` the least
        and the most; `models` holds for each model what its own report would, less `peers`, `pareto` and `machine`.
        """
        rows = self.measured
        return {
            "kind": "sweep_means",
            "n_models": self.n_models,
            **self._about(),
            "score_before_spread": list(self.score_before_spread),
            "points": [
                {"label": row.label, "refined": row.refined, **_means(row)} for row in rows if row.kind == "archive"
            ],
            "baselines": [{"name": row.name, **_means(row)} for row in rows if row.kind == "baseline"],
            "models": [_without_ending(report) for report in self.reports],
            **self._ending(),
        }


def mean_report(reports: tuple[Report, ...]) -> MeanReport:
    """The report of several models, from that of each; they agree in task and method."""
    first = reports[0]
    return MeanReport(
        folder=first.folder,
        method=first.method,
        task=first.task,
        dataset=first.dataset,
        n_examples=first.n_examples,
        score_before=statistics.fmean(report.score_before for report in reports),
        original_bytes=first.original_bytes,
        peers=first.peers,
        reports=reports,
    )


def _means(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIGURES:
        found[name] = row.figures[name]
        found[f"{name}_spread"] = list(row.spreads[name]) if name in row.spreads else None
    return found


def _without_ending(report: Report) -> dict[str, Any]:
    document = report.to_json()
    return {key: value for key, value in document.items() if key not in ("peers", "pareto", "machine")}
