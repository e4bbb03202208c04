"""The soak: what is judged flat, and a short one for real."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks.serving.page import into, marks
from benchmarks.serving.process_facts import growth, look
from benchmarks.serving.soak_client import Clock
from benchmarks.soak_serving import soak

SIZE = 30 * 2**20
AT = np.arange(600.0)
NOISE = np.random.default_rng(0).normal(size=600)


def test_noise_without_a_slope_is_flat() -> None:
    found = growth(AT, 100 + NOISE, allowed=2.0)
    assert found.flat
    assert found.low < 0 < found.high


def test_a_leak_is_not_flat_and_its_growth_is_what_was_lost() -> None:
    found = growth(AT, 100 + NOISE + 0.01 * AT, allowed=2.0)
    assert not found.flat
    assert found.low < 5.99 < found.high
    assert found.growth == pytest.approx(6, abs=0.5)


def test_a_slope_that_cannot_be_told_from_noise_is_not_called_flat() -> None:
    assert not growth(AT[:12], 100 + 20 * NOISE[:12], allowed=2.0).flat


def test_a_burst_is_no_growth() -> None:
    values = 100 + NOISE
    values[200:210] += 500
    assert growth(AT, values, allowed=2.0).flat


def test_too_short_a_run_is_refused() -> None:
    with pytest.raises(ValueError, match="run for longer"):
        growth(AT[:6], NOISE[:6], allowed=1.0)


def test_a_look_sees_this_process() -> None:
    before = look(os.getpid(), 0.0)
    with mmap.mmap(-1, SIZE) as held, open(os.devnull):  # an array might be given memory that was held before
        held.write(bytes([1]) * SIZE)
        after = look(os.getpid(), 1.0)
    assert after.files == before.files + 1
    assert after.rss - before.rss > SIZE / 2
    assert after.threads >= 1


def test_time_stands_still_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock()
    excused = []
    for moment in (1.0, 2.0, 900.0, 901.0, 902.0, 903.0, 904.0, 905.0, 906.0):
        now[0] = moment
        clock.tick(1.0)
        excused.append(clock.excused)
    assert clock.now == 9.0
    assert clock.pauses == 1
    assert excused == [False, False, True, True, True, True, True, False, False]
    now[0] = 950.0  # stopped again, and not yet looked at
    assert clock.excused


def test_a_page_keeps_what_is_around_its_marks(tmp_path) -> None:
    begin, end = marks("a command")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for text in ("new", "newer"):
        into(page, "a command", text)
    assert page.read_text() == f"before\n{begin}\n\nnewer\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="expected the lines"):
        into(page, "another command", "text")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_short_soak_of_the_real_service_loses_nothing_and_leaves_nothing_open() -> None:
    found = soak(10.0, every_s=0.25, rest_s=0.05)
    assert not found.tally.wrong
    counts = found.tally.counts
    assert all(counts[what] for what in ("picture", "stream", "stream left", "request left", "bad request"))
    assert found.idle_after.files <= found.idle_before.files
    assert found.growths["file descriptors"].first > 0
    assert "| memory, MiB |" in found.table()
