"""Error feedback: paths down columns, errors spread over what is coded later."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wcompress.codec.quantiser.feedback import search_with_feedback
from wcompress.codec.quantiser.reconstruction import LEVEL_UNITS, Levels
from wcompress.codec.quantiser.sensitivity import Feedback, Sensitivity
from wcompress.codec.quantiser.trellis import quantisers, trellis
from wcompress.codec.rate_control.step_rule import StepRule

LIMIT = 40
Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def moments(k: int, n_groups: int = 1, seed: int = 0) -> Doubles:
    """Of inputs that have much to do with each other, as second moments `[n_groups, k, k]`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_groups, 4 * k, max(2, k // 3))) @ rng.normal(size=(n_groups, max(2, k // 3), k))
    x += 0.3 * rng.normal(size=x.shape)
    found: Doubles = x.transpose(0, 2, 1) @ x / x.shape[1]
    return found


def coded(
    x: Singles, feedbacks: list[Feedback], starts: list[int], *, unit: int = 8192, n_states: int = 8, bits: float = 0.2
) -> tuple[npt.NDArray[np.int32], Singles, Singles]:
    """Symbols, what was quantised, and what that is restored to, in steps."""
    magnitudes = np.abs(np.arange(-LIMIT, LIMIT + 1))
    rates = np.broadcast_to((1.0 + 1.3 * np.log2(1 + magnitudes)).astype(np.float32), (1, 2, 2 * LIMIT + 1))
    machine, weights = trellis(n_states), x.copy()
    symbols = search_with_feedback(
        weights,
        np.array(starts, np.int64),
        feedbacks,
        unit,
        np.zeros(len(x), np.int32),
        machine,
        Levels().array(machine, LIMIT),
        np.ascontiguousarray(rates),
        bits,
    )
    units = np.append(np.arange(0, len(x), unit), len(x)).astype(np.int64)
    which = quantisers(symbols, units, machine)
    restored = Levels().units(symbols, which, machine) / LEVEL_UNITS
    return symbols, weights, restored.astype(np.float32)


def cost(error: Doubles, inputs: Doubles) -> float:
    """Of errors `[rows, k]` in the outputs of one group."""
    return float(np.einsum("oi,ij,oj", error, inputs, error))


@pytest.mark.parametrize("unit", [8192, 64, 50])
def test_every_weight_is_near_what_its_path_restores(unit: int) -> None:
    # A state that was lost between columns, units or tensors would restore another weight.
    rng = np.random.default_rng(1)
    shapes = [(30, 12, 1), (20, 6, 9), (7, 5, 1), (16, 1, 9)]
    x = np.concatenate([rng.normal(0, 3, size=rows * channels * inner) for rows, channels, inner in shapes])
    feedbacks = []
    for rows, channels, inner in shapes:
        n_groups = rows if channels == 1 else 1
        one = Sensitivity(rng.uniform(0.5, 2, rows), moments(channels * inner, n_groups)).damped(0.1)
        found = one.feedback((rows, channels, *((3, 3) if inner == 9 else ())))
        feedbacks.append(found.times(-found.log_cost))
    starts = np.cumsum([0, *(rows * channels * inner for rows, channels, inner in shapes)]).tolist()
    symbols, weights, restored = coded(x.astype(np.float32), feedbacks, starts, unit=unit, bits=0.05)
    for feedback, (start, stop), (rows, _, inner) in zip(feedbacks, itertools.pairwise(starts), shapes, strict=True):
        wanted, found = (part[start:stop].reshape(-1, rows, inner) for part in (weights, restored))
        if inner > 1:
            # Within a row, the errors of the taps before are taken from what is told.
            assert feedback.factors is not None
            group = np.arange(rows) // (rows // len(feedback.factors))
            for channel in range(len(wanted)):
                here = slice(channel * inner, (channel + 1) * inner)
                factors = feedback.factors[group][:, here, here]
                for tap in range(inner):
                    error = wanted[channel, :, tap] - found[channel, :, tap]
                    wanted[channel, :, tap + 1 :] -= factors[:, tap, tap + 1 :] * error[:, None]
        assert np.abs(wanted - found).max() < 3
    assert np.abs(symbols).max() <= LIMIT


@pytest.mark.parametrize(("channels", "inner"), [(40, 1), (10, 4), (1, 9)])
def test_feedback_leaves_less_error_in_the_outputs(channels: int, inner: int) -> None:
    rng = np.random.default_rng(2)
    rows, k = 60, channels * inner
    inputs = moments(k)
    x = rng.normal(0, 1.5, size=(channels, rows, inner)).astype(np.float32)
    one = Sensitivity(np.ones(rows), inputs).damped(0.01)
    shape = (rows, channels, *((1, inner) if inner > 1 else ()))
    errors, n_bits = [], []
    for feedback in (one.feedback(shape), one.without_feedback().feedback(shape)):
        scaled = feedback.times(-feedback.log_cost)
        symbols, _, restored = coded(x.reshape(-1), [scaled], [0, x.size])
        error = (x - restored.reshape(x.shape)).transpose(1, 0, 2).reshape(rows, k)
        errors.append(cost(error.astype(np.float64), inputs[0]))
        n_bits.append(float((1 + 1.3 * np.log2(1 + np.abs(symbols))).sum()))
    assert errors[0] < 0.6 * errors[1]
    assert n_bits[0] < 1.1 * n_bits[1]


def test_columns_and_taps_of_one_find_the_same() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, size=(24, 50)).astype(np.float32)
    found = Sensitivity(rng.uniform(0.2, 3, 50), moments(24)).feedback((50, 24))
    as_taps = replace(found, columns=np.repeat(found.columns, 2, 0), factors=np.repeat(found.factors, 2, 0))
    assert found.factors is not None
    straight, _, _ = coded(x.reshape(-1), [found], [0, x.size])
    by_taps, _, _ = coded(x.reshape(-1), [as_taps], [0, x.size])
    assert np.mean(straight != by_taps) < 0.01  # sums in another order


