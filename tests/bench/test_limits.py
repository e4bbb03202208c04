"""What the machine can do at most: figures in the right unit, the best of all libraries, within the time given."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
import pytest

from ddpm_deploy.bench.limits import (
    MIN_RUNS,
    Limits,
    Place,
    best_bandwidth,
    best_product,
    best_seconds,
    measure_limits,
    wall_seconds,
)
from ddpm_deploy.bench.products import (
    CPU_MAKERS,
    Unavailable,
    cpu_precisions,
    library_threads,
    numpy_product,
    onnxruntime_product,
    openvino_product,
    torch_product,
)
from ddpm_deploy.bench.streams import MAX_BYTES, MIN_BYTES, Pass, array_bytes, cpu_passes
from ddpm_deploy.errors import BackendUnavailable

SIZE = (48, 64, 32)
SMALL, LARGE = (100, 100, 100), (1000, 1000, 1000)


@pytest.fixture(scope="module")
def measured() -> Limits:
    return measure_limits(1, precisions=("fp32",), budget_s=2.0)


def test_best_of_all_libraries_counts(measured: Limits) -> None:
    product = measured.products["fp32"]
    assert product.value == max(trial.value for trial in product.tried)
    assert {trial.library for trial in product.tried} | set(product.skipped) >= set(CPU_MAKERS)
    assert (product.unit, measured.bandwidth.unit) == ("GFLOP/s", "GB/s")
    assert measured.device == "cpu"
    assert measured.seconds < 20


def test_peak_is_no_less_than_a_product_timed_by_hand(measured: Limits) -> None:
    a, b = (np.ones((512, 512), np.float32) for _ in range(2))
    with library_threads(1):
        seconds = min(wall_seconds(lambda: a @ b) for _ in range(20))
    by_hand = 2e-9 * 512**3 / seconds
    assert by_hand / 3 < measured.products["fp32"].value < 30 * by_hand


def test_bandwidth_is_about_that_of_a_copy_timed_by_hand(measured: Limits) -> None:
    a, b = np.ones(2**25, np.float32), np.empty(2**25, np.float32)
    seconds = min(wall_seconds(lambda: np.copyto(b, a)) for _ in range(8))
    by_hand = 2 * a.nbytes / seconds / 1e9
    assert by_hand / 3 < measured.bandwidth.value < 10 * by_hand


def place(**makers) -> Place:
    """Each maker gives the seconds that its product takes, and no time goes by."""
    return Place(
        precisions=("fp32",),
        sizes=(SMALL, LARGE),
        makers=makers,
        seconds=lambda call: call(),
        threads=nullcontext(),
        passes=nullcontext([]),
        cache_bytes=None,
    )


def takes(gflop_per_s: float):
    """A library of known speed."""
    return lambda size, precision, threads: lambda: 2e-9 * size[0] * size[1] * size[2] / gflop_per_s


def unavailable(size, precision, threads):
    raise Unavailable("it is not installed")


def broken(size, precision, threads):
    raise OSError("a shared object is missing\nand more")


def test_two_operations_for_each_multiplication_with_its_addition() -> None:
    slow = best_product(place(slow=takes(50)), "fp32", 1, 0.5)
    fast = best_product(place(slow=takes(50), fast=takes(200)), "fp32", 1, 0.5)
    assert slow.value == pytest.approx(50)
    assert (fast.value, fast.library) == (pytest.approx(200), "fast")
    assert {trial.size for trial in fast.tried} == {"100x100x100", "1000x1000x1000"}


def test_libraries_that_cannot_be_had_are_named_with_the_reason() -> None:
    limit = best_product(place(good=takes(10), missing=unavailable, bad=broken), "fp32", 1, 1.0)
    assert limit.library == "good"
    assert limit.skipped["missing"] == "it is not installed"
    assert limit.skipped["bad"].startswith("a shared object is missing")
    assert "\n" not in limit.skipped["bad"]


def test_precision_that_nothing_computes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precisions: got 'fp4'.*leave it out"):
        best_product(place(missing=unavailable), "fp4", 1, 1.0)


def test_sizes_that_do_not_fit_into_the_time_are_left_out_and_named() -> None:
    def sleepy(size, precision, threads):
        return lambda: time.sleep(20 if size == LARGE else 0.02)

    timed = place(sleepy=sleepy)
    timed = Place(**{**vars(timed), "seconds": wall_seconds})
    began = time.perf_counter()
    limit = best_product(timed, "fp32", 1, 0.2)
    assert time.perf_counter() - began < 5
    assert [trial.size for trial in limit.tried] == ["100x100x100"]
    assert "would not fit" in limit.skipped["sleepy 1000x1000x1000"]


def test_bandwidth_is_bytes_by_seconds_of_the_fastest_pass() -> None:
    passes = [Pass("numpy", "read", 2**30, lambda: 0.5), Pass("torch", "copy", 2**31, lambda: 0.25)]
    limit = best_bandwidth(passes, lambda call: call(), 1.0)
    assert limit.value == pytest.approx(2**31 / 0.25 / 1e9)
    assert (limit.library, limit.size) == ("torch", "copy, 2048 MiB")


def test_first_run_does_not_count_and_the_shortest_does() -> None:
    times = iter([0.001, 3.0, 2.0, 9.0])
    assert best_seconds(lambda: next(times), lambda call: call(), 0.0) == 2.0
    assert next(times) == 9.0
    assert MIN_RUNS == 2


@pytest.mark.parametrize("maker", [numpy_product, torch_product, onnxruntime_product, openvino_product])
def test_every_library_multiplies_what_it_says(maker) -> None:
    m, k, n = SIZE
    a, b = (
        np.random.default_rng(rows).standard_normal(shape, np.float32) for rows, shape in ((m, (m, k)), (k, (k, n)))
    )
    found = maker(SIZE, "fp32", 1)()
    found = np.asarray(found if hasattr(found, "shape") else found[0])
    assert found.shape == (m, n)
    if maker is not torch_product:  # which draws its own
        assert found == pytest.approx(a @ b, abs=1e-4)


@pytest.mark.parametrize("maker", [torch_product, onnxruntime_product, openvino_product])
def test_int8_products_run_and_have_their_shape(maker) -> None:
    found = maker(SIZE, "int8", 1)()
    found = np.asarray(found if hasattr(found, "shape") else found[0])
    assert found.shape == (SIZE[0], SIZE[2])
    assert found.dtype == (np.float32 if maker is openvino_product else np.int32)
    assert np.ptp(found) > 0


def test_libraries_say_which_precision_they_lack() -> None:
    with pytest.raises(Unavailable, match="numpy has no int8"):
        numpy_product(SIZE, "int8", 1)
    with pytest.raises(Unavailable, match="onnxruntime has no bf16"):
        onnxruntime_product(SIZE, "bf16", 1)


@pytest.mark.parametrize(
    ("flags", "precisions"),
    [
        (None, ("fp32",)),
        (["avx"], ("fp32",)),
        (["avx", "avx2"], ("fp32", "int8")),
        (["avx512_bf16", "avx512_vnni"], ("fp32", "bf16", "int8")),
        (["asimd", "bf16", "i8mm"], ("fp32", "bf16", "int8")),
    ],
)
def test_precisions_follow_from_the_instruction_sets(flags, precisions) -> None:
    assert cpu_precisions(flags) == precisions


def test_threads_of_libraries_are_put_back() -> None:
    import torch
    from threadpoolctl import threadpool_info

    def blas():
        return sorted(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    before = torch.get_num_threads(), blas()
    with library_threads(before[0] + 1):
        assert torch.get_num_threads() == before[0] + 1
    with library_threads(1):
        assert set(blas()) == {1}
    assert (torch.get_num_threads(), blas()) == before


@pytest.mark.parametrize(
    ("cache", "memory", "size"),
    [
        (2**20, 2**40, MIN_BYTES),
        (2**25, 2**40, 2**27),
        (2**30, 2**40, MAX_BYTES),
        (2**30, 2**32, 2**28),
        (None, None, MAX_BYTES),
    ],
)
def test_arrays_are_far_larger_than_the_caches_and_fit_into_memory(cache, memory, size) -> None:
    assert array_bytes(cache, memory) == size


def test_passes_move_the_bytes_that_they_count() -> None:
    with cpu_passes(2**20, 2) as passes:
        by_name = {f"{one.library} {one.name}": one for one in passes}
        assert {name: one.size_bytes / 2**20 for name, one in by_name.items()} == {
            "numpy read": 1, "numpy copy": 2, "torch copy": 2, "torch triad": 3,
        }  # fmt: skip
        assert by_name["numpy read"].call() == [1, 1]
        assert float(by_name["torch triad"].call()[-1]) == 1 + 3 * 2


def test_limits_of_a_gpu_that_is_not_there_are_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendUnavailable, match="cuda"):
        measure_limits(1, "cuda:0")


def test_limits_of_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    limits = measure_limits(1, "cuda:0", precisions=("fp32", "bf16"), budget_s=2.0)
    assert limits.products["bf16"].value > limits.products["fp32"].value > 100
    assert limits.bandwidth.value > 50


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        measure_limits(threads)
