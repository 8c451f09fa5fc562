"""The embedded default data: scikit-learn's 1,797 handwritten digits, brought to MNIST's size.

They come with scikit-learn, so nothing is downloaded. Every output names them: nobody shall take
them for MNIST.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from wcompress.errors import TaskError

DIGITS = "digits (scikit-learn, scaled to 28x28)"
"""The dataset name that outputs carry."""

_CYCLE, _N_TEST, _N_VAL = 18, 5, 2
"""Of every 18 examples of a class, 5 are for test and 2 for validation, the rest for training."""


def load_digits_28() -> tuple[Tensor, Tensor, str]:
    """Loads the digits, scaled bilinearly from 8x8 to 28x28.

    Returns:
        Images float32 [1797, 28, 28] in [0, 1]; labels int64 [1797]; where they come from.

    Raises:
        TaskError: scikit-learn is not installed.
    """
    try:
        import sklearn  # heavy, and an optional extra
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TaskError(
            "MNIST was not found and could not be downloaded, and the embedded data needs scikit-learn: "
            "pip install wcompress[demo], or put MNIST's four idx files in $WCOMPRESS_DATA/mnist"
        ) from error
    found = load_digits()
    small = torch.from_numpy(np.asarray(found.images, dtype=np.float32) / 16)
    images = functional.interpolate(small[:, None], size=(28, 28), mode="bilinear", align_corners=False)[:, 0]
    labels = torch.from_numpy(np.asarray(found.target, dtype=np.int64))
    return images.clamp(0, 1).contiguous(), labels, f"scikit-learn {sklearn.__version__}"


def split_stratified(labels: npt.NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
    """Deals examples to training, validation and test, each class in the same shares.

    Counting, rather than drawing, makes the split the same for every version of every random generator.

    Args:
        labels: int64 [n].

    Returns:
        Ascending indices for training, validation and test; together each of 0..n-1 once.
    """
    seen: dict[int, int] = {}
    train: list[int] = []
    val: list[int] = []
    test: list[int] = []
    for index, label in enumerate(labels.tolist()):
        turn = seen.get(label, 0) % _CYCLE
        seen[label] = seen.get(label, 0) + 1
        (test if turn < _N_TEST else val if turn < _N_TEST + _N_VAL else train).append(index)
    return train, val, test
