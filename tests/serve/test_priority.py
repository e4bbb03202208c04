"""Drawing comes after answering: the priority of threads."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from ddpm_deploy.serve.priority import MOST, made_nicely

linux = pytest.mark.skipif(sys.platform != "linux", reason="nice is of a thread on Linux only")


def own_niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@linux
def test_what_is_made_starts_its_threads_at_a_lower_priority_and_the_maker_keeps_its_own() -> None:
    before, seen = own_niceness(), []

    def make() -> threading.Thread:
        thread = threading.Thread(target=lambda: seen.append(own_niceness()))
        thread.start()
        return thread

    made_nicely(5, make).join()
    assert seen == [min(before + 5, MOST)]
    assert own_niceness() == before


def test_errors_of_the_maker_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        made_nicely(0, lambda: 1 // 0)


@pytest.mark.parametrize("nice", [-1, MOST + 1])
def test_a_priority_that_does_not_exist_is_refused(nice: int) -> None:
    with pytest.raises(ValueError, match="nice: got"):
        made_nicely(nice, lambda: None)


def test_where_threads_have_none_of_their_own_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_deploy.serve.priority.NICE_IS_BY_THREAD", False)
    with pytest.raises(ValueError, match="on Linux only"):
        made_nicely(1, lambda: None)
