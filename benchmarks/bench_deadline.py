"""Batch 1 at a fixed rate, as a robot's control loop: how often a picture is late, and by how much.

Each tick asks for one whole sample by the model's default plan. Times are from the tick to the sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import Again, TimeIt, Times
from benchmarks.specs import Options, Spec, own_contenders
from benchmarks.subjects import pictures
from ddpm_deploy.bench.deadline import Deadline, keep_pace
from ddpm_deploy.bench.measure import Contender
from ddpm_deploy.bench.record import OWN, PEER, Row

NFE = 12
PEERS = ("diffusers UniPC loop", "ONNX Runtime UniPC loop")
RATES_HZ = {"digits": 25.0, "cifar10": 0.5, "celebahq256": 0.02}
TICKS, TICKS_FULL = 150, 600

build = pictures


def specs(options: Options) -> list[Spec]:
    """What one would put into a robot, and what one would put there first; large networks only in full."""
    if options.model != "digits" and not options.full:
        return []
    own = [(name, precision, OWN) for name, precision in own_contenders(options) if name != "torch"]
    who = [*own, *((name, "fp32", PEER) for name in PEERS)]
    work = f"a sample at {rate_hz(options):g} Hz, {NFE} evaluations"
    return [Spec("deadline", work, name, precision, 1, kind, "unipc", NFE) for name, precision, kind in who]


def rate_hz(options: Options) -> float:
    """Ticks a second: what was asked for, or one that a good backend can keep on two cores."""
    return options.rate_hz or RATES_HZ.get(options.model, RATES_HZ["digits"])


def pace(options: Options) -> tuple[float, int]:
    """Seconds of a period, and how many; slow rates get fewer."""
    period_s = 1 / rate_hz(options)
    ticks = TICKS_FULL if options.full else TICKS
    return period_s, ticks if period_s < 0.1 else max(10, int(ticks * 0.05 / period_s))


def time_group(options: Options, spec: Spec) -> TimeIt:
    """By turns at the rate, instead of in rounds."""
    period_s, ticks = pace(options)

    def time_it(contenders: Sequence[Contender], again: Again) -> dict[str, Times]:
        return {name: _times(deadline) for name, deadline in keep_pace(contenders, period_s, ticks).items()}

    return time_it


def _times(deadline: Deadline) -> Times:
    facts = {"period_ms": 1e3 * deadline.period_s, "missed": deadline.missed, "of": len(deadline.response_s)}
    return Times(deadline.response_s, extra=facts)


def test_deadline(row: Row) -> None:
    assert row.parity is not None
    assert row.extra["of"] == len(row.samples_s) >= row.extra["missed"]
