"""The manifest inside an ONNX file, found without the onnx package.

Only the top level of the protobuf message is walked: `ModelProto.metadata_props` (field 14) holds key-value
pairs (fields 1 and 2). The graph and its weights are stepped over by their length.
"""

from __future__ import annotations

from collections.abc import Iterator

from ddpm_deploy.errors import BundleError

METADATA_KEY = "ddpm_deploy"
MAX_FIELDS = 100_000
METADATA_PROPS, PAIR_KEY, PAIR_VALUE = 14, 1, 2
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def find_metadata(model: bytes, source: str) -> bytes:
    """The value under the key `ddpm_deploy` in an ONNX file's metadata.

    source: the file's name, for messages. Raises BundleError on anything that is not such a file.
    """
    view = memoryview(model)
    try:
        pairs = [dict(_fields(value)) for number, value in _fields(view) if number == METADATA_PROPS]
    except ValueError as error:
        raise BundleError(f"{source}: no ONNX file, {error}; copy or export it again") from None
    found = [pair for pair in pairs if bytes(pair.get(PAIR_KEY, b"")) == METADATA_KEY.encode()]
    if len(found) != 1:
        raise BundleError(
            f"{source}: got {len(found)} metadata entries {METADATA_KEY!r}, expected 1; "
            "export the model with ddpm-deploy"
        )
    return bytes(found[0].get(PAIR_VALUE, b""))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, payload) of each length-delimited field; the others are checked and stepped over."""
    position = 0
    for _ in range(MAX_FIELDS):
        if position == len(message):
            return
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {position}")
        length, position = _extent(message, position, wire_type)
        if length > len(message) - position:
            raise ValueError(f"field {number} ends {length - len(message) + position} bytes past the end")
        if wire_type == LENGTH:
            yield number, message[position : position + length]
        position += length
    raise ValueError(f"more than {MAX_FIELDS} fields")


def _extent(message: memoryview, position: int, wire_type: int) -> tuple[int, int]:
    """(length, start) of a field's payload."""
    if wire_type == LENGTH:
        return _varint(message, position)
    if wire_type == VARINT:
        return 0, _varint(message, position)[1]
    if wire_type in (FIXED64, FIXED32):
        return (8 if wire_type == FIXED64 else 4), position
    raise ValueError(f"wire type {wire_type} at byte {position}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 number of at most 10 bytes."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise ValueError("a number is cut off at the end")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than 10 bytes before byte {position}")
