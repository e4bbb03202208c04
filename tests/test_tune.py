"""The choice of a backend: what may be chosen, what is chosen, what is remembered and when that is not believed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import BackendUnavailable, BundleError, Sampler
from ddpm_deploy.backends import Availability, Backend, open_backend
from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.errors import BackendError
from ddpm_deploy.sample import main as sample
from ddpm_deploy.tune import main
from ddpm_deploy.tuning import Candidate, Question, Record, Verdict, open_auto, trial, tune
from ddpm_deploy.tuning import auto as auto_module
from ddpm_deploy.tuning.choice import choose
from ddpm_deploy.tuning.memory import folder, key_of, path_of, recall, remember
from ddpm_deploy.tuning.record import Bucket

QUICK = ("--batches", "1,4", "--seconds", "0.02")
ORT = Candidate("onnxruntime", "fp32", threads=1)
VINO = Candidate("openvino", "fp32", threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuned"


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return read_bundle(default_bundle())


@pytest.fixture(scope="module")
def truth(digits: Bundle) -> Any:
    with open_backend("onnxruntime", digits, threads=1) as opened:
        yield opened


class Fake:
    """The true results times 1 + error, after a delay in seconds that may depend on the batch size."""

    def __init__(self, candidate: Candidate, truth: Backend, delay: Callable[[int], float], error: float = 0.0) -> None:
        self.name, self.precision, self.device = candidate.backend, candidate.precision, candidate.device
        self.threads, self.batch_invariant, self.details = candidate.threads or 1, True, {"version": "1"}
        self.inputs, self.outputs = truth.inputs, truth.outputs
        self._truth, self._delay, self._error = truth, delay, error
        self.is_open = True

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self.is_open
        time.sleep(self._delay(len(feeds["x"])))
        return {name: array * np.float32(1 + self._error) for name, array in self._truth.run(feeds).items()}

    def close(self) -> None:
        self.is_open = False

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_the_fastest_is_chosen_for_each_batch_size() -> None:
    ratios = {1: {"a": 1.0, "b": 1.5}, 8: {"a": 1.2, "b": 1.0}}
    assert choose(ratios) == {1: "a", 8: "b"}


def test_one_that_is_as_fast_as_noise_tells_serves_all() -> None:
    ratios = {1: {"a": 1.0, "b": 1.02}, 8: {"a": 1.2, "b": 1.0}, 32: {"b": 1.0, "c": 1.01}}
    assert choose(ratios) == {1: "b", 8: "b", 32: "b"}
    assert choose(ratios, tolerance=0.01) == {1: "a", 8: "b", 32: "b"}


def test_of_equally_small_sets_the_fastest_is_taken() -> None:
    ratios = {1: {"a": 1.02, "b": 1.0, "c": 1.5}, 8: {"a": 1.0, "b": 1.01, "c": 1.5}, 32: {"c": 1.0}}
    assert choose(ratios) == {1: "b", 8: "b", 32: "c"}


def test_what_was_not_timed_at_a_batch_size_is_not_chosen_there() -> None:
    assert choose({1: {"a": 1.0}, 8: {"b": 1.0}}) == {1: "a", 8: "b"}
    with pytest.raises(ValueError, match="without any candidate"):
        choose({1: {"a": 1.0}, 8: {}})


# -- what may be chosen -----------------------------------------------------------------------------------------------


def found(name: str, *precisions: str, devices: tuple[str, ...] = ("cpu",)) -> dict[str, Availability]:
    return {name: Availability(name, True, version="1", devices=devices, precisions=precisions)}


def labels(question: Question, bundle: Bundle, available: dict[str, Availability]) -> list[str]:
    return [candidate.label for candidate in question.candidates(bundle, available)]


def test_nothing_below_float32_takes_part_unless_it_is_asked_for(digits: Bundle) -> None:
    available = found("torch", "fp32", "bf16")
    assert labels(Question.of("fp32", "cpu", None), digits, available) == ["torch fp32"]
    assert labels(Question.of(["fp32", "int8"], "cpu", None), digits, available) == ["torch fp32", "torch int8"]
    assert labels(Question.of("any", "cpu", None), digits, available) == ["torch fp32", "torch bf16"]


def test_any_takes_the_precisions_that_the_bundle_has(digits: Bundle) -> None:
    denoiser = digits.file("denoiser", "fp32")
    files = (*digits.manifest.files, replace(denoiser, path="d.int8.onnx", precision="int8"))
    bundle = replace(digits, manifest=replace(digits.manifest, files=files))
    assert "onnxruntime int8, 1 thread" in labels(Question.of("any", "cpu", 1), bundle, found("onnxruntime", "fp32"))


def test_one_thread_is_compared_with_all_cpus_unless_a_number_is_asked_for(digits: Bundle) -> None:
    threads = {candidate.threads for candidate in Question().candidates(digits, found("openvino", "fp32"))}
    assert threads == {1, usable_cpus()}
    assert labels(Question(threads=3), digits, found("openvino", "fp32")) == ["openvino fp32, 3 threads"]


def test_cuda_takes_part_where_any_device_may(digits: Bundle) -> None:
    available = found("onnxruntime", "fp32", devices=("cpu", "cuda"))
    assert labels(Question(threads=1), digits, available) == ["onnxruntime fp32, 1 thread"]
    both = ["onnxruntime fp32, 1 thread", "onnxruntime fp32 on cuda"]
    assert labels(Question(device="any", threads=1), digits, available) == both


def test_backend_for_gpus_takes_part_on_cuda_alone(digits: Bundle) -> None:
    available = found("tensorrt", "fp32", devices=("cuda",))
    assert labels(Question(threads=1), digits, available) == []
    for device in ("cuda", "any"):
        assert labels(Question(device=device), digits, available) == ["tensorrt fp32 on cuda"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4", "cpu", None), "no parity budget for 'int4'"),
        (([], "cpu", None), r"precision: got \[\]"),
        ((["any", "int8"], "cpu", None), "'any' alone"),
        (("fp32", "gpu", None), "device: got 'gpu'"),
        (("fp32", "cpu", 0), "threads: got 0"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Question.of(*arguments)


def test_a_list_of_precisions_is_for_auto_alone(digits: Bundle) -> None:
    with pytest.raises(ValueError, match=r"precision: got \['fp32', 'int8'\], expected one name"):
        Sampler.load(digits, backend="onnxruntime", precision=["fp32", "int8"])


# -- trying -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fakes(digits: Bundle, truth: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Fake]]:
    """Puts fakes in the place of all candidates: label -> (delay by batch size, error)."""

    def put(behaviour: Mapping[Candidate, tuple[Callable[[int], float], float]]) -> list[Fake]:
        opened: list[Fake] = []

        def open_fake(candidate: Candidate) -> Fake:
            opened.append(Fake(candidate, truth, *behaviour[candidate]))
            return opened[-1]

        names = {c.backend: found(c.backend, "fp32")[c.backend] for c in behaviour}
        monkeypatch.setattr(auto_module, "available_backends", lambda: names)
        monkeypatch.setattr(trial, "opener", lambda bundle: open_fake)
        monkeypatch.setattr(Question, "candidates", lambda *_: list(behaviour))
        return opened

    return put


def quickly(bundle: Bundle, batches: tuple[int, ...] | None = (1, 8), **options: Any) -> Record:
    return tune(bundle, Question(), batches=batches, budget_s=0.02, **options)


def chosen(record: Record) -> dict[int, Candidate]:
    return record.choices()


def test_the_faster_fake_wins_at_its_batch_size(digits: Bundle, fakes: Callable[..., list[Fake]]) -> None:
    opened = fakes({ORT: (lambda n: 0.03 * (n > 1), 0.0), VINO: (lambda n: 0.03 * (n == 1), 0.0)})
    record = quickly(digits)
    assert chosen(record) == {1: ORT, 8: VINO}
    assert not any(fake.is_open for fake in opened)
    (bucket, _) = record.buckets
    assert bucket.slower.get(VINO.label, 9) > 1 or bucket.ratios[VINO.label] > 2


def test_a_candidate_over_its_budget_is_never_chosen_however_fast(
    digits: Bundle, fakes: Callable[..., list[Fake]]
) -> None:
    fakes({ORT: (lambda n: 0.01, 0.0), VINO: (lambda n: 0.0, 1e-3)})
    record = quickly(digits)
    assert set(chosen(record).values()) == {ORT}
    (verdict,) = [verdict for verdict in record.verdicts if verdict.candidate == VINO]
    assert "over its parity budget: relative error of one step 0.001" in str(verdict.reason)
    assert not any(VINO.label in bucket.ms for bucket in record.buckets)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_candidate_that_is_wrong_in_larger_batches_only_is_not_chosen_there(
    digits: Bundle, fakes: Callable[..., list[Fake]], monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Parity is judged at the recorded batch; a kernel for another size may be another."""
    fakes({ORT: (lambda n: 0.01, 0.0), VINO: (lambda n: 0.0, 0.0)})
    right = Fake.run

    def run(self: Fake, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wrong = self.name == VINO.backend and len(feeds["x"]) == 31
        return {name: array * np.float32(factor if wrong else 1) for name, array in right(self, feeds).items()}

    monkeypatch.setattr(Fake, "run", run)
    record = quickly(digits, batches=(1, 31))
    assert chosen(record) == {1: VINO, 31: ORT}
    assert "from itself alone" in record.buckets[1].failed[VINO.label]


def test_a_number_of_threads_leaves_torch_out(digits: Bundle) -> None:
    """Its own number belongs to the process."""
    available = found("torch", "fp32") | found("onnxruntime", "fp32")
    assert labels(Question.of("fp32", "cpu", 1), digits, available) == ["onnxruntime fp32, 1 thread"]


def test_output_that_is_not_finite_is_over_every_budget(digits: Bundle, fakes: Callable[..., list[Fake]]) -> None:
    fakes({ORT: (lambda n: 0.0, 0.0), VINO: (lambda n: 0.0, float("nan"))})
    assert "not finite" in str(quickly(digits).verdicts[1].reason)


def test_nothing_within_budget_is_an_error_that_names_the_reasons(
    digits: Bundle, fakes: Callable[..., list[Fake]], cache: Path
) -> None:
    fakes({ORT: (lambda n: 0.0, 1e-2), VINO: (lambda n: 0.0, 1e-3)})
    with pytest.raises(BackendUnavailable, match=r"nothing to choose from: onnxruntime .* 0.01 .*; openvino .* 0.001 "):
        quickly(digits)
    assert not list(cache.glob("*.json"))


def test_a_bundle_without_a_reference_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"records no reference, .*; export the model again, or name a backend"):
        Sampler.load(tiny_bundle, backend="auto")


