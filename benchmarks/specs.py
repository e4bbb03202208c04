"""What is asked for, and which rows come of it: options of the command line, one spec for each row to be."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import PeerUnavailable
from ddpm_deploy.backends import available_backends
from ddpm_deploy.bench.measure import OPENINGS
from ddpm_deploy.bench.record import OWN, PEER, TWIN
from ddpm_deploy.errors import BackendUnavailable, BundleError

DEMANDED = "DDPM_TEST_BACKENDS"
REPORTS = Path(__file__).resolve().parent / "reports"
CPU = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8", "int8-bf16"), "torch": ("fp32",)}
FEW_OPENINGS = 4  # of whole pictures in a quick run
NARROW = ("bf16", "fp16", "int8-bf16")  # what not every processor computes in
CUDA = {"onnxruntime": ("fp32", "fp16", "bf16"), "torch": ("fp32", "fp16", "bf16")}


@dataclass(frozen=True)
class Options:
    """What the command line asked for. backends: own ones, or None for all. full: the long tables.

    report_folder: where the session leaves its report, and suites what belongs to it.
    """

    model: str = "digits"
    checkpoint: str | None = None
    backends: tuple[str, ...] | None = None
    full: bool = False
    threads: int = 2
    device: str = "cpu"
    batches: tuple[int, ...] | None = None
    rate_hz: float | None = None
    report_folder: Path = REPORTS

    def own(self, *names: str) -> list[str]:
        """Those of these backends that were asked for."""
        return [name for name in names if self.backends is None or name in self.backends]

    def flags(self) -> str:
        """What of the command line a row depends on, for the command that repeats it."""
        said = [f"--model {shlex.quote(self.model)}", f"--threads {self.threads}"]
        said += [f"--checkpoint {shlex.quote(self.checkpoint)}"] if self.checkpoint else []
        said += [f"--device {self.device}"] if self.device != "cpu" else []
        said += [f"--rate-hz {self.rate_hz:g}"] if self.rate_hz else []
        said += [f"--batches {','.join(map(str, self.batches))}"] if self.batches else []
        return " ".join([*said, *(["--full"] if self.full else [])])


@dataclass(frozen=True)
class Spec:
    """One row to be: who does what. work: of all rows of a group. contender: without its precision.

    tag: tells rows of two groups apart that are otherwise the same.
    """

    suite: str
    work: str
    contender: str
    precision: str
    batch: int
    kind: str = OWN
    solver: str | None = None
    steps: int | None = None
    tag: str = ""

    @property
    def label(self) -> str:
        """How the report calls the contender."""
        return f"{self.contender} {self.precision}"

    @property
    def backend(self) -> str:
        """Of an own contender, without how it is used."""
        return self.contender.partition(",")[0]

    @property
    def group(self) -> str:
        """What the rows measured together have in common."""
        return f"{self.work}, batch {self.batch}"

    @property
    def id(self) -> str:
        """How the report calls the row."""
        return f"{self.suite}[{self}{'-twin' if self.kind == TWIN else ''}]"

    def __str__(self) -> str:
        words = [self.contender.replace(" ", "_").replace(",", ""), self.precision, f"b{self.batch}"]
        return "-".join([*words, *([f"{self.solver}{self.steps}"] if self.solver else []), *filter(None, [self.tag])])


def may_skip(spec: Spec, error: Exception) -> bool:
    """Unavailable is a reason, unless the environment demands this backend; but no demand gives a CPU bf16."""
    if spec.kind != PEER and is_demanded(spec.backend) and not _lacks_precision(spec):
        return False
    return isinstance(error, BackendUnavailable | PeerUnavailable | ImportError) or is_no_such_file(error)


def is_demanded(backend: str) -> bool:
    """Whether the environment says that this backend must be there."""
    return backend in {word.strip() for word in os.environ.get(DEMANDED, "").split(",")}


def is_no_such_file(error: Exception) -> bool:
    """Whether a bundle was made without a graph that is asked for; a damaged one is no reason to skip."""
    return isinstance(error, BundleError) and ": has no " in str(error)


def _lacks_precision(spec: Spec) -> bool:
    found = available_backends()[spec.backend]
    return found.available and spec.precision in NARROW and spec.precision not in (*found.precisions, *found.of_files)


def name_of(spec: Spec) -> str:
    """The contender as its group calls it."""
    return f"{spec.label} (twin)" if spec.kind == TWIN else spec.label


def batches_of(options: Options) -> tuple[int, ...]:
    """The batch sizes of the steps: of small pictures up to 32."""
    if options.batches is not None:
        return options.batches
    return {"cifar10": (1, 8), "celebahq256": (1,)}.get(options.model, (1, 8, 32))


def openings_of(options: Options, whole: bool = False) -> int:
    """How often contenders are opened; once where opening and warming up would take longer than the rounds.

    whole: for whole pictures.
    """
    large = ("cifar10", "celebahq256") if whole else ("celebahq256",)
    if options.model in large:
        return 1
    return OPENINGS if options.full or not whole else FEW_OPENINGS


def own_contenders(options: Options) -> list[tuple[str, str]]:
    """Backend and precision of everything of our own that could run on the device."""
    table = CUDA if options.device.startswith("cuda") else CPU
    return [(backend, precision) for backend in options.own(*table) for precision in table[backend]]
