"""kernels.c, built by the host's compiler, against numpy; and built by the GPU's compiler, which needs no GPU."""

from __future__ import annotations

import numpy as np
import pytest
from host_device import library

from ddpm_deploy.backends.cuda.driver import compiled, kernels
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.noise import INITIAL, STEP, initial_noise, row_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import plan_tables
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, make_plan

SEEDS = [0, 1, 2**63 + 5, 2**64 - 1]
SAMPLES = [0, 7, 2**40, 2**64 - 1]
SCHEDULE = NoiseSchedule.linear(1000)
HOPPER = (9, 0)


def call(kernel: str, *arguments: object) -> None:
    library_function = getattr(library(), kernel)
    library_function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


def pairs() -> tuple[np.ndarray, np.ndarray]:
    seeds, samples = np.meshgrid(np.array(SEEDS, np.uint64), np.array(SAMPLES, np.uint64))
    return np.ascontiguousarray(seeds.ravel()), np.ascontiguousarray(samples.ravel())


@pytest.mark.parametrize(("row", "stream"), [(0, INITIAL), (0, STEP), (999, STEP), (2**40, STEP)])
def test_integers_are_those_of_numpys_philox_bit_for_bit(row: int, stream: int) -> None:
    (seeds, samples), blocks = pairs(), 33
    out = np.empty((len(seeds), 4 * blocks), np.uint64)
    call("ddpm_integers", out, seeds, samples, row, stream, len(seeds), blocks)
    for seed, sample, integers in zip(seeds, samples, out, strict=True):
        counter = np.array([0, 0, row, stream], np.uint64)
        expected = np.random.Philox(key=np.array([seed, sample]), counter=counter).random_raw(4 * blocks)
        np.testing.assert_array_equal(integers, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 3072])
def test_numbers_are_those_of_noise_py_within_one_unit_in_the_last_place(count: int) -> None:
    (seeds, samples), K = pairs(), 3
    B = len(seeds)
    state = np.full((K, B, count), np.nan, np.float32)
    counter, first_bad = np.full(2, -1, np.int32), np.zeros(B, np.int32)
    call("ddpm_start", state, None, seeds, samples, counter, first_bad, B, count, K, count, B * count)
    expected = np.concatenate([initial_noise(int(s), [int(i)], (count,)) for s, i in zip(seeds, samples, strict=True)])
    for image in state:
        np.testing.assert_array_max_ulp(image, expected, maxulp=1)
    assert counter[0] == 0
    assert (first_bad == 2**31 - 1).all()


def test_x_T_that_is_given_fills_every_image_of_the_state() -> None:
    B, K, n = 3, 4, 11
    x_T = np.random.default_rng(0).normal(size=(B, n)).astype(np.float32)
    state, zeros = np.full((B, K, n), np.nan, np.float32), np.zeros(B, np.uint64)
    call("ddpm_start", state, x_T, zeros, zeros, np.zeros(2, np.int32), np.zeros(B, np.int32), B, n, K, K * n, n)
    np.testing.assert_array_equal(state, np.broadcast_to(x_T[:, None], state.shape))


def tables_of(plan: Plan) -> dict[str, np.ndarray]:
    tables = plan_tables(plan, learned_variance=plan.log_variance is not None)
    return {name: np.ascontiguousarray(table) for name, table in tables.items()}


def begin(plan: Plan, row: int, B: int, n: int, **outputs: np.ndarray) -> np.ndarray:
    tables, K = tables_of(plan), len(plan.state)
    counter = np.array([row, -1], np.int32)
    seeds, samples = np.full(B, 5, np.uint64), np.arange(B, dtype=np.uint64)
    names = ("t", "predict", "clip", "update", "log_variance")
    weights = (outputs.get(name) for name in ("guided", "weight", "row_weight"))
    call("ddpm_begin_row", counter, *(tables.get(name) for name in names), *(outputs.get(name) for name in names),
         *weights, outputs.get("z"), seeds, samples, B, n, K)  # fmt: skip
    return counter


@pytest.mark.parametrize("n", [5, 8, 200])
def test_a_row_gives_its_coefficients_and_its_noise_to_every_sample(n: int) -> None:
    plan, B = make_plan("ddpm", SCHEDULE, steps=10), 3
    out = {name: np.full((B, *table.shape[1:]), np.nan, np.float32) for name, table in tables_of(plan).items()}
    z = np.full((B, n), np.nan, np.float32)
    counter = begin(plan, 4, B, n, z=z, **out)
    assert counter.tolist() == [4, 4]
    for name, table in tables_of(plan).items():
        np.testing.assert_array_equal(out[name], np.broadcast_to(table[4], out[name].shape))
    np.testing.assert_array_max_ulp(z, row_noise(5, range(B), 4, (n,)), maxulp=1)


