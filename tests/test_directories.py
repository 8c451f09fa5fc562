"""Model folders become folders of archives and back; what is hostile or odd is refused; interrupted packs go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import wcompress
from tests.folders import FAST, LAYOUTS, contents, make_model, tensors_of
from wcompress.checkpoint import read_checkpoint
from wcompress.codec.options import PackOptions
from wcompress.directories import opening
from wcompress.directories.index import INDEX_NAME, read_index
from wcompress.directories.results import from_record, to_record
from wcompress.directories.source import find_source
from wcompress.errors import (
    ArchiveError,
    CheckpointError,
    OptionError,
    OutputError,
    TargetUnreachable,
    UnsafeCheckpoint,
    UnsupportedCheckpoint,
    WCompressError,
)

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards of safetensors."""
    return make_model(tmp_path / "model", "safetensors", 2)


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    wcompress.pack(make_model(folder / "model", "safetensors", 2), **FAST)
    return folder / "model.wcz"


@pytest.fixture
def packed(packed_once: Path, tmp_path: Path) -> Path:
    """A folder of two archives, to spoil."""
    return Path(shutil.copytree(packed_once, tmp_path / "model.wcz"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refusal(kind: type[WCompressError], function: Callable[[], object]) -> str:
    """The one line with which `function` refuses."""
    with pytest.raises(kind) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "n_shards"), LAYOUTS)
