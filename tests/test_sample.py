"""The `sample` command: what it writes, and what it says when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_deploy import Sampler
from ddpm_deploy.images import grid, to_uint8
from ddpm_deploy.sample import main


@pytest.fixture
def sample(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in an empty folder; gives exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(tiny_bundle), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def drawn(tiny_bundle: Path, n: int, **request: object) -> np.ndarray:
    with Sampler.load(tiny_bundle) as sampler:
        return sampler.sample(n, **request)


def test_an_array_holds_what_the_sampler_draws(sample, tiny_bundle: Path) -> None:
    code, _, _ = sample("--out", "x.npy", "--num", 3, "--solver", "ddpm", "--steps", 4, "--seed", 7)
    assert code == 0
    np.testing.assert_array_equal(np.load("x.npy"), drawn(tiny_bundle, 3, solver="ddpm", steps=4, seed=7))


def test_a_grid_shows_what_the_sampler_draws(sample, tiny_bundle: Path) -> None:
    code, out, _ = sample("--out", "new/folder/x.png", "--num", 4, "--steps", 3)
    assert code == 0
    assert "4 samples, ddim with 3 evaluations, onnxruntime fp32" in out
    np.testing.assert_array_equal(
        np.asarray(Image.open("new/folder/x.png")), np.asarray(grid(drawn(tiny_bundle, 4, steps=3)))
    )


def test_a_folder_gets_one_picture_each_numbered_from_start(sample, tiny_bundle: Path) -> None:
    assert sample("--out", "pictures", "--num", 2, "--steps", 3, "--start", 5)[0] == 0
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["000005.png", "000006.png"]
    expected = to_uint8(drawn(tiny_bundle, 2, steps=3, start=5))[1].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(Image.open("pictures/000006.png")), expected)


def test_an_animation_ends_in_the_picture(sample) -> None:
    assert sample("--out", "x.npy", "--animate", "x.gif", "--num", 4, "--steps", 5)[0] == 0
    assert sample("--out", "y.npy", "--num", 4, "--steps", 5)[0] == 0
    np.testing.assert_array_equal(np.load("x.npy"), np.load("y.npy"))
    with Image.open("x.gif") as animation:
        assert animation.n_frames == 5


def test_plan_noise_and_start_can_be_given_as_files(sample, tiny_bundle: Path) -> None:
    with Sampler.load(tiny_bundle) as sampler:
        plan = sampler.plan("ddpm", 3)
        rng = np.random.default_rng(0)
        x_T, noise = rng.normal(size=(2, 3, 8, 8)), rng.normal(size=(3, 2, 3, 8, 8))
        expected = sampler.sample(x_T=x_T, noise=noise, plan=plan)
    plan.save("plan.npz")
    np.save("x_T.npy", x_T)
    np.save("noise.npy", noise)
    assert sample("--out", "x.npy", "--plan", "plan.npz", "--x-T", "x_T.npy", "--noise", "noise.npy")[0] == 0
    np.testing.assert_array_equal(np.load("x.npy"), expected)


def test_options_reach_the_solver_and_the_plan_can_be_printed(sample) -> None:
    code, out, _ = sample("--out", "x.npy", "--solver", "ddim", "--steps", 3, "--option", "eta=0.5", "--print-plan")
    assert code == 0
    assert "ddim: 3 network evaluations, state x, noise in 2 rows" in out


def test_json_tells_what_was_done(sample) -> None:
    code, out, err = sample("--out", "x.npy", "--num", 2, "--steps", 3, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["written"], report["samples"], report["nfe"]) == (["x.npy"], 2, 3)


def test_conditions_come_from_files(labelled_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", np.array([0, 2]))
    common = [str(labelled_bundle), "--num", "2", "--steps", "3"]
    assert main([*common, "--out", "x.npy", "--condition", "labels=labels.npy"]) == 0
    with Sampler.load(labelled_bundle) as sampler:
        np.testing.assert_array_equal(np.load("x.npy"), sampler.sample(2, steps=3, condition={"labels": [0, 2]}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.jpeg"], "expected X.png, X.npy or a folder"),
        (["--out", "x.npy", "--num", "0"], "n: got 0"),
        (["--out", "x.npy", "--steps", "0"], "steps: got 0"),
        (["--out", "x.npy", "--option", "eta"], "--option: got 'eta', expected NAME=VALUE"),
        (["--out", "x.npy", "--option", "eta=3"], "eta: got 3"),
        (["--out", "x.npy", "--plan", "none.json"], "none.json: No such file"),
        (["--out", "x.npy", "--plan", "p.json", "--steps", "3"], "--plan: given together"),
        (["--out", "x.npy", "--x-T", "garbage.npy"], "garbage.npy: not a .npy file"),
        (["--out", "x.npy", "--precision", "int4"], "int4"),
        (["--out", "x.npy", "--device", "cuda:7"], "cuda"),
        (["--out", "x.npy", "--digest", "sha256:12"], "digest"),
        (["--out", "x.npy", "--animate", "x.mp4"], "expected X.gif"),
        (["--out", "x.png", "--scale", "-1"], "scale: got -1"),
        (["--out", "x.png", "--columns", "0"], "columns: got 0"),
        (["--out", "x.npy", "--option", "eta=abc", "--solver", "ddim"], "eta: got 'abc'"),
        (["--out", "x.npy", "--option", "steps=5"], "--option steps"),
        (["--out", "x.npy", "--option", "schedule=1"], "--option schedule"),
        (["--out", "x.npy", "--x-T", "broken.npy"], "broken.npy: not a .npy file"),
        (["--out", "x.npy", "--num", str(10**12)], "with --shards"),
        (["--out", "x.npy", "--num", "40", "--animate", "x.gif"], "--animate: shows one batch"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(sample, words: list, message: str) -> None:
    Path("garbage.npy").write_bytes(b"\x93NUMPY nonsense")
    Path("broken.npy").write_bytes(b"PK\x03\x04 broken archive")
    Path("p.json").write_text("{}")
    code, out, err = sample(*words)
    assert (code, out) == (2, "")
    assert err.startswith("ddpm-deploy sample: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_missing_bundle_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "x.png")]) == 2
    assert "nothing: no such bundle" in capsys.readouterr().err


@pytest.fixture
def guided(guided_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """As `sample`, on a bundle with the classes a, b and c and a null class."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(guided_bundle), "--out", "x.npy", "--steps", "3", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_an_empty_bundle_name_is_not_the_default_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["", "--out", "x.npy"]) == 2
    assert "holds no bundle.json" in capsys.readouterr().err
    assert not Path("x.npy").exists()


