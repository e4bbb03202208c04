"""Exports killed while they write: the bundle that is there is the old one or the new one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked exports: there is no fork here")
def test_30_exports_killed_while_they_write_leave_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "export_killer.py"), str(tmp_path), "30"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert len(re.findall(r"^kill \d+,", done.stdout, re.MULTILINE)) == 30
    in_mid_export = [int(count) for count in re.findall(r"(\d+)  .*killed in mid-export", done.stdout)]
    assert sum(in_mid_export) >= 20, done.stdout
    assert sorted(os.listdir(tmp_path)) == ["b", "m.onnx"]
