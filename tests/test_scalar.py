"""The fast ways of scalar quantisation, floors and restoring against plain ones."""

from __future__ import annotations

import constriction
import numpy as np
import numpy.typing as npt
import pytest
import torch

from wcompress.codec.models.class_tables.rates import parametric_rates
from wcompress.codec.models.class_tables.tables import LOW_BITS, count_symbols
from wcompress.codec.quantiser.reconstruction import Levels
from wcompress.codec.quantiser.scalar import quantise, sum_and_farthest
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import (
    BOTH,
    FIRST,
    SECOND,
    WHOLE,
    OwnScales,
    group_indices,
    has_pairs,
    n_exponents,
)
from wcompress.codec.quantiser.trellis import trellis
from wcompress.codec.quantiser.views import Scales, View, divided, look_up
from wcompress.codec.quantiser.viterbi import search, thresholds
from wcompress.codec.rate_control.floors import Groups
from wcompress.codec.rate_control.solution import InSteps, Moments
from wcompress.codec.storage.dtypes import round_to_dtype
from wcompress.codec.storage.outliers import exceptional, is_plain
from wcompress.entropy.bits import BitWriter
from wcompress.entropy.coder import Decoder, Encoder, streams_of
from wcompress.entropy.tables import FrequencyTable, fit_table
from wcompress.fidelity import as_bytes, computable, energy, tensor_energy

SCALAR = trellis(1)
SHAPES = [(64, 40), (7, 300), (16, 8, 48), (12, 10, 3, 3), (2500,), (9, 5, 64)]
LEVELS = Levels(((3, 2, 1), (0, 0, 0)))


def of_one(shape: tuple[int, ...], layout: str) -> Sequencing:
    return Sequencing((shape,), (layout,), 2048, 64)


def layouts(shape: tuple[int, ...]) -> list[str]:
    return ["rows"] if len(shape) < 2 else ["rows", "columns", *(["positions"] if len(shape) > 2 else [])]


CASES = [(shape, layout) for shape in SHAPES for layout in layouts(shape)]


def some_scales(shape: tuple[int, ...], kind: int) -> OwnScales:
    rng = np.random.default_rng(1)
    return OwnScales((tuple(rng.integers(-9, 9, n_exponents(kind, shape)).tolist()),), (kind,))


