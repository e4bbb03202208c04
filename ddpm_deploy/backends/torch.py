"""PyTorch, eager: the float32 reference that every other backend is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ddpm_deploy.backends.base import Availability, Backend, GuardedBackend, device_index, one_line
from ddpm_deploy.bundle import Bundle, TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable, BundleError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")}


class TorchBackend(GuardedBackend):
    """A module in eager mode, shared by all threads; its weights stay in float32 and autocast does the rest.

    PyTorch's thread count and its switch for TF32 belong to the whole process: `threads` sets the first when it is
    given, and opening on CUDA turns the second off.
    """

    name = "torch"

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
    ) -> TorchBackend:
        """Wrap a live denoiser `module(x, t, **condition) -> tensor`, which goes to the device and into eval mode."""
        place = place_for(device)
        if precision not in PRECISIONS[place.type]:
            choices = ", ".join(PRECISIONS[place.type])
            raise BackendUnavailable(f"torch: got precision {precision!r} on {device}, expected one of {choices}")
        if threads is not None:
            torch.set_num_threads(threads)
        if place.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        return cls(
            module.to(place).eval(),
            inputs,
            outputs,
            device=device,
            precision=precision,
            threads=torch.get_num_threads(),
            batch_invariant=False,
            details={"version": torch.__version__, "placement": f"on {device_name(place)}"},
        )

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        place, dtype = place_for(self.device), AUTOCAST[self.precision]
        with torch.inference_mode(), torch.autocast(place.type, dtype=dtype, enabled=dtype is not None):
            tensors = {name: _tensor(array).to(place) for name, array in feeds.items()}
            result = runtime(tensors.pop("x"), tensors.pop("t"), **tensors)
        return {self.outputs[0].name: np.array(result.float().cpu().numpy())}


def availability() -> Availability:
    """CUDA devices by number; fp16 only there."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    precisions = PRECISIONS["cuda" if cuda else "cpu"]
    return Availability("torch", True, version=torch.__version__, devices=("cpu", *cuda), precisions=precisions)


def load(bundle: Bundle, *, role: str, precision: str, device: str, threads: int | None) -> Backend:
    """Build the network that the bundle describes and fill in its float32 weights; every precision starts there."""
    if role != "denoiser":
        raise BackendUnavailable(f"torch: got role {role!r}, expected 'denoiser'; use another backend for this graph")
    file = bundle.file(role, "fp32", "torch")
    weights = bundle.open_bytes(file)
    with torch.device("meta"):  # takes no memory before the weights are known to fill it
        _check_fits(_network(bundle), weights, file.path)
    network = _network(bundle)
    _fill(network, weights, file.path)
    return TorchBackend.from_module(
        network, file.inputs, file.outputs, precision=precision, device=device, threads=threads
    )


def _network(bundle: Bundle) -> nn.Module:
    from ddpm_deploy.model import build_network

    if bundle.manifest.network is None:
        raise BundleError(
            "bundle.json: network: got null, expected a network that torch can build; use another backend"
        )
    try:
        network: nn.Module = build_network(bundle.manifest.network)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BundleError(
            f"bundle.json: network: cannot be built: {one_line(error)}; export the model again, or use another backend"
        ) from error
    return network


def _check_fits(network: nn.Module, weights: bytes, path: str) -> None:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size_bytes > len(weights):
        raise BackendError(
            f"torch: {path} does not fit the network in bundle.json, whose weights take {size_bytes} bytes, not "
            f"{len(weights)}; export the model again"
        )


def _fill(network: nn.Module, weights: bytes, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        network.load_state_dict(load(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise BackendError(f"torch: {path} does not fit the network in bundle.json: {one_line(error)}") from error


def place_for(device: str) -> torch.device:
    """The torch device, or BackendUnavailable if it is not there."""
    index = device_index(device)
    if index is None:
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        built = f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise BackendUnavailable(f"torch: got device {device!r}: {built}; install its CUDA build, or use 'cpu'")
    return torch.device("cuda", index)


def device_name(place: torch.device) -> str:
    """What the maker calls it."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "the CPU"


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Share the array's memory where torch can: it takes no negative strides and warns about read-only arrays."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
