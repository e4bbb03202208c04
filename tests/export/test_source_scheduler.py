"""What a scheduler_config.json means here, against the schedulers of diffusers themselves."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.scheduler import read_scheduler
from ddpm_deploy.export.sources.scheduler_table import DEFAULTS, FIELDS, RETIRED, SCHEDULERS
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.spacing import make_timesteps

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="its schedulers are the oracle")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DOC = Path(__file__).parents[2] / "docs" / "diffusers.md"
BETAS = ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep",
         "HeunDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "LCM")  # fmt: skip


def config_of(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A scheduler, and what it would save."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    return scheduler, json.loads(scheduler.to_json_string())


def signature(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "self"}


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_field_of_the_installed_schedulers_is_in_the_table(name: str) -> None:
    assert set(signature(name)) == SCHEDULERS[name].fields
    assert set(signature(name)) <= set(FIELDS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_missing_field_means_what_it_means_in_diffusers(name: str) -> None:
    mine = {**DEFAULTS, **SCHEDULERS[name].defaults}
    theirs = signature(name)
    honoured = [key for key in theirs if FIELDS[key].fate == "honoured"]
    assert honoured
    assert {key: mine[key] for key in honoured} == {key: theirs[key] for key in honoured}


def test_every_field_of_the_table_belongs_to_a_scheduler_or_is_retired() -> None:
    assert set(FIELDS) == set().union(*(entry.fields for entry in SCHEDULERS.values())) | RETIRED


def test_the_page_says_what_the_table_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+) \|$", DOC.read_text(), re.MULTILINE)
    page = {name: (fate, values, note) for name, fate, values, note in rows if name in FIELDS}
    table = {name: (field.fate, shown(field.values), field.note) for name, field in FIELDS.items()}
    assert page == table
    solvers = re.findall(r"^\| `(\w+Scheduler)` \| `(\w+)` \| (\d+) \|$", DOC.read_text(), re.MULTILINE)
    assert {name: (solver, int(steps)) for name, solver, steps in solvers} == {
        name: (entry.solver, entry.steps) for name, entry in SCHEDULERS.items()
    }


def shown(values: tuple[Any, ...] | None) -> str:
    return "any" if values is None else ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)


# -- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [10, 1000])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("name", BETAS)
def test_schedules_equal_the_float32_tables_of_diffusers(name: str, kind: str, T: int) -> None:
    try:
        scheduler, config = config_of(name, beta_schedule=kind, num_train_timesteps=T)
    except NotImplementedError:
        assert kind == "sigmoid"  # which only some schedulers have
        return
    schedule = read_scheduler(config).schedule
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs, rtol=5e-4, atol=2e-7)  # a long product in float32
    np.testing.assert_allclose(schedule.betas, scheduler.betas.double().numpy(), rtol=1e-5)


def test_trained_betas_replace_the_rest() -> None:
    betas = np.linspace(0.01, 0.3, 17)
    scheduler, config = config_of("DDIM", trained_betas=betas.tolist(), num_train_timesteps=17)
    np.testing.assert_allclose(read_scheduler(config).schedule.betas, betas, rtol=1e-12)
    assert len(scheduler.betas) == 17


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "LCM"])
def test_rescaled_betas_end_in_pure_noise(name: str) -> None:
    scheduler, config = config_of(name, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    schedule = read_scheduler(config).schedule
    assert schedule.alpha[-1] == 0
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod.double().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_has_the_sigmas_of_diffusers(shift: float) -> None:
    scheduler, config = config_of("FlowMatchEulerDiscrete", shift=shift)
    found = read_scheduler(config)
    np.testing.assert_allclose(found.schedule.sigma[::-1], scheduler.sigmas.double().numpy(), rtol=1e-6)
    np.testing.assert_allclose(1000 * found.schedule.sigma[::-1], scheduler.timesteps.double().numpy(), rtol=1e-6)
    assert (found.prediction, found.flow, found.defaults.solver) == ("flow", True, "euler")


def test_flow_sigmas_of_another_solver_are_the_same_schedule() -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    _, config = config_of("UniPCMultistep", flow_shift=3.0, **flow)
    _, expected = config_of("FlowMatchEulerDiscrete", shift=3.0)
    assert read_scheduler(config).schedule == read_scheduler(expected).schedule
    assert read_scheduler(config).defaults.solver == "unipc"


# -- the sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 10, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_spacings_are_those_of_diffusers(name: str, spacing: str, steps: int) -> None:
    scheduler, config = config_of(name, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    found = read_scheduler(config)
    expected = scheduler.timesteps.tolist()
    if (spacing, steps) == ("linspace", 1):
        expected = [999]  # diffusers gives 0, the clean end
    assert make_timesteps(found.schedule, steps, found.defaults.spacing).tolist() == expected


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_default_plan_of_ddim_is_the_sampling_of_diffusers(kind: str, clip: float | None) -> None:
    clipping = {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    scheduler, config = config_of("DDIM", prediction_type=kind, **clipping)
    found = read_scheduler(config)
    assert found.clip == (None if clip is None else (-clip, clip))
    plan = make_plan(found.defaults.solver, found.schedule, 10, found.defaults.spacing, found.prediction, found.clip)
    scheduler.set_timesteps(10)
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 4, 4)))
    ours = plan.run(lambda x, t: 0.3 * np.sin(x + t[0]), x.numpy())
    for t in scheduler.timesteps:
        m = 0.3 * torch.sin(x + t)
        x = scheduler.step(m, t, x, use_clipped_model_output=True).prev_sample
    np.testing.assert_allclose(ours, x.numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("name", "options", "solver", "said"),
    [
        ("DDPM", {}, "ddpm", {}),
        ("DDIM", {}, "ddim", {}),
        ("PNDM", {"skip_prk_steps": True}, "ipndm", {"order": 4}),
        ("DPMSolverMultistep", {}, "dpmpp_2m", {}),
        ("DPMSolverMultistep", {"solver_order": 1}, "dpmpp_1", {}),
        ("DPMSolverMultistep", {"solver_order": 3}, "dpmpp_3m", {}),
        ("DPMSolverMultistep", {"solver_type": "heun"}, "dpmpp_2m", {"kind": "heun"}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "dpmpp_1", {"sde": True}),
        ("DPMSolverSinglestep", {}, "dpmpp_2m", {}),
        ("UniPCMultistep", {}, "unipc", {"order": 2, "variant": "bh2"}),
        ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1"}, "unipc", {"order": 3, "variant": "bh1"}),
        ("DEISMultistep", {"solver_order": 3}, "deis", {"order": 3}),
        ("HeunDiscrete", {}, "heun", {}),
        ("EulerDiscrete", {}, "euler", {}),
        ("EulerAncestralDiscrete", {}, "euler_a", {}),
        ("LCM", {"timestep_scaling": 5.0}, "lcm", {"timestep_scaling": 5.0}),
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "consistency", {}),
    ],
)
def test_schedulers_become_solvers(name: str, options: dict[str, Any], solver: str, said: dict[str, Any]) -> None:
    found = read_scheduler(config_of(name, **options)[1])
    assert (found.defaults.solver, found.defaults.options) == (solver, said)
    defaults = found.defaults
    plan = make_plan(solver, found.schedule, defaults.steps, defaults.spacing, found.prediction, found.clip, **said)
    assert plan.nfe >= defaults.steps


@pytest.mark.parametrize(
    ("name", "option", "spacing"),
    [
        ("EulerDiscrete", "use_karras_sigmas", "karras"),
        ("EulerDiscrete", "use_exponential_sigmas", "logsnr"),
        ("DPMSolverMultistep", "use_lu_lambdas", "logsnr"),
    ],
)
def test_other_sigmas_become_spacings(name: str, option: str, spacing: str) -> None:
    scheduler, config = config_of(name, **{option: True})
    found = read_scheduler(config)
    assert found.defaults.spacing == spacing
    scheduler.set_timesteps(12)
    t = make_timesteps(found.schedule, 12, spacing)
    lam = np.log(np.divide(*found.schedule.at(t)))
    np.testing.assert_allclose(lam, -np.log(scheduler.sigmas[:12].double().numpy()), atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "variance"),
    [
        ("fixed_small", "small"),
        ("fixed_small_log", "small"),
        ("fixed_large", "large"),
        ("fixed_large_log", "large"),
        ("learned_range", "learned"),
    ],
)
def test_variances(kind: str, variance: str) -> None:
    assert read_scheduler(config_of("DDPM", variance_type=kind)[1]).variance == variance


@pytest.mark.parametrize(("kind", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_prediction_types(kind: str, ours: str) -> None:
    assert read_scheduler(config_of("DDPM", prediction_type=kind)[1]).prediction == ours


# -- old files, and what is refused -----------------------------------------------------------------------------------


def test_the_file_of_google_ddpm_cifar10_32_is_read() -> None:
    config = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
        "tensor_format": "pt",
        "timestep_values": None,
    }
    found = read_scheduler(config)
    assert (found.prediction, found.variance, found.clip) == ("eps", "large", (-1.0, 1.0))
    assert (found.defaults.solver, found.defaults.steps) == ("ddpm", 1000)
    assert found.schedule.betas[-1] == pytest.approx(0.02, rel=1e-12)


def test_a_field_left_behind_by_another_scheduler_has_no_effect() -> None:
    scheduler, _ = config_of("DDPM", clip_sample=True)
    other = diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config, skip_prk_steps=True)
    config = json.loads(other.to_json_string()) | {"clip_sample": True}
    assert read_scheduler(config).clip is None


def test_predict_epsilon_false_is_a_prediction_of_the_image() -> None:
    assert read_scheduler({"_class_name": "DDPMScheduler", "predict_epsilon": False}).prediction == "x0"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("DDPM", "thresholding", True),
        ("DPMSolverMultistep", "thresholding", True),
        ("DDPM", "variance_type", "learned"),
        ("DDPM", "beta_schedule", "laplace"),
        ("HeunDiscrete", "beta_schedule", "exp"),
        ("DDPM", "prediction_type", "flow_prediction"),
        ("DDPM", "prediction_type", ["epsilon"]),
        ("DDPM", "clip_sample", 1),
        ("DDPM", "clip_sample_range", "wide"),
        ("DDPM", "num_train_timesteps", 0),
        ("DDPM", "num_train_timesteps", 10**12),
        ("DDPM", "num_train_timesteps", True),
        ("DDPM", "beta_end", -1.0),
        ("DDPM", "beta_end", math.nan),
        ("DDPM", "trained_betas", [0.1, "a"]),
        ("DDPM", "trained_betas", [0.1, 2.0]),
        ("DDPM", "trained_betas", []),
        ("DDPM", "timestep_values", [1, 2]),
        ("DDPM", "rescale_betas_zero_snr", True),  # with epsilon
        ("DDPM", "colour", "red"),
        ("DPMSolverMultistep", "algorithm_type", "dpmsolver"),
        ("DPMSolverMultistep", "use_beta_sigmas", True),
        ("DPMSolverMultistep", "use_dynamic_shifting", True),
        ("DPMSolverMultistep", "use_flow_sigmas", True),  # with epsilon
        ("DPMSolverMultistep", "solver_order", 4),
        ("UniPCMultistep", "predict_x0", False),
        ("UniPCMultistep", "disable_corrector", [0]),
        ("UniPCMultistep", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("UniPCMultistep", "shift_terminal", 0.1),
        ("EulerDiscrete", "timestep_type", "continuous"),
        ("EulerDiscrete", "sigma_max", 80.0),
        ("LCM", "thresholding", True),
        ("FlowMatchEulerDiscrete", "use_karras_sigmas", True),
        ("FlowMatchEulerDiscrete", "invert_sigmas", True),
        ("FlowMatchEulerDiscrete", "use_dynamic_shifting", True),
        ("FlowMatchEulerDiscrete", "shift", -1.0),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, field: str, value: Any) -> None:
    with pytest.raises(ExportError, match="prediction_type" if value is True and "flow_sig" in field else field):
        read_scheduler({"_class_name": f"{name}Scheduler", field: value})


@pytest.mark.parametrize("name", ["KarrasVeScheduler", None, 3, ["DDPMScheduler"]])
def test_an_unknown_scheduler_is_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(ExportError, match=r"_class_name: got .* expected one of DDPMScheduler"):
        read_scheduler({"_class_name": name})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
USUAL = st.sampled_from([1, 0.5, 1e-4, 10, 100, "linear", "sigmoid", "v_prediction", "learned_range", "heun", 3, True])


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    values=st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING | USUAL, max_size=5),
)
def test_any_configuration_gives_a_plan_or_a_named_refusal(name: str, values: dict[str, Any]) -> None:
    values = {"num_train_timesteps": 20} | values
    try:
        found = read_scheduler({"_class_name": name, **values})
    except ExportError:
        return
    steps = min(found.defaults.steps, 5)
    make_plan(found.defaults.solver, found.schedule, steps, found.defaults.spacing, found.prediction, found.clip,
              **found.defaults.options)  # fmt: skip
