"""Choices for single tensors: bit for bit, float16, or so many bits a weight, beside any target."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import wcompress
from tests.test_refine import Toy, trained
from wcompress.codec import verifying
from wcompress.codec.options import PackOptions
from wcompress.errors import OptionError, TargetUnreachable
from wcompress.fidelity import same_bits

__all__ = ["trained"]

FAST: dict[str, Any] = {"effort": 1, "device": "cpu", "force": True}
NO_SHRINKING = [phase for phase in Phase if phase is not Phase.shrink]  # each example packs
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model() -> dict[str, torch.Tensor]:
    shared = normal(100, 64, seed=2)
    return {
        "embed.weight": shared,
        "body.0.weight": normal(96, 64),
        "body.0.bias": normal(96, seed=1),
        "body.1.weight": 0.1 * normal(64, 96, seed=3),
        "norm.running_var": normal(64, seed=4).square(),
        "ids": torch.arange(64),
        "head.weight": shared,
    }


def packed(path: Path, source: Any, **options: Any) -> tuple[wcompress.PackResult, dict[str, torch.Tensor]]:
    result = wcompress.pack(source, path, **{**FAST, **options})
    assert wcompress.verify(path, source).ok
    return result, wcompress.load(path)


def choice_of(result: wcompress.PackResult, name: str) -> Any:
    (found,) = [choice for choice in result.choices if choice.tensor == name]
    return found


def tensor_db(original: torch.Tensor, restored: torch.Tensor) -> float:
    w, error = original.double(), original.double() - restored.double()
    return float(10 * torch.log10(w.square().sum() / error.square().sum()))


@pytest.mark.parametrize("method", ["vae", "paper"])
@pytest.mark.parametrize("choice", ["lossless", "keep"])
def test_exact_choices_keep_every_bit(tmp_path: Path, method: str, choice: str) -> None:
    source = model()
    source["body.0.weight"][3, 3], source["body.0.weight"][4, 4] = float("nan"), -0.0
    rest = {"block_size": 64, "latent_dim": 4, "hidden": (16,)} if method == "paper" else {}
    rules = {"body|embed|ids": choice}
    result, restored = packed(tmp_path / "m.wcz", source, tensor=rules, method=method, **rest)
    names = ["embed.weight", "body.0.weight", "body.0.bias", "body.1.weight", "ids"]
    assert [c.tensor for c in result.choices] == names
    for name in names:
        assert same_bits(source[name], restored[name]), name
        bits = choice_of(result, name).bits_per_weight
        own = 8 * source[name].element_size()
        assert bits < own if choice == "lossless" and name != "ids" else bits >= (own if choice == "keep" else 0)
    rows = {row.name: (row.kind, row.kept) for row in wcompress.inspect(tmp_path / "m.wcz").tensors}
    assert all(rows[name] == ("raw", "exact") for name in names)
    assert rows["head.weight"] == ("tie", "exact")


def test_method_lossless_takes_exact_choices(tmp_path: Path) -> None:
    result, restored = packed(tmp_path / "m.wcz", model(), method="lossless", tensor={"body": "keep", "e": "lossless"})
    assert all(same_bits(tensor, restored[name]) for name, tensor in model().items())
    assert choice_of(result, "body.0.weight").kind == "raw"
    assert choice_of(result, "embed.weight").kind == "coded"
    rows = {row.name: (row.kind, row.kept) for row in wcompress.inspect(tmp_path / "m.wcz").tensors}
    assert rows["embed.weight"] == ("coded", "exact")


@settings(max_examples=20, phases=NO_SHRINKING)
@given(dtype=st.sampled_from(DTYPES), power=st.floats(-9, 1), seed=st.integers(0, 99))
def test_fp16_rounds_and_keeps_the_dtype(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, power: float, seed: int
) -> None:
    source = {"w": (10**power * normal(40, 20, seed=seed)).to(dtype), "v": normal(40, 20)}
    source["w"][0, :3] = torch.tensor([0.0, -0.0, float("nan")]).to(dtype)
    if dtype != torch.float8_e4m3fn:
        source["w"][0, 3] = float("inf")
    result, restored = packed(tmp_path_factory.mktemp("half") / "m.wcz", source, tensor={"^w$": "fp16"})
    expected = source["w"].double().to(torch.float16) if dtype == torch.float64 else source["w"].to(torch.float16)
    if dtype == torch.float64:
        expected = torch.from_numpy(source["w"].numpy().astype("float16"))
    assert restored["w"].dtype == dtype
    assert torch.equal(restored["w"].half().nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(restored["w"].half().isfinite(), source["w"].half().isfinite())
    assert choice_of(result, "w").kind == "raw"
    assert choice_of(result, "w").bits_per_weight <= 22


@pytest.mark.parametrize(("size", "kept"), [(65519.0, False), (65520.0, True), (1e6, True), (-1e30, True)])
def test_fp16_never_becomes_infinite(tmp_path: Path, size: float, kept: bool) -> None:
    source = {"w": normal(64, 64)}
    source["w"][5, 5] = size
    result, restored = packed(tmp_path / "m.wcz", source, tensor={"w": "fp16"})
    assert restored["w"].isfinite().all()
    assert same_bits(source["w"], restored["w"]) == kept
    assert any("float16 ends at 65504" in line and "'w'" in line for line in result.warnings) == kept


TENSORS = {
    "normal": lambda: normal(64, 64),
    "laplace": lambda: normal(70, 80).sign() * normal(70, 80, seed=1).square(),
    "kernels": lambda: normal(32, 16, 3, 3, seed=2),
    "rows": lambda: normal(128, 40) * torch.logspace(-2, 0, 128)[:, None],
    "long": lambda: normal(20_000),
    "wide": lambda: normal(3, 2000),
    "half": lambda: normal(64, 96).half(),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_bits_are_met(tmp_path: Path, kind: str) -> None:
    source = {"first": normal(50, 60, seed=9), "w": TENSORS[kind](), "last": normal(30, 64, seed=8)}
    without = {name: tensor for name, tensor in source.items() if name != "w"}
    for bits in (1.5, 4.0, 6.5, 8.0):
        for target in ({}, {"bits_per_weight": bits + 0.7}):
            result, restored = packed(tmp_path / "m.wcz", source, tensor={"^w$": bits}, **target)
            choice = choice_of(result, "w")
            assert (choice.kind, choice.choice) == ("coded", f"{bits:g}")
            assert choice.bits_per_weight == pytest.approx(bits, rel=0.05)
            # By the bytes of the archive: beside the same rest, of which the step stays nearly as it is.
            if not target:
                rest = wcompress.pack(without, tmp_path / "r.wcz", **FAST).archive_bytes
                taken = 8 * (result.archive_bytes - rest) / source["w"].numel()
                assert taken == pytest.approx(bits, rel=0.05, abs=0.25)
            if kind in ("normal", "long"):
                assert tensor_db(source["w"], restored["w"]) > 6.02 * bits - 2.5


@settings(max_examples=10, derandomize=True, phases=NO_SHRINKING)
@given(bits=st.floats(1, 9), other=st.floats(1, 9), sqnr=st.floats(12, 30))
def test_bits_of_any_number_are_met(
    tmp_path_factory: pytest.TempPathFactory, bits: float, other: float, sqnr: float
) -> None:
    source = {"a": normal(64, 64), "b": 30 * normal(80, 64, seed=1), "c": 0.01 * normal(96, 64, seed=2)}
    path = tmp_path_factory.mktemp("bits") / "m.wcz"
    result = wcompress.pack(source, path, tensor={"a": bits, "c": other}, **FAST)
    for name, wanted in (("a", bits), ("c", other)):
        assert choice_of(result, name).bits_per_weight == pytest.approx(wanted, rel=0.05)
    assert result.floors is not None
    assert result.sqnr_db is not None
    free = tensor_db(source["b"], wcompress.load(path)["b"])
    assert free == pytest.approx(22.0, abs=0.3)  # the default is that of the others
    # Nearly all of the energy is b's: at 1 bit the error of a alone comes to 36 dB.
    pooled = wcompress.pack(source, path, tensor={"a": bits, "c": other}, sqnr=sqnr, **FAST)
    assert pooled.sqnr_db is not None
    # The steps of few bits move in jumps, which the others' step cannot always make up for.
    assert sqnr <= pooled.sqnr_db <= sqnr + 3
    for name, wanted in (("a", bits), ("c", other)):
        assert choice_of(pooled, name).bits_per_weight == pytest.approx(wanted, rel=0.05)


RULES: list[dict[str, Any]] = [{"embed": 9}, {"body": "lossless"}, {"body.1": "fp16", "embed": 3}, {".": 6}, {".": 2}]
OUT_OF_REACH = {("sqnr", 2), ("sqnr", 4), ("ratio", 1), ("bits_per_weight", 1)}


@pytest.mark.parametrize("target", [("sqnr", 20.0), ("ratio", 5.0), ("bits_per_weight", 6.0)])
@pytest.mark.parametrize("number", range(len(RULES)))
def test_targets_are_met_beside_rules_or_refused(tmp_path: Path, target: tuple[str, float], number: int) -> None:
    path, rules = tmp_path / "m.wcz", RULES[number]
    options = {**FAST, "tensor": rules, target[0]: target[1]}
    if (target[0], number) in OUT_OF_REACH:
        with pytest.raises(TargetUnreachable, match=r"^[^\n]* is the nearest[^\n]*$"):
            wcompress.pack(model(), path, **options)
        assert not path.exists()
        return
    result, restored = packed(path, model(), **options)
    met = {"sqnr": result.sqnr_db, "ratio": result.ratio, "bits_per_weight": -(result.bits_per_param or 0)}
    assert (met[target[0]] or math.inf) >= (-target[1] if target[0] == "bits_per_weight" else target[1])
    for choice in result.choices:
        if choice.kind == "coded":
            assert choice.bits_per_weight == pytest.approx(float(choice.choice), rel=0.05)
        else:
            assert same_bits(model()[choice.tensor], restored[choice.tensor]) == (choice.choice != "fp16")


def test_the_same_at_usual_effort(tmp_path: Path) -> None:
    results = [
        packed(tmp_path / "m.wcz", model(), tensor={"embed": 5, "body.1": 2.5}, effort=3, threads=n)[0] for n in (1, 2)
    ]
    assert results[0].sha256 == results[1].sha256
    assert results[0].archive_bytes == results[1].archive_bytes
    assert results[0].choices == results[1].choices
    assert choice_of(results[0], "embed.weight").bits_per_weight == pytest.approx(5, rel=0.05)
    assert choice_of(results[0], "body.1.weight").bits_per_weight == pytest.approx(2.5, rel=0.05)


def test_the_first_rule_that_is_found_counts(tmp_path: Path) -> None:
    rules = [("body.0", "keep"), ("weight", 7), ("body", "lossless"), ("body.0", 3)]
    result, _ = packed(tmp_path / "m.wcz", model(), tensor=rules)
    assert {choice.tensor: choice.rule for choice in result.choices} == {
        "embed.weight": "weight=7",
        "body.0.weight": "body.0=keep",
        "body.0.bias": "body.0=keep",
        "body.1.weight": "weight=7",
    }


def test_no_floor_holds_what_a_rule_chose_and_the_warning_says_so(tmp_path: Path) -> None:
    source = {"w": normal(64, 64) * torch.logspace(-3, 0, 64)[:, None], "v": normal(64, 64, seed=1)}
    result, restored = packed(tmp_path / "m.wcz", source, tensor={"w": 0.7})
    assert choice_of(result, "w").bits_per_weight == pytest.approx(0.7, rel=0.05)
    assert tensor_db(source["v"], restored["v"]) >= 15
    assert any("a row of tensor 'w' keeps only" in line and "as the rule 'w=0.7' chose" in line
               for line in result.warnings)  # fmt: skip
    assert not any("floor" in line for line in result.warnings)
    lost = wcompress.pack(source, tmp_path / "m.wcz", tensor={"w": 8}, sqnr=3.0, **FAST)
    assert any("'v' keeps only" in line and "ask for more bits" in line for line in lost.warnings)


def test_what_takes_less_bit_for_bit_is_kept_so(tmp_path: Path) -> None:
    source = {
        "mask": torch.ones(64, 64).tril(),
        "few": torch.randint(-8, 8, (64, 64), generator=torch.Generator().manual_seed(0)).float() * 0.1,
        "brain": normal(64, 64).bfloat16(),
        "w": normal(64, 64, seed=1),
    }
    result, restored = packed(tmp_path / "m.wcz", source, tensor={"mask|few": 5, "brain": 14, "w": 5})
    assert [choice.kind for choice in result.choices] == ["raw", "raw", "raw", "coded"]
    assert all(same_bits(source[name], restored[name]) for name in ("mask", "few", "brain"))


def test_bits_that_no_step_gives_are_told(tmp_path: Path) -> None:
    result, restored = packed(tmp_path / "m.wcz", {"w": normal(64, 64), "v": normal(64, 64)}, tensor={"w": 20})
    assert any("'w' takes" in line and "not the 20 that a rule chose" in line for line in result.warnings)
    assert tensor_db(normal(64, 64), restored["w"]) > 60


def test_far_weights_do_not_coarsen_a_tensor(tmp_path: Path) -> None:
    w = normal(64, 64)
    w[5, 7] = 1e9
    result, restored = packed(tmp_path / "m.wcz", {"w": w}, tensor={"w": 6})
    assert choice_of(result, "w").bits_per_weight == pytest.approx(6, rel=0.05)
    assert restored["w"][5, 7] == 1e9
    w[5, 7] = restored["w"][5, 7] = 0
    assert tensor_db(w, restored["w"]) > 30


def test_what_a_rule_cannot_apply_to_is_told_and_kept(tmp_path: Path) -> None:
    result, restored = packed(tmp_path / "m.wcz", model(), tensor={".": 6})
    assert [c.tensor for c in result.choices] == ["embed.weight", "body.0.weight", "body.1.weight"]
    told = [line for line in result.warnings if "does not apply to" in line]
    assert ["'ids'" in line for line in told] == [False, True]
    assert "'body.0.bias', 'norm.running_var'" in told[0]
    assert restored["norm.running_var"].min() > 0
    plain = packed(tmp_path / "p.wcz", model())[1]
    assert tensor_db(model()["body.0.bias"], restored["body.0.bias"]) > 34
    assert same_bits(plain["ids"], restored["ids"])


REFUSED = [
    ({"embd": 4}, "matches no tensor name; near it: 'embed.weight'"),
    ({"qqqqqq": "keep"}, "there are 'embed.weight', 'body.0.weight', 'body.0.bias' and 4 more"),
    ({"^head": 4}, "'head.weight' is another name of 'embed.weight'"),
    ({"(": 4}, "not a regular expression"),
    ({"body": "half"}, "expected lossless, keep, fp16, or a positive number"),
    ({"body": 0}, "expected lossless, keep, fp16, or a positive number"),
    ({"body": float("nan")}, "expected lossless, keep, fp16, or a positive number"),
    ({"body": True}, "expected lossless, keep, fp16, or a positive number"),
    ({"ids": 4}, "'ids' is kept bit for bit (int64); choose lossless or keep"),
    ({"ids": "fp16"}, "'ids' is kept bit for bit (int64); choose lossless or keep"),
    ({"bias": 4}, "'body.0.bias' is small or never negative"),
]


@pytest.mark.parametrize(("rules", "message"), REFUSED, ids=[str(next(iter(rules.items()))) for rules, _ in REFUSED])
def test_rules_that_mean_nothing_are_refused(tmp_path: Path, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        wcompress.pack(model(), tmp_path / "m.wcz", tensor=rules, **FAST)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lossless", "tensor": {"w": "fp16"}}, "method lossless takes lossless or keep"),
        ({"method": "lossless", "tensor": {"w": 4}}, "method lossless takes lossless or keep"),
        ({"method": "paper", "tensor": {"w": 4}}, "method paper takes lossless, keep or fp16"),
        ({"max_drop": 0.5, "tensor": {"w": "keep"}}, "use --refine off"),
        ({"refine": "on", "tensor": {"w": 4}}, "use --refine off"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PackOptions(**options)
    assert PackOptions(max_drop=0.5, refine="off", tensor={"w": "keep"}).rules[0].choice == "keep"


@pytest.mark.parametrize("options", [{}, {"max_drop": 3.0, "refine": "off"}])
def test_rules_hold_beside_a_task(tmp_path: Path, trained: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    first, second, *_ = (name for name, tensor in trained.items() if tensor.numel() >= 64)
    rules = {f"^{first}$": "lossless", f"^{second}$": 5}
    result = wcompress.pack(trained, tmp_path / "m.wcz", task=Toy(), tensor=rules, **options, **FAST)
    assert same_bits(trained[first], wcompress.load(tmp_path / "m.wcz")[first])
    assert choice_of(result, second).bits_per_weight == pytest.approx(5, rel=0.1)
    assert result.task is not None
    assert result.task.validation_drop is None or result.task.validation_drop <= 3.0


def test_only_a_rounded_tensor_passes_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"w": normal(64, 64)}
    wcompress.pack(source, tmp_path / "m.wcz", tensor={"w": "fp16"}, **FAST)
    other = {"w": normal(64, 64).bfloat16().float()}
    monkeypatch.setattr(verifying, "_SQNR_TOLERANCE_DB", math.inf)
    assert any("is not that of the model" in error for error in wcompress.verify(tmp_path / "m.wcz", other).errors)


Run = Callable[..., tuple[int, str, str]]


def test_the_command_line(cli: Run, tmp_path: Path) -> None:
    torch.save({**model(), "a=b": normal(64, 64, seed=7)}, "m.pt")
    common = ["pack", "m.pt", "--effort", 1, "--device", "cpu"]
    rules = ["--tensor", "embed=8", "--tensor", r"\.bias$=lossless", "--tensor", "a=b=fp16"]
    code, out, _ = cli(*common, *rules, "--dry-run")
    assert code == 0
    assert "rule embed=8" in out
    assert "embed.weight, 8.0" in out
    assert not (tmp_path / "m.pt.wcz").exists()
    code, out, _ = cli(*common, *rules, "--json")
    assert code == 0
    choices = {choice["tensor"]: choice for choice in json.loads(out)["choices"]}
    assert list(choices) == ["embed.weight", "body.0.bias", "a=b"]
    assert choices["embed.weight"]["bits_per_weight"] == pytest.approx(8, rel=0.02)
    assert choices["embed.weight"]["sqnr_db"] > 40
    assert choices["body.0.bias"]["sqnr_db"] is None
    assert (choices["a=b"]["choice"], choices["a=b"]["kind"]) == ("fp16", "raw")
    rows = json.loads(cli("inspect", "m.pt.wcz", "--json")[1])["tensors"]
    kept = {row["name"]: row["kept"] for row in rows}
    assert kept["body.0.bias"] == kept["a=b"] == kept["ids"] == "exact"
    assert kept["norm.running_var"] == "nearly exact"
    assert kept["embed.weight"] == kept["head.weight"] == "lossy"
    assert "nearly exact" in cli("inspect", "m.pt.wcz")[1]


@pytest.mark.parametrize("rule", ["embd=4", "body", "=4", "body=", "body=much", "[=4"])
def test_bad_rules_on_the_command_line(cli: Run, rule: str) -> None:
    torch.save(model(), "m.pt")
    code, out, err = cli("pack", "m.pt", "--tensor", rule)
    assert (code, out) == (2, "")
    assert err.startswith("wcompress: ")
    assert err.count("\n") == 1
