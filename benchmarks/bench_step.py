"""One evaluation of the network: every backend and precision beside the peers, at several batch sizes."""

from __future__ import annotations

from benchmarks.harness import TimeIt, in_rounds
from benchmarks.peers import COMPILED, EAGER, ONNXRUNTIME, OPENVINO, TENSORRT, TENSORRT_RTX
from benchmarks.specs import Options, Spec, batches_of, openings_of, own_contenders
from benchmarks.subjects import evaluation
from ddpm_deploy.bench.measure import Effort
from ddpm_deploy.bench.record import PEER, Row

PEERS = ((EAGER, "fp32"), (EAGER, "bf16"), (ONNXRUNTIME, "fp32"), (OPENVINO, "fp32"), (OPENVINO, "bf16"))
PEERS_FULL = ((COMPILED, "fp32"), (COMPILED, "bf16"))
PEERS_CUDA = tuple((name, "fp16") for name in (EAGER, COMPILED, ONNXRUNTIME, TENSORRT, TENSORRT_RTX))

build = evaluation


def specs(options: Options) -> list[Spec]:
    """Own contenders and peers, for each batch."""
    peers = PEERS + (PEERS_FULL if options.full else ()) + (PEERS_CUDA if options.device.startswith("cuda") else ())
    who = [(*own, "own") for own in own_contenders(options)] + [(*peer, PEER) for peer in peers]
    return [
        Spec("step", "one evaluation", contender, precision, batch, kind)
        for batch in batches_of(options)
        for contender, precision, kind in who
    ]


def time_group(options: Options, spec: Spec) -> TimeIt:
    """Seconds for a group; opening a large network, and warming it up, takes longer than the rounds."""
    full, quick = Effort(budget_s=60, max_rounds=360, min_rounds=18), Effort(budget_s=10, min_rounds=20)
    return in_rounds(full if options.full else quick, openings_of(options))


def test_step(row: Row) -> None:
    assert row.parity is not None
    assert min(row.samples_s) > 0