def test_a_batch_that_a_backend_cannot_compute_goes_to_another(
    digits: Bundle, fakes: Callable[..., list[Fake]]
) -> None:
    def no_memory(batch: int) -> float:
        if batch == 8:
            raise BackendError("openvino: no memory for\nthis batch")
        return 0.0

    fakes({ORT: (lambda n: 0.02, 0.0), VINO: (no_memory, 0.0)})
    record = quickly(digits)
    assert chosen(record) == {1: VINO, 8: ORT}
    assert record.buckets[1].failed == {VINO.label: "openvino: no memory for this batch"}


def test_larger_batches_are_left_out_after_a_long_call_unless_they_were_asked_for(
    digits: Bundle, fakes: Callable[..., list[Fake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LONG_S", 0.2)
    monkeypatch.setattr(trial, "BATCHES", (1, 3, 4))
    fakes({ORT: (lambda n: 0.2 * (n == 3), 0.0)})
    record = quickly(digits, None)
    assert [bucket.batch for bucket in record.buckets] == [1, 3]
    assert record.unmeasured == (4,)
    assert [bucket.batch for bucket in quickly(digits, (1, 3, 4)).buckets] == [1, 3, 4]


def test_a_batch_that_nothing_can_compute_ends_the_measuring_unless_it_was_asked_for(
    digits: Bundle, fakes: Callable[..., list[Fake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(batch: int) -> float:
        if batch == 3:
            raise BackendError("no memory")
        return 0.0

    monkeypatch.setattr(trial, "BATCHES", (1, 3))
    fakes({ORT: (no_memory, 0.0)})
    assert quickly(digits, None).unmeasured == (3,)
    with pytest.raises(BackendError, match="batch 3: no backend can compute it: no memory"):
        quickly(digits, (1, 3))


# -- remembering ------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(digits: Bundle) -> Record:
    """A choice of two, as if it had been measured."""
    verdicts = (Verdict("onnxruntime", "fp32", "cpu", 1, None, 1e-6, 1e-6, None), Verdict("openvino", "fp32", "cpu", 1))
    buckets = (
        Bucket(1, ORT.label, {ORT.label: 1.0, VINO.label: 2.0}, {ORT.label: 1.0, VINO.label: 2.0}, {}, {}),
        Bucket(8, VINO.label, {VINO.label: 2.0}, {VINO.label: 1.0}, {ORT.label: 4.0}, {}),
    )
    return Record(key_of(digits, Question()), verdicts, {"torch": "missing"}, buckets, (32,))


def test_a_record_comes_back_as_it_was_written(record: Record) -> None:
    assert remember(record) == path_of(record.key)
    assert recall(record.key, Question()) == record


def test_it_lies_in_the_folder_of_the_environment_or_the_users_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert folder() == cache
    monkeypatch.delenv("DDPM_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert folder() == tmp_path / "xdg" / "ddpm-deploy" / "tuned"


def changed(value: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> bytes:
    change(value)
    return json.dumps(value).encode()


def another_winner(**what: Any) -> Callable[[dict[str, Any]], object]:
    """Makes something else of the first candidate, in all places."""

    def change(value: dict[str, Any]) -> None:
        value["verdicts"][0].update(what)
        label = Verdict(**value["verdicts"][0]).candidate.label
        value["buckets"][0].update(chosen=label, ms={label: 1.0})

    return change


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda v: v.update(format=2),
    "member": lambda v: v.update(more=1),
    "missing": lambda v: v.pop("buckets"),
    "stale": lambda v: v["key"]["versions"].update(numpy="0.1"),
    "other cpu": lambda v: v["key"]["cpu"].update(model="another"),
    "other bundle": lambda v: v["key"].update(bundle="sha256:0"),
    "no bucket": lambda v: v.update(buckets=[]),
    "same bucket": lambda v: v["buckets"][1].update(batch=1),
    "batch": lambda v: v["buckets"][0].update(batch=0),
    "text for a number": lambda v: v["buckets"][0]["ms"].update({ORT.label: "fast"}),
    "not timed": lambda v: v["buckets"][0].update(ms={}),
    "unknown winner": lambda v: v["buckets"][0].update(chosen="tvm fp32"),
    "winner out of budget": lambda v: v["verdicts"][0].update(reason="over"),
    "lower precision": another_winner(precision="int8"),
    "other device": another_winner(device="cuda", threads=None),
    "other threads": another_winner(threads=usable_cpus() + 1),
    "no backend": another_winner(backend="tvm"),
    "verdict": lambda v: v["verdicts"][0].update(threads="two"),
    "verdicts": lambda v: v.update(verdicts=3),
    "unmeasured": lambda v: v.update(unmeasured=[None]),
    "unavailable": lambda v: v.update(unavailable={"torch": 3}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_record_that_does_not_fit_is_ignored_with_a_line_in_the_log(
    record: Record, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = remember(record)
    assert path is not None
    path.write_bytes(changed(json.loads(path.read_bytes()), DAMAGES[name]))
    with caplog.at_level(logging.WARNING, "ddpm_deploy"):
        assert recall(record.key, Question()) is None
    assert len(caplog.records) == 1
    assert "measured again" in caplog.text


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[]", b"[" * 100_000, b"3", b" " * 2_000_000])
def test_bytes_that_are_no_record_are_ignored(record: Record, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = remember(record)
    assert path is not None
    path.write_bytes(data)
    assert recall(record.key, Question()) is None
    assert "measured again" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="links need rights here")
def test_a_link_in_the_place_of_a_record_is_ignored(record: Record, tmp_path: Path) -> None:
    path = remember(record)
    assert path is not None
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert recall(record.key, Question()) is None


def test_another_question_has_another_file(digits: Bundle) -> None:
    questions = [Question(), Question(("any",)), Question(device="any"), Question(threads=1)]
    assert len({path_of(key_of(digits, question)) for question in questions}) == 4


def test_readers_beside_writers_find_a_whole_record(record: Record) -> None:
    path = remember(record)
    assert path is not None
    path.write_bytes(b"damaged")

    def write(_: int) -> None:
        assert remember(record) == path

    write(0)
    with ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(write, i) for i in range(40)]
        reads = [pool.submit(recall, record.key, Question()) for _ in range(40)]
        assert all(future.result(timeout=60) == record for future in reads)
        assert all(future.exception(timeout=60) is None for future in writes)
    assert [file.name for file in path.parent.glob("*")] == [path.name]


def test_a_choice_that_cannot_be_remembered_is_made_all_the_same(
    digits: Bundle, fakes: Callable[..., list[Fake]], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file in the place of the folder")
    fakes({ORT: (lambda n: 0.0, 0.0)})
    assert chosen(quickly(digits))[1] == ORT
    assert "the choice is not remembered" in caplog.text


def test_two_that_measure_at_once_take_turns_and_the_second_takes_the_firsts_choice(
    digits: Bundle, fakes: Callable[..., list[Fake]]
) -> None:
    opened = fakes({ORT: (lambda n: 0.005, 0.0)})
    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(lambda _: quickly(digits, again=False), range(3)))
    assert len(opened) == 2  # for parity and for speed, once
    assert records[0] == records[1] == records[2]


# -- the whole, on the digits model -----------------------------------------------------------------------------------


@pytest.fixture
def tuned(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command prints, after it has remembered a choice."""
    pytest.importorskip("onnxruntime")
    assert main([*QUICK, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_command_reports_every_candidate_and_remembers(tuned: dict[str, Any], digits: Bundle) -> None:
    assert Path(tuned["path"]) == path_of(key_of(digits, Question()))
    assert [bucket["batch"] for bucket in tuned["buckets"]] == [1, 4]
    tried = {Verdict(**verdict).candidate.label for verdict in tuned["verdicts"]}
    assert "onnxruntime fp32, 1 thread" in tried
    for bucket in tuned["buckets"]:
        assert {*bucket["ms"], *bucket["slower"]} == tried
        assert bucket["ratios"][bucket["chosen"]] <= 1.03
        assert all(ms > 0.01 for ms in bucket["ms"].values())
    for verdict in tuned["verdicts"]:
        assert verdict["precision"] == "fp32"
        assert 0 <= verdict["relative_l2"] <= 1e-5


def test_a_sampler_takes_the_remembered_choice_and_measures_nothing(
    tuned: dict[str, Any], digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "judge_all", lambda *_: pytest.fail("measured again"))
    with Sampler.load(backend="auto", warmup=True) as sampler, Sampler.load(threads=1) as plain:
        assert sampler.backend.details["choices"] == {bucket["batch"]: bucket["chosen"] for bucket in tuned["buckets"]}
        for n in (1, 5):
            np.testing.assert_allclose(sampler.sample(n, steps=4), plain.sample(n, steps=4), atol=1e-4)
    with pytest.raises(BackendError, match="closed"):
        sampler.sample(1, steps=2)


def test_without_a_remembered_choice_a_sampler_measures_and_says_what_it_chose(
    fakes: Callable[..., list[Fake]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "BATCHES", (1,))
    fakes({ORT: (lambda n: 0.0, 0.0)})
    with caplog.at_level(logging.INFO, "ddpm_deploy"), Sampler.load(backend="auto", threads=1) as sampler:
        assert set(sampler.backend.details["choices"].values()) == {ORT.label}
        assert sampler.backend.batch_invariant
    assert "batch 1: onnxruntime fp32, 1 thread, " in caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_remembered_choice_that_cannot_be_opened_is_measured_again(
    digits: Bundle, record: Record, fakes: Callable[..., list[Fake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(record)
    fakes({ORT: (lambda n: 0.0, 0.0)})
    real = open_backend

    def without_openvino(name: str, *arguments: Any, **options: Any) -> Backend:
        if name == "openvino":
            raise BackendUnavailable("openvino: gone")
        return real(name, *arguments, **options)

    monkeypatch.setattr(auto_module, "open_backend", without_openvino)
    monkeypatch.setattr(auto_module, "tune", lambda *a, **k: quickly(digits, again=k["again"]))
    with open_auto(digits, Question()) as backend:
        assert set(backend.details["choices"].values()) == {ORT.label}


LIGHT = """
import sys
from ddpm_deploy import Sampler
with Sampler.load(backend="auto") as sampler:
    sampler.sample(2, steps=2)
print(sorted({"torch", "onnx", "openvino", "onnxruntime", "ddpm_deploy.bench.measure"} & set(sys.modules)))
"""


def test_a_remembered_choice_loads_its_own_runtime_alone(digits: Bundle, record: Record) -> None:
    pytest.importorskip("onnxruntime")
    only = tuple(replace(bucket, chosen=ORT.label, ms={ORT.label: 1.0}) for bucket in record.buckets)
    remember(replace(record, buckets=only))
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['onnxruntime']\n", "")


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_table_names_the_chosen_the_slower_and_the_left_out(
    fakes: Callable[..., list[Fake]], capsys: pytest.CaptureFixture[str]
) -> None:
    fakes({ORT: (lambda n: 0.0, 0.0), VINO: (lambda n: 0.05, 0.0), replace(VINO, threads=2): (lambda n: 0.0, 1e-3)})
    assert main([*QUICK]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert any(line.startswith("1      onnxruntime fp32, 1 thread") and line.endswith("chosen") for line in lines)
    assert sum("openvino fp32, 1 thread" in line and line.endswith("too slow in a first look") for line in lines) == 2
    assert "left out: openvino fp32, 2 threads: over its parity budget: relative error of one step 0.001" in printed
    assert "remembered in " in lines[-1]


def test_sample_takes_auto(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember(replace(record, buckets=record.buckets[:1]))
    out = str(tmp_path / "x.npy")
    assert sample(["--backend", "auto", "--num", "2", "--steps", "2", "--out", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["backend"], report["precision"]) == ("auto", "fp32")
    assert np.load(out).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such bundle"),
        (["--batches", "0"], "argument --batches: got '0'"),
        (["--batches", "1,x"], "argument --batches: got '1,x'"),
        (["--batches", ""], "argument --batches: got ''"),
        (["--seconds", "nan"], "argument --seconds: got nan"),
        (["--precisions", "int4"], "no parity budget for 'int4'"),
        (["--precisions", ""], "precision: got []"),
        (["--precisions", "int8", "--threads", "1"], "nothing to choose from: "),
        (["--device", "gpu"], "device: got 'gpu'"),
        (["--threads", "0"], "threads: got 0"),
        (["--digest", "sha256:" + "0" * 64], "not the bundle that was pinned"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "(default: fp32)" in printed
    assert "DDPM_DEPLOY_CACHE" in printed
