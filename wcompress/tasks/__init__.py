"""Tasks: what a network is for, so that the cost of compressing it can be measured."""

from wcompress.tasks.baselines import BaselineTask, build_baseline, builtin_tasks, train_baseline
from wcompress.tasks.loading import UserTask, load_task
from wcompress.tasks.mnist import MnistData, cache_dir, load_embedded, load_mnist
from wcompress.tasks.protocol import Batch, Task, accuracy, predictions

__all__ = [
    "BaselineTask",
    "Batch",
    "MnistData",
    "Task",
    "UserTask",
    "accuracy",
    "build_baseline",
    "builtin_tasks",
    "cache_dir",
    "load_embedded",
    "load_mnist",
    "load_task",
    "predictions",
    "train_baseline",
]
