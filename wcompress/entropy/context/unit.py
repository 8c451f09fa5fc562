"""Coding a unit of the sequence, or decoding it: one function, so that the two cannot drift apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.binary import POSITION, finish, start
from wcompress.entropy.context.arithmetic import mean_log, sign
from wcompress.entropy.context.neighbours import (
    expected_value,
    features,
    forget,
    look_around,
    next_row,
    predicts,
    relative_scale,
    remember,
    strength,
)
from wcompress.entropy.context.state import N_FEATURES, N_SCALES, PRIOR_FEATURE, Workspace
from wcompress.entropy.context.symbols import code_symbol
from wcompress.entropy.context.tables import FRACTION, LOWEST, MAX_SYMBOL, Tables

Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.int32]


@compiled()
def run_unit(
    first: int,
    last: int,
    tensor: int,
    trellis_unit: int,
    decode: bool,
    symbols: Symbols,
    trellis_starts: Ints,
    next_state: Symbols,
    starts: Ints,
    columns: Ints,
    lags: Ints,
    bases: Ints,
    latent_scales: Ints,
    sub_shift: int,
    linear: Ints,
    weights_in: Ints,
    weights_out: Ints,
    taps: Ints,
    n_sets: int,
    tables: Tables,
    buffer: npt.NDArray[np.uint8],
    n_bytes: int,
    work: Workspace,
    features_out: npt.NDArray[np.int16],
    scales_out: npt.NDArray[np.int16],
    ratios_out: npt.NDArray[np.int8],
) -> int:
    """Code one unit of the sequence, or decode it.

    Args:
        first, last: where in the sequence the unit lies.
        tensor, trellis_unit: those that `first` lies in.
        decode: fill `symbols`; otherwise they are given.
        symbols: int32 `[n]` of the whole sequence.
        trellis_starts: where the trellis starts from state 0.
        next_state: of the trellis, `[n_states, 2]`.
        starts: where each tensor begins, and where the last ends.
        columns, lags: of each tensor: length of a row, and a further distance at which weights are alike, or 0.
        bases: mean magnitude of each tensor in steps, 12 bits after the point.
        latent_scales: what the VAE prior says of each sub-block, relative to the base, in 1/16 octave; or empty.
        sub_shift: log2 of a sub-block's weights.
        linear: `[N_FEATURES + 1]`, in units of 1/32, the last one for a constant of one octave.
        weights_in: `[n_hidden, N_FEATURES + 1]`, as `linear`; weights_out: `[n_hidden]`, in units of 1/32.
        taps: `[n_tensors, N_TAPS]`, in units of 1/64.
        n_sets: sets of probabilities to mix, 1 to 5; 0 to code nothing.
        tables: `TABLES`.
        buffer: bytes written, or read.
        n_bytes: how many of them there are.
        work: of this unit, fresh.
        features_out: int16 `[n, N_FEATURES]`, or empty.
        scales_out: int16 `[n]`, the scale's index, or empty.
        ratios_out: int8 `[n]`, signed class of what the symbol is expected to be, or empty.

    Returns:
        Bytes written, or read; -1 where `buffer` is too short or a symbol out of range.
    """
    spacing = 2 if len(next_state) > 1 else 1
    one = 1 << FRACTION
    _, means, values, near, sizes, x, _, _, _, _, coder = work
    _, _, log, _ = tables
    start(coder, decode, n_bytes, buffer)

    state = 0
    i = first
    while i < last:
        begin, end = starts[tensor], min(starts[tensor + 1], last)
        n_columns, lag = columns[tensor], lags[tensor]
        edge = max(begin - first, 0)
        base = bases[tensor]
        base_log = mean_log(base, one, log)
        n_lag = lag if 0 < lag < n_columns else 1
        forget(means, n_columns, base)
        column = (i - begin) % n_columns
        has_taps = predicts(taps[tensor])
        while i < end:
            if i == trellis_starts[trellis_unit]:
                state = 0
                trellis_unit += 1
            if column == n_columns:
                column = 0
                next_row(means, base)
            j = i - first
            look_around(j, edge, column, n_columns, lag, base, values, near, sizes)
            features(x, sizes, means, column, n_columns, n_lag, base, base_log, log)
            x[PRIOR_FEATURE] = latent_scales[i >> sub_shift] if len(latent_scales) else 0
            for f in range(N_FEATURES if len(features_out) else 0):
                features_out[i, f] = x[f]
            scale = base_log + relative_scale(x, linear, weights_in, weights_out)
            scale_at = min(max((scale - LOWEST) >> 1, 0), N_SCALES - 1)
            expected = expected_value(taps[tensor], near) if has_taps else 0
            side, ratio = sign(expected), strength(expected, scale, log)
            if len(scales_out):
                scales_out[i] = scale_at
                ratios_out[i] = side * ratio
            k = int(symbols[i])
            quantiser = state & 1
            if n_sets > 0:
                found = code_symbol(
                    decode,
                    k,
                    n_sets,
                    tensor,
                    quantiser,
                    spacing,
                    scale,
                    scale_at,
                    side,
                    ratio,
                    has_taps,
                    buffer,
                    work,
                    tables,
                )
                if decode:
                    if abs(found) > MAX_SYMBOL:
                        return -1
                    k = symbols[i] = found
            nominal = spacing * abs(k) - (1 if quantiser == 1 and k != 0 else 0)
            values[j] = nominal if k > 0 else -nominal
            state = next_state[state, k & 1]
            remember(means, column, column % n_lag, nominal << FRACTION)
            column += 1
            i += 1
        tensor += 1
        while i < last and starts[tensor + 1] <= i:
            tensor += 1
    if decode or n_sets == 0:
        return int(coder[POSITION])
    return finish(coder, buffer)
