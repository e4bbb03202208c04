"""How the report writes its figures: digits, units, intervals, parity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ddpm_deploy.bench.record import Parity
from ddpm_deploy.bench.statistics import Interval

NONE = "–"
PARITY_NAMES = {
    "relative_l2": "relative L2",
    "prediction_relative_l2": "relative L2",
    "next_state_rms": "next state, RMS",
    "final_max_abs": "max-abs",
    "final_psnr_db": "PSNR",
}
SHOWN = ("relative_l2", "prediction_relative_l2", "final_psnr_db", "final_max_abs")  # the first two that there are
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
HUGE, SMALL = 1e6, 1e-3


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, never fewer than the integer part has: 0.0123, 1.23, 12.3, 1,234; 1.2e-06."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not SMALL <= abs(value) < HUGE:
        return f"{value:.1e}"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def maybe(value: Any) -> str:
    """A figure that may be missing."""
    return number(value) if is_number(value) else NONE


def is_number(value: Any) -> bool:
    """Whether it is one, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def milliseconds(seconds: float | None) -> str:
    """For the columns of a table, which all have one unit."""
    return NONE if seconds is None else number(seconds * 1e3)


def duration(seconds: float) -> str:
    """For a sentence, in the unit that fits."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if abs(seconds) >= scale), UNITS[-1])
    return f"{number(seconds / scale)} {unit}"


def duration_interval(interval: Interval) -> str:
    """`1.33 ms [1.30, 1.36]`."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if interval.value >= scale), UNITS[-1])
    return f"{number(interval.value / scale)} {unit} [{number(interval.low / scale)}, {number(interval.high / scale)}]"


def times(value: float) -> str:
    """`2.31x`."""
    return f"{number(value)}x"


def times_interval(interval: Interval | None) -> str:
    """`2.31x [2.25, 2.38]`."""
    if interval is None:
        return NONE
    return f"{times(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def deviation(ratio: Interval) -> str:
    """How far a ratio is from 1: `+0.4 % [−0.6, +1.1]`."""
    value, low, high = (_signed(100 * (part - 1)) for part in (ratio.value, ratio.low, ratio.high))
    return f"{value} % [{low}, {high}]"


def percent(part: float | None) -> str:
    """Of a percentage, such as 84.2."""
    return NONE if part is None else f"{part:.0f} %"


def size(size_bytes: Any) -> str:
    """In MiB, or in KiB below one."""
    if not is_number(size_bytes):
        return NONE
    return f"{number(size_bytes / 2**20)} MiB" if size_bytes >= 2**20 else f"{number(size_bytes / 2**10)} KiB"


def error(name: str, value: Any) -> str:
    """One figure of parity, without its name."""
    if not is_number(value):
        return "equal" if value is None and name.endswith("_db") else str(value)
    return f"{value:.0f} dB" if name.endswith("_db") else f"{value:.1e}" if value else "0"


def parity(found: Parity | None) -> str:
    """The figures that matter most, and that the weights are random where they are."""
    if found is None:
        return "not measured"
    shown = [name for name in SHOWN if name in found.figures][:2] or list(found.figures)[:2]
    figures = ", ".join(f"{PARITY_NAMES.get(name, plain(name))} {error(name, found.figures[name])}" for name in shown)
    label = "" if found.weights == "trained" else f" ({found.weights} weights)"
    return f"{figures or 'within budget'}{label}"


def parity_error(found: Parity | None) -> float | None:
    """The one figure for a plot: the relative error of a prediction, or the largest of the samples."""
    figures: Mapping[str, Any] = {} if found is None else found.figures
    names = ("relative_l2", "prediction_relative_l2", "final_max_abs")
    return next((float(figures[name]) for name in names if is_number(figures.get(name))), None)


def plain(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every leaf; lists are joined."""
    for key, value in facts.items():
        name = f"{prefix}{plain(str(key))}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}, ")
        elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
            yield from flat({str(k + 1): part for k, part in enumerate(value)}, f"{name} ")
        elif value is not None and value != [] and value != ():
            yield name, _leaf(str(key), value)


def _leaf(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_leaf("", part) for part in value)
    if key.endswith("_bytes"):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
