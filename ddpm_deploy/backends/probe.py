"""A tiny graph with a known answer, to see where a runtime really computes and whether it does so rightly."""

from __future__ import annotations

import base64
import importlib
from typing import Any

import numpy as np

from ddpm_deploy.backends.base import BACKENDS
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError

# y = MatMul(Conv(x, ones 3x3, padding 1), identity 4x4), opset 17
MODEL = base64.b64decode(
    "CAg6/AEKIgoBeAoBdxIBYyIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcKEQoBYwoBbRIBeSIGTWF0TXVsEgVwcm9iZSozCAEIAQgD"
    "CAMQAUIBd0okAACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/KksIBAgEEAFCAW1KQAAAgD8AAAAAAAAAAAAAAAAA"
    "AAAAAACAPwAAAAAAAAAAAAAAAAAAAAAAAIA/AAAAAAAAAAAAAAAAAAAAAAAAgD9aHAoBeBIXChUIARIRCgMSAUIKAggBCgIIBAoC"
    "CARiHAoBeRIXChUIARIRCgMSAUIKAggBCgIIBAoCCARCBAoAEBE="
)
INPUTS = (TensorSpec("x", ("B", 1, 4, 4), "float32"),)
OUTPUTS = (TensorSpec("y", ("B", 1, 4, 4), "float32"),)
TENSORRTS = ("tensorrt", "tensorrt-rtx")
ANSWER = np.outer([2, 3, 3, 2], [2, 3, 3, 2])  # how many ones each window covers


def probe(name: str, device: str) -> str:
    """Compute on a device of an available backend and say what did it; raises a DdpmDeployError if that fails."""
    module: Any = importlib.import_module(BACKENDS[name])
    placement, answer = _torch(module, device) if name == "torch" else _onnx(module, name, device)
    if not np.array_equal(answer, ANSWER):
        raise BackendError(f"{name}: wrong result on {device}; update the runtime and its driver")
    return placement


def _onnx(module: Any, name: str, device: str) -> tuple[str, np.ndarray]:
    with _opened(module, name, device) as backend:
        answer = backend.run({"x": np.ones((1, 1, 4, 4), np.float32)})["y"][0, 0]
        return backend.details["placement"], answer


def _opened(module: Any, name: str, device: str) -> Any:
    if name in TENSORRTS:
        return module.open_model(MODEL, INPUTS, OUTPUTS, device=device)
    kind = {"onnxruntime": "OnnxRuntimeBackend", "openvino": "OpenVinoBackend"}[name]
    return getattr(module, kind).from_bytes(MODEL, INPUTS, OUTPUTS, device=device, threads=1)


def _torch(module: Any, device: str) -> tuple[str, np.ndarray]:
    import torch

    place = module.place_for(device)
    ones = torch.ones(1, 1, 4, 4, device=place)
    answer = torch.nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3, device=place), padding=1)
    return f"on {module.device_name(place)}", answer[0, 0].cpu().numpy()
