"""Cold starts: fresh interpreters that import nothing they need not, whose memory is their own, and clear failures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy.bench.first_picture import build_parser
from ddpm_deploy.bench.process import (
    FIRST_PICTURE,
    artefact_bytes,
    child_environment,
    cold_start,
    device_memory_bytes,
    own_command,
)
from ddpm_deploy.bundle import default_bundle, read_bundle

SAYS = 'print(\'{"import_s": 0.25, "load_s": 0.5, "first_picture_s": 1.0, "peak_rss_bytes": 7, "more": 1}\')'
HEAVY = ("torch", "onnx", "openvino", "diffusers", "sklearn", "matplotlib", "pytest", "tqdm")


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


def test_cold_start_of_the_packaged_model() -> None:
    started = cold_start(own_command(default_bundle(), steps=2, threads=1), runs=2)
    assert 0.02 < started.import_s < 60
    assert 0.005 < started.load_s < 60
    assert 0.0005 < started.first_picture_s < 60
    assert started.rest_s > 0
    assert started.total_s >= started.import_s + started.load_s + started.first_picture_s
    assert started.peak_rss_bytes is not None
    assert 2**25 < started.peak_rss_bytes < 2**29
    assert started.vram_bytes is None
    assert len(started.runs) == 2


def test_child_imports_neither_torch_nor_onnx() -> None:
    code = FIRST_PICTURE + "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, str(default_bundle()), "--steps=2", "--threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment())
    figures, modules = map(json.loads, done.stdout.splitlines())
    assert figures["import_s"] > 0
    loaded = {name.partition(".")[0] for name in modules}
    assert "onnxruntime" in loaded
    assert not loaded.intersection(HEAVY)
    ours = {
        name for name in modules if name.startswith(("ddpm_deploy.export", "ddpm_deploy.train", "ddpm_deploy.bench"))
    }
    assert ours == {"ddpm_deploy.bench", "ddpm_deploy.bench.first_picture"}


def test_memory_of_the_parent_is_not_the_childs() -> None:
    ballast = np.ones(2**29, np.uint8)  # half a GiB, written to
    figures = "dict(import_s=0, load_s=0, first_picture_s=0, peak_rss_bytes=peak_rss_bytes())"
    started = cold_start(
        program(
            "from ddpm_deploy.bench.first_picture import peak_rss_bytes",
            f"import json; print(json.dumps({figures}))",
        ),
        runs=1,
    )
    assert started.peak_rss_bytes is not None
    assert 2**23 < started.peak_rss_bytes < ballast.nbytes / 2


def test_memory_of_the_child_is_counted() -> None:
    figures = "dict(import_s=0, load_s=0, first_picture_s=0, peak_rss_bytes=peak_rss_bytes())"
    lines = [
        "from ddpm_deploy.bench.first_picture import peak_rss_bytes",
        "import json; held = bytearray(b'1' * 2**28); del held",
        f"print(json.dumps({figures}))",
    ]
    started = cold_start(program(*lines), runs=1)
    assert started.peak_rss_bytes is not None
    assert started.peak_rss_bytes > 2**28


def test_figures_are_those_that_the_child_prints_among_its_messages() -> None:
    started = cold_start(program("print('a message'); print('[1, 2]'); print('{}')", SAYS), runs=3)
    assert (started.import_s, started.load_s, started.first_picture_s) == (0.25, 0.5, 1.0)
    assert started.peak_rss_bytes == 7
    assert started.rest_s == pytest.approx(started.total_s - 1.75)
    assert [run["load_s"] for run in started.runs] == [0.5] * 3


def test_first_run_fills_the_file_cache_and_does_not_count(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    assert len(cold_start(program(count, SAYS), runs=2).runs) == 2
    assert (tmp_path / "runs").read_text() == "xxx"


def test_figure_that_a_system_does_not_tell_stays_unknown() -> None:
    assert cold_start(program(SAYS.replace("7", "null")), runs=1).peak_rss_bytes is None


def test_time_ends_with_the_picture_and_not_with_the_process() -> None:
    began = time.perf_counter()
    started = cold_start(program(SAYS, "import sys, time; sys.stdin.read(); time.sleep(1.5)"), runs=1)
    assert time.perf_counter() - began > 3
    assert started.total_s < 1.5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["raise SystemExit('no such model')"], r"cold start: .*got exit status 1 .*it said: no such model"),
        ([SAYS, "raise SystemExit('no such model')"], r"got exit status 1 .*it said: no such model"),
        (
            ["print('{\"load_s\": 1}')"],
            r"exit status 0 .*expected 0 and a line of JSON with import_s.*it said: nothing",
        ),
    ],
)
def test_command_that_fails_gives_a_clear_error(lines: list[str], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        cold_start(program(*lines), runs=1)


def test_bundle_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit status 1 .*BundleError: .*nowhere"):
        cold_start(own_command(tmp_path / "nowhere"), runs=1)


def test_command_that_hangs_is_ended() -> None:
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="got exit status -9 after"):
        cold_start(program("import time; time.sleep(60)"), runs=1, timeout_s=0.5)
    assert time.perf_counter() - began < 30


def test_command_that_is_missing_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        cold_start(["no-such-program-here"], runs=1)


def test_runs_are_checked() -> None:
    with pytest.raises(ValueError, match="runs: got 0, expected at least 1"):
        cold_start(own_command(default_bundle()), runs=0)


def test_artefacts_weigh_what_their_files_do() -> None:
    manifest = read_bundle(default_bundle()).manifest
    sizes = artefact_bytes(manifest)
    assert sizes == {file.path: (Path(default_bundle()) / file.path).stat().st_size for file in manifest.files}
    assert len(sizes) == len(manifest.files) > 0


def test_memory_of_a_cpu_is_no_vram() -> None:
    assert device_memory_bytes("cpu") is None


def test_child_has_defaults_for_all_but_the_bundle() -> None:
    args = build_parser().parse_args(["b"])
    assert (args.backend, args.precision, args.device, args.steps) == ("onnxruntime", "fp32", "cpu", None)
