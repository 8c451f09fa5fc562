"""Bits, tables and coded arrays: what is written is read, and hostile input is refused."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcompress.entropy.bits import BitReader, BitWriter, unzigzag, zigzag
from wcompress.entropy.coder import Decoder, Encoder
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.errors import ArchiveError


@given(st.lists(st.tuples(st.sampled_from(["bits", "rice", "golomb"]), st.integers(0, 5000), st.integers(0, 12))))
def test_bits_round_trip(items: list[tuple[str, int, int]]) -> None:
    writer = BitWriter()
    items = [(kind, value, k) for kind, value, k in items if kind != "rice" or value >> k < 40]
    for kind, value, k in items:
        if kind == "bits":
            writer.write(value, 13)
        elif kind == "rice":
            writer.write_rice(value, k)
        else:
            writer.write_exp_golomb(value, k)
    data = writer.to_bytes()
    assert len(data) == -(-writer.n_bits // 8)
    reader = BitReader(data, "test")
    for kind, value, k in items:
        read = {"bits": lambda _k: reader.read(13), "rice": reader.read_rice, "golomb": reader.read_exp_golomb}[kind](k)
        assert read == value
    reader.finish()


@given(st.integers(-(10**6), 10**6))
def test_zigzag(value: int) -> None:
    assert unzigzag(zigzag(value)) == value
    assert zigzag(value) >= 0


def test_literal_codes() -> None:
    writer = BitWriter()
    writer.write_exp_golomb(4)  # 4 + 1 = 101 in binary: two ones, a zero, then 01
    writer.write_rice(5, 1)  # 5 >> 1 = 2: two ones, a zero, then 1
    assert writer.to_bytes() == bytes([0b11001110, 0b10000000])


def test_bits_that_run_out_are_refused() -> None:
    with pytest.raises(ArchiveError, match="ends"):
        BitReader(b"", "test").read(1)
    with pytest.raises(ArchiveError, match="too long"):
        BitReader(b"\xff" * 9, "test").read_exp_golomb()
    with pytest.raises(ArchiveError, match="too many"):
        BitReader(b"\x00\x00", "test").finish()
    with pytest.raises(ArchiveError, match="too many"):
        BitReader(b"\x01", "test").finish()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any))
def test_tables_round_trip_and_are_near_the_counts(half: list[int]) -> None:
    counts = np.array([*half[:0:-1], *half], dtype=np.float64)
    table = fit_table(counts)
    writer = BitWriter()
    table.write(writer)
    assert FrequencyTable.read(BitReader(writer.to_bytes(), "test")) == table
    assert table.limit == max(i for i, count in enumerate(half) if count)
    assert table.weights.min() >= 1
    assert np.array_equal(table.weights, table.weights[::-1])


def test_a_table_costs_little_more_than_the_entropy() -> None:
    k = np.arange(-30, 31)
    counts = np.round(1e5 * np.exp(-np.abs(k) / 4.0))
    table = fit_table(counts)
    p = counts / counts.sum()
    edge = table.limit
    inside = counts[30 - edge : 30 + edge + 1]
    bits = float(inside @ table.bits) / counts.sum()
    entropy = float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    assert entropy <= bits < entropy + 0.002


def test_hostile_tables_are_refused() -> None:
    writer = BitWriter()
    writer.write_exp_golomb(5000, 2)
    with pytest.raises(ArchiveError, match="magnitude"):
        FrequencyTable.read(BitReader(writer.to_bytes(), "test"))
    writer = BitWriter()
    writer.write_exp_golomb(1, 2)
    writer.write_exp_golomb(zigzag(-5), 1)
    with pytest.raises(ArchiveError, match="level"):
        FrequencyTable.read(BitReader(writer.to_bytes() + b"\0", "test"))


def make_table(scale: float, limit: int) -> FrequencyTable:
    return fit_table(np.round(1e4 * np.exp(-np.abs(np.arange(-limit, limit + 1)) / scale)) + 1)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_arrays_round_trip(seed: int, n_arrays: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [make_table(scale, limit) for scale, limit in ((1.0, 3), (5.0, 40), (1.0, 0))]
    arrays = [rng.integers(-t.limit, t.limit + 1, rng.integers(0, 50)).astype(np.int32) for t in tables][:n_arrays]
    encoder = Encoder()
    for array, table in zip(arrays, tables, strict=False):
        encoder.add_uniform([len(array)], [64])
        encoder.add(array, table)
        encoder.add_bits(np.abs(array), 6)
    decoder = Decoder(encoder.to_bytes(), "test")
    for array, table in zip(arrays, tables, strict=False):
        assert list(decoder.take_uniform([64])) == [len(array)]
        assert np.array_equal(decoder.take(len(array), table), array)
        assert np.array_equal(decoder.take_bits(len(array), 6), np.abs(array))


def test_coding_costs_what_the_table_says() -> None:
    rng = np.random.default_rng(0)
    symbols = np.clip(np.rint(rng.laplace(scale=1.5, size=50_000)), -20, 20).astype(np.int32)
    table = fit_table(np.bincount(symbols + 20, minlength=41).astype(np.float64))
    encoder = Encoder()
    encoder.add(symbols, table)
    expected = table.bits[symbols + table.limit].sum() / 8
    assert abs(len(encoder.to_bytes()) - expected) < 0.001 * expected + 8


@given(st.binary(max_size=200))
def test_garbage_decodes_to_something_or_is_refused(data: bytes) -> None:
    try:
        decoder = Decoder(data, "test")
        symbols = decoder.take(500, make_table(3.0, 20))
        list(decoder.take_uniform([7, 4096]))
    except ArchiveError:
        return
    assert len(symbols) == 500
    assert np.abs(symbols).max() <= 20


def test_counts_are_bounded_before_the_coder_sees_them() -> None:
    decoder = Decoder(b"\1\2\3\4\5", "test")
    for n_symbols in (2**40, 2**62, -1):
        with pytest.raises(ArchiveError, match="symbols"):
            decoder.take(n_symbols, make_table(1.0, 3))
    with pytest.raises(ArchiveError, match="range"):
        list(decoder.take_uniform([0]))


@settings(deadline=None)
@given(st.binary(min_size=8, max_size=200), st.integers(1, 400), st.floats(0.05, 60.0))
def test_streams_decode_as_constriction_decodes_them(data: bytes, limit: int, scale: float) -> None:
    """Noise too, and beyond the end of the stream."""
    data = data[: len(data) // 4 * 4 - 1] + b"\1"
    table = make_table(scale, limit)
    n_bits, n_values = 11, 5000
    theirs = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
    ours = Decoder(data, "test")
    model = constriction.stream.model.Categorical(table.weights.astype(np.float64), perfect=False)
    assert np.array_equal(ours.take(40, table), theirs.decode(model, 40) - table.limit)
    uniform = constriction.stream.model.Uniform(1 << n_bits)
    assert np.array_equal(ours.take_bits(7, n_bits), theirs.decode(uniform, 7))
    odd = theirs.decode(constriction.stream.model.Uniform(n_values), 1)[0]
    assert list(ours.take_uniform([n_values])) == [odd]
    assert np.array_equal(ours.take(200, table), theirs.decode(model, 200) - table.limit)
