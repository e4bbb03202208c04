"""One compiled row of a plan, applied to arrays; rows of several plans may be applied as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ddpm_deploy.plan.plan import Plan

Array = NDArray[Any]
Terms = tuple[tuple[int, Any], ...]

_numbers = count()
_patterns: dict[Any, int] = {}  # numbered, so that rows are compared and hashed in no time


@dataclass(frozen=True, eq=False)
class Row:
    """One row with its zeros left out: each state image as its few (column, factor) terms.

    A factor is a number, or (B, 1, ...), one for each sample, in rows that are stacked.
    """

    to_x0: Terms
    clip: tuple[Any, Any] | None
    to_state: tuple[Terms, ...]
    draws: bool
    log_variance: tuple[Any, Any] | None

    @classmethod
    def compile(cls, plan: Plan, i: int, dtype: Any) -> Row:
        K = len(plan.state)
        p_x, p_m = plan.predict[i]
        lo, hi = plan.clip[i].astype(dtype)
        variance = None if plan.log_variance is None else tuple(plan.log_variance[i].astype(dtype))
        return cls(
            to_x0=_terms({0: p_x, K + 1: p_m}, dtype),
            clip=None if np.isneginf(lo) and np.isposinf(hi) else (lo, hi),
            to_state=tuple(_terms(dict(enumerate(row)), dtype) for row in plan.update[i]),
            draws=plan.draws_noise[i],
            log_variance=variance,
        )

    @classmethod
    def stack(cls, rows: Sequence[Row], rank: int) -> Row:
        """Rows of one pattern as one row, which applies the b-th of them to sample b. rank: of a sample.

        The result is bitwise that of each row alone: the same products and sums of the same numbers.
        """
        first = rows[0]
        if rows.count(first) == len(rows):
            return first
        if len({row.pattern for row in rows}) > 1:
            raise ValueError("rows: got several patterns, expected one; stack those of each pattern apart")
        table = np.array([row._factors for row in rows])
        factors = iter(table.T.reshape(-1, len(rows), *[1] * rank))
        to_x0, *to_state = first._forms
        return cls(
            to_x0=_filled(to_x0, factors),
            clip=None if first.clip is None else (next(factors), next(factors)),
            to_state=tuple(_filled(form, factors) for form in to_state),
            draws=first.draws,
            log_variance=None if first.log_variance is None else (next(factors), next(factors)),
        )

    @cached_property
    def pattern(self) -> int:
        """The number of what rows that can be stacked have in common: which columns count, whether there is a clip."""
        return _patterns.setdefault((self._forms, self.clip is None, self.log_variance is None), next(_numbers))

    @cached_property
    def _forms(self) -> tuple[Terms, ...]:
        """The terms with None in the place of each number that may differ between rows of one pattern."""
        return tuple(
            tuple((column, 1 if _is_one(f) else None) for column, f in terms) for terms in (self.to_x0, *self.to_state)
        )

    @cached_property
    def _factors(self) -> Array:
        """Those numbers, in the order of `stack`."""
        first, *others = ([f for _, f in terms if not _is_one(f)] for terms in (self.to_x0, *self.to_state))
        return np.array([*first, *(self.clip or ()), *chain(*others), *(self.log_variance or ())])

    def apply(self, state: Sequence[Array], m: Array, z: Array | None) -> tuple[list[Array], Array]:
        if self.log_variance is not None:
            m, f = np.split(m, 2, axis=1)
            z = None if z is None else z * self._deviation(f)
        columns = [*state, m, m, z]
        d = _combine(self.to_x0, columns)
        if self.clip is not None:
            d = np.minimum(np.maximum(d, self.clip[0]), self.clip[1])
        columns[-3] = d
        return [_combine(terms, columns) for terms in self.to_state], d

    def _deviation(self, v: Array) -> Array:
        """Interpolate the log variance per pixel (Nichol & Dhariwal 2021, eq. 15)."""
        assert self.log_variance is not None
        small, large = self.log_variance
        f = (v + 1) / 2
        deviation: Array = np.exp((f * large + (1 - f) * small) / 2)
        return deviation


def _combine(terms: Terms, columns: Sequence[Array | None]) -> Array:
    """Sum of factor x column. Arrays are never written to, so a plain copy may share its source."""
    (first, factor), *rest = terms
    total = columns[first] if _is_one(factor) else np.multiply(columns[first], factor)  # type: ignore[arg-type]
    for k, (column, factor) in enumerate(rest):
        term = np.multiply(columns[column], factor)  # type: ignore[arg-type]
        total = np.add(total, term, out=term if k == 0 else total)  # type: ignore[arg-type]
    assert total is not None
    return total


def _is_one(factor: Any) -> bool:
    return not isinstance(factor, np.ndarray) and bool(factor == 1)


def _filled(form: Terms, factors: Iterator[Array]) -> Terms:
    return tuple((column, next(factors) if f is None else f) for column, f in form)


def _terms(row: Mapping[int, Any], dtype: Any) -> Terms:
    found = tuple((column, dtype(factor)) for column, factor in row.items() if factor != 0)
    return found or ((0, dtype(0)),)
