"""What export records, `parity --against reference` replays."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_deploy.bundle import Bundle, Defaults, OutputAffine, read_bundle, write_bundle
from ddpm_deploy.export import export_module
from ddpm_deploy.parity.__main__ import main
from ddpm_deploy.reference import Reference, read_reference, write_reference
from ddpm_deploy.schedule import NoiseSchedule

AGAINST = ("--backends", "onnxruntime", "--against", "reference")


class LearnedVariance(nn.Module):
    """Twice as many channels out as in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([x, t[:, None] / 20], dim=1)).tanh()
        return out


def export(out: Path, solver: str = "ddim", options: dict[str, Any] | None = None) -> Bundle:
    torch.manual_seed(0)
    return export_module(
        LearnedVariance(),
        out,
        sample_shape=(2,),
        schedule=NoiseSchedule.linear(20, 1e-3, 0.2),
        output=OutputAffine((1.0,), (0.0,), "m"),
        variance="learned",
        defaults=Defaults(solver, 5, "trailing", options or {}),
    )


def record(bundle: Bundle) -> Reference:
    assert bundle.manifest.reference is not None
    return read_reference(bundle.open_bytes(bundle.manifest.reference))


def put_back(bundle: Bundle, reference: Reference) -> None:
    files = {file.path: bundle.open_bytes(file) for file in bundle.manifest.all_files}
    write_bundle(bundle.root, bundle.manifest, files | {"reference.npz": write_reference(reference)})


@pytest.mark.parametrize(
    ("solver", "options"),
    [("ddim", {}), ("unipc", {}), ("ddpm", {"variance": "learned"})],
    ids=lambda value: str(value),
)
def test_a_learned_variance_is_replayed_under_solvers_that_use_it_and_that_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], solver: str, options: dict[str, Any]
) -> None:
    export(tmp_path / "b", solver, options)
    assert main([str(tmp_path / "b"), *AGAINST, "--json"]) == 0, capsys.readouterr().err
    (candidate,) = json.loads(capsys.readouterr().out)["candidates"]
    assert len(candidate["prediction_relative_l2"]) >= 5
    assert max(candidate["prediction_relative_l2"]) <= 1e-5
    assert len(candidate["points_relative_l2"]) == len(candidate["points_t"]) == 8
    assert max(candidate["points_relative_l2"]) <= 1e-5


def test_a_recorded_point_that_the_runtime_misses_is_over_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tmp_path / "b")
    reference = record(bundle)
    prediction = reference.prediction.copy()
    prediction[3] *= np.float32(1.5)
    put_back(bundle, replace(reference, prediction=prediction))
    assert main([str(tmp_path / "b"), *AGAINST]) == 1
    out = capsys.readouterr().out
    told = re.search(rf"OVER BUDGET: relative error of one step (\S+) at t = {reference.t[3]:g} is over 1e-05", out)
    assert told is not None
    assert 0.01 < float(told[1]) <= 0.34  # a third of the prediction, or what that is of the clean image


def test_a_reference_of_another_model_is_refused_by_its_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tmp_path / "b")
    reference = record(bundle)
    run = reference.trajectory
    narrow = replace(
        reference,
        prediction=reference.prediction[:, :2],
        trajectory=replace(run, predictions=run.predictions[:, :, :2]),
    )
    put_back(bundle, narrow)
    assert main([str(tmp_path / "b"), *AGAINST]) == 2
    assert "reference.npz: prediction: got (2,), expected (4,) as in bundle.json" in capsys.readouterr().err
    put_back(read_bundle(tmp_path / "b"), replace(reference, conditions={"labels": np.zeros(8, np.int64)}))
    assert main([str(tmp_path / "b"), *AGAINST]) == 2
    assert "reference.npz: condition: got ('labels',), expected ()" in capsys.readouterr().err