@pytest.mark.parametrize("step", [0.3, 0.01])
def test_quantising_in_one_reading_finds_what_a_search_does(step: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.laplace(size=5000)
    weights[777], weights[3000:3100] = 40.0, 0.0
    classes = np.repeat(rng.integers(4, 20, 20), 8)[: -(-5000 // 32)].astype(np.int32)
    x = InSteps(weights, step, 40.0)
    levels, rates = LEVELS.array(SCALAR, x.symbol_limit(SCALAR)), parametric_rates(SCALAR, x.symbol_limit(SCALAR))
    wanted = search(x, np.array([0, 4096, 5000]), classes, 5, SCALAR, levels, rates, 0.2)
    symbols, found = quantise(weights, step, classes, 5, thresholds(levels, rates, 0.2), LOW_BITS)
    # A weight may lie on a threshold, to the last digit.
    assert np.count_nonzero(symbols != wanted) <= 1
    assert np.abs(symbols - wanted).max() <= 1
    which = np.zeros(5000, np.uint8)
    assert np.array_equal(found.counts, count_symbols(symbols, which, classes, 5)[:, 0])
    moments, plain = Moments.of_groups(found.groups, found.energy), Moments.of(x, symbols, which, SCALAR)
    for name in ("counts", "nominal", "nominal_squared"):
        assert np.array_equal(getattr(moments, name), getattr(plain, name))
    assert np.allclose(moments.inward[1:4], plain.inward[1:4], atol=1e-2)
    assert moments.energy == pytest.approx(plain.energy, rel=1e-6)


def test_some_of_the_chunks_tell_about_all() -> None:
    weights = np.random.default_rng(0).laplace(size=1 << 16)
    classes = np.full(1 << 11, 14, np.int32)
    levels, rates = Levels().array(SCALAR, 30), parametric_rates(SCALAR, 30)
    bounds = thresholds(levels, rates, 0.2)
    symbols, found = quantise(weights, 0.5, classes, 5, bounds, LOW_BITS)
    part, less = quantise(weights, 0.5, classes, 5, bounds, LOW_BITS, 8)
    looked_at = np.arange(1 << 16) >> 9 & 7 == 0
    assert less.counts.sum() * 8 == found.counts.sum() == 1 << 16
    assert np.array_equal(part[looked_at], symbols[looked_at])


def test_magnitudes() -> None:
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    total, largest = sum_and_farthest(weights)
    assert total == pytest.approx(float(np.abs(weights).sum(dtype=np.float64)))
    assert largest == np.abs(weights).max()
    assert sum_and_farthest(weights[:0]) == (0.0, 0.0)


@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_sums_by_group(shape: tuple[int, ...], layout: str) -> None:
    sequencing = of_one(shape, layout)
    rng = np.random.default_rng(0)
    weights, restored = rng.normal(size=(2, sequencing.n_weights))
    groups = Groups.of(sequencing, 0)
    energies, noises = groups.sums().energy(weights), groups.sums().noise(weights, restored)
    assert list(energies) == list(groups.counts)
    for kind, counts in groups.counts.items():
        of = np.zeros(len(weights), np.int64)
        if kind != WHOLE:
            of = group_indices(sequencing, 0, kind, 0, len(weights))
        assert np.array_equal(counts, np.bincount(of))
        assert np.allclose(energies[kind], np.bincount(of, weights**2), rtol=1e-12)
        assert np.allclose(noises[kind], np.bincount(of, (weights - restored) ** 2), rtol=1e-12)


@pytest.mark.parametrize("kind", [WHOLE, FIRST, SECOND, BOTH])
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_scales_by_row_and_column(shape: tuple[int, ...], layout: str, kind: int) -> None:
    if len(shape) < 2 and kind > FIRST:
        return
    sequencing, own_scales = of_one(shape, layout), some_scales(shape, kind)
    n = sequencing.n_weights
    rng = np.random.default_rng(0)
    weights, symbols = rng.normal(size=n), rng.integers(-5, 6, n).astype(np.int32)
    multipliers = own_scales.multipliers(sequencing, 0, n)
    assert np.array_equal(divided(weights, own_scales, sequencing), weights / multipliers)
    scales = Scales.of(own_scales, sequencing, 0)
    if scales is None:
        assert kind == BOTH
        assert has_pairs(shape)
        assert layout == "positions"
        return
    table = LEVELS.table(SCALAR, 5, 0.1, scales.scales)
    wanted = LEVELS.restored(symbols, np.zeros(n, np.uint8), SCALAR, None, 0.1, multipliers)
    groups = Groups.of(sequencing, 0)
    noises = groups.sums().noise_of(weights, symbols, scales, table)
    for found, plain in zip(noises.values(), groups.sums().noise(weights, wanted).values(), strict=True):
        assert np.allclose(found, plain, rtol=1e-12)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        values = as_bytes(round_to_dtype(table.reshape(-1), dtype)).numpy().view(f"u{dtype.itemsize}")
        some = slice(33, n - 5)
        out = np.empty(n - 38, values.dtype)
        look_up(symbols[some], 33, scales, View.of(sequencing, 0).inner, values.reshape(table.shape), out)
        assert np.array_equal(out, as_bytes(round_to_dtype(wanted[some], dtype)).numpy().view(values.dtype))


def laplacian(n: int, seed: int) -> npt.NDArray[np.int32]:
    return np.rint(np.random.default_rng(seed).laplace(size=n) * 9).astype(np.int32)


def table_of(*arrays: npt.NDArray[np.int32]) -> FrequencyTable:
    limit = max(int(np.abs(array).max()) for array in arrays)
    counts = sum(np.bincount(array + limit, minlength=2 * limit + 1) for array in arrays)
    return fit_table(np.asarray(counts, np.float64))


def by_constriction(symbols: npt.NDArray[np.int32], table: FrequencyTable, lower: npt.NDArray[np.int32]) -> bytes:
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(lower, constriction.stream.model.Uniform(8))
    model = constriction.stream.model.Categorical(table.weights.astype(np.float64), perfect=False)
    coder.encode_reverse(symbols + table.limit, model)
    coder.encode_reverse(np.array([5], np.int32), constriction.stream.model.Uniform(7))
    data: bytes = coder.get_compressed().astype("<u4").tobytes()
    return data.rstrip(b"\0")


@pytest.mark.parametrize("lengths", [(3000, 3000, 3000, 3000), (3000, 10, 700, 1), (50, 2)])
def test_streams_are_those_of_constriction(lengths: tuple[int, ...]) -> None:
    arrays = [laplacian(n, seed) for seed, n in enumerate(lengths)]
    table = table_of(*arrays)
    encoders = []
    for array in arrays:
        encoder = Encoder()
        encoder.add_uniform([5], [7])
        encoder.add(array, table)
        encoder.add_bits(array & 7, 3)
        encoders.append(encoder)
    streams = streams_of(encoders)
    assert streams == [by_constriction(array, table, array & 7) for array in arrays]
    decoders = [Decoder(data, "symbols") for data in streams]
    least = min(lengths)
    assert [next(decoder.take_uniform([7])) for decoder in decoders] == [5] * len(lengths)
    together = Decoder.take_together(decoders, least, table)
    for array, first, decoder in zip(arrays, together, decoders, strict=True):
        assert np.array_equal(np.concatenate([first, decoder.take(len(array) - least, table)]), array)
        assert np.array_equal(decoder.take_bits(len(array), 3), array & 7)


def test_a_symbol_beyond_its_table_is_not_coded() -> None:
    with pytest.raises(ValueError, match="beyond"):
        Encoder().add(np.array([3], np.int32), FrequencyTable((0, 4)))


@pytest.mark.parametrize("levels", [(0,), (3, 0), (0, 9, 12, 40, 41, 128), tuple(range(60))])
def test_the_bits_of_a_table(levels: tuple[int, ...]) -> None:
    out = BitWriter()
    FrequencyTable(levels).write(out)
    assert FrequencyTable(levels).n_bits == out.n_bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_matrix_without_exceptions_is_told_by_its_rows(dtype: torch.dtype) -> None:
    tensor = torch.randn(300, 257, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_plain(tensor)
    assert not len(exceptional(tensor))
    for value in (4000.0, float("nan"), float("-inf")):
        odd = tensor.clone()
        odd[200, 13] = value
        assert not is_plain(odd)
        assert exceptional(odd).tolist() == [200 * 257 + 13]


def test_the_energy_of_a_tensor_is_that_of_its_numbers() -> None:
    tensor = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert tensor_energy(tensor) == energy(computable(tensor).numpy())
