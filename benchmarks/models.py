"""The models that benchmarks measure, and packing one of them.

`gaussian` and `laplacian` are a million independent weights; `mnist-fnn` and so on the four baselines, trained where no
checkpoint is found; `blazeface` and `silero` real models, from a folder that holds their checkpoints.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wcompress
from benchmarks.peers_setup import DEFAULT_VENV
from wcompress.checkpoint import read_checkpoint, write_checkpoint
from wcompress.codec.options import PackOptions
from wcompress.report.paper import PAPER
from wcompress.tasks import BaselineTask, MnistData, load_mnist, train_baseline

Tensors = dict[str, torch.Tensor]

SYNTHETIC = ("gaussian", "laplacian")
BASELINES = tuple(PAPER)
LENETS = ("lenet-300-100", "lenet-5-caffe")
REAL = {"blazeface": "blazeface*", "silero": "silero*"}
"""Names of real models, and what their checkpoints are called."""
MODELS = (*SYNTHETIC, *BASELINES, *REAL)

DEFAULT_CACHE = Path(__file__).parent / ".models"
DEFAULT_EFFORT = PackOptions().effort


@dataclass(frozen=True)
class Packed:
    """A model as an archive, decoded again.

    Attributes:
        n_bytes: of the file.
        sqnr_db: None where exact.
        seconds: of `pack`, `load` and all that they do, by name.
        restored: tensors that the file gives.
        n_latents: in the archive; None without a prior.
        pack_cpu_s: seconds of the processor that `pack` took.
    """

    n_bytes: int
    sqnr_db: float | None
    seconds: dict[str, float]
    restored: Tensors = field(repr=False)
    n_latents: int | None = None
    pack_cpu_s: float = 0.0


def pack_and_load(tensors: Mapping[str, torch.Tensor], **options: Any) -> Packed:
    """Pack to a file, measure the file, and load it; `options` are those of `wcompress.pack`, by method `vae`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wcz"
        start, cpu_start = time.perf_counter(), time.process_time()
        result = wcompress.pack(tensors, path, **{"method": "vae", **options})
        packed_at, pack_cpu_s = time.perf_counter(), time.process_time() - cpu_start
        restored = wcompress.load(path)
        seconds = {**result.seconds, "pack": packed_at - start, "load": time.perf_counter() - packed_at}
        return Packed(path.stat().st_size, result.sqnr_db, seconds, restored, result.n_latents, pack_cpu_s)


def synthetic(name: str, n_rows: int = 1000) -> Tensors:
    """Independent weights `[n_rows, 1000]`, seed 0."""
    rng = np.random.default_rng(0)
    draw = rng.normal if name == "gaussian" else rng.laplace
    return {"w": torch.from_numpy(draw(size=(n_rows, 1000))).float()}


@functools.cache
def mnist() -> MnistData:
    """Real MNIST; the embedded digits would make another benchmark."""
    data = load_mnist()
    if data.dataset != "mnist":
        sys.exit("real MNIST is needed: set WCOMPRESS_DATA to the folder that holds the folder `mnist`")
    return data


def baseline_path(folder: Path, name: str, seed: int = 0) -> Path:
    """Where a baseline's checkpoint lies: `mnist-fnn.pt` for seed 0, `mnist-fnn-seed1.pt` and so on for others."""
    return folder / (f"{name}-seed{seed}.pt" if seed else f"{name}.pt")


def baseline(folder: Path, name: str, seed: int = 0) -> Tensors:
    """A baseline's weights, trained and kept in the folder where they are not there yet."""
    path = baseline_path(folder, name, seed)
    if not path.exists():
        print(f"training {name} with seed {seed} …", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        if folder == DEFAULT_CACHE:
            (folder / ".gitignore").write_text("*\n")
        tensors = dict(train_baseline(name, data=mnist(), seed=seed).state_dict())
        write_checkpoint(path, tensors, format="pt")
    return read_checkpoint(path).tensors


def baseline_task(name: str) -> BaselineTask:
    """What scores a baseline."""
    return BaselineTask(name, mnist())


def real_model(folder: Path | None, name: str) -> Tensors | None:
    """A real model's weights, or None where its checkpoint is not in the folder."""
    found = sorted(folder.glob(REAL[name])) if folder is not None else []
    return read_checkpoint(found[0]).tensors if found else None


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As peers take them."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def n_params(tensors: Mapping[str, torch.Tensor]) -> int:
    """Float parameters."""
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def n_tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all tensors, which ratios are told against."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def argument_parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """A parser that says what the script does and shows an example."""
    assert description is not None
    return argparse.ArgumentParser(description=description.split("\n")[0], epilog=f"Example: {example}")


def add_model_arguments(parser: argparse.ArgumentParser, names: tuple[str, ...] = MODELS) -> None:
    """`--models`, `--real` and `--only`."""
    parser.add_argument(
        "--models", type=Path, default=DEFAULT_CACHE, help="folder of the baselines' checkpoints (default: %(default)s)"
    )
    if set(names) & set(REAL):
        parser.add_argument("--real", type=Path, help="folder of BlazeFace's and Silero VAD's checkpoints")
    parser.add_argument(
        "--only",
        type=names_from(names),
        default=list(names),
        metavar="MODEL[,MODEL]",
        help=f"a part of {', '.join(names)}; the others' results stay as they are",
    )


def add_venv_argument(parser: argparse.ArgumentParser) -> None:
    """`--nncodec-venv`."""
    parser.add_argument(
        "--nncodec-venv", type=Path, default=DEFAULT_VENV, help="NNCodec's environment (default: %(default)s)"
    )


def names_from(known: tuple[str, ...]) -> Any:
    """An argparse type: names from a list, with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def numbers(text: str) -> list[float]:
    """An argparse type: numbers with commas between them."""
    return [float(part) for part in text.split(",")]


def integers(text: str) -> list[int]:
    """An argparse type: whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def chosen_models(arguments: argparse.Namespace) -> Iterator[tuple[str, Tensors]]:
    """The models asked for, one after the other; a line for each that is not there."""
    for name in arguments.only:
        if name in SYNTHETIC:
            yield name, synthetic(name)
        elif name in BASELINES:
            yield name, baseline(arguments.models, name)
        else:
            tensors = real_model(arguments.real, name)
            if tensors is None:
                print(f"{name}: skipped; pass --real with a folder that holds {REAL[name]}", flush=True)
            else:
                yield name, tensors
