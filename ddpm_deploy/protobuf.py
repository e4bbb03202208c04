"""The fields of a protobuf message, so that an ONNX file is looked into and put together without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


def fields(message: memoryview, limit: int | None = None) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: a whole number, or the bytes of a text, a message or a packed list.

    limit: how many fields there may be. Raises ValueError on anything that is no such message.
    """
    return ((number, value) for number, value, _ in spans(message, limit))


def spans(message: memoryview, limit: int | None = None) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """As `fields`, and with each field all of its own bytes, its number included."""
    position = count = 0
    while position < len(message):
        if limit is not None and count == limit:
            raise ValueError(f"more than {limit} fields")
        start = position
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {position}")
        value, position = _value(message, position, number, wire_type)
        yield number, value, message[start:position]
        count += 1


def header(number: int, size_bytes: int) -> bytes:
    """What stands before a text, a message or a packed list of so many bytes."""
    return _encoded(number << 3 | LENGTH) + _encoded(size_bytes)


def text(number: int, value: str) -> bytes:
    """A field of text."""
    encoded = value.encode()
    return header(number, len(encoded)) + encoded


def varint_field(number: int, value: int) -> bytes:
    """A field of a whole number that is not negative."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def varints(packed: memoryview) -> Iterator[int]:
    """The numbers of a packed list."""
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _encoded(value: int) -> bytes:
    """A number in base 128, the low digits first."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


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
