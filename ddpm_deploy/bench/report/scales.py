"""Axes: where a value lies between two ends, and which values carry a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FEW, MANY = 3, 6  # ticks
PLAIN = 1e-3, 1e6  # between these a logarithmic axis writes its ticks out


@dataclass(frozen=True)
class Scale:
    """From `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @property
    def tick_names(self) -> list[str]:
        """`0.02`, `1,000`; powers of ten where the axis is logarithmic and goes far."""
        if not self.log:
            return _plain_names(self.ticks)
        powers = self.low < PLAIN[0] or self.high > PLAIN[1]
        return [_power(tick) if powers else f"{tick:,.12g}" for tick in self.ticks]

    def part(self, value: float) -> float:
        """Where `value` lies: 0 at the low end, 1 at the high one."""
        low, high, value = (_log(part) if self.log else part for part in (self.low, self.high, value))
        return (value - low) / (high - low)


def scale_for(values: Sequence[float], *, log: bool, ticks: Sequence[float] = ()) -> Scale:
    """A scale that holds all values with some room, and ticks at round ones, unless they are given."""
    low, high = min(values), max(values)
    if log:
        room = max(1.08, (high / low) ** 0.05)
        low, high = low / room, high * room
    else:
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    inside = [tick for tick in (ticks or _ticks(low, high, log)) if low <= tick <= high]
    return Scale(low, high, log, tuple(inside))


def _plain_names(ticks: Sequence[float]) -> list[str]:
    """With as many digits as the finest of them takes."""
    digits = max((len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _power(value: float) -> str:
    decade = math.floor(_log(value) + 1e-9)
    head = round(value / 10.0**decade)
    return f"{'' if head == 1 else f'{head}·'}10{str(decade).translate(SUPERSCRIPT)}"


def _ticks(low: float, high: float, log: bool) -> list[float]:
    return _log_ticks(low, high) if log else _linear_ticks(low, high)


def _log_ticks(low: float, high: float) -> list[float]:
    """Decades, thinned where they are many and with 2 and 5 between where they are few."""
    decades = range(math.floor(_log(low)), math.ceil(_log(high)) + 1)
    for heads in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [head * 10.0**k for k in decades for head in heads if low <= head * 10.0**k <= high]
        if len(found) >= FEW:
            break
    return found[:: math.ceil(len(found) / MANY)] if heads == (1,) else found


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about five of them."""
    rough = (high - low) / 5
    decade = 10.0 ** math.floor(_log(rough))
    step = next(head * decade for head in (1, 2, 5, 10) if head * decade >= rough * 0.99)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log(value: float) -> float:
    return math.log10(value)
