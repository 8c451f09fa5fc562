"""Binary arithmetic coding: one decision at a time, each with a probability of its own.

Encoder and decoder are one function, so that they cannot drift apart. constriction, which codes everything else, takes
arrays of symbols under one model; here each probability follows from the symbol before (docs/decisions/0003).

Source: carry-less coding with 32-bit bounds, Mahoney, "Data Compression Explained", chapter 3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wcompress.compiled import part

Ints = npt.NDArray[np.int64]

# The coder: bounds, the decoder's window, place in the buffer, its size, whether it was too short.
LOW, HIGH, CODE, POSITION, SIZE, FULL = range(6)


@part
def code_bit(coder: Ints, decode: bool, bit: bool, probability: int | np.int64, buffer: npt.NDArray[np.uint8]) -> bool:
    # `probability` of a set bit in 1/65536, 1 to 65535.
    low, high = coder[LOW], coder[HIGH]
    width = high - low
    middle = low + (width >> 16) * probability + (((width & 0xFFFF) * probability) >> 16)
    if decode:
        bit = coder[CODE] <= middle
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        position = coder[POSITION]
        if decode:
            following = buffer[position] if position < coder[SIZE] else 0
            coder[CODE] = ((coder[CODE] << 8) & 0xFFFFFFFF) | following
        elif position < coder[SIZE]:
            buffer[position] = high >> 24
        else:
            coder[FULL] = 1
        coder[POSITION] = position + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    coder[LOW], coder[HIGH] = low, high
    return bit


@part
def code_bits(coder: Ints, decode: bool, value: int, n_bits: int, buffer: npt.NDArray[np.uint8]) -> int:
    # Bits as they are, the highest first.
    result = 0
    for shift in range(n_bits - 1, -1, -1):
        bit = code_bit(coder, decode, (value >> shift) & 1 == 1, np.int64(32768), buffer)
        result = 2 * result + (1 if bit else 0)
    return result


@part
def code_exp_golomb(coder: Ints, decode: bool, value: int, buffer: npt.NDArray[np.uint8]) -> int:
    # value ≥ 1
    length = 0
    while length < 24 and code_bit(coder, decode, (value >> length) > 1, np.int64(32768), buffer):
        length += 1
    return (1 << length) | code_bits(coder, decode, value & ((1 << length) - 1), length, buffer)


@part
def start(coder: Ints, decode: bool, size: int, buffer: npt.NDArray[np.uint8]) -> None:
    for i in range(len(coder)):
        coder[i] = 0
    coder[HIGH] = 0xFFFFFFFF
    coder[SIZE] = size
    if decode:
        for position in range(4):
            coder[CODE] = (coder[CODE] << 8) | (buffer[position] if position < size else 0)
        coder[POSITION] = 4


@part
def finish(coder: Ints, buffer: npt.NDArray[np.uint8]) -> int:
    # The shortest number between the bounds that zeros may follow.
    n_bytes = 0
    number = 0
    for n_bytes in range(5):
        unit = 1 << (32 - 8 * n_bytes)
        number = (coder[LOW] + unit - 1) // unit * unit
        if number <= coder[HIGH]:
            break
    position = coder[POSITION]
    if coder[FULL] or position + n_bytes > coder[SIZE]:
        return -1
    for k in range(n_bytes):
        buffer[position + k] = (number >> (24 - 8 * k)) & 255
    return int(position + n_bytes)
