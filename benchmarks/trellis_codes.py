"""How much finer than scalar quantisation each trellis is at many bits, and the search for better ones.

    python -m benchmarks.trellis_codes
    python -m benchmarks.trellis_codes --draw 1024 --seconds 120

Uniform weights, no rates: the squared error of the best path against that of a scalar quantiser of the same rate, whose
levels lie as far apart as those of one of the trellis's two; in units of 8192 weights, as `pack` has them. No quantiser
of any dimension gains more than 1.53 dB. `--draw` draws codes of so many states, tries each on few weights and the best
few on many. Without it, measures the machines there are and writes `benchmarks/results/trellis_codes.json`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from benchmarks.common import write_result
from benchmarks.models import argument_parser
from wcompress.codec.quantiser.trellis import PARITY_CHECKS, Trellis, coded, quantisers
from wcompress.codec.quantiser.viterbi import search
from wcompress.threads import n_work_threads

LIMIT = 40
_FEW, _MORE = 20_000, 200_000
_KEPT = 16
_UNIT = 1 << 13


def gain_db(machine: Trellis, n_weights: int, seed: int) -> tuple[float, float]:
    """Scalar quantisation's squared error over the trellis's, dB; and nanoseconds that the search took a weight."""
    x = np.random.default_rng(seed).uniform(4.0, 60.0, n_weights).astype(np.float32)
    k = np.arange(-LIMIT, LIMIT + 1)
    levels = np.stack([2 * k, 2 * k - np.sign(k)]).astype(np.float32)
    rates = np.zeros((1, 2, len(k)), np.float32)
    units = np.append(np.arange(0, n_weights, _UNIT), n_weights)
    classes = np.zeros(-(-n_weights // _UNIT), np.int32)
    start = time.perf_counter()
    symbols = search(x, units, classes, _UNIT.bit_length() - 1, machine, levels, rates, 0.0)
    seconds = time.perf_counter() - start
    error = float(np.square(x - levels[quantisers(symbols, units, machine), symbols + LIMIT], dtype=np.float64).mean())
    return 10 * math.log10(4 / 12 / error), 1e9 * seconds / n_weights


def draw(n_states: int, seconds: float, seed: int) -> list[tuple[float, int, int]]:
    """The best codes found: gain in dB and parity checks h0, h1, best first."""
    rng = np.random.default_rng(seed)
    n_bits = n_states.bit_length() - 1
    found: list[tuple[float, int, int]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        h0 = n_states | 1 | int(rng.integers(n_states // 2)) << 1
        h1 = int(rng.integers(1, n_states // 2)) << 1
        machine = coded(n_states, h0, h1)
        reached = {0}
        for _ in range(n_bits):
            reached = {int(to) for state in reached for to in machine.next_state[state]}
        if len(reached) == n_states:
            found = sorted([*found, (gain_db(machine, _FEW, 0)[0], h0, h1)], reverse=True)[:_KEPT]
    return sorted(((gain_db(coded(n_states, h0, h1), _MORE, 1)[0], h0, h1) for _, h0, h1 in found), reverse=True)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argument_parser(__doc__, "python -m benchmarks.trellis_codes --draw 256 --seconds 20")
    parser.add_argument("--draw", type=int, metavar="STATES", help="look for codes of so many states")
    parser.add_argument("--seconds", type=float, default=120.0, help="to look for (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.draw:
        for gain, h0, h1 in draw(arguments.draw, arguments.seconds, arguments.seed):
            print(f"{gain:.4f} dB  {h0:o} {h1:o}")
        return
    rows: list[dict[str, Any]] = []
    for n_states, (h0, h1) in PARITY_CHECKS.items():
        machine = coded(n_states, h0, h1)
        gain_db(machine, 100, 2)
        gain, nanoseconds = gain_db(machine, 5 * _MORE, 2)
        row = {"n_states": n_states, "h0": f"{h0:o}", "h1": f"{h1:o}", "gain_db": gain, "ns_per_weight": nanoseconds}
        rows.append(row)
        print(f"{n_states:6} states  {gain:.3f} dB  {nanoseconds:6.0f} ns a weight")
    write_result("trellis_codes", {"rows": rows, "threads": n_work_threads()})


if __name__ == "__main__":
    main()
