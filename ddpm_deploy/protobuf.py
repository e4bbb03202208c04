"""Stepping through the fields of a protobuf message, so that an ONNX file is looked into without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


def fields(message: memoryview, limit: int | None = None) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: a whole number, or the bytes of a text, a message or a packed list.

    limit: how many fields there may be. Raises ValueError on anything that is no such message.
    """
    position = count = 0
    while position < len(message):
        if limit is not None and count == limit:
            raise ValueError(f"more than {limit} fields")
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {position}")
        value, position = _value(message, position, number, wire_type)
        yield number, value
        count += 1


def _value(message: memoryview, position: int, number: int, wire_type: int) -> tuple[int | memoryview, int]:
    """(value, position after it)."""
    if wire_type == VARINT:
        return _varint(message, position)
    if wire_type == LENGTH:
        size, position = _varint(message, position)
    elif wire_type in (FIXED64, FIXED32):
        size = 8 if wire_type == FIXED64 else 4
    else:
        raise ValueError(f"wire type {wire_type} at byte {position}")
    end = position + size
    if end > len(message):
        raise ValueError(f"field {number} ends {end - len(message)} bytes past the end")
    payload = message[position:end]
    return (payload if wire_type == LENGTH else int.from_bytes(payload, "little")), end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 number."""
    value = 0
    for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
        if position == len(message):
            raise ValueError("a number is cut off at the end")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than {MAX_VARINT_BYTES} bytes before byte {position}")
