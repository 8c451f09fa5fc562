"""Memory that is mapped from a file: pages that were read are let go again, so that a large model is never all there.

Linux counts them as a process's memory until it needs them for something else. Pages let go are read again from the
file when somebody looks. Elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")

Span = tuple[int, int]


class MappedPages:
    """Where files are mapped.

    The mappings must live as long as this does, and nobody may have written to them: what was written would be lost.

    Args:
        spans: first address and the one behind the last, of each mapping.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = sorted(spans)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> MappedPages:
        """Where this process has mapped some files; nowhere on a system that does not tell."""
        try:
            inodes = {path.stat().st_ino for path in paths} - {0}
            lines = _MAPS.read_text(errors="replace").splitlines()
        except OSError:
            return cls()
        spans = []
        for line in lines:
            # "start-end permissions offset device inode path"
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and int(fields[4]) in inodes:
                start, _, end = fields[0].partition("-")
                spans.append((int(start, 16), int(end, 16)))
        return cls(spans)

    def release(self, tensor: torch.Tensor) -> None:
        """Lets go of the whole pages in a tensor's memory that are mapped; the tensor's values stay what they are.

        Args:
            tensor: contiguous, of any dtype.
        """
        advise = _madvise() if self._spans else None
        if advise is None or not tensor.numel():
            return
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        for start, end in self._spans:
            low, high = max(first, start), min(last, end)
            low, high = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
            if low < high:
                advise(low, high - low, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if os.name != "posix" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
