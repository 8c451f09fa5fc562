"""What a few inputs are worth: archives by calibration against those by the weights alone.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.calibrated [--models DIR] [--packages DIR] [--only NAME]
        [--kinds KIND,KIND]

Four measurements. *Drop*: the baselines by `--max-drop 0.5 --refine off`, without training; bytes, points lost on the
10,000 test images, which no choice was made on, and the time of `pack`. *Few inputs*: the same network at equal bytes,
its KL divergence on 5,000 validation images in nats, calibrated on 2,000 or on 200 inputs. *Function target*: the
baselines by `--output-snr` and `--max-kl`, with calibration and without; bytes, and the figure on the held-out inputs
that the search went by and on the 10,000 test images that it did not see. *Levels*: bytes at which
networks that are no baselines reach a quality, by a line between the archives on both sides, packed to several bits
a weight. `residual` is the network of `benchmarks.equal_function`: the SNR of its output on held-out digits.
Of EfficientNet-Lite0, the share of 200 crops of photographs with the same answer, calibrated on 256 other crops of the
same two photographs. Of MiniLM, the mean cosine of the embeddings of 140 sentences, calibrated on 256 sentences of
another text, Python's own documentation. `--packages` is the folder of wheels that `benchmarks.real_networks`
describes. Writes `benchmarks/results/calibrated.json`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wcompress
from benchmarks import equal_function, real_networks
from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    DEFAULT_CACHE,
    DEFAULT_EFFORT,
    Tensors,
    argument_parser,
    baseline,
    baseline_task,
    integers,
    mnist,
    n_tensor_bytes,
    names_from,
    numbers,
)
from benchmarks.peers import interpolate_bytes
from wcompress.checkpoint import read_checkpoint
from wcompress.evaluate import build_model, observed
from wcompress.refine.distil import divergence
from wcompress.tasks import Task

ALLOWED_DROP = 0.5
WANTED_BYTES = {"mnist-fnn": 12_000, "mnist-cnn": 9_000, "mnist-lstm": 30_000}
FEW_INPUTS = (200, 2000)
_FEW_BITS = {"mnist-fnn": 0.6, "mnist-cnn": 0.6, "mnist-rnn": 1.5, "mnist-lstm": 1.0}
FUNCTION_TARGETS = {"output_snr": 15.0, "max_kl": 0.02}
KINDS = ("drop", "few", "function", "levels")
LEVELS = {"residual": (10.0, 15.0, 20.0), "efficientnet-lite0": (90.0, 95.0), "minilm": (0.974, 0.994)}
BITS = {
    "residual": tuple(0.5 + 0.25 * i for i in range(12)),
    "efficientnet-lite0": (4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0),
    "minilm": (2.5, 3.0, 3.5, 4.0, 4.25),
}
WAYS = {"data-free": "off", "calibrated": "on"}


@dataclass(frozen=True)
class OtherTask:
    """A task with other calibration inputs, whose scores play no part where it has none.

    Attributes:
        make: the network.
        inputs: batches.
        scored: a task whose scores are taken; None for none.
    """

    make: Callable[[], nn.Module]
    inputs: Sequence[Any]
    scored: Task | None = None
    name: str = "calibrated"
    dataset: str = "inputs"
    n_examples: int = 0

    def build(self) -> nn.Module:
        """The network."""
        return self.make()

    def calibration(self) -> Iterator[Any]:
        """Its inputs."""
        yield from self.inputs

    def validate(self, model: nn.Module) -> float:
        """The score on validation."""
        return 50.0 if self.scored is None else self.scored.validate(model)

    def evaluate(self, model: nn.Module) -> float:
        """The score on test examples."""
        return 50.0 if self.scored is None else self.scored.evaluate(model)


class Embeddings(OtherTask):
    """Of a network whose outputs are directions."""

    def distance(self, original: Tensor, restored: Tensor) -> Tensor:
        """One less the mean cosine."""
        return 1 - nn.functional.cosine_similarity(original, restored, dim=1).mean()


def drop_row(name: str, seed: int, folder: Path, effort: int) -> dict[str, Any]:
    """One baseline, packed to a drop without training."""
    tensors, task = baseline(folder, name, seed), baseline_task(name)
    with tempfile.TemporaryDirectory() as place:
        path, start = Path(place) / "model.wcz", time.perf_counter()
        result = wcompress.pack(tensors, path, task=task, max_drop=ALLOWED_DROP, refine="off", effort=effort)
        seconds = time.perf_counter() - start
        n_bytes = path.stat().st_size
    assert result.task is not None
    wanted = WANTED_BYTES.get(name)
    return {
        "kind": "drop",
        "model": name,
        "seed": seed,
        "effort": effort,
        "chosen": result.task.chosen,
        "n_bytes": n_bytes,
        "ratio": n_tensor_bytes(tensors) / n_bytes,
        "validation_drop": result.task.validation_drop,
        "test_drop": result.task.drop,
        "s": seconds,
        "wanted_bytes": wanted,
        "met": None if wanted is None else n_bytes <= wanted and result.task.drop <= ALLOWED_DROP,
    }


def few_rows(name: str, seed: int, folder: Path, effort: int) -> Iterator[dict[str, Any]]:
    """One baseline at equal bytes, from few inputs and more, and from none."""
    tensors, task = baseline(folder, name, seed), baseline_task(name)
    images = torch.cat(list(task.calibration()))
    held_out = images[-5000:]
    original = build_model(task, tensors)
    for n_inputs in (0, *FEW_INPUTS):
        chosen = OtherTask(task.build, images[:n_inputs].split(100) if n_inputs else (), task)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.wcz"
            result = wcompress.pack(tensors, path, task=chosen, bits_per_weight=_FEW_BITS[name], effort=effort)
            restored = build_model(task, wcompress.load(path))
        with torch.inference_mode():
            kl = float(divergence(original(held_out), restored(held_out)))
        before = observed(task, tensors, "validation").value
        assert result.task is not None
        yield {
            "kind": "few inputs",
            "model": name,
            "seed": seed,
            "n_inputs": n_inputs,
            "effort": effort,
            "chosen": result.task.chosen,
            "n_bytes": result.archive_bytes,
            "kl_nats": kl,
            "validation_drop": before - observed(task, restored.state_dict(), "validation").value,
        }


def function_rows(name: str, seed: int, folder: Path, effort: int) -> Iterator[dict[str, Any]]:
    """One baseline at each likeness of its outputs, with calibration and without."""
    tensors, task = baseline(folder, name, seed), baseline_task(name)
    images = mnist().test_images
    original = build_model(task, tensors)
    for target, level in FUNCTION_TARGETS.items():
        for way, calibrate in WAYS.items():
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "model.wcz"
                wanted: dict[str, Any] = {target: level}
                result = wcompress.pack(tensors, path, task=task, calibrate=calibrate, effort=effort, **wanted)
                restored, n_bytes = build_model(task, wcompress.load(path)), path.stat().st_size
            with torch.inference_mode():
                outputs, others = original(images), restored(images)
            assert result.task is not None
            yield {
                "kind": "function target",
                "model": name,
                "seed": seed,
                "target": target,
                "level": level,
                "way": way,
                "effort": effort,
                "chosen": result.task.chosen,
                "n_bytes": n_bytes,
                "ratio": n_tensor_bytes(tensors) / n_bytes,
                "output_snr_db": result.task.output_snr_db,
                "kl_nats": result.task.kl_nats,
                "test_output_snr_db": real_networks.output_snr_db(outputs, others),
                "test_kl_nats": float(divergence(outputs, others)),
                "test_drop": result.task.drop,
            }


@dataclass(frozen=True)
class Subject:
    """A network at levels of a quality.

    Attributes:
        tensors: its weights.
        task: gives inputs.
        quality: of restored weights; larger is better.
    """

    tensors: Tensors
    task: Task
    quality: Callable[[Mapping[str, Tensor]], float]


def residual(seed: int) -> Subject:
    """The network of `benchmarks.equal_function`."""
    images, labels, held_out, _ = equal_function.digits()
    model = equal_function.train(images, labels, seed)
    equal_function.rescale(model, seed)
    tensors = dict(model.state_dict())
    wanted = equal_function.scores_with(equal_function.weights_of(model), held_out)

    def quality(restored: Mapping[str, Tensor]) -> float:
        floats = {name: tensor for name, tensor in restored.items() if tensor.is_floating_point()}
        return equal_function.output_db(wanted, equal_function.scores_with(floats, held_out))

    return Subject(tensors, OtherTask(equal_function.ResNet, images.split(100)), quality)


def real(folder: Path, name: str) -> Subject:
    """A network from a package."""
    network = real_networks.networks(folder)[name]
    tensors = dict(read_checkpoint(network.checkpoint).tensors)
    outputs = network.outputs(tensors)
    if name == "minilm":
        sentences = real_networks.other_sentences(folder, 256)
        task: OtherTask = Embeddings(real_networks.MiniLM, [ids[None] for ids in sentences])
        return Subject(
            tensors, task, lambda found: float(real_networks.cosines(outputs, network.outputs(found)).mean())
        )
    crops = real_networks.crops(256, seed=1).split(16)
    task = OtherTask(lambda: real_networks.efficientnet(folder), crops)
    return Subject(tensors, task, lambda found: real_networks.agreement(outputs, network.outputs(found)))


def level_row(
    name: str, seed: int, subject: Subject, way: str, effort: int, all_bits: Sequence[float]
) -> dict[str, Any]:
    """One network in one way, at all bits a weight."""
    points = []
    for bits in all_bits:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.wcz"
            result = wcompress.pack(
                subject.tensors, path, task=subject.task, bits_per_weight=bits, effort=effort, calibrate=WAYS[way]
            )
            points.append((subject.quality(wcompress.load(path)), float(path.stat().st_size)))
        print(f"{name}  {way}  {bits:.2f} bits  {points[-1][0]:.4f}  {result.seconds['total']:.0f} s", flush=True)
    return {
        "kind": "levels",
        "model": name,
        "seed": seed,
        "way": way,
        "effort": effort,
        "n_params": sum(tensor.numel() for tensor in subject.tensors.values() if tensor.is_floating_point()),
        "points": points,
        "at": [{"level": level, "n_bytes": interpolate_bytes(points, level)} for level in LEVELS[name]],
    }


_KEY = ["kind", "model", "seed", "target", "way", "n_inputs", "effort"]


def baseline_rows(name: str, seed: int, folder: Path, effort: int, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What is measured of a baseline, printed."""
    if "drop" in kinds:
        row = drop_row(name, seed, folder, effort)
        print(
            f"{name} seed {seed}  {row['n_bytes']:,} B, {row['ratio']:.1f}x, {row['chosen']}"
            f"  drop on test {row['test_drop']:.2f}, on validation {row['validation_drop']:.2f}"
            f"  {row['s']:.1f} s  wanted {row['wanted_bytes']}: {row['met']}",
            flush=True,
        )
        yield row
    for row in few_rows(name, seed, folder, effort) if "few" in kinds else ():
        print(
            f"{name} seed {seed}  {row['n_inputs']:5} inputs  {row['n_bytes']:,} B  {row['chosen']}"
            f"  KL {row['kl_nats']:.5f}  drop on validation {row['validation_drop']:.2f}",
            flush=True,
        )
        yield row
    for row in function_rows(name, seed, folder, effort) if "function" in kinds else ():
        print(
            f"{name} seed {seed}  {row['target']} {row['level']:g}  {row['way']}  {row['n_bytes']:,} B  {row['chosen']}"
            f"  {row['output_snr_db']:.2f} dB, test {row['test_output_snr_db']:.2f} dB"
            f"  KL {row['kl_nats']:.5f}, test {row['test_kl_nats']:.5f}  drop on test {row['test_drop']:.2f}",
            flush=True,
        )
        yield row


