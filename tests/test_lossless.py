"""The lossless method: every bit of every dtype comes back, in little room, and damage is an ArchiveError."""

from __future__ import annotations

import random
from collections.abc import Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.methods.lossless import LosslessReader, encode_lossless
from wcompress.entropy.arrays import pack_array, unpack_array
from wcompress.entropy.bits import BitReader, BitWriter
from wcompress.entropy.histogram import MAX_SYMBOLS, ArrayDecoder, Histogram, encode_arrays, fit_histogram
from wcompress.errors import ArchiveError
from wcompress.fidelity import same_bits
from wcompress.wire import ByteCursor, encode_varint

FLOATS = ["float64", "float32", "float16", "bfloat16"]
SMALL_FLOATS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
OTHERS = ["int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"]
DTYPES = {name: getattr(torch, name) for name in FLOATS + SMALL_FLOATS + OTHERS}


def entries_of(tensors: Mapping[str, torch.Tensor]) -> list[TensorEntry]:
    return [
        TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def check_exact(tensors: Mapping[str, torch.Tensor]) -> bytes:
    data = encode_lossless(tensors)
    restored = LosslessReader(entries_of(tensors), data).restore()
    assert list(restored) == list(tensors)
    for name, tensor in tensors.items():
        assert same_bits(tensor, restored[name]), name
    return data


def n_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def from_bits(bits: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.uint8)).view(dtype).reshape(shape)


@pytest.mark.parametrize("name", FLOATS + SMALL_FLOATS)
def test_random_bits_of_every_float_come_back(name: str) -> None:
    dtype = DTYPES[name]
    raw = np.random.default_rng(1).integers(0, 256, 40 * 30 * dtype.itemsize, dtype=np.uint8)
    data = check_exact({"w": from_bits(raw, dtype, (40, 30))})
    assert len(data) <= raw.nbytes + 8


@pytest.mark.parametrize("name", FLOATS)
def test_special_values_come_back(name: str) -> None:
    dtype = DTYPES[name]
    info = torch.finfo(dtype)
    specials = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), info.max, info.min, info.tiny, info.smallest_normal / 2]
    ).to(dtype)
    payload = (
        np.arange(5, dtype=f"<u{dtype.itemsize}")
        + {
            "float64": 0xFFF0000000000001,
            "float32": 0xFF800001,
            "float16": 0xFC01,
            "bfloat16": 0xFF81,
        }[name]
    )
    nans = from_bits(payload.astype(f"<u{dtype.itemsize}"), dtype, (5,))
    assert nans.isnan().all()
    weights = normal(60, 70).to(dtype)
    mixed = weights.clone().reshape(-1)
    mixed[100:109], mixed[200:205] = specials, nans
    denormals = torch.from_numpy(np.arange(1, 400, dtype=f"<u{dtype.itemsize}").view(np.uint8)).view(dtype)
    check_exact({"specials": specials, "nans": nans, "mixed": mixed.reshape(60, 70), "denormals": denormals})


@pytest.mark.parametrize("name", [*DTYPES])
def test_every_dtype_and_shape(name: str) -> None:
    dtype = DTYPES[name]

    def make(*shape: int) -> torch.Tensor:
        return (20 * normal(*shape)).to(dtype)

    tensors = {
        "scalar": make(),
        "one": make(1),
        "empty": make(0, 3),
        "no rows": make(3, 0),
        "vector": make(777),
        "blocks": make(64 * 20),
        "matrix": make(33, 65),
        "kernel": make(8, 16, 3, 3),
        "constant": make(1).expand(50, 40).contiguous(),
    }
    check_exact(tensors)


def test_each_tensor_is_decoded_alone() -> None:
    tensors = {"a": normal(50, 60), "b": normal(7, seed=1), "c": normal(64, 64, seed=2)}
    data = bytearray(encode_lossless(tensors))
    reader = LosslessReader(entries_of(tensors), bytes(data))
    assert list(reader.restore(["c"])) == ["c"]
    assert same_bits(reader.restore(["c"])["c"], tensors["c"])
    data[2] = 99  # the form of the first unit, behind a varint of two bytes
    reader = LosslessReader(entries_of(tensors), bytes(data))
    assert same_bits(reader.restore(["b"])["b"], tensors["b"])
    with pytest.raises(ArchiveError, match="unknown form 99"):
        reader.restore()


