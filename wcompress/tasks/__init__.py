"""Tasks: what a network is for, so that the cost of compressing it can be measured."""

from wcompress.tasks.baselines import BaselineTask, build_baseline, builtin_tasks, train_baseline
from wcompress.tasks.loading import UserTask, as_task, load_task
from wcompress.tasks.mnist import MnistData, cache_dir, load_embedded, load_mnist
from wcompress.tasks.protocol import Batch, Task, accuracy, correct, predictions
from wcompress.tasks.randomness import seed_all, seeded
from wcompress.tasks.scoring import Scale, Score, observe, standard_error

__all__ = [
    "BaselineTask",
    "Batch",
    "MnistData",
    "Scale",
    "Score",
    "Task",
    "UserTask",
    "accuracy",
    "as_task",
    "build_baseline",
    "builtin_tasks",
    "cache_dir",
    "correct",
    "load_embedded",
    "load_mnist",
    "load_task",
    "observe",
    "predictions",
    "seed_all",
    "seeded",
    "standard_error",
    "train_baseline",
]
