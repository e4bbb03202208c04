"""The plain ONNX export of diffusers' network: `torch.onnx.export` with its defaults and a free batch."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import PeerUnavailable, versions_of
from benchmarks.peers.network import diffusers_network
from benchmarks.peers.torch_networks import DTYPES
from ddpm_deploy.bundle import Bundle

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST = 2**31 - 1  # bytes of one protobuf message

_exports: dict[str, bytes] = {}


def plain_export(bundle: Bundle, cache: Path | None = None, precision: str = "fp32") -> bytes:
    """The ONNX file, made once in a process; `x`, `t` -> `prediction`, float32, any batch.

    cache: a folder that keeps it between runs, under a name of the bundle's digest and the versions that made it.
    precision: that `.half()` or `.bfloat16()` gave the whole network; the casts around it are part of the file.
    """
    key = _key(bundle, precision)
    kept = None if cache is None else cache / f"plain-{key}.onnx"
    if key not in _exports:
        there = kept is not None and kept.is_file()
        _exports[key] = kept.read_bytes() if kept is not None and there else _export(bundle, precision)
    if kept is not None and not kept.is_file():
        _write(kept, _exports[key])
    return _exports[key]


def _key(bundle: Bundle, precision: str) -> str:
    said = (bundle.digest, precision, sorted(versions_of("torch", "diffusers", "onnxscript").items()))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _export(bundle: Bundle, precision: str) -> bytes:
    import torch

    network = torch.nn.Module.to(diffusers_network(bundle), getattr(torch, DTYPES[precision]))
    x = torch.randn(2, *bundle.manifest.sample_shape)
    free = {0: torch.export.Dim("batch")}
    with _quiet():
        program = torch.onnx.export(
            tensor_in_tensor_out(network),
            (x, torch.tensor([1.0, 2.0])),
            dynamo=True,
            dynamic_shapes=(free, free),
            input_names=["x", "t"],
            output_names=["prediction"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if model.ByteSize() > LARGEST:
        raise PeerUnavailable(f"the plain export has {model.ByteSize()} bytes, and one ONNX message takes {LARGEST}")
    return bytes(model.SerializeToString())


def tensor_in_tensor_out(network: Any) -> nn.Module:
    """diffusers' network without its output class; float32 outside of it."""
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.network(x.to(self.network.dtype), t).sample
            return out.float()

    return Plain().eval()


def _write(path: Path, data: bytes) -> None:
    """All or nothing, as another run may read at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter logs and warns about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
