"""Every kind of source is recognised, modules of the user's own included, and every setting is used or refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddpm_deploy.bundle import Condition, Defaults, OutputAffine
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import Settings, Source, open_source
from ddpm_deploy.schedule import NoiseSchedule

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]

SAID: dict[str, Any] = {
    "sample_shape": [2],
    "schedule": {"kind": "linear", "T": 30},
    "prediction": "v",
    "output": {"scale": [1.0, 2.0], "offset": 0.0, "units": "metres"},
}

FACTORIES = """
import torch
from torch import nn
from ddpm_deploy.bundle import Defaults
from ddpm_deploy.export.sources import Source, open_source, Settings

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.dropout = nn.Dropout(0.5)
    def forward(self, x, t, goal=None):
        return self.last(self.dropout(self.first(torch.cat([x, t[:, None]], 1))))

def plain(width=4):
    return Net(width).train()

def described():
    return Net(), {"sample_shape": (2,), "schedule": {"kind": "cosine", "T": 20}, "prediction": "eps", "clip": (-1, 1),
                   "output": {"scale": 1.0, "offset": 0.0, "units": "m"}, "name": "points", "provenance": {"data": "x"},
                   "conditions": [{"name": "goal", "shape": [5], "dtype": "float32"}],
                   "defaults": Defaults("ddim", 5, "leading")}

def whole():
    return open_source(__file__ + ":described")

def wrong(): return 3
def fails(): raise RuntimeError("no luck")
def typo(): return Net(), {"sample_shap": (2,)}
def damaged():
    net = Net()
    with torch.no_grad(): net.first.bias[0] = float("nan")
    return net
constant = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_nets.py"
    path.write_text(FACTORIES)
    return path


# -- modules ----------------------------------------------------------------------------------------------------------


def test_a_factory_in_a_file_gives_a_module_in_eval_mode(file: Path) -> None:
    source = open_source(f"{file}:plain", Settings(**SAID, factory_options={"width": 6}))
    assert source.network is not None
    assert not source.network.training
    assert source.network.first.out_features == 6
    assert (source.sample_shape, source.prediction, source.variance, source.clip) == ((2,), "v", "small", None)
    assert (source.schedule, source.name) == (NoiseSchedule.linear(30), "plain")
    assert source.output == OutputAffine((1.0, 2.0), (0.0,), "metres")
    assert source.provenance == {"source": "module", "factory": "my_nets.py:plain"}
    assert source.defaults == Defaults("unipc", 12, "trailing")


def test_a_factory_may_describe_its_module_and_settings_overrule_it(file: Path) -> None:
    source = open_source(f"{file}:described", Settings(prediction="x0", clip="none"))
    assert (source.prediction, source.clip, source.schedule.T) == ("x0", None, 20)
    assert source.conditions == (Condition("goal", (5,), "float32"),)
    assert (source.defaults.solver, source.name, source.provenance["data"]) == ("ddim", "points", "x")


def test_a_factory_may_return_a_source(file: Path) -> None:
    assert open_source(f"{file}:whole").name == "points"
    with pytest.raises(ExportError, match="prediction: of no use to a factory that returns a Source"):
        open_source(f"{file}:whole", Settings(prediction="x0"))


