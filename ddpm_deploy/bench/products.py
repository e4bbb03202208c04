"""Matrix products through every library that is installed, to find the best that this CPU reaches.

A maker takes a size (m, k, n), a precision and a number of threads, and gives a call that multiplies once, weights
fixed as in a network; it raises `Unavailable` with the reason where the library has no such product.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.bench.machine import package_version

Size = tuple[int, int, int]
Call = Callable[[], object]
Maker = Callable[[Size, str, int], Call]

SIZES: tuple[Size, ...] = (  # by work: squares, and 3x3 convolutions written as products (pixels, 9 channels, channels)
    (256, 2304, 256),  # 16x16 pixels of 256 channels
    (512, 512, 512),
    (1024, 1152, 128),  # 32x32 pixels of 128 channels
    (1024, 1024, 1024),
    (8192, 1152, 128),  # the same in a batch of 8
    (2048, 2048, 2048),
)
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp")
OPSET, IR_VERSION = 18, 10


class Unavailable(Exception):
    """Why a library has no such product here."""


def numpy_product(size: Size, precision: str, threads: int) -> Call:
    """numpy's own BLAS, in float32."""
    if precision != "fp32":
        raise Unavailable(f"numpy has no {precision} product")
    if threads != usable_cpus() and package_version("threadpoolctl") is None:
        raise Unavailable("threadpoolctl is not installed, so the threads of numpy's BLAS cannot be set")
    m, k, n = size
    a, b, out = _normal(m, k), _normal(k, n), np.empty((m, n), np.float32)
    return lambda: np.matmul(a, b, out=out)


def torch_product(size: Size, precision: str, threads: int) -> Call:
    """torch.mm in float32 and bfloat16, and its int8 product."""
    torch = _module("torch")
    m, k, n = size
    if precision == "int8":
        a8, b8 = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))
        return lambda: torch._int_mm(a8, b8)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b, out = (torch.randn(shape).to(dtype) for shape in ((m, k), (k, n), (m, n)))
    return lambda: torch.mm(a, b, out=out)


def onnxruntime_product(size: Size, precision: str, threads: int) -> Call:
    """MatMul, and MatMulInteger for int8; its CPU provider has no bf16 product."""
    if precision == "bf16":
        raise Unavailable("onnxruntime has no bf16 product on a CPU")
    model = integer_model(size) if precision == "int8" else float_model(size)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = _module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    _module("ddpm_deploy.backends.onnxruntime").spin_briefly(options)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"a": _bytes(size) if precision == "int8" else _normal(*size[:2])}
    return lambda: session.run(None, feeds)


def openvino_product(size: Size, precision: str, threads: int) -> Call:
    """MatMul in float32 and under the bf16 hint; a quantised one for int8."""
    _module("openvino")
    from ddpm_deploy.backends.openvino import _core  # the process's only one

    core = _core(os.getpid())
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("openvino does not compute in bf16 on this CPU")
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    model = quantised_model(size) if precision == "int8" else float_model(size)
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    feeds = {"a": _normal(*size[:2])}
    return lambda: request.infer(feeds, share_inputs=True)


CPU_MAKERS: dict[str, Maker] = {
    "numpy": numpy_product,
    "torch": torch_product,
    "onnxruntime": onnxruntime_product,
    "openvino": openvino_product,
}


def cpu_precisions(flags: Collection[str] | None) -> tuple[str, ...]:
    """What the CPU computes in, by its instruction sets; int8 wherever it multiplies eight bytes or more at once."""
    found = set(flags or ())
    bf16 = ("bf16",) if found.intersection(BF16_FLAGS) else ()
    int8 = ("int8",) if found.intersection((*INT8_FLAGS, "avx2")) else ()
    return ("fp32", *bf16, *int8)


@contextmanager
def library_threads(threads: int) -> Iterator[None]:
    """Let torch and numpy's BLAS compute with so many threads, and put back what they had."""
    with _blas_threads(threads), _torch_threads(threads):
        yield


def float_model(size: Size) -> bytes:
    """c = a b, in float32."""
    m, k, n = size
    return _model([("MatMul", ["a", "b"], ["c"])], {"b": _normal(k, n)}, (m, k), (m, n))


def integer_model(size: Size) -> bytes:
    """c = a b, unsigned by signed bytes, the sum in int32."""
    m, k, n = size
    return _model(
        [("MatMulInteger", ["a", "b"], ["c"])], {"b": _signed(k, n)}, (m, k), (m, n), types=("UINT8", "INT32")
    )


def quantised_model(size: Size) -> bytes:
    """c = a b with a and b rounded to bytes, as QuantizeLinear and DequantizeLinear write it."""
    m, k, n = size
    zero = {"zero_a": np.array(128, np.uint8), "zero_b": np.array(0, np.int8)}
    scale = {"scale_a": np.array(0.05, np.float32), "scale_b": np.array(0.01, np.float32)}
    nodes = [
        ("QuantizeLinear", ["a", "scale_a", "zero_a"], ["a8"]),
        ("DequantizeLinear", ["a8", "scale_a", "zero_a"], ["a_rounded"]),
        ("DequantizeLinear", ["b8", "scale_b", "zero_b"], ["b"]),
        ("MatMul", ["a_rounded", "b"], ["c"]),
    ]
    return _model(nodes, {"b8": _signed(k, n), **zero, **scale}, (m, k), (m, n))


def _model(
    nodes: list[tuple[str, list[str], list[str]]],
    constants: dict[str, np.ndarray],
    a: tuple[int, int],
    c: tuple[int, int],
    types: tuple[str, str] = ("FLOAT", "FLOAT"),
) -> bytes:
    onnx = _module("onnx")
    first, last = (getattr(onnx.TensorProto, name) for name in types)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*node) for node in nodes],
        "product",
        [onnx.helper.make_tensor_value_info("a", first, a)],
        [onnx.helper.make_tensor_value_info("c", last, c)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    data: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return data


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed") from error


def _normal(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, columns), np.float32)


def _bytes(size: Size) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size[:2], np.uint8)


def _signed(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 128, (rows, columns), np.int8)


@contextmanager
def _blas_threads(threads: int) -> Iterator[None]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(threads, user_api="blas"):
        yield


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