def test_round_trip(cli: Cli, tmp_path: Path, kind: str, n_shards: int) -> None:
    model = make_model(tmp_path / "model", kind, n_shards)
    before = contents(model)
    code, out, err = cli("pack", "model", "--json", "--effort", 1, "--threads", 1)
    assert (code, err) == (0, "")
    document = json.loads(out)
    packed = tmp_path / "model.wcz"
    assert document["archive"] == "model.wcz"
    assert len(document["shards"]) == n_shards
    assert document["archive_bytes"] == size_of(packed) == sum(document["sections"].values())
    for key in ("n_params", "n_tensors", "original_bytes"):
        assert document[key] == sum(shard[key] for shard in document["shards"])
    assert document["n_tensors"] == len(tensors_of(n_shards))
    assert document["ratio"] == document["original_bytes"] / document["archive_bytes"]
    assert document["warnings"] == []

    assert cli("unpack", "model.wcz", "-o", "again")[0] == 0
    after = contents(tmp_path / "again")
    assert after.keys() == before.keys()
    shards = {name for name in before if name.startswith(("model-", "pytorch_model-")) or name in SINGLE}
    assert len(shards) == n_shards
    assert {name: after[name] for name in after.keys() - shards} == {n: before[n] for n in before.keys() - shards}
    restored = wcompress.load(packed)
    assert list(restored) == list(read_checkpoint(model).tensors)
    for name in shards:
        if kind == "safetensors":
            with safe_open(tmp_path / "again" / name, framework="pt") as file:
                assert file.metadata() == {"format": "pt", "made by": "a test"}
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        else:
            found = torch.load(tmp_path / "again" / name, weights_only=True)
        for key, tensor in found.items():
            assert torch.equal(tensor, restored[key])
    assert contents(model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model", "model.wcz"]


SINGLE = ("model.safetensors", "pytorch_model.bin")


def test_lossless_folders_restore_every_bit(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "bin", 2)
    result = wcompress.pack(model, method="lossless", threads=1)
    assert (result.sqnr_db, result.max_abs_error) == (None, 0.0)
    restored = wcompress.load(tmp_path / "model.wcz")
    for name, tensor in tensors_of(2).items():
        assert torch.equal(restored[name], tensor)
    assert wcompress.verify(tmp_path / "model.wcz", model).lossless
    wcompress.unpack(tmp_path / "model.wcz", tmp_path / "again")
    first = torch.load(tmp_path / "again" / "pytorch_model-00001-of-00002.bin", weights_only=True)
    assert all(torch.equal(first[name], tensors_of(2)[name]) for name in first)


@pytest.mark.parametrize("method", ["vae", "lossless"])
def test_a_rule_may_be_for_one_shard(tmp_path: Path, method: str) -> None:
    folder = deep_model(tmp_path / "deep", 4, 2)
    wcompress.pack(folder, tmp_path / "m.wcz", effort=1, method=method, tensor={r"^1\.weight$": "keep"})
    original = read_checkpoint(folder / "model.safetensors.index.json").tensors
    restored = wcompress.load(tmp_path / "m.wcz")
    assert torch.equal(restored["1.weight"], original["1.weight"])
    assert torch.equal(restored["0.weight"], original["0.weight"]) == (method == "lossless")
    with pytest.raises(OptionError, match="matches no tensor name"):
        wcompress.pack(folder, tmp_path / "n.wcz", effort=1, method=method, tensor={"nothing": "keep"})


def test_one_tensor_is_read_from_its_own_archive_only(packed: Path) -> None:
    first, second = (packed / shard.archive for shard in read_index(packed).shards)
    second.unlink()
    with wcompress.open(packed) as archive:
        assert archive.keys() == list(archive) == list(tensors_of(2))
        assert len(archive) == 6
        assert "layers.1.bias" in archive
        assert "nothing" not in archive
        tensor = archive.get_tensor("layers.0.down.weight")
        assert tensor.shape == (40, 32)
        assert refusal(ArchiveError, lambda: archive.get_tensor("layers.1.up.weight")).endswith("of the folder")
        with pytest.raises(KeyError):
            archive.get_tensor("nothing")
    with wcompress.open(first) as alone:
        assert torch.equal(alone.get_tensor("layers.0.down.weight"), tensor)


def test_inspect_and_verify_give_sums_and_each_shard(cli: Cli, packed_once: Path) -> None:
    inspected = json.loads(cli("inspect", packed_once, "--json")[1])
    verified = json.loads(cli("verify", packed_once, "--against", packed_once.parent / "model", "--json")[1])
    assert inspected["archive_bytes"] == size_of(packed_once) == sum(inspected["sections"].values())
    assert [shard["n_tensors"] for shard in inspected["shards"]] == [3, 3]
    assert verified["ok"]
    assert verified["sha256"] == inspected["sha256"]
    assert [shard["sha256"] for shard in verified["shards"]] == [shard["sha256"] for shard in inspected["shards"]]
    assert set(verified["tensors"]) == set(tensors_of(2))
    restored, original = wcompress.load(packed_once), tensors_of(2)
    wide = [name for name in original if original[name].ndim > 1]
    signal = sum(float(original[name].double().square().sum()) for name in wide)
    noise = sum(float((original[name] - restored[name]).double().square().sum()) for name in wide)
    expected = 10 * torch.tensor(signal / noise).log10().item()
    assert verified["sqnr_db"] == pytest.approx(expected, abs=0.01)
    assert inspected["sqnr_db"] == pytest.approx(expected, abs=0.01)
    assert verified["max_abs_error"] == pytest.approx(max(float((original[n] - restored[n]).abs().max()) for n in wide))
    for command in ("inspect", "verify"):
        code, out, _ = cli(command, packed_once)
        assert code == 0
        assert inspected["sha256"] in out


def test_eval_takes_a_folder_of_archives(packed_once: Path) -> None:
    from wcompress.evaluate import read_tensors

    assert list(read_tensors(packed_once)) == list(tensors_of(2))


def test_a_folder_with_one_other_model_file_is_still_one_archive(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save({"w": torch.randn(20, 20)}, tmp_path / "run" / "model.pt")
    wcompress.pack(tmp_path / "run", **FAST)
    assert (tmp_path / "run.wcz").is_file()


# --- quality and targets --------------------------------------------------------------------------------------------


def deep_model(folder: Path, n_layers: int, n_shards: int, *, norm: bool = False) -> Path:
    generator = torch.Generator().manual_seed(2)
    tensors = {f"{i}.weight": torch.randn(24, 24, generator=generator) for i in range(n_layers)}
    if norm:
        tensors["0.running_var"] = torch.rand(24, generator=generator) + 0.5
        tensors = dict(sorted(tensors.items()))
    folder.mkdir()
    weight_map = {}
    names = list(tensors)
    for number in range(n_shards):
        shard, chosen = f"model-{number}.safetensors", names[number::n_shards]
        save_file({name: tensors[name] for name in chosen}, folder / shard)
        weight_map |= dict.fromkeys(chosen, shard)
    index = {"weight_map": {name: weight_map[name] for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("norm", [False, True])
def test_shards_have_the_quality_of_the_whole_model(tmp_path: Path, norm: bool) -> None:
    # 24 layers ask for 6 dB more than six do, and a norm in one shard for 10 dB more in all.
    model = deep_model(tmp_path / "deep", 24, 3, norm=norm)
    whole = wcompress.pack(model / "model.safetensors.index.json", tmp_path / "one.wcz", **FAST)
    split = wcompress.pack(model, **FAST)
    alone = wcompress.pack(model / "model-2.safetensors", tmp_path / "alone.wcz", **FAST)
    assert whole.floors is not None
    assert alone.floors is not None
    assert whole.floors.tensor_db - alone.floors.tensor_db > 3
    for shard in split.shards:
        assert shard.floors.tensor_db == pytest.approx(whole.floors.tensor_db, abs=0.5)


def test_a_target_of_size_counts_every_byte_of_the_folder(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "safetensors", 2, rows=160)
    (model / "tokenizer.json").write_bytes(os.urandom(3000))
    code, out, err = cli("pack", "model", "--ratio", 4, "--json", "--effort", 1, "--threads", 1)
    assert code == 0, err
    document = json.loads(out)
    assert document["original_bytes"] / size_of(tmp_path / "model.wcz") == document["ratio"]
    assert 4 <= document["ratio"] < 4 * 1.02
    assert any("tokenizer.json" in warning for warning in document["warnings"])
    (model / "tokenizer.json").write_bytes(bytes(document["original_bytes"] // 4))
    code, out, err = cli("pack", "model", "--ratio", 4, "-f")
    assert (code, out) == (1, "")
    assert "side files" in err
    assert err.count("\n") == 1


def test_a_target_that_a_shard_cannot_meet_names_it_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    line = refusal(TargetUnreachable, lambda: wcompress.pack(model, sqnr=119.0, **FAST))
    assert "model-0000" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# --- odd files ------------------------------------------------------------------------------------------------------


def test_hidden_files_and_further_copies_of_the_weights_are_left_out_and_named(cli: Cli, model: Path) -> None:
    for name in (
        ".git/config",
        ".gitattributes",
        "onnx/model.onnx",
        "tf_model.h5",
        "pytorch_model.bin",
        "2_Dense/x.bin",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"x" * 10)
    (model / "2_Dense" / "model.safetensors").write_bytes(b"y" * (1 << 20))
    code, out, err = cli("pack", "model", "--json", "--effort", 1, "--threads", 1)
    assert code == 0
    document = json.loads(out)
    names = {"onnx/model.onnx", "tf_model.h5", "pytorch_model.bin"}
    assert set(document["left_out"]) == {".git/", ".gitattributes", *names}
    text = "\n".join(document["warnings"])
    for name in document["left_out"]:
        assert f"'{name}'" in text
        assert f"'{name}'" in err
    kept = contents(Path("model.wcz"))
    assert kept.keys() & names == set()
    assert kept["2_Dense/x.bin"] == b"x" * 10
    assert len(kept["2_Dense/model.safetensors"]) == 1 << 20
    assert "not made smaller: '2_Dense/model.safetensors'" in text


def test_links_out_of_the_folder_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "vocab.txt").symlink_to(tmp_path / "secret")
    assert "vocab.txt" in refusal(UnsafeCheckpoint, lambda: find_source(model))
    (model / "vocab.txt").unlink()
    (model / "vocab.txt").symlink_to("config.json")
    assert "vocab.txt" in {side.name for side in find_source(model).side_files}
    (model / "more").symlink_to("1_Pooling")
    assert "more" in refusal(UnsafeCheckpoint, lambda: find_source(model))
    (model / "more").unlink()
    os.mkfifo(model / "pipe")
    assert "pipe" in refusal(UnsupportedCheckpoint, lambda: find_source(model))
    (model / "pipe").unlink()
    (model / "gone").symlink_to("nowhere")
    assert "gone" in refusal(CheckpointError, lambda: find_source(model))
    (model / "gone").unlink()
    (model / "a\nb").write_text("")
    assert "a\\nb" in refusal(UnsupportedCheckpoint, lambda: find_source(model))
    (model / "a\nb").unlink()
    shard = model / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "moved")
    shard.symlink_to(tmp_path / "moved")
    assert "model-00001" in refusal(UnsafeCheckpoint, lambda: find_source(model))


def test_links_of_the_hub_cache_are_followed(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (repository / "blobs").mkdir()
    shutil.copytree(model, snapshot)
    for number, path in enumerate(path for path in snapshot.iterdir() if path.is_file()):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    wcompress.pack(snapshot, tmp_path / "one.wcz", **FAST)
    wcompress.pack(model, tmp_path / "two.wcz", **FAST)
    assert contents(tmp_path / "one.wcz") == contents(tmp_path / "two.wcz")


def test_a_folder_without_a_model_says_what_was_looked_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = cli("pack", "empty")
    assert (code, out) == (2, "")
    assert "looked for" in err
    assert err.count("\n") == 1


def test_options_that_do_not_go_with_a_folder_are_one_line(cli: Cli, packed: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "safetensors", 2)
    one_file = make_model(tmp_path / "one-file", "safetensors", 1)
    torch.save({"w": torch.ones(3, 3)}, tmp_path / "one.pt")
    for arguments in (
        ["pack", model, "-o", "x.wcz", "--task", "mnist-fnn"],
        ["pack", model, "-o", "x.wcz", "--task", "mnist-fnn", "--max-drop", 1],
        ["pack", model, "-o", "x.wcz", "--max-drop", 1],
        ["pack", one_file, "-o", "x.wcz", "--task", "mnist-fnn", "--ratio", 4, "--resume"],
        ["pack", one_file, "-o", "x.wcz", "--task", "mnist-fnn", "--ratio", 4, "--engine", "processes"],
        ["pack", model, "-o", "x.wcz", "--key", "model"],
        ["pack", model, "-o", "-"],
        ["pack", model, "-o", "x.wcz", "--dry-run", "--shard", "1/2"],
        ["pack", model, "-o", "x.wcz", "--workers", 2],
        ["pack", model, "-o", model / "x.wcz"],
        ["pack", model, "-o", tmp_path],
        ["pack", packed],
        ["pack", "one.pt", "--engine", "processes"],
        ["pack", "one.pt", "--shard", "1/2"],
        ["pack", "one.pt", "--resume"],
        *(["pack", model, "-o", "x.wcz", "--shard", part] for part in ("0/2", "3/2", "1", "a/b", "1/3", "1/0")),
        ["unpack", packed, "-o", "x", "--only", "layers"],
        ["unpack", packed, "-o", "x", "--format", "pt"],
        ["unpack", packed, "-o", "-"],
        ["unpack", packed],  # the model's own folder is there
        ["verify", packed, "--against", "one.pt"],
    ):
        code, out, err = cli(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.count("\n") == 1, err
        assert err.startswith("wcompress: "), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.wcz", "one-file", "one.pt"]
    for command in ("inspect", "verify", "unpack"):
        code, out, err = cli(command, model)
        assert (code, out) == (2, "")
        assert "no folder of archives" in err


# --- hostile and damaged --------------------------------------------------------------------------------------------


def spoil_weight_map(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_bytes())
    change(document["weight_map"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", "", ".hidden", "a\x1b[0m", "C:x", 3, None]
)
def test_shards_that_are_no_bare_names_are_refused(model: Path, name: Any) -> None:
    spoil_weight_map(model, lambda weight_map: weight_map.update({"layers.0.up.weight": name}))
    refusal(UnsafeCheckpoint, lambda: wcompress.pack(model, **FAST))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update({"extra": "model-00001-of-00002.safetensors"}), "does not hold 'extra'"),
        (lambda m: m.pop("layers.0.bias"), "holds 'layers.0.bias'"),
        (lambda m: m.update({"layers.0.bias": "model-00002-of-00002.safetensors"}), "index and shards"),
        (lambda m: m.update({"x": "model-00003.safetensors"}), "'model-00003.safetensors' is missing"),
        (lambda m: m.update({"x": "config.json"}), "JSON file"),
        (lambda m: m.clear(), "no tensors"),
    ],
)
def test_index_and_headers_must_agree_both_ways(
    model: Path, tmp_path: Path, change: Callable[[dict[str, str]], object], said: str
) -> None:
    spoil_weight_map(model, change)
    assert said in refusal(CheckpointError, lambda: wcompress.pack(model, **FAST))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_an_index_that_repeats_itself_or_is_too_large_is_refused(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    text = path.read_text()
    path.write_text(text.replace('"layers.0.bias"', '"layers.0.up.weight"'))
    assert "twice" in refusal(CheckpointError, lambda: find_source(model))
    path.write_text("[" * 100_000)
    refusal(CheckpointError, lambda: find_source(model))
    path.write_text(text + " " * (65 << 20))
    assert "more than" in refusal(CheckpointError, lambda: find_source(model))


def spoil_index(folder: Path, change: Callable[[Any], object]) -> None:
    document = json.loads((folder / INDEX_NAME).read_bytes())
    change(document)
    (folder / INDEX_NAME).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        *(lambda d, n=n: d["shards"][0].update(name=n, archive=f"{n}.wcz") for n in ("../x", "/x", "a/b", "", ".x", 5)),
        *(
            lambda d, n=n: d["files"][0].update(name=n)
            for n in ("../x", "/x", "a/../../x", "a//b", ".ssh/x", "a\nb", 5)
        ),
        lambda d: d["shards"][0].update(archive="model-00002-of-00002.safetensors.wcz"),
        lambda d: d["shards"].append(d["shards"][0]),
        lambda d: d["files"].append(d["files"][0]),
        lambda d: d["files"][0].update(name="model-00001-of-00002.safetensors"),
        lambda d: d["files"][0].update(name="config.json/x"),
        lambda d: d["files"][0].update(name=INDEX_NAME),
        lambda d: d["files"][0].update(bytes=-1),
        lambda d: d["files"][0].update(bytes=1 << 70),
        lambda d: d["files"][0].update(sha256="0" * 63),
        lambda d: d["shards"][0].update(archive_bytes=True),
        lambda d: d["shards"][0].update(archive_bytes=10**30),
        lambda d: d["shards"][0].update(format="exe"),
        lambda d: d["shards"][0].update(energy=-1),
        lambda d: d["shards"][0].update(archive_sha256="0" * 64),
        lambda d: d["shards"].pop(),
        lambda d: d["shards"].clear(),
        lambda d: d.update(files=[f for f in d["files"] if f["name"] != d["weight_index"]]),
        lambda d: d.update(weight_index=None),
        lambda d: d.update(weight_index="../model.safetensors.index.json"),
        lambda d: d.update(shards={}),
        lambda d: d.update(version=2),
        lambda d: d.update(format="x"),
        lambda d: d.pop("files"),
    ],
)
def test_a_hostile_index_restores_nothing(packed: Path, tmp_path: Path, change: Callable[[Any], object]) -> None:
    spoil_index(packed, change)
    refusal(ArchiveError, lambda: wcompress.unpack(packed, tmp_path / "out"))
    refusal(ArchiveError, lambda: wcompress.verify(packed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.wcz"]


def test_an_index_of_any_size_or_depth_is_refused_at_once(packed: Path) -> None:
    path = packed / INDEX_NAME
    path.write_text("[" * 100_000)
    refusal(ArchiveError, lambda: read_index(packed))
    with path.open("wb") as file:
        file.truncate(65 << 20)
    assert "at most" in refusal(ArchiveError, lambda: read_index(packed))


def test_archives_must_hold_what_the_weight_map_says(packed: Path, tmp_path: Path) -> None:
    first, second = (packed / shard.archive for shard in read_index(packed).shards)
    spare = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(spare)
    document = json.loads((packed / INDEX_NAME).read_bytes())
    sizes = [{key: shard[key] for key in ("archive_bytes", "archive_sha256")} for shard in document["shards"]]
    spoil_index(packed, lambda d: [row.update(size) for row, size in zip(d["shards"], sizes[::-1], strict=True)])
    for call in (
        lambda: wcompress.unpack(packed, tmp_path / "out"),
        lambda: wcompress.load(packed),
        lambda: wcompress.verify(packed),
    ):
        assert "different models" in refusal(ArchiveError, call)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "model-00002-of-00002.safetensors.wcz", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("how", ["gone", "changed", "short"])
def test_damage_is_exit_code_4_and_nothing_appears(cli: Cli, packed: Path, tmp_path: Path, name: str, how: str) -> None:
    whole = (packed / name).read_bytes()
    (packed / name).write_bytes(whole[:-1] if how == "short" else whole[:-1] + b"!")
    if how == "gone":
        (packed / name).unlink()
    for arguments in (["unpack", packed, "-o", "out"], ["verify", packed], ["inspect", packed]):
        code, out, err = cli(*arguments)
        assert (code, out) == (4, "")
        assert err.count("\n") == 1
        assert name in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.wcz"]


def test_verify_names_what_differs_from_the_model(cli: Cli, packed: Path, model: Path) -> None:
    assert cli("verify", packed, "--against", model)[0] == 0
    (model / "config.json").write_text("{}")
    (model / "new.txt").write_text("")
    (model / "tokenizer").joinpath("vocab.txt").unlink()
    code, _, err = cli("verify", packed, "--against", model)
    assert code == 1
    assert all(f"'{name}'" in err for name in ("config.json", "new.txt", "tokenizer/vocab.txt"))
    shard = model / "model-00002-of-00002.safetensors"
    other = {name: torch.randn_like(tensor) for name, tensor in tensors_of(2).items() if name.startswith("layers.1")}
    save_file(other, shard)
    code, out, _ = cli("verify", packed, "--against", model, "--json")
    assert code == 1
    assert [one["ok"] for one in json.loads(out)["shards"]] == [True, False]


# --- outputs --------------------------------------------------------------------------------------------------------


def test_outputs_are_replaced_with_force_only_and_never_more_than_was_made(
    cli: Cli, packed: Path, tmp_path: Path
) -> None:
    assert cli("unpack", packed, "-o", "out")[0] == 0
    code, _, err = cli("unpack", packed, "-o", "out")
    assert code == 2
    assert "-f" in err
    (tmp_path / "out" / "config.json").write_text("changed")
    assert cli("unpack", packed, "-o", "out", "-f")[0] == 0
    assert (tmp_path / "out" / "config.json").read_bytes() == (packed / "config.json").read_bytes()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, err = cli("unpack", packed, "-o", "out", "-f")
    assert code == 2
    assert "notes.txt" in err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert cli("unpack", packed, "-o", "empty")[0] == 0

    make_model(tmp_path / "three", "safetensors", 3)
    code, _, err = cli("pack", "three", "-o", packed, "--effort", 1)
    assert code == 2
    assert "-f" in err
    assert (
        cli("pack", "three", "-o", packed, "--effort", 1, "--threads", 1, "-f")[0] == 0
    )  # two shards give way to three
    assert len(read_index(packed).shards) == 3
    assert len(list(packed.glob("*.wcz"))) == 3
    (packed / "notes.txt").write_text("mine")
    assert cli("pack", "three", "-o", packed, "--effort", 1, "-f")[0] == 2
    assert (packed / "notes.txt").exists()
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".wcompress*"))


def test_a_dry_run_reports_and_writes_nothing(cli: Cli, model: Path, tmp_path: Path, packed_once: Path) -> None:
    assert model.exists()
    code, out, _ = cli("pack", "model", "--dry-run", "--json", "--effort", 1, "--threads", 1)
    assert code == 0
    document = json.loads(out)
    assert document["dry_run"]
    assert document["archive_bytes"] == pytest.approx(size_of(packed_once), rel=0.03)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_several_models_and_folders_at_once(cli: Cli, model: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.randn(20, 20)}, tmp_path / "one.pt")
    code, out, _ = cli("pack", model, "one.pt", "--json", "--effort", 1, "--threads", 1)
    assert code == 0
    assert ["shards" in result for result in json.loads(out)["results"]] == [True, False]
    (tmp_path / "out").mkdir()
    code, out, _ = cli("unpack", "model.wcz", "one.pt.wcz", "-o", "out", "--json")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "one.safetensors"]


def test_the_summary_names_archives_and_side_files(cli: Cli, model: Path) -> None:
    code, out, _ = cli("pack", model, "--effort", 1, "--threads", 1)
    assert code == 0
    assert "side files" in out
    assert "Restore with: wcompress unpack" in out


def test_a_source_that_changes_meanwhile_is_refused(model: Path, tmp_path: Path) -> None:
    def touch(_done: int, _total: int, _figures: Any) -> None:
        os.utime(model / "model-00002-of-00002.safetensors", ns=(1, next(times)))

    times: Iterator[int] = iter(range(1, 10**6))
    assert "changed" in refusal(CheckpointError, lambda: wcompress.pack(model, progress=touch, **FAST))
    assert not (tmp_path / "model.wcz").exists()


def test_at_most_one_archive_is_open(packed_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_open = most = 0

    class Counted(opening.Archive):
        def __init__(self, path: Any) -> None:
            nonlocal n_open, most
            n_open += 1
            most = max(most, n_open)
            super().__init__(path)

        def close(self) -> None:
            nonlocal n_open
            n_open -= 1
            super().close()

    monkeypatch.setattr(opening, "Archive", Counted)
    wcompress.load(packed_once)
    assert (n_open, most) == (0, 1)


def test_names_of_options_are_checked(model: Path) -> None:
    refusal(OptionError, lambda: wcompress.pack(model, efort=3))
    refusal(OptionError, lambda: wcompress.pack(model, options=PackOptions(max_drop=1.0)))
    refusal(OptionError, lambda: wcompress.pack(model, engine="gpu", **FAST))
    refusal(OutputError, lambda: wcompress.pack(model, model.parent / "no" / "where", **FAST))


def test_threads_may_share_an_open_folder(packed_once: Path) -> None:
    expected = wcompress.load(packed_once)
    with wcompress.open(packed_once) as archive, ThreadPoolExecutor(4) as pool:
        names = list(expected) * 4  # of two archives, of which one is open at a time
        for name, tensor in zip(names, pool.map(archive.get_tensor, names), strict=True):
            assert torch.equal(tensor, expected[name])


def test_results_survive_their_record(tmp_path: Path) -> None:
    torch.save(tensors_of(1), tmp_path / "one.pt")
    result = wcompress.pack(tmp_path / "one.pt", **FAST)
    assert result.floors is not None
    assert result.worst is not None
    assert from_record(json.loads(json.dumps(to_record(result)))) == result
