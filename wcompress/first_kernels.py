"""The process that compiles kernels ahead of a first run: see `wcompress.ahead`. It ends with its standard input.

It compiles the context coder's kernel, which takes longest, and then what packing needs last. Nothing here imports
torch, which would take as long as several kernels.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading

from wcompress import ahead, kernel_files

KERNELS = (
    (
        "wcompress.codec.quantiser.viterbi:_search_unit",
        "f4[] i8 i4[] i8 i4[] f4[,] f4[,,] f4[,] f4[,] f4[] f4[,,] i2[] u1[] f4[,] u1[,] i4[]",
    ),
    ("wcompress.codec.storage.field_scales:_count", "u2[] i8[] i8[] i8 i8 i8 b1 i8[,]"),
    ("wcompress.codec.storage.field_scales:_entropies", "i8[,] i8[] f8[] f8[]"),
    ("wcompress.codec.storage.field_scales:_place", "u2[] i8[] i8[] i8 i8 i8 b1 i8[] u2[]"),
    ("wcompress.entropy.arrays:_join_bits", "u1[] i8 u1[]"),
    ("wcompress.entropy.ans:put", "u2[] i8 u4[] u8[] u4[]"),
    ("wcompress.entropy.histogram:_read_levels", "=u1[] i8 i8 i8 i8[]"),
    ("wcompress.entropy.ans:take", "u4[] u8[] u4[] u2[] i8 i4[]"),
)
"""Kernels in the order in which they are needed, each with its arguments: numpy's short names of their types, with
brackets for arrays, with = for one that cannot be written to."""


def main() -> None:
    """Compile until all is done or standard input ends."""
    gc.disable()  # a short life leaves little to collect, and looking for it takes a tenth of the time
    threading.Thread(target=_end_with_input, daemon=True).start()
    _say(ahead.FIRST)
    ahead.announce(_say)
    _compile_first()
    kernel_files.save(ahead.marker(), b"")
    for place, types in KERNELS:
        _compile(place, types)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    with kernel_files.saving:
        os._exit(0)


def _say(name: str) -> None:
    os.write(1, f"{name}\n".encode())


def _compile_first() -> None:
    import numpy as np

    from wcompress.compiled import compile_for
    from wcompress.entropy.context.state import workspace
    from wcompress.entropy.context.tables import TABLES
    from wcompress.entropy.context.unit import run_unit

    longs, grid = np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
    symbols, states, buffer = np.zeros(0, np.int32), np.zeros((0, 2), np.int32), np.zeros(0, np.uint8)
    features, scales, ratios = np.zeros((0, 0), np.int16), np.zeros(0, np.int16), np.zeros(0, np.int8)
    numbers, tensors = (0, 0, 0, 0, False), (longs, longs, longs, longs, longs)
    network = (longs, grid, longs, grid)
    described = (features, scales, ratios)
    work = workspace(0, 0, 1)
    compile_for(
        run_unit, *numbers, symbols, longs, states, *tensors, 0, *network, 0, TABLES, buffer, 0, work, *described
    )


def _compile(place: str, types: str) -> None:
    import numpy as np

    from wcompress.compiled import compile_for

    examples: list[object] = []
    for text in types.split():
        name, _, axes = text.strip("=").partition("[")
        if axes:
            array = np.zeros((0,) * (1 + axes.count(",")), name)
            array.flags.writeable = "=" not in text
            examples.append(array)
        else:
            examples.append({"i8": 0, "f8": 0.0, "b1": False}[name])
    module, name = place.split(":")
    compile_for(getattr(importlib.import_module(module), name), *examples)


if __name__ == "__main__":
    try:
        main()
    except Exception:  # what could not be compiled here is compiled where it is needed
        sys.exit(1)
