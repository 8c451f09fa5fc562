"""The built-in networks for MNIST, and how they are trained: four baselines of a paper, and two LeNets.

Of the baselines, Cheng et al. print neurons and parameter counts only; these architectures give exactly those counts.
The LeNets are the two networks on which most papers about compression report.
Sources: Cheng et al., Variational Autoencoder-based Neural Network Model Compression, Table 1; LeCun et al.,
Gradient-based learning applied to document recognition, 1998; Caffe, examples/mnist/lenet.prototxt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wcompress.device import torch_threads
from wcompress.errors import OptionError, TaskError
from wcompress.progress import Progress
from wcompress.tasks.mnist import MnistData
from wcompress.tasks.protocol import accuracy, correct

_PROGRESS_EVERY = 10
_SMALL_DATA = 10_000
"""Fewer training images than this take the recipe for small data."""


class FNN(nn.Module):
    """784-200-100-60-30-10 with ReLU between: 185,300 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 200)
        self.fc2 = nn.Linear(200, 100)
        self.fc3 = nn.Linear(100, 60)
        self.fc4 = nn.Linear(60, 30)
        self.fc5 = nn.Linear(30, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28, 28] to class scores [n, 10]."""
        x = images.flatten(1)
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
            x = functional.relu(layer(x))
        scores: Tensor = self.fc5(x)
        return scores


class CNN(nn.Module):
    """Three convolutions, 28x28 -> 28x28 -> 14x14 -> 7x7, then 588-200-10: 122,270 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, kernel_size=5, stride=1, padding=2)
        self.conv2 = nn.Conv2d(4, 8, kernel_size=5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(8, 12, kernel_size=4, stride=2, padding=1)
        self.fc1 = nn.Linear(588, 200)
        self.fc2 = nn.Linear(200, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28, 28] to class scores [n, 10]."""
        x = images[:, None]
        for conv in (self.conv1, self.conv2, self.conv3):
            x = functional.relu(conv(x))
        scores: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return scores


class RNN(nn.Module):
    """Two recurrent layers of 128 read an image row by row; the last step is classified: 54,538 in all."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(28, 128, num_layers=2, batch_first=True)
        self.fc = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28 rows, 28] to class scores [n, 10]."""
        scores: Tensor = self.fc(self.rnn(images)[0][:, -1])
        return scores


class LSTM(nn.Module):
    """As `RNN`, with long short-term memory: 214,282 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 128, num_layers=2, batch_first=True)
        self.fc = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28 rows, 28] to class scores [n, 10]."""
        scores: Tensor = self.fc(self.lstm(images)[0][:, -1])
        return scores


class LeNet300(nn.Module):
    """LeNet-300-100: 784-300-100-10 with ReLU between, 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28, 28] to class scores [n, 10]."""
        x = functional.relu(self.fc1(images.flatten(1)))
        scores: Tensor = self.fc3(functional.relu(self.fc2(x)))
        return scores


class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it: two convolutions with max-pooling and no ReLU, then 800-500-10; 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [n, 28, 28] to class scores [n, 10]."""
        x = images[:, None]
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(conv(x), 2)
        scores: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return scores


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch: images a step.
        peak_lr: where the cycle of the learning rate has its top.
        max_shift: pixels that a batch is moved by at most, up or down and left or right.
    """

    epochs: int
    batch: int = 128
    peak_lr: float = 2e-3
    max_shift: int = 0


@dataclass(frozen=True)
class _Baseline:
    """A network with its recipes: for MNIST, and for the embedded digits, which are 50 times fewer."""

    network: Callable[[], nn.Module]
    recipe: Recipe
    small: Recipe


# Chosen by accuracy on the validation images, at two seeds. Shifts give the FNN about 0.2 points, more epochs none;
# the RNN gains about 0.9 points from its fifth and sixth epoch. The LeNets' recipes were tried at one seed: 1.04 % and
# 0.46 % of the validation images are wrong.
_BASELINES = {
    "mnist-fnn": _Baseline(FNN, Recipe(epochs=8, max_shift=1), Recipe(epochs=40, batch=32)),
    "mnist-cnn": _Baseline(CNN, Recipe(epochs=5), Recipe(epochs=30, batch=32)),
    "mnist-rnn": _Baseline(RNN, Recipe(epochs=6), Recipe(epochs=30, batch=32)),
    "mnist-lstm": _Baseline(LSTM, Recipe(epochs=4), Recipe(epochs=20, batch=32)),
    "lenet-300-100": _Baseline(LeNet300, Recipe(epochs=20, max_shift=1), Recipe(epochs=40, batch=32)),
    "lenet-5-caffe": _Baseline(LeNet5, Recipe(epochs=10, max_shift=2), Recipe(epochs=20, batch=32)),
}


def builtin_tasks() -> tuple[str, ...]:
    """Names the built-in tasks: the paper's baselines, in the order of its table, then the LeNets."""
    return tuple(_BASELINES)


