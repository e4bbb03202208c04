"""Settings of the service: which source wins, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ddpm_deploy.serve.__main__ import build_parser, main
from ddpm_deploy.serve.settings import VARIABLES, shown


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text('port = 9000\nmax_n = 3\nbuckets = [1, 4]\notel = true\nhost = "0.0.0.0"\n')
    return path


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(file: Path) -> None:
    environment = {VARIABLES + "PORT": "9001", VARIABLES + "MAX_N": "4", "DDPM_DEPLOY_TOKEN": "not a setting"}
    settings = build_parser().settings({"port": 9002, "config": str(file)}, environment)
    found = {name: (setting.value, setting.origin) for name, setting in settings.items()}
    assert found["port"] == (9002, "flag")
    assert found["max_n"] == (4, VARIABLES + "MAX_N")
    assert found["buckets"] == ([1, 4], str(file))
    assert found["otel"] == (True, str(file))
    assert found["capacity"] == (256, "default")
    assert found["bundle"] == (None, "default")


def test_every_option_is_a_setting_but_those_about_settings() -> None:
    settings = build_parser().settings({}, {})
    flags = {action.dest for action in build_parser()._actions}
    assert flags - settings.keys() == {"help", "config", "print_config"}


def test_the_environment_may_name_the_file(file: Path) -> None:
    assert build_parser().settings({}, {VARIABLES + "CONFIG": str(file)})["port"].value == 9000


def test_a_flag_takes_back_what_the_file_turned_on(
    file: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLES + "LOG_FORMAT", "json")
    with pytest.raises(SystemExit) as ended:
        main(["some/bundle", "--config", str(file), "--no-otel", "--print-config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "otel = false " in printed
    assert f'log_format = "json"                      # {VARIABLES}LOG_FORMAT' in printed


def test_what_is_shown_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    settings = build_parser().settings({"threads": 2, "buckets": [1, 8]}, {})
    copy = tmp_path / "copy.toml"
    copy.write_text(shown(settings))
    again = build_parser().settings({"config": str(copy)}, {})
    assert {name: s.value for name, s in again.items()} == {name: s.value for name, s in settings.items()}
    assert tomllib.loads(copy.read_text())["threads"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-n = 3", "max-n: there is no such setting; did you mean max_n?"),
        ("prot = 3", "prot: there is no such setting; did you mean port?"),
        ("zzz = 3", "zzz: there is no such setting; known are bundle, host, port,"),
        ("config = 'other.toml'", "config: there is no such setting"),
        ("max_n = true", "max_n: got true, expected text or a number"),
        ("max_n = 2.5", "max_n: got 2.5, expected a whole number"),
        ("max_n = 'many'", "max_n: got 'many', expected a whole number"),
        ("otel = 3", "otel: got 3, expected true or false"),
        ("buckets = ['a']", "buckets: got 'a', expected whole numbers"),
        ("backend = 'cuda'", "backend: got 'cuda', expected one of torch, onnxruntime"),
        ("[host]\na = 1", 'host: got {"a": 1}, expected text or a number'),
        ("a = = 2", "Invalid value (at line 1, column 5)"),
        ("port = 2024-01-01", 'port: got "2024-01-01", expected text or a number'),
    ],
)
def test_a_wrong_setting_in_a_file_is_named_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(tmp_path / "bad.toml")])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"bad.toml: {message}" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PROT", "1", f"{VARIABLES}PROT: there is no such setting; did you mean {VARIABLES}PORT?"),
        ("PORT", "tcp://10.0.0.1:80", f"{VARIABLES}PORT: got 'tcp://10.0.0.1:80', expected a whole number"),
        ("OTEL", "maybe", f"{VARIABLES}OTEL: got 'maybe', expected true or false"),
        ("PORT", "70000", "port: got 70000, expected 0 to 65535"),
        ("CONFIG", "/none.toml", "/none.toml: No such file or directory"),
    ],
)
def test_a_wrong_variable_is_named(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(VARIABLES + variable, text)
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main([]))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
