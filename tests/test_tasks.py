"""Tests of wcompress.tasks: data, baselines, scoring, and loading a user's task. Nothing here uses the network."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wcompress.tasks.download as download
from wcompress.errors import OptionError, TaskError
from wcompress.report.paper import PAPER
from wcompress.tasks import (
    BaselineTask,
    MnistData,
    Task,
    UserTask,
    accuracy,
    build_baseline,
    builtin_tasks,
    cache_dir,
    load_embedded,
    load_mnist,
    load_task,
    predictions,
    train_baseline,
)

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = os.environ.get("WCOMPRESS_DATA", "")
FILES = tuple(download.MNIST_FILES)

GOOD_TASK = """
import torch
from torch import nn

class Good:
    name = "good"
    dataset = "noise"
    n_examples = 7
    def build(self): return nn.Linear(3, 2)
    def calibration(self): return [torch.zeros(4, 3), torch.ones(2, 3)]
    def validate(self, model): return 12
    def evaluate(self, model): return torch.tensor(34.5)
"""


@pytest.fixture(autouse=True)
def _sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, an empty cache, no data but what a test makes."""
    monkeypatch.setenv("WCOMPRESS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WCOMPRESS_DATA", raising=False)


@pytest.fixture(scope="module")
def digits() -> MnistData:
    return load_embedded()