def test_restored_tensors_are_writable_and_independent() -> None:
    tensors = {"w": torch.arange(5.0)}
    reader = LosslessReader(entries_of(tensors), encode_lossless(tensors))
    reader.restore()["w"].zero_()
    assert same_bits(reader.restore()["w"], tensors["w"])


def test_gaussian_weights_get_smaller() -> None:
    weights = 0.02 * normal(300, 400)
    assert n_bytes(weights) / len(check_exact({"w": weights})) >= 1.20
    half = weights.bfloat16()
    assert n_bytes(half) / len(check_exact({"w": half})) >= 1.51
    widened = half.float()
    assert n_bytes(widened) / len(check_exact({"w": widened})) >= 3.0
    eighth = (50 * weights).to(torch.float8_e4m3fn)
    assert n_bytes(eighth) / len(check_exact({"w": eighth})) >= 1.15


def test_scales_of_rows_and_columns_pay() -> None:
    scales = torch.exp2(3 * normal(200, 1, seed=1) + 3 * normal(1, 300, seed=2))
    plain, scaled = normal(200, 300), normal(200, 300) * scales
    assert len(check_exact({"w": scaled})) < 1.01 * len(check_exact({"w": plain}))
    vector = normal(64 * 400) * torch.exp2(3 * normal(400, 1, seed=3)).expand(400, 64).reshape(-1)
    assert n_bytes(vector) / len(check_exact({"w": vector})) >= 1.18


def test_a_large_tensor_is_chosen_for_by_a_sample() -> None:
    weights = normal(700, 400) * torch.exp2(2 * normal(700, 1, seed=1))
    assert n_bytes(weights) / len(check_exact({"w": weights})) >= 1.19
    odd = weights.reshape(-1)[:-1]  # no rows
    assert n_bytes(odd) / len(check_exact({"w": odd})) >= 1.17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_weights_pay_nothing_for_zeros(dtype: torch.dtype) -> None:
    weights = normal(200, 300).to(dtype)
    kept = torch.rand(200, 300, generator=torch.Generator().manual_seed(5)) < 0.1
    positive_zeros = torch.where(kept, weights, torch.zeros((), dtype=dtype))
    size = len(check_exact({"w": positive_zeros}))
    n_kept = int(kept.sum())
    ideal = n_kept * len(check_exact({"w": weights})) / weights.numel() + weights.numel() * 0.469 / 8
    assert size < 1.02 * ideal + 100
    both_zeros = len(check_exact({"w": weights * kept}))  # −0.0 where the weight was negative
    assert size < both_zeros < size + weights.numel() / 8 + 16


def test_few_values_and_repeated_runs_are_indexed() -> None:
    levels = normal(16)
    clustered = levels[torch.randint(0, 16, (200, 300), generator=torch.Generator().manual_seed(3))]
    assert n_bytes(clustered) / len(check_exact({"w": clustered})) > 7.8
    period = torch.cos(torch.arange(256) * (2 * torch.pi / 256))
    cosines = period[torch.outer(torch.arange(64), torch.arange(256)) % 256]
    assert n_bytes(cosines) / len(check_exact({"w": cosines})) > 4
    wide = torch.arange(3000.0).sin().repeat(20)
    assert n_bytes(wide) / len(check_exact({"w": wide})) > 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64])
def test_constant_tensors_are_tiny(dtype: torch.dtype) -> None:
    for value in (0.0, 1.0, -3.0):
        assert len(check_exact({"w": torch.full((30, 20), value).to(dtype)})) <= 24
        big = torch.full((300, 500), value).to(dtype)
        assert len(check_exact({"w": big})) <= 24 + n_bytes(big) / 8192


