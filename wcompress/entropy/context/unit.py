"""Coding a unit of the sequence, or decoding it: one function, so that the two cannot drift apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.binary import POSITION, code_bit, code_bits, code_exp_golomb, finish, start
from wcompress.entropy.context.arithmetic import log2, mean_log, sign
from wcompress.entropy.context.mixing import first_guess, learn
from wcompress.entropy.context.state import (
    N_BINS,
    N_FEATURES,
    N_SCALES,
    PROBABILITY_BITS,
    UNITS_PER_OCTAVE,
    Workspace,
)
from wcompress.entropy.context.tables import FRACTION, LIMITS, LOWEST, MAX_SYMBOL, MAX_TENSORS, N_TAPS

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
    squash: Ints,
    stretch: Ints,
    log: Ints,
    rates: Ints,
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
        squash, stretch, log, rates: see `tables`.
        buffer: bytes written, or read.
        n_bytes: how many of them there are.
        work: of this unit, fresh.
        features_out: int16 `[n, N_FEATURES]`, or empty.
        scales_out: int16 `[n]`, the scale's index, or empty.
        ratios_out: int8 `[n]`, signed class of what the symbol is expected to be, or empty.

    Returns:
        Bytes written, or read; -1 where `buffer` is too short or a symbol out of range.
    """
    n_hidden = len(weights_out)
    spacing = 2 if len(next_state) > 1 else 1
    one = 1 << FRACTION
    # Alone a probability has to be accurate, mixed it has to follow. No literals, of which each would compile anew.
    quick = np.int64(LIMITS[0])
    limit = quick if n_sets > 1 else np.int64(LIMITS[1])
    p_scale, c_scale, p_more, c_more, p_sign, c_sign = work[:6]
    mix, mix_sign, slow, n_slow, fast, n_fast, by_lag, n_by_lag = work[6:14]
    values, x, logit, at, sign_at, flip, coder = work[14:]
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
        for c in range(n_columns):
            slow[c], n_slow[c], fast[c], n_fast[c], by_lag[c], n_by_lag[c] = 0, 0, 0, 0, 0, 0
        row, n_row, row_before = 0, 0, base
        column = (i - begin) % n_columns
        tensor_at = min(tensor, MAX_TENSORS - 1)
        has_taps = False
        for t in range(N_TAPS):
            has_taps = has_taps or taps[tensor, t] != 0
        while i < end:
            if i == trellis_starts[trellis_unit]:
                state = 0
                trellis_unit += 1
            if column == n_columns:
                column = 0
                row_before = ((row + 4 * base) << FRACTION) // (n_row + 4 * one)
                row, n_row = 0, 0
            j = i - first
            # Neighbours, and whether they are there.
            has_1, has_2 = column > 0 and j > edge, column > 1 and j - 1 > edge
            has_3, has_4 = column > 2 and j - 2 > edge, column > 3 and j - 3 > edge
            up_1, up_2 = j - n_columns >= edge, j - 2 * n_columns >= edge
            up_left = column > 0 and j - n_columns > edge
            up_right = column + 1 < n_columns and up_1
            lag_1 = lag > 0 and j - lag >= edge and (lag >= n_columns or column >= lag)
            lag_2 = lag_1 and j - 2 * lag >= edge and (lag >= n_columns or column >= 2 * lag)
            v_1 = values[j - 1] if has_1 else 0
            v_2 = values[j - 2] if has_2 else 0
            v_up_1 = values[j - n_columns] if up_1 else 0
            v_up_2 = values[j - 2 * n_columns] if up_2 else 0
            v_up_left = values[j - n_columns - 1] if up_left else 0
            v_up_right = values[j - n_columns + 1] if up_right else 0
            v_lag_1 = values[j - lag] if lag_1 else 0
            v_lag_2 = values[j - 2 * lag] if lag_2 else 0
            # Logarithms of mean magnitudes, drawn towards the tensor's where little has been seen.
            m_1 = abs(v_1) << FRACTION if has_1 else base
            m_2 = abs(v_2) << FRACTION if has_2 else base
            m_3 = abs(values[j - 3]) << FRACTION if has_3 else base
            m_4 = abs(values[j - 4]) << FRACTION if has_4 else base
            m_up_1 = abs(v_up_1) << FRACTION if up_1 else base
            m_up_2 = abs(v_up_2) << FRACTION if up_2 else base
            m_up_left = abs(v_up_left) << FRACTION if up_left else base
            m_up_right = abs(v_up_right) << FRACTION if up_right else base
            m_lag_1 = abs(v_lag_1) << FRACTION if lag_1 else base
            m_lag_2 = abs(v_lag_2) << FRACTION if lag_2 else base
            x[0] = mean_log(slow[column] + 2 * base, n_slow[column] + 2 * one, log) - base_log
            x[1] = mean_log(fast[column] + 2 * base, n_fast[column] + 2 * one, log) - base_log
            x[2] = mean_log(row + 4 * base, n_row + 4 * one, log) - base_log
            x[3] = mean_log(4 * m_1 + 3 * m_2 + 2 * m_3 + m_4 + 2 * base, 12 * one, log) - base_log
            x[4] = mean_log(4 * m_up_1 + 2 * (m_up_2 + m_up_left + m_up_right + base), 12 * one, log) - base_log
            x[5] = mean_log(2 * m_lag_1 + m_lag_2 + base, 4 * one, log) - base_log
            slot = column % n_lag
            x[6] = 0
            if n_lag > 1:
                x[6] = mean_log(by_lag[slot] + 4 * base, n_by_lag[slot] + 4 * one, log) - base_log
            x[7] = mean_log(row_before, one, log) - base_log
            wide, n_wide = 2 * base, 2 * one
            for c in range(max(0, column - 3), min(n_columns, column + 4)):
                wide += slow[c]
                n_wide += n_slow[c]
            x[8] = mean_log(wide, n_wide, log) - base_log
            x[9] = latent_scales[i >> sub_shift] if len(latent_scales) else 0
            for f in range(N_FEATURES if len(features_out) else 0):
                features_out[i, f] = x[f]
            total = 0
            for f in range(N_FEATURES + 1):
                total += linear[f] * x[f]
            for h in range(n_hidden):
                hidden = 0
                for f in range(N_FEATURES + 1):
                    hidden += weights_in[h, f] * x[f]
                total += weights_out[h] * (max(hidden, 0) >> 5)
            scale = base_log + (total >> 5)
            scale_at = min(max((scale - LOWEST) >> 1, 0), N_SCALES - 1)
            expected = 0
            if has_taps:
                expected = (
                    taps[tensor, 0] * v_1
                    + taps[tensor, 1] * v_2
                    + taps[tensor, 2] * v_up_1
                    + taps[tensor, 3] * v_up_2
                    + taps[tensor, 4] * v_up_left
                    + taps[tensor, 5] * v_up_right
                    + taps[tensor, 6] * v_lag_1
                    + taps[tensor, 7] * v_lag_2
                )
            side = sign(expected)
            ratio = 0
            if side != 0:
                # From a quarter of the scale on, in half octaves.
                relative = log2(abs(expected), log) - 6 * UNITS_PER_OCTAVE - max(scale, LOWEST)
                ratio = min(max((relative + 36) >> 3, 0), 7)
            if len(scales_out):
                scales_out[i] = scale_at
                ratios_out[i] = side * ratio
            k = symbols[i]
            quantiser = state & 1
            if n_sets > 0:
                # Lower bits of large symbols are as good as uniform and stay out of the probabilities.
                n_low = max(0, (scale_at >> 3) - 11 + spacing) if scale_at < N_SCALES - 1 else 14
                rounding = (1 << n_low) >> 1
                head = (k + rounding) >> n_low
                magnitude = abs(head)
                shape = max(-160, min(160, scale - 16 * n_low - 8))
                at[1] = tensor_at * 128 + (scale_at >> 1)
                local = min(max((x[3] >> 3) + 12, 0), 31)
                at[2] = (scale_at >> 2) * 32 + local
                at[3] = (scale_at >> 2) * 32 + min(max((x[4] >> 3) + 12, 0), 31)
                at[4] = min(max((x[0] >> 3) + 12, 0), 31) * 32 + min(max((x[2] >> 3) + 12, 0), 31)
                negative = False
                b = 0
                while b < N_BINS - 1:
                    slot_at = 2 * b + quantiser
                    slot_more = slot_at * (n_sets - 1) - 1
                    ratio_at = ratio
                    if b > 0 and ratio > 0 and (side > 0) == negative:
                        ratio_at = 8 + ratio
                    at[0] = ratio_at * N_SCALES + scale_at
                    if c_scale[slot_at, at[0]] == 0:
                        guess = first_guess(p_scale[slot_at], c_scale[slot_at], ratio_at, scale_at, shape, squash)
                        p_scale[slot_at, at[0]] = guess
                        c_scale[slot_at, at[0]] = 1
                    probability = p_scale[slot_at, at[0]] >> (PROBABILITY_BITS - 16)
                    if n_sets > 1:
                        logit[0] = stretch[p_scale[slot_at, at[0]] >> (PROBABILITY_BITS - 12)]
                        dot = mix[slot_at, 0] * logit[0]
                        for s in range(1, n_sets):
                            if c_more[slot_more + s, at[s]] == 0:
                                c_more[slot_more + s, at[s]] = 1
                                p_more[slot_more + s, at[s]] = p_scale[slot_at, at[0]]
                            logit[s] = stretch[p_more[slot_more + s, at[s]] >> (PROBABILITY_BITS - 12)]
                            dot += mix[slot_at, s] * logit[s]
                        probability = squash[min(max(2047 + (dot >> 16), 0), 4094)]
                    probability = min(max(probability, 24), 65536 - 24)
                    bit = code_bit(coder, decode, magnitude > b, probability, buffer)
                    if n_sets > 1:
                        error = (65536 if bit else 0) - probability
                        for s in range(n_sets):
                            mix[slot_at, s] += (logit[s] * error + 8192) >> 14
                        for s in range(1, n_sets):
                            learn(p_more[slot_more + s], c_more[slot_more + s], at[s], bit, rates, quick)
                    learn(p_scale[slot_at], c_scale[slot_at], at[0], bit, rates, limit)
                    if not bit:
                        break
                    b += 1
                    if b > 1:
                        continue
                    # The sign, as soon as there is one.
                    probability = 32768
                    if has_taps:
                        pair = 3 * sign(v_1) + sign(v_2)
                        up_pair = 3 * sign(v_up_1) + sign(v_up_2)
                        lag_pair = 3 * sign(v_lag_1) + sign(v_lag_2)
                        sign_at[0], flip[0] = ratio * 32 + (scale_at >> 3), side < 0
                        sign_at[1], flip[1] = tensor_at * 8 + abs(pair), pair < 0
                        sign_at[2], flip[2] = tensor_at * 8 + abs(up_pair), up_pair < 0
                        sign_at[3], flip[3] = tensor_at * 8 + abs(lag_pair), lag_pair < 0
                        dot = 0
                        for s in range(4):
                            logit[s] = stretch[p_sign[s, sign_at[s]] >> (PROBABILITY_BITS - 12)]
                            if flip[s]:
                                logit[s] = -logit[s]
                            dot += mix_sign[s] * logit[s]
                        probability = squash[min(max(2047 + (dot >> 16), 0), 4094)]
                        probability = min(max(probability, 24), 65536 - 24)
                    positive = code_bit(coder, decode, head > 0, probability, buffer)
                    negative = not positive
                    if has_taps:
                        error = (65536 if positive else 0) - probability
                        for s in range(4):
                            mix_sign[s] += (logit[s] * error + 8192) >> 14
                            learn(p_sign[s], c_sign[s], sign_at[s], positive != flip[s], rates, quick)
                if b == N_BINS - 1:
                    b += code_exp_golomb(coder, decode, magnitude - b + 1, buffer) - 1
                rest = code_bits(coder, decode, k - (head << n_low) + rounding, n_low, buffer)
                if decode:
                    k = ((-b if negative else b) << n_low) + rest - rounding
                    if abs(k) > MAX_SYMBOL:
                        return -1
                    symbols[i] = k
            nominal = spacing * abs(k) - (1 if quantiser == 1 and k != 0 else 0)
            values[j] = nominal if k > 0 else -nominal
            state = next_state[state, k & 1]
            m = nominal << FRACTION
            row += m - (row >> 6)
            n_row += one - (n_row >> 6)
            slow[column] += m - (slow[column] >> 6)
            n_slow[column] += one - (n_slow[column] >> 6)
            fast[column] += m - (fast[column] >> 2)
            n_fast[column] += one - (n_fast[column] >> 2)
            by_lag[slot] += m - (by_lag[slot] >> 6)
            n_by_lag[slot] += one - (n_by_lag[slot] >> 6)
            column += 1
            i += 1
        tensor += 1
        while i < last and starts[tensor + 1] <= i:
            tensor += 1
    if decode or n_sets == 0:
        return int(coder[POSITION])
    return finish(coder, buffer)