def test_weights_that_matter_more_are_kept_better() -> None:
    rng = np.random.default_rng(4)
    rows = np.concatenate([np.full(50, 0.05), np.full(50, 5.0)])
    x = rng.normal(0, 1, size=(40, 100)).astype(np.float32)
    feedback = Sensitivity(rows, np.eye(40)[None]).feedback((100, 40))
    assert feedback.factors is None
    _, _, restored = coded(x.reshape(-1), [feedback], [0, x.size])
    errors = np.square(x - restored.reshape(x.shape)).mean(0)
    assert errors[50:].mean() < 0.3 * errors[:50].mean()


def test_a_row_of_a_tensor_costs_what_it_did_in_the_whole() -> None:
    rng = np.random.default_rng(5)
    whole = Sensitivity(rng.uniform(0.5, 2, 12), moments(9, 4)).feedback((12, 1, 3, 3))
    some = whole.of_rows(slice(4, 9), 12)
    assert len(some.rows) == len(some.columns) == 5
    assert np.array_equal(some.columns[0], whole.columns[1])  # the fifth row is of the second group
    assert some.factors is not None
    assert whole.factors is not None
    assert np.array_equal(some.factors[-1], whole.factors[2])
    assert whole.of_rows(slice(None), 12) is whole
    embedding = Sensitivity(np.ones(3), rng.uniform(1, 2, (1, 20)), transposed=True).feedback((20, 3))
    assert embedding.layout == "rows"
    assert np.array_equal(embedding.of_rows(np.array([3, 7]), 20).columns, embedding.columns[:, [3, 7]])
    unknown = Sensitivity(np.ones(1), None).feedback((8, 5))
    assert len(unknown.of_rows(slice(2, 4), 8).rows) == 10


def test_steps_follow_what_errors_cost() -> None:
    tensors = {"dear": torch.randn(30, 20), "cheap": torch.randn(30, 20)}
    feedbacks = {
        name: Sensitivity(np.full(30, value), np.eye(20)[None]).feedback((30, 20))
        for name, value in (("dear", 16.0), ("cheap", 1.0))
    }
    rule = StepRule.calibrated(tensors, feedbacks)
    (dear,), (cheap,) = rule.scales.exponents
    assert cheap - dear == 8  # four times the step, two octaves
    assert rule.feedbacks is not None
    assert [float(one.rows.mean() * one.columns.mean()) for one in rule.feedbacks] == pytest.approx([1.0, 1.0], rel=0.2)


def test_inputs_that_are_always_nothing_do_no_harm() -> None:
    inputs = moments(12)
    inputs[:, 3] = inputs[:, :, 3] = 0.0
    feedback = Sensitivity(np.zeros(5), inputs).feedback((5, 12))
    assert np.isfinite(feedback.columns).all()
    assert (feedback.columns > 0).all()
    assert (feedback.rows > 0).all()
    none = Sensitivity(np.ones(5), np.zeros((1, 12, 12))).damped(0.1).feedback((5, 12))
    assert np.isfinite(none.log_cost)
