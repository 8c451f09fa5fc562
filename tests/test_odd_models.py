"""Models unlike any network: empty, of one number, without floats, of odd values. Each packs, verifies and restores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wcompress
from wcompress.cli import run
from wcompress.codec.reading import tensors_digest
from wcompress.errors import TargetUnreachable

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
OTHERS = ["int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "uint16", "uint64"]

WAYS: list[dict[str, Any]] = [
    {},
    {"sqnr": 12.0},
    {"ratio": 1.5},
    {"bits_per_weight": 6.0},
    {"method": "paper", "hidden": (8,), "latent_dim": 4, "block_size": 32},
    {"method": "lossless"},
]


def cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(getattr(torch, dtype))


def empty(dtype: str, *shape: int) -> torch.Tensor:
    return torch.zeros(0, dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)


MODELS: dict[str, dict[str, torch.Tensor]] = {
    **{f"nothing of {dtype}": {"a": empty(dtype, 0)} for dtype in FLOATS + OTHERS},
    **{f"one {dtype}": {"a": cast(torch.tensor(1.0), dtype)} for dtype in FLOATS + OTHERS},
    **{f"nothing in {n} dimensions": {"a.weight": torch.zeros([2] * (n - 1) + [0])} for n in range(1, 7)},
    "a layer of nothing": {
        "a.weight": torch.zeros(4, 0, 3, 3),
        "a.bias": torch.zeros(0),
        "a.running_mean": torch.zeros(0),
        "a.running_var": torch.zeros(0),
        "a.num_batches_tracked": torch.tensor(0),
    },
    "nothing beside something": {
        "a": torch.zeros(0, 8),
        "b": torch.arange(64.0).reshape(8, 8).sin(),
        "c": empty("bool", 0),
    },
    "integers": {"a": torch.arange(64).reshape(8, 8), "b": torch.tensor([True, False])},
    "numbers": {"a": torch.tensor(0.5), "b": torch.tensor(-3.0), "c": torch.tensor(7)},
    "zeros": {"a": torch.zeros(8, 8), "b": torch.zeros(5), "c": torch.tensor(0.0)},
    "negative zeros": {"a": torch.full((8, 8), -0.0), "b": torch.full((5,), -0.0)},
    "one value": {"a": torch.full((8, 8), 0.3), "b": torch.full((50,), 1e-3)},
    "nothing finite": {"a": torch.full((8, 8), math.nan), "b": torch.tensor([math.inf, -math.inf, 1.0])},
    "signalling NaNs": {
        "a": torch.full((8, 8), 0x7F800001, dtype=torch.int32).view(torch.float32),
        "b": torch.full((8,), 0x7FF0000000000001).view(torch.float64),
        "c": torch.full((8, 8), 0x7C01, dtype=torch.int16).view(torch.float16),
        "d": torch.cat([torch.ones(63), torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)]),
    },
    "rows only": {"a": torch.arange(500.0).sin(), "b": torch.tensor([1.0, -2.0])},
    "eight dimensions": {"a": torch.arange(16.0).cos().reshape(1, 2, 1, 2, 1, 2, 1, 2), "b": torch.ones(1, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way) or "default")
@pytest.mark.parametrize("name", MODELS)
def test_odd_models(tmp_path: Path, name: str, way: dict[str, Any]) -> None:
    model, source, archive = MODELS[name], tmp_path / "m.pt", tmp_path / "m.wcz"
    torch.save(model, source)
    try:
        wcompress.pack(source, archive, effort=1, threads=1, **way)
    except TargetUnreachable:
        assert "ratio" in way or "bits_per_weight" in way
        assert not archive.exists()
        return
    assert wcompress.verify(archive, source).errors == ()
    restored = wcompress.load(archive)
    assert {key: (t.dtype, t.shape) for key, t in restored.items()} == {k: (t.dtype, t.shape) for k, t in model.items()}
    if way.get("method") == "lossless":
        assert tensors_digest(restored) == tensors_digest(model)


@pytest.mark.parametrize("name", ["nothing of float32", "a layer of nothing", "one float32", "one int64", "integers"])
@pytest.mark.parametrize("method", ["vae", "paper", "lossless"])
def test_commands_on_odd_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(MODELS[name], "m.pt")
    for arguments in (
        ["pack", "m.pt", "--method", method, "--effort", "1", "--threads", "1"],
        ["pack", "m.pt", "--method", method, "--effort", "1", "--threads", "1", "--dry-run", "--json"],
        ["inspect", "m.pt.wcz"],
        ["inspect", "m.pt.wcz", "--json"],
        ["verify", "m.pt.wcz", "--against", "m.pt"],
        ["unpack", "m.pt.wcz", "-o", "x.pt"],
        ["unpack", "m.pt.wcz", "-o", "x.safetensors"],
    ):
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)


TASK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter({value})

    def forward(self, x):
        return x + 0 * self.a.sum()

class Task:
    n_examples = 10
    def build(self): return Net()
    def calibration(self): return [torch.ones(10, 4)]
    def validate(self, model): return 50.0
    def evaluate(self, model): return 50.0

task = Task
"""


@pytest.mark.parametrize("value", ["torch.zeros(0, 4)", "torch.zeros(0)", "torch.tensor(1.5)", "torch.ones(1)"])
@pytest.mark.parametrize(
    "options", [[], ["--max-drop", "1"], ["--refine", "on"], ["--max-drop", "1", "--refine", "off"]]
)
def test_tasks_for_odd_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK.format(value=value))
    torch.save({"a": eval(value)}, "m.pt")
    code = run(["pack", "m.pt", "--task", "mine.py", "--effort", "1", "--threads", "1", "-q", *options])
    err = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert err.count("\n") == bool(code)


@pytest.mark.parametrize("value", ["torch.zeros(0, 4)", "torch.tensor(1.5)"])
def test_reports_on_odd_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK.format(value=value))
    torch.save({"a": eval(value)}, "m.pt")
    code = run(["report", "m.pt", "--task", "mine.py", "-o", "report", "--effort", "1", "--threads", "1", "-q"])
    assert code == (2 if "0, 4" in value else 0)
    err = capsys.readouterr().err
    assert err.count("\n") == bool(code)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 5, 9, 40]), max_size=3))
    dtype = draw(st.sampled_from(FLOATS + ["float32"] * 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** draw(st.integers(-40, 40))
    kind = draw(st.sampled_from(["plain", "heavy", "sparse", "positive", "offset", "odd"]))
    if kind == "heavy":
        tensor = tensor**5
    elif kind == "sparse":
        tensor = tensor * (torch.rand(shape, generator=generator) < 0.1)
    elif kind == "positive":
        tensor = tensor.abs()
    elif kind == "offset":
        tensor = tensor + 1.0
    elif kind == "odd" and tensor.numel():
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from([math.nan, math.inf, -0.0]))
    return cast(tensor, dtype)


NAMES = st.sampled_from(["a.weight", "a.bias", "a.running_var", "a.running_mean", "mask", "b.weight_v", "x"])


@settings(max_examples=60)
@given(model=st.dictionaries(NAMES, tensors(), min_size=1, max_size=4), way=st.sampled_from(WAYS))
def test_what_was_packed_from_a_model_verifies_against_it(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, torch.Tensor], way: dict[str, Any]
) -> None:
    archive = tmp_path_factory.mktemp("odd") / "m.wcz"
    try:
        wcompress.pack(model, archive, effort=1, threads=1, **way)
    except TargetUnreachable:
        return
    assert wcompress.verify(archive, model).errors == ()