@pytest.mark.parametrize(
    ("text", "labels"), [("b", [1] * 4), ("1", [1] * 4), ("c, a,b", [2, 0, 1, 2]), ("none,2", [3, 2, 3, 2])]
)
def test_labels_are_named_or_numbered_and_spread_over_the_samples(
    guided, guided_bundle: Path, text: str, labels: list[int]
) -> None:
    assert guided("--num", 4, "--label", text)[0] == 0
    condition = {"labels": np.array(labels)}
    np.testing.assert_array_equal(np.load("x.npy"), drawn(guided_bundle, 4, steps=3, condition=condition))


def test_guidance_and_its_interval_reach_the_sampler(guided, guided_bundle: Path) -> None:
    assert guided("--num", 2, "--label", "c", "--guidance", 3, "--guidance-interval", "20,80")[0] == 0
    request = {"condition": {"labels": 2}, "guidance": 3.0, "guidance_interval": (20, 80)}
    np.testing.assert_array_equal(np.load("x.npy"), drawn(guided_bundle, 2, steps=3, **request))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "d"], "label: got 'd', expected one of a, b, c, or a number from 0 to 2"),
        (["--label", "3"], "label: got '3', expected one of a, b, c"),
        (["--guidance", "2"], "guidance: got a weight, but no condition"),
        (["--label", "a", "--condition", "labels=y.npy"], "--label: given together with --condition labels"),
        (["--label", "a", "--guidance-interval", "1,2"], "guidance_interval: given beside a guidance of 1"),
    ],
)
def test_steering_that_cannot_be_meant_exits_2(guided, words: list[str], message: str) -> None:
    np.save("y.npy", np.zeros(16, np.int64))
    code, _, error = guided(*words)
    assert code == 2
    assert message in error


def test_a_label_for_a_bundle_without_classes_exits_2(sample) -> None:
    code, _, error = sample("--out", "x.npy", "--label", 7)
    assert code == 2
    assert "label: got '7', but the model has no classes to choose from; its conditions: none" in error


def test_an_interval_that_is_none_is_refused_by_the_parser(guided, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        guided("--guidance-interval", "20")
    assert "got '20', expected LOW,HIGH, such as 100,800" in capsys.readouterr().err
