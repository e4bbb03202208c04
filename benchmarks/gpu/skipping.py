"""What is left out of a run, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from benchmarks.gpu.asked import MODELS, PRECISIONS, Group
from benchmarks.gpu.parity import OVER
from ddpm_deploy.backends.base import one_line

ROW = re.compile(rf"\w+\[(.+)-(?:{'|'.join(PRECISIONS)})-b\d+-\w+-({'|'.join(MODELS)})\b")  # contender and model
NUMBER = re.compile(r"\d+")
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+")


class Skipping:
    """Turns any failure into a skip with its reason: a run on a borrowed machine must bring home what it can."""

    def __init__(self, what: str, skipped: dict[str, str], say: Callable[[str], object]) -> None:
        self._what, self._skipped, self._say = what, skipped, say

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._skipped[self._what] = without_folders(one_line(error))[:500] or type(error).__name__
        self._say(f"skipped {self._what}: {self._skipped[self._what][:160]}")
        return True


def without_folders(text: str) -> str:
    """The last part of every absolute path: a report that is published names no machine's folders."""
    return FOLDERS.sub("", text)


def left_out(skipped: Mapping[str, str]) -> list[dict[str, str]]:
    """One line for a contender that was skipped in several groups of a model for the same reason, numbers apart.

    Those that were out of their parity budget keep a line each: there the numbers count. skipped: {what: reason}.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for what, reason in skipped.items():
        found = ROW.match(what)
        key = (what,) if found is None or reason.startswith(OVER) else (*found.groups(), NUMBER.sub("", reason))
        alike.setdefault(key, []).append(what)
    return [{"what": _with_more(whats), "reason": skipped[whats[0]]} for whats in alike.values()]


def _with_more(whats: Sequence[str]) -> str:
    return whats[0] if len(whats) == 1 else f"{whats[0]} and {len(whats) - 1} more like it"


def untimed_entry(groups: Sequence[Group], asked: int) -> dict[str, str]:
    """One line for all groups that did not fit into the time. asked: how many there were in all."""
    batches: dict[str, dict[str, list[int]]] = {}
    for group in groups:
        batches.setdefault(group.solution, {}).setdefault(group.precision, []).append(group.batch)
    said = [f"{solution}: {_in_words(by_precision)}" for solution, by_precision in batches.items()]
    reason = f"would not have fitted into the time that was left; give more --minutes ({'; '.join(said)})"
    return {"what": f"{len(groups)} of {asked} groups", "reason": reason}


def _in_words(batches: dict[str, list[int]]) -> str:
    """{precision: batches}, as `bf16 1 8, fp16 64`."""
    return ", ".join(" ".join([precision, *map(str, sorted(sizes))]) for precision, sizes in batches.items())
