"""PyTorch: the float32 reference that every other backend is measured against, and on CUDA a captured loop.

Options: `compile` (on CUDA; torch.compile for the loop's network), and those of `backends.cuda`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ddpm_deploy.backends.base import Availability, Backend, GuardedBackend, device_index, one_line
from ddpm_deploy.backends.cuda import LOOP_OPTIONS, open_loop
from ddpm_deploy.bundle import Bundle, TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable, BundleError

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "fp16", "bf16")}
OPTIONS = frozenset({"compile", *LOOP_OPTIONS})


class TorchBackend(GuardedBackend):
    """A module in eager mode, shared by all threads; autocast gives it its precision.

    PyTorch's thread count and its switches for TF32 belong to the whole process: `threads` sets the first when it is
    given, and every evaluation sets the others to what its precision says, and back.
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
        with (
            tf32(self.precision == "tf32") if place.type == "cuda" else nullcontext(),
            torch.inference_mode(),
            torch.autocast(place.type, dtype=dtype, enabled=dtype is not None),
        ):
            tensors = {name: _tensor(array).to(place) for name, array in feeds.items()}
            result = runtime(tensors.pop("x"), tensors.pop("t"), **tensors)
        return {self.outputs[0].name: np.array(result.float().cpu().numpy())}


def availability() -> Availability:
    """CUDA devices by number; fp16 only there."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    precisions = PRECISIONS["cuda" if cuda else "cpu"]
    return Availability("torch", True, version=torch.__version__, devices=("cpu", *cuda), precisions=precisions)


def load(
    bundle: Bundle,
    *,
    role: str,
    precision: str,
    device: str,
    threads: int | None,
    options: Mapping[str, Any],
) -> Backend:
    """Build the network that the bundle describes and fill in its float32 weights; every precision starts there."""
    if role != "denoiser":
        raise BackendUnavailable(f"torch: got role {role!r}, expected 'denoiser'; use another backend for this graph")
    file = bundle.file(role, "fp32", "torch")
    weights = bundle.open_bytes(file)
    with torch.device("meta"):  # takes no memory before the weights are known to fill it
        _check_fits(_network(bundle), weights, file.path)
    network = _network(bundle)
    _fill(network, weights, file.path)
    backend = TorchBackend.from_module(
        network, file.inputs, file.outputs, precision=precision, device=device, threads=threads
    )
    if place_for(device).type == "cuda":
        _make_resident(backend, network, bundle, options)
    elif options:
        raise ValueError(f"options: {', '.join(sorted(options))}: for CUDA devices only, got device {device!r}")
    return backend


def _make_resident(backend: TorchBackend, network: nn.Module, bundle: Bundle, options: Mapping[str, Any]) -> None:
    """Give the backend a loop around the network, which is laid out and rounded once, not at every evaluation."""
    from ddpm_deploy.backends.cuda.torch_evaluator import TorchEvaluator, compiled

    dtype = AUTOCAST[backend.precision]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype is not None:
        for part in network.modules():
            if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):  # autocast computes these in the narrow type
                part.to(dtype)
    evaluated = compiled(network) if options.get("compile", False) else network
    evaluator = TorchEvaluator(
        evaluated,
        autocast=dtype,
        allow_tf32=backend.precision == "tf32",
        learned=bundle.manifest.variance == "learned",
        nulls=bundle.manifest.nulls,
    )
    index = device_index(backend.device) or 0
    backend.loop, about = open_loop(TorchBackend.name, index, lambda device: evaluator, options)
    backend.details = {**backend.details, "loop": about}


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


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32, for the whole process while it lasts."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def device_name(place: torch.device) -> str:
    """What the maker calls it."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "the CPU"


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Share the array's memory where torch can: it takes no negative strides and warns about read-only arrays."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
