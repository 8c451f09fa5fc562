"""Runs NNCodec, ZipNN and EntroPack inside their own virtual environment; `peers.NNCodec` starts it and talks to it.

One JSON object a line on the standard input, one back on the standard output; whatever the libraries print goes to
the standard error. Requests:

    {"kind": "nncodec", "npz": PATH, "names": [...], "args": {...}, "repeats": 1, "out": PATH}
        float32 arrays under the keys "0000", "0001", ... in the order of `names`. `args` are those of
        `nncodec.nnc.compress`, over the defaults of `nncodec.nn.encode`, plus `sparsity` and `struct_spars_factor`,
        which `nncodec.nn.encode` handles itself. The decoded arrays come back in the original's shapes.
    {"kind": "zipnn", "file": PATH, "dtype": "float32", "repeats": 1, "out": PATH}
        a file's bytes, taken as numbers of that dtype.
    {"kind": "entropack", "npz": PATH, "names": [...], "bits": [...], "args": {...}, "file": PATH, "out": PATH}
        float32 arrays as above; `bits` are the target of each matrix, None for what is not given to EntroPack. `args`
        are those of `EntroPackLossyConfig`. Everything goes to one safetensors file, which is read back.

Answers: {"n_bytes", "encode_s", "decode_s"} or {"error": TEXT}. Times are of the library's calls alone, after a first
call that is not counted, the least of `repeats`.

`nncodec.nn.encode` passes on only some of what `compress` takes: not `lambda_scale`, which turns on rate-distortion
optimised quantisation (its 0 leaves it off), nor `cabac_unary_length_minus1`, `scan_order` and `qp_density`. So
`compress` is called directly. The bitstream is an ordinary one: `nncodec.nn.decode` reads it without being told
anything. `bitstream_path=None` keeps it from writing side files.

What NNCodec refuses, and what is done about it: tensors without dimensions (IndexError; coded as one element) and
names with "_G" or "_H" in them (they mark decomposed tensors; lower case is stored instead). What this worker refuses
for it: tensors without elements, and NaN or infinity, which its C++ casts to int.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

UNUSED = (
    "cv2",
    "h5py",
    "pandas",
    "ptflops",
    "sentencepiece",
    "sklearn",
    "torchmetrics",
    "torchvision",
    "tqdm",
)
"""What NNCodec imports for training, data sets and file formats; its codec calls none of it."""

# Where `nncodec.nn.encode` and `nncodec.nnc.compress` differ in what they take for granted.
NN_ENCODE_DEFAULTS = {"qp": -32, "nonweight_qp": -75, "use_dq": True, "param_opt": True, "row_skipping": True}

T = TypeVar("T")


class _AnyAttribute(type):
    """Of classes with every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything(metaclass=_AnyAttribute):
    """To be called, inherited from and asked for attributes: enough for import statements and module-level code."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass


class _StandIn(types.ModuleType):
    """A module with every attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `UNUSED` and their submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        known = fullname.partition(".")[0] in UNUSED
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def timed(call: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What the call returns, and the least of its times in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, best


def run_nncodec(params: dict[str, np.ndarray], args: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Encode and decode; the answer holds the decoded arrays under "arrays", in the order of `params`."""
    from nncodec import nnc
    from nncodec.framework.applications.utils.sparsification import apply_struct_spars_v2, apply_unstruct_spars_v2

    settings = {**NN_ENCODE_DEFAULTS, **args}
    sparsity = settings.pop("sparsity", 0.0)
    structured = settings.pop("struct_spars_factor", 0.9)

    def encode() -> bytearray:
        tensors = params
        if sparsity > 0:
            tensors = apply_unstruct_spars_v2(settings["qp"], tensors, target_sparsity=sparsity)
            tensors = apply_struct_spars_v2(tensors, gain=structured) if structured > 0 else tensors
        return nnc.compress(tensors, bitstream_path=None, return_bitstream=True, **settings)

    bitstream, encode_s = timed(encode, repeats)
    decoded, decode_s = timed(lambda: nnc.decompress(bitstream), repeats)
    arrays = [np.asarray(decoded[name], dtype=np.float32) for name in params]
    return {"n_bytes": len(bitstream), "encode_s": encode_s, "decode_s": decode_s, "arrays": arrays}


def stored_names(names: list[str]) -> list[str]:
    """The names as NNCodec accepts them, each different and, but for clashes, as long as it was."""
    stored: list[str] = []
    for name in names:
        candidate = name.replace("_G", "_g").replace("_H", "_h")
        while candidate in stored or (candidate != name and candidate in names):
            candidate += "'"
        stored.append(candidate)
    return stored


def handle_nncodec(request: dict[str, Any]) -> dict[str, Any]:
    """One request of the kind "nncodec"."""
    with np.load(request["npz"]) as file:
        originals = [file[f"{i:04d}"] for i in range(len(request["names"]))]
    for name, array in zip(request["names"], originals, strict=True):
        if array.dtype != np.float32 or array.size == 0 or not np.isfinite(array).all():
            raise ValueError(f"{name}: {array.dtype} {array.shape}: finite float32 with elements is needed")
    names = stored_names(request["names"])
    params = {name: np.atleast_1d(array) for name, array in zip(names, originals, strict=True)}
    args = dict(request["args"])
    if args.get("qp_per_tensor"):
        by_name = dict(zip(request["names"], names, strict=True))
        args["qp_per_tensor"] = {by_name[name]: np.int32(qp) for name, qp in args["qp_per_tensor"].items()}
    answer = run_nncodec(params, args, request.get("repeats", 1))
    arrays = answer.pop("arrays")
    shaped = [array.reshape(original.shape) for array, original in zip(arrays, originals, strict=True)]
    np.savez(request["out"], **{f"{i:04d}": array for i, array in enumerate(shaped)})
    return answer


def handle_zipnn(request: dict[str, Any]) -> dict[str, Any]:
    """One request of the kind "zipnn"."""
    from zipnn import ZipNN

    data = Path(request["file"]).read_bytes()

    def encode() -> bytes:
        # It may write into what it is given.
        return bytes(ZipNN(input_format="byte", bytearray_dtype=request["dtype"]).compress(bytearray(data)))

    packed, encode_s = timed(encode, request.get("repeats", 1))
    restored, decode_s = timed(lambda: ZipNN(input_format="byte").decompress(packed), request.get("repeats", 1))
    Path(request["out"]).write_bytes(restored)
    return {"n_bytes": len(packed), "encode_s": encode_s, "decode_s": decode_s}


def as_matrix(array: np.ndarray) -> np.ndarray:
    """A tensor of two or more dimensions as EntroPack takes it: rows of a multiple of eight where there are any.

    A row has a scale of its own; what is missing to eight columns is filled with zeros, which cost bits.
    """
    matrix = array.reshape(len(array), -1)
    return np.ascontiguousarray(matrix.T) if matrix.shape[1] % 8 and matrix.shape[0] % 8 == 0 else matrix


def from_matrix(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `as_matrix`."""
    return (matrix if matrix.shape[0] == shape[0] else matrix.T).reshape(shape)


def handle_entropack(request: dict[str, Any]) -> dict[str, Any]:
    """One request of the kind "entropack": matrices by EntroPack on the CPU, whatever is smaller in float16 as that."""
    import entropack
    import torch
    from safetensors.torch import load_file, save_file

    with np.load(request["npz"]) as file:
        originals = [file[f"{i:04d}"] for i in range(len(request["names"]))]
    configs = [
        bits and entropack.EntroPackLossyConfig(target_bpp=bits, execution_backend="eager", **request["args"])
        for bits in request["bits"]
    ]

    def encode() -> None:
        stored: dict[str, torch.Tensor] = {}
        for name, array, config in zip(request["names"], originals, configs, strict=True):
            stored[name] = torch.from_numpy(array).half().contiguous()
            if config is not None:
                coded = entropack.compress(torch.from_numpy(as_matrix(array)), config)
                if coded.compress_method == "raw":
                    raise ValueError(f"{name}: EntroPack stores it as it is: {coded.header['reason']}")
                if coded.storage_nbytes() < 2 * array.size:
                    stored[name] = coded.state_dict()["entropack_quant_state"]
        save_file(stored, request["file"])

    def decode() -> list[np.ndarray]:
        stored, arrays = load_file(request["file"]), []
        for name, array, config in zip(request["names"], originals, configs, strict=True):
            tensor = stored[name]
            if tensor.dtype == torch.uint8:
                packed = entropack.CompressedTensor.unpack(tensor)
                arrays.append(from_matrix(entropack.decompress(packed, config).numpy(), array.shape))
            else:
                arrays.append(tensor.float().numpy())
        return arrays

    _, encode_s = timed(encode, 1)
    arrays, decode_s = timed(decode, 1)
    np.savez(request["out"], **{f"{i:04d}": array for i, array in enumerate(arrays)})
    return {"n_bytes": Path(request["file"]).stat().st_size, "encode_s": encode_s, "decode_s": decode_s}


HANDLERS = {"nncodec": handle_nncodec, "zipnn": handle_zipnn, "entropack": handle_entropack}


def warm_up() -> None:
    """Import everything and run it once."""
    from zipnn import ZipNN

    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    run_nncodec({"weight": weights, "bias": weights[0].copy()}, {"qp": -12}, 1)
    ZipNN(input_format="byte", bytearray_dtype="float32").compress(bytearray(weights.tobytes()))


def main() -> None:
    """Answer requests until the input ends."""
    # The libraries print, from C++ too: file descriptor 1 becomes the standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch  # noqa: F401  (before the stand-ins: it looks for optional libraries)

    # Last in the list: a library that is installed is used.
    sys.meta_path.append(_StandInFinder())
    warm_up()
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = HANDLERS[request["kind"]](request)
        # NNCodec raises SystemExit for what it cannot read.
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
