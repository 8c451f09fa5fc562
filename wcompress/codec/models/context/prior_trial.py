"""Whether a VAE prior would pay, told before one is trained.

Two questions, the cheaper one first. Would naming scales for sub-blocks, or for several neighbours together, make the
symbols so much cheaper, by the costs that a prior is trained on? And does the coder agree, when it codes the symbols
with these scales told? Those costs know of a weight its expected scale alone, while the coder learns as it goes: of
runs of zeros, say, or of places where scales are seldom what was expected. What costs promise and the coder knows
already is lost when latents tell it again. See docs/decisions/0003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wcompress.codec.models.context.model import ContextModel, ScaleNetwork, stream_starts
from wcompress.codec.models.scale_prior import ScaleModel
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.trellis import Trellis
from wcompress.entropy.context.state import PRIOR_FEATURE
from wcompress.vae.prior import KERNEL, N_CLASSES, PriorDecoder

Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Symbols = npt.NDArray[np.int32]

NEUTRAL = N_CLASSES // 2
"""The class that leaves a sub-block's scales as they are expected."""

_WORTH_TRYING, _WORTH_TRAINING = 0.005, 0.01  # of the symbols' bits: to save by their costs, and by the coder
_TOGETHER = (1, 2, 4, 8, 16)
_HALF_OCTAVE = 127  # of a decoder's units, of which there are 128; a weight can be no larger


@dataclass(frozen=True)
class Told:
    """Classes that are named to the coder.

    Attributes:
        saved_bits: of symbols by their costs, less what the names take.
        name_bits: what the names take.
        classes: of each sub-block, less the neutral one, int64 `[n_sub_blocks]`.
    """

    saved_bits: float
    name_bits: float
    classes: npt.NDArray[np.int64]


def class_costs(magnitudes: Floats, scales: Floats) -> Singles:
    """What sub-blocks would cost if their scales were so many half octaves larger or smaller.

    Args:
        magnitudes: of the weights in steps, `[n_sub_blocks, sub_size]`.
        scales: that are expected of them, in steps, same shape; 0 where there is no weight.

    Returns:
        Bits of each sub-block under each class, float32 `[n_sub_blocks, N_CLASSES]`.
    """
    costs = np.zeros((len(scales), N_CLASSES), np.float32)
    real = scales > 0
    for cls in range(N_CLASSES):
        tried = scales * 2.0 ** ((cls - NEUTRAL) / 2) + 0.1
        bits = np.where(real, np.log2(tried) + (magnitudes + 0.1) / tried / math.log(2), 0.0)
        costs[:, cls] = bits.sum(1)
    return costs


def best_told(costs: Singles, latent_dim: int) -> Told:
    """The classes that save most, named for each sub-block or for as many neighbours as is best.

    Args:
        costs: bits of each sub-block under each class, `[n_blocks · latent_dim, N_CLASSES]`.
        latent_dim: of the prior.
    """
    best = Told(0.0, 0.0, np.zeros(len(costs), np.int64))
    for size in _TOGETHER:
        if latent_dim % size:
            break
        pooled = costs.reshape(-1, size, N_CLASSES).sum(1, dtype=np.float64)
        lengths = np.where(np.arange(N_CLASSES) == NEUTRAL, 1.0, 5.0)
        chosen = np.zeros(len(pooled), np.int64)
        for _ in range(4):
            chosen = (pooled + lengths).argmin(1)
            counts = np.bincount(chosen, minlength=N_CLASSES) + 0.02
            lengths = -np.log2(counts / counts.sum())
        name_bits = float(lengths[chosen].sum())
        symbol_bits = float(np.take_along_axis(pooled, chosen[:, None], 1).sum())
        saved = float(pooled[:, NEUTRAL].sum()) - symbol_bits - name_bits
        if saved > best.saved_bits:
            best = Told(saved, name_bits, np.repeat(chosen - NEUTRAL, size))
    return best


def would_pay(
    model: ContextModel, symbols: Symbols, sequencing: Sequencing, machine: Trellis, costs: Singles, n_bits: int
) -> bool:
    """Whether a prior is worth its training.

    Args:
        model: without a prior.
        symbols: int32 `[n]`.
        sequencing: of them.
        machine: the trellis.
        costs: see `class_costs`, of all sub-blocks.
        n_bits: what the symbols take without a prior, about.
    """
    told = best_told(costs, sequencing.latent_dim)
    if told.saved_bits < _WORTH_TRYING * n_bits:
        return False
    n_streams = len(stream_starts(sequencing)) - 1
    stream = n_streams // 2  # one is told of for all
    first, last = (int(v) for v in stream_starts(sequencing)[stream : stream + 2])
    share = (last - first) / len(symbols)
    models = (model, _with_told(model, told, sequencing))
    before, after = (8 * len(one.encode(symbols, sequencing, machine, [stream])) for one in models)
    return before - after - share * told.name_bits >= _WORTH_TRAINING * before


def _with_told(model: ContextModel, told: Told, sequencing: Sequencing) -> ContextModel:
    """The model under which the coder knows the classes, whatever it takes to tell it."""
    nothing = np.zeros((0, KERNEL), np.int64)
    decoder = PriorDecoder(_HALF_OCTAVE, nothing, np.zeros(0, np.int64), nothing, 0)
    network = model.network
    linear, weights_in = network.linear.copy(), network.weights_in.copy()
    linear[PRIOR_FEATURE] = 32  # as it is told
    weights_in[:, PRIOR_FEATURE] = 0
    latents = told.classes.reshape(sequencing.n_blocks, sequencing.latent_dim)
    return replace(
        model,
        scales=ScaleModel(model.scales.bases, decoder, latents),
        network=ScaleNetwork(linear, weights_in, network.weights_out),
        _cache={},
    )
