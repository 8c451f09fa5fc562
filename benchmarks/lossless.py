"""Exact compression: method `lossless` beside zstd and ZipNN, in float32 and cast to bfloat16.

    WCOMPRESS_DATA=folder-that-holds-mnist python -m benchmarks.lossless [--real DIR] [--only silero]

Ours is the whole archive, loaded again and equal bit for bit; zstd (level 19) and ZipNN get the safetensors file.
Writes `benchmarks/results/lossless.json`.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from benchmarks.common import merge_result
from benchmarks.models import (
    BASELINES,
    REAL,
    Tensors,
    add_model_arguments,
    add_venv_argument,
    argument_parser,
    chosen_models,
    n_tensor_bytes,
    pack_and_load,
)
from benchmarks.peers import NNCodec
from wcompress.fidelity import same_bits
from wcompress.report.baselines import decode, encode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WANTED_RATIOS = {"float32": 1.19, "bfloat16": 1.45}
"""BlazeFace, a tenth of whose file is names and biases, is measured beside; no ratio is set for it."""


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The float tensors in a dtype."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def check_exact(name: str, tensors: Tensors, restored: Tensors) -> None:
    """Every bit.

    Raises:
        AssertionError: one differs.
    """
    assert list(restored) == list(tensors) or set(restored) == set(tensors), f"{name}: other tensors came back"
    for key, tensor in tensors.items():
        assert same_bits(tensor, restored[key]), f"{name}: {key} came back with other bits"


def measure(codec: NNCodec, name: str, tensors: Tensors, dtype: str) -> dict[str, Any]:
    """One model in one dtype."""
    tensors = cast(tensors, DTYPES[dtype])
    ours = pack_and_load(tensors, method="lossless")
    check_exact(f"{name} packed", tensors, ours.restored)
    zstd = encode("zstd", tensors)
    check_exact(f"{name} under zstd", tensors, decode("zstd", zstd))
    zipnn = codec.zipnn_file(save_safetensors(tensors), dtype)
    n_bytes = n_tensor_bytes(tensors)
    ratio = n_bytes / ours.n_bytes
    wanted = None if name == "blazeface" else WANTED_RATIOS[dtype]
    return {
        "model": name,
        "dtype": dtype,
        "original_bytes": n_bytes,
        "n_bytes": ours.n_bytes,
        "ratio": ratio,
        "zstd_bytes": len(zstd),
        "zstd_ratio": n_bytes / len(zstd),
        "zipnn_bytes": zipnn.n_bytes,
        "zipnn_ratio": n_bytes / zipnn.n_bytes,
        "wanted_ratio": wanted,
        "met": None if wanted is None else ratio >= wanted,
    }


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.lossless --real models/")
    add_model_arguments(parser, (*BASELINES, *REAL))
    add_venv_argument(parser)
    arguments = parser.parse_args()
    with NNCodec(arguments.nncodec_venv) as codec:
        for name, tensors in chosen_models(arguments):
            rows = [measure(codec, name, tensors, dtype) for dtype in DTYPES]
            for row in rows:
                wanted = row["wanted_ratio"]
                verdict = "" if wanted is None else f"  wanted {wanted}x: {'met' if row['met'] else 'missed'}"
                print(
                    f"{name:10} {row['dtype']:8}  ours {row['n_bytes']:9,} B {row['ratio']:.3f}x"
                    f"  zstd {row['zstd_ratio']:.3f}x  ZipNN {row['zipnn_ratio']:.3f}x{verdict}",
                    flush=True,
                )
            merge_result("lossless", rows, ["model", "dtype"])


if __name__ == "__main__":
    main()