def test_integers_use_planes() -> None:
    counts = torch.randint(0, 200, (5000,), generator=torch.Generator().manual_seed(3)).to(torch.int64)
    assert len(check_exact({"w": counts})) < 5000 + 100
    signed = (30 * normal(5000)).to(torch.int8)
    assert len(check_exact({"w": signed})) < 0.9 * 5000
    phases = torch.complex(normal(50, 60), normal(50, 60, seed=1))
    assert n_bytes(phases) / len(check_exact({"w": phases})) > 1.17


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from([*FLOATS, *SMALL_FLOATS, "complex64", "int32"]),
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    n=st.integers(1, 600),
    n_rows=st.sampled_from([1, 2, 8, 16]),
    mask=st.sampled_from([2**64 - 1, 0, 0x7F80FFFF7F807C00, 0xFFFF0000FFFF0000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bit_pattern_comes_back(name: str, words: list[int], n: int, n_rows: int, mask: int, seed: int) -> None:
    dtype, rng = DTYPES[name], np.random.default_rng(seed)
    noise = rng.integers(0, 2**64, n * n_rows * dtype.itemsize // 8 + 1, dtype=np.uint64)
    bits = np.array(words, np.uint64)[rng.integers(0, len(words), len(noise))] ^ (noise & np.uint64(mask))
    raw = bits.view(np.uint8)[: n * n_rows * dtype.itemsize].copy()
    data = check_exact({"w": from_bits(raw, dtype, (n_rows, n))})
    assert len(data) <= raw.nbytes + 12


def damaged(data: bytes, source: random.Random) -> bytes:
    out = bytearray(data)
    action = source.randrange(4)
    if action == 0:
        for _ in range(source.randint(1, 6)):
            out[source.randrange(len(out))] ^= 1 << source.randrange(8)
    elif action == 1:  # the little that is not symbols is at the start
        for _ in range(source.randint(1, 3)):
            out[source.randrange(min(len(out), 40))] = source.randrange(256)
    elif action == 2:
        del out[source.randrange(len(out)) :]
    else:
        start = source.randrange(len(out))
        out[start : start + source.randint(1, 60)] = source.randbytes(source.randint(0, 60))
    return bytes(out)


def test_damage_is_an_archive_error_or_wrong_values() -> None:
    spread = normal(30, 40) * torch.exp2(4 * normal(30, 1, seed=1))
    examples = [
        spread,
        spread.bfloat16(),
        torch.where(spread > 0, spread, torch.zeros(())),
        spread.double()[:10].contiguous(),
        spread.to(torch.float8_e5m2),
        normal(5)[torch.arange(1000) % 5].reshape(20, 50),
        torch.cos(torch.arange(0, 1200) % 300).float(),
        torch.zeros(5000),
        torch.arange(2000) % 200,
        torch.tensor(1.5),
    ]
    source = random.Random(7)
    n_wrong = n_refused = 0
    for tensor in examples:
        tensors = {"w": tensor}
        entries, data = entries_of(tensors), encode_lossless(tensors)
        unit = data[1 if data[0] < 0x80 else 2 :]
        for _ in range(150):
            hostile = damaged(unit, source)
            try:
                restored = LosslessReader(entries, encode_varint(len(hostile)) + hostile).restore()["w"]
            except ArchiveError:
                n_refused += 1
            else:
                assert restored.shape == tensor.shape
                assert restored.dtype == tensor.dtype
                n_wrong += 1
    assert n_wrong > 50
    assert n_refused > 50


def test_garbage_is_an_archive_error() -> None:
    source = random.Random(8)
    entries = [TensorEntry("w", "float32", (20, 30))]
    for form in [*range(8), 255]:
        for _ in range(60):
            unit = bytes([form]) + source.randbytes(source.choice([0, 2, 10, 100, 2400]))
            if form == 6 and len(unit) > 10:  # let the widths be possible
                unit = bytes([6, unit[1] & 0x87, 0]) + unit[3:]
            try:
                restored = LosslessReader(entries, encode_varint(len(unit)) + unit).restore()
            except ArchiveError:
                continue
            assert restored["w"].shape == (20, 30)


@pytest.mark.parametrize("form", range(8))
def test_sizes_beyond_all_reason_are_refused_before_anything_is_allocated(form: int) -> None:
    unit = bytes([form]) + bytes(40)
    for shape in ((1 << 40,), (1 << 20, 1 << 20), (40 * 32768,)):
        with pytest.raises(ArchiveError, match="'w'"):
            LosslessReader([TensorEntry("w", "float32", shape)], encode_varint(len(unit)) + unit)


def test_a_zstd_frame_that_states_too_much_is_refused() -> None:
    frame = bytes.fromhex("28b52ffde0") + (1 << 40).to_bytes(8, "little") + bytes.fromhex("010000")
    unit = bytes([1]) + encode_varint(len(frame)) + frame
    reader = LosslessReader([TensorEntry("w", "float32", (10,))], encode_varint(len(unit)) + unit)
    with pytest.raises(ArchiveError, match="cannot be restored"):
        reader.restore()


def test_sections_that_do_not_fit_the_entries_are_refused() -> None:
    tensors = {"a": normal(5), "b": normal(6)}
    data = encode_lossless(tensors)
    entries = entries_of(tensors)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ArchiveError):
            LosslessReader(entries, wrong)
    reader = LosslessReader([TensorEntry("a", "float32", (4,)), entries[1]], data)
    with pytest.raises(ArchiveError):
        reader.restore()


def test_encoding_is_the_same_every_time() -> None:
    tensors = {"w": normal(100, 100), "c": normal(5000).sin()}
    assert encode_lossless(tensors) == encode_lossless(tensors)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    first=st.integers(-3000, 3000),
    octave=st.sampled_from([0, 1, 2, 8]),
    special=st.none() | st.integers(0, 1000),
)
def test_tables_are_written_and_read(counts: list[int], first: int, octave: int, special: int | None) -> None:
    table = fit_histogram(np.array(counts), first, octave, special)
    out = BitWriter()
    table.write(out, octave)
    reader = BitReader(out.to_bytes(), "test")
    assert Histogram.read(reader, octave, special=special is not None) == table
    reader.finish()
    for index, count in enumerate(counts):
        if count:
            assert 0 <= first + index - table.shift < len(table.weights)


def test_tables_are_close_to_the_entropy() -> None:
    symbols = np.rint(np.random.default_rng(0).normal(0, 6, 20000)).astype(np.int32)
    counts = np.bincount(symbols - symbols.min())
    table = fit_histogram(counts, int(symbols.min()))
    stream = encode_arrays([(symbols - table.shift, table)])
    used = counts[counts > 0]
    assert 8 * len(stream) < 1.005 * float(-(used * np.log2(used / used.sum())).sum()) + 64
    assert (ArrayDecoder(stream, "test").take(len(symbols), table) + table.shift == symbols).all()


def test_impossible_tables_and_streams_are_refused() -> None:
    out = BitWriter()
    out.write_exp_golomb(MAX_SYMBOLS + 1, 3)
    with pytest.raises(ArchiveError, match="too many"):
        Histogram.read(BitReader(out.to_bytes() + bytes(9000), "test"))
    out = BitWriter()
    out.write(127, 7)
    with pytest.raises(ArchiveError, match="level"):
        Histogram.read(BitReader(out.to_bytes(), "test"), special=True)
    with pytest.raises(ArchiveError, match="zero byte"):
        ArrayDecoder(b"\1\0", "test")
    with pytest.raises(ArchiveError, match="symbols"):
        ArrayDecoder(b"\1", "test").take(1 << 40, Histogram(0, (4, 4)))
    with pytest.raises(ArchiveError, match="0 kinds"):
        ArrayDecoder(b"\1", "test").take(1, Histogram(0, ()))


def test_arrays_choose_the_smallest_form() -> None:
    rng = np.random.default_rng(0)
    for words, form in (
        (rng.integers(0, 256, 500, dtype=np.uint8), 0),
        (np.tile(rng.integers(0, 2**32, 40, dtype=np.uint32), 30), 1),
        (np.full(9, 7, np.uint16), 2),
        (rng.integers(0, 2**16, 900).astype(np.uint64), 3),
        (rng.binomial(20, 0.5, 900).astype(np.uint8), 4),
        (np.zeros(0, np.uint8), 0),
    ):
        data = pack_array(words)
        cursor = ByteCursor(data, "test")
        assert data[0] == form
        assert (unpack_array(cursor, len(words), words.dtype) == words).all()
        cursor.finish()
