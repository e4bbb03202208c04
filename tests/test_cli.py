"""What all commands have in common."""

from __future__ import annotations

import pytest

from ddpm_deploy.cli import make_parser, run_command


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
