"""Curves of quality against bytes: measuring enough of one, and where it crosses a level."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[float, float]
"""A quality, larger is better, and bytes."""


@dataclass(frozen=True)
class Span:
    """What a curve has to hold.

    Attributes:
        low: it goes on towards fewer bytes until its quality is below this…
        high: …and towards more bytes until its quality is at least this.
        patience: for so many points in a row, since qualities are noisy.
    """

    low: float
    high: float
    patience: int = 2


def walk(measure: Callable[[int], Point], start: int, limits: tuple[int, int], span: Span) -> list[Point]:
    """Points of a curve, from `start` both ways.

    Args:
        measure: the point at a number, of which a larger one means fewer bytes.
        start: the first number.
        limits: the smallest and the largest number.
        span: where to end.
    """
    found: dict[int, Point] = {}

    def at(number: int) -> float:
        if number not in found:
            found[number] = measure(number)
        return found[number][0]

    in_a_row, number = 0, start
    while number <= limits[1] and in_a_row < span.patience:
        in_a_row = in_a_row + 1 if at(number) < span.low else 0
        number += 1
    in_a_row, number = 0, start
    while number >= limits[0] and in_a_row < span.patience:
        in_a_row = in_a_row + 1 if at(number) >= span.high else 0
        number -= 1
    return [found[number] for number in sorted(found)]


def saving_percent(ours: float | None, theirs: float | None) -> float | None:
    """Bytes saved, as a share of theirs."""
    return None if ours is None or theirs is None else 100 * (1 - ours / theirs)


def means(rows: Iterable[Mapping[str, Any]], by: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """Means of figures over rows that agree in some fields.

    Args:
        rows: with all of the fields and figures; a figure may be None, for not measured.
        by: fields that say which rows belong together.
        names: figures.

    Returns:
        For each group, in the order of the rows: its fields; `n`, its rows; the means, None where a row lacks the
        figure; and under `NAME_spread` the smallest and the largest, or None.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in by), []).append(row)
    result: list[dict[str, Any]] = []
    for values, group in groups.items():
        found: dict[str, Any] = {**dict(zip(by, values, strict=True)), "n": len(group)}
        for name in names:
            figures = [row[name] for row in group]
            whole = None not in figures
            found[name] = statistics.fmean(figures) if whole else None
            found[f"{name}_spread"] = [min(figures), max(figures)] if whole else None
        result.append(found)
    return result


def accuracy_means(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of `equal_accuracy`'s rows, over the seeds."""
    names = ("score_before", "n_bytes", "nncodec_bytes", "ratio", "nncodec_ratio", "saving_percent")
    return means(_flat(rows), ("model", "effort", "drop"), names)


def function_means(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of `equal_function`'s rows, over the seeds."""
    names = ("n_bytes", "nncodec_bytes", "nncodec_opt_qp_bytes", "saving_percent", "saving_on_opt_qp_percent")
    return means(_flat(rows), ("effort", "level_db"), names)


def _flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, **point} for row in rows for point in row["at"]]


def number(value: float | None, form: str) -> str:
    """A figure for a table; a dash where it was not reached."""
    return "–" if value is None else format(value, form)
