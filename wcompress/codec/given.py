"""Encoding symbols that are already chosen: what refinement hands to the codec, and what the codec makes of it.

The narrow door between the two: whoever chooses symbols knows nothing of how they are coded, and the codec nothing of
why they were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from wcompress.archive import frame_bytes
from wcompress.checkpoint import Checkpoint
from wcompress.codec.encoded import Encoded
from wcompress.codec.kinds import GivenKinds
from wcompress.codec.methods.trellis import VaeCode
from wcompress.codec.models.context.encoder import ContextEncoder
from wcompress.codec.models.context.model import ContextModel
from wcompress.codec.plan import plan_tensors
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.sequence import Sequencing, choose_layout
from wcompress.codec.quantiser.step_scales import OwnScales
from wcompress.codec.quantiser.trellis import trellis
from wcompress.codec.rate_control.solution import EncoderConfig
from wcompress.codec.storage.exact import encode_raw
from wcompress.codec.storage.near_exact import encode_fine

Ints = npt.NDArray[np.int32]

GIVEN_FINE_SQNR_DB = 26.0
"""How precisely fine tensors are kept beside given symbols; what matters of them is refined, or coded."""


@dataclass(frozen=True)
class GivenSymbols:
    """A model as whole numbers: tensor = symbols · step · 2^(exponent / 4).

    Attributes:
        step: before a tensor's own scale.
        symbols: of each coded tensor by name, int32 of the tensor's shape; any float tensor of one or more dimensions
            may be among them.
        exponents: of each coded tensor, in quarter octaves.
        fine: values of float tensors that are not coded and differ from the checkpoint's.
    """

    step: float
    symbols: Mapping[str, Ints]
    exponents: Mapping[str, int]
    fine: Mapping[str, torch.Tensor] = field(default_factory=dict)


def encode_given(
    checkpoint: Checkpoint,
    given: GivenSymbols,
    *,
    block_size: int = 2048,
    latent_dim: int = 64,
    effort: int = 5,
    seed: int = 0,
) -> Encoded:
    """Sections for given symbols, each tensor of the checkpoint kept in its kind.

    Args:
        checkpoint: names, dtypes, ties, and the values of whatever is not given.
        given: the symbols.
        block_size, latent_dim: of the prior.
        effort: 1 to 9.
        seed: of the training of the model that they are coded under.
    """
    kinds = dict.fromkeys(given.fine, "fine") | dict.fromkeys(given.symbols, "coded")
    plan = plan_tensors(checkpoint, GivenKinds(checkpoint, kinds))
    entries = plan.entries
    fine = {name: given.fine.get(name, tensor) for name, tensor in plan.fine.items()}
    coded = tuple(e.name for e in entries if e.kind == "coded")
    arrays = [given.symbols[e.name].astype(np.float64) for e in entries if e.kind == "coded"]
    sub_size = block_size // latent_dim
    config = EncoderConfig(
        machine=trellis(1), use_prior=False, prior_steps=100 + 40 * effort, seed=seed, device="cpu", mix=effort > 1
    )
    layouts = tuple(choose_layout(a, sub_size) for a in arrays)
    sequencing = Sequencing(tuple(a.shape for a in arrays), layouts, block_size, latent_dim, ContextModel.unit_blocks)
    sequence = sequencing.flatten(arrays)
    solution = ContextEncoder(sequence, sequencing, config).describe(1.0, sequence.astype(np.int32), Levels())
    code = VaeCode(
        sequencing,
        config.machine,
        given.step,
        OwnScales(tuple((given.exponents[name],) for name in coded)),
        solution.model,
        solution.levels,
        solution.symbols,
    )
    payloads, n_latents = code.to_sections(), int(solution.model.scales.latents.size)
    fine_bytes = encode_fine(fine, GIVEN_FINE_SQNR_DB)
    raw = encode_raw(plan.raw.values())
    padding = -sum(a.size for a in arrays) % block_size
    return Encoded(entries, {**payloads, "fine": fine_bytes, "raw": raw}, padding, n_latents, refined=True)


def archive_bytes(checkpoint: Checkpoint, encoded: Encoded) -> int:
    """What the archive of an encoded model takes, every byte, give or take one for its SQNR's digits."""
    manifest = encoded.manifest(checkpoint, sqnr_db=math.pi)
    sizes = [len(manifest.to_bytes()), *(len(data) for data in encoded.payloads.values() if data)]
    return sum(sizes) + frame_bytes(sizes)
