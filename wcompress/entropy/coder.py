"""Arrays of symbols under frequency tables, coded by constriction (asymmetric numeral systems).

Decoding undoes what constriction encodes without calling it: several times as fast, and threads do not wait for each
other (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import constriction
import numpy as np
import numpy.typing as npt

from wcompress.compiled import compiled
from wcompress.entropy.ans import opened, take
from wcompress.entropy.tables import FrequencyTable
from wcompress.errors import ArchiveError

Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]
_MAX_SYMBOLS = 1 << 31


def _model(weights: npt.NDArray[np.int64]) -> constriction.stream.model.Categorical:
    # Whole numbers below 2^53 make the same model on every machine; `perfect` is a search that need not.
    return constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)


class Encoder:
    """Collects arrays, and codes them into one stream."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, object]] = []

    def add(self, symbols: Ints, table: FrequencyTable) -> None:
        """Append symbols, each within the table's ±limit."""
        if len(symbols) and table.limit:
            self._parts.append((np.ascontiguousarray(symbols + table.limit, dtype=np.int32), _model(table.weights)))

    def add_bits(self, values: Ints, n_bits: int) -> None:
        """Append numbers of so many bits, 1 to 16, as they are."""
        self._parts.append((np.ascontiguousarray(values, np.int32), constriction.stream.model.Uniform(1 << n_bits)))

    def add_uniform(self, values: Sequence[int], sizes: Sequence[int]) -> None:
        """Append numbers 0 ≤ value < size, each size at most 2^24."""
        for value, size in zip(values, sizes, strict=True):
            if size > 1:
                self._parts.append((np.array([value], np.int32), constriction.stream.model.Uniform(size)))

    def to_bytes(self) -> bytes:
        """The stream."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        data: bytes = coder.get_compressed().astype("<u4").tobytes()
        # The last word's leading zero bytes need not be kept.
        return data.rstrip(b"\0")


class Decoder:
    """Takes arrays from a stream, in the order in which they were added.

    A damaged stream decodes to wrong symbols without a sign: checksums come first.

    Args:
        data: the stream.
        place: what it is, for error messages.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self._place = place
        self._words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        if len(self._words) and self._words[-1] == 0:
            raise ArchiveError(f"{place}: the stream ends in a zero word; the archive is damaged")
        # The coder's state, and how many words are left.
        self._at = opened(self._words)

    def take(self, n_symbols: int, table: FrequencyTable) -> Ints:
        """The next symbols.

        Raises:
            ArchiveError: more than the format allows.
        """
        if not 0 <= n_symbols < _MAX_SYMBOLS:
            raise ArchiveError(f"{self._place}: {n_symbols} symbols; the archive is damaged")
        if n_symbols == 0 or table.limit == 0:
            return np.zeros(n_symbols, np.int32)
        symbols = np.empty(n_symbols, np.int32)
        take(self._words, self._at, table.bounds, table.first_of_slot, -table.limit, symbols)
        return symbols

    def take_bits(self, n_values: int, n_bits: int) -> Ints:
        """The next numbers of so many bits, 1 to 16."""
        values = np.empty(n_values, np.int32)
        _take_uniform(self._words, self._at, 1 << n_bits, values)
        return values

    def take_uniform(self, sizes: Sequence[int]) -> Iterator[int]:
        """The next numbers below their sizes."""
        value = np.zeros(1, np.int32)
        for size in sizes:
            if not 0 < size <= 1 << 24:
                raise ArchiveError(f"{self._place}: a range of {size}; the archive is damaged")
            if size > 1:
                _take_uniform(self._words, self._at, size, value)
            yield int(value[0]) if size > 1 else 0


@compiled()
def _take_uniform(words: Words, at: npt.NDArray[np.uint64], size: int, out: Ints) -> None:
    # The last number has what the division leaves over.
    state, left = at[0], np.int64(at[1])
    width = np.uint64((1 << 24) // size)
    last = np.uint64(size - 1)
    for i in range(len(out)):
        place = state & np.uint64(0xFFFFFF)
        value = min(place // width, last)
        low = value * width
        own = np.uint64(1 << 24) - low if value == last else width
        state = (state >> np.uint64(24)) * own + (place - low)
        if state < np.uint64(1 << 32) and left > 0:
            left -= 1
            state = (state << np.uint64(32)) | np.uint64(words[left])
        out[i] = np.int64(value)
    at[0], at[1] = state, np.uint64(left)
