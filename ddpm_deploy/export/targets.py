"""What each target runtime is given: which graphs, in which precisions, at which opset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ddpm_deploy.bundle.manifest import PORTABLE

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
GRAPHS = ("denoiser", "step", "sampler")
OPSETS = range(18, 26)


@dataclass(frozen=True)
class Int8:
    """How a runtime wants its int8 graph.

    symmetric: signed activations around zero, weights of 8 bits, biases in float. Otherwise unsigned activations and
    weights of 7 bits, because CPUs without VNNI add two products of 8 bits in 16 and saturate. rounded_outputs: what a
    layer writes is int8 too.
    """

    symmetric: bool
    rounded_outputs: bool


@dataclass(frozen=True)
class Target:
    """A runtime that graphs are written for; opset: the fastest there. int8: the form of that precision."""

    opset: int
    graphs: tuple[str, ...]
    precisions: tuple[str, ...]
    int8: Int8 | None = None


# ONNX Runtime has integer kernels only for layers whose outputs are rounded; others write floats, which is more exact.
ONNXRUNTIME_INT8 = Int8(symmetric=False, rounded_outputs=True)
OPENVINO_INT8 = Int8(symmetric=False, rounded_outputs=False)
TENSORRT_INT8 = Int8(symmetric=True, rounded_outputs=False)

# Opset 18 keeps GroupNormalization out of the graph: ONNX Runtime expands that operator into some twenty slower ones,
# and OpenVINO computes it four times as slowly as the InstanceNormalization that stands for it.
TARGETS = {
    "onnxruntime-cpu": Target(18, ("denoiser", "sampler"), ("fp32", "int8"), ONNXRUNTIME_INT8),
    "onnxruntime-cuda": Target(18, GRAPHS, ("fp32", "fp16", "bf16")),
    "openvino": Target(18, ("denoiser", "sampler"), ("fp32", "int8"), OPENVINO_INT8),
    "tensorrt": Target(21, GRAPHS, PRECISIONS, TENSORRT_INT8),
}

GPU_TARGETS = ("onnxruntime-cuda", "tensorrt")
TRITON, WEB = "triton", "web"
ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")
# What these read is made for those.
SAME_GRAPHS = {"tensorrt-rtx": "tensorrt", TRITON: "onnxruntime-cpu", WEB: "onnxruntime-cpu"}
CHOICES = (*TARGETS, *SAME_GRAPHS)

WHY_NOT = {
    ("onnxruntime-cpu", "fp16"): "its CPU kernels compute fp16 convolutions in fp32, between casts",
    ("onnxruntime-cpu", "bf16"): "it has no bf16 convolution on CPUs",
    ("onnxruntime-cuda", "int8"): "its CUDA provider has no int8 convolution; target tensorrt has",
    ("openvino", "fp16"): "its CPU plugin computes fp16 graphs in fp32",
    ("openvino", "bf16"): "it takes bf16 as a hint on the fp32 graph: load that with precision bf16",
    ("onnxruntime-cpu", "step"): "on a CPU it gains nothing over the denoiser",
    ("openvino", "step"): "on a CPU it gains nothing over the denoiser",
}


@dataclass(frozen=True)
class GraphFile:
    """One graph to be written."""

    role: str
    precision: str
    target: str
    opset: int

    @property
    def path(self) -> str:
        """Its name in the bundle, `ROLE.PRECISION[.TARGET].onnx`."""
        target = "" if self.target == PORTABLE else f".{self.target}"
        return f"{self.role}.{self.precision}{target}.onnx"


# Every bundle has it, every ONNX runtime reads it, and all other graphs are measured against it.
BASE = GraphFile("denoiser", "fp32", PORTABLE, TARGETS["onnxruntime-cpu"].opset)


def graph_files(
    targets: Sequence[str], precisions: Sequence[str], graphs: Sequence[str] | None, opset: int | None
) -> tuple[GraphFile, ...]:
    """The graphs that a choice comes to, the portable denoiser first; ValueError where a target has no such thing.

    A precision or graph that some of the targets have and others lack is written for the former. graphs: None is all
    that they have. opset: None is the fastest of each target.
    """
    _require_known("target", targets, CHOICES)
    targets = list(dict.fromkeys(SAME_GRAPHS.get(name, name) for name in targets))
    _require_known("precision", precisions, PRECISIONS)
    if graphs is None:
        graphs = [graph for graph in GRAPHS if any(graph in TARGETS[name].graphs for name in targets)]
    _require_known("graph", graphs, GRAPHS)
    if opset is not None and opset not in OPSETS:
        raise ValueError(f"opset: got {opset}, expected a number from {OPSETS[0]} to {OPSETS[-1]}")
    for choice in precisions:
        _require_some(choice, targets, [name for name in targets if choice in TARGETS[name].precisions])
    for choice in graphs:
        _require_some(choice, targets, [name for name in targets if choice in TARGETS[name].graphs])
    base = GraphFile(BASE.role, BASE.precision, BASE.target, opset or BASE.opset)
    return (base, *_wanted(targets, precisions, graphs, opset))


def _wanted(
    targets: Sequence[str], precisions: Sequence[str], graphs: Sequence[str], opset: int | None
) -> Iterator[GraphFile]:
    for name in targets:
        target = TARGETS[name]
        for precision in (p for p in target.precisions if p in precisions):
            for role in (g for g in target.graphs if g in graphs):
                chosen = GraphFile(role, precision, name, opset or target.opset)
                if not _is_base(chosen, opset):
                    yield chosen


def _is_base(file: GraphFile, opset: int | None) -> bool:
    """Whether the portable denoiser is this very graph; on GPUs it is written in another form."""
    same = (file.role, file.precision, file.opset) == (BASE.role, BASE.precision, opset or BASE.opset)
    return same and file.target not in GPU_TARGETS


def _require_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    if not asked:
        raise ValueError(f"{what}: got none, expected some of {', '.join(known)}")
    for name in asked:
        if name not in known:
            raise ValueError(f"{what}: got {name!r}, expected some of {', '.join(known)}")


def _require_some(choice: str, targets: Sequence[str], having: Sequence[str]) -> None:
    if not having:
        reasons = "; ".join(f"{name}: {WHY_NOT[name, choice]}" for name in targets)
        raise ValueError(f"{choice}: is not written for {', '.join(targets)} ({reasons}); choose another target")
