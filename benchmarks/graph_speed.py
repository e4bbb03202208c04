"""What the exporter's graph gains over a plain export of diffusers' own network, on ONNX Runtime's CPU provider.

    python benchmarks/graph_speed.py --threads 2 --rounds 20

The CIFAR-10 U-Net of Ho et al. 2020 with random weights, the same in both. All graphs are timed in turn, round by
round, in one process whose threads do not spin; ratios are medians over the rounds, of a graph against the plain one
in the same round. Each row adds one change to the row above; int8 comes last. Beside each the error of its prediction.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from ddpm_deploy.backends.onnxruntime import spin_briefly
from ddpm_deploy.bench.work import count_work
from ddpm_deploy.export.fold import fold_attention
from ddpm_deploy.export.graph import Denoiser, trace
from ddpm_deploy.export.quantise import quantise
from ddpm_deploy.export.simplify import merge_projections, scale_by_batch_norm, upsample_by_phases
from ddpm_deploy.export.targets import ONNXRUNTIME_INT8
from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.model.diffusers_weights import read_weights

OPSET = 18
SIZE = 2048  # of the matrix product that stands for the machine's peak
CALIBRATION = 8

Graphs = dict[str, onnx.ModelProto]
Session = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def diffusers_network() -> Any:
    """The configuration of google/ddpm-cifar10-32, with seeded random weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, freq_shift=1, flip_sin_to_cos=False, downsample_padding=0,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_head_dim=None, norm_eps=1e-6,
    ).eval()  # fmt: skip


class Plain(torch.nn.Module):
    """diffusers' network with a tensor for an output."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x, t).sample
        return out


def plain_export(network: Any, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """`torch.onnx.export` as anybody would call it."""
    free = {0: torch.export.Dim("B", min=1)}
    program = torch.onnx.export(
        Plain(network), tuple(map(torch.from_numpy, feeds.values())), dynamo=True, dynamic_shapes=(free, free),
        input_names=list(feeds), output_names=["prediction"], external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def variants(feeds: Mapping[str, np.ndarray]) -> Graphs:
    """Every graph that is timed, the plain one first."""
    network = diffusers_network()
    own = UNet(UNetConfig.cifar10())
    own.load_state_dict(read_weights(network.state_dict()))
    denoiser = Denoiser(own.eval().requires_grad_(False), ()).eval()
    graphs = {"diffusers, torch.onnx.export": plain_export(network, feeds)}
    graphs["our U-Net: opset 18, no shape arithmetic"] = trace(denoiser, feeds, OPSET)
    current = trace(fold_attention(denoiser), feeds, OPSET)
    graphs["+ attention in two projections"] = copy(current)
    merge_projections(current.graph)
    graphs["+ time projections in one product"] = copy(current)
    scale_by_batch_norm(current.graph)
    graphs["+ scale and shift in one pass"] = copy(current)
    upsample_by_phases(current.graph)
    graphs["+ upsampling in phases (fp32 as exported)"] = current
    graphs["int8 as exported"] = quantise(current, calibration(), form=ONNXRUNTIME_INT8)
    return graphs


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that later passes leave alone."""
    return onnx.ModelProto.FromString(model.SerializeToString())


def calibration() -> list[dict[str, np.ndarray]]:
    """Random states over all t: the weights are random as well."""
    return [feeds_of(1, seed, t) for seed, t in enumerate(np.linspace(0, 999, CALIBRATION))]


def feeds_of(batch: int, seed: int = 0, t: float | None = None) -> dict[str, np.ndarray]:
    """Gaussian noise, and times spread over the schedule."""
    x = np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)
    return {
        "x": x,
        "t": np.full(batch, t, np.float32) if t is not None else np.linspace(3, 900, batch, dtype=np.float32),
    }


def open_session(model: onnx.ModelProto, threads: int) -> Session:
    """One session, whose threads spin as those of the backend."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    spin_briefly(options)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))[0]


def rounds_of(sessions: Mapping[str, Session], feeds: Mapping[str, np.ndarray], rounds: int) -> dict[str, list[float]]:
    """Seconds of every session in every round; the order turns round from one to the next."""
    names = list(sessions)
    for name in names * 2:
        sessions[name](feeds)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 else names[::-1]:
            began = time.perf_counter()
            sessions[name](feeds)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def peak_gflops(threads: int) -> float:
    """The best that ONNX Runtime's or torch's float32 matrix product reaches here, in GFLOP/s."""
    torch.set_num_threads(threads)
    a, b = (np.random.default_rng(i).standard_normal((SIZE, SIZE), dtype=np.float32) for i in range(2))
    value = lambda name: helper.make_tensor_value_info(name, 1, [SIZE, SIZE])  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "g", [value("a"), value("b")], [value("c")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = open_session(model, threads)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    best = min(min(_seconds(lambda: session({"a": a, "b": b}))), min(_seconds(lambda: ta @ tb)))
    return 2 * SIZE**3 / best / 1e9


def _seconds(work: Callable[[], object], times: int = 8) -> Iterator[float]:
    for _ in range(times):
        began = time.perf_counter()
        work()
        yield time.perf_counter() - began


def table(
    batch: int, seconds: Mapping[str, Sequence[float]], errors: Mapping[str, float], work: float, peak: float
) -> str:
    """One line for every graph."""
    plain, *_ = seconds
    lines = [f"batch {batch}", f"{'':<46}{'ms':>9}{'cv':>6}{'speed-up':>10}{'of peak':>9}{'relative L2':>13}"]
    for name, values in seconds.items():
        median, ratio = statistics.median(values), ratio_of(seconds[plain], values)
        share = "" if "int8" in name else f"{100 * work * batch / median / peak:.0f} %"
        spread = statistics.stdev(values) / statistics.mean(values)
        lines.append(f"{name:<46}{1e3 * median:9.1f}{100 * spread:5.0f}%{ratio:9.3f}x{share:>9}{errors[name]:13.1e}")
    return "\n".join(lines)


def ratio_of(plain: Sequence[float], own: Sequence[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(plain, own, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="at batch 1; larger batches take fewer")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--json", type=Path, help="also write all seconds here")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    graphs = variants(feeds_of(2))
    sessions = {name: open_session(model, args.threads) for name, model in graphs.items()}
    original = graphs["our U-Net: opset 18, no shape arithmetic"].SerializeToString()
    work, peak = count_work(original).flops / 1e9, peak_gflops(args.threads)
    print(f"ONNX Runtime {onnxruntime.__version__}, {args.threads} threads, load average {os.getloadavg()[0]:.1f};")
    print(f"{work:.1f} GFLOP a picture before any change, matrix-product peak {peak:.0f} GFLOP/s\n")
    raw = {}
    for batch in args.batches:
        feeds = feeds_of(batch)
        truth, *_ = outputs = [sessions[name](feeds) for name in sessions]
        errors = {
            name: float(np.linalg.norm(got - truth) / np.linalg.norm(truth))
            for name, got in zip(sessions, outputs, strict=True)
        }
        raw[batch] = rounds_of(sessions, feeds, max(5, args.rounds // batch))
        print(table(batch, raw[batch], errors, work, peak), end="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"gflop": work, "peak_gflops": peak, "seconds": raw}, indent=1))


if __name__ == "__main__":
    main()
