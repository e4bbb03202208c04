"""The sampler: everything that can be given, the same picture whatever the batch, and the manners of a library."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import BackendError, BundleError, NonFiniteError, Sampler
from ddpm_deploy.bundle import read_bundle, write_bundle
from ddpm_deploy.noise import initial_noise, row_noise
from ddpm_deploy.solvers import make_plan

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def sampler(tiny_bundle: Path):
    with Sampler.load(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def labelled(labelled_bundle: Path):
    with Sampler.load(labelled_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def guarded_fork():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")


def test_samples_are_float32_of_the_sample_shape(sampler: Sampler) -> None:
    samples = sampler.sample(3, solver="unipc", steps=4)
    assert samples.dtype == np.float32
    assert samples.shape == (3, *SHAPE)
    assert np.isfinite(samples).all()


def test_a_run_equals_the_reference_loop_over_the_same_denoiser(sampler: Sampler) -> None:
    plan = make_plan("ddpm", sampler.manifest.schedule, 7, prediction="eps", clip=(-1, 1))
    noise = np.stack([row_noise(5, range(2), row, SHAPE) for row in range(7)])

    def denoise(x, t):
        return sampler.backend.run({"x": x, "t": t})["prediction"]

    expected = plan.run(denoise, initial_noise(5, range(2), SHAPE), noise)
    found = sampler.sample(2, solver="ddpm", steps=7, spacing="trailing", seed=5)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "unipc", "dpmpp_2m_sde"])
def test_a_sample_is_the_same_alone_and_in_a_batch_of_five(sampler: Sampler, solver: str) -> None:
    together = sampler.sample(5, solver=solver, steps=6, seed=3)
    for index in range(5):
        alone = sampler.sample(1, solver=solver, steps=6, seed=3, start=index)
        np.testing.assert_array_equal(alone[0], together[index])


def test_the_batch_size_changes_nothing(sampler: Sampler) -> None:
    whole = sampler.sample(7, solver="ddpm", steps=5)
    np.testing.assert_array_equal(sampler.sample(7, solver="ddpm", steps=5, batch_size=3), whole)


def test_another_seed_gives_another_sample(sampler: Sampler) -> None:
    assert np.abs(sampler.sample(1, seed=0, steps=3) - sampler.sample(1, seed=1, steps=3)).max() > 0.01


def test_given_noise_equals_the_seeds_own(sampler: Sampler) -> None:
    x_T = initial_noise(9, range(4), SHAPE)
    noise = np.stack([row_noise(9, range(4), row, SHAPE) for row in range(6)])
    expected = sampler.sample(4, solver="ddpm", steps=6, seed=9)
    given = sampler.sample(solver="ddpm", steps=6, x_T=x_T, noise=noise, batch_size=3)
    np.testing.assert_array_equal(given, expected)
    by_function = sampler.sample(solver="ddpm", steps=6, x_T=x_T, noise=lambda row: noise[row])
    np.testing.assert_array_equal(by_function, expected)


def test_a_given_plan_is_used(sampler: Sampler) -> None:
    plan = sampler.plan("heun", 4)
    assert plan.nfe == 7
    np.testing.assert_array_equal(sampler.sample(2, plan=plan), sampler.sample(2, solver="heun", steps=4))


def test_a_callable_solver_and_own_timesteps_are_used(sampler: Sampler) -> None:
    from ddpm_deploy.solvers import ddim

    plan = sampler.plan("ddim", timesteps=[90, 40.5, 3])
    assert plan.t.tolist() == [90, 40.5, 3]
    np.testing.assert_array_equal(
        sampler.sample(1, plan=plan),
        sampler.sample(1, plan=make_plan(ddim, sampler.manifest.schedule, timesteps=[90, 40.5, 3], clip=(-1, 1))),
    )


def test_without_a_solver_the_bundles_default_is_used(sampler: Sampler) -> None:
    defaults = sampler.manifest.defaults
    plan = sampler.plan()
    assert (plan.solver, plan.nfe) == (defaults.solver, defaults.steps)
    assert sampler.plan("ddpm").nfe == sampler.manifest.schedule.T
    assert sampler.plan("ddim").nfe == defaults.steps


def test_a_default_of_ddpm_keeps_its_own_number_of_steps(sampler: Sampler) -> None:
    defaults = replace(sampler.manifest.defaults, solver="ddpm", steps=20)
    model = replace(sampler.manifest, defaults=defaults, variance="large")
    plan = Sampler(sampler.backend, model).plan()
    assert plan == make_plan("ddpm", model.schedule, 20, defaults.spacing, clip=(-1, 1), variance="large")


def test_stream_ends_in_what_sample_gives(sampler: Sampler) -> None:
    frames = list(sampler.stream(2, solver="ddpm", steps=5, seed=4))
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].x0.shape == (2, *SHAPE)
    assert np.abs(frames[-1].x0).max() <= 1
    np.testing.assert_array_equal(frames[-1].x, sampler.sample(2, solver="ddpm", steps=5, seed=4))


def test_to_user_applies_the_affine_of_the_bundle(sampler: Sampler) -> None:
    x = np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, *SHAPE)
    np.testing.assert_allclose(sampler.to_user(x), x * 127.5 + 127.5, rtol=1e-6)


def test_conditions_reach_the_network(labelled: Sampler) -> None:
    each = labelled.sample(3, steps=3, condition={"labels": np.array([0, 1, 2])})
    one = labelled.sample(3, steps=3, condition={"labels": 1})
    np.testing.assert_array_equal(each[1], one[1])
    assert np.abs(each[0] - one[0]).max() > 1e-4
    np.testing.assert_array_equal(labelled.sample(3, steps=3, condition={"labels": [0, 1, 2]}, batch_size=2), each)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "n: got 0"),
        ({"n": 2.5}, "n: got 2.5"),
        ({}, "n: got None"),
        ({"n": 1, "steps": 0}, "steps: got 0"),
        ({"n": 1, "steps": 101}, "from 1 to 100"),
        ({"n": 1, "solver": "magic"}, "solver: got 'magic', expected one of ddpm"),
        ({"n": 1, "spacing": "odd"}, "spacing: got 'odd', expected one of leading"),
        ({"n": 1, "solver": "ddim", "eta": 2.0}, "eta: got 2.0"),
        ({"n": 1, "sigma": 2.0}, "sigma: not an option"),
        ({"n": 1, "seed": -1}, "seed: got -1"),
        ({"n": 1, "batch_size": 0}, "batch_size: got 0"),
        ({"x_T": np.zeros((1, 3, 8))}, "x_T: got shape"),
        ({"n": 2, "x_T": np.zeros((1, *SHAPE))}, "n: got 2 beside an x_T of 1"),
        ({"n": 1, "noise": np.zeros((3, 4))}, "noise: got shape"),
        ({"n": 1, "condition": {"labels": 1}}, "condition: got labels, expected none"),
        ({"n": 40, "noise": lambda row: None}, "noise: a function serves one batch"),
    ],
)
def test_a_bad_request_names_the_value_and_the_choices(sampler: Sampler, request_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        sampler.sample(**request_)


def test_a_plan_beside_a_solver_is_refused(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="plan: given together"):
        sampler.sample(1, plan=sampler.plan(), steps=3)


def test_wrong_conditions_are_refused(labelled: Sampler) -> None:
    for condition in ({}, {"label": 1}, {"labels": 1.5}, {"labels": [1, 2]}, {"labels": 3}, {"labels": -1}):
        with pytest.raises(ValueError, match="condition"):
            labelled.sample(3, steps=2, condition=condition)


def test_a_non_finite_prediction_is_an_error_not_a_picture(sampler: Sampler) -> None:
    x_T = initial_noise(0, range(3), SHAPE)
    x_T[1] = np.inf
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"samples \[1\]"):
        sampler.sample(x_T=x_T, steps=3)


def test_many_threads_may_share_a_sampler(sampler: Sampler) -> None:
    expected = [sampler.sample(2, solver="ddpm", steps=4, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: sampler.sample(2, solver="ddpm", steps=4, seed=seed), range(8)))
    np.testing.assert_array_equal(found, expected)


def test_asyncio_may_share_a_sampler(sampler: Sampler) -> None:
    async def serve() -> list:
        return await asyncio.gather(*(asyncio.to_thread(sampler.sample, 1, steps=3, seed=seed) for seed in range(4)))

    for seed, found in enumerate(asyncio.run(serve())):
        np.testing.assert_array_equal(found, sampler.sample(1, steps=3, seed=seed))


def test_use_after_close_is_an_error(tiny_bundle: Path) -> None:
    with Sampler.load(tiny_bundle) as opened:
        opened.sample(1, steps=2)
    with pytest.raises(BackendError, match="closed"):
        opened.sample(1, steps=2)


FORKED = """
import os, sys
from ddpm_deploy import BackendError, Sampler
sampler = Sampler.load(sys.argv[1], warmup=True)
child = os.fork()
if child == 0:
    try:
        sampler.sample(1, steps=2)
    except BackendError as error:
        os._exit(0 if "fork" in str(error) else 3)
    os._exit(4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("guarded_fork")
def test_use_in_a_forked_child_is_an_error_not_a_hang(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.returncode == 0, done.stderr


MANNERS = """
import logging, signal, sys
before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], list(logging.getLogger().handlers)
from ddpm_deploy import Sampler
with Sampler.load(sys.argv[1], warmup=True) as sampler:
    sampler.sample(2, steps=3)
after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], list(logging.getLogger().handlers)
assert before == after, (before, after)
heavy = {"torch", "onnx", "openvino", "matplotlib", "tqdm", "PIL", "scipy", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""


def test_it_prints_nothing_installs_no_handlers_and_loads_neither_torch_nor_onnx(tiny_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MANNERS, str(tiny_bundle)], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_its_logger_is_silent_unless_the_application_wants_it() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("ddpm_deploy").handlers)


@pytest.mark.parametrize("failures", [(), ("RMS error of the next state 0.2 is over 0.016",)])
def test_it_warns_once_a_load_of_a_graph_over_its_parity_budget(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, failures: tuple[str, ...]
) -> None:
    good = read_bundle(tiny_bundle)
    graph, *others = good.manifest.files
    marked = replace(good.manifest, files=(replace(graph, over_budget=failures), *others))
    bundle = write_bundle(tmp_path / "marked", marked, {file.path: good.open_bytes(file) for file in marked.all_files})
    with caplog.at_level(logging.WARNING, "ddpm_deploy"), Sampler.load(bundle, threads=1) as opened:
        opened.sample(2, steps=2)
    expected = [f"{graph.path}: was exported over its parity budget: {failure}" for failure in failures]
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", e) for e in expected]


def test_progress_is_shown_only_when_asked(sampler: Sampler, capfd: pytest.CaptureFixture) -> None:
    sampler.sample(2, steps=3)
    assert capfd.readouterr() == ("", "")
    sampler.sample(2, steps=3, progress=True)
    assert "ddim" in capfd.readouterr().err


def test_warm_up_evaluates_the_network_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend

    calls = []
    plain = OnnxRuntimeBackend.run
    monkeypatch.setattr(OnnxRuntimeBackend, "run", lambda self, feeds: calls.append(feeds) or plain(self, feeds))
    Sampler.load(tiny_bundle).close()
    assert not calls
    Sampler.load(tiny_bundle, warmup=True).close()
    assert len(calls) == 1


def test_a_pinned_digest_admits_only_that_bundle(tiny_bundle: Path) -> None:
    digest = read_bundle(tiny_bundle).digest
    Sampler.load(tiny_bundle, digest=digest).close()
    with pytest.raises(BundleError, match="digest"):
        Sampler.load(tiny_bundle, digest="sha256:" + "0" * 64)


def test_threads_are_kept_from_leaking(tiny_bundle: Path) -> None:
    before = threading.active_count()
    for _ in range(3):
        Sampler.load(tiny_bundle, threads=1, warmup=True).close()
    assert threading.active_count() == before


def test_plans_are_compiled_once(sampler: Sampler) -> None:
    assert sampler.plan("unipc", 9) is sampler.plan("unipc", 9)
    assert sampler.plan("unipc", 9) is not sampler.plan("unipc", 9, order=2)
