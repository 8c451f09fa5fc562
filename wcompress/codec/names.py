"""Names of tensors in messages: what was likely meant by one that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NEAR = 0.5
_MOST = 3


def near(name: str, names: Iterable[str]) -> list[str]:
    """At most three of the names, the most alike first; those that only differ in case or hold `name` count as alike.

    Args:
        name: a name or a regular expression.
        names: that there are.
    """
    wanted = re.sub(r"[^\w.]", "", name.replace("\\", "")).strip(".").lower()
    by_lower: dict[str, str] = {}
    for one in names:
        by_lower.setdefault(one.lower(), one)
    holding = [lower for lower in by_lower if wanted and wanted in lower]
    alike = difflib.get_close_matches(wanted, list(by_lower), n=_MOST, cutoff=_NEAR)
    return [by_lower[lower] for lower in dict.fromkeys([*alike, *holding])][:_MOST]


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing where no name is near."""
    found = [repr(one) for one in near(name, names)]
    return f"; did you mean {' or '.join(found)}?" if found else ""
