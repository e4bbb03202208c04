"""What pictures are compared by: the features of a network that the user gives, or of one trained here.

Only figures by the same features can be compared. Those of a classifier trained here are no FID, and are never called
so.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.evaluate.data import RealData
from ddpm_deploy.images import is_picture, to_uint8

HIDDEN = (128, 64)
COMPONENTS = 64
SCENE_STEPS = 1200  # of training the judge of rendered shapes
BATCH = 64
RGB = 3
ENDINGS = (".onnx", ".pt", ".pth", ".ts", ".torchscript")

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Features:
    """compute: (n, *S) in network range -> (n, D). name: what they are, for every figure made with them.

    classify: (n, *S) -> (n,) classes or (n, k) facts, or None. accuracy: of `classify` on the real samples held out.
    """

    name: str
    compute: Callable[[Array], Array]
    classify: Callable[[Array], Array] | None = None
    accuracy: float | None = None

    def of(self, samples: Array) -> Array:
        """(n, D) float64, computed in batches."""
        return _in_batches(self.compute, samples)


def open_features(data: RealData, file: Path | None = None, seed: int = 0) -> Features:
    """Those of a file, or of a classifier of such samples, or, where nothing says what they show, of their pixels."""
    judge = _classifier(data, seed)
    if file is None:
        return judge or principal_components(data)
    given = load_features(file, data.known.x.shape[1:])
    return given if judge is None else Features(given.name, given.compute, judge.classify, judge.accuracy)


def right(found: Array, asked: Array) -> float:
    """The part of the classes or facts asked for that is found, those left out that are not asked for."""
    counted = asked >= 0
    return float(np.mean((found == asked)[counted]))


def _classifier(data: RealData, seed: int) -> Features | None:
    if data.known.facts is not None:
        return judge_of_scenes(data, seed)
    return None if data.known.labels is None else train_classifier(data, seed)


def judge_of_scenes(data: RealData, seed: int = 0) -> Features:
    """The last hidden layer of the judge of rendered shapes, which is trained here on scenes of all combinations.

    All features are divided by one number, so that their mean variance over the known samples is 1: nothing else holds
    the scale of that layer, and distances depend on it.
    """
    from ddpm_deploy.shapes.judge import BATCH as SCENES  # needs torch
    from ddpm_deploy.shapes.judge import SceneJudge

    judge, held = SceneJudge(seed, SCENE_STEPS), data.held_out
    raw = _in_batches(judge.features, data.known.x)
    spread = float(np.sqrt(raw.var(axis=0).mean())) or 1.0
    accuracy = None if held.facts is None else right(judge.read(held.x), held.facts)
    about = f"{SCENE_STEPS * SCENES} scenes{_sure(accuracy)}"
    size = raw.shape[1]
    name = f"{size} features of a classifier trained here on rendered shapes ({about}), scaled to mean variance 1"
    return Features(name, lambda samples: judge.features(samples) / spread, judge.read, accuracy)


def train_classifier(data: RealData, seed: int = 0) -> Features:
    """The last hidden layer of a small classifier, trained here on the known samples and their labels."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    labels, known = data.known.labels, _flat(data.known.x)
    network = MLPClassifier(HIDDEN, alpha=1.0, max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(known, labels)

    def compute(samples: Array) -> Array:
        hidden = _flat(samples)
        for weights, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weights + bias, 0)
        return hidden

    def classify(samples: Array) -> Array:
        return np.asarray(network.predict(_flat(samples)))

    held = data.held_out
    accuracy = None if held.labels is None else right(classify(held.x), held.labels)
    about = f"{len(known)} samples{_sure(accuracy)}"
    name = f"{HIDDEN[-1]} features of a classifier trained here on {data.name} ({about})"
    return Features(name, compute, classify, accuracy)


def _sure(accuracy: float | None) -> str:
    return "" if accuracy is None else f", {accuracy:.1%} right on those held out"


def principal_components(data: RealData) -> Features:
    """For samples without labels: their pixels, along the directions in which the known ones vary most."""
    known = _flat(data.known.x)
    mean = known.mean(axis=0)
    _, _, directions = np.linalg.svd(known - mean, full_matrices=False)
    kept = directions[:COMPONENTS].T
    name = f"{kept.shape[1]} principal components of the pixels of {data.name}"
    return Features(name, lambda samples: (_flat(samples) - mean) @ kept)


def load_features(path: Path, shape: tuple[int, ...]) -> Features:
    """A network in an ONNX or TorchScript file: takes RGB pictures (n, 3, H, W) from 0 to 255, gives (n, D).

    A grey picture is given three times; sizes that the graph fixes are resized to. Nothing is ever downloaded.
    """
    if not is_picture(shape):
        raise ValueError(f"--features: takes pictures, but the samples have shape {shape}; leave it out")
    if path.suffix not in ENDINGS:
        raise ValueError(f"--features: got {path}, expected a file ending in {', '.join(ENDINGS)}")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    run, size = (_onnx if path.suffix == ".onnx" else _torchscript)(data)

    def compute(samples: Array) -> Array:
        found = np.asarray(run(_rgb(samples, size)))
        if found.ndim == 4 and found.shape[2:] == (1, 1):
            found = found[:, :, 0, 0]
        if found.ndim != 2 or len(found) != len(samples):
            raise ValueError(f"{path}: got features of shape {found.shape}, expected ({len(samples)}, D)")
        return found

    return Features(f"{path.name}, sha256 {digest}", compute)


def _onnx(data: bytes) -> tuple[Callable[[Array], Array], tuple[int, int] | None]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    fixed = all(isinstance(axis, int) for axis in first.shape[2:])
    dtype = np.uint8 if first.type == "tensor(uint8)" else np.float32
    size = tuple(first.shape[2:]) if fixed else None
    return lambda x: session.run(None, {first.name: x.astype(dtype)})[0], size


def _torchscript(data: bytes) -> tuple[Callable[[Array], Array], None]:
    import io

    import torch

    network = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    names = [argument.name for argument in network.forward.schema.arguments]
    extra = {"return_features": True} if "return_features" in names else {}

    def run(x: Array) -> Array:
        with torch.inference_mode():
            found: Array = network(torch.from_numpy(x), **extra).numpy()
        return found

    return run, None


def _rgb(samples: Array, size: tuple[int, int] | None) -> Array:
    """(n, 3, H, W) float32 from 0 to 255, whole numbers unless resized."""
    pixels = to_uint8(samples)[:, :RGB]
    pixels = pixels.repeat(RGB // pixels.shape[1], axis=1)
    if size is not None and pixels.shape[2:] != size:
        from PIL import Image

        pictures = [Image.fromarray(np.moveaxis(p, 0, -1)).resize(size[::-1], Image.Resampling.BICUBIC) for p in pixels]
        pixels = np.stack([np.moveaxis(np.asarray(picture), -1, 0) for picture in pictures])
    return pixels.astype(np.float32)


def _in_batches(compute: Callable[[Array], Array], samples: Array) -> Array:
    parts = [compute(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def _flat(samples: Array) -> Array:
    return samples.reshape(len(samples), -1).astype(np.float64)
