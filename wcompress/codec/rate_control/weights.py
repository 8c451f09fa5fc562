"""The coded tensors of a model as one sequence, and what errors mean for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from wcompress.codec.methods.trellis import VaeCode
from wcompress.codec.quantiser.sequence import Sequencing
from wcompress.codec.quantiser.step_scales import WHOLE, OwnScales
from wcompress.codec.rate_control.floors import Floors, Groups, Shortfalls, capped, shortfalls
from wcompress.codec.rate_control.rate import Rate
from wcompress.codec.storage.dtypes import round_to_dtype
from wcompress.codec.storage.exceptions import Positions, without_exceptions
from wcompress.fidelity import compare, computable, energy, farthest, pieces

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating]

MOST_EXACT = 1.0
"""What is kept exactly counts in an SQNR for so many times the energy of the coded weights at most: for 3 dB."""

_PART = 1 << 12


class ModelWeights:
    """Weights, and how their errors count.

    Args:
        coded: tensors by name.
        sequencing: how they lie in the sequence.
        counted_by: errors count divided by these scales; None or no scales for as they are.
        exact_energy: Σw² of what is kept exactly beside the weights and counts in their SQNR.
        ties: later name → earlier name of tensors that are the same; each name counts.

    Attributes:
        weights: `[n_weights]`.
        aside: flat positions by name of weights that were set aside, ascending.
        exempt: indices of tensors that no floor holds.
        silent: of those whose errors do not count.
    """

    def __init__(
        self,
        coded: Mapping[str, torch.Tensor],
        sequencing: Sequencing,
        counted_by: OwnScales | None,
        exact_energy: float,
        ties: Mapping[str, str],
    ) -> None:
        self._coded = dict(coded.items())
        self._ties = {later: earlier for later, earlier in ties.items() if earlier in coded}
        self._sequencing = sequencing
        self.weights = _in_sequence(coded, sequencing)
        self._counted_by = None if counted_by is None or counted_by.is_plain else counted_by
        self.aside: dict[str, Positions] = {}
        self.exempt: frozenset[int] = frozenset()
        self.silent: frozenset[int] = frozenset()
        self._exact_energy = exact_energy
        self._own: float | None = None
        self._energies: list[dict[int, Floats]] | None = None

    def except_for(self, indices: Iterable[int], *, counted: bool) -> None:
        """Hold these tensors to no floor.

        Args:
            indices: of the tensors.
            counted: their errors count in the SQNR.
        """
        self.exempt = frozenset(indices)
        self.silent = frozenset() if counted else self.exempt
        self._own = None

    @property
    def exact_share(self) -> float:
        """What the energy kept exactly is, as a part of the weights' own.

        Bounded, so that what dwarfs all else does not make it cheap.
        """
        own = self._counted_energy()
        return min(self._exact_energy / own, MOST_EXACT) if own else 0.0

    @property
    def signal(self) -> float:
        """What errors are compared with."""
        return self._counted_energy() * (1 + self.exact_share)

    @property
    def is_nothing(self) -> bool:
        """Whether every weight is zero."""
        parts = range(0, len(self.weights), _PART)
        return not any(self.weights[first : first + _PART].any() for first in parts)

    def _counted_energy(self) -> float:
        # Measured when it is first asked for; what is set aside later still counts.
        if self._own is None:
            self._own = energy(self.as_counted(np.ones(1))[0])
        return self._own

    @cached_property
    def spans(self) -> list[slice]:
        """Where each tensor lies."""
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(self._sequencing.starts)]

    @cached_property
    def _groups(self) -> list[Groups]:
        return [Groups.of(self._sequencing, index) for index in range(len(self._sequencing.shapes))]

    def as_counted(self, multipliers: Floats) -> tuple[Weights, Floats]:
        """The weights, and what their steps are multiplied by, as errors count.

        Args:
            multipliers: of the steps, `[n_weights]` or `[1]`, as `OwnScales.multipliers` gives them.
        """
        if self._counted_by is None and not self.silent:
            return self.weights, multipliers
        n = self._sequencing.n_weights
        counted = np.ones(n) if self._counted_by is None else self._counted_by.multipliers(self._sequencing, 0, n)
        weights, multipliers = self.weights / counted, multipliers / counted
        for index in self.silent:
            weights[self.spans[index]] = multipliers[self.spans[index]] = 0.0
        return weights, multipliers

    def capped(self, own_scales: OwnScales, sqnr_db: float, rate: Rate | None = None) -> OwnScales:
        """Scales under which the floors beside an SQNR are likely kept.

        Args:
            own_scales: as they are.
            sqnr_db: of the model.
            rate: of the model of which this is a group.
        """
        energies = self._group_energies()
        counts = [1.0] * len(energies)
        if self._counted_by is not None:
            wholes = [float(e[WHOLE][0]) for e in energies]
            counts = [(s.stop - s.start) / e if e > 0 else 0.0 for s, e in zip(self.spans, wholes, strict=True)]
        counts = [0.0 if index in self.silent else count for index, count in enumerate(counts)]
        shapes, floors = self._sequencing.shapes, Floors.at(sqnr_db)
        known = None if rate is None else (rate.unit_noise, rate.mean_square)
        found = capped(own_scales, shapes, self._groups, energies, counts, sqnr_db, floors, known)
        return found.with_those_of(own_scales, self.exempt)

    def lacking(
        self,
        code: VaeCode,
        ratios: npt.NDArray[np.int8] | None,
        sqnr_db: float,
        rate: Rate | None = None,
        *,
        tolerance_db: float = 0.0,
    ) -> list[Shortfalls]:
        """What each tensor lacks of the floors beside an SQNR; empty where none lacks anything.

        Args:
            code: what the weights became.
            ratios: how signs were expected, None for not at all.
            sqnr_db: of the model.
            rate: of the model of which this is a group.
            tolerance_db: that may be lacking.
        """
        floors = Floors.at(sqnr_db - tolerance_db)
        energies, mean_square = self._group_energies(), 0.0
        if rate is not None and rate.mean_square is not None:
            mean_square = rate.mean_square
        elif self._counted_by is None:
            mean_square = math.fsum(float(e[WHOLE][0]) for e in energies) / max(1, len(self.weights))
        found = []
        for groups, span, signal, noise in zip(
            self._groups, self.spans, energies, self._noises(code, ratios), strict=True
        ):
            whole = float(signal[WHOLE][0])
            reference = mean_square if self._counted_by is None else whole / max(1, span.stop - span.start)
            found.append(shortfalls(groups, signal, noise, floors, reference))
        found = [{} if index in self.exempt else lacking for index, lacking in enumerate(found)]
        return found if any(found) else []

    def _group_energies(self) -> list[dict[int, Floats]]:
        if self._energies is None:
            self._energies = [g.sums().energy(self.weights[s]) for g, s in zip(self._groups, self.spans, strict=True)]
        return self._energies

    def _noises(self, code: VaeCode, ratios: npt.NDArray[np.int8] | None) -> Iterator[dict[int, Floats]]:
        # Squared errors of each tensor in its dtype, summed by kind and group.
        limit, restored = int(farthest(code.symbols)), None
        for index, (groups, span, tensor) in enumerate(
            zip(self._groups, self.spans, self._coded.values(), strict=True)
        ):
            weights = self.weights[span]
            scales = code.scales(index, limit) if ratios is None else None
            if scales is not None:
                table = code.levels.table(code.machine, limit, code.step, scales.scales)
                values = _in_dtype(table.reshape(-1), tensor.dtype).astype(np.float64, copy=False)
                yield groups.sums().noise_of(weights, code.symbols[span], scales, values.reshape(table.shape))
                continue
            if restored is None:
                restored = code.restored(ratios)
            yield groups.sums().noise(weights, _in_dtype(restored[span], tensor.dtype))

    def restored_sqnr_db(self, values: Floats) -> float:
        """SQNR of restored weights `[n_weights]` in the tensors' dtypes, as `wcompress.fidelity.compare` pools it; dB.

        Where no tensor has two dimensions, the least of any.
        """
        restored: dict[str, torch.Tensor] = {}
        for index, (name, tensor) in enumerate(self._coded.items()):
            flat = round_to_dtype(values[self.spans[index]], tensor.dtype)
            restored[name] = self._sequencing.unflatten(index, flat)
        tied = {later: self._coded[earlier] for later, earlier in self._ties.items()}
        again = {later: restored[earlier] for later, earlier in self._ties.items()}
        figures = compare(self._coded | tied, restored | again)
        found = [e.sqnr_db for e in figures.tensors.values() if e.sqnr_db is not None]
        sqnr_db = figures.sqnr_db if figures.sqnr_db is not None else min(found, default=math.inf)
        # Each name counts of what is coded, so that what is kept exactly is a smaller part of it.
        names = [*self._coded, *self._ties.values()]
        spans = dict(zip(self._coded, self.spans, strict=True))
        own = math.fsum(energy(self.weights[spans[name]]) for name in names)
        share = min(self._exact_energy / own, MOST_EXACT) if own else 0.0
        return sqnr_db + 10 * math.log10(1 + share)

    def set_aside(self, places: Positions) -> None:
        """Put zeros in these places of the sequence, int64 `[k]`, ascending; what was there is kept beside the rest."""
        self.weights[places] = 0
        self._energies = None
        for index, (name, tensor) in enumerate(list(self._coded.items())):
            span = self.spans[index]
            inside = places[(places >= span.start) & (places < span.stop)] - span.start
            if len(inside):
                found = np.sort(self._sequencing.places(index, inside))
                self.aside[name] = np.union1d(self.aside.get(name, found), found).astype(np.int64)
                self._coded[name] = without_exceptions(tensor, self.aside[name])


def _in_dtype(values: Floats, dtype: torch.dtype) -> Weights:
    # Rounded, but where that changes next to nothing.
    if dtype in (torch.float32, torch.float64):
        return values
    rounded: Weights = computable(round_to_dtype(values, dtype)).numpy()
    return rounded


def _in_sequence(coded: Mapping[str, torch.Tensor], sequencing: Sequencing) -> Weights:
    # Tensors that stay as they lie are not made anew in between.
    if set(sequencing.layouts) - {"rows"}:
        return sequencing.flatten((computable(tensor).numpy() for tensor in coded.values()), np.float64)
    out, at = np.empty(sequencing.n_weights), 0
    for tensor in coded.values():
        for piece in pieces(tensor):
            out[at : at + len(piece)] = piece.numpy()
            at += len(piece)
    return out
