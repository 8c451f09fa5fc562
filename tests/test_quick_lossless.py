"""Method `lossless` at low effort: quicker, nearly as small, still every bit, and safe with damaged bytes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import constriction
import numpy as np
import pytest
import torch

import wcompress
from tests.test_lossless import DTYPES, FLOATS, SMALL_FLOATS, damaged, entries_of, from_bits, n_bytes, normal
from wcompress.archive import ArchiveReader
from wcompress.codec.container.manifest import TensorEntry
from wcompress.codec.methods.lossless import LosslessReader, encode_lossless
from wcompress.codec.storage.quick_fields import QUICK_FIELDS
from wcompress.entropy.histogram import ArrayDecoder, encode_arrays, fit_histogram
from wcompress.errors import ArchiveError
from wcompress.fidelity import compare, same_bits
from wcompress.wire import encode_varint

CODED = [name for name in FLOATS + SMALL_FLOATS if name != "float8_e8m0fnu"]


def check_exact(tensor: torch.Tensor) -> bytes:
    tensors = {"w": tensor}
    data = encode_lossless(tensors, quick=True)
    restored = LosslessReader(entries_of(tensors), data).restore()["w"]
    assert same_bits(tensor, restored)
    restored.zero_()  # its own memory, writable
    return data


def form_of(tensor: torch.Tensor) -> int:
    data = encode_lossless({"w": tensor}, quick=True)
    return next(byte for place, byte in enumerate(data) if place and data[place - 1] < 0x80)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("n", [4200, 10_001, 10_002, 10_003])
def test_floats_come_back_and_are_smaller(name: str, n: int) -> None:
    tensor = (torch.pi * normal(2 * n).double()).to(DTYPES[name])
    assert (form_of(tensor) == QUICK_FIELDS) == (tensor.element_size() > 1)
    assert len(check_exact(tensor)) < 0.97 * n_bytes(tensor)


@pytest.mark.parametrize("name", CODED)
def test_every_bit_pattern_comes_back(name: str) -> None:
    dtype = DTYPES[name]
    raw = np.random.default_rng(1).integers(0, 256, 20_000 * dtype.itemsize, dtype=np.uint8)
    assert len(check_exact(from_bits(raw, dtype, (100, 200)))) <= raw.nbytes + 8
    mixed = normal(150, 200).to(dtype)
    # NaN payloads, infinities, denormals and both zeros among ordinary numbers.
    odd = from_bits(raw, dtype, (20_000,))[:400]
    mixed.reshape(-1)[5000:5400] = odd
    mixed.reshape(-1)[:2] = torch.tensor([0.0, -0.0]).to(dtype)
    check_exact(mixed)


def test_what_suits_other_forms_is_written_in_them() -> None:
    zeros = torch.where(normal(200, 300, seed=1) > 1, normal(200, 300), torch.zeros(()))
    widened = normal(200, 300).bfloat16().float()
    runs = normal(100).repeat(300)
    for tensor in (zeros, widened, runs, torch.zeros(200, 300), normal(30, 30), torch.arange(9000)):
        assert form_of(tensor) != QUICK_FIELDS
        check_exact(tensor)
    assert len(check_exact(torch.zeros(200, 300))) < 100


def test_low_effort_is_larger_and_faster(tmp_path: Path) -> None:
    scales = torch.exp2(normal(1500, 1, seed=1) + normal(1, 700, seed=2))
    tensors = {f"w{i}": (normal(1500, 700, seed=3 + i) * scales).bfloat16() for i in range(4)}
    results = {}
    for effort in (1, 2, 5):
        path = tmp_path / f"{effort}.wcz"
        wcompress.pack(tensors, path, method="lossless", effort=effort, threads=1)  # compiles what is missing
        start = time.process_time()
        result = wcompress.pack(tensors, path, method="lossless", effort=effort, threads=1, force=True)
        results[effort] = result.archive_bytes, time.process_time() - start
        with ArchiveReader(path) as reader:
            assert reader.version == (6 if effort == 5 else 7)
        assert wcompress.verify(path, tensors).lossless
    assert results[1][0] == results[2][0] > 1.03 * results[5][0]
    assert results[1][1] < 0.6 * results[5][1]


def test_archives_do_not_depend_on_threads(tmp_path: Path) -> None:
    tensors = {f"w{i}": normal(1000, 900, seed=i).bfloat16() for i in range(4)}
    for effort in (1, 5):
        found = set()
        for threads in (1, 2, 4):
            wcompress.pack(tensors, tmp_path / "m.wcz", method="lossless", effort=effort, threads=threads, force=True)
            found.add((tmp_path / "m.wcz").read_bytes())
        assert len(found) == 1


def test_damage_is_an_archive_error_or_wrong_values() -> None:
    source = random.Random(3)
    n_refused = n_wrong = 0
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16):
        tensor = (torch.pi * normal(50, 60).double()).to(dtype)
        tensors = {"w": tensor}
        entries, data = entries_of(tensors), encode_lossless(tensors, quick=True)
        unit = data[2 if data[1] < 0x80 else 3 :]
        assert unit[0] == QUICK_FIELDS
        for _ in range(150):
            hostile = damaged(unit, source)
            try:
                restored = LosslessReader(entries, encode_varint(len(hostile)) + hostile).restore()["w"]
            except ArchiveError:
                n_refused += 1
            else:
                assert (restored.shape, restored.dtype) == (tensor.shape, tensor.dtype)
                n_wrong += 1
    assert n_refused > 100
    assert n_wrong > 10


def test_garbage_is_an_archive_error() -> None:
    source = random.Random(8)
    for dtype in ("float32", "bfloat16", "int16"):
        entries = [TensorEntry("w", dtype, (20, 30))]
        for _ in range(200):
            # One symbol, and states and words of any kind.
            head = bytes([QUICK_FIELDS, source.choice([0, 3, 130]), 1]) + encode_varint(source.choice([4096, 4095, 1]))
            unit = head + source.randbytes(16) + encode_varint(source.choice([0, 5, 600, 601])) + source.randbytes(3000)
            with pytest.raises(ArchiveError):
                LosslessReader(entries, encode_varint(len(unit)) + unit).restore()


def test_impossible_tables_are_refused() -> None:
    for numbers, words in (
        ((250, 7, 4096, 0, 0, 0, 0, 0, 0), "exponents"),
        ((0, 0), "exponents"),
        ((0, 257, *([16] * 257)), "exponents"),
        ((100, 2, 4000, 97), "in all"),
        ((100, 2, 1 << 62, 0), "in all"),
    ):
        unit = bytes([QUICK_FIELDS]) + b"".join(map(encode_varint, numbers)) + bytes(60_000)
        reader = LosslessReader([TensorEntry("w", "float32", (20, 30))], encode_varint(len(unit)) + unit)
        with pytest.raises(ArchiveError, match=words):
            reader.restore()


def test_streams_are_those_of_constriction() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        parts, theirs = [], constriction.stream.stack.AnsCoder()
        for n_kinds, n in zip(rng.choice([1, 2, 5, 300, 4000], 3), rng.choice([0, 1, 3, 50, 4000], 3), strict=True):
            symbols = np.clip(rng.normal(n_kinds / 2, n_kinds / 8, n), 0, n_kinds - 1).astype(np.int32)
            table = fit_histogram(np.bincount(symbols, minlength=1), 0)
            parts.append((symbols - table.shift, table))
        for indices, table in reversed(parts):
            if len(indices) and len(table.weights) > 1:
                model = constriction.stream.model.Categorical(table.weights.astype(np.float64), perfect=False)
                theirs.encode_reverse(np.ascontiguousarray(indices, np.int32), model)
        data = encode_arrays(parts)
        assert data == theirs.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        decoder = ArrayDecoder(data, "test")
        for indices, table in parts:
            assert (decoder.take(len(indices), table) == indices).all()


def test_energy_of_what_came_back_is_that_of_finite_weights() -> None:
    weights = normal(300, 400).bfloat16()
    odd = weights.clone()
    odd[3, 4], odd[5, 6] = float("nan"), float("inf")
    energy = float(weights.double().square().sum())
    assert compare({"w": weights}, {"w": weights.clone()}).energy == pytest.approx(energy, rel=1e-12)
    finite = energy - float(weights[3, 4].double() ** 2 + weights[5, 6].double() ** 2)
    assert compare({"w": odd}, {"w": odd.clone()}).energy == pytest.approx(finite, rel=1e-12)
