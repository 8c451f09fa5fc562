"""The VAE prior as unpacking runs it: a latent for each block → a scale class for each sub-block. Integers only.

A block's latent has one number z for each of its sub-blocks. The decoder adds what two small convolutions over the
latents say to a base scale of the tensor, and the sum names the frequency tables under which the sub-block's symbols
are coded. Latents that say nothing are zero and cost next to nothing.

Source: the scale hyperprior of Ballé et al., arXiv 1802.01436, on blocks of weights as in Cheng et al.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

KERNEL = 5
UNITS_PER_OCTAVE = 8
WEIGHT_BITS = 5  # weights are in units of 2^-5
_WEIGHT_MAX = 127
_LATENT_MAX = 127
_BATCH_BLOCKS = 256
UNITS_PER_CLASS = 4  # half an octave
N_CLASSES = 33
LOWEST_SCALE = -4 * UNITS_PER_OCTAVE  # of class 0: log2 of the mean magnitude in steps, in units


def classes_of(scales: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """log₂ scales in units of 1/8 octave → the nearest class, 0 to 32."""
    nearest = np.floor((np.asarray(scales) - LOWEST_SCALE) / UNITS_PER_CLASS + 0.5)
    return np.clip(nearest, 0, N_CLASSES - 1).astype(np.int32)


@dataclass(frozen=True)
class PriorDecoder:
    """z → scale, in integers.

    Attributes:
        skip: what one unit of z adds, in units of 1/8 octave · 2^-5.
        weights_in: `[n_hidden, 5]`, biases_in `[n_hidden]`: the first convolution, followed by ReLU.
        weights_out: `[n_hidden, 5]`, bias_out: the second.
    """

    skip: int
    weights_in: Ints
    biases_in: Ints
    weights_out: Ints
    bias_out: int

    @property
    def n_hidden(self) -> int:
        """Channels between the convolutions."""
        return len(self.biases_in)

    def __call__(self, latents: Ints) -> Ints:
        """Latents `[n_blocks, latent_dim]`, |z| ≤ 127 → scales in units of 1/8 octave · 2^-5, same shape.

        All sums stay below 5 · 127 · 127 · 2^5 + … < 2^40, far inside int64.
        """
        out = self.skip * latents + self.bias_out
        for start in range(0, len(latents) if self.n_hidden else 0, _BATCH_BLOCKS):
            part = slice(start, start + _BATCH_BLOCKS)
            hidden = np.maximum(_convolve(latents[part, None, :], self.weights_in[:, None, :]) + self._column(), 0)
            out[part] += _convolve(hidden, self.weights_out[None, :, :])[:, 0, :] >> WEIGHT_BITS
        return out

    def _column(self) -> Ints:
        return self.biases_in[None, :, None]


def _convolve(x: Ints, weights: Ints) -> Ints:
    # x [n, n_in, length], weights [n_out, n_in, KERNEL], zero-padded to the same length.
    padded = np.pad(x, ((0, 0), (0, 0), (KERNEL // 2, KERNEL // 2)))
    out = np.zeros((x.shape[0], weights.shape[0], x.shape[2]), np.int64)
    for tap in range(KERNEL):
        window = padded[:, :, tap : tap + x.shape[2]]
        for n_in in range(x.shape[1]):
            out += weights[None, :, n_in, tap, None] * window[:, None, n_in, :]
    return out
