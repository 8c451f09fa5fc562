"""One symbol ↔ bits: whether its magnitude is more than 0, its sign, whether it is more than 1, and so on; low bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import inlined
from wcompress.entropy.binary import code_bit, code_bits, code_exp_golomb
from wcompress.entropy.context.arithmetic import sign
from wcompress.entropy.context.mixing import first_guess, learn, mixed, stretched, weigh, within
from wcompress.entropy.context.state import N_BINS, N_SCALES, PROBABILITY_BITS, Learnt, Workspace
from wcompress.entropy.context.tables import LIMITS, Tables

Ints = npt.NDArray[np.int64]
Buffer = npt.NDArray[np.uint8]

_MAX_TENSORS = 32


@inlined
def _clipped(x: int) -> int:
    # A feature as one of 32 classes.
    return min(max((x >> 3) + 12, 0), 31)


@inlined
def _look_up(at: Ints, tensor: int, scale_at: int, x: Ints) -> None:
    # All but the first set, which is looked up by scale and expectation.
    at[1] = min(tensor, _MAX_TENSORS - 1) * 128 + (scale_at >> 1)
    at[2] = (scale_at >> 2) * 32 + _clipped(x[3])
    at[3] = (scale_at >> 2) * 32 + _clipped(x[4])
    at[4] = _clipped(x[0]) * 32 + _clipped(x[2])


@inlined
def _chance_of_more(
    slot: int, ratio: int, scale_at: int, shape: int, n_sets: int, at: Ints, logit: Ints, learnt: Learnt, tables: Tables
) -> int:
    p_scale, c_scale, p_more, c_more, _, _, mix, _ = learnt
    squash, stretch, _, _ = tables
    first = at[0]
    if c_scale[slot, first] == 0:
        p_scale[slot, first] = first_guess(p_scale[slot], c_scale[slot], ratio, scale_at, shape, squash)
        c_scale[slot, first] = 1
    if n_sets == 1:
        return within(p_scale[slot, first] >> (PROBABILITY_BITS - 16))
    logit[0] = stretched(p_scale[slot, first], stretch)
    more = slot * (n_sets - 1) - 1
    for s in range(1, n_sets):
        if c_more[more + s, at[s]] == 0:
            c_more[more + s, at[s]] = 1
            p_more[more + s, at[s]] = p_scale[slot, first]
        logit[s] = stretched(p_more[more + s, at[s]], stretch)
    return within(mixed(mix[slot], logit, n_sets, squash))


@inlined
def _learn_more(
    slot: int, bit: bool, probability: int, n_sets: int, at: Ints, logit: Ints, learnt: Learnt, rates: Ints
) -> None:
    p_scale, c_scale, p_more, c_more, _, _, mix, _ = learnt
    # No literals, of which each would compile anew.
    limit = np.int64(LIMITS[0]) if n_sets > 1 else np.int64(LIMITS[1])
    if n_sets > 1:
        weigh(mix[slot], logit, n_sets, probability, bit)
        more = slot * (n_sets - 1) - 1
        for s in range(1, n_sets):
            learn(p_more[more + s], c_more[more + s], at[s], bit, rates, limit)
    learn(p_scale[slot], c_scale[slot], at[0], bit, rates, limit)


@inlined
def _code_sign(
    decode: bool,
    positive: bool,
    tensor: int,
    scale_at: int,
    side: int,
    ratio: int,
    buffer: Buffer,
    work: Workspace,
    tables: Tables,
) -> bool:
    # Where neighbours say something of it.
    learnt, _, _, near, _, _, _, sign_at, flip, logit, coder = work
    _, _, _, _, p_sign, c_sign, _, mix_sign = learnt
    squash, stretch, _, rates = tables
    sign_at[0], flip[0] = ratio * 32 + (scale_at >> 3), side < 0
    for s in range(1, 4):
        nearer = 6 if s == 3 else 2 * s - 2  # before, above, lags away
        pair = 3 * sign(near[nearer]) + sign(near[nearer + 1])
        sign_at[s], flip[s] = min(tensor, _MAX_TENSORS - 1) * 8 + abs(pair), pair < 0
    for s in range(4):
        logit[s] = stretched(p_sign[s, sign_at[s]], stretch)
        if flip[s]:
            logit[s] = -logit[s]
    probability = within(mixed(mix_sign, logit, len(mix_sign), squash))
    positive = code_bit(coder, decode, positive, probability, buffer)
    weigh(mix_sign, logit, len(mix_sign), probability, positive)
    for s in range(4):
        learn(p_sign[s], c_sign[s], sign_at[s], positive != flip[s], rates, np.int64(LIMITS[0]))
    return positive


@inlined
def code_symbol(
    decode: bool,
    k: int,
    n_sets: int,
    tensor: int,
    quantiser: int,
    spacing: int,
    scale: int,
    scale_at: int,
    side: int,
    ratio: int,
    has_taps: bool,
    buffer: Buffer,
    work: Workspace,
    tables: Tables,
) -> int:
    learnt, _, _, _, _, x, at, _, _, logit, coder = work
    _, _, _, rates = tables
    # Lower bits of large symbols are as good as uniform and stay out of the probabilities.
    n_low = max(0, (scale_at >> 3) - 11 + spacing) if scale_at < N_SCALES - 1 else 14
    rounding = (1 << n_low) >> 1
    head = (k + rounding) >> n_low
    magnitude = abs(head)
    shape = max(-160, min(160, scale - 16 * n_low - 8))
    _look_up(at, tensor, scale_at, x)
    negative = False
    b = 0
    while b < N_BINS - 1:
        slot = 2 * b + quantiser
        ratio_at = 8 + ratio if b > 0 and ratio > 0 and (side > 0) == negative else ratio
        at[0] = ratio_at * N_SCALES + scale_at
        probability = _chance_of_more(slot, ratio_at, scale_at, shape, n_sets, at, logit, learnt, tables)
        bit = code_bit(coder, decode, magnitude > b, probability, buffer)
        _learn_more(slot, bit, probability, n_sets, at, logit, learnt, rates)
        if not bit:
            break
        b += 1
        if b == 1:  # the sign, as soon as there is one
            if has_taps:
                negative = not _code_sign(decode, head > 0, tensor, scale_at, side, ratio, buffer, work, tables)
            else:
                negative = not code_bit(coder, decode, head > 0, np.int64(32768), buffer)
    if b == N_BINS - 1:
        b += code_exp_golomb(coder, decode, magnitude - b + 1, buffer) - 1
    rest = code_bits(coder, decode, k - (head << n_low) + rounding, n_low, buffer)
    return ((-b if negative else b) << n_low) + rest - rounding
