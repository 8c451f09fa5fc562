"""Files ↔ named tensors: what is read, what is refused and in which words, and what is written."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import os
import pickle
import random
import struct
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors

from wcompress.checkpoint import (
    Checkpoint,
    dtype_from_name,
    dtype_name,
    read_checkpoint,
    state_metadata,
    write_checkpoint,
)
from wcompress.codec.packing import pack
from wcompress.codec.reading import load
from wcompress.codec.unpacking import default_output, unpack
from wcompress.errors import CheckpointError, OptionError, OutputError, UnsafeCheckpoint, UnsupportedCheckpoint

FLOATS = [
    *("float64", "float32", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
INTEGERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]
ONLY_PT = ["complex128", "complex32", "bits8", "bits16"]
SAFETENSORS = [*FLOATS, *INTEGERS, "complex64", "float4_e2m1fn_x2"]
ALL = [*SAFETENSORS, *ONLY_PT]


def filled(dtype: str, *shape: int) -> torch.Tensor:
    """A tensor with every kind of bit pattern; bools stay 0 and 1."""
    kind = getattr(torch, dtype)
    n = math.prod(shape)
    n_bytes = max(n, 1) * kind.itemsize
    values = np.random.default_rng(n).integers(0, 2 if dtype == "bool" else 256, n_bytes, dtype=np.uint8)
    return torch.from_numpy(values).view(kind)[:n].reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def assert_same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].shape == tensor.shape, name
        if tensor.numel():
            assert raw(read[name]) == raw(tensor), name


def refusal(kind: type[CheckpointError], source: Any, **options: Any) -> CheckpointError:
    """Reads, expects exactly `kind`, and checks that the message is one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(source, **options)
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 700
    if isinstance(source, Path):
        assert str(source) in message or "\\" in message
    return caught.value


def save(path: Path, content: Any, **options: Any) -> Path:
    with path.open("wb") as stream:
        torch.save(content, stream, **options)
    return path


