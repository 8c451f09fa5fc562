"""Refinement's parts: rates, latents, inputs, the engine, the search, and its checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wcompress.checkpoint import read_checkpoint
from wcompress.codec.given import GivenSymbols, archive_bytes, encode_given
from wcompress.codec.restoring import restore_encoded
from wcompress.errors import OptionError, TaskError
from wcompress.refine.distil import default_distance, divergence, relative_error
from wcompress.refine.engine import RefineConfig, Refiner
from wcompress.refine.inputs import Inputs, blobs
from wcompress.refine.margin import Validation
from wcompress.refine.rate import ActivityRates, total_bits
from wcompress.refine.resume import load_state, save_state
from wcompress.refine.search import Candidate, Goal, RefineSearch
from wcompress.refine.variation import deform_images, mix, shift_images, varied
from wcompress.refine.weights import LatentWeights
from wcompress.tasks.digits import load_digits_28


class Toy:
    """Two classes of noise, told apart by the sum of the first four of 16 numbers."""

    name, dataset, n_examples = "toy", "noise", 200

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(1200, 16, generator=generator)
        self.y = (self.x[:, :4].sum(1) > 0).long()

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def calibration(self) -> Iterator[Tensor]:
        yield from self.x[:800].split(100)

    def _score(self, model: nn.Module, part: slice) -> float:
        with torch.no_grad():
            return 100 * float((model(self.x[part]).argmax(1) == self.y[part]).float().mean())

    def validate(self, model: nn.Module) -> float:
        return self._score(model, slice(800, 1000))

    def evaluate(self, model: nn.Module) -> float:
        return self._score(model, slice(1000, 1200))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    task = Toy()
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(task.x[:800]), task.y[:800])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def refiner(trained: dict[str, Tensor], **config: Any) -> Refiner:
    task = Toy()
    inputs = Inputs(task.calibration(), batch_size=64)
    return Refiner(task, read_checkpoint(trained), inputs, default_distance, RefineConfig(**config))


def test_rates_are_dear_in_sparse_rows_and_cheap_in_busy_ones() -> None:
    symbols = torch.zeros(20, 30)
    symbols[3] = 1
    symbols[7, 2] = -2
    rates = ActivityRates([(20, 30)]).fit(symbols.reshape(-1))
    nonzero = rates.nonzero.view(20, 30)
    assert nonzero[3].max() < nonzero[0].min()
    assert nonzero[0, 2] < nonzero[0, 5]  # the busier column
    assert total_bits(rates, symbols.reshape(-1), [600]) < 600


def test_rates_of_a_dense_tensor_are_its_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    symbols = (torch.rand(200, 200, generator=generator) < 0.25).float()
    bits = total_bits(ActivityRates([(200, 200)]).fit(symbols.reshape(-1)), symbols.reshape(-1), [40000])
    # The share of zeros, and a sign for each that is not.
    expected = 40000 * (0.8113 + 0.25)
    assert abs(bits - expected) / expected < 0.03


def test_divergence_is_zero_for_equal_scores_and_ignores_a_shift() -> None:
    scores = torch.randn(5, 7)
    assert float(divergence(scores, scores + 3)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(scores, -scores)) > 0.1


def test_distance_suits_the_output() -> None:
    scores, values = torch.randn(5, 7), torch.randn(5, 3, 4)
    assert float(default_distance(scores, scores + 3)) == pytest.approx(0, abs=1e-6)
    assert float(default_distance(values, values + 3)) > 1
    assert float(default_distance({"a": values}, {"a": values})) == 0
    assert float(relative_error(1e6 * values, 1e6 * values * 0.9)) < 0.02
    with pytest.raises(TaskError, match="no float tensor"):
        default_distance(torch.tensor([1]), torch.tensor([1]))


def test_images_move_and_nothing_else_does() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(50, 20, 20)
    images[:, 10, 10] = 1
    moved = shift_images(images, 2, generator)
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2)), torch.ones(50))
    places = {divmod(int(i), 20) for i in moved.reshape(50, -1).argmax(1)}
    assert len(places) > 10
    assert all(8 <= row <= 12 and 8 <= column <= 12 for row, column in places)
    table = torch.randn(4, 30)
    assert varied(table, generator) is table


def test_few_images_are_deformed_each_its_own_way() -> None:
    images = torch.zeros(40, 3, 24, 20)
    images[..., 6:18, 8:12] = 1
    found = varied(images.half(), torch.Generator().manual_seed(0), few=True)
    assert isinstance(found, Tensor)
    assert (found.shape, found.dtype) == (images.shape, torch.float16)
    assert torch.equal(found, deform_images(images.half(), torch.Generator().manual_seed(0)))
    found = found.float()
    changed = (found - images).abs().mean((1, 2, 3))
    assert 0.005 < changed.min() < changed.max() < 0.12  # a little, and every one
    assert (found[:-1] - found[1:]).abs().mean((1, 2, 3)).min() > 0.005
    assert (found - found[:, :1]).abs().max() == 0  # channels alike
    # What is the same all over stays so: the border goes on outside.
    torch.testing.assert_close(deform_images(images * 0 + 3, torch.Generator().manual_seed(0)), images * 0 + 3)


def test_few_numbers_that_are_no_image_are_mixed() -> None:
    table = torch.randn(20, 5)
    found = mix(table, torch.Generator().manual_seed(0))
    assert torch.equal(found, varied(table, torch.Generator().manual_seed(0), few=True))
    assert torch.equal(found[10:], table[10:])
    assert (found[:10] != table[:10]).any(1).sum() >= 8
    assert (found <= table.max(0).values + 1e-6).all()
    assert (found >= table.min(0).values - 1e-6).all()
    for kept in (torch.arange(20).view(10, 2), (table, table), {"a": table}, torch.randn(20)):
        assert varied(kept, torch.Generator(), few=True) is kept


def test_varied_inputs_keep_what_few_of_them_do_not_show() -> None:
    images, labels, _ = load_digits_28()
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    torch.manual_seed(0)
    for layer in (network[1], network[3]):
        layer.reset_parameters()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[:1200]), labels[:1200]).backward()
        optimizer.step()

    class Digits(Toy):
        def build(self) -> nn.Module:
            return copy.deepcopy(network)

    checkpoint = read_checkpoint({name: value.clone() for name, value in network.state_dict().items()})
    distances = []
    for few in (False, True):
        inputs = Inputs([images[:100]], batch_size=64, max_shift=0, few=few)
        subject = Refiner(Digits(), checkpoint, inputs, default_distance, RefineConfig())
        for number in range(300):
            subject.step(1.0, 1 - number / 300)
        with torch.no_grad():
            distances.append(float(divergence(network(images[1200:]), subject.model(images[1200:]))))
    assert distances[1] < 0.8 * distances[0]


def test_blobs_are_smooth_and_within_bounds() -> None:
    made = blobs((28, 28), 10, torch.Generator().manual_seed(0))
    assert made.shape == (10, 28, 28)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert float((made[:, 1:] - made[:, :-1]).abs().mean()) < 0.5 * float((made[:, 14:] - made[:, :14]).abs().mean())
    assert blobs((3, 8, 8), 2, torch.Generator().manual_seed(0)).shape == (2, 3, 8, 8)
    assert blobs((40,), 2, torch.Generator().manual_seed(0)).shape == (2, 40)


def test_inputs_hold_some_out_and_show_each_once() -> None:
    inputs = Inputs(torch.arange(100).view(100, 1).split(30), batch_size=9)
    held = torch.cat([batch.reshape(-1) for batch in inputs.held_out if isinstance(batch, Tensor)]).tolist()
    assert len(held) == 10
    drawn = [batch for _ in range(10) if isinstance(batch := inputs.draw(), Tensor)]
    seen = torch.cat(drawn).reshape(-1).tolist()
    assert sorted(seen + held) == list(range(100))


def test_inputs_of_several_shapes_and_kinds() -> None:
    ragged = Inputs([torch.zeros(4, 5), torch.zeros(4, 6), torch.zeros(2, 7)], batch_size=64)
    assert {tuple(ragged.draw().shape) for _ in range(4)} == {(4, 5), (4, 6)}  # type: ignore[union-attr]
    named = Inputs([{"a": torch.zeros(4, 5), "b": torch.ones(4)}] * 10, batch_size=8).draw()
    assert isinstance(named, dict)
    assert {name: tuple(value.shape) for name, value in named.items()} == {"a": (8, 5), "b": (8,)}
    with pytest.raises(TaskError, match="no batches"):
        Inputs([], batch_size=4)


def test_latents_restore_to_what_the_archive_does(trained: dict[str, Tensor]) -> None:
    task, checkpoint = Toy(), read_checkpoint(trained)
    model = task.build()
    model.load_state_dict(trained)
    weights = LatentWeights(model, checkpoint, start_step=0.5)
    weights.snap_steps()
    weights.write(weights.symbols())
    restored = restore_encoded(checkpoint, encode_given(checkpoint, weights.given({}), block_size=64, latent_dim=4))
    for name, value in model.state_dict().items():
        assert torch.allclose(restored[name], value, rtol=1e-6, atol=0), name


def test_tied_weights_are_one_slot() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30, bias=False))
    model[1].weight = model[0].weight
    checkpoint = read_checkpoint(dict(model.state_dict()))
    weights = LatentWeights(model, checkpoint, start_step=1.0)
    assert [slot.name for slot in weights.slots] == ["0.weight"]
    # A network that holds the two apart gets both moved.
    apart = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30, bias=False))
    apart.load_state_dict(checkpoint.tensors)
    weights = LatentWeights(apart, checkpoint, start_step=1.0)
    assert len(weights.slots[0].targets) == 2
    weights.write(torch.ones(240))
    assert torch.equal(apart[0].weight, apart[1].weight)


def test_given_symbols_of_any_shape_come_back() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": torch.randn(40, 30).half(),
        "b": torch.randn(30),
        "n": 1 + 0.1 * torch.randn(30),
        "c": torch.tensor(3),
    }
    checkpoint = read_checkpoint(tensors)
    symbols = {
        "a": (rng.random((40, 30)) < 0.1).astype(np.int32),
        "b": rng.integers(-9, 9, 30).astype(np.int32),
    }
    given = GivenSymbols(0.5, symbols, {"a": 3, "b": -5}, {"n": torch.full((30,), 2.0)})
    encoded = encode_given(checkpoint, given, effort=3)
    restored = restore_encoded(checkpoint, encoded)
    for name, exponent in (("a", 3), ("b", -5)):
        wanted = torch.from_numpy(symbols[name] * 0.5 * 2 ** (exponent / 4)).to(tensors[name].dtype)
        assert torch.allclose(restored[name], wanted, rtol=1e-3 if name == "a" else 1e-6), name
    assert torch.allclose(restored["n"], torch.full((30,), 2.0), rtol=1e-2)
    assert int(restored["c"]) == 3
    assert archive_bytes(checkpoint, encoded) < 700


def test_refining_makes_symbols_fewer_and_keeps_the_function(trained: dict[str, Tensor]) -> None:
    subject = refiner(trained, lr=0.05)
    before = subject.n_bits()
    for number in range(400):
        subject.step(0.3, 1 - number / 400)
    assert subject.n_bits() < 0.5 * before
    assert subject.held_out_distance() < 0.1
    given = subject.settle()
    # Twelve of the sixteen inputs say nothing: their columns are the first to go.
    used = np.abs(given.symbols["0.weight"]).sum(0)
    assert used[:4].sum() > 2 * used[4:].sum()


def test_a_pull_keeps_weights_near(trained: dict[str, Tensor]) -> None:
    moved = []
    for pull in (0.0, 100.0):
        subject = refiner(trained, pull=pull)
        original = subject._anchor()
        for _ in range(60):
            subject.step(0.3, 1.0, move_steps=False)
        moved.append(float((subject.weights.latents - original).norm()))
    assert moved[1] < 0.5 * moved[0]


def test_inputs_that_come_again_are_answered_once(trained: dict[str, Tensor]) -> None:
    made = refiner(trained)
    calls = []
    made.original.register_forward_hook(lambda *_: calls.append(1))
    made.step(1.0, 1.0)
    n_first = len(calls)
    made.step(1.0, 1.0)
    assert len(calls) == n_first
    drawn = made.inputs.drawn
    pool = made.inputs.pool
    assert drawn is not None
    assert isinstance(pool, Tensor)
    torch.testing.assert_close(made._wanted(pool[drawn], drawn), made.original(pool[drawn]))


def test_a_gradient_much_longer_than_usual_is_cut(trained: dict[str, Tensor]) -> None:
    made = refiner(trained, clip=2.0)
    usual = torch.ones(4)
    made._clipped(usual.clone())
    assert float(made._clipped(usual * 100).norm()) == pytest.approx(2 * float(usual.norm()))
    assert torch.equal(made._clipped(usual * torch.nan), torch.zeros(4))


def test_refining_goes_on_from_its_state_bit_for_bit(trained: dict[str, Tensor]) -> None:
    one, other = refiner(trained), refiner(trained)
    for _ in range(30):
        one.step(0.3, 1.0)
    other.restore(one.state())
    for _ in range(30):
        one.step(0.3, 1.0)
        other.step(0.3, 1.0)
    assert torch.equal(one.weights.latents, other.weights.latents)
    assert torch.equal(one.weights.log_steps, other.weights.log_steps)


def test_batch_norm_statistics_are_measured_again() -> None:
    class Norm(Toy):
        def build(self) -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))

    task = Norm()
    model = task.build()
    model.train()
    for batch in task.calibration():
        model(batch)
    checkpoint = read_checkpoint(dict(model.state_dict()))
    subject = Refiner(task, checkpoint, Inputs(task.calibration(), batch_size=64), default_distance, RefineConfig())
    for _ in range(100):
        subject.step(0.5, 1.0)
    given = subject.settle()
    hidden = (
        task.x[:800]
        @ (2 ** float(subject.weights.log_steps[0]) * torch.from_numpy(given.symbols["0.weight"]).float()).T
    )
    ratio = given.fine["1.running_var"] / hidden.var(0).clamp(min=1e-6)
    live = hidden.var(0) > 1e-3
    assert live.any()
    assert float((ratio[live].log().abs()).median()) < 0.2


def test_a_model_that_fails_on_its_inputs_is_the_tasks_error(trained: dict[str, Tensor]) -> None:
    task = Toy()
    inputs = Inputs([torch.zeros(40, 5)], batch_size=8)
    subject = Refiner(task, read_checkpoint(trained), inputs, default_distance, RefineConfig())
    with pytest.raises(TaskError, match="calibration inputs"):
        subject.step(0.1, 1.0)


def measured(sizes: list[int], drops: list[float]) -> list[Candidate]:
    nothing: Any = None
    # Validated on so many examples that one in a hundred changed is a standard error of 0.1 points.
    return [
        Candidate(nothing, nothing, n, Validation(d, 0.1, 10_000, d), 1.0) for n, d in zip(sizes, drops, strict=True)
    ]


def test_the_smallest_candidate_within_the_drop_wins(trained: dict[str, Tensor]) -> None:
    subject = refiner(trained)
    never: Any = None
    search = RefineSearch(subject, Goal(max_drop=0.4), never, n_steps=1, fixed_bytes=0)
    search.candidates = measured([900, 700, 500, 300], [0.0, 0.2, 0.39, 0.6])
    best = search.best()
    assert best is not None
    assert best.n_bytes == 700  # 0.39 leaves no margin
    search.goal = Goal(n_bytes=600)
    best = search.best()
    assert best is not None
    assert best.n_bytes == 500
    search.candidates = measured([900], [5.0])
    assert search.best() is None
    nearest = search.nearest()
    assert nearest is not None


def test_checkpoints_are_for_their_own_work(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, "key", {"a": torch.ones(2), "b": {"c": 1.5}})
    assert load_state(path, "key")["b"] == {"c": 1.5}
    with pytest.raises(OptionError, match="another model"):
        load_state(path, "other")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(OptionError, match="damaged"):
        load_state(path, "key")
    with pytest.raises(OptionError, match="no checkpoint"):
        load_state(tmp_path / "none", "key")
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
