"""What a checkpoint tells of the inputs of its layers, and of the quality that it needs."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import wcompress
from wcompress.cli import cli as main
from wcompress.codec.container import groups
from wcompress.codec.quantiser.step_scales import BOTH, FIRST, SECOND, WHOLE
from wcompress.codec.rate_control.default_quality import default_quality, error_growth_db
from wcompress.codec.rate_control.norm_inputs import followed_by_norm, input_moments, moments_by_gains
from wcompress.codec.rate_control.step_rule import StepRule


class Bottleneck(nn.Module):
    """A residual block without an activation at its end, with a depthwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.conv2 = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * width)
        self.conv3 = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return x + self.bn3(self.conv3(inner))


def network(seed: int = 0, width: int = 16) -> nn.Sequential:
    """Blocks behind a stem, with gains that differ and the statistics that go with them."""
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
    model = nn.Sequential(stem, Bottleneck(width), Bottleneck(width), Bottleneck(width))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data = torch.exp(0.5 * torch.randn(norm.num_features))
            norm.bias.data = 0.7 * torch.randn(norm.num_features)
            norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 12, 12))
    return model.eval()


def true_moments(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].double().square().mean((0, 2, 3))

        return hook

    handles = [
        module.register_forward_pre_hook(note(f"{name}.weight"))  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.randn(64, 3, 12, 12))
    for handle in handles:
        handle.remove()
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([(values.double() + 1e-4).log() for values in (a, b)]))[0, 1])


def test_moments_follow_from_the_norms_before() -> None:
    model = network()
    tensors, true = model.state_dict(), true_moments(model)
    followed = followed_by_norm(tensors)
    assert followed["1.conv2.weight"] == "1.bn2."
    found = input_moments(tensors, followed)
    # Of the stem no input is known; of all others, residual sums among them, it is, but where each row has its own.
    assert set(found) == {name for name in followed if "conv1" in name or "conv3" in name}
    for name in found:
        assert correlation(found[name], true[name]) > 0.9, name
        assert float((found[name].mean() / true[name].mean()).log().abs()) < 0.5, name


def test_names_in_alphabetical_order_tell_as_much() -> None:
    tensors = network().state_dict()
    in_order = OrderedDict((name, tensors[name]) for name in sorted(tensors))
    assert followed_by_norm(in_order) == followed_by_norm(tensors)
    found, expected = (input_moments(t, followed_by_norm(t)) for t in (in_order, tensors))
    assert set(found) >= set(expected) - {"1.conv1.weight"}
    for name, moments in found.items():
        assert correlation(moments, expected[name]) > 0.9


def test_what_no_norm_explains_is_left_out() -> None:
    tensors = dict(network().state_dict())
    for name in tensors:
        if name.endswith("running_mean"):
            tensors[name] = torch.randn(tensors[name].shape) * tensors[name.replace("mean", "var")].sqrt()
    assert not input_moments(tensors, followed_by_norm(tensors))
    broken = dict(network().state_dict())
    broken["2.bn1.running_mean"][0] = float("nan")
    assert "2.conv1.weight" not in input_moments(broken, followed_by_norm(broken))


def transformer(opposed: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    gains = torch.exp(0.5 * torch.randn(64))
    matrix = torch.randn(256, 64)
    return {
        "norm.weight": gains,
        "norm.bias": torch.zeros(64),
        "up.weight": matrix / gains if opposed else matrix,
        "down.weight": torch.randn(64, 256),
    }


def test_columns_that_make_up_for_gains() -> None:
    tensors = transformer(opposed=True)
    found = moments_by_gains(tensors, tensors)
    assert set(found) == {"up.weight"}
    assert correlation(found["up.weight"], tensors["norm.weight"].square()) > 0.95
    none = transformer(opposed=False)
    assert not moments_by_gains(none, none)
    # A bias is no gain, whatever its values.
    biased = {name.replace("norm.weight", "up.bias"): tensor for name, tensor in tensors.items()}
    assert not moments_by_gains(biased, biased)


def test_steps_by_inputs() -> None:
    tensors = transformer(opposed=True)
    coded = {name: tensors[name] for name in ("up.weight", "down.weight")}
    rule = StepRule.of(tensors, coded, by_sqnr=False)
    assert rule.scales.kinds == (SECOND, WHOLE)
    steps = torch.tensor(rule.scales.exponents[0]) / 4
    assert correlation(torch.exp2(steps), 1 / tensors["norm.weight"]) > 0.95
    assert StepRule.of(tensors, coded, by_sqnr=True).scales.is_plain
    tensors = network().state_dict()
    coded = {name: tensors[name] for name in ("1.conv1.weight", "1.conv2.weight", "1.conv3.weight")}
    rule = StepRule.of(tensors, coded, by_sqnr=False)
    assert rule.scales.kinds == (BOTH, FIRST, BOTH)
    part = rule.of_parts([(2, slice(4, 8))], [16])
    assert part.scales.exponents[0] == (*rule.scales.exponents[2][4:8], *rule.scales.exponents[2][16:])


def test_outputs_gain_by_steps_that_follow_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    tensors, true = model.state_dict(), true_moments(model)
    names = ["1.conv1.weight", "1.conv3.weight", "3.conv1.weight", "3.conv3.weight"]
    coded = {name: tensors[name] for name in names}
    noises = []
    for _ in range(2):
        scales = StepRule.of(tensors, coded, by_sqnr=False).scales
        noises.append([])
        for name, kind, row in zip(names, scales.kinds, scales.exponents, strict=True):
            n_rows, n_columns = tensors[name].shape[:2]
            columns = torch.tensor(row[n_rows:] if kind == BOTH else (0,) * n_columns) / 4
            # At as many bits: steps whose mean logarithm is the same.
            noises[-1].append(float((torch.exp2(2 * (columns - columns.mean())) * true[name]).sum()))
        monkeypatch.setattr("wcompress.codec.rate_control.step_rule.input_moments", lambda *_arguments: {})
    for name, noise, without in zip(names, *noises, strict=True):
        assert noise < 0.85 * without, name


@pytest.mark.parametrize("effort", [1, 2])
def test_steps_by_inputs_in_groups_and_under_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: int
) -> None:
    model = network(width=24)
    tensors = model.state_dict()
    path = tmp_path / "m.wcz"
    ruled = wcompress.pack(tensors, path, tensor={"2.conv3.weight": "6"}, effort=effort)
    assert ruled.choices[0].bits_per_weight == pytest.approx(6, abs=0.2)
    monkeypatch.setattr(groups, "MOST_TOGETHER", 4_000)
    monkeypatch.setattr(groups, "GROUP_SIZE", 3_000)
    told = wcompress.pack(tensors, path, force=True, effort=effort, dry_run=True)
    result = wcompress.pack(tensors, path, force=True, effort=effort)
    assert told.archive_bytes == pytest.approx(result.archive_bytes, rel=0.2)
    assert result.worst is not None
    assert result.worst.sqnr_db > 25
    assert wcompress.verify(path, tensors).ok


