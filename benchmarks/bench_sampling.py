"""Whole pictures, from a seed to samples on the host: solver by steps, every contender of a group at equal evaluations.

With `--full` also the thousand steps of the paper beside twelve, in the same rounds: what a fast solver and a fast
evaluation gain together, and each alone.
"""

from __future__ import annotations

from benchmarks.harness import TimeIt, in_rounds
from benchmarks.models import NETWORKS
from benchmarks.specs import Options, Spec, own_contenders
from benchmarks.subjects import ONE_GRAPH, pictures
from ddpm_deploy.bench.measure import Effort
from ddpm_deploy.bench.record import OWN, PEER, Row

FEW, SOME, ALL = 12, 50, 1000
CHOICE = "any"
ALL_STEPS = "onnxruntime, all steps"
LOOPS = ("diffusers UniPC loop", "ONNX Runtime UniPC loop", "OpenVINO UniPC loop")
BATCHES = {"digits": (1, 16), "cifar10": (1,), "celebahq256": (1,)}

build = pictures


def specs(options: Options) -> list[Spec]:
    """UniPC at twelve evaluations, DDIM at fifty; in full also torch.compile, and DDPM with all its steps."""
    if options.model == "celebahq256" and not options.full:
        return []
    batches = options.batches or BATCHES.get(options.model, (1,))
    found = [spec for batch in batches for spec in _unipc(options, batch)]
    if options.model == "digits" or options.full:
        found += _ddim(options, batches[0])
    return found + (_thousand(options) if options.full else [])


def _unipc(options: Options, batch: int) -> list[Spec]:
    graphs = [(ONE_GRAPH, "fp32") for _ in options.own("onnxruntime") if options.model not in NETWORKS]
    own = [*own_contenders(options), *graphs]
    peers = (*LOOPS, *(["torch.compile UniPC loop"] if options.full else []))
    who = [(name, precision, OWN) for name, precision in own] + [(name, "fp32", PEER) for name in peers]
    work = f"a picture in {FEW} evaluations (UniPC)"
    return [Spec("sampling", work, name, precision, batch, kind, "unipc", FEW) for name, precision, kind in who]


def _ddim(options: Options, batch: int) -> list[Spec]:
    own = [(name, "fp32", OWN) for name in options.own("onnxruntime", "openvino")]
    who = [*own, ("diffusers DDIMPipeline", "fp32", PEER), ("ONNX Runtime DDIM loop", "fp32", PEER)]
    work = f"a picture in {SOME} evaluations (DDIM)"
    return [Spec("sampling", work, name, precision, batch, kind, "ddim", SOME) for name, precision, kind in who]


def _thousand(options: Options) -> list[Spec]:
    """What one picture takes where everybody chooses a solver: the paper's chain, or twelve evaluations."""
    work = "a picture, a thousand evaluations or twelve"
    if options.model == "celebahq256":
        return []
    own = [("onnxruntime", "fp32", OWN, "unipc", FEW), (ALL_STEPS, "fp32", OWN, "ddpm", ALL)]
    if options.model == "digits":
        own.insert(0, (ONE_GRAPH, "fp32", OWN, "unipc", FEW))
    peers = [("diffusers DDPMPipeline", "fp32", PEER, "ddpm", ALL), (LOOPS[0], "fp32", PEER, "unipc", FEW)]
    chosen = own if options.own("onnxruntime") else []
    rows = [(name, precision, 1, kind, *solver) for name, precision, kind, *solver in chosen + peers]
    return [Spec("sampling", work, *row, tag=CHOICE) for row in rows]


def time_group(options: Options, spec: Spec) -> TimeIt:
    """Seconds for a group; a thousand steps of a large network take minutes each, and so get few rounds."""
    if spec.tag == CHOICE:
        few = options.model != "digits"
        return in_rounds(Effort(budget_s=60, min_rounds=3 if few else 10, max_warmup=1 if few else 6), openings=1)
    return in_rounds(Effort(budget_s=60 if options.full else 15, min_rounds=15 if options.full else 20))


def test_sampling(row: Row) -> None:
    assert row.parity is not None
    assert row.nfe >= FEW
