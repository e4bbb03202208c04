"""The timing cache: what the builder measured in earlier builds, kept apart for each device and version."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from ddpm_deploy.backends.tensorrt.files import read_regular, write_atomic

MAGIC = b"ddpm-deploy timing cache 1\n"
MAX_BYTES = 2**30

logger = logging.getLogger(__name__)


class TimingFile:
    """Timings of one runtime version on one device under one driver; those of another are never mixed in."""

    def __init__(self, folder: Path, *identity: str | None) -> None:
        """identity: runtime, its version, device, driver."""
        self._identity = json.dumps(identity).encode()
        self.path = folder / f"timing.{hashlib.sha256(self._identity).hexdigest()[:16]}.cache"

    def read(self) -> bytes:
        """The timings, or nothing where there are none of this identity or where they are damaged."""
        stored = read_regular(self.path, MAX_BYTES)
        if stored is None:
            return b""
        timings = stored[len(self._head(b"")) :]
        if stored != self._head(timings) + timings:
            logger.warning("%s: is damaged or of another device; timings start anew", self.path)
            return b""
        return timings

    def write(self, timings: bytes) -> None:
        """Replace the timings; to be called by the holder of the build lock, with what was read merged in."""
        write_atomic(self.path, self._head(timings) + timings)

    def _head(self, timings: bytes) -> bytes:
        return MAGIC + self._identity + b"\n" + hashlib.sha256(timings).hexdigest().encode() + b"\n"
