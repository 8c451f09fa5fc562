"""Kernels that another process compiles while this one is busy with something else.

numba compiles one kernel after the other, and a first run waits for some of them longer than for all its work. The
command line therefore starts one process that compiles what is needed late, `wcompress.first_kernels`; a program that
uses the library gets none. What that process says, a line for each file that it is about to make, tells when to wait
for it. It is a help and nothing more: where it fails or is ended, kernels are compiled here, as they always are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wcompress import kernel_files

FIRST = "wcompress_entropy_context_unit_run_unit-"
"""What the name of the first kernel's file begins with; it takes as long as half of the others together."""
_PATIENCE_S = 60.0
"""After that the other process is taken for one that stands still."""
_HOME = Path(__file__).parent


class _Helper:
    """The other process, and what it is at.

    Args:
        command: starts it.

    Attributes:
        at: the name of the file that it is about to make, or what that begins with; None where it has ended.
    """

    def __init__(self, command: Sequence[str]) -> None:
        places = [str(_HOME.parent), *(place for place in sys.path if place)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # it ends when this one is closed
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))},
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        self.at: str | None = FIRST
        self._changed = threading.Condition()
        self._of = os.getpid()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as lines:
            for line in lines:
                self._is_at(line.decode(errors="replace").strip())
        self._is_at(None)

    def _is_at(self, name: str | None) -> None:
        with self._changed:
            self.at = name
            self._changed.notify_all()

    def wait_for(self, name: str) -> bool:
        """Wait until a file is made, where it is being made; whether it was."""

        def makes_it() -> bool:
            return bool(self.at) and name.startswith(str(self.at))

        if os.getpid() != self._of or not makes_it():
            return False
        last = time.monotonic() + _PATIENCE_S
        with self._changed:
            while makes_it() and time.monotonic() < last:
                self._changed.wait(0.5)
            return not makes_it()

    def end(self) -> None:
        """Stop it, at work or not."""
        if os.getpid() != self._of:
            return
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _State:
    """Of this process.

    Attributes:
        is_allowed: the command line runs.
        helper: the process that was started.
        on_miss: is told of each kernel that no file holds.
    """

    is_allowed = False
    helper: _Helper | None = None
    on_miss: Callable[[str], None] | None = None


_state = _State()


def allow() -> None:
    """This process is the command line's, which may start another."""
    _state.is_allowed = True


def start() -> None:
    """Have kernels compiled in another process, where that was allowed, is possible and worth while."""
    if not _state.is_allowed or _state.helper is not None or not _is_possible():
        return
    if kernel_files.load(marker()) is None and kernel_files.can_save():
        with contextlib.suppress(OSError, ValueError):
            # -P: nothing is imported from the current folder, which may be the model's.
            _state.helper = _Helper([sys.executable, "-P", "-m", "wcompress.first_kernels"])


def finish() -> None:
    """End the other process, if there is one."""
    helper, _state.helper = _state.helper, None
    if helper is not None:
        helper.end()


def missed(name: str) -> bool:
    """Called where no file holds a kernel: whether one may do so by now, since it was being made and was waited for."""
    if _state.on_miss is not None:
        _state.on_miss(name)
    return _state.helper is not None and _state.helper.wait_for(name)


def announce(on_miss: Callable[[str], None]) -> None:
    """Have a function called with the name of each file that is about to be made by this process."""
    _state.on_miss = on_miss


def marker() -> str:
    """The name of a file that says that the first kernel was made; cheaper to tell than the name of the kernel's file.

    Where one of the environment or of a changed source is mistaken for another's, the first run takes longer.
    """
    sources = [*sorted((_HOME / "entropy" / "context").glob("*.py")), _HOME / "compiled.py"]
    numba = importlib.util.find_spec("numba")
    if numba is not None and numba.origin is not None:
        sources.append(Path(numba.origin).with_name("_version.py"))
    known = [sys.version]
    for path in sources:
        with contextlib.suppress(OSError):
            status = path.stat()
            known.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return f"first-{hashlib.sha256(repr(known).encode()).hexdigest()[:24]}{kernel_files.SUFFIX}"


def _is_possible() -> bool:
    is_python = not getattr(sys, "frozen", False) and re.fullmatch(
        r"python[\d.]*t?(\.exe)?", Path(sys.executable or "").name.lower()
    )
    compiles = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    # Under -O functions are others, and kernels too.
    return bool(is_python) and compiles and not sys.flags.optimize and _n_processors() > 1


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
