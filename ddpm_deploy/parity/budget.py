"""How much a precision may differ from float32, and why.

fp32: two correct float32 programs differ only by the order of their sums, about 1e-6 a step; 1e-5 leaves room for
deep networks, and 1e-4 after a whole chain is a hundredth of one grey level of 255. A step's error is relative to the
raw output, or to the clean image that it means where that is less (`measure.clean_error` says why).

The others are judged in picture units: by the final samples, and by the next state of each step, over the width of
the picture's range (`next_state`). A relative error of the predicted noise would be misleading, because near t = 0
that noise is small. Rounding a picture to 8 bits has an RMS error of 1/(255 sqrt(12)), a thousandth.

fp16 keeps 11 bits of a number. A step may be wrong by that thousandth, which no 8-bit picture shows; two grey levels
at the worst pixel; samples of 40 dB, where the two cannot be told apart side by side.
tf32 rounds the factors of products to the 11 bits of fp16, without its limits, and is judged like it.
bf16 keeps 8 bits, so its rounding is 8 times as coarse and its steps may be: two grey levels, sixteen at the worst
pixel; samples of 30 dB, the usual bound of what is called visually close.
int8 keeps 8 bits over the whole range of a tensor at all timesteps, so that small numbers have fewer: twice the steps
of bf16; samples of 25 dB, the same picture with other details. int8-bf16, which rounds
everything else to bf16, has the same budget: beside int8 that adds little to a trained model.

A defect is no close call: a wrong cast, an overflow or saturating int8 sums are over these bounds by several times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddpm_deploy.parity.measure import Comparison


@dataclass(frozen=True)
class Budget:
    """Upper bounds of what is measured (a lower one for the PSNR); None is not judged.

    next_state_rms, next_state_max: fractions of the picture's range, judged where steps have the length of the model's
    own plans, see `next_state`. bits_excess: by what part of it the variational bound in bits/dim may be above the
    reference's, see `bound`. `failures` leaves out these three, as a `Comparison` may be of any plan.
    """

    prediction_relative_l2: float | None = None
    final_max_abs: float | None = None
    final_psnr_db: float | None = None
    next_state_rms: float | None = None
    next_state_max: float | None = None
    bits_excess: float | None = None

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
    "fp32": Budget(prediction_relative_l2=1e-5, final_max_abs=1e-4, bits_excess=1e-4),
    "bf16": Budget(final_psnr_db=30.0, next_state_rms=8e-3, next_state_max=1 / 16, bits_excess=1e-2),
    "fp16": Budget(final_psnr_db=40.0, next_state_rms=1e-3, next_state_max=1 / 128, bits_excess=5e-3),
    "tf32": Budget(final_psnr_db=40.0, next_state_rms=1e-3, next_state_max=1 / 128, bits_excess=5e-3),
    "int8": Budget(final_psnr_db=25.0, next_state_rms=1.6e-2, next_state_max=1 / 8, bits_excess=5e-2),
    "int8-bf16": Budget(final_psnr_db=25.0, next_state_rms=1.6e-2, next_state_max=1 / 8, bits_excess=5e-2),
}


def budget_for(precision: str) -> Budget:
    """The default budget of a precision."""
    if precision not in BUDGETS:
        raise ValueError(f"precision: no parity budget for {precision!r}; known: {', '.join(BUDGETS)}")
    return BUDGETS[precision]
