"""Ray draws the same shards: run for real, on a cluster of this machine alone that ends with the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="a cluster on this machine")
pytest.importorskip("psutil", reason="finds the sampler to be killed")

from ddpm_deploy.bulk import SetFolder, verify_set
from ddpm_deploy.sample import main

ROOT = Path(__file__).parents[2]
WORDS = ["--num", "70", "--shard-size", "16", "--steps", "3", "--solver", "ddpm", "--label", "3,none", "--json"]

SCRIPT = """
import contextlib
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ddpm_deploy.sample import main

killed = []


def kill_the_sampler_of(folder):
    while not list(Path(folder).glob("*.tar.json")):
        time.sleep(0.01)
    while not killed:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "_Drawer" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)


ray.init(address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
one, several, mourned, words = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
threading.Thread(target=kill_the_sampler_of, args=[mourned], daemon=True).start()
codes = [
    main(["--shards", one, "--ray", "--threads", "3", *words]),
    main(["--shards", one, "--ray", *words]),
    main(["--shards", one, "--ray", *words]),
    main(["--shards", one, "--ray", "--seed", "1", *words]),
    main(["--shards", several, "--ray", "--ray-workers", "2", "--shard", "2/2", *words]),
    main(["--shards", several, "--ray", "--shard", "1/2", *words]),
    main(["--shards", several, "--ray", "--shard", "9/9", *words]),
    main(["--shards", mourned, "--ray", "--ray-workers", "1", *words, "--num", "200", "--steps", "300"]),
]
ray.shutdown()
sys.exit(0 if codes == [2, 0, 0, 2, 0, 0, 0, 0] and killed else f"exit codes {codes}, killed {killed}")
"""


def environment() -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return (
        {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | quiet | {"PYTHONPATH": str(ROOT)}
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_sets_drawn_on_ray_are_those_drawn_here_also_where_a_sampler_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    here, one, several, mourned, whole = (tmp_path / name for name in ("here", "one", "several", "mourned", "whole"))
    assert main(["--shards", str(here), *WORDS]) == 0
    assert main(["--shards", str(whole), *WORDS, "--num", "200", "--steps", "300"]) == 0
    capsys.readouterr()
    command = [sys.executable, "-c", SCRIPT, str(one), str(several), str(mourned), *WORDS]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(report["shards"], report["drawn"]) for report in reports[:-1]] == [
        (5, 70),
        (5, 0),
        (2, 32),
        (3, 38),
        (0, 0),
    ]
    assert "--ray: a sampler takes 3 CPU, but the cluster has 2 CPU; change --threads" in done.stderr
    assert "one: holds another set of samples: seed: 0 there, 1 asked for" in done.stderr
    for folder, same in ((one, here), (several, here), (mourned, whole)):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in same.iterdir()
        }
        assert verify_set(SetFolder(folder)).faults == ()


def test_workers_of_ray_mean_nothing_without_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--shards", str(tmp_path / "set"), "--ray-workers", "2"]) == 2
    assert "--ray-workers: means nothing without --ray" in capsys.readouterr().err
