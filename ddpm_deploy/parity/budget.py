"""How much a precision may differ from float32, and why.

fp32: two correct float32 programs differ only by the order of their sums, about 1e-6 a step; 1e-5 leaves room for
deep networks, and 1e-4 after a whole chain is a hundredth of one grey level of 255. bf16 keeps 8 bits: its error is
judged on the final samples, where 30 dB is the usual bound of what is called visually close; a relative error of the
predicted noise would be misleading, because near t = 0 that noise is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddpm_deploy.parity.measure import Comparison


@dataclass(frozen=True)
class Budget:
    """Upper bounds of what `Comparison` measures (a lower one for the PSNR); None is not judged."""

    prediction_relative_l2: float | None = None
    final_max_abs: float | None = None
    final_psnr_db: float | None = None

    def failures(self, measured: Comparison) -> list[str]:
        """What is over budget, in words; empty when all is well."""
        worst, t = measured.worst_step
        if not np.isfinite(worst):
            return [f"the output is not finite at t = {t:g}"]
        limit = self.prediction_relative_l2
        found = []
        if limit is not None and not worst <= limit:
            found.append(f"relative error of one step {worst:.2g} at t = {t:g} is over {limit:g}")
        if self.final_max_abs is not None and not measured.final_max_abs <= self.final_max_abs:
            found.append(f"final error {measured.final_max_abs:.2g} is over {self.final_max_abs:g}")
        if self.final_psnr_db is not None and not measured.final_psnr_db >= self.final_psnr_db:
            found.append(f"final PSNR {measured.final_psnr_db:.1f} dB is under {self.final_psnr_db:g} dB")
        return found


BUDGETS = {
    "fp32": Budget(prediction_relative_l2=1e-5, final_max_abs=1e-4),
    "bf16": Budget(final_psnr_db=30.0),
}


def budget_for(precision: str) -> Budget:
    """The default budget of a precision."""
    if precision not in BUDGETS:
        raise ValueError(f"precision: no parity budget for {precision!r}; known: {', '.join(BUDGETS)}")
    return BUDGETS[precision]
