"""Pickles of every kind and of every malice: what is read, and that nothing in them ever runs."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wcompress.checkpoint import read_checkpoint
from wcompress.errors import CheckpointError, UnsafeCheckpoint, UnsupportedCheckpoint

W = {"w": torch.ones(3)}
CONTAINERS = ["zip", "legacy", "plain"]


def stored(path: Path, pickled: bytes, container: str, storages: dict[str, bytes] | None = None) -> Path:
    """A file whose main pickle has these bytes."""
    if container == "plain":
        path.write_bytes(pickled)
    elif container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", pickled)
            archive.writestr("m/version", b"3\n")
            for key, data in (storages or {}).items():
                archive.writestr(f"m/data/{key}", data)
    else:
        parts = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        data = [struct.pack("<q", len(part) // 4) + part for part in (storages or {}).values()]
        path.write_bytes(b"".join([*parts, pickled, pickle.dumps(list(storages or {}), protocol=2), *data]))
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def weights(
    more: bytes = b"", key: str = "0", shape: bytes = b"K\x03\x85", stride: bytes = b"K\x01\x85", **_: Any
) -> bytes:
    """A pickle of {"w": a tensor of 3 floats, …}; `more` are keys and values."""
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + b"K\x03t"
    storage = (storage[:-1] + b"Nt" if _.get("legacy") else storage) + b"Q"
    tensor = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + shape + stride
    tensor += b"\x89" + name("collections", "OrderedDict") + b")RtR"
    return b"\x80\x02}(" + text("w") + tensor + more + b"u."


THREE = {"0": struct.pack("<3f", 1, 2, 3)}


def test_the_pickles_made_here_are_read(tmp_path: Path) -> None:
    for container in ("zip", "legacy"):
        path = stored(tmp_path / "m", weights(legacy=container == "legacy"), container, THREE)
        assert read_checkpoint(path).tensors["w"].tolist() == [1, 2, 3]


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear; nor may a module be imported that a pickle names."""
    target = tmp_path / "ran"
    yield target
    assert not target.exists()


# --- nothing is run ---------------------------------------------------------------------------------------------


def attacks(target: Path) -> dict[str, bytes]:
    """Instructions that would leave one value, and create the target if any of it was done."""
    command, code = text(f"touch {target}"), text(f"open({str(target)!r}, 'w')")
    system = name("os", "system")
    return {
        "reduce": system + command + b"\x85R",
        "posix": name("posix", "system") + command + b"\x85R",
        "eval": name("builtins", "eval") + code + b"\x85R",
        "python 2": name("__builtin__", "eval") + code + b"\x85R",
        "exec": name("builtins", "exec") + code + b"\x85R",
        "open": name("io", "open") + text(str(target)) + text("w") + b"\x86R",
        "stack global": text("os") + text("system") + b"\x93" + command + b"\x85R",
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + system + command + b"o",
        "newobj": system + command + b"\x85\x81",
        "newobj with keywords": system + command + b"\x85}\x92",
        "getattr": name("builtins", "getattr")
        + name("builtins", "__import__")
        + text("x")
        + b"\x86R"
        + command
        + b"\x85R",
        "subprocess": name("subprocess", "Popen") + b"]" + text("touch") + b"a" + text(str(target)) + b"a\x85R",
        "runpy": name("runpy", "run_path") + text(str(target)) + b"\x85R",
        "nested load": name("pickle", "loads") + b"C\x01.\x85R",
        "torch.load": name("torch", "load") + text(str(target)) + b"\x85R",
        "only the name": system,
    }


