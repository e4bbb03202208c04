"""The application runs for real on Ray Serve, on this machine alone, and draws what the sampler draws."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="a cluster on this machine")
pytest.importorskip("fastapi", reason="the HTTP service needs it")

from test_ray_data import environment

from ddpm_deploy import Sampler
from ddpm_deploy.images import to_pil


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_application_draws_streams_refuses_and_grows(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("ray_service.py"))]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with Sampler.load() as sampler:
        expected = sampler.sample(2, steps=4, solver="unipc", seed=7, condition={"labels": 3})
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found["samples"]), np.float32), expected.ravel())
    pictures = [Image.open(io.BytesIO(base64.b64decode(each))) for each in found["pictures"]]
    for picture, sample in zip(pictures, to_pil(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(sample))
    assert (found["status"], found["wrong"], found["too_many"], found["models"]) == (200, 400, 400, "digits")
    assert "event: " in found["events"]
    assert (found["replicas_before"], found["replicas_under_load"]) == (1, 2)


def test_settings_that_make_no_sense_are_refused_before_anything_is_deployed() -> None:
    from pydantic import ValidationError

    from ddpm_deploy.serve.ray_app import Settings, build

    with pytest.raises(ValidationError, match="bundel"):
        Settings(bundel="x")
    with pytest.raises(ValueError, match="max_n: got 0"):
        build(Settings(max_n=0))
    with pytest.raises(ValueError, match="max_work: got 0"):
        build(Settings(max_work=0))


def test_what_waits_for_a_replica_has_a_bound() -> None:
    from ddpm_deploy.serve.ray_app import Settings, build

    deployment = build(Settings(capacity=7))._bound_deployment
    assert (deployment.max_ongoing_requests, deployment._deployment_config.max_queued_requests) == (7, 7)


def test_a_replica_has_the_cpus_and_the_gpu_that_it_computes_with() -> None:
    from ddpm_deploy.serve.ray_app import Settings, build

    def needs(**settings: object) -> dict:
        return build(Settings(**settings))._bound_deployment.ray_actor_options

    assert needs(threads="4") == {"num_cpus": 4.0, "num_gpus": 0.0}
    assert needs(device="cuda:0") == {"num_cpus": 1.0, "num_gpus": 1.0}
