"""The training loop."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn
from train_toys import SCHEDULE, Jittered, OwnModule, StopAt, assert_same, point_net, quick, ring, stored, train_points

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.train import Data, digits_arrays, load_run, train
from ddpm_deploy.train.api import AS_GIVEN
from ddpm_deploy.train.checkpoint import list_checkpoints
from ddpm_deploy.train.loss import Objective


def evaluate(network: nn.Module, prediction: str) -> float:
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(SCHEDULE.T, (960,), generator=generator)
    eps = torch.randn(960, 2, generator=generator)
    objective = Objective(SCHEDULE, prediction, None, torch.device("cpu"))
    with torch.no_grad():
        return float(objective(network, ring(1).repeat(960, 1), t, eps, {}))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_training_lowers_the_loss_to_less_than_half(tmp_path: Path, prediction: str) -> None:
    """On a single point, where the best possible loss is 0."""
    before = evaluate(point_net(hidden=32), prediction)
    settings = {"steps": 200, "batch_size": 64, "ema_decay": 0.9, "checkpoint_every": 200, "log_every": 50}
    run = train_points(tmp_path / "run", point_net(hidden=32), ring(1).repeat(64, 1), prediction=prediction, **settings)
    assert evaluate(run.network, prediction) < 0.5 * before


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine"}])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    """With dropout, a random transform in the data set, warm-up, and an interruption within an epoch."""
    settings = {"warmup_steps": 6, **settings}
    train_points(tmp_path / "whole", OwnModule(), Jittered(), **settings)
    train_points(tmp_path / "cut", OwnModule(), Jittered(), stop=StopAt(7), **settings)
    assert list_checkpoints(tmp_path / "cut" / "checkpoints") == [5, 7]
    other_weights = OwnModule()
    nn.init.zeros_(other_weights.inner[0].weight)
    torch.manual_seed(99)
    train_points(tmp_path / "cut", other_weights, Jittered(), resume=True, **settings)
    assert_same(stored(tmp_path / "cut", 12), stored(tmp_path / "whole", 12))


def test_workers_do_not_change_what_is_learned(tmp_path: Path) -> None:
    train_points(tmp_path / "alone", OwnModule(), Jittered())
    train_points(tmp_path / "workers", OwnModule(), Jittered(), workers=2)
    assert_same(stored(tmp_path / "workers", 12), stored(tmp_path / "alone", 12))


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train_points(tmp_path / str(seed), seed=seed)
    one, other = (stored(tmp_path / str(seed), 12)["tensors"]["model/inward.weight"] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_metrics_of_a_resumed_run_have_every_row_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_points(out, log_every=1, steps=12, stop=StopAt(9))
    csv_file = out / "metrics.csv"
    csv_file.write_text(csv_file.read_text() + "10,1,1,1,1\r\n11,1,1,1,1\r\n12,1,")  # as if it was killed later
    train_points(out, log_every=1, steps=12, resume=True)
    with open(csv_file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert all(float(row["images_per_s"]) > 0 and 0 < float(row["loss"]) < 10 for row in rows)
    assert float(rows[9]["loss"]) != 1


class Breaks(nn.Module):
    """Gives NaN from some training step on."""

    def __init__(self, good_steps: int) -> None:
        super().__init__()
        self.inner, self.left = nn.Linear(2, 2), good_steps

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.left -= 1
        out: Tensor = self.inner(x) * (float("nan") if self.left < 0 else 1.0)
        return out


@pytest.mark.parametrize("good_steps", [10, 12])
def test_nan_stops_training_and_the_last_good_checkpoint_stays(tmp_path: Path, good_steps: int) -> None:
    """12 steps break within a window, 10 exactly after a checkpoint."""
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"loss: got nan in steps .*the checkpoint of step 10 stays"):
        train_points(out, Breaks(good_steps), steps=50)
    assert list_checkpoints(out / "checkpoints") == [5, 10]
    run = load_run(out, network=Breaks(0))
    assert run.step == 10
    assert all(torch.isfinite(weight).all() for weight in run.network.parameters())


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    """The loss of the last step before a checkpoint is finite, its gradient is not."""

    class Root(Breaks):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.left -= 1
            out: Tensor = self.inner(x)
            return out if self.left >= 0 else out + (0 * self.inner.weight[0, 0]).sqrt()  # its derivative: 0 * inf

    with pytest.raises(TrainingError, match=r"weights: got a number that is not finite.*step 5 stays"):
        train_points(tmp_path / "run", Root(9), checkpoint_every=5, steps=10)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == [5]


def test_own_module_and_array_need_a_few_lines(tmp_path: Path) -> None:
    network = OwnModule()
    train(network, np.asarray(ring()), NoiseSchedule.cosine(20), out=tmp_path / "mine", config=quick(), cpu=True)
    with pytest.raises(TrainingError, match=r"module of your own; give it"):
        load_run(tmp_path / "mine")
    run = load_run(tmp_path / "mine", network=OwnModule())
    assert (run.spec, run.sample_shape, run.clip, run.step) == (None, (2,), None, 12)
    assert run.output.scale == (1.0,)
    assert not run.network.training
    x, t = torch.randn(3, 2), torch.zeros(3)
    torch.testing.assert_close(run.network(x, t), network(x, t), rtol=0, atol=0)


class Labelled(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    pictures, labels = digits_arrays()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.from_numpy(self.pictures[index]), {"labels": torch.tensor(self.labels[index])}


def test_conditions_of_the_data_set_reach_the_network_the_samples_and_the_record(tmp_path: Path) -> None:
    network = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4, num_classes=10))
    settings = quick(sample_every=12, sample_count=5, sample_steps=2)
    train(network, Labelled(), SCHEDULE, out=tmp_path, config=settings, clip=(-1, 1), cpu=True)
    run = load_run(tmp_path)
    assert [(c.name, c.shape, c.dtype) for c in run.conditions] == [("labels", (), "int64")]
    assert run.clip == (-1.0, 1.0)
    assert (tmp_path / "samples" / "step-00000012.png").is_file()


def test_sample_grids_come_from_the_averaged_weights_at_the_steps_asked_for(tmp_path: Path) -> None:
    network = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4))
    settings = quick(sample_every=5, sample_count=6, sample_steps=3, tensorboard=True)
    train(network, digits_arrays()[0], SCHEDULE, out=tmp_path, config=settings, clip=(-1, 1), cpu=True)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"step-{step:08d}.png" for step in (5, 10, 12)]
    with Image.open(tmp_path / "samples" / names[-1]) as image:
        assert image.size == (3 * 72 + 8, 2 * 72 + 8)  # tiles of 64 and gaps of 8
        assert np.asarray(image).std() > 10


def test_tensorboard_gets_the_numbers_and_the_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    network = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4))
    settings = quick(sample_every=12, sample_count=4, sample_steps=2, tensorboard=True)
    train(network, digits_arrays()[0], SCHEDULE, out=tmp_path, config=settings, cpu=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [4, 8, 12]
    assert events.Tags()["images"] == ["samples"]


def test_as_a_library_it_prints_nothing_and_leaves_random_state_and_signals_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    train_points(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr() == ("", "")


def test_precision_of_one_run_does_not_reach_the_next(tmp_path: Path) -> None:
    train_points(tmp_path / "bf16", mixed_precision="bf16")
    train_points(tmp_path / "after")
    train_points(tmp_path / "plain")
    assert_same(stored(tmp_path / "after", 12), stored(tmp_path / "plain", 12))
    half, full = (stored(tmp_path / name, 12)["tensors"]["model/inward.weight"] for name in ("bf16", "plain"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.2, atol=0.05)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train_points(tmp_path)
    with pytest.raises(TrainingError, match="holds a run already"):
        train_points(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_died_before_its_first_checkpoint_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resume: bool
) -> None:
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        train_points(tmp_path / "run", Breaks(2))
    assert (tmp_path / "run" / "run.json").is_file()
    train_points(tmp_path / "run", resume=resume)
    assert "ended before its first checkpoint; starting anew" in caplog.text
    train_points(tmp_path / "whole")
    assert_same(stored(tmp_path / "run", 12), stored(tmp_path / "whole", 12))


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no run.json"):
        train_points(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("spec", {"network": point_net(hidden=32)}),
        ("spec", {"network": OwnModule()}),
        ("prediction", {"prediction": "v"}),
        ("variance", {"variance": "large"}),
        ("clip", {"clip": (-1.0, 1.0)}),
        ("data", {"dataset": Jittered()}),
        ("sample_shape", {"dataset": torch.zeros(4, 3)}),
        ("optimizer", {"optimizer": "adamw"}),
    ],
)
def test_resume_as_something_else_names_the_field(tmp_path: Path, field: str, change: dict[str, Any]) -> None:
    train_points(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(TrainingError, match=rf"{field}: got .*, but the run has "):
        train_points(tmp_path, resume=True, steps=20, **change)
    assert (tmp_path / "run.json").read_bytes() == before


def test_resume_with_another_schedule_or_other_conditions_names_the_field(tmp_path: Path) -> None:
    train_points(tmp_path, OwnModule(), ring(8))
    options: dict[str, Any] = {"out": tmp_path, "config": quick(steps=20), "cpu": True, "resume": True}
    with pytest.raises(TrainingError, match="schedule: got one of 20 timesteps, but the run has one of 50"):
        train(OwnModule(), ring(8), NoiseSchedule.cosine(20), **options)
    labelled = Data("array", [(x, {"labels": torch.tensor(0)}) for x in ring(8)], (2,), AS_GIVEN, None)
    with pytest.raises(TrainingError, match=r"conditions: got .*labels"):
        train(OwnModule(), labelled, SCHEDULE, **options)


def test_resume_with_other_weights_in_an_own_module_says_so(tmp_path: Path) -> None:
    train_points(tmp_path, OwnModule())
    with pytest.raises(TrainingError, match="do not fit the network"):
        train_points(tmp_path, Breaks(100), resume=True, steps=20)


def test_resume_of_a_run_that_has_more_steps_says_so(tmp_path: Path) -> None:
    train_points(tmp_path)
    with pytest.raises(TrainingError, match=r"steps: got 10, but .* has 12"):
        train_points(tmp_path, resume=True, steps=10)


def test_flip_mirrors_about_half_of_the_samples(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(OwnModule):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x, t)

    clean = NoiseSchedule.from_alpha_sigma([1.0], [1e-6])
    points = torch.tensor([[1.0, -1.0]]).repeat(40, 1)
    train(Watch(), points, clean, out=tmp_path, config=quick(flip=True, steps=25), cpu=True)
    mirrored = torch.cat(seen)[:, 0] < 0
    assert 0.3 < float(mirrored.float().mean()) < 0.7


def test_an_eps_network_cannot_be_trained_where_the_image_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alpha = 0"):
        train(point_net(), ring(), NoiseSchedule.flow_matching(10), out=tmp_path / "a", config=quick(), cpu=True)
    train(
        point_net(), ring(), NoiseSchedule.flow_matching(10), out=tmp_path, config=quick(), prediction="flow", cpu=True
    )
    assert load_run(tmp_path).prediction == "flow"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prediction": "score"}, "prediction"),
        ({"variance": "magic"}, "variance"),
        ({"variance": "learned"}, r"network: got an output of shape \(8, 2\), expected \(8, 4\)"),
        ({"clip": (1.0, -1.0)}, "clip"),
        ({"dataset": torch.zeros(0, 2)}, "dataset"),
        ({"dataset": ["text"]}, "dataset"),
        ({"network": nn.Linear(2, 3)}, "forward|positional"),
    ],
)
def test_a_bad_argument_is_refused_by_name(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        train_points(tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("batch_size", 1.5),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("clip_norm", -1.0),
        ("optimizer", "sgd"),
        ("lr_schedule", "linear"),
        ("mixed_precision", "fp8"),
        ("workers", -1),
        ("keep", 0),
        ("ema_decay", 1.0),
        ("min_snr_gamma", 0.0),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        train_points(tmp_path / "run", **{setting: value})


def test_a_network_with_the_wrong_output_is_refused_with_both_shapes(tmp_path: Path) -> None:
    class Wide(OwnModule):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([x, x], dim=1)

    with pytest.raises(ValueError, match=r"got an output of shape \(8, 4\), expected \(8, 2\)"):
        train_points(tmp_path / "run", Wide())


def test_an_accelerator_of_another_precision_is_refused(tmp_path: Path) -> None:
    given = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        with pytest.raises(ValueError, match="mixed_precision: got 'no', but the accelerator given has 'bf16'"):
            train_points(tmp_path / "run", accelerator=given)
        assert train_points(tmp_path / "run", accelerator=given, mixed_precision="bf16").step == 12
        assert given.mixed_precision == "bf16"  # accelerate's state is the caller's and was left alone
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
