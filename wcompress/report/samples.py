"""Test digits with what the original and the restored model make of them (the paper's Figures 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from wcompress.evaluate import build_model, read_tensors
from wcompress.report.pipeline import BaselineRun
from wcompress.tasks import BaselineTask, MnistData, predictions

N_FIRST, N_DIFFERING = 30, 10


@dataclass(frozen=True, eq=False)
class Digit:
    """A test image and its predictions.

    Attributes:
        group: `first`, one of the first test images; `differs`, a later one on which the two models disagree.
        index: in the test images.
        image: float32 `[28, 28]` in [0, 1].
        label: the truth.
        original, restored: predicted classes.
    """

    group: str
    index: int
    image: npt.NDArray[np.float32]
    label: int
    original: int
    restored: int


@dataclass(frozen=True, eq=False)
class Samples:
    """What a figure shows, and how it stands with all test images.

    Attributes:
        digits: the first `N_FIRST` test images, then up to `N_DIFFERING` later ones on which the models disagree.
        n_test, n_differing: test images, and how many of them the two models put into different classes.
        errors_original, errors_restored: wrong predictions among the first `N_FIRST`.
    """

    digits: tuple[Digit, ...]
    n_test: int
    n_differing: int
    errors_original: int
    errors_restored: int


def choose_samples(run: BaselineRun, data: MnistData) -> Samples:
    """Predict all test images with both files, and take those to show by a fixed rule.

    Args:
        run: a model's files.
        data: its data.
    """
    task = BaselineTask(run.name, data)
    original, restored = (
        predictions(build_model(task, read_tensors(path)), data.test_images).tolist()
        for path in (run.checkpoint, run.restored)
    )
    labels = data.test_labels.tolist()
    n_first = min(N_FIRST, len(labels))
    differing = [i for i in range(len(labels)) if original[i] != restored[i]]
    later = list(islice((i for i in differing if i >= n_first), N_DIFFERING))
    digits = tuple(
        Digit(group, i, data.test_images[i].numpy(), labels[i], original[i], restored[i])
        for group, indices in (("first", range(n_first)), ("differs", later))
        for i in indices
    )
    first = digits[:n_first]
    return Samples(
        digits=digits,
        n_test=len(labels),
        n_differing=len(differing),
        errors_original=sum(d.original != d.label for d in first),
        errors_restored=sum(d.restored != d.label for d in first),
    )
