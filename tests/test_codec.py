"""pack, load, open, inspect, verify, unpack: the main job."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors import safe_open

import wcompress
from tests.conftest import SMALL
from wcompress.archive import ArchiveReader, ArchiveWriter
from wcompress.codec.container.manifest import Manifest, TensorEntry
from wcompress.codec.storage.dtypes import round_to_dtype
from wcompress.codec.storage.exact import decode_raw, encode_raw
from wcompress.errors import (
    ArchiveError,
    ChecksumMismatch,
    OptionError,
    OutputError,
    UnsafeCheckpoint,
    WCompressError,
)
from wcompress.fidelity import same_bits
from wcompress.wire import encode_varint


@pytest.fixture
def archive(checkpoint: Path) -> Path:
    wcompress.pack(checkpoint, options=SMALL)
    return checkpoint.with_name("model.pt.wcz")


def test_everything_is_restored(archive: Path, tensors: dict[str, torch.Tensor]) -> None:
    restored = wcompress.load(archive)
    assert list(restored) == list(tensors)
    for name, tensor in tensors.items():
        assert restored[name].dtype == tensor.dtype, name
        assert restored[name].shape == tensor.shape, name
    for name in ("norm.num_batches_tracked", "mask", "phase", "broken", "empty", "zeros"):
        assert same_bits(restored[name], tensors[name].contiguous()), name
    assert restored["head.weight"] is restored["embedding.weight"]


def test_figures_are_those_of_the_file(archive: Path, checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    result = wcompress.pack(checkpoint, archive, SMALL, force=True)
    floats = [t for t in tensors.values() if t.is_floating_point()]
    assert result.archive_bytes == archive.stat().st_size == sum(result.sections.values())
    assert result.original_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert result.n_params == sum(t.numel() for t in floats)
    assert result.n_tensors == len(tensors)
    assert result.ratio == result.original_bytes / archive.stat().st_size
    assert result.bits_per_param == 8 * archive.stat().st_size / result.n_params
    with ArchiveReader(archive) as reader:
        manifest = Manifest.from_bytes(reader.section("manifest"))
    coded = sum(entry.numel for entry in manifest.of_kind("coded"))
    assert result.n_latents == 4 * -(-coded // 64)
    assert result.latent_ratio == result.n_params / result.n_latents
    restored = wcompress.load(archive)
    matrices = [n for n, t in tensors.items() if t.is_floating_point() and t.ndim >= 2]
    finite = {n: tensors[n].double().isfinite() for n in matrices}
    signal = sum(tensors[n].double()[finite[n]].square().sum() for n in matrices)
    noise = sum((tensors[n].double() - restored[n].double())[finite[n]].square().sum() for n in matrices)
    assert result.sqnr_db == pytest.approx(float(10 * torch.log10(signal / noise)))


def test_the_json_is_the_contract(archive: Path, checkpoint: Path) -> None:
    document = wcompress.pack(checkpoint, archive, SMALL, force=True).to_json()
    common = {"archive", "source", "method", "n_params", "n_tensors", "original_bytes", "archive_bytes", "ratio"}
    common |= {"latent_ratio", "bits_per_param", "sections", "sqnr_db", "sha256"}
    assert common | {"seconds", "task"} <= set(document)
    assert {"header", "manifest", "decoder", "latents", "tables", "symbols", "raw"} <= set(document["sections"])
    assert sum(document["sections"].values()) == document["archive_bytes"]
    assert document["seconds"]["total"] > 0
    inspected = wcompress.inspect(archive).to_json()
    assert common <= set(inspected)
    for name in common - {"source", "sqnr_db"}:
        assert inspected[name] == document[name], name
    assert inspected["sqnr_db"] == pytest.approx(document["sqnr_db"], abs=1e-3)
    json.dumps([document, inspected], allow_nan=False)


def test_same_seed_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        wcompress.pack(checkpoint, tmp_path / name, SMALL, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_restored_bits_do_not_depend_on_threads(archive: Path) -> None:
    code = (
        "import sys, torch, wcompress; torch.set_num_threads(int(sys.argv[2]));"
        "wcompress.load(sys.argv[1]); print('same')"  # load compares with the archive's SHA-256
    )
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(archive), threads], capture_output=True, text=True, check=False
        )
        assert done.stdout == "same\n", done.stderr


def test_one_tensor_opens_without_the_rest(archive: Path, tensors: dict[str, torch.Tensor]) -> None:
    everything = wcompress.load(archive)
    with wcompress.open(archive) as opened:
        assert opened.keys() == list(tensors)
        for name in tensors:
            assert same_bits(opened.get_tensor(name), everything[name]), name
        with pytest.raises(KeyError):
            opened.get_tensor("nothing")
    assert list(everything) == opened.keys()


def test_a_dict_of_tensors(tmp_path: Path) -> None:
    weight = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    result = wcompress.pack({"w": weight}, tmp_path / "w.wcz", SMALL)
    assert result.source == ""
    assert wcompress.load(tmp_path / "w.wcz")["w"].shape == (20, 20)
    with pytest.raises(OptionError, match="no file name"):
        wcompress.pack({"w": weight})


@pytest.mark.parametrize(
    "model",
    [
        {"n": torch.arange(5)},
        {"empty": torch.empty(0)},
        {"zeros": torch.zeros(300)},
        {"nan": torch.tensor([float("nan")])},
        {"one": torch.tensor(3.0)},
        {"huge": torch.full((9, 9), 1e300, dtype=torch.float64)},
        {"tiny": torch.full((9, 9), 1e-42)},
        {"limit": torch.full((5, 5), 65504.0).half()},
        {"bits": torch.tensor([1, 2], dtype=torch.uint16), "w": torch.ones(3, 3)},
    ],
    ids=lambda model: next(iter(model)),
)
def test_odd_models(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "odd.wcz"
    result = wcompress.pack(model, path, SMALL)
    restored = wcompress.load(path)
    for name, tensor in model.items():
        assert (restored[name].dtype, restored[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.isfinite(restored[name].double()).all() or not torch.isfinite(tensor.double()).all()
    assert wcompress.verify(path, model).ok
    json.dumps(result.to_json(), allow_nan=False)
    wcompress.inspect(path)


def test_every_flipped_byte_and_truncation_is_an_archive_error(archive: Path) -> None:
    whole = archive.read_bytes()
    positions = range(0, len(whole), max(1, len(whole) // 400))
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        archive.write_bytes(damaged)
        with pytest.raises(ArchiveError) as caught:
            wcompress.load(archive)
        assert "\n" not in str(caught.value)
        with pytest.raises(ArchiveError):
            wcompress.inspect(archive)
    for length in positions:
        archive.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            wcompress.verify(archive)


def rewrite(archive: Path, **changed: bytes) -> None:
    """Replace sections and put every checksum right again."""
    with ArchiveReader(archive) as reader:
        payloads = {entry.name: reader.section(entry.name) for entry in reader.entries}
        digest = reader.digest
    archive.unlink()
    with ArchiveWriter(archive) as writer:
        for name, payload in {**payloads, **changed}.items():
            writer.add(name, payload)
        writer.finish(digest)


def deflate(document: object) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(json.dumps(document).encode()) + packer.flush()


def test_other_weights_under_right_checksums_are_noticed(archive: Path) -> None:
    with ArchiveReader(archive) as reader:
        scales = bytearray(reader.section("scales"))
    scales[5] ^= 1
    rewrite(archive, scales=bytes(scales))
    with pytest.raises(ChecksumMismatch, match="SHA-256"):
        wcompress.load(archive)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"method": "paper"},
        {"method": "magic", "tensors": []},
        {"method": "paper", "tensors": [["a", "float32", [-1]]]},
        {"method": "paper", "tensors": [["a", "float32", [2**40, 2**40]]]},
        {"method": "paper", "tensors": [["a", "float99", [2]]]},
        {"method": "paper", "tensors": [["a", "float32", [2], "odd"]]},
        {"method": "paper", "tensors": [["a", "float32", [2]], ["a", "float32", [2]]]},
        {"method": "paper", "tensors": [["a", 0]]},
        {"method": "paper", "tensors": [["a", "float32", [2], "raw"], ["b", 0], ["c", 1]]},
        {"method": "paper", "tensors": [[5, "float32", [2]]]},
        {"method": "paper", "tensors": [["a", "float32", [2.0]]]},
        {"method": "paper", "tensors": [["a", "float32", [1 << 50]]]},
        {"method": "paper", "tensors": [["a", "int64", [1 << 50], "raw"]]},
        {"method": "paper", "tensors": [], "sqnr": "loud"},
        {"method": "paper", "tensors": [], "metadata": {"a": 1}},
        {"method": "paper", "tensors": [], "padding": -1},
        {"method": "paper", "tensors": [[]]},
        {"method": "paper", "tensors": [["x"]]},
        {"method": "paper", "tensors": [], "sqnr": 10**400},
        {"method": "paper", "tensors": [["\ud800", "float32", [2]]]},
        {"method": "paper", "tensors": [["a", "int32", [2]]]},
        {"method": "paper", "tensors": [["a", "float32", [2**40, 2**40, 0]]]},
        {"method": "paper", "tensors": [["a", "float32", [1] * 65]]},
    ],
)
def test_hostile_manifests(archive: Path, document: object) -> None:
    rewrite(archive, manifest=deflate(document))
    with pytest.raises(ArchiveError) as caught:
        wcompress.load(archive)
    assert "\n" not in str(caught.value)


def test_manifest_bombs_and_garbage(archive: Path) -> None:
    for manifest in (b"", b"\xff\xff", deflate({"method": "paper", "tensors": []}) + b"x", deflate("[" * 100_000)):
        rewrite(archive, manifest=manifest)
        with pytest.raises(ArchiveError):
            wcompress.load(archive)


def test_raw_tensors_round_trip_and_are_bounded() -> None:
    tensors = {"zeros": torch.zeros(10_000, dtype=torch.int64), "odd": torch.tensor([1.5, float("nan")])}
    entries = [TensorEntry(n, str(t.dtype)[6:], tuple(t.shape), "raw") for n, t in tensors.items()]
    data = encode_raw(tensors.values())
    assert len(data) < 100
    for name, tensor in decode_raw(data, entries).items():
        assert same_bits(tensor, tensors[name])
    huge = [dataclasses.replace(entries[0], shape=(1 << 40,)), entries[1]]
    for damaged, rows in ((data[:-1], entries), (data + b"x", entries), (data, huge), (b"\x07" + data[1:], entries)):
        with pytest.raises(ArchiveError):
            decode_raw(damaged, rows)


def test_a_raw_frame_that_claims_to_be_huge_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(100))
    lying = frame[:4] + bytes([0xE0]) + (1 << 40).to_bytes(8, "little") + frame[6:]
    assert zstandard.frame_content_size(lying) == 1 << 40
    data = b"\x01" + encode_varint(len(lying)) + lying
    with pytest.raises(ArchiveError, match="another size"):
        decode_raw(data, [TensorEntry("t", "uint8", (100,), "raw")])


def test_rounding_is_the_formats() -> None:
    values = torch.tensor([1e9, -1e9, 0.1], dtype=torch.float64).numpy()
    assert round_to_dtype(values, torch.float16).tolist() == [65504.0, -65504.0, float(torch.tensor(0.1).half())]
    assert round_to_dtype(values, torch.float64).tolist() == [1e9, -1e9, 0.1]
    assert round_to_dtype(values, torch.float8_e4m3fn).float().tolist()[:2] == [448.0, -448.0]


def test_verify_against_the_model_and_others(archive: Path, tensors: dict[str, torch.Tensor], checkpoint: Path) -> None:
    result = wcompress.verify(archive, checkpoint)
    assert result.ok
    assert result.lossless is False
    assert result.to_json()["errors"] == []
    assert result.sqnr_db == pytest.approx(wcompress.inspect(archive).sqnr_db, abs=1e-3)
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    other["embedding.weight"] = other["embedding.weight"] + 1
    errors = wcompress.verify(archive, other).errors
    assert "'embedding.weight' was made from other values" in errors[0]
    assert "another model" in errors[-1]
    del other["mask"]
    other["new"] = torch.ones(1)
    other["scalar"] = torch.ones(2)
    errors = wcompress.verify(archive, other).errors
    assert len(errors) == 3
    assert not wcompress.verify(archive, other).ok


def test_a_changed_raw_tensor_is_noticed(archive: Path, tensors: dict[str, torch.Tensor]) -> None:
    other = dict(tensors)
    other["norm.num_batches_tracked"] = torch.tensor(8)
    errors = wcompress.verify(archive, other).errors
    assert len(errors) == 1
    assert "num_batches_tracked" in errors[0]


def test_unpack_formats_and_names(archive: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    complex_free = {n: t for n, t in tensors.items() if n != "phase"}
    path = tmp_path / "m.safetensors.wcz"
    wcompress.pack(complex_free, path, SMALL)
    result = wcompress.unpack(path)
    assert result.output == str(tmp_path / "m.safetensors")
    with safe_open(result.output, "pt") as file:
        assert set(file.keys()) == set(complex_free)
    as_pt = wcompress.unpack(archive, tmp_path / "again.pt")
    assert as_pt.format == "pt"
    loaded = torch.load(tmp_path / "again.pt", weights_only=True)
    assert list(loaded) == list(tensors)
    assert loaded["head.weight"].data_ptr() == loaded["embedding.weight"].data_ptr()
    only = wcompress.unpack(archive, tmp_path / "some.safetensors", only=r"^conv\.")
    assert only.n_tensors == 2
    for pattern, expected in (("nothing", "no tensor name"), ("(", "regular expression")):
        with pytest.raises(OptionError, match=expected):
            wcompress.unpack(archive, tmp_path / "none.safetensors", only=pattern)
    with pytest.raises(OutputError):
        wcompress.unpack(archive, tmp_path / "some.safetensors")
    with pytest.raises(OutputError, match="source"):
        wcompress.unpack(archive, archive, force=True)


def test_metadata_survives(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3, 3)}, tmp_path / "m.safetensors", metadata={"format": "pt", "über": "x"})
    wcompress.pack(tmp_path / "m.safetensors", options=SMALL)
    wcompress.unpack(tmp_path / "m.safetensors.wcz", tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "über": "x"}


def test_dry_run_writes_nothing_and_measures_the_same(checkpoint: Path) -> None:
    dry = wcompress.pack(checkpoint, options=SMALL, dry_run=True)
    assert list(checkpoint.parent.glob("*.wcz")) == []
    real = wcompress.pack(checkpoint, options=SMALL)
    assert dry.archive_bytes == real.archive_bytes
    assert dry.sha256 == real.sha256


def test_options_are_checked_before_work() -> None:
    for name, value in (
        ("method", "magic"),
        ("block_size", 0),
        ("latent_dim", 0),
        ("hidden", (0,)),
        ("effort", 10),
        ("seed", -1),
        ("device", "tpu"),
        ("threads", 0),
        ("unknown", 1),
    ):
        with pytest.raises(OptionError, match=name):
            wcompress.pack("missing.pt", **{name: value})


def test_an_unsafe_model_leaves_no_archive(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "touched",))  # type: ignore[return-value]

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeCheckpoint):
        wcompress.pack(tmp_path / "evil.pt")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["evil.pt"]


def test_deeper_decoders(tmp_path: Path) -> None:
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    wcompress.pack({"w": weight}, tmp_path / "w.wcz", SMALL, hidden=(32, 16))
    wcompress.load(tmp_path / "w.wcz")
    wcompress.pack({"w": weight}, tmp_path / "v.wcz", SMALL, hidden=())
    wcompress.load(tmp_path / "v.wcz")


def test_the_manifest_is_small() -> None:
    sizes = [784, 200, 100, 60, 30, 10]
    rows = []
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        rows.append(TensorEntry(f"layers.{index}.weight", "float32", (n_out, n_in)))
        rows.append(TensorEntry(f"layers.{index}.bias", "float32", (n_out,)))
    manifest = Manifest("paper", "fnn.pt", tuple(rows), 1068, sqnr_db=31.234)
    data = manifest.to_bytes()
    assert len(data) < 200
    assert Manifest.from_bytes(data) == manifest


def test_errors_are_one_family() -> None:
    assert issubclass(ArchiveError, WCompressError)
    assert wcompress.WCompressError is WCompressError


def test_struct_of_scales_is_checked(archive: Path) -> None:
    rewrite(archive, scales=struct.pack("<d", 1.0))
    with pytest.raises(ArchiveError, match="scales"):
        wcompress.load(archive)


def test_small_weights_survive_beside_huge_statistics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 20, generator=generator)
    model = {"w": weight, "running_var": 1e4 * torch.rand(400, generator=generator)}
    wcompress.pack(model, tmp_path / "m.wcz", SMALL, effort=3, latent_dim=8)
    error = wcompress.load(tmp_path / "m.wcz")["w"] - weight
    assert error.square().mean() < 0.1 * weight.square().mean()


@pytest.mark.parametrize("method", ["paper", "vae"])
def test_verify_looks_at_every_tensor(tmp_path: Path, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = {"w": torch.randn(20, 10, generator=generator), "b": torch.randn(10, generator=generator)}
    wcompress.pack(model, tmp_path / "m.wcz", SMALL, method=method, effort=2)
    assert wcompress.verify(tmp_path / "m.wcz", model).ok
    for other in (torch.full((10,), 9.0), -model["b"], torch.arange(10.0)):
        errors = wcompress.verify(tmp_path / "m.wcz", {**model, "b": other}).errors
        assert len(errors) == 1, other
        assert "'b'" in errors[0]


@pytest.mark.parametrize("method", ["paper", "vae"])
def test_float64_beyond_all_squares(tmp_path: Path, method: str) -> None:
    model = {"d": torch.tensor([[1.7976931348623157e308, -1.7e308]] * 40, dtype=torch.float64)}
    result = wcompress.pack(model, tmp_path / "m.wcz", method=method, effort=1)
    json.dumps(result.to_json(), allow_nan=False)
    assert same_bits(wcompress.load(tmp_path / "m.wcz")["d"], model["d"])
