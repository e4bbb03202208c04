"""The manifest inside an ONNX file, found without the onnx package.

Only the top level of the protobuf message is walked: `ModelProto.metadata_props` (field 14) holds key-value
pairs (fields 1 and 2). The graph and its weights are stepped over by their length.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

from ddpm_deploy.errors import BundleError
from ddpm_deploy.protobuf import fields

METADATA_KEY = "ddpm_deploy"
MAX_FIELDS = 100_000
METADATA_PROPS, PAIR_KEY, PAIR_VALUE = 14, 1, 2


def find_metadata(model: bytes | mmap, source: str) -> bytes:
    """The value under the key `ddpm_deploy` in an ONNX file's metadata.

    source: the file's name, for messages. Raises BundleError on anything that is not such a file.
    """
    try:
        found = metadata_entries(model)
    except ValueError as error:
        raise BundleError(f"{source}: no ONNX file, {error}; copy or export it again") from None
    if len(found) != 1:
        raise BundleError(
            f"{source}: got {len(found)} metadata entries {METADATA_KEY!r}, expected 1; "
            "export the model with ddpm-deploy"
        )
    return found[0]


def metadata_entries(model: bytes | mmap) -> list[bytes]:
    """All values under the key `ddpm_deploy`; raises ValueError on anything that is not an ONNX file."""
    entries = [value for number, value in _payloads(memoryview(model)) if number == METADATA_PROPS]
    pairs = [{number: bytes(text) for number, text in _payloads(entry)} for entry in entries]
    return [pair.get(PAIR_VALUE, b"") for pair in pairs if pair.get(PAIR_KEY) == METADATA_KEY.encode()]


def _payloads(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The texts and messages among the fields."""
    return ((number, value) for number, value in fields(message, MAX_FIELDS) if isinstance(value, memoryview))
