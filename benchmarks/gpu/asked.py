"""What is asked for: groups of contenders in the order of their importance, and how much effort each is worth."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.specs import Spec
from ddpm_deploy.bench.measure import Effort
from ddpm_deploy.bench.record import OWN

TITLES = {"unipc": "UniPC", "ddim": "DDIM", "ddpm": "DDPM"}
MODELS = ("cifar10", "digits")
PRECISIONS = ("bf16", "fp16", "fp32", "tf32")
LARGE = 256  # the batch at which throughput is judged
LONG_S = 2.0  # a round of a group; longer ones get fewer


@dataclass(frozen=True)
class Group:
    """What is asked of all contenders of a group alike.

    compiled: whether torch.compile, which takes minutes, may use all the time that is left, and not only a part of it.
    """

    model: str
    solver: str
    steps: int
    batch: int
    precision: str
    compiled: bool = field(default=False, compare=False)

    @property
    def solution(self) -> str:
        """Model, solver and evaluations, in words."""
        return f"{self.model} {TITLES[self.solver]}-{self.steps}"

    @property
    def work(self) -> str:
        """In words, without the batch."""
        return f"{self.model}: a picture in {self.steps} evaluations ({TITLES[self.solver]}), {self.precision}"

    @property
    def title(self) -> str:
        """As its rows call it."""
        return f"{self.work}, batch {self.batch}"

    def spec(self, contender: str, kind: str = OWN) -> Spec:
        """The row of one contender."""
        return Spec(
            "sampling", self.work, contender, self.precision, self.batch, kind, self.solver, self.steps, self.model
        )


@dataclass(frozen=True)
class Wish:
    """Groups of one model and solver: every precision at every batch. compiled: see `Group`."""

    model: str
    solver: str
    steps: int
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    compiled: tuple[str, ...] = ()

    def groups(self) -> Iterator[Group]:
        """Batch by batch."""
        for batch in self.batches:
            for precision in self.precisions:
                settings = (self.model, self.solver, self.steps, batch, precision)
                yield Group(*settings, compiled=precision in self.compiled)


BATCHES = (1, LARGE, 64, 8)
FULL = (  # what matters most comes first, as the time may not be enough for all; the very first compiles nothing
    Wish("cifar10", "unipc", 12, (1, LARGE), ("fp16", "bf16"), compiled=("bf16",)),
    Wish("digits", "unipc", 12, (1,), ("fp16", "fp32"), compiled=("fp16",)),
    Wish("cifar10", "unipc", 12, (1,), ("fp32", "tf32")),
    Wish("cifar10", "ddim", 50, (1,), ("bf16", "fp16", "fp32", "tf32")),
    Wish("digits", "unipc", 12, (LARGE,), ("fp16", "fp32")),
    Wish("digits", "ddpm", 1000, (1,), ("fp32",)),
    Wish("cifar10", "unipc", 12, (LARGE,), ("tf32", "fp32")),
    Wish("cifar10", "unipc", 12, (8, 64), PRECISIONS),
    Wish("digits", "ddim", 50, (1,), ("fp16", "fp32")),
    Wish("digits", "unipc", 12, (1, LARGE), ("bf16", "tf32")),
    Wish("digits", "unipc", 12, (8, 64), PRECISIONS),
    Wish("cifar10", "ddim", 50, (8, 64), ("bf16", "fp16")),
    Wish("cifar10", "ddpm", 1000, (1,), ("bf16", "fp16")),
    Wish("digits", "ddpm", 1000, (LARGE,), ("fp16", "fp32")),
    Wish("cifar10", "ddim", 50, BATCHES, PRECISIONS),
    Wish("digits", "ddim", 50, BATCHES, PRECISIONS),
    Wish("digits", "ddpm", 1000, BATCHES, PRECISIONS),
    Wish("cifar10", "ddpm", 1000, BATCHES, PRECISIONS),
)  # together every solver at every batch in every precision; what is named twice counts where it comes first
REHEARSAL = (Wish("digits", "unipc", 4, (1, 2), ("fp32",)),)


@dataclass(frozen=True)
class Asked:
    """The command line. models, precisions: of those that are measured, these only."""

    out: Path
    minutes: float = 8.0
    rehearse: bool = False
    models: tuple[str, ...] = MODELS
    precisions: tuple[str, ...] = PRECISIONS

    @property
    def device(self) -> str:
        """Where everything is measured."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batches that are held against each other."""
        return (1, 2) if self.rehearse else (1, 8, 64)

    def groups(self) -> list[Group]:
        """In the order of their measurement."""
        found = dict.fromkeys(group for wish in (REHEARSAL if self.rehearse else FULL) for group in wish.groups())
        return [group for group in found if group.model in self.models and group.precision in self.precisions]

    def command(self, group: Group | None = None) -> str:
        """What measures all of it again, or one group with its neighbours."""
        words = ["python -m benchmarks.gpu", f"--out {shlex.quote(self.out.name)}", f"--minutes {self.minutes:g}"]
        words += ["--rehearse"] if self.rehearse else []
        models = self.models if group is None else (group.model,)
        precisions = self.precisions if group is None else (group.precision,)
        words += [f"--models {','.join(models)}"] if models != MODELS else []
        words += [f"--precisions {','.join(precisions)}"] if precisions != PRECISIONS else []
        return " ".join(words)

    def effort(self, round_s: float) -> Effort:
        """How a group is timed of which one round takes so long."""
        if self.rehearse:
            return Effort(budget_s=0.2, min_rounds=3, max_rounds=5, max_warmup=2)
        if round_s > LONG_S:
            return Effort(budget_s=8.0, min_rounds=5, max_rounds=20, max_warmup=3)
        return Effort(budget_s=6.0, min_rounds=10, max_rounds=100, max_warmup=10)