def test_a_package_module_is_imported_from_the_working_directory(file: Path) -> None:
    code = (
        "from ddpm_deploy.export.sources import *\n"
        f"print(open_source('my_nets:plain', Settings(**{SAID!r})).sample_shape)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=file.parent, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "(2,)\n", done.stderr


def test_weights_are_loaded_into_the_module(file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = open_source(f"{file}:plain", Settings(**SAID))
    assert source.network is not None
    state = {name: tensor + 1 for name, tensor in source.network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = open_source(f"{file}:plain", Settings(**SAID, weights=tmp_path / "w.safetensors"))
    assert loaded.network is not None
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.network.state_dict().items())
    assert loaded.provenance["weights"] == "w.safetensors"
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match="extra"):
        open_source(f"{file}:plain", Settings(**SAID, weights=tmp_path / "w.safetensors"))


def test_everything_that_nobody_says_is_asked_for_at_once(file: Path) -> None:
    with pytest.raises(ExportError, match="nothing says sample_shape, schedule, prediction, output; give them"):
        open_source(f"{file}:plain")
    with pytest.raises(ExportError, match="nothing says schedule, output"):
        open_source(f"{file}:plain", Settings(sample_shape=(2,), prediction="eps"))


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("wrong", {}, "got a int, expected an nn.Module"),
        ("typo", {}, "holds 'sample_shap'"),
        ("constant", {}, "has no function constant"),
        ("absent", {}, "has no function absent"),
        ("damaged", {}, r"network: first\.bias: holds NaN"),
        ("plain", {"factory_options": {"depth": 2}}, "cannot be called with {'depth': 2}"),
        ("fails", {}, "cannot be called with {}: RuntimeError: no luck"),
        ("plain", {"step": 1}, "step: of no use to a module"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(file: Path, name: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        open_source(f"{file}:{name}", Settings(**SAID, **said))


def test_a_text_that_names_no_factory_is_refused() -> None:
    from ddpm_deploy.export.sources.module import call_factory

    for where in ("factory", "two words:make", "module:", ""):
        with pytest.raises(ExportError, match=r"expected package\.module:factory"):
            call_factory(where, {})


def test_a_file_that_is_no_python_is_named(file: Path) -> None:
    file.write_text("def (")
    with pytest.raises(ExportError, match=r"my_nets\.py: cannot be imported: SyntaxError"):
        open_source(f"{file}:plain", Settings(**SAID))


@pytest.mark.parametrize("where", ["no_such_module_here:make", "nowhere/net.py:make", "net.py:make"])
def test_a_module_that_cannot_be_found_is_named(where: str) -> None:
    with pytest.raises(ExportError, match=where.split(":")[0]):
        open_source(where, Settings(**SAID))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints, written as the trainer writes it."""
    from ddpm_deploy.model import PointConfig, PointNet
    from ddpm_deploy.train.checkpoint import save_checkpoint
    from ddpm_deploy.train.config import TrainConfig
    from ddpm_deploy.train.runs import CHECKPOINTS, Description, write_description

    folder = tmp_path_factory.mktemp("run")
    network = PointNet(PointConfig(2, hidden=8, layers=1))
    description = Description(
        name="points",
        spec=network.spec(),
        schedule=NoiseSchedule.linear(30),
        prediction="eps",
        variance="large",
        clip=None,
        sample_shape=(2,),
        output=OutputAffine((1.0,), (0.0,), "plane"),
        conditions=(),
        defaults=Defaults("ddim", 5, "leading"),
        data="points",
        training=TrainConfig(),
    )
    write_description(folder, description)
    for step in (10, 20):
        state = {name: torch.full_like(tensor, float(step)) for name, tensor in network.state_dict().items()}
        save_checkpoint(folder / CHECKPOINTS, step, {"ema": state}, {})
    return folder


def test_a_run_is_read_at_its_newest_step_or_the_given_one(run: Path) -> None:
    source = open_source(str(run))
    assert source.spec is not None
    assert (source.name, source.variance, source.provenance["steps"]) == ("points", "large", 20)
    earlier = open_source(str(run), Settings(step=10, variance="small"))
    assert earlier.network is not None
    assert float(next(earlier.network.parameters()).detach().flatten()[0]) == 10.0
    assert earlier.variance == "small"


def test_a_run_refuses_what_it_knows_better(run: Path) -> None:
    for said in ({"schedule": {"kind": "cosine"}}, {"prediction": "v"}, {"weights": "w.safetensors"}):
        with pytest.raises(ExportError, match=f"{next(iter(said))}: of no use to a run"):
            open_source(str(run), Settings(**said))
    with pytest.raises(ExportError, match="holds no step 15, only 10, 20"):
        open_source(str(run), Settings(step=15))
    (damaged := run / "run.json").write_text("{")
    with pytest.raises(ExportError, match=str(damaged)):
        open_source(str(run))


# -- which kind it is, and what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["nowhere", "a folder", "model.gguf", "x:", ":make", "two words:make"])
def test_an_unknown_source_names_what_was_looked_for(tmp_path: Path, where: str) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"run\.json.*diffusers folder.*\.onnx.*lucidrains.*factory"):
        open_source(str(tmp_path / where) if where in ("a folder", "model.gguf") else where)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sample_shape": []}, "sample_shape"),
        ({"sample_shape": [3, 0]}, "sample_shape"),
        ({"sample_shape": [3, 2.5]}, "sample_shape"),
        ({"sample_shape": "3,8,8"}, "sample_shape"),
        ({"sample_shape": 2.5}, "sample_shape"),
        ({"schedule": "linear"}, "schedule: kind: got 'linear'"),
        ({"schedule": {"kind": "wavy"}}, "schedule: kind: got 'wavy', expected one of linear"),
        ({"schedule": {"kind": "cosine", "beta_start": 1}}, "schedule: beta_start: unknown to kind 'cosine'"),
        ({"schedule": {"kind": "linear", "T": 0}}, "schedule: T: got 0"),
        ({"schedule": {"kind": "linear", "beta_end": "a"}}, "schedule:"),
        ({"schedule": {"kind": "betas"}}, "schedule:"),
        ({"prediction": "epsilon"}, "prediction: got 'epsilon', expected one of eps"),
        ({"prediction": ["eps"]}, "prediction"),
        ({"variance": "big"}, "variance"),
        ({"clip": [1, -1]}, "clip"),
        ({"clip": "some"}, "clip"),
        ({"clip": [0, True]}, "clip"),
        ({"clip": [float("nan"), 1]}, "clip"),
        ({"output": {"scale": 1}}, "output"),
        ({"output": {"scale": 0, "offset": 0, "units": ""}}, "output: scale: got 0"),
        ({"output": {"scale": "1", "offset": 0, "units": ""}}, "output: scale"),
        ({"conditions": [{"name": "y"}]}, "conditions"),
        ({"conditions": [{"name": "y", "dtype": "int64", "size": 3}]}, "conditions"),
        ({"conditions": "labels"}, "conditions"),
        ({"allow_scalar_timestep": "yes"}, "allow_scalar_timestep"),
        ({"step": -1}, "step"),
        ({"step": 1.5}, "step"),
        ({"x_name": 3}, "x_name"),
        ({"factory_options": "a=1"}, "factory_options"),
        ({"colour": "red"}, "colour: no setting of a source"),
    ],
)
def test_settings_are_checked_when_they_are_made(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_mapping(said)


def test_every_kind_of_schedule_can_be_said() -> None:
    betas = [0.1, 0.2, 0.3]
    for said, expected in (
        ({"kind": "linear", "T": 9, "beta_end": 0.5}, NoiseSchedule.linear(9, beta_end=0.5)),
        ({"kind": "scaled_linear"}, NoiseSchedule.scaled_linear()),
        ({"kind": "cosine", "offset": 0.01}, NoiseSchedule.cosine(offset=0.01)),
        ({"kind": "sigmoid", "T": 50}, NoiseSchedule.sigmoid(50)),
        ({"kind": "flow_matching", "shift": 3.0}, NoiseSchedule.flow_matching(shift=3.0)),
        ({"kind": "betas", "betas": betas}, NoiseSchedule.from_betas(betas)),
        (NoiseSchedule.linear(4), NoiseSchedule.linear(4)),
    ):
        assert Settings(schedule=said).schedule == expected


def test_a_source_has_a_network_or_a_graph(file: Path) -> None:
    source = open_source(f"{file}:described")
    with pytest.raises(ValueError, match="one of network and graph"):
        replace(source, network=None)
    with pytest.raises(ValueError, match=r"defaults\.steps"):
        replace(source, defaults=Defaults("ddim", 21, "leading"))
    assert isinstance(source, Source)


def test_settings_import_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; from ddpm_deploy.export.sources import Settings, Source, open_source; Settings(prediction='eps');"
        "print([name for name in ('torch', 'onnx', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
