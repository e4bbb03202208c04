"""What writes docs/quality.md, on figures that were made up, and how two plans are compared."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ddpm_deploy.evaluate.figures import Figures
from ddpm_deploy.evaluate.pareto import Trial

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("bits", "samples", "shapes", "guidance", "front", "tuned digits", "tuned shapes")
FIGURES = asdict(Figures(10, 0.5, 0.01, 0.1, 0.01, 0.2, 0.01, 0.8, 0.7, 2.0, 1.0, 0.9))


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))


@pytest.fixture
def page(docs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, Path]:
    module = importlib.import_module("make_quality")
    path = tmp_path / "quality.md"
    path.write_text("\n\n".join(f"before\n\n<!-- {name} -->\n\nold\n\n<!-- end -->" for name in NAMES))
    (tmp_path / "img").mkdir()
    monkeypatch.setattr(module, "PAGE", path)
    monkeypatch.setattr(module, "IMAGES", tmp_path / "img")
    monkeypatch.setattr("sys.argv", ["make_quality.py", str(tmp_path)])
    return module, path


def evaluation() -> dict:
    bits = {
        "value": 3.7, "standard_error": 0.1, "samples": 4, "parts": {"L_T": 1e-5, "L_1": 3.7, "L_0": 1e-9},
        "t": [9.0, 5.0, 0.0], "terms": [0.7, 3.0, 1e-9],
    }  # fmt: skip
    runtime = {"runtime": "onnxruntime fp32", "bits_per_dim": bits, "bits_per_dim_difference": None, "samples": FIGURES}
    apart = {"value": -2e-6, "standard_error": 1e-6}
    guided = [{"guidance": w, **FIGURES, "class_accuracy": share} for w, share in ((0, 0.1), (2, 0.98), (5, 0.95))]
    trials = [Trial("ddpm", "all", 1000, 1000, 0.5, 0.02, 0.1), Trial("unipc", "tuned", 6, 6, 0.51, 0.02, 1e-3, (9, 1))]
    return {
        "about": {"features": "64 features", "threads": 2, "bound": 64},
        "real": FIGURES,
        "runtimes": [runtime, {**runtime, "runtime": "torch fp32", "bits_per_dim_difference": apart}],
        "guided": guided,
        "study": {"trials": [asdict(trial) for trial in trials]},
    }


def plans() -> dict:
    near = {"tuned": 0.05, "best": 0.08, "rival": "quadratic", "error": 0.001}
    real = {"tuned": 0.4, "best": 0.41, "rival": "trailing", "error": 0.01}
    contest = {"solver": "unipc", "nfe": 6, "timesteps": [999.0, 20.5], "near": near, "real": real}
    return {"guidance": 1.0, "near": 100, "samples": 400, "taught": 64, "contests": [contest]}


def write(folder: Path, name: str, found: dict) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))


def test_every_block_is_filled_from_what_was_measured(page, tmp_path):
    module, path = page
    for name in ("digits", "shapes", "study"):
        write(tmp_path, f"{name}/evaluation.json", evaluation())
    for name in ("digits", "shapes"):
        write(tmp_path, f"plans/{name}.json", plans())
    module.main()
    text = path.read_text()
    assert "old" not in text
    assert text.count("before") == text.count("<!-- end -->") == len(NAMES)
    assert "-2.0e-06 ± 1e-06" in text
    assert "| **2** | 98.0% |" in text
    assert "| unipc, tuned | 6 |" in text.replace("*", "")
    assert "1 of 1 to the fine solution, 0 of 1 to real ones" in text
    assert {each.name for each in (tmp_path / "img").iterdir()} == {
        "quality_bound.png", "quality_guidance.png", "quality_study.png",
    }  # fmt: skip


def test_what_was_not_measured_is_left_as_it_was_and_told(page, tmp_path, capsys):
    module, path = page
    write(tmp_path, "plans/digits.json", plans())
    module.main()
    assert path.read_text().count("old") == len(NAMES) - 1
    told = capsys.readouterr().out
    assert "left as it was: shapes, as there is no" in told
    assert "tuned_digits" not in told


def test_the_page_has_every_mark(docs):
    module = importlib.import_module("make_quality")
    for name in NAMES:
        assert "new" in module.filled(module.PAGE.read_text(encoding="utf-8"), name, "new")
    with pytest.raises(SystemExit, match="has no <!-- other -->"):
        module.filled("nothing", "other", "new")


def test_a_tuned_plan_is_compared_with_the_best_of_the_others_sample_by_sample(docs):
    compared = importlib.import_module("tuned_plans").compared
    shared = np.random.default_rng(0).normal(10, 5, (400, 1))
    small = np.random.default_rng(1).normal(0, 0.1, (400, 1))
    values = {"tuned": shared, "trailing": shared + 0.2 + small, "logsnr": shared + 3}
    found = compared(values, lambda each: float(each.mean()))
    assert found.rival == "trailing"
    assert found.best - found.tuned == pytest.approx(0.2, abs=0.02)
    assert found.error == pytest.approx(0.1 / 20, rel=0.4), "what they share is not part of the error"
    assert found.sigmas > 20
