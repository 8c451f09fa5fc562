"""Just enough of the protobuf wire format to recognise an ONNX model."""

from __future__ import annotations

from typing import BinaryIO

_VARINT, _BYTES = 0, 2
# onnx.ModelProto: field number → wire type.
_FIELDS = {
    1: _VARINT,  # ir_version
    2: _BYTES,  # producer_name
    3: _BYTES,  # producer_version
    4: _BYTES,  # domain
    5: _VARINT,  # model_version
    6: _BYTES,  # doc_string
    7: _BYTES,  # graph
    8: _BYTES,  # opset_import
    14: _BYTES,  # metadata_props
    20: _BYTES,  # training_info
    25: _BYTES,  # functions
    26: _BYTES,  # configuration
}
_GRAPH = 7
_MAX_IR_VERSION = 127
_MAX_FIELDS = 100_000


def is_onnx(stream: BinaryIO, size: int) -> bool:
    """Tells whether a file starts with the fields of an `onnx.ModelProto`, up to and including the graph.

    The producer's name is optional in ONNX, so names are not relied on. The graph may be cut off: half of
    an ONNX file is still better called that than unknown.

    Args:
        stream: The file, seekable. Its position is changed.
        size: Its length in bytes.
    """
    stream.seek(0)
    first = stream.read(2)
    # Serialisers write fields in the order of their numbers: ir_version comes first.
    if len(first) < 2 or first[0] != 1 << 3 or not 1 <= first[1] <= _MAX_IR_VERSION:
        return False
    for _ in range(_MAX_FIELDS):
        tag = _varint(stream)
        if tag is None or _FIELDS.get(tag >> 3) != tag & 7:
            return False
        value = _varint(stream)
        if value is None:
            return False
        if tag >> 3 == _GRAPH:
            return True
        if tag & 7 == _BYTES:
            if value > size - stream.tell():
                return False
            stream.seek(value, 1)
    return False


def _varint(stream: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
