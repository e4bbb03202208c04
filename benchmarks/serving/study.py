"""What the serving suite measures, and how it says so: figures for the report's section `serving`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks.serving.contenders import (
    IN_FLIGHT,
    ONE_BY_ONE,
    WHOLE,
    Contender,
    InFlight,
    due_first,
    oldest_first,
    one_by_one,
)
from benchmarks.serving.goodput import LOWEST, WANTED, Search, search, steps_between
from benchmarks.serving.load import LIMIT, MIX, Flood, Trace, Trial, flood, offer
from benchmarks.serving.pace import Pace, in_words
from ddpm_deploy import Sampler
from ddpm_deploy.errors import QueueFull

Make = Callable[[], Contender]
OLDEST, DUE = f"{WHOLE}, oldest first", f"{WHOLE}, due first"
GUESSES = {IN_FLIGHT: 0.7, WHOLE: 0.4, ONE_BY_ONE: 0.15}  # of the ceiling, by how a name begins: where a search does
SHARES = (WANTED, 0.75, 0.65, 0.5)  # of the ceiling; what is tried on a large network
ROOM = 0.5  # of the limit, that a bounded engine uses up
OVERLOADS = (1.0, 2.0, 10.0)  # times the ceiling


@dataclass(frozen=True)
class Scale:
    """How much is measured. n: requests of a trial. ratio: of neighbouring rates. flood_s: seconds of a flood."""

    n: int
    traces: int
    ratio: float
    flood_s: float


QUICK, FULL = Scale(100, 1, 1.25, 1.5), Scale(300, 3, 1.05, 5.0)


@dataclass
class Study:
    """A model under load. say: takes a figure. step_s: of an engine's calls, by how many samples share one.

    paces: of the sampler with all threads, and of the engine's streams, where these are several.
    """

    streams: Sequence[Sampler]
    paces: Mapping[Sequence[Sampler], Pace]
    scale: Scale
    say: Callable[..., object]
    step_s: Mapping[int, float]
    trials: dict[str, list[Trial]] = field(default_factory=dict)

    @property
    def sampler(self) -> Sampler:
        """With all threads."""
        return next(iter(self.paces))[0]

    @property
    def alone_s(self) -> tuple[float, ...]:
        """Of each kind, in whichever way it is faster."""
        return tuple(min(seconds) for seconds in zip(*(pace.alone_s for pace in self.paces.values()), strict=True))

    @property
    def ceiling(self) -> float:
        """Requests a second at the largest useful batch, in whichever way there are more."""
        return max(pace.ceiling(pace.useful(sum(self.alone_s))) for pace in self.paces.values())

    @property
    def capacity(self) -> int:
        """How many samples an engine may hold so that most of the limit, not all, is used up."""
        rows_per_s = len(self.streams) * max(batch / seconds for batch, seconds in self.step_s.items())
        alone_step_s = min(seconds / kind.steps for seconds, kind in zip(self.alone_s, MIX, strict=True))
        return max(1, int(ROOM * LIMIT * alone_step_s * rows_per_s))

    @property
    def makers(self) -> dict[str, Make]:
        """Everybody, by name; whole requests are tried on one sampler and on several."""
        found: dict[str, Make] = {IN_FLIGHT: partial(InFlight, self.streams)}
        for way, pace in self.paces.items():
            widest, where = max(pace.full_s), "" if len(way) == 1 else f", {in_words(way)}"
            found[OLDEST + where] = partial(oldest_first, way, widest)
            found[DUE + where] = partial(due_first, way, widest, self.alone_s)
        return {**found, ONE_BY_ONE: partial(one_by_one, self.sampler)}

    def whole(self, names: Iterable[str]) -> list[list[str]]:
        """Those of whole requests: on one sampler, and on several."""
        found = [name for name in names if name.startswith(WHOLE)]
        one = [name for name in found if name in (OLDEST, DUE)]
        return [ways for ways in (one, [name for name in found if name not in one]) if ways]

    def trial(self, name: str, trace: Trace, rate: float, *, stop_when_lost: bool = True) -> Trial:
        """A contender, made for it, at a rate."""
        with closing(self.makers[name]()) as contender:
            found = offer(contender.submit, trace, rate, self.alone_s, stop_when_lost=stop_when_lost)
        self.trials.setdefault(name, []).append(found)
        return found

    # -- figures --------------------------------------------------------------------------------------------------

    def say_pace(self) -> None:
        """Latency alone, and the ceiling."""
        for way, pace in self.paces.items():
            for kind, seconds in zip(MIX, pace.alone_s, strict=True):
                figure = f"alone, {kind.solver} {kind.steps}"
                self.say(figure=figure, contender=in_words(way), value=1e3 * seconds, unit="ms")
        one = self.paces[next(iter(self.paces))]
        for kind, seconds in zip(MIX, one.full_s[1], strict=True):
            figure = f"one after another, {kind.solver} {kind.steps}"
            self.say(figure=figure, contender="sampler, never idle", value=1e3 * seconds, unit="ms")
        for way, pace in self.paces.items():
            useful, widest = pace.useful(sum(self.alone_s)), max(pace.full_s)
            for batch, what in ((useful, "largest useful batch"), (widest, "largest batch")):
                self.say(
                    figure="batching ceiling", contender=f"{in_words(way)}, {what}, {batch}",
                    value=pace.ceiling(batch), unit="requests/s",
                )  # fmt: skip

    def goodput(self) -> dict[str, list[float]]:
        """The highest rate of each contender that held, by trace; of whole requests the best way goes on alone."""
        found: dict[str, list[float]] = {}
        names = list(self.makers)
        for number in range(self.scale.traces):
            trace = Trace.drawn(self.scale.n, seed=number)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found.setdefault(name, []).append(self._search(name, trace, found.get(name)).rate)
            if number == 0:
                best = {max(ways, key=lambda name: found[name][0]) for ways in self.whole(names)}
                names = [name for name in names if name in best or not name.startswith(WHOLE)]
        return found

    def _search(self, name: str, trace: Trace, before: Sequence[float] | None) -> Search:
        """Where it begins: at what held on the last trace, or at a guess."""
        guess = next(share for beginning, share in GUESSES.items() if name.startswith(beginning))
        start = before[-1] if before and before[-1] else guess * self.ceiling
        return search(lambda rate: self.trial(name, trace, rate), steps_between(self.ceiling, self.scale.ratio), start)

    def say_goodput(self, found: dict[str, list[float]]) -> None:
        """Medians over the traces, and ours over the others' of the same trace."""
        ours = np.array(found[IN_FLIGHT])
        for name, values in found.items():
            remark = "" if len(values) == len(ours) else "on the first trace only, where another way did better"
            self.say(
                figure=f"goodput, 99 % within {LIMIT:g}x of alone", contender=name, value=float(np.median(values)),
                unit="requests/s", spread=_spread(values), n=self.scale.n * len(values), remark=remark,
            )  # fmt: skip
        whole = [max(ways, key=lambda name: (len(found[name]), found[name][0])) for ways in self.whole(found)]
        for name, target in (*((name, 1.5) for name in whole), (ONE_BY_ONE, 2.5)):
            least = LOWEST * self.ceiling  # where not even that held, the ratio is this or more
            ratios = ours / np.maximum(found[name], least)
            ratio, more = float(np.median(ratios)), " or more" if min(found[name]) < least else ""
            self.say(
                figure=f"goodput, {IN_FLIGHT} over {name}", contender=IN_FLIGHT, value=ratio,
                unit=f"x{more}", spread=_spread(ratios.tolist()), target=f"≥ {target:g}", met=ratio >= target,
            )  # fmt: skip
        share = float(np.median(ours)) / self.ceiling
        self.say(
            figure="goodput of the batching ceiling", contender=IN_FLIGHT, value=100 * share, unit="%",
            target=f"≥ {100 * WANTED:g}", met=_at_least(share, WANTED), remark="of batches always full",
        )  # fmt: skip

    def say_targets(self) -> None:
        """Of a large network: a rate that ours holds, and whether the others hold it divided by their target."""
        trace = Trace.drawn(self.scale.n // 4, seed=0)
        ours = next((t for share in SHARES if (t := self.trial(IN_FLIGHT, trace, share * self.ceiling)).holds), None)
        if ours is None:
            raise AssertionError(f"{IN_FLIGHT}: did not hold {min(SHARES):.0%} of the ceiling")
        figure = f"goodput, 99 % within {LIMIT:g}x of alone"
        self.say(figure=figure, contender=IN_FLIGHT, value=ours.rate, unit="requests/s", n=self.scale.n // 4)
        share = ours.rate / self.ceiling
        self.say(
            figure="goodput of the batching ceiling", contender=IN_FLIGHT, value=100 * share, unit="%",
            target=f"≥ {100 * WANTED:g}", met=_at_least(share, WANTED),
            remark=f"tried: {', '.join(f'{s:.0%}' for s in SHARES)}",
        )  # fmt: skip
        for name, target in (*((name, 1.5) for name in self.makers if name.startswith(WHOLE)), (ONE_BY_ONE, 2.5)):
            other = self.trial(name, trace, ours.rate / target)
            self.say(
                figure=f"goodput, {IN_FLIGHT} over {name}", contender=IN_FLIGHT, value=target, unit="x or more",
                target=f"≥ {target:g}", met=not other.holds,
                remark=f"{name} {'holds' if other.holds else 'does not hold'} {other.rate:.3g} requests/s",
            )  # fmt: skip
        due = self.trial(DUE, trace, ours.rate, stop_when_lost=False)
        p99 = {name: short_p99_s([trial]) for name, trial in {IN_FLIGHT: ours, DUE: due}.items()}
        self._say_short(ours.rate, p99, len(trace.kinds) // len(MIX))

    def _say_short(self, rate: float, p99: Mapping[str, float], n: int) -> None:
        """The shortest requests of each contender, and ours over the better order of whole requests."""
        for name, seconds in p99.items():
            self.say(
                figure=f"p99 of 4-step requests at {rate / self.ceiling:.0%} of the ceiling", contender=name,
                value=1e3 * seconds, unit="ms", n=n,
            )  # fmt: skip
        for ways in self.whole(p99):
            whole = min(ways, key=lambda name: p99[name])
            ratio = p99[IN_FLIGHT] / p99[whole]
            self.say(
                figure=f"p99 of 4-step requests, {IN_FLIGHT} over {whole}", contender=IN_FLIGHT, value=ratio, unit="x",
                target="≤ 0.3", met=ratio <= 0.3,
            )  # fmt: skip

    def say_short(self, rate: float) -> None:
        """The 99th percentile of the shortest requests at a rate, from two trials of each in balanced order."""
        names = (IN_FLIGHT, *(name for ways in self.whole(self.makers) for name in ways))
        found: dict[str, list[Trial]] = {name: [] for name in names}
        for seed, order in ((100, names), (101, names[::-1])):
            trace = Trace.drawn(self.scale.n, seed)
            for name in order:
                found[name].append(self.trial(name, trace, rate, stop_when_lost=False))
        p99 = {name: short_p99_s(trials) for name, trials in found.items()}
        self._say_short(rate, p99, 2 * self.scale.n // len(MIX))

    def say_flood(self) -> None:
        """An engine that holds no more than it answers in time, at the ceiling and far beyond."""
        found = {times: self._flood(times) for times in OVERLOADS}
        peak = max(each.in_time_per_s for each in found.values())
        worst = found[max(OVERLOADS)]
        name = f"{IN_FLIGHT}, capacity {self.capacity}"
        for times, each in found.items():
            self.say(
                figure=f"in time at {times:g}x the ceiling", contender=name, value=each.in_time_per_s,
                unit="requests/s", n=each.in_time + each.late + len(each.refused_s),
                remark=f"accepted {each.in_time + each.late}, of them late {each.late}; refused {len(each.refused_s)}",
            )  # fmt: skip
        share, slowest = worst.in_time_per_s / peak, float(np.max(worst.refused_s))
        self.say(
            figure="in time at 10x overload, of the peak", contender=name, value=100 * share, unit="%",
            target="≥ 95", met=share >= 0.95,
        )  # fmt: skip
        self.say(
            figure="in time at 10x overload, of the batching ceiling", contender=name,
            value=100 * worst.in_time_per_s / self.ceiling, unit="%",
        )  # fmt: skip
        self.say(
            figure="slowest refusal at 10x overload", contender=name, value=1e3 * slowest, unit="ms",
            target="< 50", met=slowest < 0.05, n=len(worst.refused_s),
        )  # fmt: skip

    def _flood(self, times: float) -> Flood:
        rate = times * self.ceiling
        trace = Trace.drawn(max(30, int(rate * self.scale.flood_s)), seed=200)
        with closing(InFlight(self.streams, capacity=self.capacity)) as contender:
            return flood(contender.submit, QueueFull, trace, rate, self.alone_s)


def short_p99_s(trials: Sequence[Trial]) -> float:
    """Of the requests of the first kind, over several trials."""
    return float(np.percentile(np.concatenate([t.latency_s[t.kinds == 0] for t in trials]), 99))


def _at_least(share: float, target: float) -> bool:
    return share > target - 1e-9  # the share of a rate that was a share


def _spread(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]
