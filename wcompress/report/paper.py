"""What the paper prints, to stand beside what is measured here.

Source: Cheng et al., "Variational Autoencoder-based Neural Network Model Compression", Tables 1 and 2, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

CITATION = "Cheng, Guan, Taherkordi, Liu and Lan, “Variational Autoencoder-based Neural Network Model Compression”"
LATENT_DIM = 64
"""The latent's size in the paper's Table 2."""
SWEEP_LATENT_DIMS = (128, 64, 32, 16)
"""The paper goes from 128 to 64; 32 and 16 go on from there."""
SWEEP_MODEL = "mnist-cnn"
"""The paper chooses the latent's size on the CNN."""


@dataclass(frozen=True)
class PaperRow:
    """One model of the paper's tables.

    Attributes:
        title: what the paper calls it.
        neurons: per layer, as Table 1 prints them.
        n_params: as Table 1 prints it.
        score_before, score_after: test accuracy of the original and of the reconstructed model, percent (Table 2).
    """

    title: str
    neurons: str
    n_params: int
    score_before: float
    score_after: float


PAPER = {
    "mnist-fnn": PaperRow("FNN", "784, 200, 100, 60, 30, 10", 185_300, 98, 97),
    "mnist-cnn": PaperRow("CNN", "784, 3136, 1568, 588, 200, 10", 122_270, 98, 97),
    "mnist-rnn": PaperRow("RNN", "28, 128, 128, 10", 54_538, 90, 89),
    "mnist-lstm": PaperRow("LSTM", "28, 128, 128, 10", 214_282, 98, 98),
}
"""By the name of the built-in task, in the paper's order."""