@pytest.fixture(scope="module")
def mnist() -> MnistData:
    return load_mnist(Path(REAL_DATA))


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, n_train: int = 24, n_test: int = 6, zipped: bool = False, fill: int = 255) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = np.full((n, 28, 28), fill, dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def message(excinfo: pytest.ExceptionInfo[TaskError]) -> str:
    text = str(excinfo.value)
    assert "\n" not in text
    return text


class TestBaselines:
    @pytest.mark.parametrize(
        ("name", "n_params"),
        [("mnist-fnn", 185_300), ("mnist-cnn", 122_270), ("mnist-rnn", 54_538), ("mnist-lstm", 214_282)],
    )
    def test_has_the_papers_parameter_count(self, name: str, n_params: int) -> None:
        model = build_baseline(name)
        assert sum(p.numel() for p in model.parameters()) == n_params
        assert model(torch.zeros(3, 28, 28)).shape == (3, 10)

    @pytest.mark.parametrize(("name", "n_params"), [("lenet-300-100", 266_610), ("lenet-5-caffe", 431_080)])
    def test_lenets_have_the_parameter_counts_of_the_literature(self, name: str, n_params: int) -> None:
        model = build_baseline(name)
        assert sum(p.numel() for p in model.parameters()) == n_params
        assert model(torch.zeros(3, 28, 28)).shape == (3, 10)

    def test_names_follow_the_papers_table_and_then_come_the_lenets(self) -> None:
        paper = ("mnist-fnn", "mnist-cnn", "mnist-rnn", "mnist-lstm")
        assert builtin_tasks() == (*paper, "lenet-300-100", "lenet-5-caffe")
        assert tuple(PAPER) == paper

    @pytest.mark.parametrize("name", builtin_tasks())
    def test_training_repeats_and_leaves_the_global_generator_alone(self, name: str, digits: MnistData) -> None:
        few = MnistData(**{**vars(digits), "train_images": digits.train_images[:96]})
        few = MnistData(**{**vars(few), "train_labels": digits.train_labels[:96]})
        state = torch.get_rng_state()
        one, same, other = (train_baseline(name, data=few, seed=seed, epochs=1) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state)
        assert not one.training
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    def test_fnn_learns_the_embedded_digits(self, digits: MnistData) -> None:
        calls: list[tuple[int, int, dict[str, float]]] = []
        model = train_baseline("mnist-fnn", data=digits, epochs=12, progress=lambda *figures: calls.append(figures))
        assert accuracy(model, digits.test_images, digits.test_labels) > 90
        assert calls[-1][0] == calls[-1][1] == 12 * 34
        assert calls[-1][2]["loss"] < calls[0][2]["loss"]
        assert calls[-1][2]["epoch"] == 12

    @pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5-caffe"])
    def test_lenets_learn_the_embedded_digits(self, name: str, digits: MnistData) -> None:
        model = train_baseline(name, data=digits, epochs=2)
        assert accuracy(model, digits.test_images, digits.test_labels) > 80

    def test_refuses_what_does_not_exist(self, digits: MnistData) -> None:
        with pytest.raises(TaskError, match=r"mnist-gru.*mnist-fnn, mnist-cnn"):
            build_baseline("mnist-gru")
        with pytest.raises(TaskError, match="mnist-gru"):
            BaselineTask("mnist-gru", digits)
        with pytest.raises(OptionError, match="epochs"):
            train_baseline("mnist-fnn", data=digits, epochs=0)

    def test_task_has_all_a_task_should(self, digits: MnistData) -> None:
        task = BaselineTask("mnist-cnn", digits, seed=5)
        assert isinstance(task, Task)
        assert (task.dataset, task.n_examples) == ("digits (scikit-learn, scaled to 28x28)", 509)
        batches = list(task.calibration())
        assert {len(batch) for batch in batches[:-1]} == {128}
        assert torch.equal(torch.cat(batches), digits.train_images)
        model = task.build()
        assert task.validate(model) == accuracy(model, digits.val_images, digits.val_labels)
        assert task.evaluate(model) == accuracy(model, digits.test_images, digits.test_labels)


class TestScoring:
    def test_predictions_do_not_depend_on_batch_size(self) -> None:
        images = torch.rand(25, 28, 28, generator=torch.Generator().manual_seed(0))
        model = build_baseline("mnist-fnn")
        assert torch.equal(predictions(model, images), predictions(model, images, batch=7))

    def test_training_flags_are_put_back_module_by_module(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.5))
        model.train()
        model[2].eval()
        accuracy(model, torch.rand(5, 2, 2), torch.zeros(5, dtype=torch.int64))
        assert [m.training for m in model.modules()] == [True, True, True, False]

    def test_follows_the_models_dtype(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
        assert predictions(model, torch.rand(5, 2, 2)).dtype == torch.int64

    def test_counts_in_percent(self) -> None:
        scores = torch.eye(4)
        assert accuracy(nn.Identity(), scores, torch.tensor([0, 1, 2, 0])) == 75.0

    def test_refuses_other_outputs_and_no_images(self) -> None:
        with pytest.raises(TaskError, match=r"shape \(2, n_classes\) expected, got \(2, 3, 4\)"):
            predictions(nn.Identity(), torch.zeros(2, 3, 4))
        with pytest.raises(TaskError, match="got 0 images"):
            accuracy(nn.Identity(), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


class TestEmbeddedDigits:
    def test_split_is_disjoint_stratified_and_whole(self, digits: MnistData) -> None:
        parts = [digits.train_labels, digits.val_labels, digits.test_labels]
        assert [len(part) for part in parts] == [1088, 200, 509]
        for part in parts:
            shares = torch.bincount(part, minlength=10) / len(part)
            assert ((shares - 0.1).abs() < 0.012).all()
        images = torch.cat([digits.train_images, digits.val_images, digits.test_images])
        assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 1797

    def test_images_look_like_mnists(self, digits: MnistData) -> None:
        assert digits.train_images.shape[1:] == (28, 28)
        assert digits.train_images.dtype == torch.float32
        assert digits.train_labels.dtype == torch.int64
        assert (digits.train_images.min(), digits.train_images.max()) == (0, 1)

    def test_is_the_last_resort(self) -> None:
        assert load_mnist().dataset == "digits (scikit-learn, scaled to 28x28)"

    def test_missing_scikit_learn_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(TaskError, match=r"pip install wcompress\[demo\]"):
            load_mnist()


class TestFindingMnist:
    @pytest.mark.parametrize("zipped", [False, True])
    @pytest.mark.parametrize("inside", ["mnist", "."])
    def test_reads_a_given_folder(self, tmp_path: Path, zipped: bool, inside: str) -> None:
        write_mnist(tmp_path / inside, zipped=zipped)
        data = load_mnist(tmp_path)
        assert data.dataset == "mnist"
        assert data.source == str(tmp_path / inside)
        assert [len(x) for x in (data.train_images, data.val_images, data.test_images)] == [22, 2, 6]
        assert data.train_images.dtype == torch.float32
        assert data.train_images.unique().tolist() == [1.0]
        assert data.val_labels.tolist() == [2, 3]  # the last of the training labels

    def test_order_is_argument_environment_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_mnist(cache_dir(), zipped=True)
        assert load_mnist().source == str(cache_dir())
        write_mnist(tmp_path / "env" / "mnist")
        monkeypatch.setenv("WCOMPRESS_DATA", str(tmp_path / "env"))
        assert load_mnist().source == str(tmp_path / "env" / "mnist")
        write_mnist(tmp_path / "arg" / "mnist")
        assert load_mnist(tmp_path / "arg").source == str(tmp_path / "arg" / "mnist")

    def test_a_named_place_is_never_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_mnist(cache_dir())
        with pytest.raises(TaskError, match=f"{FILES[0]}.*data folder .*idx files in a folder mnist"):
            load_mnist(tmp_path / "nowhere")
        monkeypatch.setenv("WCOMPRESS_DATA", str(tmp_path / "nowhere"))
        with pytest.raises(TaskError, match=r"\$WCOMPRESS_DATA"):
            load_mnist()

    def test_names_only_the_files_that_are_missing(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        (tmp_path / FILES[3]).unlink()
        with pytest.raises(TaskError) as excinfo:
            load_mnist(tmp_path)
        assert FILES[3] in message(excinfo)
        assert FILES[0] not in message(excinfo)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "got 0"),
            (idx_bytes(np.zeros((2, 28), np.uint8)) + bytes(99), "got 0x00000802"),
            (struct.pack(">4I", 0x0D03, 1, 28, 28), "0x00000803 expected, got 0x00000d03"),
            (idx_bytes(np.zeros((2, 27, 28), np.uint8)), "2 x 27 x 28"),
            (struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28), "4294967295 x 28 x 28"),
            (struct.pack(">4I", 0x0803, 0, 28, 28), "0 x 28 x 28"),
            (idx_bytes(np.zeros((24, 28, 28), np.uint8))[:-1], "18,816 bytes of items expected, got 18,815"),
            (idx_bytes(np.zeros((24, 28, 28), np.uint8)) + b"x", "bytes follow"),
            (idx_bytes(np.zeros((23, 28, 28), np.uint8)), "23 labels expected"),
        ],
    )
    def test_corrupt_files_are_named(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        write_mnist(tmp_path)
        (tmp_path / FILES[0]).write_bytes(content)
        with pytest.raises(TaskError, match=r"train-(images|labels)-idx") as excinfo:
            load_mnist(tmp_path)
        assert complaint in message(excinfo)

    @pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-8] + bytes(8), lambda b: b"PK" + b])
    def test_corrupt_gzip_is_named(self, tmp_path: Path, damage: object) -> None:
        write_mnist(tmp_path, zipped=True)
        path = tmp_path / f"{FILES[2]}.gz"
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
        with pytest.raises(TaskError) as excinfo:
            load_mnist(tmp_path)
        assert message(excinfo).startswith(str(path))

    def test_labels_beyond_nine_are_refused(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        (tmp_path / FILES[3]).write_bytes(idx_bytes(np.full(6, 10, np.uint8)))
        with pytest.raises(TaskError, match="0 to 9 expected, got 10"):
            load_mnist(tmp_path)


class TestDownload:
    """With mirrors that are functions."""

    @pytest.fixture
    def served(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        """Files as mirrors have them; those of the first mirror are overlaid under full URLs."""
        write_mnist(tmp_path / "mirror", zipped=True)
        files = {f"{name}.gz": (tmp_path / "mirror" / f"{name}.gz").read_bytes() for name in FILES}
        known = {}
        for name in FILES:
            content = gzip.decompress(files[f"{name}.gz"])
            known[name] = (len(content), hashlib.sha256(content).hexdigest())

        def fetch(url: str) -> bytes:
            found = files.get(url, files.get(url.rpartition("/")[2]))
            if found is None:
                raise TimeoutError(url)
            return found

        monkeypatch.setattr(download, "MNIST_FILES", known)
        monkeypatch.setattr(download, "_fetch", fetch)
        monkeypatch.delenv("WCOMPRESS_OFFLINE")
        return files

    def test_fills_the_cache_once(self, served: dict[str, bytes]) -> None:
        assert load_mnist().source == str(cache_dir())
        assert sorted(p.name for p in cache_dir().iterdir()) == sorted(f"{name}.gz" for name in FILES)
        served.clear()
        assert load_mnist().dataset == "mnist"

    @pytest.mark.parametrize(
        "sent",
        [b"<html>", gzip.compress(b"other"), gzip.compress(bytes(99_999))[:-9]],
        ids=["a page", "another file", "a part"],
    )
    def test_tries_the_next_mirror_when_one_sends_something_else(self, served: dict[str, bytes], sent: bytes) -> None:
        served[download.MIRRORS[0] + f"{FILES[0]}.gz"] = sent
        assert load_mnist().dataset == "mnist"

    def test_any_failure_falls_to_the_embedded_digits_and_leaves_no_partial_file(
        self, served: dict[str, bytes]
    ) -> None:
        del served[f"{FILES[2]}.gz"]
        assert load_mnist().dataset.startswith("digits")
        assert sorted(p.name for p in cache_dir().iterdir()) == [f"{FILES[0]}.gz", f"{FILES[1]}.gz"]

    @pytest.mark.usefixtures("served")
    def test_an_unwritable_cache_falls_to_the_embedded_digits(self) -> None:
        cache_dir().parent.parent.mkdir(parents=True, exist_ok=True)
        cache_dir().parent.write_text("not a folder")
        assert load_mnist().dataset.startswith("digits")

    def test_offline_asks_no_mirror(self, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        assert served
        monkeypatch.setenv("WCOMPRESS_OFFLINE", "1")
        assert load_mnist().dataset.startswith("digits")


class TestLoadTask:
    def write(self, folder: Path, text: str, name: str = "mine.py") -> str:
        (folder / name).write_text(text)
        return str(folder / name)

    def test_built_in(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        task = load_task("mnist-rnn", data_dir=str(tmp_path), seed=2)
        assert isinstance(task, Task)
        assert (task.name, task.dataset, task.n_examples) == ("mnist-rnn", "mnist", 6)
        assert torch.equal(next(task.build().parameters()), next(build_baseline("mnist-rnn", seed=2).parameters()))

    @pytest.mark.parametrize("line", ["task = Good", "task = Good()", "def task(): return Good()"])
    def test_file_with_instance_class_or_function(self, tmp_path: Path, line: str) -> None:
        path_before, state = list(sys.path), torch.get_rng_state()
        task = load_task(self.write(tmp_path, f"{GOOD_TASK}\n{line}"))
        model = task.build()
        assert isinstance(task, Task)
        assert isinstance(task, UserTask)
        assert (task.name, task.dataset, task.n_examples) == ("good", "noise", 7)
        assert (task.validate(model), task.evaluate(model)) == (12.0, 34.5)
        assert [len(batch) for batch in task.calibration()] == [len(batch) for batch in task.calibration()] == [4, 2]
        assert torch.equal(task.build().weight, model.weight)
        assert torch.equal(torch.get_rng_state(), state)
        assert sys.path == path_before

    def test_file_with_another_attribute(self, tmp_path: Path) -> None:
        assert load_task(self.write(tmp_path, GOOD_TASK) + ":Good").name == "good"

    def test_what_a_task_leaves_out_has_defaults(self, tmp_path: Path) -> None:
        text = GOOD_TASK.replace('    name = "good"\n    dataset = "noise"\n    n_examples = 7\n', "")
        task = load_task(self.write(tmp_path, text + "task = Good"))
        assert (task.name, task.dataset, task.n_examples) == ("mine", "data of mine", 0)

    def test_files_of_one_name_do_not_clash_and_find_their_neighbours(self, tmp_path: Path) -> None:
        self.write(tmp_path, "width = 3", "neighbour_at_load.py")
        self.write(tmp_path, "height = 2", "neighbour_at_call.py")
        text = GOOD_TASK.replace("nn.Linear(3, 2)", "nn.Linear(width, __import__('neighbour_at_call').height)")
        first = load_task(self.write(tmp_path, f"from neighbour_at_load import width\n{text}\ntask = Good"))
        (tmp_path / "other").mkdir()
        second = load_task(self.write(tmp_path / "other", GOOD_TASK.replace('"good"', '"second"') + "task = Good"))
        assert first.build().weight.shape == (2, 3)
        assert (first.name, second.name) == ("good", "second")
        assert "mine" not in sys.modules

    def test_dataclasses_and_postponed_annotations_work(self, tmp_path: Path) -> None:
        text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + GOOD_TASK
        text = text.replace("class Good:", "@dataclass\nclass Good:\n    size: int = 3")
        assert load_task(self.write(tmp_path, text + "task = Good")).n_examples == 7

    def test_module_and_attribute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "users_package").mkdir()
        self.write(tmp_path / "users_package", GOOD_TASK, "inner.py")
        monkeypatch.chdir(tmp_path)
        path_before = list(sys.path)
        assert load_task("users_package.inner:Good").name == "good"
        assert sys.path == path_before
        self.write(tmp_path / "users_package", "import json\n\njson.loads('{')", "broken.py")
        with pytest.raises(TaskError, match=r"broken\.py:3: importing users_package\.broken raised JSONDecodeError"):
            load_task("users_package.broken:task")

    @pytest.mark.parametrize("spec", ["mnist-gru", "", "mnist", "some folder/", "a:b:c", "file.txt"])
    def test_unknown_names_list_the_built_ins(self, spec: str) -> None:
        with pytest.raises(TaskError) as excinfo:
            load_task(spec)
        assert repr(spec) in message(excinfo)
        assert all(name in message(excinfo) for name in builtin_tasks())

    def test_missing_file_module_and_attribute(self, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match=r"nothing\.py: no such file"):
            load_task(str(tmp_path / "nothing.py"))
        with pytest.raises(TaskError, match=r"no module 'no_such_package'.*path/to/file\.py:thing"):
            load_task("no_such_package.inner:thing")
        with pytest.raises(TaskError, match=r"math.*has no 'thing'"):
            load_task("math:thing")
        with pytest.raises(TaskError, match=r"mine\.py: has no 'task'; define `task = \.\.\.`"):
            load_task(self.write(tmp_path, "x = 1"))

    def test_missing_methods_are_listed(self, tmp_path: Path) -> None:
        text = (
            "class Half:\n    validate = 3\n    def build(self): ...\n    def evaluate(self, model): ...\ntask = Half"
        )
        with pytest.raises(TaskError, match=r"task \(Half\) lacks calibration\(\), validate\(\); see"):
            load_task(self.write(tmp_path, text))
        each = "task.validate_each = task.evaluate_each = lambda model: [25, 75]"
        text = text.replace("validate = 3", "calibration = list").replace("    def evaluate(self, model): ...\n", "")
        task = load_task(self.write(tmp_path, f"{text}\n{each.replace('model', '_self, model')}"))
        assert task.validate(torch.nn.Identity()) == task.evaluate(torch.nn.Identity()) == 50
        with pytest.raises(TaskError, match=r"task \(int\) lacks build\(\)"):
            load_task(self.write(tmp_path, "task = 3"))

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("x = 1\n1 / 0", ":2: loading the task raised ZeroDivisionError: division by zero"),
            ("x = 1\n\ny = = 2", ":3: loading the task raised SyntaxError: invalid syntax"),
            ("import no_such_module", ":1: loading the task raised ModuleNotFoundError"),
            ("raise SystemExit(3)", ":1: loading the task raised SystemExit: 3"),
            ("raise ValueError('two\\nlines')", ":1: loading the task raised ValueError: two lines"),
            ("import json\n\njson.loads('{')", ":3: loading the task raised JSONDecodeError"),
            ("class task:\n    def __init__(self, x): ...", "calling task() raised TypeError"),
            ("def task():\n    return undefined", ":2: calling task() raised NameError"),
        ],
    )
    def test_failing_code_is_placed(self, tmp_path: Path, text: str, place: str) -> None:
        spec = self.write(tmp_path, text)
        with pytest.raises(TaskError) as excinfo:
            load_task(spec)
        assert place in message(excinfo)
        assert "mine.py" in message(excinfo) or "loading.py" not in message(excinfo)
        assert str(tmp_path) not in sys.path

    def test_failing_methods_are_placed(self, tmp_path: Path) -> None:
        text = """
class Bad:
    def build(self): return "a model"
    def calibration(self):
        yield 1
        raise KeyError("gone")
    def validate(self, model): return "good"
    def evaluate(self, model): return model(1)
task = Bad
"""
        spec = self.write(tmp_path, text)
        task = load_task(spec)
        with pytest.raises(TaskError, match=r"build\(\) should give a torch\.nn\.Module, got str"):
            task.build()
        with pytest.raises(TaskError, match=r"mine\.py:6: calibration\(\) raised KeyError: 'gone'"):
            list(task.calibration())
        with pytest.raises(TaskError, match=r"validate\(\) should give a number, got 'good'"):
            task.validate(nn.Identity())
        with pytest.raises(TaskError, match=r"mine\.py:8: evaluate\(\) raised"):
            task.evaluate(nn.Linear(2, 2))

    def test_code_that_is_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(TaskError, match=r"mine\.py") as excinfo:
            load_task(str(tmp_path / "mine.py"))
        assert message(excinfo)


def test_the_example_trains_and_loads(tmp_path: Path) -> None:
    example = ROOT / "examples" / "own_task.py"
    saved = tmp_path / "own_model.pt"
    subprocess.run([sys.executable, str(example), str(saved)], check=True, capture_output=True)
    task = load_task(str(example))
    model = task.build()
    model.load_state_dict(torch.load(saved, weights_only=True))
    assert task.n_examples == 500
    assert task.evaluate(model) > 94
    assert next(iter(task.calibration())).shape == (128, 64)


@pytest.mark.mnist
@pytest.mark.skipif(
    not REAL_DATA or not (Path(REAL_DATA) / "mnist").is_dir(), reason="no real MNIST in $WCOMPRESS_DATA/mnist"
)
class TestRealMnist:
    def test_sizes(self, mnist: MnistData) -> None:
        assert [len(x) for x in (mnist.train_images, mnist.val_images, mnist.test_images)] == [55_000, 5_000, 10_000]
        assert mnist.dataset == "mnist"
        assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
        assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]

    def test_known_digests_are_those_of_the_files(self) -> None:
        for name, (n_bytes, sha256) in download.MNIST_FILES.items():
            path = Path(REAL_DATA) / "mnist" / name
            zipped = path.with_name(f"{name}.gz")
            content = gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (n_bytes, sha256)

    def test_one_epoch_teaches_the_fnn_a_lot(self, mnist: MnistData) -> None:
        model = train_baseline("mnist-fnn", data=mnist, epochs=1)
        assert BaselineTask("mnist-fnn", mnist).validate(model) > 93
