"""`python -m ddpm_deploy.tune BUNDLE`: the fastest backend of this machine for each batch size, and remember it.

`Sampler.load(bundle, backend="auto")` then takes what was chosen here. `tune --plan` chooses timesteps instead: see
`ddpm_deploy.tuning.command`.
"""

from __future__ import annotations

import argparse
import json as json_module
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ddpm_deploy.backends.tensorrt.cache import VARIABLE
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.cli import PACKAGED, make_parser, run_command, words
from ddpm_deploy.tuning import ANY, Bucket, Question, Record, Verdict, command, tune
from ddpm_deploy.tuning.auto import BUDGET_S
from ddpm_deploy.tuning.memory import path_of

MAX_BATCH = 4096
PLAN = command.FLAG
COLUMNS = ("batch", "candidate", "ms", "ratio", "step rel. L2", "final max-abs", "")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `tune`."""
    parser = make_parser("tune", "Time every backend within its parity budget, and remember the fastest by batch size.")
    add = parser.add_argument
    add("bundle", nargs="?", help=f"bundle folder, or {PACKAGED}")
    add("--precisions", type=words, default="fp32", metavar="A,B", help=f"to choose from; {ANY}: all that there are")
    add("--device", default="cpu", help=f"such as cpu or cuda:0; {ANY}: the CPU and a CUDA device")
    add("--threads", type=int, help="threads of one call; default: one thread and all CPUs are compared")
    add("--batches", type=_batches, metavar="N,N",
        help="batch sizes; default: 1 to 32, as far as a call takes less than a second")  # fmt: skip
    add("--seconds", type=_seconds, default=BUDGET_S, help="of timing for each batch size, after a warm-up")
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--json", action="store_true", help="print everything measured as JSON")
    parser.epilog = (
        f"`tune {PLAN}` chooses timesteps instead, see its --help; choices are kept in the folder ${VARIABLE}, "
        "or the user's cache; backend='auto' finds them there"
    )
    return parser


def run(
    *,
    bundle: str | None,
    precisions: Sequence[str],
    device: str,
    threads: int | None,
    batches: Sequence[int] | None,
    seconds: float,
    digest: str | None,
    json: bool,
) -> None:
    """Measure, remember and report; see `build_parser` for the arguments."""
    question = Question.of(precisions, device, threads)
    read = read_bundle(default_bundle() if bundle is None else bundle, digest=digest)
    with _progress(shown=not json and sys.stderr.isatty()) as tell:
        record = tune(read, question, batches=batches, budget_s=seconds, tell=tell)
    path = path_of(record.key)
    kept = str(path) if path.exists() else None
    print(json_module.dumps({**record.to_dict(), "path": kept}) if json else render(record, read, kept))


def render(record: Record, bundle: Bundle, path: str | None) -> str:
    """The report for people."""
    verdicts = {verdict.candidate.label: verdict for verdict in record.verdicts}
    rows = [COLUMNS, *(row for bucket in record.buckets for row in _rows(bucket, verdicts))]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    model = bundle.manifest.model
    head = f"{model.name} {model.version} on {record.key['cpu']['model']}, {record.key['cpu']['usable']} CPUs usable"
    last = f"remembered in {path}" if path else "not remembered: the folder for caches cannot be written to"
    return "\n".join([head, "", *lines, "", *_left_out(record), last])


def _rows(bucket: Bucket, verdicts: dict[str, Verdict]) -> Iterator[tuple[str, ...]]:
    for label, ms in sorted(bucket.ms.items(), key=lambda pair: pair[1]):
        chosen = label == bucket.chosen
        yield (
            str(bucket.batch),
            label,
            f"{ms:.3f}",
            f"{bucket.ratios[label] / bucket.ratios[bucket.chosen]:.2f}",
            f"{verdicts[label].relative_l2 or 0:.1e}",
            f"{verdicts[label].final_max_abs or 0:.1e}",
            "chosen" if chosen else "",
        )
    for label, ratio in bucket.slower.items():
        yield (str(bucket.batch), label, "-", f"{ratio:.1f}", "", "", "too slow in a first look")
    for label, reason in bucket.failed.items():
        yield (str(bucket.batch), label, "-", "-", "", "", reason)


def _left_out(record: Record) -> list[str]:
    lines = [f"left out: {verdict.candidate.label}: {verdict.reason}" for verdict in record.verdicts if verdict.reason]
    lines += [f"left out: {name}: {reason}" for name, reason in record.unavailable.items()]
    if record.unmeasured:
        sizes, last = ", ".join(map(str, record.unmeasured)), record.buckets[-1].batch
        lines.append(f"not measured: batch {sizes}, too long or too large; the choice of batch {last} serves them")
    return lines


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None]]:
    from tqdm import tqdm

    with tqdm(unit="step", disable=not shown, leave=False, file=sys.stderr) as bar:

        def tell(step: str) -> None:
            bar.set_description(step)
            bar.update()

        yield tell


def _batches(text: str) -> tuple[int, ...]:
    sizes = words(text)
    if not sizes or not all(size.isdecimal() and 1 <= int(size) <= MAX_BATCH for size in sizes):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected batch sizes from 1 to {MAX_BATCH}, such as 1,8")
    return tuple(sorted({int(size) for size in sizes}))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if PLAN in argv:
        return command.main(argv)
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
