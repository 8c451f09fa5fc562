"""Tables and pictures → JSON, CSV, Markdown and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wcompress.files import atomic_output

Cell = str | int | float | None
_TEMPLATES = Path(__file__).parent / "templates"

RATIO_TERM = (
    "True ratio",
    "bytes of the model's tensors divided by the size of the archive, every byte counted: what a receiver needs"
    " besides wcompress itself. Below 1, the file is larger than the model.",
)
LATENT_RATIO_TERM = (
    "Latent ratio",
    "the paper's accounting: parameters divided by the numbers in the latents. It leaves out the decoder, without"
    " which no latent can be turned back into weights. It says nothing about the size of a file.",
)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: in the CSV file.
        title: for people.
        form: format specification of its numbers for people, or `ratio`; CSV has them whole.
    """

    key: str
    title: str
    form: str = ""

    def show(self, value: Cell) -> str:
        """A cell for people."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "–"
        if isinstance(value, str):
            return value
        return times(value) if self.form == "ratio" else f"{value:{self.form}}".replace("-", "−")


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        name: of the CSV file, without suffix.
        caption: one or two sentences.
        columns: in order.
        rows: a cell for each column.
        shown: whether the pages have it too, not only the CSV file.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: bool = True

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers, which are set to the right."""
        return tuple(not any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns)))

    def shown_rows(self) -> list[list[str]]:
        """Cells for people."""
        return [[c.show(cell) for c, cell in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_csv(self) -> str:
        """Header and rows, numbers in full, nothing where there is no finite number."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        writer.writerows([["" if finite(cell) is None else cell for cell in row] for row in self.rows])
        return out.getvalue()


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        name: of the PNG file, without suffix.
        caption: some sentences; the first is also the text for those who cannot see it.
        png: its bytes.
    """

    name: str
    caption: str
    png: bytes = field(repr=False)

    @property
    def alt(self) -> str:
        """The caption's first sentence."""
        return self.caption.split(". ")[0].rstrip(".")

    @property
    def data_uri(self) -> str:
        """The image itself, as a URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, then paragraphs, tables and pictures."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Page:
    """A report for people.

    Attributes:
        title: of the page.
        introduction: paragraphs in plain language.
        terms: words and what they mean.
        facts: what was run, on what.
        sections: the rest.
    """

    title: str
    introduction: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    def to_html(self) -> str:
        """One page that needs nothing from outside it."""
        import jinja2

        # Names come from files and from users: nothing of theirs may become markup.
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("report.html.j2").render(page=self)

    def to_markdown(self) -> str:
        """The page as Markdown, with its pictures beside it."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=False,
            finalize=escape_markdown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        text = environment.get_template("report.md.j2").render(page=self)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def finite(value: Any) -> Any:
    """A value without NaN and infinities at any depth: those become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def to_json_text(document: Mapping[str, Any]) -> str:
    """A JSON document whose numbers are all finite or null."""
    return json.dumps(finite(document), indent=1, allow_nan=False) + "\n"


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 1,
    }


def write_report(folder: Path, document: Mapping[str, Any], page: Page) -> tuple[Path, ...]:
    """Write `report.json`, `report.md`, `report.html`, and the page's tables and pictures, each of them whole.

    Args:
        folder: exists.
        document: for `report.json`.
        page: its tables become `.csv` files, its pictures `.png` files.

    Returns:
        The files written.

    Raises:
        OutputError: one cannot be written.
    """
    contents: dict[str, str | bytes] = {"report.json": to_json_text(document)}
    for section in page.sections:
        contents |= {f"{table.name}.csv": table.to_csv() for table in section.tables}
        contents |= {f"{picture.name}.png": picture.png for picture in section.pictures}
    contents |= {"report.md": page.to_markdown(), "report.html": page.to_html()}
    return tuple(_write(folder / name, content) for name, content in contents.items())


def _write(path: Path, content: str | bytes) -> Path:
    # "replace": a path on disk may hold what is no Unicode.
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    with atomic_output(path, force=True) as temporary:
        temporary.write_bytes(data)
    return path


def times(ratio: float) -> str:
    """A ratio for people: `31.8×`, two digits after the point below ten, three far below a tenth."""
    return f"{ratio:.{1 if ratio >= 10 else 2 if ratio >= 0.095 else 3}f}×"


def sentence_list(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
