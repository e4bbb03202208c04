"""Contenders of one group, opened again and again: what is timed is the same program, in other memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.specs import Spec, name_of
from ddpm_deploy.bench.measure import Contender, opening_order
from ddpm_deploy.bench.record import Parity
from ddpm_deploy.errors import DdpmDeployError, ParityError
from ddpm_deploy.parity.measure import relative_l2

SAME = {"fp32": 1e-5}  # relative L2 of what a contender gives from what it gave when it was judged
SAME_REDUCED = 0.02

Opened = Callable[[int], Sequence[Contender]]  # the contenders, opened for the k-th time


@dataclass(frozen=True)
class Trial:
    """A contender that is open and ready. judge: its parity, or ParityError. nfe: evaluations in one call."""

    call: Callable[[], object]
    judge: Callable[[], Parity | None]
    nfe: int = 1
    synchronise: Callable[[], object] = lambda: None
    limit: Callable[[Sequence[float]], tuple[float, str] | None] = lambda seconds: None
    note: str = ""


class Openings:
    """Called with k it gives the contenders, opened for the k-th time in an order of its own.

    trials: as they were opened and judged first; they become those that are open. Each is called once where it is
    opened, as runtimes take their memory then, and has to give what it gave when it was judged.
    """

    def __init__(
        self, trials: dict[Spec, Trial], build: Callable[[Spec], Trial], close_all: Callable[[], object]
    ) -> None:
        self._trials, self._build, self._close_all = trials, build, close_all
        self._first = {spec: trial.call() for spec, trial in trials.items()}

    def __call__(self, k: int) -> list[Contender]:
        specs = list(self._first)
        order = [specs[i] for i in opening_order(len(specs), k)]
        if k:
            self._close_all()
            for spec in order:
                self._trials[spec] = self._again(spec)
        return [Contender(name_of(s), self._trials[s].call, self._trials[s].synchronise) for s in order]

    def _again(self, spec: Spec) -> Trial:
        try:
            trial = self._build(spec)
            now, first = trial.call(), self._first[spec]
        except (DdpmDeployError, ImportError) as error:
            raise RuntimeError(f"{spec.id}: was opened once, but not again: {error}") from error
        if isinstance(now, np.ndarray) and isinstance(first, np.ndarray):
            apart = relative_l2(now, first)
            if not apart <= SAME.get(spec.precision, SAME_REDUCED):
                raise ParityError(f"{spec.id}: opened again it is {apart:.2g} (relative L2) from what was judged")
        return trial
