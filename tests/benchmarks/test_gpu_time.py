"""A run of the GPU program stays within its minutes: on a clock that only work moves, on fast and on slow devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import run as program
from benchmarks.gpu.asked import Asked, Group
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.pace import CONTENDERS, Pace, longest_s
from benchmarks.gpu.parity import OVER
from benchmarks.gpu.paths import COMPILED
from benchmarks.gpu.paths import Path as Contestant
from benchmarks.gpu.peers import COMPILED_LOOP, EAGER_LOOP
from benchmarks.gpu.skipping import left_out, untimed_entry
from ddpm_deploy.bench.measure import Contender, Effort, interleave, round_seconds
from ddpm_deploy.bench.record import OWN, PEER, TWIN, Parity

LARGEST = Group("cifar10", "ddpm", 1000, 256, "bf16")
SPEEDS = {"torch": 1.0, EAGER_LOOP: 5.0, COMPILED_LOOP: 1.3, COMPILED: 0.9}


class Simulation:
    """A device on which an evaluation takes `launch_s`, and `sample_s` for each sample."""

    def __init__(self, launch_s: float, sample_s: float, compile_s: float) -> None:
        self.launch_s, self.sample_s, self.compile_s = launch_s, sample_s, compile_s
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def evaluation_s(self, batch: int, contender: str = EAGER_LOOP) -> float:
        return self.launch_s * SPEEDS[contender] + self.sample_s * batch

    def subject(self) -> Any:
        """Its reference is as slow as an eager loop."""
        reference = SimpleNamespace(seconds=self.evaluation_s, judge=self.judge, known=set())
        self.known = reference.known
        sampler = SimpleNamespace(sample=lambda *a, **k: self.spend(0.1), plan=lambda: None)
        return SimpleNamespace(reference=reference, sampler=lambda *a: sampler, free=lambda: None, close=lambda: None)

    def judge(self, path: Any, precision: str, batch: int) -> Parity:
        if (path.plan.nfe, batch) not in self.known:
            self.spend(path.plan.nfe * self.evaluation_s(batch))
        self.known.add((path.plan.nfe, batch))
        path.draw()
        return Parity({"final_psnr_db": 60.0}, "", "trained")

    def contenders(self, group: Group, subject: Any, *, rehearse: bool) -> Iterator[Any]:
        kinds = {"torch": OWN, EAGER_LOOP: PEER, COMPILED_LOOP: PEER, COMPILED: OWN}
        for name, kind in kinds.items():
            yield group.spec(name, kind), partial(self.open, name, group)
            if name == "torch":
                yield group.spec(name, TWIN), partial(self.open, name, group)

    def open(self, name: str, group: Group) -> Contestant:
        scale = program.DIGITS if group.model == "digits" else 1.0
        self.spend(scale * self.compile_s if name in (COMPILED, COMPILED_LOOP) else 2.0)
        draw_s = group.steps * self.evaluation_s(group.batch, name)
        plan: Any = SimpleNamespace(nfe=group.steps)

        def draw() -> Any:
            self.spend(draw_s)
            return np.zeros(1)

        return Contestant(draw, plan)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    @contextmanager
    def begin(simulation: Simulation) -> Iterator[program.Run]:
        run = program.Run(Asked(tmp_path / "report.json"), lambda text: None)
        run.clock = Clock(480.0, simulation.time)
        run._subjects |= {name: simulation.subject() for name in ("cifar10", "digits")}
        yield run

    def measured(launch_s: float, sample_s: float, compile_s: float) -> tuple[program.Run, float]:
        simulation = Simulation(launch_s, sample_s, compile_s)
        wall = {"wall_s": 1.0, "wall_over_events": 1.01}
        facts = {"host_facts": lambda call, stream: call() or wall, "kernel_facts": lambda call, wall_s: {}}
        clocked = SimpleNamespace(perf_counter=simulation.time)
        replaced: dict[str, Any] = {
            "contenders": simulation.contenders, "interleave": partial(interleave, clock=simulation.time),
            "batch_invariance": lambda sampler, sizes: sampler.sample(), "snapshot": lambda device, when: None,
            "stream_of": lambda sampler: None, "time": clocked, "write_report": lambda report, out: None, **facts,
        }  # fmt: skip
        for name, stand_in in replaced.items():
            monkeypatch.setattr(program, name, stand_in)
        monkeypatch.setattr(program.Run, "_measure_limits", lambda self: simulation.spend(30))
        monkeypatch.setattr(program.Run, "_open_models", lambda self: simulation.spend(20))
        monkeypatch.setattr(program.Run, "_percent", lambda self, group, seconds: None)
        with begin(simulation) as run:
            run.run()
        return run, simulation.now

    return measured


@pytest.mark.parametrize(
    ("launch_s", "sample_s", "compile_s"),
    [(4e-3, 1e-6, 15.0), (5e-4, 3e-5, 110.0), (2e-2, 1e-6, 110.0), (2e-3, 1e-3, 110.0)],
)
def test_run_ends_within_its_minutes_and_names_what_it_left_out(
    launch_s: float, sample_s: float, compile_s: float, simulated: Any
) -> None:
    run, seconds = simulated(launch_s, sample_s, compile_s)
    assert 240 < seconds <= 480
    timed, left_out = {group for group, _ in run._timed}, set(run.findings.untimed)
    assert timed.isdisjoint(left_out)
    assert timed | left_out == set(run.asked.groups())
    assert run.asked.groups()[0] in timed
    assert LARGEST in left_out
    assert run.findings.busy
    assert all("-b" in what for what in run.findings.skipped)  # contenders, and no group that was begun


def test_what_contenders_took_with_one_solver_is_expected_of_another() -> None:
    pace = Pace(lambda round_s: Effort(8.0, 5, 20, 3))
    short = Group("cifar10", "unipc", 12, 256, "bf16")
    assert pace.round_s(LARGEST, reference_s=0.1) == 1000 * CONTENDERS * 0.1
    pace.learn(short, "torch bf16", 0.12)
    pace.learn(short, "eager bf16", 0.24)
    assert pace.round_s(LARGEST, 0.1) == pytest.approx(30.0)
    assert pace.draws_s(LARGEST, "torch bf16", 0.1) == pytest.approx(20.0)
    assert pace.draws_s(LARGEST, "another", 0.1) == pytest.approx(200.0)
    assert pace.group_s(LARGEST, 0.1) == pytest.approx(200 + 60 + 8 * 30)
    other = Group("cifar10", "unipc", 12, 256, "fp16")
    assert pace.round_s(other, 0.1) == pytest.approx(12 * CONTENDERS * 0.1)


@pytest.mark.parametrize("round_s", [0.001, 0.01, 0.5, 3.0, 40.0])
def test_rounds_never_go_on_for_longer_than_said(round_s: float) -> None:
    for effort in (Effort(8.0, 5, 20, 3), Effort(6.0, 10, 100, 10)):
        simulation = Simulation(0, 0, 0)
        interleave([Contender("a", partial(simulation.spend, round_s))], effort, clock=simulation.time)
        most_s = longest_s(effort, round_seconds([round_s]))
        assert simulation.now <= most_s * (1 + 1e-9)


def test_contender_that_is_missing_in_many_groups_is_one_line_for_each_model() -> None:
    groups = [Group(model, "unipc", 12, batch, "bf16") for model in ("cifar10", "digits") for batch in (1, 256)]
    skipped = {group.spec("tensorrt").id: "no GPU for it" for group in groups}
    skipped |= {group.spec(COMPILED_LOOP, PEER).id: f"takes {group.batch} s" for group in groups}
    skipped |= {group.spec("torch").id: f"{OVER}: final_psnr_db is {group.batch}" for group in groups}
    skipped["limits"] = "no GPU for it"
    found = {entry["what"]: entry["reason"] for entry in left_out(skipped)}
    assert len(found) == 2 + 2 + 4 + 1
    assert found["sampling[tensorrt-bf16-b1-unipc12-cifar10] and 1 more like it"] == "no GPU for it"
    assert found["sampling[torch.compile_loop-bf16-b1-unipc12-digits] and 1 more like it"] == "takes 1 s"
    assert found["sampling[torch-bf16-b256-unipc12-digits]"].endswith("256")


def test_all_groups_without_time_are_one_line() -> None:
    groups = [LARGEST, Group("digits", "ddim", 50, 8, "fp16"), Group("cifar10", "ddpm", 1000, 64, "bf16")]
    entry = untimed_entry(groups, 96)
    assert entry["what"] == "3 of 96 groups"
    assert "cifar10 DDPM-1000: bf16 64 256; digits DDIM-50: fp16 8" in entry["reason"]
    assert "\n" not in entry["reason"]
    assert "--minutes" in entry["reason"]