UNKNOWN = {
    # Never to be made, but no reason to refuse the weights beside it.
    "partial": name("functools", "partial") + name("operator", "methodcaller") + text("x") + b"\x85R\x85R",
    "getattr": name("builtins", "getattr") + name("some.where", "Outer") + text("Inner") + b"\x86RK\x01\x85R",
    "getattr of a value": name("builtins", "getattr") + b"]" + text("append") + b"\x86R",
    "setstate": name("some.where", "Thing") + b")\x81}" + text("__setstate__") + name("a", "b") + b"sb",
    "setstate of a pair": name("some.where", "Thing") + b")\x81(N}" + text("slot") + b"K\x01stb",
    "a call of what was called": name("a", "f") + b")R)R)R",
    "runstring": name("numpy.testing._private.utils", "runstring") + text("1/0") + b"}\x86R",
    "diagnose": name("numpy.f2py.diagnose", "run_command") + text("false") + b"\x85R",
    "class": name("some.where", "Thing"),
    "import": name("this", "s"),
    "dotted": text("this") + text("s.join") + b"\x93",
    "inst": b"(K\x01isome.where\nThing\n",
    "obj": b"(" + name("some.where", "Thing") + b"K\x01o",
    "extension": b"\x82\x01",
    "extension 2": b"\x83\x01\x01",
    "extension 4": b"\x84\x01\x01\x01\x01",
    "reconstructor": name("copyreg", "_reconstructor") + b"(" + name("a", "B") + name("builtins", "object") + b"NtR",
    "hooks": name("collections", "OrderedDict") + b")R" + b"}" + text("__class__") + name("a", "b") + b"sb",
    "list": name("a", "List") + b")\x81(K\x01K\x02e",
    "dictionary": name("a", "Dict") + b")\x81(" + text("k") + b"K\x02u",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("attack", attacks(Path()))
def test_attacks_are_refused_and_not_run(tmp_path: Path, sentinel: Path, attack: str, container: str) -> None:
    more = text("x") + attacks(sentinel)[attack]
    path = stored(tmp_path / "m", weights(more, legacy=container == "legacy"), container, THREE)
    for strict in (False, True):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path, strict=strict)
        assert str(caught.value).isprintable()
        assert caught.value.exit_code == 3
    with pytest.raises(UnsafeCheckpoint, match="not run"):
        read_checkpoint(path)
    with pytest.raises(UnsafeCheckpoint, match="not run"):
        read_checkpoint(stored(path, b"\x80\x02" + attacks(sentinel)[attack] + b".", "plain"))


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_things_beside_the_weights_are_recorded(tmp_path: Path, case: str, container: str) -> None:
    read_checkpoint(stored(tmp_path / "m", weights(), "zip", THREE))  # which imports what reading itself needs
    sys.modules.pop("this", None)
    modules = set(sys.modules)
    more = text("x") + UNKNOWN[case]
    path = stored(tmp_path / "m", weights(more, legacy=container == "legacy"), container, THREE)
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors["w"].tolist() == [1, 2, 3]
    assert checkpoint.left_out == ("x",)
    assert checkpoint.left_out_tensors == ()
    assert {m for m in set(sys.modules) - modules if not m.startswith(("torch", "wcompress"))} == set()
    with pytest.raises(CheckpointError):
        read_checkpoint(path, strict=True)


def test_no_code_of_the_package_calls_what_a_pickle_names(tmp_path: Path, sentinel: Path) -> None:
    class Call:
        def __init__(self, function: Any, *args: Any) -> None:
            self.reduced = function, args

        def __reduce__(self) -> Any:
            return self.reduced

    # Importable, harmless to the deny-list, and it would leave a trace.
    for call in (
        Call(pathlib.Path.touch, sentinel),
        Call(np.save, str(sentinel), 1),
        Call(torch.save, 1, str(sentinel)),
    ):
        for protocol in range(6):
            path = tmp_path / "m.pkl"
            path.write_bytes(pickle.dumps({"w": np.ones(3), "x": call}, protocol=protocol))
            assert list(read_checkpoint(path).tensors) == ["w"]
            buffer = io.BytesIO()
            torch.save({**W, "x": call}, buffer, pickle_protocol=max(protocol, 2))
            path.write_bytes(buffer.getvalue())
            assert list(read_checkpoint(path).tensors) == ["w"]


def test_a_tensor_that_unknown_code_would_make_is_not_dropped(tmp_path: Path) -> None:
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x03tQ"
    made = name("fastai.torch_core", "_fa_rebuild_tensor") + b"(" + name("a", "Image") + storage + b"K\x00tR"
    path = stored(tmp_path / "m", weights(text("x") + made), "zip", THREE)
    with pytest.raises(UnsupportedCheckpoint, match=r"'x' is a fastai\.torch_core\._fa_rebuild_tensor: convert it"):
        read_checkpoint(path)
    path = stored(tmp_path / "m", weights(text("x") + storage), "zip", THREE)
    assert read_checkpoint(path).left_out_tensors == ("x",)


