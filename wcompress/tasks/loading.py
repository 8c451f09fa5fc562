"""Loads the task that a user names: a built-in, a file of theirs, or an attribute of an importable module.

A user's code may fail at any time, so what is loaded comes wrapped: whatever goes wrong inside becomes a message
of one line, which names the user's file, the line in it, and the exception.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from wcompress.errors import TaskError, WCompressError
from wcompress.tasks.baselines import BaselineTask, builtin_tasks
from wcompress.tasks.mnist import load_mnist
from wcompress.tasks.protocol import Batch, Task
from wcompress.tasks.randomness import restore, restored, seeded, state

_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<attribute>[^\W\d]\w*))?")
_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")
_METHODS, _SCORES = ("build", "calibration"), ("validate", "evaluate")
_MAX_MESSAGE_CHARS = 300
_counter = itertools.count()


def load_task(spec: str, *, data_dir: Path | str | None = None, seed: int = 0, scored: bool = True) -> Task:
    """Loads a task by its name.

    Args:
        spec: one of `builtin_tasks()`; or `path/to/file.py`, for the attribute `task` of that file, or
            `path/to/file.py:attribute`; or `package.module:attribute`, also of a package in the working
            folder. The attribute is a task, or a class or function without arguments that makes one.
        data_dir: where a built-in task looks for MNIST; see `load_mnist`.
        seed: of the weights that the task's `build` gives.
        scored: whether its scores are needed; without them a task may lack `validate` and `evaluate`.

    Returns:
        The task.

    Raises:
        TaskError: there is no such task, it lacks something, its code fails, or built-in data are unreadable.
    """
    if spec in builtin_tasks():
        return BaselineTask(spec, load_mnist(data_dir), seed)
    # A file may draw the examples of its splits while it is loaded.
    with seeded(seed):
        return _load_user_task(spec, seed, scored)


def _load_user_task(spec: str, seed: int, scored: bool) -> UserTask:
    if found := _FILE.fullmatch(spec):
        path, attribute = Path(found["file"]).expanduser().absolute(), found["attribute"] or "task"
        origin = _Origin(spec, path, path.parent)
        module = _run_file(path, origin)
    elif found := _MODULE.fullmatch(spec):
        attribute = found["attribute"]
        # A script's sys.path starts at the script: the user's own packages would not be found without this.
        origin = _Origin(spec, None, Path.cwd())
        module = _import_module(found["module"], origin)
    else:
        raise TaskError(
            f"no task {spec!r}; a task is one of {', '.join(builtin_tasks())}, "
            f"or path/to/file.py, or package.module:attribute"
        )
    return UserTask(_make(module, attribute, origin, scored), origin, seed)


def as_task(task: Any, *, scored: bool = True) -> Task:
    """A task made in Python, guarded like one from a file; what is guarded already, or built in, stays as it is.

    Args:
        task: any object with a task's methods.
        scored: see `load_task`.

    Raises:
        TaskError: it lacks a method, or its attributes cannot be read.
    """
    if isinstance(task, (UserTask, BaselineTask)):
        return task
    if lacking := _lacking(task, scored):
        raise TaskError(
            f"{type(task).__name__} lacks {', '.join(f'{method}()' for method in lacking)}; "
            f"see wcompress.tasks.Task for what a task has"
        )
    module = sys.modules.get(type(task).__module__)
    file = getattr(module, "__file__", None)
    path = None if file is None else Path(file)
    name = str(getattr(task, "name", type(task).__name__))
    return UserTask(task, _Origin(name, path, path.parent if path else Path.cwd(), importable=False))


class _Origin:
    """Where a user's task comes from, to say so when it fails."""

    def __init__(self, spec: str, path: Path | None, folder: Path, *, importable: bool = True) -> None:
        self.spec = spec
        self.path = path
        self.folder = folder
        self._importable = importable

    @contextmanager
    def running(self, doing: str) -> Iterator[None]:
        """Runs the user's code with its folder importable, and turns what it raises into a TaskError."""
        entry = str(self.folder)
        if self._importable:
            sys.path.insert(0, entry)
        try:
            with redirect_stdout(sys.stderr):  # standard output is for results
                yield
        except WCompressError:
            raise
        except (Exception, SystemExit) as error:
            raise TaskError(f"{self._place(error)}: {doing} raised {_describe(error)}") from error
        finally:
            if self._importable and entry in sys.path:
                sys.path.remove(entry)

    def _place(self, error: BaseException) -> str:
        """Gives `file:line`, as near to the exception as it gets within the user's file, or else their folder."""
        if isinstance(error, SyntaxError) and error.filename and error.lineno:
            return f"{error.filename}:{error.lineno}"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        own = [f for f in frames if f.filename == str(self.path)]
        near = [f for f in frames if Path(f.filename).is_relative_to(self.folder)]
        chosen = own or near or [f for f in frames if not f.filename.startswith("<")]
        return f"{chosen[-1].filename}:{chosen[-1].lineno}" if chosen else self.spec


