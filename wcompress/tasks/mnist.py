"""Finds MNIST, or the embedded digits in its place, and splits it.

Source: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wcompress.errors import TaskError
from wcompress.tasks.digits import DIGITS, load_digits_28, split_stratified
from wcompress.tasks.download import MNIST_FILES, download_mnist
from wcompress.tasks.idx import read_idx

_MAX_VAL, _VAL_SHARE = 5_000, 12
"""The last 5,000 of MNIST's 60,000 training images are for validation: one in 12, also of fewer images."""


@dataclass(frozen=True)
class MnistData:
    """Images of handwritten digits in three parts that share no image.

    Attributes:
        train_images: float32 [n, 28, 28] in [0, 1].
        train_labels: int64 [n], 0 to 9.
        val_images: as `train_images`; from the training side, for choices.
        val_labels: as `train_labels`.
        test_images: as `train_images`; held out, for reporting only.
        test_labels: as `train_labels`.
        dataset: "mnist", or the name of the embedded digits.
        source: the folder they were read from, or the package they come with.
    """

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    dataset: str
    source: str


def load_mnist(data_dir: Path | str | None = None) -> MnistData:
    """Loads MNIST from where it is first found, or else the embedded digits.

    The four idx files, gzipped or not, are looked for in `data_dir`, then in `$WCOMPRESS_DATA` (either has them
    in its folder `mnist`, or directly), then in the user cache: `wcompress/mnist` under `$XDG_CACHE_HOME` or
    `~/.cache`. Otherwise they are downloaded into that cache, unless `WCOMPRESS_OFFLINE` is 1. Where that
    fails too, scikit-learn's digits are used, and `dataset` says so. A place that the user named is never
    passed over: if the files are not there, that is an error.

    Args:
        data_dir: a folder that holds MNIST; None to go by the environment.

    Returns:
        The data, split.

    Raises:
        TaskError: a named folder lacks the files, a file is corrupt, or scikit-learn is needed and missing.
    """
    named = (Path(data_dir), "the data folder") if data_dir is not None else _from_environment()
    if named is not None:
        return _read_mnist(_folder_with_files(*named))
    cache = cache_dir()
    if not _missing(cache) or (os.environ.get("WCOMPRESS_OFFLINE") != "1" and download_mnist(cache)):
        return _read_mnist(cache)
    return load_embedded()


def load_embedded() -> MnistData:
    """Loads the embedded digits, without looking for MNIST.

    Returns:
        1,088 training, 200 validation and 509 test images, with the same share of every class in each.

    Raises:
        TaskError: scikit-learn is not installed.
    """
    images, labels, source = load_digits_28()
    train, val, test = (torch.tensor(part) for part in split_stratified(labels.numpy()))
    return MnistData(images[train], labels[train], images[val], labels[val], images[test], labels[test], DIGITS, source)


def cache_dir() -> Path:
    """Gives the folder that downloaded MNIST files are kept in; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "wcompress" / "mnist"


def _from_environment() -> tuple[Path, str] | None:
    """Gives the folder that `$WCOMPRESS_DATA` names, if it names one."""
    value = os.environ.get("WCOMPRESS_DATA")
    return (Path(value), "$WCOMPRESS_DATA") if value else None


def _folder_with_files(root: Path, called: str) -> Path:
    """Gives `root/mnist` or `root`, whichever holds all four files."""
    folders = [root / "mnist", root]
    for folder in folders:
        if not _missing(folder):
            return folder
    # Of the two, complain about the one that has some of the files, or else about root/mnist.
    folder = min(folders, key=lambda f: len(_missing(f)))
    raise TaskError(
        f"{folder}: {', '.join(_missing(folder))} not found, plain or .gz; "
        f"{called} {root} should have MNIST's four idx files in a folder mnist"
    )


def _missing(folder: Path) -> list[str]:
    """Names the idx files that a folder lacks."""
    return [name for name in MNIST_FILES if _find(folder, name) is None]


def _find(folder: Path, name: str) -> Path | None:
    """Finds an idx file in a folder, plain or gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_mnist(folder: Path) -> MnistData:
    """Reads the four files and holds the validation images out."""
    train_images, train_labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    n_train = len(train_labels) - min(_MAX_VAL, max(1, len(train_labels) // _VAL_SHARE))
    if n_train < 1:
        raise TaskError(f"{folder}: at least 2 training images expected, got {len(train_labels)}")
    return MnistData(
        train_images[:n_train],
        train_labels[:n_train],
        train_images[n_train:],
        train_labels[n_train:],
        test_images,
        test_labels,
        dataset="mnist",
        source=str(folder),
    )


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Reads images float32 [n, 28, 28] in [0, 1] and their labels int64 [n]."""
    images_path, images = _read(folder, f"{part}-images-idx3-ubyte", (28, 28))
    labels_path, labels = _read(folder, f"{part}-labels-idx1-ubyte", ())
    if len(images) != len(labels):
        raise TaskError(
            f"{labels_path}: {len(images):,} labels expected, as {images_path.name} has, got {len(labels):,}"
        )
    if labels.max() > 9:
        raise TaskError(f"{labels_path}: labels from 0 to 9 expected, got {labels.max()}")
    return torch.from_numpy(images).float().div_(255), torch.from_numpy(labels).long()


def _read(folder: Path, name: str, item_shape: tuple[int, ...]) -> tuple[Path, npt.NDArray[np.uint8]]:
    """Reads one idx file, and says which it was."""
    path = _find(folder, name)
    if path is None:  # it was there a moment ago
        raise TaskError(f"{folder}: {name} not found, plain or .gz")
    return path, read_idx(path, item_shape)
