"""Run by test_ray_serve.py: the application on a cluster of this process, asked over HTTP and by a handle.

Prints one JSON object of what was answered, and stops the cluster.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from ddpm_deploy.serve.ray_app import Settings, build

PATIENCE_S = 150


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(base: str, path: str, **fields: Any) -> tuple[int, bytes]:
    data = json.dumps(fields).encode() if fields else None
    request = urllib.request.Request(base + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def draw(base: str, **fields: Any) -> tuple[int, Any]:
    status, body = ask(base, "/v1/images/generations", **fields)
    return status, json.loads(body)


def running() -> int:
    """How many replicas there are."""
    deployment = serve.status().applications["default"].deployments["Pictures"]
    return int(deployment.replica_states.get("RUNNING", 0))


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("waited in vain")
        time.sleep(0.1)


def most_replicas(base: str) -> int:
    """Long requests for more than one replica, and how many replicas they led to."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(draw, base, n=16, steps=1000, solver="ddpm", seed=i, label="1") for i in range(8)]
        until(lambda: running() == 2 or all(answer.done() for answer in answers))
        found = running()
        statuses = {answer.result()[0] for answer in answers}
    return found if statuses == {200} else -1


def main() -> None:
    ray.init(address="local", num_cpus=3, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    scaling = AutoscalingConfig(
        min_replicas=1, max_replicas=2, target_ongoing_requests=2, upscale_delay_s=0, downscale_delay_s=600
    )
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        handle = serve.run(build(Settings(threads=1, max_n=16, deadline_s=PATIENCE_S, autoscaling=scaling)))
        until(lambda: ask(base, "/readyz")[0] == 200)
        status, answer = draw(base, n=2, steps=4, solver="unipc", seed=7, label="3")
        report = {
            "status": status,
            "pictures": [each["b64_json"] for each in answer["data"]],
            "wrong": draw(base, steps=0)[0],
            "too_many": draw(base, n=17)[0],
            "models": json.loads(ask(base, "/v1/models")[1])["data"][0]["id"],
            "samples": base64.b64encode(
                handle.draw.remote(n=2, steps=4, solver="unipc", seed=7, condition={"labels": 3}).result().tobytes()
            ).decode(),
            "events": ask(base, "/v1/images/generations", n=1, steps=4, label="3", stream=True)[1].decode(),
            "replicas_before": running(),
            "replicas_under_load": most_replicas(base),
        }
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(report))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