class UserTask:
    """A user's task, with defaults for what it leaves out; satisfies `Task`.

    Attributes:
        name: the task's own `name`, or else how it was asked for.
        dataset: its own `dataset`, or else "data of" and its name.
        n_examples, n_validation: its own, or else 0: not stated.
        unit: its own, or else None: not declared.
        higher_is_better: its own, or else True.
        has_scores: whether it has both `validate` and `evaluate`.
        distance, augment, input_shape, validate_each, evaluate_each: its own, or else None; see `Task`.

    The user's code runs from seeded global random generators, which are put back afterwards.
    """

    def __init__(self, inner: Any, origin: _Origin, seed: int = 0) -> None:
        self._inner = inner
        self._origin = origin
        self._seed = seed
        with origin.running("reading the task's attributes"):
            self.name = str(getattr(inner, "name", origin.path.stem if origin.path else origin.spec))
            self.dataset = str(getattr(inner, "dataset", f"data of {self.name}"))
            self.n_examples = int(getattr(inner, "n_examples", 0))
            self.n_validation = int(getattr(inner, "n_validation", 0))
            unit = getattr(inner, "unit", None)
            self.unit = None if unit is None else " ".join(str(unit).split())
            self.higher_is_better = bool(getattr(inner, "higher_is_better", True))
            self.has_scores = not _lacking(inner, scored=True)
            shape = getattr(inner, "input_shape", None)
            self.input_shape = None if shape is None else tuple(int(size) for size in shape)
            self.distance = self._guarded("distance")
            self.augment = self._guarded("augment")
            self.validate_each = self._guarded("validate_each", seed)
            self.evaluate_each = self._guarded("evaluate_each", seed)

    def build(self) -> nn.Module:
        """Makes the network, untrained.

        Raises:
            TaskError: the user's code fails, or gives no module.
        """
        with seeded(self._seed), self._origin.running("build()"):
            model = self._inner.build()
        if not isinstance(model, nn.Module):
            raise TaskError(f"{self._origin.spec}: build() should give a torch.nn.Module, got {type(model).__name__}")
        return model

    def calibration(self) -> Iterator[Batch]:
        """Gives the task's batches of inputs, the same ones each time.

        Raises:
            TaskError: the user's code fails.
        """
        with seeded(self._seed), self._origin.running("calibration()"):
            batches = iter(self._inner.calibration())
            reached = state()
        while True:
            # A loader that shuffles draws from the global generators, between batches too.
            with restored(), self._origin.running("calibration()"):
                restore(reached)
                try:
                    batch: Batch = next(batches)
                except StopIteration:
                    return
                reached = state()
            yield batch

    def validate(self, model: nn.Module) -> float:
        """Scores a model, in the task's unit, on its validation examples.

        Raises:
            TaskError: the user's code fails, or gives no number.
        """
        return self._score("validate", model)

    def evaluate(self, model: nn.Module) -> float:
        """Scores a model, in the task's unit, on its held-out test examples.

        Raises:
            TaskError: the user's code fails, or gives no number.
        """
        return self._score("evaluate", model)

    def _guarded(self, name: str, seed: int | None = None) -> Callable[..., Any] | None:
        """An optional method of the user's, whose failures become a TaskError; None where there is none."""
        own = getattr(self._inner, name, None)
        if not callable(own):
            return None

        def call(*arguments: Any) -> Any:
            with nullcontext() if seed is None else seeded(seed), self._origin.running(f"{name}()"):
                return own(*arguments)

        return call

    def _score(self, method: str, model: nn.Module) -> float:
        chosen = next(way for way in _ways(method) if callable(getattr(self._inner, way, None)))
        with seeded(self._seed), self._origin.running(f"{chosen}()"):
            found = getattr(self._inner, chosen)(model)
            if chosen != method:
                found = torch.as_tensor(found, dtype=torch.float64).mean()
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            got = " ".join(repr(found).split())[:80]
            raise TaskError(f"{self._origin.spec}: {method}() should give a number, got {got}") from None


def _run_file(path: Path, origin: _Origin) -> ModuleType:
    """Runs a user's file as a module of a private name, so that no two of them clash."""
    if not path.is_file():
        raise TaskError(f"{path}: no such file; a task file defines `task`, see wcompress.tasks.Task")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"_wcompress_task_{digest}_{next(_counter)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path}: cannot be loaded as Python code")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by name, also later.
    sys.modules[name] = module
    try:
        with origin.running("loading the task"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, origin: _Origin) -> ModuleType:
    """Imports a module by its dotted name, and notes its file in `origin`."""
    with origin.running(f"importing {name}"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only where the named module itself is missing, not one that it imports.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise TaskError(
                f"{origin.spec}: no module {error.name!r} here or installed; "
                f"a task in a file is named path/to/file.py:{origin.spec.rpartition(':')[2]}"
            ) from error
    if module.__file__ is not None:
        origin.path = Path(module.__file__)
    return module


def _make(module: ModuleType, attribute: str, origin: _Origin, scored: bool) -> Any:
    """Takes the attribute, calls it if it makes a task rather than being one, and checks what results."""
    found = getattr(module, attribute, None)
    if found is None:
        raise TaskError(
            f"{origin.path or origin.spec}: has no {attribute!r}; define `{attribute} = ...` there, "
            f"or name another attribute after a colon"
        )
    if isinstance(found, type) or (callable(found) and _lacking(found, scored)):
        with origin.running(f"calling {attribute}()"):
            found = found()
    if lacking := _lacking(found, scored):
        raise TaskError(
            f"{origin.path or origin.spec}: {attribute} ({type(found).__name__}) lacks "
            f"{', '.join(f'{method}()' for method in lacking)}; see wcompress.tasks.Task for what a task has"
        )
    return found


def _lacking(candidate: Any, scored: bool) -> list[str]:
    """Names the methods of a task, those that score among them if asked for, that an object lacks in every form."""
    methods = (*_METHODS, *_SCORES) if scored else _METHODS
    return [method for method in methods if not any(callable(getattr(candidate, m, None)) for m in _ways(method))]


def _ways(method: str) -> tuple[str, ...]:
    return (method, f"{method}_each") if method in _SCORES else (method,)


def _describe(error: BaseException) -> str:
    """Gives an exception's type and message, in one line of bounded length."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    if "Original Traceback" in message:  # of a loader's worker process; its last line says what happened
        message = message.strip().rsplit("\n", 1)[-1]
    line = " ".join(f"{type(error).__name__}: {message}".split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 3] + "..."
