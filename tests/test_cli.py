"""What all commands have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_deploy.cli import PIPE_CLOSED, main, make_parser, run_command


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 GB"),
    RuntimeError("CUDA error: out of memory"), RuntimeError("std::bad_alloc"),
])  # fmt: skip
def test_too_little_memory_is_one_line_in_the_words_of_every_runtime(error, capsys):
    def run() -> None:
        raise error

    assert run_command(make_parser("sample", ""), run, []) == 2
    assert capsys.readouterr().err == "ddpm-deploy sample: error: not enough memory for this; ask for less at once\n"


def test_a_fault_of_the_program_is_no_lack_of_memory():
    def run() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        run_command(make_parser("sample", ""), run, [])


@pytest.mark.parametrize(("command", "extras"), [("serve", "cpu,serve"), ("train", "train"), ("sample", "cpu")])
def test_a_package_that_is_missing_comes_with_what_the_command_needs(command, extras, capsys):
    def run() -> None:
        raise ImportError("No module named 'x'")

    assert run_command(make_parser(command, ""), run, []) == 2
    said = f"ddpm-deploy {command}: error: No module named 'x'; pip install 'ddpm-deploy[{extras}]'\n"
    assert capsys.readouterr().err == said


def test_help_shows_the_defaults_that_there_are():
    parser = make_parser("sample", "")
    parser.add_argument("--zero", type=int, default=0, help="a number")
    parser.add_argument("--none", help="what is not set")
    parser.add_argument("--several", action="append", default=[], help="a list")
    parser.add_argument("--flag", action="store_true", help="a switch")
    text = parser.format_help()
    assert "a number (default: 0)" in text
    assert text.count("default") == 1


def test_a_command_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["smaple"])
    said = capsys.readouterr().err
    assert said.startswith("ddpm-deploy: error: argument NAME: invalid choice: 'smaple'")
    assert said.count("\n") == 1


def test_a_closed_pipe_ends_a_command_in_silence(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ddpm_deploy", "sample", "--num", "1", "--steps", "1", "--out", tmp_path / "x.npy"]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, b"")
    assert (tmp_path / "x.npy").exists()