def zipped(path: Path, names: list[str], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


@pytest.fixture
def model() -> dict[str, torch.Tensor]:
    return {"z.weight": filled("float32", 4, 3), "a.bias": filled("float32", 4), "n": torch.tensor(7)}


# --- torch files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ""])
def test_a_torch_file_is_recognised_by_its_bytes(
    tmp_path: Path, model: dict[str, torch.Tensor], suffix: str, legacy: bool
) -> None:
    path = save(tmp_path / f"m{suffix}", model, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, model)
    assert checkpoint.source == path.name
    assert checkpoint.left_out == ()
    assert checkpoint.ties == {}
    assert checkpoint.metadata == {}
    assert checkpoint.n_params == 16
    assert checkpoint.original_bytes == 16 * 4 + 8


def test_the_path_may_be_a_string(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    assert_same(read_checkpoint(str(save(tmp_path / "m.pt", model))).tensors, model)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_protocol_3_is_read_without_a_warning(
    tmp_path: Path, model: dict[str, torch.Tensor], legacy: bool
) -> None:
    path = save(tmp_path / "m", model, pickle_protocol=3, _use_new_zipfile_serialization=not legacy)
    assert_same(read_checkpoint(path).tensors, model)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [4, 5])
def test_newer_pickle_protocols_are_read_unless_strict(
    tmp_path: Path, model: dict[str, torch.Tensor], protocol: int, legacy: bool
) -> None:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
    path = save(tmp_path / "m.pt", model, **options)
    assert_same(read_checkpoint(path).tensors, model)
    assert "protocol 4" in str(refusal(UnsupportedCheckpoint, path, strict=True))


def test_a_compressed_torch_zip_is_read(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    stored = save(tmp_path / "stored.pt", model)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read_checkpoint(tmp_path / "m.pt").tensors, model)


def test_a_file_whose_path_is_not_unicode_is_read(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.pt"))
    try:
        save(path, model)
    except OSError:
        pytest.skip("this file system has no such names")
    assert_same(read_checkpoint(path).tensors, model)
    path.write_bytes(b"GGUF")
    assert "\\udcff" in str(refusal(UnsupportedCheckpoint, path))


@pytest.mark.parametrize("name", ["weird\nname.pt", "weird\x1b[31mname.pt"])
def test_messages_stay_on_one_line_whatever_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    refusal(UnsupportedCheckpoint, tmp_path / name)


# --- dtypes, shapes, memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL)
def test_every_dtype_survives_pt(tmp_path: Path, dtype: str) -> None:
    tensors = {"m": filled(dtype, 6, 4), "scalar": filled(dtype, 1)[0], "empty": filled(dtype, 0, 3)}
    write_checkpoint(tmp_path / "m.pt", tensors, format="pt")
    assert_same(read_checkpoint(tmp_path / "m.pt").tensors, tensors)
    assert_same(read_checkpoint(tensors).tensors, tensors)


@pytest.mark.parametrize("dtype", SAFETENSORS)
def test_every_dtype_survives_safetensors(tmp_path: Path, dtype: str) -> None:
    tensors = {"m": filled(dtype, 6, 4), "scalar": filled(dtype, 1)[0], "empty": filled(dtype, 0, 3)}
    if dtype == "float4_e2m1fn_x2":  # two to a byte, along the last dimension
        with pytest.raises(UnsupportedCheckpoint, match=r"'scalar'.*--format pt"):
            write_checkpoint(tmp_path / "m.safetensors", tensors, format="safetensors")
        tensors.pop("scalar")
    write_checkpoint(tmp_path / "m.safetensors", tensors, format="safetensors")
    read = read_checkpoint(tmp_path / "m.safetensors").tensors
    assert_same({name: read[name] for name in tensors}, tensors)


@pytest.mark.parametrize("dtype", ONLY_PT)
def test_a_dtype_that_safetensors_lacks_is_refused_with_the_way_out(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=f"'m'.*{dtype}.*--format pt") as caught:
        write_checkpoint(tmp_path / "m", {"m": filled(dtype, 2)}, format="safetensors")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_floating_point_elements_are_parameters(dtype: str) -> None:
    others = {name: filled(name, 3) for name in [*INTEGERS, "complex64"]}
    assert read_checkpoint({"w": filled(dtype, 5), **others}).n_params == 5


def view_cases() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    numbers = torch.complex(base, base + 1)
    return {
        "transposed": base.t(),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "strided": base[::2, 1::2],
        "slice": base[1:3],
        "conjugate": numbers.conj(),
        "negative": numbers.conj().imag,
        "negative and contiguous": torch._neg_view(base),
        "parameter": torch.nn.Parameter(base.clone()),
        "non-leaf": torch.nn.Parameter(base.clone()) * 2,
        "buffer": torch.nn.Buffer(base.clone()),
    }


@pytest.mark.parametrize("case", view_cases())
@pytest.mark.parametrize("via", ["mapping", "zip", "legacy", "written pt", "written safetensors"])
def test_views_and_parameters_become_plain(tmp_path: Path, case: str, via: str) -> None:
    tensor = view_cases()[case]
    source: Any = {"t": tensor}
    if via in ("zip", "legacy"):
        source = save(tmp_path / "m", source, _use_new_zipfile_serialization=via == "zip")
    elif via != "mapping":
        write_checkpoint(tmp_path / "m", source, format="pt" if "pt" in via else "safetensors")
        source = tmp_path / "m"
    read = read_checkpoint(source).tensors["t"]
    assert type(read) is torch.Tensor
    assert read.is_contiguous()
    assert not read.requires_grad
    assert not read.is_conj()
    assert not read.is_neg()
    assert read.device.type == "cpu"
    assert torch.equal(read, tensor.detach())


class Marked(torch.Tensor):
    """A subclass that only adds a name."""


class Wrapped(torch.Tensor):
    """A subclass whose values are elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_subclass_that_only_adds_a_name_is_read() -> None:
    read = read_checkpoint({"t": torch.ones(2).as_subclass(Marked)}).tensors["t"]
    assert type(read) is torch.Tensor


def unstorable() -> dict[str, tuple[Callable[[], torch.Tensor], str]]:
    return {
        "meta": (lambda: torch.empty(2, device="meta"), "meta device"),
        "coo": (lambda: torch.eye(2).to_sparse(), "to_dense"),
        "csr": (lambda: torch.eye(2).to_sparse_csr(), "to_dense"),
        "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dequantize"),
        "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "unbind"),
        "lazy": (lambda: torch.nn.LazyLinear(3).weight, "lazy"),
        "subclass": (lambda: torch.ones(2).as_subclass(Wrapped), "Wrapped"),
        "int4": (lambda: torch.zeros(4, dtype=torch.uint8).view(torch.int4), "int4"),
        "uint1": (lambda: torch.zeros(4, dtype=torch.uint8).view(torch.uint1), "uint1"),
    }


@pytest.mark.parametrize("case", unstorable())
def test_what_has_no_plain_form_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, words = unstorable()[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = {"fine": torch.ones(1), "odd.one": make()}
    for source in (tensors, {"model": tensors}):
        error = refusal(UnsupportedCheckpoint, source)
        assert "'odd.one'" in str(error)
        assert words in str(error)
    with pytest.raises(UnsupportedCheckpoint, match=r"odd\.one"):
        write_checkpoint(tmp_path / "m", tensors, format="pt")


@pytest.mark.parametrize("case", ["meta", "coo", "csr", "quantised"])
def test_what_has_no_plain_form_is_refused_in_a_file(tmp_path: Path, case: str) -> None:
    make, words = unstorable()[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(tmp_path / "m.pt", {"odd": make()})
    torch.set_warn_always(True)  # else a warning of torch comes once per process, and a test before may have had it
    try:
        assert words in str(refusal(UnsupportedCheckpoint, path))
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("legacy", [False, True])
def test_tied_tensors_are_named_and_counted_twice(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "emb": base,
        "other": base.clone(),
        "head": base,
        "transposed": base.t(),  # the same memory, but not the same tensor
        "rows": base[:2],
        "also transposed": base.t(),
        "parameter": torch.nn.Parameter(base),
        "empty": base[:0],
        "empty too": base[:0],
    }
    path = save(tmp_path / "m.pt", tensors, _use_new_zipfile_serialization=not legacy)
    for source in (tensors, path):
        checkpoint = read_checkpoint(source)
        ties = {"head": "emb", "also transposed": "transposed", "parameter": "emb"}
        assert checkpoint.ties == ties
        assert all(checkpoint.tensors[later] is checkpoint.tensors[earlier] for later, earlier in ties.items())
        assert checkpoint.n_params == 12 * 6 + 8
        assert checkpoint.original_bytes == 4 * checkpoint.n_params


def test_bits_read_differently_are_not_tied() -> None:
    base = torch.ones(4)
    numbers = torch.complex(base, base)
    tensors = {"f": base, "i": base.view(torch.int32), "c": numbers, "conj": numbers.conj()}
    assert read_checkpoint(tensors).ties == {}
    assert torch.equal(read_checkpoint(tensors).tensors["conj"], numbers.conj())


def test_a_small_file_cannot_claim_a_huge_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.ones(1).expand(1 << 25)})
    message = str(refusal(CheckpointError, path))
    assert "'w'" in message
    assert "134217728 bytes" in message


# --- which entries are the weights ------------------------------------------------------------------------------

W = {"w": torch.ones(3)}
V = {"v": torch.zeros(9)}
ADAM = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "names", "left_out"),
    [
        (OrderedDict(W), ["w"], ()),
        ({**W, "version": 3, "extra": None}, ["w"], ("version", "extra")),
        ({"state_dict": W, "epoch": 3}, ["w"], ("epoch",)),
        ({"epoch": 3, "model_state_dict": W, "optimizer_state_dict": ADAM}, ["w"], ("epoch", "optimizer_state_dict")),
        ({"model": None, "ema": V}, ["v"], ("model",)),
        ({"state_dict": W, "model": V}, ["w"], ("model",)),
        ({"state_dict": W, "discriminator": V}, ["w"], ("discriminator",)),
        *(({name: W}, ["w"], ()) for name in ("module", "net", "network", "params", "weights", "ema")),
        ({"student": W, "opt": ADAM}, ["w"], ("opt",)),
        ({"student": W, "optimizer": {"m": torch.ones(9)}, "rng_state": torch.ones(1)}, None, ()),
        ({"student": W, "lr_scheduler": {"m": torch.ones(9)}}, ["w"], ("lr_scheduler",)),
        ({**W, "optimizer": ADAM}, ["w"], ("optimizer",)),
        ({"state_dict": W, "lr": torch.tensor(0.1), 5: "five"}, ["w"], ("lr", "5")),
        ({"model": {"a": W, "b": {"c": V}, "n": 1, "none": {}}}, ["a.w", "b.c.v"], ("model.n", "model.none")),
        ({"model": {"state_dict": W, "config": {"x": 1}}, "step": 1}, ["w"], ("step", "model.config")),
        ({"model": {"enc": W, "optimizer": ADAM}}, ["enc.w"], ("model.optimizer",)),
        ({"state_dict": {**W, "x._extra_state": [1]}}, ["w"], ("state_dict.x._extra_state",)),
        # a checkpoint within a checkpoint
        ({"checkpoint": {"model": W, "optimizer": ADAM}}, ["w"], ("checkpoint.optimizer",)),
        ({"ckpt": {"student": W, "opt": ADAM, "n": 1}}, ["w"], ("ckpt.opt", "ckpt.n")),
        ({"a": {"b": {"state_dict": {"net": W}}}, "n": 1}, ["w"], ("n",)),
        ({"model": {"module": W}}, ["w"], ()),
        ({"state_dict": {"module.w": W["w"], "_orig_mod.v": V["v"]}}, ["module.w", "_orig_mod.v"], ()),
    ],
)
@pytest.mark.parametrize("via", ["mapping", "file"])
def test_the_weights_are_found(
    tmp_path: Path, content: Any, names: list[str] | None, left_out: tuple[str, ...], via: str
) -> None:
    source = content if via == "mapping" else save(tmp_path / "m.ckpt", content)
    if names is None:
        assert "--key" in str(refusal(UnsupportedCheckpoint, source))
        return
    checkpoint = read_checkpoint(source)
    assert list(checkpoint.tensors) == names
    assert checkpoint.left_out == left_out


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict({"net.w": torch.ones(3)}),
        "loops": {"fit_loop": {"n": 1}},
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5)}},
        "optimizer_states": [ADAM],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": torch.tensor(0.1)},
    }
    checkpoint = read_checkpoint(save(tmp_path / "last.ckpt", content))
    assert list(checkpoint.tensors) == ["net.w"]
    assert checkpoint.left_out == tuple(name for name in content if name != "state_dict")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(2), ["single tensor", "state_dict()"]),
        ([torch.ones(2)], ["list of 1"]),
        (3, ["int"]),
        ({}, ["no tensors", "empty"]),
        ({"state_dict": {}}, ["no tensors", "'state_dict'"]),
        ({"epoch": 3, "name": "x"}, ["no tensors", "'epoch'", "'name'"]),
        (ADAM, ["optimizer"]),
        ({"generator": W, "discriminator": V}, ["'generator'", "'discriminator'", "--key"]),
        ({"scale": torch.ones(1), "encoder": V}, ["'encoder'", "--key"]),
        ({"big": torch.ones(99), "model": V}, ["'model'", "--key"]),
        ({0: torch.ones(1)}, ["0", "string"]),
        ({"model": {0: torch.ones(1)}}, ["0", "string"]),
        ({"model": {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}}, ["'a.b'", "twice"]),
        ({"bad\ud800": torch.ones(1)}, ["\\ud800", "Unicode"]),
    ],
)
@pytest.mark.parametrize("via", ["mapping", "file"])
def test_unclear_content_is_refused_with_what_was_found(
    tmp_path: Path, content: Any, words: list[str], via: str
) -> None:
    if via == "mapping" and not isinstance(content, dict):
        return
    source = content if via == "mapping" else save(tmp_path / "m.pt", content)
    message = str(refusal(UnsupportedCheckpoint, source))
    assert [word for word in words if word not in message] == []


def test_key_picks_an_entry(tmp_path: Path) -> None:
    content = {"model": W, "ema": {"state_dict": V}, "opt": ADAM, "n": 1}
    path = save(tmp_path / "m.pt", content)
    for key in ("ema", "ema.state_dict"):
        checkpoint = read_checkpoint(path, key=key)
        assert list(checkpoint.tensors) == ["v"]
        assert checkpoint.left_out == ("model", "opt", "n")
        assert checkpoint.left_out_tensors == ("model", "opt")
    for key in ("EMA", "n"):
        message = str(refusal(UnsupportedCheckpoint, path, key=key))
        assert f"'{key}'" in message
        assert "'model', 'ema', 'opt', 'n'" in message
    message = str(refusal(UnsupportedCheckpoint, path, key="ema.gone"))
    assert "'ema' has no entry 'gone'; its entries are 'state_dict'" in message


def test_keys_with_dots_in_their_names() -> None:
    content = {"a.b": {"c": W}, "a": {"d": {"c": V}}}
    assert list(read_checkpoint(content, key="a.b.c").tensors) == ["w"]
    assert list(read_checkpoint(content, key="a.d.c").tensors) == ["v"]


AVERAGES = ["ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "swa", "netEMA", "g_ema"]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("main", ["model", "state_dict", "student", "params"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("within", [(), ("checkpoint",)])
def test_weights_and_their_average_are_asked_about(
    average: str, main: str, order: int, within: tuple[str, ...]
) -> None:
    sets = {main: W, average: V}
    content: dict[str, Any] = {**{name: sets[name] for name in list(sets)[::order]}, "epoch": 3}
    for name in within:
        content = {name: content, "n": 1}
    keys = [".".join([*within, name]) for name in (main, average)]
    message = str(refusal(UnsupportedCheckpoint, content))
    assert "--key" in message
    assert [key for key in keys if f"'{key}'" not in message] == []
    assert [list(read_checkpoint(content, key=key).tensors) for key in keys] == [["w"], ["v"]]


@pytest.mark.parametrize("name", ["schema", "semantic", "remap", "enemata", "swap", "shadowless"])
def test_names_that_only_look_like_an_average(name: str) -> None:
    assert list(read_checkpoint({"model": W, name: V}).tensors) == ["w"]


def test_two_sets_of_the_same_weights_are_asked_about() -> None:
    message = str(refusal(UnsupportedCheckpoint, {"state_dict": W, "best_state_dict": {"w": torch.zeros(3)}}))
    assert "'state_dict', 'best_state_dict'" in message


def test_everything_can_be_asked_for() -> None:
    content = {"scale": torch.ones(1), "encoder": V, "optimizer": ADAM}
    assert "--key ." in str(refusal(UnsupportedCheckpoint, content))
    checkpoint = read_checkpoint(content, key=".")
    assert list(checkpoint.tensors) == ["scale", "encoder.v"]
    assert checkpoint.left_out_tensors == ("optimizer",)


def test_many_entries_are_not_all_listed() -> None:
    message = str(refusal(UnsupportedCheckpoint, {f"part{i}": W for i in range(500)}))
    assert "'part0'" in message
    assert "488 more" in message


def test_dictionaries_without_end_are_refused() -> None:
    endless: dict[str, Any] = {"w": torch.ones(1)}
    endless["self"] = endless
    assert "nested" in str(refusal(CheckpointError, {"model": endless}))
    ring: dict[str, Any] = {}
    ring["state_dict"] = ring
    refusal(UnsupportedCheckpoint, ring)
    doubling: dict[str, Any] = {"n": 1}
    for _ in range(60):
        doubling = {"a": doubling, "b": doubling}
    refusal(UnsupportedCheckpoint, doubling)


def test_a_module_is_not_a_mapping_of_tensors() -> None:
    module: Any = torch.nn.Linear(2, 2)
    assert "pass model.state_dict()" in str(refusal(UnsupportedCheckpoint, module))
    assert "pass model.state_dict()" in str(refusal(UnsupportedCheckpoint, {"model": module}))
    assert list(read_checkpoint(module.state_dict()).tensors) == ["weight", "bias"]


@pytest.mark.parametrize("source", [None, 3, [torch.ones(1)], io.BytesIO(), b"m.pt"])
def test_other_sources_are_refused(source: Any) -> None:
    assert "pass a path or a mapping" in str(refusal(UnsupportedCheckpoint, source))


def test_a_mapping_has_no_source_name(model: dict[str, torch.Tensor]) -> None:
    checkpoint = read_checkpoint(model)
    assert checkpoint.source == ""
    assert checkpoint.tensors["z.weight"].data_ptr() == model["z.weight"].data_ptr()
    assert isinstance(checkpoint, Checkpoint)


# --- files that want to run code --------------------------------------------------------------------------------


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class Opens(Hostile):
    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("hostile", [Hostile, Opens])
@pytest.mark.parametrize("shape", ["zip", "legacy", "deep", "plain 2", "plain 4", "plain 0", "plain 1"])
def test_hostile_pickles_never_run(tmp_path: Path, shape: str, hostile: type[Hostile]) -> None:
    target = tmp_path / "created"
    path = tmp_path / "m.pt"
    payload = hostile(target)
    if shape.startswith("plain"):
        path.write_bytes(pickle.dumps({"w": payload}, protocol=int(shape[-1])))
    elif shape == "deep":
        save(path, {"state_dict": W, "callbacks": [{"x": payload}]})
    else:
        save(path, {"w": payload}, _use_new_zipfile_serialization=shape == "zip")
    message = str(refusal(UnsafeCheckpoint, path))
    assert "save only model.state_dict()" in message
    assert not target.exists()
    if not shape.startswith("plain"):
        assert "posix.system" in message or "nt.system" in message or "io.open" in message
    # Nothing sets the restriction aside: not the suffix, not the entry, not torch's own environment variable.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        refusal(UnsafeCheckpoint, path, key="state_dict")
    assert not target.exists()


def test_what_is_not_needed_for_tensors_is_refused_when_strict(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", torch.nn.Linear(2, 2))
    message = str(refusal(UnsafeCheckpoint, path, strict=True))
    assert "torch.nn.modules.linear.Linear" in message
    assert "weights_only" not in message
    assert_same(read_checkpoint(save(path, W), strict=True).tensors, W)


# --- damaged files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_torch_files(tmp_path: Path, model: dict[str, torch.Tensor], part: float, legacy: bool) -> None:
    path = save(tmp_path / "m.pt", model, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refusal(CheckpointError, path)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.full((64,), 1.5)})
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<4f", *[1.5] * 4)) + 40] ^= 1
    path.write_bytes(data)
    assert "CRC" in str(refusal(CheckpointError, path))


def test_a_file_saved_without_checksums_is_read(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "m.pt", model)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(path).tensors, model)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/data/0", bytes(80 << 20))
    assert "claim" in str(refusal(CheckpointError, tmp_path / "m.pt"))


@pytest.mark.parametrize("cut", [8, 9, 40, 200, -1])
def test_truncated_safetensors(tmp_path: Path, model: dict[str, torch.Tensor], cut: int) -> None:
    path = tmp_path / "m.safetensors"
    save_file(model, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_anywhere_gives_one_line_or_tensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m"
    if kind == "safetensors":
        save_file({"w": torch.ones(8), "b": torch.ones(2)}, path)
    else:
        save(path, {"w": torch.ones(8), "b": torch.ones(2)}, _use_new_zipfile_serialization=kind == "zip")
    original = path.read_bytes()
    rng = random.Random(7)
    messages = []
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(message.isprintable() for message in messages)


# --- safetensors ------------------------------------------------------------------------------------------------


def test_safetensors_in_the_order_of_the_file(tmp_path: Path) -> None:
    names = ["zeta", "alpha", "mid", "empty"]
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "note": "ü"}}
    data = b""
    for i, name in enumerate(names):
        values = struct.pack("<2f", i, i) if name != "empty" else b""
        header[name] = {
            "dtype": "F32",
            "shape": [len(values) // 4],
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header, sort_keys=True).encode()
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == names
    assert checkpoint.metadata == {"format": "pt", "note": "ü"}
    assert checkpoint.tensors["mid"].tolist() == [2.0, 2.0]
    assert checkpoint.tensors["empty"].shape == (0,)


def test_safetensors_has_no_entries_to_choose(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    save_file(model, tmp_path / "m.safetensors")
    assert "leave out" in str(refusal(UnsupportedCheckpoint, tmp_path / "m.safetensors", key="model"))


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "m.safetensors")
    assert "no tensors" in str(refusal(UnsupportedCheckpoint, tmp_path / "m.safetensors"))


def sharded(folder: Path, weight_map: Any, **shards: dict[str, torch.Tensor]) -> Path:
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors", metadata={"of": name})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2))
    return index


def test_shards_are_read_in_the_order_of_the_index(tmp_path: Path) -> None:
    one, two = {"b": torch.ones(2), "d": torch.zeros(1)}, {"a": torch.ones(3), "stray": torch.ones(9)}
    weight_map = {"d": "one.safetensors", "a": "two.safetensors", "b": "one.safetensors"}
    index = sharded(tmp_path, weight_map, one=one, two=two)
    checkpoint = read_checkpoint(index)
    assert_same(checkpoint.tensors, {"d": one["d"], "a": two["a"], "b": one["b"]})
    assert checkpoint.source == "model.safetensors.index.json"
    assert checkpoint.left_out == ("stray",)
    assert checkpoint.metadata == {"of": "one"}
    assert checkpoint.left_out_tensors == ("stray",)
    assert_same(read_checkpoint(tmp_path).tensors, checkpoint.tensors)


def test_shards_may_be_torch_files(tmp_path: Path) -> None:
    save(tmp_path / "one.bin", {"w": torch.ones(2)})
    assert list(read_checkpoint(sharded(tmp_path, {"w": "one.bin"})).tensors) == ["w"]


def test_a_linked_index_finds_its_shards_beside_the_link(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = sharded(tmp_path / "blobs", {"w": "one.safetensors"})
    save_file({"w": torch.ones(2)}, tmp_path / "snapshot" / "one.safetensors")
    (tmp_path / "snapshot" / index.name).symlink_to(index)
    assert list(read_checkpoint(tmp_path / "snapshot" / index.name).tensors) == ["w"]


@pytest.mark.parametrize(
    "name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\\b", "C:one", "a\0b"]
)
def test_shards_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file({"w": torch.ones(2)}, place / "one.safetensors")
    assert "folder" in str(refusal(UnsafeCheckpoint, sharded(folder, {"w": name})))


@pytest.mark.parametrize(
    ("weight_map", "kind", "words"),
    [
        ({"w": "gone.safetensors"}, CheckpointError, "'gone.safetensors' is missing"),
        ({"w": "one.safetensors", "x": "one.safetensors"}, CheckpointError, "'x'"),
        ({"w": "model.safetensors.index.json"}, UnsupportedCheckpoint, "itself an index"),
        ({"w": 3}, CheckpointError, "name of a file"),
        ({}, CheckpointError, "no tensors"),
        ([1], CheckpointError, "no tensors"),
    ],
)
def test_a_wrong_index(tmp_path: Path, weight_map: Any, kind: type[CheckpointError], words: str) -> None:
    index = sharded(tmp_path, weight_map, one={"w": torch.ones(2)})
    assert words in str(refusal(kind, index))


def test_an_index_has_no_entries_to_choose(tmp_path: Path) -> None:
    index = sharded(tmp_path, {"w": "one.safetensors"}, one={"w": torch.ones(2)})
    assert "leave out" in str(refusal(UnsupportedCheckpoint, index, key="model"))


# --- other kinds of file ----------------------------------------------------------------------------------------


def field(number: int, content: bytes | int) -> bytes:
    """One protobuf field: a varint, or bytes."""

    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


GRAPH = field(7, field(1, b"node" * 60) + field(2, b"graph"))
OPSET = field(8, field(1, b"") + field(2, 17))


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(3))
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(field(1, 8) + field(2, b"pytorch") + GRAPH + OPSET, ["ONNX", "export"], id="onnx"),
        pytest.param(field(1, 8) + GRAPH + OPSET, ["ONNX"], id="onnx without a producer"),
        pytest.param(field(1, 8) + field(5, 300) + field(6, b"") + GRAPH[:50], ["ONNX"], id="onnx cut off"),
        pytest.param(field(1, 1) + field(2, b"\x0a\x03abc"), ["no known kind"], id="another protobuf"),
        pytest.param(b"\x08\x08\x12" + b"\xff" * 9 + b"\x7f" + GRAPH, ["no known kind"], id="endless onnx field"),
        pytest.param(b"\x08\x08", ["no known kind"], id="two bytes of onnx"),
        pytest.param(b"GGUF\x03\0\0\0", ["GGUF"], id="gguf"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["git lfs pull"], id="lfs"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(64), ["HDF5"], id="hdf5"),
        pytest.param(npy(), ["NumPy"], id="npy"),
        pytest.param(npz(), [".npz"], id="npz"),
        pytest.param(b"\x1c\0\0\0TFL3" + bytes(64), ["TensorFlow Lite"], id="tflite"),
        pytest.param(gzip.compress(b"x"), ["gzip", "decompress"], id="gzip"),
        pytest.param(b"BZh91AY&SY", ["bzip2", "decompress"], id="bzip2"),
        pytest.param(b"\xfd7zXZ\0\0", ["xz", "decompress"], id="xz"),
        pytest.param(b"\x28\xb5\x2f\xfd\0", ["zstd", "decompress"], id="zstd"),
        pytest.param(b"7z\xbc\xaf\x27\x1c", ["7z", "extract"], id="7z"),
        pytest.param(b"Rar!\x1a\x07\x01", ["RAR", "extract"], id="rar"),
        pytest.param(tar(), ["tar archive"], id="tar"),
        pytest.param(b"\x89WCZ\r\n\x1a\n", ["already", "unpack"], id="wcompress"),
        pytest.param(b"<!DOCTYPE html><html></html>", ["web page"], id="html"),
        pytest.param(b"\xef\xbb\xbf\n  <HTML>", ["web page"], id="html with a mark"),
        pytest.param(b"hello, world.\n", ["text file"], id="text"),
        pytest.param(b"xxx" + "grüße".encode() * 1000, ["text file"], id="text cut inside a character"),
        pytest.param(b'{"architectures": ["Bert"]}', ["JSON"], id="json"),
        pytest.param(b"[1, 2]", ["JSON"], id="json list"),
        pytest.param(b"{not json", ["text file"], id="almost json"),
        pytest.param(b"[" * 100_000, ["text file"], id="deep json"),
        pytest.param(b"", ["empty"], id="empty"),
        pytest.param(bytes(1), ["zero bytes"], id="one zero"),
        pytest.param(bytes(100_000), ["zero bytes"], id="zeros"),
        pytest.param(bytes(99_999) + b"\1", ["no known kind"], id="nearly zeros"),
        pytest.param(b"\xff\xfe\x01\x02" * 9, ["no known kind", "ff fe 01 02"], id="unknown"),
        pytest.param(b"PK\x05\x06" + bytes(18), ["zip archive"], id="empty zip"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_kinds_are_refused_by_their_bytes(tmp_path: Path, data: bytes, words: list[str], suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    error = refusal(UnsupportedCheckpoint, path)
    assert [word for word in words if word not in str(error)] == []
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version"], "TorchScript"),
        (["m/data.pkl", "m/constants.pkl"], "TorchScript"),
        (["m/archive_format", "m/models/model.json", "m/data/weights/weight_0"], "torch.export"),
        (["version", "serialized_exported_program.json"], "torch.export"),
        (["m/.data/extern_modules", "m/model/model.pkl"], "torch.package"),
        (["config.json", "model.weights.h5"], "Keras"),
        (["readme.txt"], "zip archive"),
    ],
)
def test_other_zips_are_refused_by_their_names(tmp_path: Path, names: list[str], words: str) -> None:
    assert words in str(refusal(UnsupportedCheckpoint, zipped(tmp_path / "m.pt", names)))


def test_a_real_torchscript_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "m.pt"))
    assert "torch.jit.load" in str(refusal(UnsupportedCheckpoint, tmp_path / "m.pt"))


def test_a_torch_zip_without_content_is_damaged(tmp_path: Path) -> None:
    refusal(CheckpointError, zipped(tmp_path / "m.pt", ["m/data.pkl", "m/version"]))


# --- files that cannot be opened --------------------------------------------------------------------------------


def test_a_missing_file_is_a_mistake_in_the_call(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pt", tmp_path / "no" / "folder.pt"):
        error = refusal(CheckpointError, path)
        assert str(error) == f"{path}: no such file"
        assert error.exit_code == 2
    assert CheckpointError.exit_code == 3


def test_what_cannot_be_opened_is_a_mistake_in_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    paths = [tmp_path / "file" / "inside", tmp_path / ("n" * 400), Path("nul\0byte")]
    for path in paths:
        assert refusal(CheckpointError, path).exit_code == 2

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    error = refusal(CheckpointError, tmp_path / "file")
    assert "Permission denied" in str(error)
    assert error.exit_code == 2


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    error = refusal(UnsupportedCheckpoint, tmp_path)
    assert "folder" in str(error)
    assert error.exit_code == 2
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "fifo")
        error = refusal(UnsupportedCheckpoint, tmp_path / "fifo")  # and does not wait for a writer
        assert error.exit_code == 2


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_the_bytes_depend_on_the_tensors_only(tmp_path: Path, model: dict[str, torch.Tensor], format: Any) -> None:
    for name in ("one.tmp", "quite-another-name.x"):
        write_checkpoint(tmp_path / name, {n: t.clone() for n, t in model.items()}, format=format)
    one, other = (tmp_path / name for name in ("one.tmp", "quite-another-name.x"))
    assert one.read_bytes() == other.read_bytes()


def test_what_is_written_is_what_others_read(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    write_checkpoint(str(tmp_path / "m.pt"), model, format="pt")
    write_checkpoint(tmp_path / "m.safetensors", model, format="safetensors", metadata={"a": "b"})
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert type(content) is dict
    assert_same(content, model)
    assert_same({name: load_file(tmp_path / "m.safetensors")[name] for name in model}, model)
    assert read_checkpoint(tmp_path / "m.safetensors").metadata == {"a": "b"}


def test_default_metadata(tmp_path: Path, model: dict[str, torch.Tensor]) -> None:
    write_checkpoint(tmp_path / "m", model, format="safetensors")
    assert read_checkpoint(tmp_path / "m").metadata == {"format": "pt"}
    write_checkpoint(tmp_path / "m", model, format="safetensors", metadata={})
    assert read_checkpoint(tmp_path / "m").metadata == {}


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_a_written_file_has_the_usual_permissions(tmp_path: Path, format: Any) -> None:
    (tmp_path / "usual").touch()
    (tmp_path / "own").touch()
    (tmp_path / "own").chmod(0o640)
    for name in ("new", "own"):
        write_checkpoint(tmp_path / name, W, format=format)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_shared_memory_is_written(tmp_path: Path, format: Any) -> None:
    base = torch.arange(20_000.0).reshape(100, 200)
    tensors = {"a": base, "b": base, "row": base[3], "head": base[:1]}
    write_checkpoint(tmp_path / "m", tensors, format=format)
    checkpoint = read_checkpoint(tmp_path / "m")
    assert {name: raw(t) for name, t in checkpoint.tensors.items()} == {n: raw(t) for n, t in tensors.items()}
    assert checkpoint.ties == ({"b": "a"} if format == "pt" else {})
    assert (tmp_path / "m").stat().st_size < (1.1 if format == "pt" else 2.1) * 80_000


def test_tied_views_stay_tied(tmp_path: Path) -> None:
    row = torch.zeros(1000, 1000)[5, :10]
    write_checkpoint(tmp_path / "m", {"a": row, "b": row}, format="pt")
    assert read_checkpoint(tmp_path / "m").ties == {"b": "a"}


def test_a_view_is_written_without_what_it_was_cut_from(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"row": torch.zeros(1000, 1000)[5, :10]}, format="pt")
    assert (tmp_path / "m").stat().st_size < 4000


def test_tied_parameters_stay_tied_through_a_file(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    read = read_checkpoint({"a": weight, "b": weight})
    write_checkpoint(tmp_path / "m.pt", read.tensors, format="pt")
    assert read_checkpoint(tmp_path / "m.pt").ties == {"b": "a"}


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_an_impossible_output_is_an_output_error(tmp_path: Path, model: dict[str, torch.Tensor], format: Any) -> None:
    for path in (tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(OutputError) as caught:
            write_checkpoint(path, model, format=format)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).isprintable()


def test_an_unknown_format_is_an_option_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'onnx'"):
        write_checkpoint(tmp_path / "m", {}, format="onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["safetensors", "pt"])
@pytest.mark.parametrize("name", [3, "bad\ud800"])
def test_a_name_that_no_file_can_hold(tmp_path: Path, name: Any, format: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint):
        write_checkpoint(tmp_path / "m", {name: torch.ones(1)}, format=format)


def test_the_name_that_safetensors_keeps_for_itself(tmp_path: Path) -> None:
    tensors = {"__metadata__": torch.ones(1)}
    with pytest.raises(UnsupportedCheckpoint, match="--format pt") as caught:
        write_checkpoint(tmp_path / "m", tensors, format="safetensors")
    assert caught.value.exit_code == 2
    write_checkpoint(tmp_path / "m", tensors, format="pt")
    assert_same(read_checkpoint(tmp_path / "m").tensors, tensors)


# --- names of dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_dtype_names_are_torchs_own(name: str) -> None:
    assert dtype_name(getattr(torch, name)) == name
    assert dtype_from_name(name) is getattr(torch, name)


@pytest.mark.parametrize("name", ["float31", "", "qint8", "int4", "strided", "Tensor", "torch.float32", "float"])
def test_unknown_dtype_names(name: str) -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        dtype_from_name(name)


# --- anything goes round ----------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
MODELS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from([*FLOATS, *INTEGERS, "complex64"]), SHAPES), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(MODELS)
def test_any_model_goes_round(tmp_path_factory: pytest.TempPathFactory, described: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("round")
    tensors = {name: filled(dtype, *shape) for name, (dtype, shape) in described.items()}
    write_checkpoint(folder / "m.pt", tensors, format="pt")
    assert_same(read_checkpoint(folder / "m.pt").tensors, tensors)
    write_checkpoint(folder / "m.safetensors", tensors, format="safetensors")
    read = read_checkpoint(folder / "m.safetensors").tensors
    assert_same({name: read[name] for name in tensors}, tensors)


def taken_by_safetensors() -> set[str]:
    """Every dtype of torch that the installed library writes and reads back."""
    found = set()
    for name in sorted(
        str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)
    ):
        try:
            tensor = torch.zeros(4, dtype=torch.uint8).repeat(16).view(getattr(torch, name))
            data = save_tensors({"t": tensor})
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            found |= {name} if header["t"]["dtype"] else set()
        except (KeyError, RuntimeError, TypeError, NotImplementedError, SafetensorError):
            continue
    return found


def test_every_dtype_of_the_installed_safetensors_is_written() -> None:
    assert taken_by_safetensors() == set(SAFETENSORS)


@pytest.mark.parametrize("method", ["lossless", "vae"])
@pytest.mark.parametrize("dtype", ALL)
def test_every_dtype_goes_through_an_archive(tmp_path: Path, dtype: str, method: str) -> None:
    kind = getattr(torch, dtype)
    values = torch.randn(24, 8, generator=torch.Generator().manual_seed(3))
    tensor = values.to(kind) if kind.is_floating_point and kind.itemsize > 1 else filled(dtype, 24, 8)
    if method == "vae" and kind.is_floating_point and kind.itemsize == 1 and dtype != "float4_e2m1fn_x2":
        tensor = values.to(kind)
    source = save(tmp_path / "m.pt", {"layer.w": tensor, "layer.empty": filled(dtype, 0, 3)})
    pack(source, method=method, effort=1)
    archive = tmp_path / "m.pt.wcz"
    for format in ("safetensors", "pt"):
        output = tmp_path / f"restored.{format}"
        if format == "safetensors" and dtype not in SAFETENSORS:
            with pytest.raises(UnsupportedCheckpoint, match="--format pt"):
                unpack(archive, output)
            continue
        unpack(archive, output)
        read = read_checkpoint(output).tensors
        assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
            "layer.w": (kind, (24, 8)),
            "layer.empty": (kind, (0, 3)),
        }
        if method == "lossless" or not kind.is_floating_point:
            assert raw(read["layer.w"]) == raw(tensor)


# --- nothing is dropped in silence ------------------------------------------------------------------------------

ARRAYS = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]


@pytest.mark.parametrize("dtype", ARRAYS)
@pytest.mark.parametrize("via", ["mapping", "zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5"])
def test_arrays_become_tensors(tmp_path: Path, dtype: str, via: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    arrays = {
        "plain": values,
        "columns": np.asfortranarray(values),
        "strided": values[::2, ::-1],
        "big": values.astype(values.dtype.newbyteorder(">")),
        "scalar": values[1, 1:2].reshape(()),
        "empty": values[:0],
    }
    source: Any = {"w": torch.ones(3), **arrays}
    if via.startswith("pickle"):
        (tmp_path / "m").write_bytes(pickle.dumps(source, protocol=int(via[-1])))
        source = tmp_path / "m"
    elif via != "mapping":
        source = save(tmp_path / "m", source, _use_new_zipfile_serialization=via == "zip")
    checkpoint = read_checkpoint(source)
    assert list(checkpoint.tensors) == ["w", *arrays]
    for name, array in arrays.items():
        assert checkpoint.tensors[name].dtype == getattr(torch, dtype)
        assert np.array_equal(checkpoint.tensors[name].numpy(), array), name
    assert any("NumPy" in note and "'columns'" in note for note in checkpoint.notes)
    assert checkpoint.left_out == ()


def test_an_array_that_torch_has_no_dtype_for_is_refused_by_name(tmp_path: Path) -> None:
    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is float64 here")
    for source in ({"w": np.ones(2, np.longdouble)}, save(tmp_path / "m", {"w": np.ones(2, np.longdouble)})):
        assert "'w' is a NumPy array of dtype" in str(refusal(UnsupportedCheckpoint, source))


def test_arrays_that_hold_no_numbers_are_left_out(tmp_path: Path) -> None:
    odd = {
        "texts": np.array(["a", "b"]),
        "objects": np.array([None, {}], dtype=object),
        "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
        "structure": np.zeros(2, dtype=[("a", "f4")]),
    }
    for source in ({**W, **odd}, save(tmp_path / "m", {**W, **odd})):
        checkpoint = read_checkpoint(source)
        assert checkpoint.left_out == tuple(odd)
        assert list(checkpoint.tensors) == ["w"]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("via", ["mapping", "file"])
def test_lists_and_dictionaries_within_the_weights_are_flattened(tmp_path: Path, wrapped: bool, via: str) -> None:
    t = [torch.full((2,), float(i)) for i in range(9)]
    weights = {
        "w": torch.ones(99),
        "list": [t[0], t[1]],
        "tuple": (t[2], None, 3, {"deep": [t[3]]}),
        "dict": {"a": t[4], 7: t[5], "text": "x"},
        "numbers": [1, 2, 3],
        "none": [],
        "arrays": [t[6].numpy(), (t[7],)],
    }
    source: Any = {"model": weights, "epoch": 1} if wrapped else weights
    source = source if via == "mapping" else save(tmp_path / "m", source)
    checkpoint = read_checkpoint(source)
    expected = {"w": weights["w"], "list.0": t[0], "list.1": t[1], "tuple.0": t[2], "tuple.3.deep.0": t[3]}
    expected |= {"dict.a": t[4], "dict.7": t[5], "arrays.0": t[6], "arrays.1.0": t[7]}
    assert_same(checkpoint.tensors, expected)
    left_out = ["tuple.1", "tuple.2", "dict.text", "numbers", "none"]
    assert [name.removeprefix("model.") for name in checkpoint.left_out if name != "epoch"] == left_out
    assert checkpoint.left_out_tensors == ()
    assert any("'list', 'tuple', 'dict', 'arrays'" in note for note in checkpoint.notes)


def test_only_lists_of_tensors(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {"layers": [torch.ones(1), torch.zeros(2)], "n": 3})
    assert list(read_checkpoint(path).tensors) == ["layers.0", "layers.1"]
    path = save(tmp_path / "m", (W, {"optimizer": ADAM}, 7))
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.left_out_tensors == ("1",)


def test_extra_state(tmp_path: Path) -> None:
    states = {
        "a._extra_state": torch.ones(3, dtype=torch.uint8),
        "b._extra_state": {"n": 1},
        "_extra_state": io.BytesIO(),
    }
    checkpoint = read_checkpoint(save(tmp_path / "m", {**W, **states}))
    assert list(checkpoint.tensors) == ["w", "a._extra_state"]
    assert checkpoint.left_out == ("b._extra_state", "_extra_state")
    (note,) = checkpoint.notes
    assert "'b._extra_state', '_extra_state'" in note
    assert "strict=False" in note


def test_what_is_left_out_and_holds_tensors_is_named_as_such(tmp_path: Path) -> None:
    content = {
        "state_dict": W,
        "discriminator": V,
        "loss": torch.tensor(0.5),
        "history": [{"acc": np.ones(3)}],
        "args": argparse.Namespace(mean=torch.ones(3)),
        "plain": argparse.Namespace(lr=0.1),
        "epoch": 3,
        "optimizer": ADAM,
    }
    checkpoint = read_checkpoint(save(tmp_path / "m", content))
    assert checkpoint.left_out == tuple(list(content)[1:])
    assert checkpoint.left_out_tensors == ("discriminator", "loss", "history", "args", "optimizer")


class Versioned(torch.nn.Module):
    _version = 7

    def __init__(self) -> None:
        super().__init__()
        self.act = torch.nn.ReLU()
        self.conv = torch.nn.Conv2d(1, 2, 1)
        self.parts = torch.nn.ModuleList([torch.nn.BatchNorm2d(2), torch.nn.Dropout(), torch.nn.Linear(2, 2)])
        self.last = torch.nn.Identity()


@pytest.mark.parametrize("via", ["mapping", "file", "wrapped", "safetensors"])
def test_the_metadata_of_a_state_dict_survives(tmp_path: Path, via: str) -> None:
    state: Any = Versioned().state_dict()
    source: Any = state
    if via == "safetensors":
        write_checkpoint(tmp_path / "m", state, format="safetensors", versions=state._metadata)
        source = tmp_path / "m"
    elif via != "mapping":
        source = save(tmp_path / "m", state if via == "file" else {"model": state, "epoch": 1})
    pack(source, tmp_path / "m.wcz", method="lossless")
    unpack(tmp_path / "m.wcz", tmp_path / "m.pt")
    unpack(tmp_path / "m.wcz", tmp_path / "m.safetensors")
    restored = torch.load(tmp_path / "m.pt", weights_only=True)
    loaded: Any = load(tmp_path / "m.wcz")
    again = read_checkpoint(tmp_path / "m.safetensors")
    expected = state._metadata
    if via == "safetensors":  # whose order is its own
        assert dict(restored._metadata) == dict(expected)
    else:
        assert list(restored._metadata.items()) == list(expected.items())
        assert list(loaded._metadata.items()) == list(expected.items())
    versions = state_metadata.from_text(again.metadata[state_metadata.KEY], again.tensors)
    assert versions is not None
    assert dict(versions) == dict(expected)
    Versioned().load_state_dict(loaded)


@pytest.mark.parametrize(
    "metadata",
    [3, {"a": 3}, {3: {}}, {"a": {"v": [1]}}, {"a": {"v": float("nan")}}, {"\ud800": {}}, {"a": {"v": 1 << 70}}],
)
def test_metadata_that_torch_does_not_write_is_told(metadata: Any) -> None:
    state: Any = OrderedDict(W)
    state._metadata = metadata
    checkpoint = read_checkpoint(state)
    assert state_metadata.KEY not in checkpoint.metadata
    assert "_metadata" in checkpoint.notes[0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab.", max_size=6), max_size=6),
    st.dictionaries(
        st.text("ab.", max_size=4),
        st.dictionaries(
            st.sampled_from(["version", "x"]), st.integers(0, 3) | st.text("ab", max_size=2) | st.booleans()
        ),
        max_size=8,
    ),
)
def test_any_metadata_goes_round(names: list[str], metadata: dict[str, dict[str, Any]]) -> None:
    text = state_metadata.to_text(metadata, names)
    versions = state_metadata.from_text(text, names)
    assert versions is not None
    assert list(versions.items()) == list(metadata.items())


@pytest.mark.parametrize("text", ["", "[", "3", "null", "[null]", "[[1,2,3]]", "[[1]]", '[["a",[1]]]', "[" * 100_000])
def test_a_text_that_is_no_metadata_is_ignored(text: str) -> None:
    assert not state_metadata.from_text(text, []) or text == "[[1]]"
    state_metadata.from_text("[99999999999, -3]", ["a.b"])


@pytest.mark.parametrize("via", ["mapping", "zip", "legacy"])
def test_tensors_that_share_a_part_of_their_memory_are_told(tmp_path: Path, via: str) -> None:
    base = torch.arange(40.0).reshape(8, 5)
    flat = torch.arange(30.0)
    tensors = {
        "emb": base,
        "head": base,  # a tie
        "rows": base[2:4],
        "transposed": base.t(),
        "one": flat[:10],  # parts of one memory, none in common
        "two": flat[10:],
        "even": torch.arange(12.0)[::2],
    }
    interleaved = torch.arange(12.0)
    tensors |= {"odd": interleaved[1::2], "other": interleaved[::2]}
    source: Any = (
        tensors if via == "mapping" else save(tmp_path / "m", tensors, _use_new_zipfile_serialization=via == "zip")
    )
    checkpoint = read_checkpoint(source)
    assert checkpoint.ties == {"head": "emb"}
    (note,) = checkpoint.notes
    assert "'rows' with 'emb'" in note
    assert "'transposed' with 'emb'" in note
    assert "odd" not in note
    assert "two" not in note


# --- folders ----------------------------------------------------------------------------------------------------


def test_a_folder_with_one_model_file_is_that_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "README.md", ".hidden.pt", "optimizer.pt", "training_args.bin", "rng_state.pth"):
        (folder / name).write_bytes(b"x")
    for name in ("model.ckpt", "x.PTH", "pytorch_model.bin", "y.pth.tar"):
        save(folder / name, W)
        checkpoint = read_checkpoint(folder)
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.source == name
        assert checkpoint.shards == (folder / name,)
        (folder / name).unlink()
    save(folder / "pytorch_model.bin", V)
    save_file(W, folder / "model.safetensors")
    assert read_checkpoint(folder).source == "model.safetensors"
    save(folder / "other.pt", V)
    assert "'model.safetensors', 'other.pt'" in str(refusal(UnsupportedCheckpoint, folder))
    save_file(V, folder / "other.safetensors")
    error = refusal(UnsupportedCheckpoint, folder)
    assert "'model.safetensors', 'other.safetensors'" in str(error)
    assert error.exit_code == 2


def test_an_index_in_a_folder_comes_first(tmp_path: Path) -> None:
    save(tmp_path / "pytorch_model-1.bin", V)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"v": "pytorch_model-1.bin"}}))
    assert list(read_checkpoint(tmp_path).tensors) == ["v"]
    sharded(tmp_path, {"w": "one.safetensors", "u": "two.safetensors"}, one=W, two={"u": torch.ones(1)})
    assert list(read_checkpoint(str(tmp_path)).tensors) == ["w", "u"]


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = str(refusal(UnsupportedCheckpoint, tmp_path))
    assert "*.safetensors" in message
    for name in ("unet", "vae", "tokenizer"):
        (tmp_path / name).mkdir()
    save_file(W, tmp_path / "unet" / "model.safetensors")
    save(tmp_path / "vae" / "model.bin", W)
    assert "'unet', 'vae'" in str(refusal(UnsupportedCheckpoint, tmp_path))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_distributed_checkpoint_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "step 100"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    error = refusal(UnsupportedCheckpoint, folder)
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch '{folder}' model.pt"
    assert command in str(error)
    assert error.exit_code == 3


def test_the_archive_of_a_folder_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder / "model.pt", W)
    for source in (folder, f"{folder}/"):
        assert pack(source, method="lossless", force=True).archive == f"{folder}.wcz"
    monkeypatch.chdir(folder)
    assert pack(".", method="lossless", force=True).archive == f"{folder}.wcz"
    with pytest.raises(OutputError, match="source file"):
        pack(folder, folder / "model.pt", force=True)


@pytest.mark.parametrize(
    ("archive", "stem"),
    [
        ("model.pt.wcz", "model"),
        ("x.pth.tar.wcz", "x"),
        ("Y.PT.wcz", "Y"),
        ("Y.Pth.Tar.WCZ", "Y"),
        ("model.safetensors.index.json.wcz", "model"),
        ("pytorch_model.bin.index.json.wcz", "pytorch_model"),
        ("v1.0.ckpt.wcz", "v1.0"),
        ("small.wcz", "small"),
        ("small", "small"),
        (".pt.wcz", ".pt"),
        ("x.gguf.wcz", "x.gguf"),
        ("a.pkl.wcz", "a"),
    ],
)
def test_restored_names(archive: str, stem: str) -> None:
    for format in ("safetensors", "pt"):
        assert default_output(Path("folder") / archive, format) == Path("folder") / f"{stem}.{format}"


@pytest.mark.parametrize("name", ["x.pth.tar", "x.PT", "x.Bin", "x.ckpt"])
def test_the_suffix_of_an_output_is_its_format(tmp_path: Path, name: str) -> None:
    pack(W, tmp_path / "m.wcz", method="lossless")
    assert unpack(tmp_path / "m.wcz", tmp_path / name).format == "pt"
    assert list(torch.load(tmp_path / name, weights_only=True)) == ["w"]
