"""Interruptions that are not lost.

Python turns a signal into an exception wherever the main thread happens to be. Where that is a callback from C, a
finaliser, or a library that catches everything, the exception is dropped and the work goes on as if nothing had been
asked. So the command line remembers the signal, raises again what was dropped, and never calls interrupted work done.
Nothing here has an effect until `install` is called, which a library must not do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_AGAIN_S = 0.05
"""Until an exception that was raised must have begun to unwind the stack, or an import is looked at again."""
_IMPORT_S = 5.0
"""How long an import may take to come to its end: extension modules do not expect exceptions."""
_PATIENCE_S = 1.0
"""A second signal after that ends the process at once; until then it is taken for an echo of the first."""


class _State:
    """Of this process.

    Attributes:
        previous: what handled each signal before.
        number: the first signal that came.
        since: when, by the monotonic clock.
        over: the result is known.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As if nothing had been installed, and nothing had come."""
        self.previous: dict[int, Any] = {}
        self.number: int | None = None
        self.since = 0.0
        self.over = False


_state = _State()

unfinished: set[str] = set()
"""Paths of temporary files, which are removed when the process has to end at once."""


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP, those that are not ignored, by KeyboardInterrupt in the main thread."""
    if _state.previous:
        return
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            _state.previous[number] = signal.signal(number, _handle)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
    previous = sys.unraisablehook

    def unraisable(unraisable: Any) -> None:
        if _state.number is None:  # else it is the interruption, or what the interruption left half done
            previous(unraisable)

    sys.unraisablehook = unraisable


def received() -> int | None:
    """The signal that asked for an end, None where there was none."""
    return _state.number


def check() -> None:
    """Stop here if the work was interrupted: before an output appears, after imports, and when all is done.

    Raises:
        KeyboardInterrupt: it was.
    """
    if _state.number is not None:
        raise KeyboardInterrupt


def exit_code() -> int:
    """What an interrupted command exits with."""
    return 128 + (_state.number or signal.SIGINT)


def message() -> str:
    """What an interrupted command says."""
    verb = "terminated" if _state.number == signal.SIGTERM else "interrupted"
    return f"{verb}; no output was left half written"


def finish() -> None:
    """From here on the result is known, and nothing is raised any more; another signal ends the process at once."""
    _state.over = True
    _set_timer(0.0)


def _forget() -> None:
    # A worker that was forked ends as any process does; neither the signal nor the temporary files are its own.
    for number, handler in _state.previous.items():
        signal.signal(number, handler)
    _state.reset()
    unfinished.clear()


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.over:
        _end_at_once(number)
    if _state.number is None:
        _state.number, _state.since = number, now
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, _handle_again)
    elif now - _state.since > _PATIENCE_S:
        with contextlib.suppress(OSError):
            os.write(2, f"wcompress: {message()}\n".encode())
        _end_at_once(number)
    _deliver(frame)


def _handle_again(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if not _state.over:
        _deliver(frame)


def _deliver(frame: FrameType | None) -> None:
    _set_timer(_AGAIN_S)
    if _unwinding() or (_importing(frame) and time.monotonic() - _state.since < _IMPORT_S):
        return
    raise KeyboardInterrupt


def _unwinding() -> bool:
    """Whether the code that was interrupted is cleaning up after an earlier KeyboardInterrupt."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _set_timer(seconds: float) -> None:
    if _state.number is not None and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _end_at_once(number: int) -> NoReturn:
    for path in list(unfinished):
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - nothing that might be interrupted again
    os._exit(128 + number)
