"""Bytes at an equal error of the output, on a network with BatchNorm whose tensors differ widely in scale.

    python -m benchmarks.equal_function [--seeds 0,1,2] [--effort 5]

A small residual network is trained on scikit-learn's digits. Then every convolution is multiplied by a random factor
from 0.1 to 10, and the statistics of the norm after it by what that needs, so that the network computes the same: in
checkpoints such scales mean nothing, and differ. Quality is Σy² / Σ(y−ŷ)² over the class scores of the held-out
digits, in dB. Ours is packed to bits a weight that lie 0.25 apart. NNCodec has `ACCURACY_SETTINGS`, `opt_qp` among
them, and steps relative to each tensor's scale; each with several precisions for norms and biases. Bytes at a quality
are those of `peers.least_bytes`. Writes `benchmarks/results/equal_function.json`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import merge_result
from benchmarks.curves import Point, Span, function_means, number, saving_percent, walk
from benchmarks.models import (
    DEFAULT_EFFORT,
    Tensors,
    add_venv_argument,
    argument_parser,
    as_arrays,
    integers,
    n_params,
    numbers,
    pack_and_load,
)
from benchmarks.peers import ACCURACY_SETTINGS, BEST, NNCodec, least_bytes, relative_qps, small_tensor_qps, usual_qps
from wcompress.tasks.digits import split_stratified

LEVELS_DB = (10.0, 15.0, 20.0)
WANTED_PERCENT = 10.0
RELATIVE_ERRORS = (0.01, 0.003)
"""How precisely NNCodec keeps norms and biases."""

_EPOCHS, _BATCH, _PEAK_LR = 30, 64, 4e-3
_WIDTHS = (16, 32, 64)
_MOST_BITS, _BITS_APART = 8.0, 0.25


class Block(nn.Module):
    """Two 3×3 convolutions with norms, and a way around them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=1 if n_in == n_out else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, n_in, h, w]` → `[n, n_out, h', w']`."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if y.shape != x.shape:
            # As in the first residual networks: every second pixel, and zeros for the channels that are new.
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """8×8 pixels → scores of ten classes; about 175,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_WIDTHS[0])
        widths = [_WIDTHS[0], *(width for width in _WIDTHS for _ in range(2))]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(widths)))
        self.fc = nn.Linear(_WIDTHS[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """`[n, 1, 8, 8]` → `[n, 10]`."""
        x = self.blocks(functional.relu(self.bn(self.conv(images))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images `[n, 1, 8, 8]` in [0, 1] and labels, held-out images and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(np.asarray(found.images, np.float32) / 16)[:, None]
    labels = torch.from_numpy(np.asarray(found.target, np.int64))
    train, _, test = split_stratified(labels.numpy())
    return images[train], labels[train], images[test], labels[test]


def train(images: Tensor, labels: Tensor, seed: int) -> ResNet:
    """Adam and one cycle of the learning rate; in eval mode afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=_PEAK_LR)
    n_steps = _EPOCHS * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_LR, total_steps=n_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(_BATCH):
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def rescale(model: ResNet, seed: int) -> None:
    """Multiply each convolution before a norm by a random factor; what the network computes stays the same."""
    rng = np.random.default_rng(seed)
    pairs = [(model.conv, model.bn)]
    for block in model.blocks:
        assert isinstance(block, Block)
        pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    with torch.no_grad():
        for conv, norm in pairs:
            factor = 10.0 ** float(rng.uniform(-1, 1))
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight *= factor
            norm.running_mean *= factor
            # The norm divides by √(variance + eps), of which eps does not scale.
            norm.running_var.copy_((factor**2 * (norm.running_var + norm.eps) - norm.eps).clamp_min(0))


def weights_of(model: ResNet) -> Tensors:
    """Its float tensors: how many batches a norm has seen plays no part afterwards, and NNCodec takes no integers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def scores_with(tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What the network with these weights computes."""
    model = ResNet()
    missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        return model.eval()(images)


def output_db(wanted: Tensor, found: Tensor) -> float:
    """Σy² / Σ(y−ŷ)² in dB; −100 where the output is not finite."""
    error = float((wanted.double() - found.double()).square().sum())
    if not math.isfinite(error):
        return -100.0
    return 10 * math.log10(float(wanted.double().square().sum()) / max(error, 1e-300))


def curves_of_nncodec(
    codec: NNCodec, tensors: Tensors, quality: Callable[[Mapping[str, Tensor]], float], span: Span
) -> list[tuple[dict[str, Any], list[Point]]]:
    """Every setting with its curve."""
    arrays = as_arrays(tensors)
    reach = usual_qps(arrays, finest=0.002, coarsest=4.0)
    first = usual_qps(arrays, 0.1, 0.1)[0]

    def encode(**args: Any) -> Point:
        point = codec.encode_decode(arrays, **args)
        restored = {name: torch.from_numpy(np.array(array)) for name, array in point.restored.items()}
        return quality(restored), float(point.n_bytes)

    result: list[tuple[dict[str, Any], list[Point]]] = []
    for relative_error in RELATIVE_ERRORS:
        for settings in ACCURACY_SETTINGS:
            small = small_tensor_qps(codec, arrays, relative_error, **settings)

            def at_qp(qp: int, settings: dict[str, Any] = settings, small: dict[str, int] = small) -> Point:
                return encode(qp=qp, qp_per_tensor=small, **settings)

            told = {**settings, "relative_error": relative_error}
            result.append((told, walk(at_qp, first, (reach[0], reach[-1]), span)))
        small = small_tensor_qps(codec, arrays, relative_error, **BEST)

        def at_step(index: int, small: dict[str, int] = small) -> Point:
            return encode(qp_per_tensor={**small, **relative_qps(arrays, 2.0 ** (index / 4))}, **BEST)

        told = {**BEST, "relative_steps": True, "relative_error": relative_error}
        result.append((told, walk(at_step, 0, (-24, 8), span)))
    return result


def compare_seed(codec: NNCodec, seed: int, effort: int, levels: Sequence[float]) -> dict[str, Any]:
    """One network."""
    images, labels, held_out, held_out_labels = digits()
    model = train(images, labels, seed)
    before = scores_with(weights_of(model), held_out)
    rescale(model, seed)
    tensors = weights_of(model)
    wanted = scores_with(tensors, held_out)

    def quality(restored: Mapping[str, Tensor]) -> float:
        return output_db(wanted, scores_with(restored, held_out))

    def measure(index: int) -> Point:
        packed = pack_and_load(tensors, bits_per_weight=_MOST_BITS - _BITS_APART * index, effort=effort)
        return quality(packed.restored), float(packed.n_bytes)

    span = Span(low=min(levels) - 1, high=max(levels) + 1)
    last = round((_MOST_BITS - 0.75) / _BITS_APART)
    ours = walk(measure, round((_MOST_BITS - 2.5) / _BITS_APART), (0, last), span)
    theirs = curves_of_nncodec(codec, tensors, quality, span)
    at: list[dict[str, Any]] = []
    for level in levels:
        n_bytes = least_bytes([ours], level)
        by_setting = [(least_bytes([curve], level), told) for told, curve in theirs]
        reached = [(found, told) for found, told in by_setting if found is not None]
        least = min(reached, key=lambda pair: pair[0], default=(None, None))
        with_opt_qp = min((found for found, told in reached if told.get("opt_qp")), default=None)
        at.append(
            {
                "level_db": level,
                "n_bytes": n_bytes,
                "nncodec_bytes": least[0],
                "nncodec_args": least[1],
                "nncodec_opt_qp_bytes": with_opt_qp,
                "saving_percent": saving_percent(n_bytes, least[0]),
                "saving_on_opt_qp_percent": saving_percent(n_bytes, with_opt_qp),
            }
        )
    return {
        "seed": seed,
        "effort": effort,
        "n_params": n_params(tensors),
        "held_out_accuracy": 100 * float((wanted.argmax(1) == held_out_labels).float().mean()),
        "rescaling_error_db": -output_db(before, wanted),
        "at": at,
        "curve": ours,
        "nncodec_curves": [{"args": told, "points": curve} for told, curve in theirs],
    }


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.equal_function --seeds 0")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2], help="of the training (default: 0,1,2)")
    parser.add_argument("--levels", type=numbers, default=list(LEVELS_DB), help="dB (default: 10,15,20)")
    parser.add_argument("--effort", type=int, default=DEFAULT_EFFORT, help="of ours (default: %(default)s)")
    add_venv_argument(parser)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with NNCodec(arguments.nncodec_venv) as codec:
        for seed in arguments.seeds:
            rows.append(compare_seed(codec, seed, arguments.effort, arguments.levels))
            print(
                f"seed {seed}: {rows[-1]['n_params']:,} parameters, {rows[-1]['held_out_accuracy']:.1f} % of held-out"
                f" digits; rescaling changed the output by {rows[-1]['rescaling_error_db']:.0f} dB"
            )
            for point in rows[-1]["at"]:
                print(
                    f"seed {seed}  {point['level_db']:.0f} dB  ours {number(point['n_bytes'], ',.0f')} B"
                    f"  NNCodec {number(point['nncodec_bytes'], ',.0f')} B {point['nncodec_args']}"
                    f"  with opt_qp {number(point['nncodec_opt_qp_bytes'], ',.0f')} B"
                    f"  saving {number(point['saving_percent'], '.1f')} %",
                    flush=True,
                )
            merge_result("equal_function", [rows[-1]], ["seed", "effort"], dataset="digits (scikit-learn)")
    for row in function_means(rows):
        for against, name in (("opt_qp", "saving_on_opt_qp_percent"), ("its best setting", "saving_percent")):
            saving = row[name]
            met = "not reached" if saving is None else "met" if saving >= WANTED_PERCENT else "missed"
            print(
                f"{row['level_db']:.0f} dB, mean of {row['n']}, against NNCodec with {against}:"
                f" saving {number(saving, '.1f')} %; wanted {WANTED_PERCENT:.0f} %: {met}"
            )


if __name__ == "__main__":
    main()
