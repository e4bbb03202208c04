"""The simulated fleet against the formulas of queueing theory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks.serving.contenders import IN_FLIGHT
from benchmarks.serving.fleet import Pace, arrivals, simulate
from benchmarks.serving.load import MIX, Trace
from benchmarks.simulate_fleet import highest_load, pace_of, size_for
from ddpm_deploy.bench.record import read_report

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "serving-digits"

N = 60_000


def equal_calls(widest: int, seconds: float) -> Pace:
    """A machine in which as many samples as fit take no longer than one: so many servers."""
    return Pace(np.full(widest + 1, seconds))


def erlang_c(servers: int, load: float) -> float:
    """The probability of waiting in M/M/c. load: of all servers, 0 to 1."""
    a = servers * load
    last = a**servers / math.factorial(servers) / (1 - load)
    return last / (sum(a**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_of_fixed_service_waits_as_m_d_1(load: float) -> None:
    """The mean wait is load / (2 (1 - load)) services (Pollaczek and Khinchine)."""
    found = simulate(arrivals(load, N, seed=1), np.ones(N, int), equal_calls(1, 1.0), 1)
    assert np.mean(found.latency_s) - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.06)
    assert found.busy == pytest.approx(load, rel=0.02)
    assert found.occupancy == 1


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (4, 0.8)])
def test_servers_of_exponential_service_wait_as_m_m_c(servers: int, load: float) -> None:
    """Geometric numbers of short calls are nearly exponential; first come, first served; the wait is Erlang's C."""
    steps = np.random.default_rng(2).geometric(1 / 20, N)
    found = simulate(arrivals(servers * load / 20, N, seed=3), steps, equal_calls(servers, 1.0), 1, stretch=0)
    wait = erlang_c(servers, load) / (servers * (1 - load)) * 20
    assert np.mean(found.latency_s - steps) == pytest.approx(wait, rel=0.1)


def test_a_machine_that_slows_with_each_sample_shares_as_m_g_1_processor_sharing() -> None:
    """The mean slowdown is 1 / (1 - load), whatever the sizes (Kleinrock 1967)."""
    load, steps = 0.6, np.random.default_rng(4).permutation(np.resize([40, 120, 500], 20_000))
    pace = Pace(np.arange(401.0))
    found = simulate(arrivals(load / np.mean(steps), len(steps), seed=5), steps, pace, 1)
    assert np.mean(found.latency_s / steps) == pytest.approx(1 / (1 - load), rel=0.06)


def test_machines_that_are_chosen_blindly_are_as_many_single_ones() -> None:
    load, machines = 0.7, 50
    found = simulate(arrivals(load * machines, N, seed=6), np.ones(N, int), equal_calls(1, 1.0), machines, choices=1)
    assert np.mean(found.latency_s) - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def test_the_emptier_of_two_waits_less_than_any_of_one() -> None:
    at, steps = arrivals(0.85 * 50, 20_000, seed=7), np.ones(20_000, int)
    blind, two = (simulate(at, steps, equal_calls(1, 1.0), 50, choices=choices) for choices in (1, 2))
    assert np.mean(two.latency_s) - 1 < 0.5 * (np.mean(blind.latency_s) - 1)


def test_every_request_is_answered_and_none_sooner_than_alone() -> None:
    steps = np.resize([4, 12, 50], 3000)
    found = simulate(arrivals(30.0, 3000, seed=8), steps, Pace.between({1: 0.001, 32: 0.01}), 3)
    assert np.all(found.latency_s >= steps * 0.001 - 1e-12)
    assert 1 <= found.occupancy <= 32
    assert 0 < found.busy < 1


def test_short_requests_pass_long_ones() -> None:
    steps = np.array([1000] * 8 + [4])
    found = simulate(np.arange(9) * 0.5, steps, equal_calls(1, 1.0), 1)
    assert found.latency_s[-1] < 8


def test_a_fleet_is_as_large_as_holds_the_limit() -> None:
    pace = Pace.between({1: 0.0005, 8: 0.0015, 32: 0.0045})
    found = size_for(pace, (4, 12, 50), 2000.0)
    assert found.outcome.slowdown(99) <= 10.5
    smaller = 2000.0 / ((found.machines - 1) * pace.rows_per_s / 22)
    assert smaller > highest_load(pace, (4, 12, 50), found.machines - 1) - 0.05


@pytest.mark.parametrize("seed", [100, 101])
def test_a_machine_that_was_measured_is_simulated_within_a_factor_of_two(seed: int) -> None:
    """At half of the ceiling, by the arrivals of that very trial."""
    trials = [t for t in read_report(MEASURED).sections["serving_trials"] if t["contender"] == IN_FLIGHT]
    at_half = [t for t in trials if t["rate"] == min(t["rate"] for t in trials)][seed - 100]
    trace, steps = Trace.drawn(at_half["n"], seed), np.array([kind.steps for kind in MIX])
    found = simulate(trace.at / at_half["rate"], steps[trace.kinds], pace_of(MEASURED)[0], 1)
    for percent in (50, 99):
        measured = at_half[f"p{percent}"]
        assert measured / 2 < float(np.percentile(found.latency_s / found.alone_s, percent)) < measured * 1.2
