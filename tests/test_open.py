"""Reading single tensors of an archive, from many threads, in slices, and straight into a module."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import wcompress
from wcompress.archive import ArchiveReader
from wcompress.directories import loading
from wcompress.errors import ChecksumMismatch, ModuleMismatch
from wcompress.fidelity import same_bits

FAST: dict[str, Any] = {"effort": 1, "device": "cpu"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every_kind() -> dict[str, torch.Tensor]:
    shared = normal(40, 30, seed=5)
    return {
        "encoder.weight": normal(64, 48),
        "encoder.bias": normal(64, seed=1),
        "shared": shared,
        "steps": torch.arange(500),
        "mask": torch.ones(32, 32).tril(),
        "half": normal(40, 40, seed=3).half(),
        "again": shared,
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "m.wcz"
    wcompress.pack(every_kind(), path, **FAST)
    return path


def test_an_archive_is_a_collection_of_names(archive: Path) -> None:
    with wcompress.open(archive) as opened:
        assert list(opened) == opened.keys() == list(every_kind())
        assert len(opened) == 7
        assert "mask" in opened
        assert "nothing" not in opened
        assert opened.sha256 == wcompress.inspect(archive).sha256


@pytest.mark.parametrize("name", ["encoder.wieght", "ENCODER.WEIGHT", "weight"])
def test_unknown_names_are_key_errors_that_say_what_was_meant(archive: Path, name: str) -> None:
    with wcompress.open(archive) as opened:
        for ask in (opened.get_tensor, opened.get_slice, lambda name: opened.load(["mask", name])):
            with pytest.raises(KeyError, match=r"did you mean 'encoder\.weight'"):
                ask(name)
        with pytest.raises(KeyError) as caught:
            opened.get_tensor("qqqqqq")
        assert "did you mean" not in str(caught.value)


def test_a_closed_archive_says_so(archive: Path) -> None:
    opened = wcompress.open(archive)
    kept = opened.get_tensor("mask")
    opened.close()
    for ask in (lambda: opened.get_tensor("mask"), opened.load, opened.check):
        with pytest.raises(ValueError, match="the archive is closed"):
            ask()
    assert same_bits(kept, every_kind()["mask"])


def test_changing_a_tensor_changes_no_other(archive: Path) -> None:
    everything = wcompress.load(archive)
    with wcompress.open(archive) as opened:
        for name in opened:
            opened.get_tensor(name).zero_()
            opened.load([name])[name].zero_()
        for name in opened:
            assert same_bits(opened.get_tensor(name), everything[name]), name


def test_threads_share_an_archive(archive: Path) -> None:
    everything = wcompress.load(archive)
    names = list(everything)
    together = threading.Barrier(len(names))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            with wcompress.open(archive) as opened, ThreadPoolExecutor(len(names)) as pool:

                def ask(name: str, opened: Any = opened) -> list[torch.Tensor]:
                    together.wait()
                    return [opened.get_tensor(name), opened.get_slice(name)[...], opened.load([name])[name]]

                found = dict(zip(names, pool.map(ask, names), strict=True))
            for name, tensors in found.items():
                assert all(same_bits(tensor, everything[name]) for tensor in tensors), name
    finally:
        sys.setswitchinterval(before)


def test_threads_do_not_read_a_file_at_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    counting = threading.Lock()
    read = ArchiveReader.section

    def slow(self: ArchiveReader, name: str, group: int = 0) -> bytes:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.02)
        payload = read(self, name, group)
        with counting:
            inside -= 1
        return payload

    monkeypatch.setattr(ArchiveReader, "section", slow)
    with wcompress.open(archive) as opened, ThreadPoolExecutor(4) as pool:
        list(pool.map(opened.get_tensor, opened.keys()))
    assert most == 1


def forward(size: int) -> st.SearchStrategy[slice]:
    return st.slices(size).filter(lambda part: (part.step or 1) > 0)  # as torch has them


@given(index=st.one_of(st.integers(-40, 39), forward(40), st.just(...), st.tuples(forward(40), st.integers(0, 29))))
def test_slices_are_what_indexing_gives(archive: Path, index: Any) -> None:
    whole = wcompress.load(archive)["shared"]
    with wcompress.open(archive) as opened:
        part = opened.get_slice("shared")[index]
    assert torch.equal(part, whole[index])
    assert part.is_contiguous()
    assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_slices_tell_shape_and_dtype_without_decoding(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wcompress.open(archive) as opened, monkeypatch.context() as patch:
        patch.setattr(type(opened), "_restore", lambda *_: pytest.fail("decoded"))
        asked = {name: opened.get_slice(name) for name in opened}
        assert asked["encoder.weight"].get_shape() == [64, 48]
        assert [asked[name].get_dtype() for name in ("encoder.weight", "steps", "half")] == ["F32", "I64", "F16"]
    with wcompress.open(archive) as opened, pytest.raises(IndexError):
        opened.get_slice("half")[99]


class Net(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.body = nn.Sequential(nn.Linear(width, 64), nn.BatchNorm1d(64), nn.Linear(64, width))
        self.rnn = nn.LSTM(width, 16)
        self.head = nn.Linear(width, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.ones(3), persistent=False)


def net(seed: int = 0, width: int = 48) -> Net:
    torch.manual_seed(seed)
    return Net(width)


@pytest.fixture(scope="module")
def packed_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.wcz"
    wcompress.pack(dict(net().state_dict()), path, **FAST)
    return path


def same_state(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name].to(tensor.dtype)) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("group_bytes", [0, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loading_into_a_module(
    packed_net: Path, dtype: torch.dtype, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_GROUP_BYTES", group_bytes)
    module = net(1).to(dtype)
    module.embed.weight.requires_grad_(False)
    before = {name: (id(p), p.requires_grad) for name, p in module.named_parameters()}
    found = wcompress.load_into(module, packed_net)
    assert found.missing_keys == found.unexpected_keys == []
    assert same_state(module, wcompress.load(packed_net))
    assert {name: (id(p), p.requires_grad) for name, p in module.named_parameters()} == before
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert module.head.weight is module.embed.weight


def test_only_so_many_tensors_are_in_memory(packed_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_GROUP_BYTES", 1000)
    sizes: list[int] = []
    load = wcompress.Archive.load

    def counted(self: Any, names: Any = None, device: Any = "cpu") -> dict[str, torch.Tensor]:
        tensors = load(self, names, device)
        sizes.append(sum(t.nbytes for t in tensors.values()))
        return tensors

    monkeypatch.setattr(wcompress.Archive, "load", counted)
    wcompress.load_into(net(1), packed_net)
    largest = max(tensor.nbytes for tensor in net().state_dict().values())
    assert max(sizes) == largest
    assert len(sizes) > 5


def test_a_module_on_the_meta_device_gets_tensors(packed_net: Path) -> None:
    with torch.device("meta"):
        module = Net()
    module.rnn.weight_hh_l0.requires_grad_(False)
    wcompress.load_into(module, packed_net)
    assert same_state(module, wcompress.load(packed_net))
    assert all(isinstance(p, nn.Parameter) and p.device.type == "cpu" for p in module.parameters())
    assert module.head.weight is module.embed.weight
    assert not module.rnn.weight_hh_l0.requires_grad
    assert module.rnn.bias_hh_l0.requires_grad
    assert module.scratch.is_meta
    module.rnn(torch.zeros(2, 1, 48))


def test_tied_tensors_are_no_aliases_in_a_module_that_does_not_tie_them(tmp_path: Path) -> None:
    w = normal(16, 16)
    wcompress.pack({"a.weight": w, "b.weight": w}, tmp_path / "m.wcz", **FAST)
    with torch.device("meta"):
        module = nn.ModuleDict({"a": nn.Linear(16, 16, bias=False), "b": nn.Linear(16, 16, bias=False)})
    wcompress.load_into(module, tmp_path / "m.wcz")
    with torch.no_grad():
        module["a"].weight.zero_()
    assert module["b"].weight.any()


def test_names_that_differ(packed_net: Path) -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(30, 48), "other": nn.Linear(3, 2)})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(
        ModuleMismatch, match=r"does not hold 'other\.weight', 'other\.bias' of the module; the"
    ) as caught:
        wcompress.load_into(module, packed_net)
    assert isinstance(caught.value, RuntimeError)
    assert "\n" not in str(caught.value)
    assert same_state(module, before)
    found = wcompress.load_into(module, packed_net, strict=False)
    reference = nn.ModuleDict({"embed": nn.Embedding(30, 48), "other": nn.Linear(3, 2)})
    expected = reference.load_state_dict(wcompress.load(packed_net), strict=False)
    assert found == (expected.missing_keys, expected.unexpected_keys)
    assert torch.equal(module["embed"].weight, reference["embed"].weight)
    assert torch.equal(module["other"].weight, before["other.weight"])


@pytest.mark.parametrize("strict", [True, False])
def test_a_shape_that_differs_changes_nothing(packed_net: Path, strict: bool) -> None:
    module = net(1)
    module.body[2] = nn.Linear(64, 50)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModuleMismatch, match=r"'body\.2\.weight' has the shape \[48, 64\].* \[50, 64\], and 1 more"):
        wcompress.load_into(module, packed_net, strict=strict)
    assert same_state(module, before)


def test_a_module_that_loads_itself_is_let(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(24, 24))

    class Counting(nn.Linear):
        def get_extra_state(self) -> torch.Tensor:
            return torch.tensor(self.seen)

        def set_extra_state(self, state: Any) -> None:
            self.seen = int(state)

        seen = 0

    torch.manual_seed(0)
    source, target = (nn.Sequential(normed(), Counting(24, 8)) for _ in range(2))
    source[1].seen = 7
    wcompress.pack(dict(source.state_dict()), tmp_path / "m.wcz", **FAST)
    wcompress.load_into(target, tmp_path / "m.wcz")
    assert target[1].seen == 7
    assert same_state(target[1], {k[2:]: v for k, v in wcompress.load(tmp_path / "m.wcz").items() if k[0] == "1"})
    with pytest.raises(ModuleMismatch, match="size mismatch") as caught:
        wcompress.load_into(nn.Sequential(normed(), Counting(24, 9)), tmp_path / "m.wcz")
    assert "\n" not in str(caught.value)


def test_an_old_norm_without_a_counter_loads(tmp_path: Path) -> None:
    state = dict(nn.BatchNorm1d(8).state_dict())
    del state["num_batches_tracked"]
    wcompress.pack(state, tmp_path / "m.wcz", **FAST)
    module = nn.BatchNorm1d(8)
    assert wcompress.load_into(module, tmp_path / "m.wcz").missing_keys == []


def test_what_does_not_restore_as_it_was_packed_is_said(packed_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = wcompress.Archive.load

    def wrong(self: Any, names: Any = None, device: Any = "cpu") -> dict[str, torch.Tensor]:
        return {name: tensor * 2 for name, tensor in load(self, names, device).items()}

    monkeypatch.setattr(wcompress.Archive, "load", wrong)
    with pytest.raises(ChecksumMismatch, match="do not use the module"):
        wcompress.load_into(net(1), packed_net)
