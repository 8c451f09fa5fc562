"""A limit in seconds, where the user sets one."""

from __future__ import annotations

import math
import time


class Deadline:
    """Counts down from when it is made.

    Args:
        limit_s: seconds; None for no limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = math.inf if limit_s is None else limit_s
        self._start = time.monotonic()

    @property
    def spent(self) -> float:
        """The share of the limit that is used up; always 0 without a limit, so that time decides nothing."""
        return 0.0 if math.isinf(self.limit_s) else (time.monotonic() - self._start) / self.limit_s

    @property
    def passed(self) -> bool:
        """Whether the limit is used up."""
        return self.spent >= 1