def recurrent(strength: float, kind: type[nn.RNNBase] = nn.LSTM) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = kind(8, 32, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight_hh" in name:
                parameter *= strength
    return {f"rnn.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_errors_that_grow_from_step_to_step_take_more(kind: type[nn.RNNBase]) -> None:
    calm, wild = recurrent(1.0, kind), recurrent(20.0, kind)
    assert error_growth_db(wild) > error_growth_db(calm) + 10
    assert default_quality(wild).sqnr_db > default_quality(calm).sqnr_db + 3
    assert default_quality(calm).sqnr_db == pytest.approx(22 + 8 + 1.25, abs=0.01)
    assert "errors grow by" in default_quality(wild).reason
    # What cannot be run counts as any.
    odd = {name: tensor[:-1] if "weight_hh" in name else tensor for name, tensor in wild.items()}
    assert default_quality(odd).sqnr_db == default_quality(calm).sqnr_db
    meta = {name: tensor.to("meta") for name, tensor in wild.items()}
    assert default_quality(meta).sqnr_db == default_quality(calm).sqnr_db


def test_layers_that_follow_no_input_count_as_any() -> None:
    alive = recurrent(1.0)
    dead = {name.replace("rnn.", "dead."): torch.zeros_like(tensor) for name, tensor in alive.items()}
    assert error_growth_db(dead) == 0
    assert default_quality({**alive, **dead}).sqnr_db - default_quality(alive).sqnr_db < 4  # for more layers


@pytest.mark.parametrize(
    "changed",
    [
        {"weight_ih_l0_reverse": torch.ones(128, 9)},
        {"bias_ih_l0": torch.ones(128, 1), "bias_hh_l0": torch.ones(128, 1)},
        {"bias_ih_l0": torch.tensor(1.0)},
        {"weight_ih_l0": torch.ones(128, 8, device="meta")},
    ],
)
def test_layers_that_cannot_be_run_are_left_out(changed: dict[str, Tensor]) -> None:
    tensors = recurrent(1.0) | {f"rnn.{name}": tensor for name, tensor in changed.items()}
    assert default_quality(tensors).sqnr_db >= 30


@pytest.mark.parametrize(
    "changed",
    [
        {"1.conv3.weight": torch.zeros(16, 64, 1, 1).to(torch.float8_e4m3fn)},
        {"1.conv3.weight": torch.ones(0, 64, 1, 1), "1.bn3.running_var": torch.ones(0)},
        {"1.bn3.running_var": torch.ones(1, 16, 1, 1), "1.bn3.running_mean": torch.ones(1, 16, 1, 1)},
        {"1.bn3.running_var": torch.tensor(1.0), "1.bn3.running_mean": torch.tensor(1.0)},
        {"1.bn3.running_var": torch.ones(16, 1, dtype=torch.int64)},
        {"1.bn3.running_var": torch.ones(16, dtype=torch.complex64)},
    ],
)
@pytest.mark.parametrize("alphabetical", [False, True])
def test_odd_norms_are_left_out(tmp_path: Path, changed: dict[str, Tensor], alphabetical: bool) -> None:
    tensors = dict(network().state_dict()) | changed
    tensors = {name: tensors[name] for name in sorted(tensors)} if alphabetical else tensors
    assert "1.conv3.weight" not in input_moments(tensors, followed_by_norm(tensors)) or len(changed) == 1
    wcompress.pack(tensors, tmp_path / "m.wcz", effort=1)
    assert wcompress.verify(tmp_path / "m.wcz").ok


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_pack_says_what_it_decided_and_why(tmp_path: Path, more: list[str]) -> None:
    torch.save(network().state_dict(), tmp_path / "m.pt")
    arguments = ["pack", str(tmp_path / "m.pt"), "--effort", "1", *more]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0
    assert "the default for 10 layers, with batch normalisation." in found.output
    wanted = {"sqnr_db": pytest.approx(40.2, abs=0.05), "reason": "10 layers, with batch normalisation"}
    found = CliRunner().invoke(main, [*arguments, "-f", "--json"])
    assert json.loads(found.stdout)["quality"] == wanted
    found = CliRunner().invoke(main, [*arguments, "-f", "--json", "--sqnr", "20"])
    assert json.loads(found.stdout)["quality"] is None