@pytest.mark.parametrize(("row", "expected"), [(2, [3.0, 0.5]), (3, [1.0, 1.0])])
def test_the_weights_of_guidance_count_in_the_rows_that_say_so(row: int, expected: list[float]) -> None:
    plan, found = make_plan("ddim", SCHEDULE, steps=10), np.full(2, np.nan, np.float32)
    guided, weight = np.float32(np.arange(10) < 3), np.float32([3.0, 0.5])
    begin(plan, row, 2, 9, t=np.empty(2, np.float32), guided=guided, weight=weight, row_weight=found)
    assert found.tolist() == expected


def test_a_row_that_draws_none_gets_zeros_for_noise() -> None:
    plan, z = make_plan("ddpm", SCHEDULE, steps=10), np.full((2, 9), np.nan, np.float32)
    begin(plan, 9, 2, 9, z=z, t=np.empty(2, np.float32))
    assert not z.any()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_rows_applied_by_the_kernel_equal_the_numpy_loop(solver: str) -> None:
    plan, shape, B = make_plan(solver, SCHEDULE, steps=6, clip=(-1, 1)), (2, 3, 5), 3
    rng, K, n = np.random.default_rng(0), len(plan.state), 30
    x_T, tables = rng.normal(size=(B, *shape)).astype(np.float32), tables_of(plan)
    expected = plan.start(x_T)
    state = np.ascontiguousarray(np.broadcast_to(x_T, (K, *x_T.shape)))
    first_bad = np.full(B, 2**31 - 1, np.int32)
    for row in range(len(plan)):
        m, z = (rng.normal(size=x_T.shape).astype(np.float32) for _ in range(2))
        expected, x0 = plan.step(row, expected, m, z)
        preview, counter = np.empty_like(x_T), np.array([row, row], np.int32)
        call("ddpm_apply_row", counter, state, m, z, preview, tables["predict"], tables["clip"], tables["update"],
             None, first_bad, B, n, K, n, B * n, n, 0)  # fmt: skip
        np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(preview, x0, rtol=1e-6, atol=1e-6)
        assert counter.tolist() == [row + 1, row]
    assert (first_bad == 2**31 - 1).all()


def test_a_learned_variance_scales_the_noise_as_the_numpy_loop_does() -> None:
    plan, B, n = make_plan("ddpm", SCHEDULE, steps=6, variance="learned"), 2, 12
    rng, tables = np.random.default_rng(1), tables_of(plan)
    state, z = (rng.normal(size=(B, 1, n)).astype(np.float32) for _ in range(2))
    m = rng.normal(size=(B, 2, n)).astype(np.float32)
    (expected,), _ = plan.step(2, [state], m, z)
    call("ddpm_apply_row", np.array([2, 2], np.int32), state, m, z, None, tables["predict"], tables["clip"],
         tables["update"], tables["log_variance"], np.zeros(B, np.int32), B, n, 1, n, B * n, 2 * n, 1)  # fmt: skip
    np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite_is_noted_with_its_first_row_although_a_clip_hides_it(bad: float) -> None:
    plan, B, n = make_plan("ddim", SCHEDULE, steps=6, clip=(-1, 1)), 3, 12
    tables, first_bad = tables_of(plan), np.full(B, 2**31 - 1, np.int32)
    for row, sample in ((1, 2), (3, 0), (4, 2)):
        m = np.zeros((B, n), np.float32)
        m[sample, 5] = bad
        call("ddpm_apply_row", np.array([row, row], np.int32), np.zeros((B, n), np.float32), m, None, None,
             tables["predict"], tables["clip"], tables["update"], None, first_bad, B, n, 1, n, B * n, n, 0)  # fmt: skip
    assert first_bad.tolist() == [3, 2**31 - 1, 1]


def test_flags_of_a_graph_are_noted_the_same_way() -> None:
    counter, first_bad = np.array([7, 7], np.int32), np.array([2**31 - 1, 3, 2**31 - 1], np.int32)
    call("ddpm_end_row", counter, np.array([0.0, 0.0, 1.0], np.float32), first_bad, 3)
    assert first_bad.tolist() == [7, 3, 2**31 - 1]
    assert counter.tolist() == [8, 7]


def test_every_kernel_is_declared_as_the_parser_reads_it() -> None:
    assert set(kernels()) == {"ddpm_integers", "ddpm_start", "ddpm_begin_row", "ddpm_apply_row", "ddpm_end_row",
                              "ddpm_finish"}  # fmt: skip


def test_the_gpus_compiler_builds_the_same_source_without_a_gpu() -> None:
    try:
        code = compiled(HOPPER)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in kernels())