def main() -> None:
    """Measure, print, write the result."""
    names = (*BASELINES, *LEVELS)
    parser = argument_parser(__doc__, "python -m benchmarks.calibrated --only mnist-fnn")
    parser.add_argument("--models", type=Path, default=DEFAULT_CACHE, help="folder of the baselines' checkpoints")
    parser.add_argument("--packages", type=Path, help="folder of the wheels")
    parser.add_argument("--only", type=names_from(names), default=list(names), metavar="NAME[,NAME]")
    parser.add_argument("--kinds", type=names_from(KINDS), default=list(KINDS), metavar="KIND[,KIND]")
    parser.add_argument("--seeds", type=integers, default=[0], help="of the training (default: 0)")
    parser.add_argument("--bits", type=numbers, help="a weight, for the levels (default: by network)")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="of ours (default: %(default)s)")
    arguments = parser.parse_args()
    for name in arguments.only:
        for seed in arguments.seeds:
            if name in BASELINES:
                for row in baseline_rows(name, seed, arguments.models, arguments.effort, arguments.kinds):
                    merge_result("calibrated", [row], _KEY)
                continue
            if "levels" not in arguments.kinds:
                continue
            if name != "residual" and arguments.packages is None:
                print(f"{name}: skipped; pass --packages", flush=True)
                continue
            subject = residual(seed) if name == "residual" else real(arguments.packages, name)
            for way in WAYS:
                row = level_row(name, seed, subject, way, arguments.effort, arguments.bits or BITS[name])
                print(name, way, row["at"], flush=True)
                merge_result("calibrated", [row], _KEY)
            if name != "residual":
                break


if __name__ == "__main__":
    main()
