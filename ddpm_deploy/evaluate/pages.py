"""An evaluation's files: `evaluation.json` for programs, `report.html` and `report.md` for people, the pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bench.report.html import page_to_html
from ddpm_deploy.bench.report.markdown import page_to_markdown
from ddpm_deploy.evaluate.data import RealData
from ddpm_deploy.evaluate.manifold import nearest
from ddpm_deploy.evaluate.record import Evaluation
from ddpm_deploy.evaluate.sections import page
from ddpm_deploy.images import NETWORK_RANGE, grid, is_picture

JSON, HTML, MARKDOWN = "evaluation.json", "report.html", "report.md"
SHOWN, COLUMNS, PAIRS = 64, 16, 16

Array = NDArray[Any]


def write_all(found: Evaluation, out: Path) -> list[Path]:
    """Write everything into a folder, and say where."""
    out.mkdir(parents=True, exist_ok=True)
    whole = page(found)
    files = {JSON: json.dumps(found.to_dict(), indent=1), HTML: page_to_html(whole), MARKDOWN: page_to_markdown(whole)}
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    for name, png in found.pictures.items():
        (out / name).write_bytes(png)
    return [out / name for name in (*files, *found.pictures)]


def pictures_of(samples: Array, data: RealData, bounds: tuple[float, float] | None) -> Mapping[str, bytes]:
    """Grids of samples, of real ones, and of the samples nearest to a known one; none where they are no pictures."""
    if not is_picture(samples.shape[1:]):
        return {}
    distances, which = nearest(samples, data.known.x)
    closest = np.argsort(distances)[:PAIRS]
    pairs = np.concatenate([samples[closest], data.known.x[which[closest]]])
    grids = {
        "samples.png": (samples[:SHOWN], COLUMNS),
        "real.png": (data.held_out.x[:SHOWN], COLUMNS),
        "nearest.png": (pairs, len(closest)),
    }
    return {name: _png(shown, columns, bounds or NETWORK_RANGE) for name, (shown, columns) in grids.items()}


def _png(samples: Array, columns: int, bounds: tuple[float, float]) -> bytes:
    stream = io.BytesIO()
    grid(samples, bounds=bounds, columns=columns).save(stream, format="png")
    return stream.getvalue()
