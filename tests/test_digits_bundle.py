"""The digits model inside the package: small, readable, no copy of its training data, and the same on every runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import Sampler, available_backends
from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.evaluate.digits import DigitJudge
from ddpm_deploy.parity.__main__ import main as parity

MAX_PARAMETERS = 1_000_000
MAX_BYTES = 9 * 2**20


@pytest.fixture(scope="module")
def sampler():
    with Sampler.load(threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return DigitJudge()


def test_it_has_at_most_a_million_parameters() -> None:
    from ddpm_deploy.model import build_network

    bundle = read_bundle(default_bundle())
    network = build_network(bundle.manifest.network)
    assert sum(parameter.numel() for parameter in network.parameters()) <= MAX_PARAMETERS
    assert sum(file.size_bytes for file in bundle.manifest.all_files) <= MAX_BYTES
    assert bundle.manifest.model.licence == "Apache-2.0"


def test_the_judge_knows_real_digits(judge: DigitJudge) -> None:
    assert judge.accuracy >= 0.97


@pytest.mark.parametrize(("solver", "num"), [("unipc", 500), ("ddpm", 100)])
def test_its_pictures_are_taken_for_real_digits_and_are_no_copies(
    sampler: Sampler, judge: DigitJudge, solver: str, num: int
) -> None:
    labels = {"labels": np.arange(num) % 10}
    verdict = judge.judge(sampler.sample(num, solver=solver, seed=0, condition=labels, batch_size=100))
    assert verdict.top_probability >= judge.real.top_probability - 0.05
    assert min(verdict.shares) >= 0.03
    assert verdict.nearest_least > 0.5
    assert verdict.nearest_median > 0.8 * judge.real.nearest_median


def test_its_pictures_are_of_the_digit_that_is_asked_for(sampler: Sampler, judge: DigitJudge) -> None:
    labels = np.arange(500) % 10
    pictures = sampler.sample(500, seed=0, condition={"labels": labels}, guidance=2.0, batch_size=100)
    assert np.mean(judge.classify(pictures) == labels) >= 0.97


def test_the_judge_is_not_fooled_by_noise_or_copies(judge: DigitJudge) -> None:
    from ddpm_deploy.train import digits_arrays

    noise = np.clip(np.random.default_rng(0).normal(size=(200, 1, 8, 8)), -1, 1)
    assert judge.judge(noise).top_probability < judge.real.top_probability - 0.3
    assert judge.judge(digits_arrays()[0][:100]).nearest_median == 0


def test_runtimes_draw_what_torch_draws_over_the_whole_chain(capsys: pytest.CaptureFixture) -> None:
    present = [name for name, backend in available_backends().items() if backend.available and name != "torch"]
    assert parity(["--solver", "ddpm", "--num", "2", "--backends", ",".join(present), "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("within budget") == len(present)


def test_the_recorded_reference_is_met_without_torch() -> None:
    code = (
        "import sys\nfrom ddpm_deploy.parity.__main__ import main\n"
        "code = main(['--against', 'reference', '--backends', 'onnxruntime'])\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "within budget" in done.stdout


def test_the_command_without_arguments_draws_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddpm_deploy.sample", "--out", tmp_path / "digits.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "16 samples, unipc with 12 evaluations" in done.stdout
    assert (tmp_path / "digits.png").stat().st_size > 1000
