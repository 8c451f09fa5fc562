"""Arrays of symbols under frequency tables, coded by constriction (asymmetric numeral systems)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import constriction
import numpy as np
import numpy.typing as npt

from wcompress.entropy.tables import FrequencyTable
from wcompress.errors import ArchiveError

Ints = npt.NDArray[np.int32]
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
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        if len(words) and words[-1] == 0:
            raise ArchiveError(f"{place}: the stream ends in a zero word; the archive is damaged")
        self._coder = constriction.stream.stack.AnsCoder(words)

    def take(self, n_symbols: int, table: FrequencyTable) -> Ints:
        """The next symbols.

        Raises:
            ArchiveError: more than the format allows.
        """
        if not 0 <= n_symbols < _MAX_SYMBOLS:
            raise ArchiveError(f"{self._place}: {n_symbols} symbols; the archive is damaged")
        if n_symbols == 0 or table.limit == 0:
            return np.zeros(n_symbols, np.int32)
        symbols: Ints = self._coder.decode(_model(table.weights), n_symbols)
        return symbols - np.int32(table.limit)

    def take_bits(self, n_values: int, n_bits: int) -> Ints:
        """The next numbers of so many bits, 1 to 16."""
        if n_values == 0:
            return np.zeros(0, np.int32)
        values: Ints = self._coder.decode(constriction.stream.model.Uniform(1 << n_bits), n_values)
        return values

    def take_uniform(self, sizes: Sequence[int]) -> Iterator[int]:
        """The next numbers below their sizes."""
        for size in sizes:
            if not 0 < size <= 1 << 24:
                raise ArchiveError(f"{self._place}: a range of {size}; the archive is damaged")
            yield int(self._coder.decode(constriction.stream.model.Uniform(size), 1)[0]) if size > 1 else 0
