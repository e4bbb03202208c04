"""A plan: a solver compiled to a table of coefficients, one row per network evaluation.

The state is a stack of K images per sample; image 0 is what the network sees, the others are what the solver
remembers. One row takes the state S and the network's raw output m to the next state:

    d  = clip(p_x S[0] + p_m m)                  the predicted clean image
    S' = M [S[0] ... S[K-1], d, m, z]            z is fresh Gaussian noise

After the last row, S[0] is the sample. See docs/theory.md for why every solver fits into this form.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.errors import NonFiniteError
from ddpm_deploy.plan import files
from ddpm_deploy.plan.rows import Row
from ddpm_deploy.plan.table import render
from ddpm_deploy.schedule import Float, NoiseSchedule, x0_coefficients

MAX_ROWS = 1_000_000
MAX_STATE = 64

Array = NDArray[Any]
Denoise = Callable[[Array, Array], Array]
Noise = ArrayLike | Callable[[int], Array] | None
Prediction = str | Callable[[Float, Float], tuple[Float, Float]]


@dataclass(frozen=True)
class Frame:
    """What one row did. x: (B, *S) the next network input, after the last row the sample. x0: (B, *S) the preview."""

    step: int
    t: float
    x: Array
    x0: Array


@dataclass(frozen=True, eq=False)
class Plan:
    """Coefficients of N rows over a state of K images, all float64.

    solver: name, for people. state: (K,) names of the state images, the first is "x".
    t: (N,) in [0, T-1]. predict: (N, 2) p_x and p_m. clip: (N, 2) bounds of d, infinite where there is none.
    update: (N, K, K+3) the matrices M. log_variance: (N, 2), log beta~ and log beta, for a network that predicts its
    variance: then its output has twice the channels, the second half interpolates between the two and scales z.
    """

    solver: str
    state: tuple[str, ...]
    t: Float
    predict: Float
    clip: Float
    update: Float
    log_variance: Float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", tuple(self.state))
        N, K = _numbers("t", self.t).size, len(self.state)
        shapes = {"t": (N,), "predict": (N, 2), "clip": (N, 2), "update": (N, K, K + 3)}
        if self.log_variance is not None:
            shapes["log_variance"] = (N, 2)
        for name, shape in shapes.items():
            object.__setattr__(self, name, _table(name, getattr(self, name), shape))
        _check(self)

    @property
    def nfe(self) -> int:
        """Number of network evaluations for one sample."""
        return len(self.t)

    def __len__(self) -> int:
        return len(self.t)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self.solver, self.state) == (other.solver, other.state) and all(
            np.array_equal(a, b) if a is not None and b is not None else a is b
            for a, b in zip(self._tables(), other._tables(), strict=True)
        )

    @cached_property
    def draws_noise(self) -> tuple[bool, ...]:
        """(N,) whether each row uses z."""
        return tuple(bool(row) for row in np.any(self.update[:, :, -1] != 0, axis=1))

    @cached_property
    def times(self) -> tuple[float, ...]:
        """(N,) t as plain numbers."""
        return tuple(self.t.tolist())

    @property
    def is_deterministic(self) -> bool:
        """Whether no row uses z."""
        return not any(self.draws_noise)

    def for_model(self, schedule: NoiseSchedule, prediction: Prediction, clip: tuple[float, float] | None) -> Plan:
        """The same solver for a network with this prediction type and clip range.

        prediction: one of `schedule.PREDICTIONS`, or a function (alpha, sigma) -> (p_x, p_m).
        """
        alpha, sigma = schedule.at(self.t)
        p = prediction(alpha, sigma) if callable(prediction) else x0_coefficients(alpha, sigma, prediction)
        bounds = (-np.inf, np.inf) if clip is None else clip
        if np.shape(bounds) != (2,):
            raise ValueError(f"clip: got {clip!r}, expected (lower, upper) or None")
        return replace(self, predict=np.stack(p, axis=1), clip=np.broadcast_to(bounds, (len(self), 2)))

    # -- applying it ----------------------------------------------------------------------------------------------

    def run(self, denoise: Denoise, x_T: ArrayLike, noise: Noise = None) -> Array:
        """Draw samples: (B, *S) in the dtype of x_T. Arguments as in `frames`."""
        (last,) = deque(self.frames(denoise, x_T, noise), maxlen=1)
        return last.x

    def frames(self, denoise: Denoise, x_T: ArrayLike, noise: Noise = None) -> Iterator[Frame]:
        """Run row by row.

        denoise: (x (B, *S), t (B,)) -> raw output, called once a row. x_T: (B, *S) float32 or float64.
        noise: an array that broadcasts to (N, B, *S), or a function of the row that gives (B, *S).
        Raises NonFiniteError when the output is not finite (a clip would hide it).
        """
        x_T = np.array(x_T)
        if x_T.ndim < 2 or x_T.dtype not in (np.float32, np.float64):
            raise ValueError(f"x_T: got shape {x_T.shape}, {x_T.dtype}; expected (B, *S) of float32 or float64")
        draw = self.noise_source(noise, x_T)
        return self._iterate(denoise, self.start(x_T), draw)

    def start(self, x_T: Array) -> list[Array]:
        """The state before row 0: K images, all of them x_T (B, *S)."""
        return [x_T] * len(self.state)

    def row(self, row: int) -> Row:
        """One row, compiled for float32: for those that stack rows of several plans."""
        return self._program32[row]

    def step(self, row: int, state: Sequence[Array], m: Array, z: Array | None = None) -> tuple[list[Array], Array]:
        """Apply one row: the next state and the predicted clean image. m: raw output. z: (B, *S) where it is drawn."""
        x = state[0]
        m = self._checked(np.asarray(m, x.dtype), row, x.shape)
        if z is not None:
            z = np.asarray(z, x.dtype)
            if z.shape != x.shape:
                raise ValueError(f"noise: got shape {z.shape} for row {row}, expected {x.shape}")
        return self._program(x.dtype)[row].apply(state, m, z)

    def _iterate(self, denoise: Denoise, state: list[Array], draw: Callable[[int], Array]) -> Iterator[Frame]:
        for i, (t, draws) in enumerate(zip(self.times, self.draws_noise, strict=True)):
            m = denoise(state[0], np.full(len(state[0]), t, state[0].dtype))
            state, x0 = self.step(i, state, m, draw(i) if draws else None)
            yield Frame(i, t, state[0], x0)

    def _checked(self, m: Array, i: int, shape: tuple[int, ...]) -> Array:
        expected = shape if self.log_variance is None else (shape[0], 2 * shape[1], *shape[2:])
        if m.shape != expected:
            raise ValueError(f"denoise: got an output of shape {m.shape}, expected {expected}")
        if not np.isfinite(m).all():
            samples = np.flatnonzero(~np.isfinite(m.reshape(len(m), -1)).all(axis=1)).tolist()
            raise NonFiniteError(
                f"row {i} (t = {self.t[i]:g}): the network's output is not finite for samples {samples}"
            )
        return m

    def noise_source(self, noise: Noise, x_T: Array) -> Callable[[int], Array]:
        """z (B, *S) of each row, from any of the forms that `frames` takes."""
        if callable(noise):
            return noise
        if noise is None:
            if not self.is_deterministic:
                raise ValueError(f"noise: got None, but the plan of {self.solver!r} draws noise; give it, or a seed")
            return lambda row: x_T
        z, shape = np.asarray(noise, x_T.dtype), (len(self), *x_T.shape)
        try:
            full = np.broadcast_to(z, shape)
        except ValueError:
            raise ValueError(f"noise: got shape {z.shape}, expected one that broadcasts to {shape}") from None
        return lambda row: full[row]

    def _program(self, dtype: Any) -> tuple[Row, ...]:
        return self._program32 if dtype == np.float32 else self._program64

    @cached_property
    def _program32(self) -> tuple[Row, ...]:
        return tuple(Row.compile(self, i, np.float32) for i in range(len(self)))

    @cached_property
    def _program64(self) -> tuple[Row, ...]:
        return tuple(Row.compile(self, i, np.float64) for i in range(len(self)))

    # -- reading and writing --------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return render(self)

    def to_json(self) -> str:
        """Lossless; an infinite clip bound is written as null."""
        return files.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The inverse of `to_json`; raises ValueError that names the field at fault."""
        return cls(**files.fields_from_json(text))

    def save(self, path: str | Path) -> None:
        """Write `.json` or `.npz`, by the file's ending."""
        files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote; never unpickles."""
        return cls(**files.load_fields(Path(path)))

    def _tables(self) -> tuple[Float | None, ...]:
        return self.t, self.predict, self.clip, self.update, self.log_variance


def _numbers(name: str, value: Any) -> Float:
    try:
        table = np.array(value)
        if table.dtype.kind in "iufO":  # O: integers beyond 64 bits, or what astype refuses
            return table.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"plan: {name}: expected a table of float64 numbers")


def _table(name: str, value: Any, shape: tuple[int, ...]) -> Float:
    table = _numbers(name, value)
    if table.shape != shape:
        raise ValueError(f"plan: {name}: got shape {table.shape}, expected {shape}")
    table.flags.writeable = False
    return table


def _check(plan: Plan) -> None:
    if not 1 <= len(plan) <= MAX_ROWS:
        raise ValueError(f"plan: got {len(plan)} rows, expected 1 to {MAX_ROWS}")
    if not 1 <= len(plan.state) <= MAX_STATE or plan.state[0] != "x" or len(set(plan.state)) < len(plan.state):
        raise ValueError(f"plan: state: got {plan.state}, expected 1 to {MAX_STATE} different names, the first 'x'")
    for name in ("t", "predict", "update", "log_variance"):
        table = getattr(plan, name)
        if table is not None and not np.isfinite(table).all():
            where = np.argwhere(~np.isfinite(table))[0].tolist()
            raise ValueError(f"plan: {name}{where} is not finite")
    if not np.all(plan.t >= 0):
        raise ValueError(f"plan: t: got {plan.t.min()}, expected numbers >= 0")
    if not np.all(plan.clip[:, 0] < plan.clip[:, 1]):
        raise ValueError("plan: clip: the lower bound must be below the upper one")
