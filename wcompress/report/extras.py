"""The optional extra `[report]`, asked for before long work and not after it."""

from __future__ import annotations

import importlib.util

from wcompress.errors import OptionError

_PACKAGES = ("jinja2", "matplotlib")


def require_report_extra(what: str) -> None:
    """Make sure that figures can be drawn and pages written.

    Args:
        what: the job that needs it, for the message.

    Raises:
        OptionError: a package is missing; the message says how to install it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"{what}: {' and '.join(missing)} not installed; it needs `pip install wcompress[report]`")
