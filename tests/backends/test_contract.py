"""What every backend promises, whatever its runtime, precision and device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.backends import Backend
from ddpm_deploy.errors import BackendError

Feeds = dict[str, np.ndarray]
MakeFeeds = Callable[..., Feeds]
Open = Callable[..., Backend]

# Relative L2 against float32 torch; the reduced precisions keep 8 (bf16) or 11 (fp16) bits in every layer.
BUDGET = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}
INVARIANT_BATCHES = (*range(1, 10), 16, 33)


def predict(backend: Backend, feeds: Feeds) -> np.ndarray:
    return backend.run(feeds)["prediction"]


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def rows(feeds: Feeds, index: Any) -> Feeds:
    return {name: np.ascontiguousarray(array[index]) for name, array in feeds.items()}


def test_this_machine_has(any_case: Any, require_case: Callable[[Any], None]) -> None:
    require_case(any_case)


def test_attributes_say_what_was_asked_for(backend: Backend, case: Any) -> None:
    assert (backend.name, backend.precision, backend.device) == tuple(case)
    assert [spec.name for spec in backend.inputs] == ["x", "t", "labels"]
    assert [spec.name for spec in backend.outputs] == ["prediction"]
    assert backend.threads >= 1
    assert backend.details["version"][0].isdigit()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_output_is_float32_of_the_declared_shape(backend: Backend, feeds: MakeFeeds, batch: int) -> None:
    outputs = backend.run(feeds(batch))
    assert list(outputs) == ["prediction"]
    assert outputs["prediction"].dtype == np.float32
    assert outputs["prediction"].shape == (batch, 3, 8, 8)


@pytest.mark.parametrize("batch", [1, 5])
def test_agrees_with_float32_torch(backend: Backend, reference: Backend, feeds: MakeFeeds, batch: int) -> None:
    expected = predict(reference, feeds(batch))
    assert np.std(expected) > 0.1
    assert relative_l2(predict(backend, feeds(batch)), expected) <= BUDGET[backend.precision]


def test_every_input_matters(backend: Backend, feeds: MakeFeeds) -> None:
    base = feeds(2)
    for name, other in {"x": base["x"] + 1, "t": 99 - base["t"], "labels": (base["labels"] + 1) % 3}.items():
        assert relative_l2(predict(backend, {**base, name: other}), predict(backend, base)) > 0.01


def test_results_are_not_overwritten_by_the_next_call(backend: Backend, feeds: MakeFeeds) -> None:
    first = predict(backend, feeds(3, seed=1))
    kept = first.copy()
    for seed in range(2, 6):
        predict(backend, feeds(3, seed=seed))
    np.testing.assert_array_equal(first, kept)


def test_results_may_be_written_to(backend: Backend, feeds: MakeFeeds) -> None:
    first = predict(backend, feeds(3))
    kept = first.copy()
    first[:] = np.nan
    np.testing.assert_array_equal(predict(backend, feeds(3)), kept)


def test_feeds_are_left_as_they_were(backend: Backend, feeds: MakeFeeds) -> None:
    given, kept = feeds(3), feeds(3)
    predict(backend, given)
    for name, array in kept.items():
        np.testing.assert_array_equal(given[name], array)


@pytest.mark.filterwarnings("error")
def test_feeds_may_be_read_only_strided_or_reversed(backend: Backend, feeds: MakeFeeds) -> None:
    plain = feeds(4)
    expected = predict(backend, plain)
    odd = {name: np.repeat(array, 2, axis=0)[::2] for name, array in plain.items()}
    odd["x"] = np.ascontiguousarray(plain["x"][::-1])[::-1]
    odd["t"] = plain["t"].copy()
    odd["t"].flags.writeable = False
    np.testing.assert_array_equal(predict(backend, odd), expected)


def test_order_of_feeds_does_not_matter(backend: Backend, feeds: MakeFeeds) -> None:
    backwards = dict(reversed(feeds(2).items()))
    np.testing.assert_array_equal(predict(backend, backwards), predict(backend, feeds(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f | {"noise": f["x"]}, "received labels, noise, t, x, expected labels, t, x"),
        (lambda f: {"x": f["x"], "t": f["t"]}, "received t, x, expected labels, t, x"),
        (lambda f: f | {"x": f["x"].astype(np.float64)}, r"'x': received float64\[4, 3, 8, 8\], expected float32"),
        (lambda f: f | {"t": f["t"].astype(np.int64)}, r"'t': received int64\[4\], expected float32\[B\]"),
        (lambda f: f | {"labels": f["labels"].astype(np.int32)}, r"'labels': received int32\[4\], expected int64"),
        (lambda f: f | {"x": f["x"].astype(">f4")}, "'x': received >f4"),
        (lambda f: f | {"x": f["x"][0]}, r"'x': received float32\[3, 8, 8\], expected float32\[B, 3, 8, 8\]"),
        (lambda f: f | {"x": f["x"][..., :4]}, r"'x': received float32\[4, 3, 8, 4\], expected float32\[B, 3, 8, 8\]"),
        (lambda f: f | {"t": f["t"][:1]}, r"'t': received float32\[1\], expected float32\[B\] with B = 4"),
        (lambda f: {name: array[:0] for name, array in f.items()}, "'x': .* with no axis empty"),
        (lambda f: f | {"t": f["t"].tolist()}, r"'t': received list, expected float32\[B\]"),
    ],
    ids=[
        "unknown",
        "missing",
        "x-dtype",
        "t-dtype",
        "labels-dtype",
        "byte-order",
        "rank",
        "static-axis",
        "batch",
        "empty",
        "list",
    ],
)
def test_wrong_feeds_are_refused(backend: Backend, feeds: MakeFeeds, change: Any, message: str) -> None:
    with pytest.raises(BackendError, match=f"{backend.name}: .*{message}"):
        backend.run(change(feeds(4)))
    assert predict(backend, feeds(4)).shape == (4, 3, 8, 8)


def test_use_after_close_is_refused(open_case: Open, feeds: MakeFeeds) -> None:
    with open_case() as backend:
        assert backend.run(feeds(1))
    backend.close()
    with pytest.raises(BackendError, match="is closed; open it again"):
        backend.run(feeds(1))


def test_closing_lets_running_calls_finish(open_case: Open, feeds: MakeFeeds) -> None:
    backend, started = open_case(), threading.Barrier(4)
    expected = predict(backend, feeds(8))

    def work() -> tuple[list[np.ndarray], str]:
        results = [predict(backend, feeds(8))]
        started.wait()
        try:
            while len(results) < 1000:
                results.append(predict(backend, feeds(8)))
        except BackendError as error:
            return results, str(error)
        return results, "never refused"

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work) for _ in range(3)]
        started.wait()
        backend.close()
        for future in futures:
            results, end = future.result(timeout=60)
            assert "is closed" in end
            for result in results:
                np.testing.assert_array_equal(result, expected)


def test_threads_at_once_give_the_results_of_one_after_the_other(backend: Backend, feeds: MakeFeeds) -> None:
    jobs = [feeds(1 + seed % 2, seed=seed) for seed in range(12)]
    serial = [predict(backend, job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        parallel = list(pool.map(lambda job: predict(backend, job), jobs))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batch_slot_and_neighbours_do_not_change_a_sample(backend: Backend, feeds: MakeFeeds) -> None:
    batches = INVARIANT_BATCHES if backend.batch_invariant else (2, 5)
    most = max(batches)
    samples = feeds(most, seed=3)
    alone = np.concatenate([predict(backend, rows(samples, [i])) for i in range(most)])
    for batch in batches:
        for index in (np.arange(batch), np.arange(batch)[::-1], np.arange(most)[-batch:]):
            together = predict(backend, rows(samples, index))
            if backend.batch_invariant:
                np.testing.assert_array_equal(together, alone[index], err_msg=f"batch {batch}")
            assert relative_l2(together, alone[index]) <= BUDGET[backend.precision]


def test_thread_count_does_not_change_a_sample(open_case: Open, backend: Backend, feeds: MakeFeeds) -> None:
    if not backend.batch_invariant:
        pytest.skip(f"{backend.name} on {backend.device} does not declare batch_invariant")
    expected = predict(backend, feeds(5))
    for threads in (1, 2, 3):
        with open_case(threads=threads) as other:
            assert other.threads == threads
            np.testing.assert_array_equal(predict(other, feeds(5)), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_use_in_a_forked_child_is_refused_and_the_child_can_exit(
    case: Any, bundle: Any, run_python: Callable[..., str]
) -> None:
    printed = run_python(FORK, str(bundle.root), *case)
    assert "used in its fork" in printed
    assert "exit status 0" in printed


FORK = """
import os, sys, time
import numpy as np
from ddpm_deploy.backends import open_backend
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import BackendError

_, root, name, precision, device = sys.argv
backend = open_backend(name, read_bundle(root), precision=precision, device=device, threads=2)
feeds = {"x": np.zeros((2, 3, 8, 8), np.float32), "t": np.zeros(2, np.float32), "labels": np.zeros(2, np.int64)}
backend.run(feeds)
child = os.fork()
if child == 0:
    try:
        backend.run(feeds)
    except BackendError as error:
        print(error, flush=True)
    backend.close()
    del backend
    sys.exit(0)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        print("exit status", status)
        break
    time.sleep(0.05)
else:
    os.kill(child, 9)
    sys.exit("the forked child hangs at exit")
backend.run(feeds)
"""
