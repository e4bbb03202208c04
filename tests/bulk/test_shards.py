"""A set of shards holds what the sampler draws, whatever the shards, the parts and what happened on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_deploy import Sampler, ShardError
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.bulk import Order, SetFolder, draw_set, verify_set
from ddpm_deploy.images import to_uint8
from ddpm_deploy.sample import main

NUM, STEPS = 11, 3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def sample(guided_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in an empty folder; gives exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(guided_bundle), *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def shards(sample):
    """As `sample`, of eleven samples in shards of four."""
    return lambda *words: sample("--num", NUM, "--steps", STEPS, "--shard-size", 4, *words)


def verified(folder: str | Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code = main(["--shards", str(folder), "--verify"])
    return code, capsys.readouterr().out


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def members(folder: str | Path) -> dict[str, bytes]:
    """Every member of every tar, in the order of the shards."""
    found: dict[str, bytes] = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    return found


def pictures(folder: str | Path) -> np.ndarray:
    pngs = [data for name, data in members(folder).items() if name.endswith(".png")]
    return np.stack([np.moveaxis(np.asarray(Image.open(io.BytesIO(data))), -1, 0) for data in pngs])


def drawn(bundle: Path, n: int = NUM, **request: object) -> np.ndarray:
    with Sampler.load(bundle) as sampler:
        return sampler.sample(n, steps=STEPS, **request)


# -- what is in a shard -----------------------------------------------------------------------------------------------


def test_tars_hold_the_pictures_of_the_sampler_and_what_they_were_drawn_with(shards, guided_bundle: Path) -> None:
    words = ("--label", "c,a", "--guidance", 2, "--seed", 5, "--start", 20)
    assert shards("--shards", "set", *words)[0] == 0
    condition = {"labels": np.resize([2, 0], NUM)}
    expected = drawn(guided_bundle, seed=5, start=20, condition=condition, guidance=2.0)
    np.testing.assert_array_equal(pictures("set"), to_uint8(expected))
    found = members("set")
    assert list(found) == sorted(f"{i:09d}.{ending}" for i in range(20, 31) for ending in ("json", "png"))
    assert json.loads(found["000000021.json"]) == {"class": "a", "index": 21, "labels": 0, "seed": 5}


def test_tars_tell_nothing_of_when_and_by_whom_they_were_written(shards) -> None:
    assert shards("--shards", "set")[0] == 0
    with tarfile.open("set/shard-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}


def test_npz_holds_the_samples_as_they_are(shards, guided_bundle: Path) -> None:
    assert shards("--shards", "set", "--shard-format", "npz", "--label", "b,none")[0] == 0
    parts = [np.load(path) for path in sorted(Path("set").glob("*.npz"))]
    expected = drawn(guided_bundle, condition={"labels": np.resize([1, 3], NUM)})
    np.testing.assert_array_equal(np.concatenate([part["samples"] for part in parts]), expected)
    assert np.concatenate([part["index"] for part in parts]).tolist() == list(range(NUM))
    assert np.concatenate([part["condition.class"] for part in parts]).tolist()[:2] == ["b", "none"]
    assert {int(part["seed"]) for part in parts} == {0}


def test_samples_that_are_no_pictures_and_conditions_of_many_numbers_are_arrays(tmp_path: Path) -> None:
    from ddpm_deploy.bulk.files import Drawn, write_tar

    sample, goal = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float32)
    with (tmp_path / "x.tar").open("wb") as stream:
        write_tar(stream, [Drawn(7, 0, sample, {"goal": goal, "prompt": "a cup"})], (-1, 1))
    found = members(tmp_path)
    assert list(found) == ["000000007.goal.npy", "000000007.json", "000000007.npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(found["000000007.npy"])), sample)
    np.testing.assert_array_equal(np.load(io.BytesIO(found["000000007.goal.npy"])), goal)
    assert json.loads(found["000000007.json"]) == {"index": 7, "prompt": "a cup", "seed": 0}


def test_prompts_and_labels_of_files_are_taken_in_turn(sample, text_bundle: Path) -> None:
    Path("prompts.txt").write_text("a red circle\n\n  a blue cross \n")
    words = ["--prompt-file", "prompts.txt", "--num", "3", "--steps", "2"]
    assert main([str(text_bundle), "--shards", "set", *words]) == 0
    assert main([str(text_bundle), "--out", "x.npy", *words]) == 0
    with Sampler.load(text_bundle) as sampler:
        expected = sampler.sample(3, steps=2, prompt=["a red circle", "a blue cross", "a red circle"])
    np.testing.assert_array_equal(np.load("x.npy"), expected)
    np.testing.assert_array_equal(pictures("set"), to_uint8(expected))
    assert json.loads(members("set")["000000001.json"])["prompt"] == "a blue cross"


def test_conditions_of_an_array_have_a_row_for_each_sample(shards, guided_bundle: Path) -> None:
    Path("classes.txt").write_text("b\n2\n")
    np.save("y.npy", np.arange(NUM) % 3)
    np.save("short.npy", np.zeros(3, np.int64))
    assert shards("--shards", "rows", "--condition", "labels=y.npy")[0] == 0
    assert shards("--shards", "file", "--label-file", "classes.txt")[0] == 0
    expected = drawn(guided_bundle, condition={"labels": np.arange(NUM) % 3})
    np.testing.assert_array_equal(pictures("rows"), to_uint8(expected))
    expected = drawn(guided_bundle, condition={"labels": np.resize([1, 2], NUM)})
    np.testing.assert_array_equal(pictures("file"), to_uint8(expected))
    code, _, error = shards("--shards", "no", "--condition", "labels=short.npy")
    assert (code, "got shape (3,), expected 11 rows" in error) == (2, True)


# -- whatever the shards, the parts, and the batches ------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--shard-size", 3), ("--shard-size", 100), ("--batch-size", 2), ("--threads", 1)])
def test_a_picture_is_the_same_in_any_shard_and_batch(shards, words: tuple) -> None:
    assert shards("--shards", "one", "--solver", "ddpm")[0] == 0
    assert shards("--shards", "other", "--solver", "ddpm", *words)[0] == 0
    assert members("one") == members("other")


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_any_number_of_parts_makes_the_same_set(shards, parts: int) -> None:
    assert shards("--shards", "whole")[0] == 0
    for own in range(parts, 0, -1):
        assert shards("--shards", "parts", "--shard", f"{own}/{parts}")[0] == 0
    assert contents("parts") == contents("whole")


def test_every_shard_is_one_parts(guided_bundle: Path) -> None:
    with Sampler.load(guided_bundle) as sampler:
        order = Order(sampler.plan(steps=1), num=103, shard_size=10)
    assert (order.shards, len(order.positions(10))) == (11, 3)
    assert [order.samples_in(order.part(i, 3)) for i in (1, 2, 3)] == [
        sum(len(order.positions(shard)) for shard in order.part(i, 3)) for i in (1, 2, 3)
    ]
    for parts in range(1, 15):
        all_shards = [shard for own in range(parts) for shard in order.part(own + 1, parts)]
        assert sorted(all_shards) == list(range(11))


def test_two_who_draw_the_same_shards_at_once_do_no_harm(guided_bundle: Path, tmp_path: Path) -> None:
    folder = SetFolder(tmp_path / "set")
    with Sampler.load(guided_bundle, threads=1) as sampler:
        order = Order(sampler.plan(steps=2), num=24, shard_size=2)
        with ThreadPoolExecutor(4) as pool:
            for worker in [pool.submit(draw_set, sampler, order, folder, "sha256:0") for _ in range(4)]:
                assert worker.result() <= 24
        draw_set(sampler, order, alone := SetFolder(tmp_path / "alone"), "sha256:0")
    assert contents(folder.path) == contents(alone.path)


# -- going on ---------------------------------------------------------------------------------------------------------


def damage(folder: Path, how: str) -> None:
    shard = folder / "shard-000001.tar"
    beside = folder / "shard-000001.tar.json"
    if how == "the shard is missing":
        shard.unlink()
    elif how == "its file is missing":
        beside.unlink()
    elif how == "the shard is cut off":
        os.truncate(shard, 1000)
    elif how == "a bit is flipped":
        data = bytearray(shard.read_bytes())
        data[700] ^= 1
        shard.write_bytes(data)
    elif how == "its file is no JSON":
        beside.write_text("{")
    elif how == "its file is of another set":
        beside.write_text(json.dumps(json.loads(beside.read_text()) | {"set": "sha256:0"}))
    else:
        beside.write_text(json.dumps(json.loads(beside.read_text()) | {"samples": 3}))


DAMAGES = [
    ("the shard is missing", "shard-000001.tar is missing"),
    ("its file is missing", "shard-000001.tar.json is missing"),
    ("the shard is cut off", "shard-000001.tar has another hash"),
    ("a bit is flipped", "shard-000001.tar has another hash"),
    ("its file is no JSON", "shard-000001.tar.json is damaged"),
    ("its file is of another set", "shard-000001.tar belongs to another set"),
    ("it has other samples", "shard-000001.tar belongs to another set"),
]


@pytest.mark.parametrize(("how", "message"), DAMAGES, ids=[how for how, _ in DAMAGES])
def test_what_is_damaged_is_told_and_drawn_again(shards, how: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert shards("--shards", "set")[0] == 0
    before = contents("set")
    assert verified("set", capsys) == (0, "set: 11 samples in 3 shards, every byte as it was written\n")
    damage(Path("set"), how)
    code, out = verified("set", capsys)
    assert code == 1
    assert message in out
    assert "1 of 3 shards are to be drawn again" in out
    assert "4 of them drawn now" in shards("--shards", "set")[1]
    assert contents("set") == before
    assert "0 of them drawn now" in shards("--shards", "set")[1]


@pytest.mark.skipif(os.name == "nt", reason="no locks by which to tell the living from the dead")
def test_what_a_dead_writer_left_goes_away(shards) -> None:
    assert shards("--shards", "set")[0] == 0
    before = contents("set")
    damage(Path("set"), "its file is missing")
    for name in ("set.json", "shard-000001.tar", "shard-000001.tar.json"):
        Path(f"set/.{name}.0123.new").write_bytes(b"half")
    assert shards("--shards", "set")[0] == 0
    assert contents("set") == before


def test_an_error_or_ctrl_c_in_a_shard_leaves_whole_shards_only(
    guided_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = SetFolder(tmp_path / "set"), 0
    with Sampler.load(guided_bundle) as sampler:
        order, whole = Order(sampler.plan(steps=1), num=8, shard_size=4, batch_size=2), sampler.sample

        def interrupted(*args, **request):
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt
            return whole(*args, **request)

        monkeypatch.setattr(sampler, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw_set(sampler, order, folder, "sha256:0")
    assert sorted(contents(folder.path)) == ["set.json", "shard-000000.tar", "shard-000000.tar.json"]
    assert verify_set(folder).faults == ("shard-000001.tar.json is missing",)


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can tell there whether a writer is dead")
def test_what_the_dead_left_of_a_shard_that_is_there_goes_with_the_next_run(guided_bundle, tmp_path: Path) -> None:
    folder = SetFolder(tmp_path / "set")
    with Sampler.load(guided_bundle) as sampler:
        order = Order(sampler.plan(steps=1), num=4, shard_size=4, batch_size=4)
        draw_set(sampler, order, folder, "sha256:0")
        (folder.path / ".shard-000000.tar.0123456789abcdef.new").write_bytes(b"half")
        assert draw_set(sampler, order, folder, "sha256:0") == 0
    assert sorted(contents(folder.path)) == ["set.json", "shard-000000.tar", "shard-000000.tar.json"]


def test_ten_kills_at_random_moments_change_no_bit_and_lose_no_picture(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("kills forked processes: there is no fork here")
    command = [sys.executable, str(Path(__file__).with_name("shard_killer.py")), str(tmp_path / "soak"), "10"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.count("\nkill ") == 10
    assert "0 pictures differ or are missing" in done.stdout


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 1), "seed: 0 there, 1 asked for"),
        (("--num", 12), "num: 11 there, 12 asked for"),
        (("--start", 1), "start: 0 there, 1 asked for"),
        (("--steps", 4), "nfe: 3 there, 4 asked for; plan: sha256:"),
        (("--solver", "unipc"), "solver: ddim there, unipc asked for; plan: sha256:"),
        (("--spacing", "trailing"), "plan: sha256:"),
        (("--label", "a"), "condition labels: None there, sha256:"),
        (("--shard-size", 5), "shard_size: 4 there, 5 asked for"),
        (("--shard-format", "npz"), "shard_format: tar there, npz asked for"),
    ],
)
def test_a_set_is_not_mixed_with_another_and_the_difference_is_named(shards, words: tuple, message: str) -> None:
    assert shards("--shards", "set")[0] == 0
    before = contents("set")
    code, _, error = shards("--shards", "set", *words)
    assert code == 2
    assert f"set: holds another set of samples: {message}" in error
    assert "give another folder" in error
    assert contents("set") == before


def test_another_model_backend_precision_or_version_is_another_set(
    shards, guided_bundle: Path, labelled_bundle: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="the other backend")
    common = ["--shards", "set", "--num", str(NUM), "--steps", str(STEPS), "--shard-size", "4", "--label", "a"]
    assert shards(*common)[0] == 0
    for bundle, words, field in (
        (labelled_bundle, (), "bundle: sha256:"),
        (guided_bundle, ("--backend", "openvino"), "backend: onnxruntime there, openvino asked for; runtime: "),
        (guided_bundle, ("--backend", "torch"), "backend: onnxruntime there, torch asked for; runtime: "),
        (guided_bundle, ("--guidance", "2"), "guidance: 1.0 there, 2.0 asked for"),
    ):
        assert main([str(bundle), *common, *words]) == 2
        assert f"another set of samples: {field}" in capsys.readouterr().err
    identity = json.loads(Path("set/set.json").read_text())
    for field, was in (("runtime", "0.1"), ("precision", "int8"), ("device", "cuda")):
        Path("set/set.json").write_text(json.dumps(identity | {field: was}))
        code, _, error = shards(*common)
        assert (code, f"another set of samples: {field}: {was} there" in error) == (2, True)


def test_the_batch_size_is_part_of_a_set_only_where_it_can_change_a_picture(guided_bundle: Path) -> None:
    with Sampler.load(guided_bundle) as invariant, Sampler.load(guided_bundle, backend="torch") as other:
        order = Order(invariant.plan(steps=1), num=2, batch_size=16)
        assert order.identity("m", "d", invariant.backend)["batch_size"] is None
        assert order.identity("m", "d", other.backend)["batch_size"] == 16
        with pytest.raises(ValueError, match="backend: got auto"):
            order.identity("m", "d", AutoBackend({1: other.backend}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shards", "."), "holds empty.txt, which is no part of a set"),
        (("--shards", "set", "--num", 0), "num: got 0"),
        (("--shards", "set", "--shard-size", 0), "shard_size: got 0"),
        (("--shards", "set", "--batch-size", -1), "batch_size: got -1"),
        (("--shards", "set", "--seed", -1), "seed: got -1"),
        (("--shards", "set", "--start", 2**64 - 1), "start: got 18446744073709551615, expected 0 to"),
        (("--shards", "set", "--label", "a", "--label-file", "other.txt"), "--label: given together with --label-file"),
        (("--shards", "set", "--label-file", "empty.txt"), "empty.txt: got no line"),
        (("--shards", "set", "--label-file", "other.txt"), "label: got 'hello'"),
        (("--shards", "set", "--ray", "--ray-workers", 0), "--ray-workers: got 0, expected at least 1"),
        (("--shards", "set", "--backend", "auto"), "--backend auto: may take another for each batch"),
        (("--shards", "set", "--columns", 3), "--columns: means nothing beside --shards"),
        (("--shards", "set", "--x-T", "x.npy"), "--x-T: means nothing beside --shards"),
        (("--out", "x.png", "--shard-size", 3), "--shard-size: means nothing beside --out"),
        (("--out", "x.png", "--shard", "1/2"), "--shard: means nothing beside --out"),
        (("--shards", "set", "--verify"), "bundle: means nothing beside --verify"),
        (("--shards", "nothing", "--prompt", "a cat"), "prompt"),
    ],
)
def test_shards_that_cannot_be_meant_are_one_line_and_exit_code_2(
    sample, words: tuple, message: str, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("hello\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    code, out, error = sample("--steps", 2, *words) if "--verify" not in words else sample(*words)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert message in error


def test_verifying_no_set_or_a_broken_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def error() -> str:
        assert main(["--shards", str(tmp_path), "--verify"]) == 2
        return capsys.readouterr().err

    assert "holds no set of samples (set.json is missing)" in error()
    for text, message in (
        ("{", "not JSON"),
        ('{"format": 2}', "expected a set of format 1"),
        ('{"format": 1, "num": "many"}', "does not tell what shards there are"),
    ):
        (tmp_path / "set.json").write_text(text)
        assert message in error()


def test_the_command_that_writes_shards_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ddpm_deploy.sample import main\n"
        f"code = main(['--shards', {str(tmp_path / 'set')!r}, '--num', '3', '--steps', '2'])\n"
        "assert not {'torch', 'onnx', 'ray', 'fastapi'} & set(sys.modules), set(sys.modules)\nsys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=60)


def test_json_tells_what_was_done_and_found(shards, capsys: pytest.CaptureFixture) -> None:
    code, out, error = shards("--shards", "set", "--shard", "1/2", "--json")
    report = json.loads(out)
    assert (code, error) == (0, "")
    assert {name: report[name] for name in ("folder", "shards", "of", "samples", "drawn")} == {
        "folder": "set", "shards": 2, "of": 3, "samples": 7, "drawn": 7,
    }  # fmt: skip
    assert main(["--shards", "set", "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == ["shard-000001.tar.json is missing"]


def test_a_folder_is_another_sets_error_in_python_too(guided_bundle: Path, tmp_path: Path) -> None:
    with Sampler.load(guided_bundle) as sampler:
        plan = sampler.plan(steps=1)
        draw_set(sampler, Order(plan, num=1), SetFolder(tmp_path), "sha256:0")
        with pytest.raises(ShardError, match="bundle: sha256:0 there, sha256:1 asked for"):
            draw_set(sampler, Order(plan, num=1), SetFolder(tmp_path), "sha256:1")


def test_a_shard_is_of_the_set_that_was_claimed_whatever_is_there_by_now(tmp_path: Path) -> None:
    folder = SetFolder(tmp_path)
    folder.claim({"num": 1})
    claimed = folder.digest()
    (tmp_path / "set.json").unlink()
    SetFolder(tmp_path).claim({"num": 2})
    assert folder.digest() == claimed
    assert SetFolder(tmp_path).digest() != claimed


def test_without_links_who_is_first_has_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(new: Path, file: Path) -> None:
        if file.parent.name == "late":
            file.write_text(json.dumps({"format": 1, "num": 1}))  # somebody is faster
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr("ddpm_deploy.bulk.folder.SETTLE_S", 0.0)
    SetFolder(tmp_path / "early").claim({"num": 2})
    assert SetFolder(tmp_path / "early").identity() == {"num": 2}
    with pytest.raises(ShardError, match="num: 1 there, 2 asked for"):
        SetFolder(tmp_path / "late").claim({"num": 2})
    assert os.listdir(tmp_path / "late") == ["set.json"]
