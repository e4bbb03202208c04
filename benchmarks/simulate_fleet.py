"""How many machines for how many requests: latency, occupancy and cost of a fleet, from one machine's step times.

    pytest benchmarks/bench_serving.py --full
    python -m benchmarks.simulate_fleet benchmarks/reports/digits-full-part --rates 1000,10000,1000000
    python -m benchmarks.simulate_fleet --measure --into docs/serving.md --plot docs/img/fleet.png

A fleet is large enough where 99 % of its requests take at most ten times as long as alone. What is simulated is in
serving/fleet.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.contenders import IN_FLIGHT
from benchmarks.serving.fleet import Outcome, Pace, arrivals, simulate
from benchmarks.serving.load import LIMIT, MIX, Trace
from benchmarks.serving.page import into
from ddpm_deploy.bench.record import read_report
from ddpm_deploy.bench.report.summary import device_in_words
from ddpm_deploy.bench.report.words import number

STEP_SECTION, ALONE_SECTION, TRIAL_SECTION = "serving_steps", "serving_alone", "serving_trials"
MARK = "python -m benchmarks.simulate_fleet"
STEPS = tuple(kind.steps for kind in MIX)
RATES = (10.0, 100.0, 1000.0, 10_000.0, 1_000_000.0)
LOADS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
FLEETS = (1, 4, 40)
PER_MACHINE, AT_LEAST, AT_MOST = 2000, 20_000, 200_000  # simulated requests; with fewer a fleet would not fill
SIMULATED = 100  # machines; of more, each sees what it sees among these (Mitzenmacher 2001)
FULL = 0.9  # what no machine is loaded beyond: so near its end, a simulation of some seconds says too little
TRACES = 40  # simulated beside a run
CLOSE = 0.02  # of a machine's most, how near the search for a load comes


@dataclass(frozen=True)
class Size:
    """A fleet for a rate of requests. load: of what the machines can do at most."""

    rate: float
    machines: int
    load: float
    outcome: Outcome


def fleet_at(pace: Pace, steps: Sequence[int], machines: int, load: float) -> Outcome:
    """A fleet under a share of the most that it can do."""
    n = min(max(PER_MACHINE * machines, AT_LEAST), AT_MOST)
    rate = load * machines * pace.rows_per_s / float(np.mean(steps))
    asked = np.random.default_rng(1).permutation(np.resize(steps, n))
    return simulate(arrivals(rate, n, seed=0), asked, pace, machines)


def highest_load(pace: Pace, steps: Sequence[int], machines: int) -> float:
    """The share, up to FULL, at which 99 % of the requests are still in time."""
    low, high = 0.0, FULL
    while high - low > CLOSE:
        middle = (low + high) / 2
        if fleet_at(pace, steps, machines, middle).slowdown(99) <= LIMIT:
            low = middle
        else:
            high = middle
    return low


def size_for(pace: Pace, steps: Sequence[int], rate: float) -> Size:
    """The smallest fleet for a rate of requests a second."""
    per_machine = pace.rows_per_s / float(np.mean(steps))
    machines = max(1, int(np.ceil(rate / per_machine)))
    while True:
        load = highest_load(pace, steps, min(machines, SIMULATED))
        needed = int(np.ceil(rate / (per_machine * max(load, CLOSE))))
        if needed <= machines:
            break
        machines = needed
    at = rate / (machines * per_machine)
    return Size(rate, machines, at, fleet_at(pace, steps, min(machines, SIMULATED), at))


def table(pace: Pace, steps: Sequence[int], rates: Sequence[float], price_per_hour: float | None) -> str:
    """The smallest fleets, as Markdown."""
    heads = ["requests/s", "machines", "of the most they can do", "p50, times alone", "p99", "samples a call", "busy"]
    heads += [] if price_per_hour is None else ["cost of a million requests"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for rate in rates:
        found = size_for(pace, steps, rate)
        cells = [f"{rate:,.0f}", f"{found.machines:,}", f"{found.load:.0%}", number(found.outcome.slowdown(50))]
        cells += [number(found.outcome.slowdown(99)), number(found.outcome.occupancy), f"{found.outcome.busy:.0%}"]
        if price_per_hour is not None:
            cells.append(number(found.machines * price_per_hour / 3600 / rate * 1e6))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def advice(pace: Pace, steps: Sequence[int], rates: Sequence[float], price_per_hour: float | None, what: str) -> str:
    """The table and what it is of."""
    most = pace.rows_per_s / float(np.mean(steps))
    mix = ", ".join(map(str, steps))
    return (
        f"{what}, {in_words(pace.streams)}: a call lasts {1e3 * pace.step_s[1]:.3g} ms for one sample and "
        f"{1e3 * pace.step_s[-1]:.3g} ms for {pace.widest}; so a machine draws at most {number(most)} requests a "
        f"second of {mix} steps, each as often. "
        f"The smallest fleets of which 99 % of the requests take at most {LIMIT:g} times as long as alone:\n\n"
        + table(pace, steps, rates, price_per_hour)
    )


def in_words(streams: int) -> str:
    return f"{streams} streams" if streams > 1 else "one stream"


def plot(pace: Pace, steps: Sequence[int], path: Path) -> None:
    """Slowdown by load, for fleets of several sizes; the ending of `path` is the format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for machines, colour in zip(FLEETS, ("#D55E00", "#0072B2", "#009E73"), strict=True):
        p99 = [fleet_at(pace, steps, machines, load).slowdown(99) for load in LOADS]
        axes.plot([100 * load for load in LOADS], p99, color=colour, label=f"{machines:,} machine{'s'[: machines > 1]}")
    axes.axhline(LIMIT, color="#8c959f", linewidth=1)
    axes.set(xlabel="load, % of the most that the machines can do", ylabel="p99, times alone", ylim=(0, 3 * LIMIT))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pace_of(folder: Path) -> tuple[Pace, str]:
    """The step times of a report, and whose they are."""
    report = read_report(folder)
    seconds = {int(fact["batch"]): float(fact["step_s"]) for fact in report.sections.get(STEP_SECTION, ())}
    alone = {int(fact["steps"]): float(fact["alone_s"]) for fact in report.sections.get(ALONE_SECTION, ())}
    streams = max((int(fact.get("streams", 1)) for fact in report.sections.get(STEP_SECTION, ())), default=1)
    if not seconds:
        raise ValueError(f"{folder}: has no section {STEP_SECTION}; run pytest benchmarks/bench_serving.py first")
    return Pace.between(seconds, alone, streams), f"{report.model['name']} on {device_in_words(report.machine)}"


