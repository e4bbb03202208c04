"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.images import is_picture
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.train import preview
from ddpm_deploy.train.batches import Batch, Batches, stream_seed
from ddpm_deploy.train.bound import VarianceBound
from ddpm_deploy.train.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_state,
    read_tensors,
    save_checkpoint,
)
from ddpm_deploy.train.dropout import drop_conditions
from ddpm_deploy.train.ema import EMA
from ddpm_deploy.train.loss import Objective
from ddpm_deploy.train.metrics import Metrics, Window
from ddpm_deploy.train.optim import learning_rate, load_optimizer_state, make_optimizer, optimizer_state
from ddpm_deploy.train.runs import (
    CHECKPOINTS,
    RUN_NAME,
    Description,
    read_description,
    require_same,
    write_description,
)

log = logging.getLogger(__name__)


class Trainer:
    """Trains one network; every process of a distributed run makes one.

    dataset: see `Batches`. out: the run folder. accelerator: says on which device, in which precision, and with how
    many processes.
    """

    def __init__(
        self, network: nn.Module, dataset: Any, description: Description, out: Path, accelerator: Accelerator
    ) -> None:
        config = description.training
        self.description, self.config, self.out, self.accelerator = description, config, out, accelerator
        _check_precision(config.mixed_precision, accelerator)
        processes, rank = accelerator.num_processes, accelerator.process_index
        if config.batch_size % processes:
            raise ValueError(f"batch_size: got {config.batch_size}, expected a multiple of the {processes} processes")
        self.batches = Batches(dataset, config.batch_size, config.seed, rank, processes)
        self.device = self.accelerator.device
        self.objective = _objective(description, self.device)
        self.network = network.to(self.device).train()
        self.plain_optimizer = make_optimizer(network.parameters(), config)
        self.model, self.optimizer = self.accelerator.prepare(self.network, self.plain_optimizer)
        self.ema = EMA(self.network, config.ema_decay)
        self.random = torch.Generator(self.device)
        self.step = 0
        self.saved: int | None = None
        self.window = Window(self.device)

    # -- the loop -------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False, stop: Callable[[], bool] = lambda: False, progress: bool = False) -> int:
        """Train up to `config.steps`; returns the number of steps done.

        resume: continue from the newest checkpoint, exactly as if the run had not been cut off. A run that ended
        before its first checkpoint starts anew, resumed or not.
        stop: asked after every step; when it says yes, a checkpoint is written and `fit` returns.
        Raises TrainingError when the loss is not finite; the last good checkpoint stays.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                self._open(resume)
                return self._loop(stop, progress)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()

    def _loop(self, stop: Callable[[], bool], progress: bool) -> int:
        main = self.accelerator.is_main_process
        loader = self.batches.loader(self.step, self.config.steps, self.config.workers)
        metrics = Metrics(self.out, self.step, self.config.tensorboard) if main else None
        bar = tqdm(total=self.config.steps, initial=self.step, disable=not (progress and main), unit="step")
        try:
            self.window.restart()
            for batch in loader:
                self._train_step(batch)
                bar.update()
                self._report(metrics, bar)
                if self._agreed(stop()):
                    break
            self._save()
        finally:
            bar.close()
            if metrics is not None:
                metrics.close()
        return self.step

    def _train_step(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        x0, condition = self._to_device(batch)
        t, eps, x0, dropped = self._draw(x0)
        condition = drop_conditions(condition, self.description.conditions, dropped)
        self._seed_dropout()
        loss = self.objective(self.model, x0, t, eps, condition)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        self.step += 1
        self.window.add(loss, norm)

    def _to_device(self, batch: Batch) -> Batch:
        x0, condition = batch
        moved = {name: value.to(self.device, non_blocking=True) for name, value in condition.items()}
        return x0.to(self.device, non_blocking=True), moved

    def _draw(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, eps, x0 perhaps mirrored, and whose conditions to drop: this process's share of the whole batch's.

        So the number of processes does not change what is learned.
        """
        share, rank, total = len(x0), self.accelerator.process_index, self.config.batch_size
        mine = slice(rank * share, (rank + 1) * share)
        self.random.manual_seed(stream_seed(self.config.seed, "noise", self.step))
        t = torch.randint(self.description.schedule.T, (total,), generator=self.random, device=self.device)[mine]
        eps = torch.randn((total, *x0.shape[1:]), generator=self.random, device=self.device)[mine]
        if self.config.flip:
            mirrored = torch.rand(total, generator=self.random, device=self.device)[mine] < 0.5
            x0 = torch.where(mirrored.reshape(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)
        dropped = torch.rand(total, generator=self.random, device=self.device)[mine] < self.config.condition_dropout
        return t, eps, x0, dropped

    def _seed_dropout(self) -> None:
        """Seed torch's own generator of this device; `torch.manual_seed` would queue a call for every other device."""
        seed = stream_seed(self.config.seed, "dropout", self.step, self.accelerator.process_index)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _agreed(self, stop: bool) -> bool:
        """Whether any process wants to stop; all must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        votes = self.accelerator.reduce(torch.tensor(float(stop), device=self.device), reduction="sum")
        return bool(votes > 0)

    # -- watching it ----------------------------------------------------------------------------------------------

    def _report(self, metrics: Metrics | None, bar: Any) -> None:
        config, last = self.config, self.step == self.config.steps
        due = self.step % config.log_every == 0 or last
        if due or (self.device.type == "cpu" and self.accelerator.num_processes == 1):
            self._check_finite()
        if due:
            values = {
                "loss": self._mean_loss(),
                "lr": learning_rate(config, self.step - 1),
                "grad_norm": self.window.mean_norm(),
                "images_per_s": self.window.steps_per_s() * config.batch_size,
            }
            bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_s']:.0f} images/s")
            if metrics is not None:
                metrics.write(self.step, values)
        with self.window.paused():
            if self.step % config.checkpoint_every == 0:
                self._save()
            if metrics is not None and config.sample_every and (self.step % config.sample_every == 0 or last):
                self._preview(metrics)
        if due:
            self.window.restart()

    def _mean_loss(self) -> float:
        return float(self.accelerator.reduce(self.window.mean_loss(), reduction="mean"))

    def _check_finite(self, weights: bool = False) -> None:
        loss = self._mean_loss()
        if not math.isfinite(loss) or (weights and not self.ema.is_finite()):
            first = self.step - self.window.steps + 1
            what = f"loss: got {loss}" if not math.isfinite(loss) else "weights: got a number that is not finite"
            kept = (
                "no checkpoint was written yet" if self.saved is None else f"the checkpoint of step {self.saved} stays"
            )
            raise TrainingError(
                f"{what} in steps {first} to {self.step}, expected finite numbers; {kept}; "
                "go on from there with a lower learning rate or clip norm"
            )

    def _preview(self, metrics: Metrics) -> None:
        description, config = self.description, self.config
        if not is_picture(description.sample_shape):
            return
        steps = min(config.sample_steps, description.schedule.T)
        plan = make_plan("ddim", description.schedule, steps, "trailing", description.prediction, description.clip)
        x_T = preview.start_noise(config.seed, config.sample_count, description.sample_shape)
        _, condition = self._to_device(self.batches.first(config.sample_count))
        samples = preview.draw_samples(self.network, self.ema.state, plan, x_T, condition)
        picture = preview.grid(samples, description.clip)
        path = self.out / "samples" / f"step-{self.step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        metrics.picture(self.step, picture)

    # -- keeping it -----------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        exists, trained = (self.out / RUN_NAME).is_file(), bool(list_checkpoints(self.out / CHECKPOINTS))
        if trained and not resume:
            raise TrainingError(f"{self.out}: holds a run already; resume it, or give another folder")
        if resume and (trained or not exists):
            require_same(read_description(self.out), self.description, self.out)
            self._restore(find_checkpoint(self.out / CHECKPOINTS))
        elif exists:
            log.warning("%s: the run there ended before its first checkpoint; starting anew", self.out)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            write_description(self.out, self.description)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.saved == self.step:
            return
        self._check_finite(weights=True)
        if self.accelerator.is_main_process:
            tensors, groups = optimizer_state(self.plain_optimizer)
            scaler = self.accelerator.scaler
            state = {"optimizer": groups, "scaler": None if scaler is None else scaler.state_dict()}
            parts = {"model": self.network.state_dict(), "ema": self.ema.state, "optimizer": tensors}
            path = save_checkpoint(self.out / CHECKPOINTS, self.step, parts, state)
            prune_checkpoints(self.out / CHECKPOINTS, self.config.keep)
            log.info("wrote %s", path)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path) -> None:
        record = read_state(checkpoint)
        try:
            self.network.load_state_dict(read_tensors(checkpoint, "model"))
            self.ema.load(read_tensors(checkpoint, "ema"))
        except (RuntimeError, KeyError) as error:
            raise TrainingError(f"{checkpoint}: the weights do not fit the network ({error})") from None
        load_optimizer_state(self.plain_optimizer, read_tensors(checkpoint, "optimizer"), record["state"]["optimizer"])
        if self.accelerator.scaler is not None and record["state"]["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(record["state"]["scaler"])
        self.step = self.saved = record["step"]
        if self.step > self.config.steps:
            raise TrainingError(
                f"steps: got {self.config.steps}, but {checkpoint} has {self.step} already; ask for more"
            )


def _objective(description: Description, device: torch.device) -> Objective:
    schedule, prediction, config = description.schedule, description.prediction, description.training
    bound = None
    if description.variance == "learned":
        bound = VarianceBound(schedule, prediction, device, description.levels, description.clip)
    return Objective(schedule, prediction, config.min_snr_gamma, device, bound, config.vlb_weight)


def _check_precision(wanted: str, accelerator: Accelerator) -> None:
    if accelerator.mixed_precision != wanted:
        raise ValueError(
            f"mixed_precision: got {wanted!r}, but the accelerator given has {accelerator.mixed_precision!r}"
        )
    if wanted == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in float32 without a word
        raise ValueError("mixed_precision: got 'fp16', which needs a GPU; use 'bf16' or 'no' on the CPU")