# --- malformed and greedy pickles -------------------------------------------------------------------------------

BAD = {
    "persistent text": b"Pabc\n",
    "persistent number": b"K\x05Q",
    "persistent tuple": b"(" + text("storage") + b"K\x01tQ",
    "persistent list": b"]Q",
    "persistent class": b"(" + text("storage") + name("os.path", "join") + text("0") + text("cpu") + b"K\x03tQ",
    "persistent kind": b"(" + text("file") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x03tQ",
    "persistent size": b"("
    + text("storage")
    + name("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + text("x")
    + b"tQ",
    "persistent negative": b"("
    + text("storage")
    + name("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + b"J\xff\xff\xff\xfftQ",
    "persistent key": b"(" + text("storage") + name("torch", "FloatStorage") + b"]" + text("cpu") + b"K\x03tQ",
    "persistent gone": b"(" + text("storage") + name("torch", "FloatStorage") + text("9") + text("cpu") + b"K\x03tQ",
    "out of band": b"\x97",
    "long bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "long bytes 2": b"B\xff\xff\xff\xff",
    "long text": b"\x8d" + b"\xff" * 8,
    "long bytearray": b"\x96" + b"\xff" * 8,
    "long number": b"\x8b\xff\xff\xff\x7f",
    "negative length": b"\x8b\xff\xff\xff\xff",
    "unfinished line": b"I1234",
    "not a number": b"Ione\n",
    "endless number": b"I" + b"9" * 10_000 + b"\n",
    "no mark": b"t",
    "no memo": b"h\x63",
    "negative memo": b"K\x01p-1\n",
    "empty stack": b"0" * 50,
    "append to a number": b"K\x01K\x02a",
    "fill a list": b"](K\x01K\x02u",
    "odd entries": b"}(K\x01u",
    "unknown instruction": b"\xff",
    "call of a number": b"K\x01)R",
    "arguments that are a list": name("collections", "OrderedDict") + b"]R",
    "class name of a number": b"K\x01K\x02\x93",
    "text that is no UTF-8": b"X\x01\x00\x00\x00\xff",
    "array of another size": name("numpy._core.multiarray", "_reconstruct")
    + name("numpy", "ndarray")
    + b"K\x00\x85C\x01b\x87R"
    + b"(K\x01K\x09\x85"
    + name("numpy", "dtype")
    + text("f4")
    + b"\x85RNC\x01xtb",
    "codec": name("_codecs", "encode") + text("x") + text("idna") + b"\x86R",
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", BAD)
def test_malformed_pickles_give_one_line(tmp_path: Path, case: str, container: str) -> None:
    pickled = weights(text("x") + BAD[case], legacy=container == "legacy")
    if container == "plain":
        pickled = b"\x80\x02}(" + text("x") + BAD[case] + b"u."
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(stored(tmp_path / "m", pickled, container, THREE))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    assert caught.value.exit_code == 3


BIG = b"\x8a\x09" + b"\xff" * 8 + b"\x00"
IMPOSSIBLE = {
    "beyond": (b"K\x04\x85", b"K\x01\x85"),
    "beyond by strides": (b"K\x03\x85", b"K\x02\x85"),
    "negative size": (b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "negative stride": (b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
    "huge": (BIG + b"\x85", b"K\x00\x85"),
    "huge product": ((b"J\xff\xff\xff\x7f" * 3) + b"\x87", b"K\x00K\x00K\x00\x87"),
    "other number of strides": (b"K\x03\x85", b")"),
    "text": (text("3") + b"\x85", b"K\x01\x85"),
    "float": (b"G" + struct.pack(">d", 3) + b"\x85", b"K\x01\x85"),
    "bool": (b"\x88\x85", b"K\x01\x85"),
    "no list": (b"K\x03", b"K\x01"),
    "huge and empty": (BIG + b"K\x00\x86", b"K\x01K\x01\x86"),
    "dimensions": (b"(" + b"K\x01" * 70 + b"t", b"(" + b"K\x01" * 70 + b"t"),
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_tensors_give_one_line(tmp_path: Path, case: str, container: str) -> None:
    shape, stride = IMPOSSIBLE[case]
    path = stored(tmp_path / "m", weights(shape=shape, stride=stride, legacy=container == "legacy"), container, THREE)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_views_of_little_memory_cannot_claim_much(tmp_path: Path, container: str) -> None:
    pickled = weights(shape=b"J\xff\xff\xff\x0f\x85", stride=b"K\x00\x85", legacy=container == "legacy")
    with pytest.raises(CheckpointError, match="shapes cannot be right"):
        read_checkpoint(stored(tmp_path / "m", pickled, container, THREE))


MILLION = 1_000_000
GREEDY = {
    "sets": b"\x8f" * (20 * MILLION),
    "dictionaries": b"}" * (20 * MILLION),
    "memo": b"K\x01" + b"\x94" * (20 * MILLION),
    "copies": text("x" * MILLION) + b"\x94" + (name("_codecs", "encode") + b"h\x00\x85R") * 20_000,
    "lists": b"]" + b"\x94(" + b"K\x01" * MILLION + b"e" + (name("builtins", "list") + b"h\x00\x85R") * 5_000,
    "deep list": b"]" * 300_000 + b"a" * 299_999,
    "deep tuple": b")" + b"\x85" * 300_000,
    "deep object": name("a", "B") + b")\x81" + b"\x85" + (name("a", "B") + b"\x85R") * 10,
    "deep state": (name("a", "B") + b")\x81") * 30_000 + b"b" * 29_999,
    "marks": b"(" * 300_000,
    "deep key": b"}" + b")" + b"\x85" * 300_000 + b"K\x01s",
    "doubling key": b"}" + b")" + b"2\x86" * 500 + b"K\x01s",
    "doubling list": b"]" + b"2\x86" * 60 + b"0]",
    "same hash": b"}("
    + b"".join(b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(30_000))
    + b"u",
    "itself": b"]2a",
}
RUN = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from wcompress.checkpoint import read_checkpoint
from wcompress.errors import CheckpointError
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        print(list(read_checkpoint(path).tensors))
    except CheckpointError as error:
        print(error)
    assert time.process_time() - start < 60, path
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 3 << 20, (path, peak)
"""


def test_greedy_pickles_end_in_a_line(tmp_path: Path) -> None:
    """In a process of their own, since what this guards against is its death."""
    for case, part in GREEDY.items():
        pickled = weights(text("x") + part)
        with zipfile.ZipFile(tmp_path / case, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                "m/data.pkl", pickled, zipfile.ZIP_DEFLATED if len(pickled) > MILLION else zipfile.ZIP_STORED
            )
            archive.writestr("m/data/0", THREE["0"])
    arguments = [sys.executable, "-c", RUN, *(str(tmp_path / case) for case in GREEDY)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = dict(zip(GREEDY, done.stdout.splitlines(), strict=True))
    refused = {case for case, line in lines.items() if line != "['w']"}
    assert {"sets", "dictionaries", "memo", "copies", "lists"} <= refused
    assert {"deep list", "deep tuple", "deep state", "doubling list", "same hash", "itself"} & refused == set()


def test_any_damage_to_a_pickle_gives_one_line_or_tensors(tmp_path: Path) -> None:
    rng = random.Random(5)
    sources = [weights(text("x") + part) for part in UNKNOWN.values()]
    sources += [pickle.dumps({"w": np.ones(3), "n": Namespace(a=1), "e": Color.RED}, protocol=p) for p in range(6)]
    outcomes = collections.Counter()
    for index in range(700):
        data = bytearray(sources[index % len(sources)])
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(len(data))] = rng.choice([rng.randrange(256), *b"(.RbQtuse}])h\x85\x81\x93\x94"])
        path = stored(tmp_path / "m", bytes(data), "zip", THREE)
        try:
            read_checkpoint(path)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused" if str(error).isprintable() else "ugly"] += 1
    assert outcomes["ugly"] == 0
    assert min(outcomes["read"], outcomes["refused"]) > 50


# --- what training leaves beside the weights --------------------------------------------------------------------

Namespace = argparse.Namespace


class Color(enum.Enum):
    RED = 1


class Flags(enum.Flag):
    A = 1
    B = 2


Point = collections.namedtuple("Point", "x y")


class Attributes(dict):  # type: ignore[type-arg]
    """As many configuration libraries have."""


class Config:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 3


BESIDE: dict[str, Any] = {
    "numpy scalar": np.float32(3),
    "numpy scalars": [np.int64(3), np.bool_(True), np.complex64(1j), np.str_("x")],
    "namespace": Namespace(a=1, b=[2]),
    "path": pathlib.PurePosixPath("a/b"),
    "real path": Path("a/b"),
    "enum": Color.RED,
    "flag": Flags.A | Flags.B,
    "enum key": {Color.RED: 1},
    "tuple key": {(1, 2): 1, (1, (2, 3)): 1},
    "named tuple": Point(1, 2),
    "object": Config(),
    "counter": collections.Counter("abca"),
    "default": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "ordered": collections.OrderedDict(a=1),
    "sets": [{1, 2}, frozenset({3}), {Color.RED}],
    "bytes": [b"", b"x" * 300, bytearray(b"y")],
    "numbers": [1, -1, 1 << 40, 1 << 90, -(1 << 2000), 0.5, float("nan"), 1j],
    "text": ["", "ü", "x" * 70_000, "\ud800", "a\nb'\\"],
    "dtypes": [torch.float32, torch.bfloat16, np.dtype("f4"), np.float32],
    "devices": [torch.device("cuda:1"), torch.Size([1, 2])],
    "version": torch.torch_version.TorchVersion("2.0.1"),
    "functions": [os.path.join, len, torch.nn.functional.relu, str.upper],
    "classes": [Config, nn.Linear, dict],
    "random": random.getstate(),
    "numpy random": np.random.get_state(),  # noqa: NPY002
    "numpy generator": np.random.default_rng(3),
    "exception": ValueError("x"),
    "slice": slice(1, 2),
    "range": range(3),
    "none": [None, ..., NotImplemented],
    "attributes": Attributes(a=1),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", BESIDE)
def test_a_checkpoint_is_not_refused_for_what_lies_beside_its_weights(tmp_path: Path, case: str, protocol: int) -> None:
    content = {"state_dict": W, "epoch": 3, "other": BESIDE[case]}
    for legacy in (False, True):
        path = tmp_path / "m.pt"
        with path.open("wb") as stream:
            torch.save(content, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        checkpoint = read_checkpoint(path)
        assert torch.equal(checkpoint.tensors["w"], W["w"])
        assert checkpoint.left_out == ("epoch", "other")
        inside = case in ("numpy random", "numpy generator")  # whose state has an array
        assert checkpoint.left_out_tensors == (("other",) if inside else ())


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_tensors_and_arrays(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(6.0)
    content = {"model": {"w": base, "tied": base, "half": torch.ones(2).half()}, "args": Namespace(lr=1)}
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(path)
    assert {name: t.dtype for name, t in checkpoint.tensors.items()} == {
        "w": torch.float32,
        "tied": torch.float32,
        "half": torch.float16,
    }
    assert torch.equal(checkpoint.tensors["w"], base)
    assert checkpoint.ties == {"tied": "w"}
    with pytest.raises(UnsafeCheckpoint):
        read_checkpoint(path, strict=True)
    path.write_bytes(pickle.dumps({"a": 3}, protocol=protocol))
    with pytest.raises(UnsupportedCheckpoint, match="no tensors"):
        read_checkpoint(path)
    for content in ({"a": 3, "b": Namespace()}, Namespace(a=torch.ones(3))):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(UnsafeCheckpoint, match=r"argparse\.Namespace needs"):
            read_checkpoint(path)


def test_dictionaries_of_another_class_are_dictionaries(tmp_path: Path) -> None:
    torch.save({"state_dict": Attributes(W), "config": Attributes(a=1)}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert list(checkpoint.tensors) == ["w"]
    torch.save(Attributes(W), tmp_path / "m.pt")
    assert list(read_checkpoint(tmp_path / "m.pt").tensors) == ["w"]


def test_tensors_that_cannot_be_stored_are_no_obstacle_beside_the_weights(tmp_path: Path) -> None:
    odd = {
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "lazy": nn.LazyLinear(3).weight,
    }
    torch.save({"state_dict": W, "buffers": odd}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.left_out_tensors == ("buffers",)


def test_parts_of_a_storage_in_a_legacy_file(tmp_path: Path) -> None:
    base = torch.arange(20.0)
    content = {"all": base, "part": base[4:10], "columns": base.reshape(4, 5).t(), "last": base[19], "b": base[:0]}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert {n: torch.equal(t, content[n]) for n, t in checkpoint.tensors.items()} == dict.fromkeys(content, True)


def test_a_file_of_the_other_byte_order(tmp_path: Path) -> None:
    values = np.arange(4, dtype=">f4")
    pickled = weights(shape=b"K\x03\x85")
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"big")
        archive.writestr("m/data/0", values.tobytes())
    assert read_checkpoint(tmp_path / "m").tensors["w"].tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "m", weights(), "zip", THREE)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/0", struct.pack("<3f", 4, 5, 6))
    with pytest.raises(CheckpointError, match="same name"):
        read_checkpoint(path)


def test_memory_is_mapped_not_copied(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(48 << 20, dtype=torch.uint8), "x": Color.RED}, tmp_path / "m.pt")
    code = (
        "import sys, torch; from wcompress.checkpoint import read_checkpoint\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\n"
        "before = anonymous(); kept = read_checkpoint(sys.argv[1]); assert anonymous() - before < 24 << 10"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell of a process's memory")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt")], check=True)


# --- whole modules ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("hidden", torch.arange(4), persistent=False)
        self.register_buffer("empty", None)
        self.register_parameter("no_bias", None)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.head.weight
        self.same = self.head
        self.lstm = nn.LSTM(2, 3, num_layers=2)
        self.attributes = [torch.ones(2)]
        self.own = torch.ones(5)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("within", [None, "model", "net", "ema"])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_gives_its_state_dict(tmp_path: Path, within: str | None, wrap: Any, legacy: bool) -> None:
    net = wrap(Net())
    content = net if within is None else {within: net, "optimizer": None, "epoch": 3}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    expected = net.state_dict()
    assert list(checkpoint.tensors) == list(expected)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.items())
    wrap(Net()).load_state_dict(checkpoint.tensors)
    left_out = {name.removeprefix(f"{within}.").removeprefix("module.") for name in checkpoint.left_out_tensors}
    assert left_out == {"own", "hidden"}
    with pytest.raises(UnsafeCheckpoint):
        read_checkpoint(tmp_path / "m.pt", strict=True)


def test_a_module_within_others_can_be_asked_for(tmp_path: Path) -> None:
    torch.save({"model": Net(), "ema": Net()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedCheckpoint, match="'model', 'ema'"):
        read_checkpoint(tmp_path / "m.pt")
    assert list(read_checkpoint(tmp_path / "m.pt", key="ema").tensors) == list(Net().state_dict())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.LazyLinear(3), "lazy"),
        (lambda: nn.Sequential(nn.Linear(2, 2), Opaque()), "own way"),
    ],
)
def test_a_module_whose_tensors_only_its_code_can_give_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    torch.save(make(), tmp_path / "m.pt")
    with pytest.raises(UnsupportedCheckpoint, match=words):
        read_checkpoint(tmp_path / "m.pt")


class Opaque(nn.Module):
    def __getstate__(self) -> Any:
        return ("packed", torch.ones(2))

    def __setstate__(self, state: Any) -> None:
        self.__init__()  # type: ignore[misc]


def test_a_traced_graph_gives_its_tensors(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    torch.save(graph, tmp_path / "m.pt")
    assert list(read_checkpoint(tmp_path / "m.pt").tensors) == ["0.weight", "0.bias"]


def test_modules_that_contain_each_other(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    net._modules["self"] = net
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="without end"):
        read_checkpoint(tmp_path / "m.pt")
