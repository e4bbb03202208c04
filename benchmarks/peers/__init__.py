"""The outside competitors, measured in the same run as our own backends, each as its documentation has it.

Every one has the bundle's weights in diffusers' own `UNet2DModel`, takes and gives host arrays, and uses what its
runtime offers; none of our export's changes reach it. A peer that cannot be had says why, for the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from benchmarks.peers import engines
from benchmarks.peers.base import PRECISIONS, PeerUnavailable, Picture, Setting, Step
from benchmarks.peers.network import diffusers_network, require_unconditional, save_diffusers
from benchmarks.peers.pictures import SOLVERS, open_loop, open_pipeline
from benchmarks.peers.plain import plain_export
from benchmarks.peers.steps import (
    open_compiled,
    open_eager,
    open_onnxruntime,
    open_openvino,
    require_compiler,
    require_onnxruntime,
    require_openvino,
)
from benchmarks.peers.torch_networks import require_torch
from ddpm_deploy.backends.tensorrt.settings import TENSORRT as FULL
from ddpm_deploy.backends.tensorrt.settings import TENSORRT_RTX as RTX
from ddpm_deploy.bundle import Bundle

__all__ = [
    "PICTURES",
    "PRECISIONS",
    "STEPS",
    "PeerUnavailable",
    "Picture",
    "Setting",
    "Step",
    "available_pictures",
    "available_steps",
    "diffusers_network",
    "open_picture",
    "open_step",
    "plain_export",
    "save_diffusers",
]


@dataclass(frozen=True)
class StepPeer:
    """open: raises PeerUnavailable. require: the same without the bundle, and quickly."""

    open: Callable[[Bundle, Setting], Step]
    require: Callable[[Setting], None]
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class PicturePeer:
    """open: as above, the name first. step: the key of `STEPS` that must be there. solver: "ddpm", "ddim", "unipc"."""

    open: Callable[[str, Bundle, Setting], Picture]
    step: str
    solver: str
    precisions: tuple[str, ...]


EAGER, COMPILED = "diffusers eager", "torch.compile"
ONNXRUNTIME, OPENVINO = "ONNX Runtime, plain export", "OpenVINO, plain export"
TENSORRT, TENSORRT_RTX = engines.TITLES[FULL], engines.TITLES[RTX]


def _engine(runtime: str) -> StepPeer:
    how: dict[str, str] = {"runtime": runtime}
    return StepPeer(partial(engines.open_engine, **how), partial(engines.require_engines, **how), PRECISIONS)


STEPS: dict[str, StepPeer] = {
    EAGER: StepPeer(open_eager, require_torch, PRECISIONS),
    COMPILED: StepPeer(open_compiled, require_compiler, PRECISIONS),
    ONNXRUNTIME: StepPeer(open_onnxruntime, require_onnxruntime, ("fp32", "fp16")),
    OPENVINO: StepPeer(open_openvino, require_openvino, ("fp32", "bf16")),
    TENSORRT: _engine(FULL),
    TENSORRT_RTX: _engine(RTX),
}


def _pipeline(solver: str) -> PicturePeer:
    return PicturePeer(partial(open_pipeline, solver=solver), EAGER, solver, ("fp32",))


def _loop(step: str, solver: str) -> PicturePeer:
    return PicturePeer(partial(open_loop, step=step, solver=solver), step, solver, STEPS[step].precisions)


PICTURES: dict[str, PicturePeer] = {
    "diffusers DDPMPipeline": _pipeline("ddpm"),
    "diffusers DDIMPipeline": _pipeline("ddim"),
    "diffusers DDIM loop": _loop(EAGER, "ddim"),
    "diffusers UniPC loop": _loop(EAGER, "unipc"),
    "torch.compile UniPC loop": _loop(COMPILED, "unipc"),
    "ONNX Runtime DDIM loop": _loop(ONNXRUNTIME, "ddim"),
    "ONNX Runtime UniPC loop": _loop(ONNXRUNTIME, "unipc"),
    "OpenVINO UniPC loop": _loop(OPENVINO, "unipc"),
}

P = TypeVar("P", StepPeer, PicturePeer)
DEFAULT = Setting()
Reasons = dict[tuple[str, str], str | None]


def available_steps(bundle: Bundle, setting: Setting = DEFAULT) -> Reasons:
    """For each peer and precision None, or why it cannot be had here; what shows only on opening is not foreseen."""
    return _reasons(STEPS, setting, lambda peer, case: _require(peer, bundle, case))


def available_pictures(bundle: Bundle, setting: Setting = DEFAULT) -> Reasons:
    """As `available_steps`."""
    return _reasons(PICTURES, setting, lambda peer, case: _require_picture(peer, bundle, case))


def open_step(name: str, bundle: Bundle, setting: Setting = DEFAULT) -> Step:
    """One evaluation of the network by a peer of `STEPS`; PeerUnavailable says why it cannot be had."""
    peer = _find(STEPS, name, setting)
    _require(peer, bundle, setting)
    return peer.open(bundle, setting)


def open_picture(name: str, bundle: Bundle, setting: Setting = DEFAULT) -> Picture:
    """A whole reverse loop by a peer of `PICTURES`; PeerUnavailable says why it cannot be had."""
    peer = _find(PICTURES, name, setting)
    _require_picture(peer, bundle, setting)
    return peer.open(name, bundle, setting)


def _find(table: Mapping[str, P], name: str, setting: Setting) -> P:
    if name not in table:
        raise ValueError(f"peer: got {name!r}, expected one of {', '.join(table)}")
    peer = table[name]
    if setting.precision not in peer.precisions:
        raise PeerUnavailable(f"{name} is measured in {' and '.join(peer.precisions)}, not in {setting.precision}")
    return peer


def _require(peer: StepPeer, bundle: Bundle, setting: Setting) -> None:
    require_unconditional(bundle)
    peer.require(setting)


def _require_picture(peer: PicturePeer, bundle: Bundle, setting: Setting) -> None:
    _require(STEPS[peer.step], bundle, setting)
    SOLVERS[peer.solver](bundle, setting)


def _reasons(table: Mapping[str, P], setting: Setting, require: Callable[[P, Setting], None]) -> Reasons:
    reasons: Reasons = {}
    for name, peer in table.items():
        for precision in peer.precisions:
            try:
                require(peer, replace(setting, precision=precision))
                reasons[name, precision] = None
            except PeerUnavailable as error:
                reasons[name, precision] = str(error)
    return reasons