def _baseline(name: str) -> _Baseline:
    """Looks a baseline up by name."""
    try:
        return _BASELINES[name]
    except KeyError:
        raise TaskError(f"no built-in task {name!r}; there are {', '.join(_BASELINES)}") from None


def build_baseline(name: str, *, seed: int = 0) -> nn.Module:
    """Makes a baseline network, untrained, on the CPU; PyTorch's global random state is left as it was.

    Args:
        name: one of `builtin_tasks()`.
        seed: the same seed gives the same weights.

    Returns:
        The network, in training mode.

    Raises:
        TaskError: there is no such baseline.
    """
    network = _baseline(name).network
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also seed every GPU's generator, which is not ours to disturb.
        torch.default_generator.manual_seed(seed)
        return network()


def train_baseline(
    name: str,
    *,
    data: MnistData,
    seed: int = 0,
    epochs: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Trains a baseline network: Adam, one cycle of the learning rate, gradient norm clipped to 1.

    On a CPU with the same number of threads, the same seed gives the same weights, bit for bit.

    Args:
        name: one of `builtin_tasks()`.
        data: what to learn from; only its training images are used.
        seed: of the first weights and of the order of the images.
        epochs: passes over the training images; None for as many as the recipe has.
        device: where to train.
        progress: called every few steps, and after the last, with steps done, steps in all, `loss` and `epoch`.

    Returns:
        The trained network, in eval mode, on `device`.

    Raises:
        TaskError: there is no such baseline.
        OptionError: `epochs` is less than 1.
    """
    baseline = _baseline(name)
    recipe = baseline.small if len(data.train_images) < _SMALL_DATA else baseline.recipe
    n_epochs = recipe.epochs if epochs is None else epochs
    if n_epochs < 1:
        raise OptionError(f"epochs: at least 1 expected, got {n_epochs}")
    model = build_baseline(name, seed=seed).to(device).train()
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    n_steps = n_epochs * -(-len(images) // recipe.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.peak_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.peak_lr, total_steps=n_steps)
    generator = torch.Generator().manual_seed(seed)
    # Batches of the small recipes are so small that a second thread would only wait, or be waited for.
    with torch_threads(1 if recipe is baseline.small else None):
        for step, chosen in enumerate(_shuffled(len(images), recipe.batch, n_epochs, generator), start=1):
            chosen = chosen.to(device)
            shown = _shifted(images[chosen], recipe.max_shift, generator)
            loss = functional.cross_entropy(model(shown), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            if progress is not None and (step % _PROGRESS_EVERY == 0 or step == n_steps):
                progress(step, n_steps, {"loss": loss.item(), "epoch": step * n_epochs / n_steps})
    return model.eval()


def _shuffled(n_items: int, batch: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Gives int64 [<= batch] indices, every item once an epoch."""
    for _ in range(epochs):
        yield from torch.randperm(n_items, generator=generator).split(batch)


def _shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Moves a batch [n, 28, 28] by a random whole number of pixels, `most` at most, each way alike."""
    if most == 0:
        return images
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    # Rolled, not padded: MNIST's border is blank, so what comes in on the other side is blank too.
    return images.roll((down, right), dims=(1, 2))


@dataclass(frozen=True)
class BaselineTask:
    """A baseline on its data; satisfies `Task`.

    Attributes:
        name: one of `builtin_tasks()`.
        data: MNIST, or the embedded digits in its place.
        seed: of the weights that `build` gives.
        unit: of the scores.
    """

    name: str
    data: MnistData
    seed: int = 0
    unit: ClassVar[str] = "percent"

    def __post_init__(self) -> None:
        _baseline(self.name)

    @property
    def dataset(self) -> str:
        """Names the data: "mnist", or that of the embedded digits."""
        return self.data.dataset

    @property
    def n_examples(self) -> int:
        """Counts the test images that `evaluate` scores."""
        return len(self.data.test_labels)

    def build(self) -> nn.Module:
        """Makes the network, untrained."""
        return build_baseline(self.name, seed=self.seed)

    def calibration(self) -> Iterator[Tensor]:
        """Gives the training images in the data's order: float32 [<= 128, 28, 28] in [0, 1]."""
        yield from self.data.train_images.split(128)

    def validate(self, model: nn.Module) -> float:
        """Scores a model on the validation images, in percent."""
        return accuracy(model, self.data.val_images, self.data.val_labels)

    def evaluate(self, model: nn.Module) -> float:
        """Scores a model on the test images, in percent."""
        return accuracy(model, self.data.test_images, self.data.test_labels)

    def validate_each(self, model: nn.Module) -> Tensor:
        """Scores each validation image, in percent: float64 [n], 100 where the class is right, else 0."""
        return 100.0 * correct(model, self.data.val_images, self.data.val_labels).double()

    def evaluate_each(self, model: nn.Module) -> Tensor:
        """Scores each test image; see `validate_each`."""
        return 100.0 * correct(model, self.data.test_images, self.data.test_labels).double()
