"""Every field of diffusers' schedulers and what becomes of it: the table of docs/diffusers.md, as the code reads it.

A field is honoured, ignored (of no effect on the exported model; the note says why) or refused (unless it has one of
the harmless `values`). A test compares the table with the installed diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["honoured", "ignored", "refused"]


@dataclass(frozen=True)
class Field:
    """fate: see above. note: for the user. values: the only ones accepted, None for any."""

    fate: Fate
    note: str
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Scheduler:
    """solver: the name here. steps: of the solver by default. fields: what its configuration holds.

    defaults: where they differ from `DEFAULTS`. refused: fields that this scheduler gives another meaning.
    """

    solver: str
    steps: int
    fields: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()


PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
VARIANCE_TYPES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
SPACINGS = ("leading", "trailing", "linspace")
ORDERS = (1, 2, 3)
SDE = "sde-dpmsolver++"


def _honoured(note: str, *values: Any) -> Field:
    return Field("honoured", note, values or None)


def _ignored(note: str) -> Field:
    return Field("ignored", note)


def _refused(note: str, *harmless: Any) -> Field:
    return Field("refused", note, harmless)


DYNAMIC_SHIFT = "used only with use_dynamic_shifting, which is refused"
THRESHOLD = "used only with thresholding, which is refused"
FIRST_ORDER_END = "every solver here ends with a first-order step to the clean image"

FIELDS: dict[str, Field] = {
    "num_train_timesteps": _honoured("T of the schedule"),
    "beta_start": _honoured("first beta"),
    "beta_end": _honoured("last beta"),
    "beta_schedule": _honoured(
        "how the betas run; in float64", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"
    ),
    "trained_betas": _honoured("taken instead of beta_start, beta_end and beta_schedule"),
    "rescale_betas_zero_snr": _honoured(
        "rescales the schedule so that the last timestep is pure noise; refused with epsilon, which cannot tell the "
        "image there"
    ),
    "prediction_type": _honoured("eps, x0, v or flow", *PREDICTION_TYPES),
    "variance_type": _honoured(
        "variance of ancestral sampling: fixed_small(_log) is small, fixed_large(_log) is large, learned_range is "
        "learned; learned, a variance predicted as it is, is refused",
        None,
        *VARIANCE_TYPES,
    ),
    "clip_sample": _honoured("clips the predicted image to clip_sample_range at every step"),
    "clip_sample_range": _honoured("the bounds are minus and plus this number"),
    "thresholding": _refused("dynamic thresholding: the bounds would depend on the picture itself", False, None),
    "dynamic_thresholding_ratio": _ignored(THRESHOLD),
    "sample_max_value": _ignored(THRESHOLD),
    "timestep_spacing": _honoured("spacing of the default solver, by its name", *SPACINGS),
    "steps_offset": _ignored("moves the list of timesteps by a few; the lists here begin where their spacing says"),
    "set_alpha_to_one": _ignored("every solver here ends at the clean image; false would leave the noise of t = 0"),
    "final_sigmas_type": _ignored(
        "every solver here ends at the clean image; sigma_min would leave the noise of t = 0"
    ),
    "skip_prk_steps": _ignored("the first steps have lower order instead of a Runge-Kutta start"),
    "solver_order": _honoured("order of the solver", *ORDERS),
    "algorithm_type": _honoured(
        "dpmsolver++ is dpmpp_1, dpmpp_2m or dpmpp_3m by its order, sde-dpmsolver++ of order 1 and 2 the SDE form; "
        "dpmsolver and sde-dpmsolver are refused",
        "dpmsolver++",
        SDE,
        "deis",
    ),
    "solver_type": _honoured(
        "midpoint or heun form of dpmpp_2m, bh1 or bh2 of unipc; of a name that is not its own a scheduler takes its "
        "usual form, as in diffusers",
        "midpoint",
        "heun",
        "logrho",
        "bh1",
        "bh2",
    ),
    "predict_x0": _refused("false is UniPC in noise prediction, which is not here", True),
    "disable_corrector": _refused("UniPC here corrects at every step", [], None),
    "solver_p": _refused("another scheduler inside UniPC", None),
    "lower_order_final": _ignored(FIRST_ORDER_END),
    "euler_at_final": _ignored(FIRST_ORDER_END),
    "use_karras_sigmas": _honoured("spacing karras"),
    "use_exponential_sigmas": _honoured("spacing logsnr, which is the same"),
    "use_lu_lambdas": _honoured("spacing logsnr, which is the same"),
    "use_beta_sigmas": _refused("timesteps by the beta distribution; no such spacing here", False, None),
    "use_flow_sigmas": _honoured("a flow-matching schedule with flow_shift in place of the betas"),
    "flow_shift": _honoured("shift of that schedule"),
    "shift": _honoured("shift of the flow-matching schedule"),
    "use_dynamic_shifting": _refused("the schedule would depend on the size of each picture", False, None),
    "base_shift": _ignored(DYNAMIC_SHIFT),
    "max_shift": _ignored(DYNAMIC_SHIFT),
    "base_image_seq_len": _ignored(DYNAMIC_SHIFT),
    "max_image_seq_len": _ignored(DYNAMIC_SHIFT),
    "time_shift_type": _ignored(DYNAMIC_SHIFT),
    "shift_terminal": _refused("stretches the list of timesteps", None),
    "invert_sigmas": _refused("runs time backwards", False, None),
    "stochastic_sampling": _honoured("solver consistency instead of euler"),
    "lambda_min_clipped": _ignored("leaves out the noisiest timesteps; the lists here begin where their spacing says"),
    "interpolation_type": _ignored("between two timesteps lambda is linear in t here"),
    "timestep_type": _refused("continuous time: the network sees log sigma instead of a timestep", "discrete"),
    "sigma_min": _refused("another end of the list of timesteps", None),
    "sigma_max": _refused("another start of the list of timesteps", None),
    "timestep_scaling": _honoured("boundary scaling of solver lcm"),
    "original_inference_steps": _ignored("which timesteps a distilled model saw; spacing trailing comes near them"),
    "predict_epsilon": _honoured("retired: false is prediction_type sample"),
    "tensor_format": _ignored("retired: named the array library"),
    "timestep_values": _refused("retired: another list of timesteps", None),
}

RETIRED = frozenset({"predict_epsilon", "tensor_format", "timestep_values"})
_BETAS = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"}
_LIST = {"timestep_spacing", "steps_offset"}
_CLIP = {"clip_sample", "clip_sample_range"}
_THRESHOLD = {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
_SIGMAS = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
_FLOW = {"use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"}
_ZERO_SNR = {"rescale_betas_zero_snr"}
_ORDER = {"solver_order", "solver_type", "lower_order_final"}
_DPM = {"algorithm_type", "final_sigmas_type", "lambda_min_clipped", "variance_type"}
_SHIFT = {"use_dynamic_shifting", "time_shift_type", "shift", "base_shift", "max_shift"}


def _fields(*groups: set[str]) -> frozenset[str]:
    return frozenset().union(*groups)


# A missing field has this value, in old configurations too.
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "shift": 1.0,
    "stochastic_sampling": False,
    "timestep_scaling": 10.0,
    "predict_epsilon": True,
}

SCHEDULERS: dict[str, Scheduler] = {
    "DDPMScheduler": Scheduler(
        "ddpm",
        1000,
        _fields(_BETAS, _LIST, _CLIP, _THRESHOLD, _ZERO_SNR, {"variance_type"}),
        {"clip_sample": True, "timestep_spacing": "leading"},
    ),
    "DDIMScheduler": Scheduler(
        "ddim",
        50,
        _fields(_BETAS, _LIST, _CLIP, _THRESHOLD, _ZERO_SNR, {"set_alpha_to_one"}),
        {"clip_sample": True, "timestep_spacing": "leading"},
    ),
    "PNDMScheduler": Scheduler(
        "ipndm",
        50,
        _fields(_BETAS, _LIST, {"skip_prk_steps", "set_alpha_to_one"}),
        {"timestep_spacing": "leading"},
    ),
    "DPMSolverMultistepScheduler": Scheduler(
        "dpmpp_2m",
        20,
        _fields(
            _BETAS, _LIST, _THRESHOLD, _ORDER, _DPM, _SIGMAS, _FLOW, _ZERO_SNR, {"euler_at_final", "use_lu_lambdas"}
        ),
        {"variance_type": None},
    ),
    "DPMSolverSinglestepScheduler": Scheduler(
        "dpmpp_2m",
        20,
        _fields(_BETAS, _THRESHOLD, _ORDER, _DPM, _SIGMAS, _FLOW),
        {"variance_type": None},
    ),
    "UniPCMultistepScheduler": Scheduler(
        "unipc",
        20,
        _fields(
            _BETAS,
            _LIST,
            _THRESHOLD,
            _ORDER,
            _SIGMAS,
            _FLOW,
            _ZERO_SNR,
            {
                "predict_x0",
                "disable_corrector",
                "solver_p",
                "final_sigmas_type",
                "sigma_min",
                "sigma_max",
                "shift_terminal",
            },
        ),
        {"solver_type": "bh2"},
    ),
    "DEISMultistepScheduler": Scheduler(
        "deis",
        20,
        _fields(_BETAS, _LIST, _THRESHOLD, _ORDER, _SIGMAS, _FLOW, {"algorithm_type"}),
        {"algorithm_type": "deis", "solver_type": "logrho"},
    ),
    "HeunDiscreteScheduler": Scheduler(
        "heun", 20, _fields(_BETAS, _LIST, _CLIP, _SIGMAS), {"beta_start": 0.00085, "beta_end": 0.012}
    ),
    "EulerDiscreteScheduler": Scheduler(
        "euler",
        50,
        _fields(
            _BETAS,
            _LIST,
            _SIGMAS,
            _ZERO_SNR,
            {"interpolation_type", "sigma_min", "sigma_max", "timestep_type", "final_sigmas_type"},
        ),
    ),
    "EulerAncestralDiscreteScheduler": Scheduler("euler_a", 50, _fields(_BETAS, _LIST, _ZERO_SNR)),
    "LCMScheduler": Scheduler(
        "lcm",
        4,
        _fields(
            _BETAS,
            _LIST,
            _CLIP,
            _THRESHOLD,
            _ZERO_SNR,
            {"original_inference_steps", "set_alpha_to_one", "timestep_scaling"},
        ),
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"},
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        "euler",
        50,
        _fields(
            _SIGMAS,
            _SHIFT,
            {
                "num_train_timesteps",
                "base_image_seq_len",
                "max_image_seq_len",
                "invert_sigmas",
                "shift_terminal",
                "stochastic_sampling",
            },
        ),
        {"prediction_type": "flow_prediction"},
        refused=frozenset({"use_karras_sigmas", "use_exponential_sigmas"}),
    ),
}
