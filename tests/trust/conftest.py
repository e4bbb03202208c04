"""One way to run a command on what nobody should trust, and to see that it was refused in the right manner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exports from torch")
pytest.importorskip("onnx", reason="writes ONNX")
pytest.importorskip("onnxruntime", reason="every export is checked with ONNX Runtime")

Main = Callable[[Sequence[str]], int]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What hostile files would write."""
    return tmp_path / "canary"


@pytest.fixture
def refused(tmp_path: Path, canary: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with exit code 2 and one line, with nothing written and no code run; the line."""

    def run(main: Main, *arguments: Any, out: str | None = "out") -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        written = [] if out is None else ["--out", str(tmp_path / out)]
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default", UserWarning)
            try:
                code = main([*map(str, arguments), *written])
            except SystemExit as end:  # argparse
                code = end.code
        streams = capfd.readouterr()
        assert (code, streams.out) == (2, "")
        assert streams.err.count("\n") == 1, streams.err
        assert "Traceback" not in streams.err
        assert not warned, [str(warning.message) for warning in warned]
        assert not canary.exists()
        assert sorted(tmp_path.rglob("*")) == before
        return streams.err

    return run
