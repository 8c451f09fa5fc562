"""Where torch computes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from wcompress.errors import OptionError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; the others stay as they are.

    Raises:
        OptionError: no such device, or CUDA was asked for and there is none.
    """
    if name not in DEVICES:
        raise OptionError(f"device {name!r}: must be {', '.join(DEVICES)}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise OptionError("device 'cuda': this torch sees no CUDA device; use cpu or auto")
    return "cuda" if available and name != "cpu" else "cpu"


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads within the block; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None:
        # torch takes any number, and dies of too many.
        torch.set_num_threads(min(threads, max(before, 4 * (os.cpu_count() or 1))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_torch_thread() -> contextlib.AbstractContextManager[None]:
    """Let torch use one CPU thread within the block: sums over several depend on how many there are.

    Networks in here are so small that more threads gain little when idle, and lose much on a busy machine.
    """
    return torch_threads(1)
