"""Puts the committed results into README's tables, between `<!-- table: FILE -->` and `<!-- end -->`.

    python -m benchmarks.readme_tables

`tests/test_examples.py` fails when README and results differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(heading) + " |", "|---" + "|---:" * (len(heading) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _reproduce(result: dict[str, Any]) -> str:
    heading = ["model", "parameters", "accuracy", "restored", "latent ratio (the paper's)", "ratio (every byte)"]
    rows = [
        [
            row["model"],
            f"{row['n_params']:,}",
            f"{row['score_before']:.2f} %",
            f"{row['score_after']:.2f} %",
            f"{row['latent_ratio']:.1f}x",
            f"**{row['ratio']:.2f}x**",
        ]
        for row in result["models"]
    ]
    return markdown_table(heading, rows)


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {"benchmarks/results/reproduce.json": _reproduce}


def filled(text: str) -> str:
    """README with every table as its result file says."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        result = json.loads((ROOT / name).read_text())
        return f"<!-- table: {name} -->\n{RENDERERS[name](result)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
