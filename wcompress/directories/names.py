"""Which names an index may hold: nothing that leads out of the folder, or that a terminal would take for a command."""

from __future__ import annotations

import re

MOST_NAME_CHARS = 1024
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")


def is_bare(name: str) -> bool:
    """Whether a name is that of a file in the folder itself, not hidden, and plain on every system."""
    return is_inside(name) and "/" not in name and ":" not in name


def is_inside(name: str) -> bool:
    """Whether a name with `/` between its parts leads to a file inside the folder, no part of it hidden."""
    if not name or len(name) > MOST_NAME_CHARS or _FORBIDDEN.search(name):
        return False
    return all(part and not part.startswith(".") for part in name.split("/"))
