"""Which timesteps to evaluate: from the noisiest down, `steps` of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ddpm_deploy.schedule import Float, NoiseSchedule

KARRAS_RHO = 7.0


def leading(schedule: NoiseSchedule, steps: int) -> Float:
    """Multiples of `T // steps`, 0 included and the noisiest left out (the DDIM code's spacing)."""
    return np.arange(steps, dtype=np.float64)[::-1] * (schedule.T // steps)


def trailing(schedule: NoiseSchedule, steps: int) -> Float:
    """Evenly spaced from T-1 down, 0 left out (Lin et al. 2023, table 2)."""
    return np.round(schedule.T - np.arange(steps) * (schedule.T / steps)) - 1


def linspace(schedule: NoiseSchedule, steps: int) -> Float:
    """Evenly spaced from T-1 to 0, rounded."""
    return np.round(np.linspace(schedule.T - 1, 0, steps))


def quadratic(schedule: NoiseSchedule, steps: int) -> Float:
    """Square roots evenly spaced from T-1 to 0 (Song et al. 2020, appendix D.2); fractional."""
    return (schedule.T - 1) * np.linspace(1, 0, steps) ** 2


def logsnr(schedule: NoiseSchedule, steps: int) -> Float:
    """lambda evenly spaced from T-1 to 0 (Lu et al. 2022); fractional."""
    return _from_lam(schedule, np.linspace(*_lam_range(schedule), steps))


def karras(schedule: NoiseSchedule, steps: int) -> Float:
    """The `sigma / alpha` of Karras et al. 2022, eq. 5, with rho = 7, from T-1 to 0; fractional."""
    lowest, highest = _lam_range(schedule)
    root = np.linspace(np.exp(-lowest / KARRAS_RHO), np.exp(-highest / KARRAS_RHO), steps)
    return _from_lam(schedule, -KARRAS_RHO * np.log(root))


SPACINGS: dict[str, Callable[[NoiseSchedule, int], Float]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "logsnr": logsnr,
    "karras": karras,
}


def make_timesteps(schedule: NoiseSchedule, steps: int, spacing: str = "trailing") -> Float:
    """(steps,) strictly falling timesteps in [0, T-1]. steps: 1 to T. spacing: a key of `SPACINGS`."""
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: got {spacing!r}, expected one of {', '.join(SPACINGS)}")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= schedule.T:
        raise ValueError(f"steps: got {steps!r}, expected a whole number from 1 to {schedule.T}")
    return SPACINGS[spacing](schedule, int(steps))


def check_timesteps(schedule: NoiseSchedule, timesteps: ArrayLike) -> Float:
    """The user's own list, strictly falling in [0, T-1], as float64."""
    t = np.asarray(timesteps, dtype=np.float64)
    if t.ndim != 1 or t.size == 0:
        raise ValueError(f"timesteps: got shape {t.shape}, expected a list of at least one number")
    wrong = np.flatnonzero(~((t >= 0) & (t <= schedule.T - 1)))
    if wrong.size:
        raise ValueError(f"timesteps[{wrong[0]}]: got {t[wrong[0]]}, expected a number in [0, {schedule.T - 1}]")
    rising = np.flatnonzero(np.diff(t) >= 0)
    if rising.size:
        i = rising[0]
        raise ValueError(
            f"timesteps[{i + 1}] = {t[i + 1]:g} is not below [{i}] = {t[i]:g}; list them from noisy to clean"
        )
    return t


def _lam_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """Lowest and highest finite lambda; zeros for the one-step schedule that has none."""
    lam = schedule.lam[np.isfinite(schedule.lam)]
    return (float(lam[-1]), float(lam[0])) if lam.size else (0.0, 0.0)


def _from_lam(schedule: NoiseSchedule, lam: Float) -> Float:
    t = schedule.t_of_lam(lam)
    t[0] = schedule.T - 1
    return t
