"""diffusers' network in torch, eager and compiled, as a function of tensors on its device."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Array, Evaluate, PeerUnavailable, Setting, require_packages
from benchmarks.peers.network import diffusers_network
from ddpm_deploy.bundle import Bundle

if TYPE_CHECKING:
    from torch import Tensor

    Network = Callable[[Tensor, Tensor], Tensor]

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BF16_CPU = ("avx512_bf16", "amx_bf16", "bf16")


def require_torch(setting: Setting) -> None:
    """PeerUnavailable where torch, its device or the precision in hardware is not there."""
    require_packages(["torch", "diffusers"])
    import torch

    if setting.on_cuda:
        if not torch.cuda.is_available():
            raise PeerUnavailable(f"PyTorch {torch.__version__} sees no CUDA device")
    elif setting.precision == "fp16":
        raise PeerUnavailable("PyTorch's fp16 is for GPUs")
    elif setting.precision == "bf16" and not any(torch.cpu.get_capabilities().get(name) for name in BF16_CPU):
        raise PeerUnavailable(
            "this CPU does not compute in bf16 (neither avx512_bf16 nor AMX), PyTorch would emulate it"
        )


def placed(bundle: Bundle, setting: Setting) -> Any:
    """diffusers' `UNet2DModel` on its device in its precision, channels last; torch has its threads and no TF32.

    Channels last is what diffusers advises, and was a fifth faster on a CPU in float32.
    """
    import torch

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    if setting.on_cuda:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    network: Any = diffusers_network(bundle)
    dtype = getattr(torch, DTYPES[setting.precision])
    # diffusers' own `to` warns of layers to be kept in float32, of which this network has none
    return torch.nn.Module.to(network, setting.device, dtype, memory_format=torch.channels_last)


def eager(bundle: Bundle, setting: Setting) -> Network:
    """(x (B, *S) float32, t (B,) or ()) -> prediction float32; weights in the precision, as by `torch_dtype`."""
    import torch

    network = placed(bundle, setting)
    dtype = network.dtype

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x.to(dtype, memory_format=torch.channels_last), t, return_dict=False)[0]
        return out.float()

    return evaluate


def compiled(bundle: Bundle, setting: Setting) -> Network:
    """As `eager`, compiled on its first call for batches of `setting.batch` and no others; nothing falls back."""
    import torch

    how: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if "isolate_recompiles" in signature(torch.compile).parameters:  # from PyTorch 2.12 on; without, eight at most
        how["isolate_recompiles"] = True
    how |= {"mode": "max-autotune"} if setting.on_cuda else {"options": {"freezing": True}}
    network = placed(bundle, setting)
    fast, dtype = torch.compile(network, **how), network.dtype

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        if len(x) != setting.batch:
            raise ValueError(f"batch: got {len(x)}, expected {setting.batch}, for which the network is compiled")
        out: Tensor = fast(x.to(dtype, memory_format=torch.channels_last), t, return_dict=False)[0]
        return out.float().clone() if setting.on_cuda else out.float()  # a CUDA graph overwrites its output

    return evaluate


def over_arrays(network: Network, setting: Setting) -> Evaluate:
    """The same from host array to host array."""
    import torch

    def evaluate(x: Array, t: Array) -> Array:
        with torch.inference_mode():
            out = network(torch.from_numpy(x).to(setting.device), torch.from_numpy(t).to(setting.device))
            result: Array = out.contiguous().cpu().numpy()
        return result

    return evaluate
