"""A whole evaluation, for the pages and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ddpm_deploy.evaluate.bound import Bound, standard_error
from ddpm_deploy.evaluate.figures import Figures
from ddpm_deploy.evaluate.pareto import Trial, pareto_front, recommend

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Runtime:
    """What was measured of one runtime. bound, figures: None where that was not asked for."""

    name: str
    bound: Bound | None
    figures: Figures | None

    def differs(self, other: Runtime) -> tuple[float, float] | None:
        """Bits/dim more than another runtime's on the same noise, and the standard error of that; None if unknown."""
        if self.bound is None or other.bound is None:
            return None
        apart = (self.bound.totals - other.bound.totals).mean(axis=1)
        return float(apart.mean()), standard_error(apart)


@dataclass(frozen=True)
class Study:
    """The trials of a solver study; the first is the full chain."""

    trials: tuple[Trial, ...]

    @property
    def reference(self) -> Trial:
        return self.trials[0]

    @property
    def front(self) -> list[Trial]:
        return pareto_front(self.trials)

    @property
    def recommended(self) -> Trial:
        return recommend(self.trials, self.reference)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """about: model, data, features, plan and machine, for JSON. guided: by weight. pictures: PNG by file name.

    left_out: runtimes that were asked for and cannot be had here, with the reason.
    """

    about: Mapping[str, Any]
    baseline: Figures | None
    runtimes: tuple[Runtime, ...]
    guided: Mapping[float, Figures]
    study: Study | None
    pictures: Mapping[str, bytes]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain JSON."""
        return {
            "format": FORMAT,
            "about": dict(self.about),
            "real": _plain(self.baseline),
            "runtimes": [self._runtime(runtime) for runtime in self.runtimes],
            "left_out": [{"runtime": name, "reason": reason} for name, reason in self.left_out.items()],
            "guided": [{"guidance": weight, **asdict(figures)} for weight, figures in self.guided.items()],
            "study": None if self.study is None else _study(self.study),
        }

    def _runtime(self, runtime: Runtime) -> dict[str, Any]:
        apart = runtime.differs(self.runtimes[0]) if runtime is not self.runtimes[0] else None
        return {
            "runtime": runtime.name,
            "bits_per_dim": None if runtime.bound is None else _bound(runtime.bound),
            "bits_per_dim_difference": None if apart is None else {"value": apart[0], "standard_error": apart[1]},
            "samples": _plain(runtime.figures),
        }


def _bound(bound: Bound) -> dict[str, Any]:
    return {
        "value": bound.bits,
        "standard_error": bound.error,
        "standard_error_of_the_noise": bound.noise_error,
        "samples": len(bound.prior),
        "parts": dict(bound.parts()),
        "t": bound.t.tolist(),
        "terms": np.asarray(bound.per_step).tolist(),
    }


def _study(study: Study) -> dict[str, Any]:
    return {
        "trials": [asdict(trial) for trial in study.trials],
        "front": [trial.label for trial in study.front],
        "recommended": asdict(study.recommended),
    }


def _plain(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else asdict(figures)