def beside(folder: Path, pace: Pace) -> str:
    """What the run itself measured at the rates that it tried twice, and what a simulation of one machine says."""
    tried: dict[float, list[Mapping[str, Any]]] = {}
    for trial in read_report(folder).sections.get(TRIAL_SECTION, ()):
        if trial["contender"] == IN_FLIGHT and not trial["stopped"]:
            tried.setdefault(float(trial["rate"]), []).append(trial)
    said = []
    for rate, trials in sorted(tried.items()):
        if len(trials) < 2:
            continue
        found = [_p99(pace, Trace.drawn(int(trials[0]["n"]), seed), rate) for seed in range(TRACES)]
        low, middle, high = np.percentile(found, (10, 50, 90))
        there = " and ".join(number(float(trial["p99"])) for trial in trials)
        said.append(
            f"at {rate:.3g} requests/s {there} times as long as alone, "
            f"in simulations {number(middle)} ({number(low)} to {number(high)})"
        )
    return f"Beside it, of one machine, 99 % took at most: {'; '.join(said)}." if said else ""


def _p99(pace: Pace, trace: Trace, rate: float) -> float:
    outcome = simulate(trace.at / rate, np.array(trace.of_kinds(STEPS), np.int64), pace, 1)
    return float(np.percentile(outcome.latency_s / outcome.alone_s, 99))


def measured() -> tuple[Pace, str]:
    """The step times of the digits model in an engine here."""
    from benchmarks.serving.pace import engine_steps, measure_pace
    from ddpm_deploy.serve import open_streams

    with open_streams() as samplers:
        alone = dict(zip(STEPS, measure_pace(samplers, (1,)).alone_s, strict=True))
        pace = Pace.between(engine_steps(samplers), alone, len(samplers))
        return pace, f"{samplers[0].manifest.model.name}, here"


def numbers(text: str) -> list[float]:
    """Of a list with commas."""
    return [float(word) for word in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("reports", nargs="*", type=Path, help="report folders of pytest benchmarks/bench_serving.py")
    add("--measure", action="store_true", help="measure the digits model here instead: half a minute")
    add("--rates", type=numbers, default=RATES, metavar="A,B", help="requests a second")
    add("--steps", type=numbers, default=STEPS, metavar="A,B", help="steps of the requests, each as often")
    add("--price-per-hour", type=float, help="of a machine; adds the cost of a million requests")
    add("--into", type=Path, metavar="PAGE", help="write the tables there, between its marks")
    add("--plot", type=Path, metavar="FILE", help="draw latency by load, of the first report, as .png or .svg")
    args = parser.parse_args(argv)
    if args.measure == bool(args.reports):
        parser.error("reports, --measure: expected report folders or --measure, one of the two")
    paces = [measured()] if args.measure else [pace_of(folder) for folder in args.reports]
    steps = [int(count) for count in args.steps]
    texts = [advice(pace, steps, args.rates, args.price_per_hour, what) for pace, what in paces]
    texts += filter(None, (beside(folder, pace) for folder, (pace, _) in zip(args.reports, paces, strict=False)))
    text = "\n\n".join(texts)
    print(text)
    if args.into is not None:
        into(args.into, MARK, text)
    if args.plot is not None:
        plot(paces[0][0], steps, args.plot)


if __name__ == "__main__":
    main()
