"""What a user chooses for single tensors: bit for bit, float16, or so many bits a weight.

A rule is a regular expression and a choice; the first rule whose expression is found in a tensor's name counts.

`lossless`: the tensor bit for bit, coded as small as that goes.
`keep`: the tensor bit for bit, its bytes as they are, so that nothing is searched for.
`fp16`: its values rounded to float16 and those bit for bit; its dtype stays.
a number: quantised so that a weight takes about so many bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from wcompress.codec.kinds import can_be_quantised, is_extra_state, is_float
from wcompress.codec.names import near
from wcompress.codec.results import TensorChoice
from wcompress.codec.storage.dtypes import as_float16
from wcompress.codec.storage.exact import exact_bytes
from wcompress.codec.storage.recognise import recognise
from wcompress.errors import OptionError
from wcompress.fidelity import computable, largest_magnitude

EXACT_CHOICES = ("lossless", "keep")
_WORDS = (*EXACT_CHOICES, "fp16")
_EXPECTED = "lossless, keep, fp16, or a positive number of bits a weight"
_MOST_BITS = 64.0
_FLOAT16_MAX = 65504.0
_MOST_NAMED = 3
_ALLOWED = {"vae": None, "paper": _WORDS, "lossless": EXACT_CHOICES}
# Of an element's own bits: what the coder of floats never goes below, so that it is not tried in vain.
_LEAST_EXACT_SHARE = 0.6
_TOLERANCE, _TOLERANCE_BITS = 0.05, 0.02


@dataclass(frozen=True)
class TensorRule:
    """One choice.

    Attributes:
        pattern: a regular expression, looked for anywhere in a tensor's name.
        choice: `lossless`, `keep`, `fp16`, or a number of bits as text.
    """

    pattern: str
    choice: str

    @property
    def bits(self) -> float | None:
        """Bits a weight; None for the other choices."""
        return None if self.choice in _WORDS else float(self.choice)

    def __str__(self) -> str:
        return f"{self.pattern}={self.choice}"


Pairs = Mapping[str, str | float] | Iterable[tuple[str, str | float]]


def parse_rules(pairs: Pairs) -> tuple[TensorRule, ...]:
    """Rules from expressions and choices, in order.

    Raises:
        OptionError: an expression is malformed, or a choice is none.
    """
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    rules = []
    for pattern, choice in items:
        word = str(choice).strip().lower()
        try:
            re.compile(pattern)
        except re.error as error:
            raise OptionError(f"tensor {pattern!r}: not a regular expression ({error})") from error
        if word not in _WORDS:
            word = f"{_bits(pattern, choice):.12g}"
        rules.append(TensorRule(pattern, word))
    return tuple(rules)


def _bits(pattern: str, choice: str | float) -> float:
    try:
        bits = float(choice)
    except ValueError:
        bits = math.nan
    if isinstance(choice, bool) or not 0 < bits <= _MOST_BITS:
        raise OptionError(f"tensor '{pattern}={choice}': expected {_EXPECTED}, at most {_MOST_BITS:g}")
    return bits


def split_rule(text: str) -> tuple[str, str]:
    """`REGEX=CHOICE` → both parts; the expression may hold further equals signs.

    Raises:
        OptionError: there is no equals sign, or no expression.
    """
    pattern, equals, choice = text.rpartition("=")
    if not equals or not pattern:
        raise OptionError(f"tensor {text!r}: expected REGEX=CHOICE, where CHOICE is {_EXPECTED}")
    return pattern, choice


def check_method(rules: Iterable[TensorRule], method: str) -> None:
    """Whether a method can do what rules ask for.

    Raises:
        OptionError: it cannot.
    """
    allowed = _ALLOWED[method]
    for rule in rules:
        if allowed is not None and rule.choice not in allowed:
            raise OptionError(
                f"tensor '{rule}': method {method} takes {', '.join(allowed[:-1])} or {allowed[-1]}; use method vae"
            )


@dataclass(frozen=True)
class Chosen:
    """What rules make of a model.

    Attributes:
        choices: of each tensor that a rule decides, in the model's order.
        rounded: values in place of the model's, by name.
        rates: bits a weight by name of the tensors that are quantised to so many.
        warnings: one line each.
    """

    choices: tuple[TensorChoice, ...] = ()
    rounded: dict[str, torch.Tensor] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, str]:
        """How each tensor that a rule decides is kept, by name."""
        return {choice.tensor: choice.kind for choice in self.choices}

    @property
    def stored(self) -> frozenset[str]:
        """Names of tensors whose bytes stay as they are."""
        return frozenset(choice.tensor for choice in self.choices if choice.choice == "keep")

    def missed(self, bits: Mapping[str, float]) -> tuple[str, ...]:
        """A line for each tensor that takes clearly other bits than were chosen, bits a weight by name."""
        return tuple(
            f"tensor {name!r} takes {bits[name]:.3g} bits a weight, not the {wanted:g} that a rule chose"
            + ("; there are no finer steps, choose lossless" if bits[name] < wanted else "")
            for name, wanted in self.rates.items()
            if name in bits and abs(bits[name] - wanted) > _TOLERANCE * wanted + _TOLERANCE_BITS
        )

    def with_bits(self, bits: Mapping[str, float]) -> tuple[TensorChoice, ...]:
        """The choices with what their tensors take, bits a weight by name."""
        return tuple(replace(c, bits_per_weight=bits.get(c.tensor)) for c in self.choices)


def choose(
    rules: tuple[TensorRule, ...],
    tensors: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
    method: str,
    whole: Mapping[str, torch.Tensor] | None = None,
) -> Chosen:
    """Apply rules to a model.

    A tensor that a rule cannot apply to, such as an integer one that is to be rounded, is kept as it would be without
    rules, and a warning says so.

    Args:
        rules: the first one that matches a tensor's first name counts.
        tensors: the model, in order, contiguous CPU tensors.
        ties: later name → earlier name of tensors that are the same.
        method: one that takes all of the rules, see `check_method`.
        whole: the tensors of the whole model by name, where `tensors` is a shard of it; a rule may be for other shards.

    Raises:
        OptionError: a rule matches no tensor, or none that it can apply to.
    """
    owners = {name: tensor for name, tensor in tensors.items() if name not in ties}
    found: dict[str, list[str]] = {}
    matched: dict[TensorRule, list[str]] = {rule: [] for rule in rules}
    for name in owners:
        fitting = [rule for rule in rules if re.search(rule.pattern, name)]
        for rule in fitting:
            matched[rule].append(name)
        if fitting:
            found.setdefault(str(fitting[0]), []).append(name)
    elsewhere = [name for name in whole or () if name not in tensors]
    for_others = {rule for rule in rules if any(re.search(rule.pattern, name) for name in elsewhere)}
    for rule, names in matched.items():
        if not names and rule not in for_others:
            raise OptionError(_unmatched(rule, whole or tensors, ties))
    choices: dict[str, TensorChoice] = {}
    chosen = Chosen()
    warnings: list[str] = []
    for rule in dict.fromkeys(rules):
        left: dict[str, list[str]] = {}
        beyond: list[str] = []
        for name in found.get(str(rule), []):
            tensor = owners[name]
            exact = rule.bits is not None and is_float(tensor) and _is_smaller_exact(tensor, rule.bits)
            why = "" if exact else _unfit(rule, name, tensor)
            if why:
                left.setdefault(why, []).append(name)
                continue
            kind = "coded" if method == "lossless" and rule.choice == "lossless" and is_float(tensor) else "raw"
            if rule.bits is not None and not exact:
                kind = "coded"
                chosen.rates[name] = rule.bits
            if rule.choice == "fp16":
                if _is_beyond_float16(tensor):
                    beyond.append(name)
                else:
                    chosen.rounded[name] = as_float16(tensor)
            choices[name] = TensorChoice(name, str(rule), rule.choice, kind)
        n_left = sum(map(len, left.values()))
        if n_left and n_left == len(matched[rule]) and rule not in for_others:
            why, names = next(iter(left.items()))
            raise OptionError(f"tensor '{rule}': {_listed(names)} {why}; choose lossless or keep")
        warnings += [
            f"the rule '{rule}' does not apply to {_listed(names)}, which {why}" for why, names in left.items()
        ]
        if beyond:
            warnings.append(f"the rule '{rule}' keeps {_listed(beyond)} bit for bit: float16 ends at {_FLOAT16_MAX:g}")
    return replace(chosen, choices=tuple(choices[name] for name in owners if name in choices), warnings=tuple(warnings))


def _unfit(rule: TensorRule, name: str, tensor: torch.Tensor) -> str:
    # Why a rule cannot apply to a tensor, in words that follow its name; nothing where it can.
    if rule.choice in EXACT_CHOICES:
        return ""
    if not is_float(tensor) or is_extra_state(name):
        return f"is kept bit for bit ({str(tensor.dtype).removeprefix('torch.')})"
    if rule.bits is not None and not can_be_quantised(tensor):
        return "is small or never negative, and kept nearly exactly"
    return ""


def _is_beyond_float16(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return False
    finite = computable(tensor)[torch.isfinite(computable(tensor))]
    # What is at most half a unit beyond the largest float16 is rounded to it.
    return largest_magnitude(finite) >= _FLOAT16_MAX + 16


def _is_smaller_exact(tensor: torch.Tensor, bits: float) -> bool:
    # Whether a tensor takes no more bit for bit: few values, masks, floats of few bits.
    if not tensor.numel():
        return False
    recognised = recognise(tensor)
    if recognised is not None:
        return recognised.bits_per_element <= bits
    if bits < _LEAST_EXACT_SHARE * 8 * tensor.element_size():
        return False
    return 8 * exact_bytes(tensor) <= bits * tensor.numel()


def _unmatched(rule: TensorRule, tensors: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> str:
    tied = [name for name in tensors if re.search(rule.pattern, name)]
    if tied and tied[0] in ties:
        return f"tensor '{rule}': {tied[0]!r} is another name of {ties[tied[0]]!r}; give the rule for that name"
    names = near(rule.pattern, tensors)
    if not names:
        return f"tensor '{rule}': matches no tensor name; there are {_listed(list(tensors)) or 'none'}"
    return f"tensor '{rule}': matches no tensor name; near it: {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:_MOST_NAMED]) + more
