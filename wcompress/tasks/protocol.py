"""What a task is: a network to build, inputs to try it on, and two scores for it.

Scores are in percent and higher is better, unless the task declares otherwise. `validate` may be called as often as a
search likes; `evaluate` is called to report only: no choice is ever made on the examples whose score a reader is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from wcompress.errors import TaskError

Batch: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One batch of inputs: called as `model(x)`, `model(*x)` or `model(**x)`, by its type."""


@runtime_checkable
class Task(Protocol):
    """Says what a model is for, so that what compression costs it can be measured.

    A user's task is any object with the four methods, in a file, under the name `task`; nothing needs to be
    inherited. A whole one, for a model `Net` that takes float32 [n, 20] and gives float32 [n, 3]::

        # my_task.py, used as:  wcompress eval model.pt --task my_task.py
        import torch
        from my_project import Net, load_split

        class MyTask:
            name = "my-task"                  # optional, as are the next five: these two appear in reports
            dataset = "my data, 2024"
            unit = "percent"                  # or "fraction" (0 to 1), or a name of your own, such as "nats"
            higher_is_better = True           # False for a loss
            n_validation, n_examples = 500, 1000  # examples that validate and evaluate score; counted if left out

            def build(self):                  # the network; its weights come from the checkpoint
                return Net()

            def calibration(self):            # inputs from the training side only; labels beside them are ignored
                return load_split("train")[0].split(128)

            def score(self, model, split):
                x, y = load_split(split)
                with torch.inference_mode():
                    return 100 * (model.eval()(x).argmax(1) == y).float().mean().item()

            def validate(self, model):        # a split of the training side, used for choices
                return self.score(model, "val")

            def evaluate(self, model):        # held-out test, used once, to report
                return self.score(model, "test")

            # With --output-snr or --max-kl no score counts: a task may then do without validate and evaluate.
            # Instead of validate and evaluate, so that fewer examples suffice for the same certainty:
            # def validate_each(self, model): a score for each validation example; their mean counts
            # def evaluate_each(self, model): the same of the test examples
            # Optional, for refining:
            # def distance(self, original_output, restored_output): a scalar tensor that can be differentiated
            # def augment(self, batch, generator): a batch, varied at random
            # input_shape = (20,): of one input; where calibration() gives nothing, inputs are made up

        task = MyTask                         # an instance, a class, or a function that makes one
    """

    # Properties, so that an attribute, a property or a frozen field will do.
    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def dataset(self) -> str:
        """Which data the scores come from, such as "mnist"."""

    @property
    def n_examples(self) -> int:
        """How many held-out examples `evaluate` scores; 0 where a user's task does not say."""

    def build(self) -> nn.Module:
        """Makes the network, untrained, whose `state_dict` has the checkpoint's names and shapes."""

    def calibration(self) -> Iterable[Batch]:
        """Gives batches of inputs from the training side, in the same order each time.

        A batch (x, y) of a network that takes one input counts as x.
        """

    def validate(self, model: nn.Module) -> float:
        """Scores a model, in the task's unit, on a split of the training side that choices may be made on."""

    def evaluate(self, model: nn.Module) -> float:
        """Scores a model, in the task's unit, on the held-out test examples; for reporting, never for choosing."""


def predictions(model: nn.Module, images: Tensor, *, batch: int = 1000) -> Tensor:
    """Gives the class a classifier finds likeliest, for each image.

    The model runs where its parameters are and in their dtype, in eval mode; every module's training flag is
    put back.

    Args:
        model: maps [n, ...] to scores [n, n_classes].
        images: float [n, ...], on any device.
        batch: images at a time.

    Returns:
        int64 [n], on the CPU.

    Raises:
        TaskError: the model's output is not [n, n_classes].
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), images)
    training = [(module, module.training) for module in model.modules()]
    found: list[Tensor] = []
    model.eval()
    try:
        with torch.inference_mode():
            for part in images.split(batch):
                scores = model(part.to(first.device, first.dtype))
                if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(part):
                    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                    raise TaskError(
                        f"{type(model).__name__}: for {len(part)} inputs, scores of shape "
                        f"({len(part)}, n_classes) expected, got {got}; check that the model fits the task"
                    )
                found.append(scores.argmax(dim=1).cpu())
    finally:
        # Module by module: a model kept partly in eval mode (frozen batch norms) must stay so.
        for module, flag in training:
            module.training = flag
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """Scores a classifier.

    Args:
        model: maps [n, ...] to scores [n, n_classes].
        images: float [n, ...], n at least 1.
        labels: int64 [n].
        batch: images at a time.

    Returns:
        The share of images whose likeliest class is their label, in percent.

    Raises:
        TaskError: there are no images, or the model's output is not [n, n_classes].
    """
    return 100.0 * int(correct(model, images, labels, batch).sum()) / len(labels)


def correct(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 1000) -> Tensor:
    """Tells which images a classifier gets right: bool [n]; arguments and errors as for `accuracy`."""
    if len(images) == 0 or len(images) != len(labels):
        raise TaskError(
            f"accuracy needs as many labels as images, and one at least; got {len(images)} images, {len(labels)} labels"
        )
    return predictions(model, images, batch=batch) == labels.cpu()
