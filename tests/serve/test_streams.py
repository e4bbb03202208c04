"""Streams: how many are useful, and that they draw the same pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.serve import Engine, open_streams
from ddpm_deploy.serve.streams import LARGE_S, MOST, useful_streams


def network(serial_s: float, shared_s: float, tried: list[int]) -> Callable[[int], float]:
    """A call of which some part gains from threads."""

    def call_s(threads: int) -> float:
        tried.append(threads)
        return serial_s + shared_s / threads

    return call_s


@pytest.mark.parametrize(
    ("serial_s", "shared_s", "threads", "streams"),
    [
        (0.001, 0.0, 2, 2),
        (0.001, 0.0, 1, 1),
        (0.001, 0.0, 6, 4),  # 6, 3, 1 threads each: the calls of all are as fast
        (0.001, 0.0, 64, MOST),
        (0.0, 0.001, 16, 1),
        (0.001, 0.002, 16, 4),  # 1.1, 1.25, 1.5, 2 ms: eight streams would be half as slow again as four
        (10 * LARGE_S, 0.0, 16, 1),
    ],
)
def test_as_many_streams_as_leave_a_sample_alone_nearly_as_fast(
    serial_s: float, shared_s: float, threads: int, streams: int
) -> None:
    tried: list[int] = []
    assert useful_streams(network(serial_s, shared_s, tried), threads) == streams
    assert tried[0] == threads
    assert min(tried) >= 1


def test_a_slow_network_is_not_opened_a_second_time() -> None:
    tried: list[int] = []
    useful_streams(network(2 * LARGE_S, 0.0, tried), 16)
    assert tried == [16]


def test_streams_share_the_threads_and_draw_what_one_sampler_draws() -> None:
    requests = [{"solver": "unipc", "steps": 4 + seed, "seed": seed} for seed in range(6)]
    with open_streams(None, 2, threads=3) as samplers:
        assert [sampler.backend.threads for sampler in samplers] == [2, 1]
        with Engine(samplers) as engine:
            answers = [engine.submit(2, **request) for request in requests]
            drawn = [answer.result(60) for answer in answers]
    with Sampler.load(threads=2) as alone:
        for request, samples in zip(requests, drawn, strict=True):
            np.testing.assert_array_equal(samples, alone.sample(2, **request))


def test_the_number_may_be_left_to_a_measurement() -> None:
    with open_streams(threads=2) as samplers:
        assert len(samplers) * samplers[0].backend.threads == 2
        for sampler in samplers:
            sampler.evaluate_zeros(1)


@pytest.mark.parametrize(
    ("streams", "opening", "words"),
    [
        (0, {}, "at least 1"),
        (1.5, {}, "whole number"),
        (3, {"threads": 2}, "at most 2"),
        (2, {"backend": "torch"}, "torch on cpu"),
        (2, {"backend": "openvino"}, "openvino on cpu"),
        (None, {"threads": 0}, "threads: got 0"),
        (2, {"device": "cuda"}, "onnxruntime on cuda"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(streams: float | None, opening: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words), open_streams(None, streams, **opening):
        pass
