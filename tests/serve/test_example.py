"""The example of the engine runs, and its pictures are those of the sampler alone."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_draws_as_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    importlib.import_module("embed_engine").main()
    printed = capsys.readouterr().out
    assert "24 pictures, the same as alone" in printed
    assert "through step 50" in printed
    assert "ask again after 0.0 s" not in printed
