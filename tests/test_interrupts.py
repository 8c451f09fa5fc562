"""An interruption ends the command with 130 and one line, whenever it comes and whoever drops the exception."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that raises again")

INTERRUPTED = "wcompress: interrupted; no output was left half written\n"
DEADLINE_S = 300  # of what takes a second or two; only a failure takes so long

MAIN = """
import contextlib, ctypes, gc, os, signal, sys, threading, time
arguments = sys.argv[1:]
sys.argv[1:] = arguments[1:]
# The tests may run in the background of a shell, where these are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):  # the handler runs between two of these
        pass
def say(text):
    print(text, file=sys.stderr, flush=True)
"""

RUN = """
from wcompress.__main__ import main
main()
"""


def python(code: str, *arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", MAIN + code + RUN, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            err = process.communicate(timeout=DEADLINE_S)[1]
        finally:
            process.kill()
    return process.returncode, err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.save({"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


AT_A_CALL = """
import wcompress.interrupts as interrupts
install, left = interrupts.install, int(arguments[0])
def count(frame, event, argument):
    global left
    if event in ("call", "c_call"):
        left -= 1
        if left == 0:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)
def install_and_count():
    install()
    interrupts.install = install
    sys.setprofile(count)
interrupts.install = install_and_count
"""


@pytest.mark.parametrize("n_calls", [1, 300, 20_000, 200_000, 450_000, 800_000, 1_300_000, 2_000_000])
def test_at_any_moment_of_imports_compilation_and_work(model: Path, n_calls: int) -> None:
    process = python(AT_A_CALL, str(n_calls), "pack", model, "--effort", "1", "--threads", "1", "-q")
    code, err = outcome(process)
    if code == 0:  # it was done before
        assert n_calls >= 1_000_000
        return
    assert (code, err) == (130, INTERRUPTED)
    assert list(model.parent.iterdir()) == [model]


AT_AN_IMPORT = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == arguments[0]:
            interrupt()
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["click", "wcompress.errors", "wcompress.cli.pack_command", "torch", "llvmlite"])
def test_while_it_imports(model: Path, module: str) -> None:
    assert outcome(python(AT_AN_IMPORT, module, "pack", model)) == (130, INTERRUPTED)
    assert list(model.parent.iterdir()) == [model]


LOST = {
    "by a callback from C": "ctypes.CFUNCTYPE(None)(interrupt)()",
    "by a finaliser": "type('Odd', (), {'__del__': lambda self: interrupt()})()",
    "by the garbage collector": "gc.callbacks.append(lambda *_: interrupt()); gc.collect(); gc.callbacks.clear()",
    "by whoever catches everything": "with contextlib.suppress(BaseException): interrupt()",
    "again and again": "interrupt_once = interrupt\n    for _ in range(3):\n"
    "        with contextlib.suppress(BaseException): interrupt_once(); time.sleep(0.2); interrupt_once = int",
}
INSTEAD_OF_WORK = """
def work(context):
    {lost}
    {then}
import wcompress.cli
wcompress.cli.cli.invoke = work
"""
FOR_EVER = "while True: time.sleep(0.01)"


@pytest.mark.parametrize("then", [FOR_EVER, "return"])
@pytest.mark.parametrize("lost", LOST)
def test_an_exception_that_is_dropped_is_raised_again(lost: str, then: str) -> None:
    process = python(INSTEAD_OF_WORK.format(lost=LOST[lost], then=then), "-", "demo")
    assert outcome(process) == (130, INTERRUPTED)


@pytest.mark.parametrize("error", ["RuntimeError('what a library makes of it')", "SystemExit(3)", "OSError(5, 'I/O')"])
def test_an_exception_that_becomes_another_is_an_interruption(error: str) -> None:
    lost = f"try: interrupt()\n    except BaseException: raise {error}"
    assert outcome(python(INSTEAD_OF_WORK.format(lost=lost, then="return"), "-", "demo")) == (130, INTERRUPTED)


def test_cleaning_up_is_not_interrupted_again() -> None:
    lost = "try: interrupt()\n    finally:\n        for _ in range(30): time.sleep(0.01)\n        say('cleaned')"
    code, err = outcome(python(INSTEAD_OF_WORK.format(lost=lost, then="return"), "-", "demo"))
    assert (code, err) == (130, "cleaned\n" + INTERRUPTED)


STUBBORN = INSTEAD_OF_WORK.format(
    lost="from wcompress.files import atomic_output; stack = contextlib.ExitStack()\n"
    "    stack.enter_context(atomic_output('out', force=False)).write_text('half'); say('ready')",
    then="while True:\n        with contextlib.suppress(BaseException): time.sleep(0.01)",
)


def test_whoever_insists_is_obeyed_and_nothing_is_left(tmp_path: Path) -> None:
    process = python(STUBBORN, "-", "demo", cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    for _ in range(10 * DEADLINE_S):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    assert outcome(process) == (130, INTERRUPTED)
    assert list(tmp_path.iterdir()) == []


WORKING = """
import wcompress.cli
from wcompress.codec import packing
def encode(*_):
    say("working")
    while True: time.sleep(0.01)
packing._encode = encode
"""


def test_a_pack_that_was_at_work(model: Path) -> None:
    process = python(WORKING, "-", "pack", model)
    assert process.stderr is not None
    assert process.stderr.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert outcome(process) == (130, INTERRUPTED)
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGINT, (130, INTERRUPTED)),
        (signal.SIGTERM, (143, INTERRUPTED.replace("interrupted", "terminated"))),
        (signal.SIGHUP, (129, INTERRUPTED)),
    ],
)
def test_every_signal_that_asks_for_an_end(number: signal.Signals, expected: tuple[int, str]) -> None:
    process = python(INSTEAD_OF_WORK.format(lost="say('working')", then=FOR_EVER), "-", "demo")
    assert process.stderr is not None
    assert process.stderr.readline() == "working\n"
    process.send_signal(number)
    assert outcome(process) == expected


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)" + INSTEAD_OF_WORK.format(lost="interrupt()", then="return")
    assert outcome(python(code, "-", "demo")) == (0, "")


def test_a_forked_worker_ends_by_the_signal_and_the_command_goes_on() -> None:
    lost = (
        "reader, writer = os.pipe(); child = os.fork()\n    if child == 0:\n"
        "        os.write(writer, b'!'); time.sleep(3600)\n"
        "    os.read(reader, 1); os.kill(child, signal.SIGTERM); status = os.waitpid(child, 0)[1]\n"
        "    say(os.WTERMSIG(status))"
    )
    process = python(INSTEAD_OF_WORK.format(lost=lost, then="return"), "-", "demo")
    assert outcome(process) == (0, f"{int(signal.SIGTERM)}\n")


def test_the_library_leaves_signals_alone() -> None:
    code = (
        "import signal\nbefore = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]\n"
        "import wcompress, wcompress.cli, wcompress.api, wcompress.files\n"
        "assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
