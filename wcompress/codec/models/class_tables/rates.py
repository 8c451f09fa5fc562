"""What a search takes symbols to cost under class tables, before there are any and under those that there are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.models.class_tables.tables import LOW_BITS, ClassTables, upper
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.vae.prior import LOWEST_SCALE, N_CLASSES, UNITS_PER_CLASS, UNITS_PER_OCTAVE

Floats = npt.NDArray[np.float64]


def magnitudes_guessed(means: Floats, machine: Trellis, limit: int) -> tuple[Floats, Floats]:
    """Probabilities of weights whose distribution is half Laplace, half Gauss.

    Args:
        means: mean magnitudes in steps, `[n_classes]`.
        machine: the trellis.
        limit: largest magnitude of a symbol.

    Returns:
        Of 0, `[n_classes, 2]` by quantiser, and of the magnitudes 1 to limit, both signs together,
        `[n_classes, 2, limit]`; never quite nothing.
    """
    edges = machine.spacing * (np.arange(limit + 1) + 0.5) - np.array([[0.0], [0.5 if machine.n_states > 1 else 0.0]])
    relative = edges / means[:, None, None]
    gauss = torch.erfc(torch.from_numpy(relative / np.sqrt(np.pi))).numpy()
    tail = 0.5 * np.exp(-np.minimum(relative, 600)) + 0.5 * gauss
    rest = np.maximum(tail[:, :, :-1] - tail[:, :, 1:], 2e-7 * 0.8 ** np.minimum(np.arange(limit), 60))
    return np.maximum(1 - tail[:, :, 0], 1e-7), rest


def parametric_rates(machine: Trellis, limit: int) -> npt.NDArray[np.float32]:
    """Code lengths before any table is known, float32 `[N_CLASSES, 2, 2·limit + 1]`."""
    octaves = (LOWEST_SCALE + UNITS_PER_CLASS * np.arange(N_CLASSES)) / UNITS_PER_OCTAVE
    zero, rest = magnitudes_guessed(np.exp2(octaves), machine, limit)
    p = np.concatenate([rest[:, :, ::-1] / 2, zero[:, :, None], rest / 2], axis=2)
    rates: npt.NDArray[np.float32] = -np.log2(p).astype(np.float32)
    return rates


def table_rates(tables: ClassTables, fallback: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Code lengths under tables, with `fallback` for classes that have none, same shape."""
    rates = fallback.copy()
    limit = rates.shape[2] // 2
    k = np.arange(-limit, limit + 1, dtype=np.int32)
    for cls, owner in enumerate(tables.owner):
        if owner < 0:
            continue
        head = upper(k, int(LOW_BITS[cls]))
        for quantiser, table in enumerate(tables.pairs[owner]):
            bits, edge = table.bits, table.limit
            inside = bits[np.clip(head + edge, 0, 2 * edge)]
            # Beyond the table symbols are possible, since tables are fitted again, but dear.
            rates[cls, quantiser] = inside + LOW_BITS[cls] + 3.0 * np.maximum(np.abs(head) - edge, 0)
    return rates
