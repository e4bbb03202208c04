"""Several processes: the same run as one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_toys import stored

from ddpm_deploy.train import load_run
from ddpm_deploy.train.__main__ import main

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)
ARGUMENTS = ["--preset", "tiny", "--cpu", "--quiet", "--steps", "6", "--log-every", "2", "--checkpoint-every", "4"]


def launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Start two processes; `accelerate launch` itself starts several on GPUs only, and uses torchrun for that."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--module"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, "ddpm_deploy.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    result = launch(["--out", str(tmp_path / "two"), *ARGUMENTS, "--json"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"complete": true') == 1
    assert main(["--out", str(tmp_path / "one"), *ARGUMENTS]) == 0
    two, one = (stored(tmp_path / name, 6)["tensors"] for name in ("two", "one"))
    assert set(two) == set(one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("two", "one")]
    losses = [[float(row.split(",")[1]) for row in table[1:]] for table in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert load_run(tmp_path / "two").step == 6


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    result = launch(["--out", str(tmp_path / "two"), *ARGUMENTS, "--batch-size", "15"])
    assert result.returncode != 0
    assert "batch_size: got 15, expected a multiple of the 2 processes" in result.stderr
