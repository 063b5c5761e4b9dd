"""Models as protobuf encodes them: large raw data, found without parsing.

A model of hundreds of megabytes is mostly the ``raw_data`` of its initializers. `cut` walks the protobuf wire format
over the mapped file, skipping what it does not need, and returns the model without them, small enough to parse: each is
replaced by a reference to its place in the file, in the form of external data. So a large model is never in memory.
"""

from __future__ import annotations

__all__ = ["GRAPH", "INITIALIZER", "RAW_DATA", "Malformed", "cut", "varint"]

_LARGE = 1 << 16  # bytes: smaller fields stay
_MAX_DEPTH = 100  # of nested messages: protobuf's own limit
_MAX_FIELDS = 2_000_000  # that are looked at: no model has so many nodes, and every one takes time
_MAX_TENSOR_FIELDS = 1000

# the fields through which large raw data are reached: of each message, the number of a field and the message in it
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {9: "raw_data"},
}
# tags
GRAPH = b"\x3a"  # of ModelProto
INITIALIZER = b"\x2a"  # of GraphProto
RAW_DATA = b"\x4a"  # of TensorProto
_EXTERNAL_DATA = b"\x6a"
_DATA_LOCATION = b"\x70"

Pieces = list[bytes | memoryview]


class Malformed(ValueError):
    """The bytes are no protobuf message, or an absurd one."""


def cut(data: memoryview, location: str) -> bytes:
    """The serialized model ``data`` with large raw data replaced by references to ``location``.

    Raises:
        Malformed: they are no protobuf message.
    """
    return b"".join(_Cutter(data, location.encode()).message(0, len(data), "model", 0))


class _Cutter:
    """One walk over ``data``."""

    def __init__(self, data: memoryview, location: bytes):
        self.data = data
        self.location = location
        self.fields = 0  # seen so far

    def message(self, at: int, end: int, kind: str, depth: int) -> Pieces:
        """The message in ``data[at:end]`` in pieces, without its large raw data."""
        if depth > _MAX_DEPTH:
            raise Malformed
        data, inner_kinds = self.data, _MESSAGES[kind]
        whole = data[at:end]
        limit = self.fields + _MAX_TENSOR_FIELDS if kind == "tensor" else _MAX_FIELDS
        pieces: Pieces = []
        kept = at  # the start of what is in no piece yet
        while at < end:
            start = at
            self.fields += 1
            if self.fields > limit:
                if kind == "tensor":  # its elements are fields of their own
                    return [whole]
                raise Malformed
            tag, at = _varint(data, at, end)
            if tag & 7 != 2:
                at = _skip(data, at, end, tag & 7)
                continue
            length, body = _varint(data, at, end)
            at = body + length
            if at > end:
                raise Malformed
            inner_kind = inner_kinds.get(tag >> 3)
            if length < _LARGE or inner_kind is None:
                continue
            pieces.append(data[kept:start])
            kept = at
            if inner_kind == "raw_data":
                pieces.append(_reference(self.location, body, length))
            else:
                inner = self.message(body, at, inner_kind, depth + 1)
                pieces += [varint(tag), varint(sum(map(len, inner))), *inner]
        if at != end:
            raise Malformed
        pieces.append(data[kept:end])
        return pieces


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Malformed


def varint(value: int) -> bytes:
    """A non-negative number as protobuf encodes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _skip(data: memoryview, at: int, end: int, wire_type: int) -> int:
    if wire_type == 0:
        return _varint(data, at, end)[1]
    if wire_type == 1:
        return at + 8
    if wire_type == 5:
        return at + 4
    raise Malformed  # groups do not occur in ONNX


def _reference(location: bytes, offset: int, length: int) -> bytes:
    """Fields of a TensorProto that say where its data are."""
    out = b""
    for key, value in ((b"location", location), (b"offset", b"%d" % offset), (b"length", b"%d" % length)):
        entry = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
        out += _EXTERNAL_DATA + varint(len(entry)) + entry
    return out + _DATA_LOCATION + b"\x01"
