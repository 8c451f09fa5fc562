"""Points that others measured, read from a JSON file, to be drawn beside our own."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcompress.errors import OptionError
from wcompress.report.rows import Row, Spread
from wcompress.tasks import Task

_KEYS = ("label", "ratio", "score", "ratio_spread", "score_spread")
_EXAMPLE = '{"peers": [{"label": "NNCodec 2", "ratio": 28.7, "score": 97.9}]}'


@dataclass(frozen=True)
class PeerPoint:
    """A point of somebody else's.

    Attributes:
        label: points with the same label are joined by a line.
        ratio: bytes of the model's tensors / every byte that a receiver needs.
        score: percent.
        ratio_spread, score_spread: the least and the most over several measurements.
    """

    label: str
    ratio: float
    score: float
    ratio_spread: Spread | None = None
    score_spread: Spread | None = None

    def to_json(self) -> dict[str, Any]:
        """A row of the file."""
        row: dict[str, Any] = {"label": self.label, "ratio": self.ratio, "score": self.score}
        spreads = {"ratio_spread": self.ratio_spread, "score_spread": self.score_spread}
        return row | {key: list(spread) for key, spread in spreads.items() if spread is not None}

    def row(self, score_before: float) -> Row:
        """The row of a report about a model of that score."""
        figures = dict.fromkeys(("archive_bytes", "latent_ratio", "sqnr_db"))
        spreads = {"ratio": self.ratio_spread, "score": self.score_spread}
        return Row(
            "peer",
            self.label,
            self.label,
            {**figures, "ratio": self.ratio, "score": self.score, "drop": score_before - self.score},
            {name: spread for name, spread in spreads.items() if spread is not None},
        )


@dataclass(frozen=True)
class Peers:
    """A file of peers.

    Attributes:
        path: of the file.
        points: in its order.
        task, dataset: what they were scored on, where the file says it.
    """

    path: str
    points: tuple[PeerPoint, ...]
    task: str | None = None
    dataset: str | None = None

    def check(self, task: Task) -> None:
        """Make sure that the scores are of the report's task.

        Raises:
            OptionError: the file names another task or other data.
        """
        for what, theirs, ours in (("task", self.task, task.name), ("data", self.dataset, task.dataset)):
            if theirs is not None and theirs != ours:
                raise OptionError(
                    f"{self.path}: peers were scored with the {what} {theirs!r}, this report's is {ours!r}; pass peers"
                    " scored with the same"
                )


def read_peers(path: str | os.PathLike[str]) -> Peers:
    """Read peers from a JSON file.

    The file is a list of rows, or an object that holds one under `peers`; the object may name the `task` and the
    `dataset` that scored them, and hold what else it likes. A row has `label`, `ratio` (every byte counted) and `score`
    in percent, and may have `ratio_spread` and `score_spread`, each `[least, most]`.

    Args:
        path: of the file.

    Raises:
        OptionError: it cannot be read or is no such file; the message says where.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: peers cannot be read ({error.strerror or error}); pass a JSON file") from error
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise OptionError(f"{path}: not JSON ({detail:.100}); expected {_EXAMPLE}") from error
    about: Mapping[str, Any] = document if isinstance(document, dict) else {"peers": document}
    rows = about.get("peers")
    if not isinstance(rows, list) or not rows:
        raise OptionError(f"{path}: no list of peers; expected {_EXAMPLE}")
    for key in ("task", "dataset"):
        if not isinstance(about.get(key), str | None):
            raise OptionError(f"{path}: {key!r} is not text; give its name or leave it out")
    points = tuple(_point(row, f"{path}: peer {number}") for number, row in enumerate(rows, start=1))
    return Peers(str(path), points, about.get("task"), about.get("dataset"))


def _point(row: Any, where: str) -> PeerPoint:
    if not isinstance(row, dict):
        raise OptionError(f"{where}: not an object; expected {_EXAMPLE}")
    for key in row:
        if key not in _KEYS:
            raise OptionError(f"{where}: unknown key {key!r:.60}; known are {', '.join(_KEYS)}")
    label = row.get("label")
    if not isinstance(label, str) or not label.strip():
        raise OptionError(f"{where}: 'label' is missing or not text; name the method that was measured")
    ratio, score = (_number(row.get(key), f"{where}: {key!r}") for key in ("ratio", "score"))
    if ratio <= 0:
        raise OptionError(f"{where}: 'ratio' is {ratio:g}; expected bytes of the model / bytes of the file, above 0")
    return PeerPoint(
        label, ratio, score, _spread(row, "ratio_spread", ratio, where), _spread(row, "score_spread", score, where)
    )


def _number(value: Any, where: str) -> float:
    number = float("nan")
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300:
        number = float(value)
    if not math.isfinite(number):
        raise OptionError(f"{where} is missing or not a finite number; give one, such as 28.7")
    return number


def _spread(row: Mapping[str, Any], key: str, value: float, where: str) -> Spread | None:
    if row.get(key) is None:
        return None
    both = row[key]
    if not isinstance(both, list) or len(both) != 2:
        raise OptionError(f"{where}: {key!r} is not [least, most]; give two numbers or leave it out")
    least, most = (_number(number, f"{where}: {key!r}") for number in both)
    if not least <= value <= most or (key == "ratio_spread" and least <= 0):
        raise OptionError(
            f"{where}: {key!r} is {least:g} to {most:g}, which does not include {value:g}; correct the file"
        )
    return least, most
