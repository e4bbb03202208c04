"""Digits with nothing but ONNX Runtime: `python examples/onnxruntime_only.py [SAMPLER] [PICTURE]`.

The file holds the whole reverse loop and a default plan, so one call makes pictures from noise and labels. (A default
plan that draws noise, as DDPM does, needs that as an input too.)
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SAMPLER = Path(__file__).parents[1] / "ddpm_deploy/assets/digits/sampler.fp32.onnxruntime-cpu.onnx"
ROWS = 12  # of the plan in the file


def main(sampler: str | Path = SAMPLER, picture: str = "digits.png") -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(sampler, options)
    _, *shape = session.get_inputs()[0].shape
    x_T = np.random.default_rng(0).standard_normal((10, *shape), np.float32)
    labels = np.arange(10)  # a digit each
    guidance = np.full((ROWS, 1), 2, np.float32)  # may be left out: then it is 1, the labels as they are
    feeds = {"x_T": x_T, "labels": labels, "guidance": guidance}
    (samples,) = session.run(["samples"], feeds)  # (10, 1, 8, 8), from -1 to 1
    pixels = np.uint8(127.5 * (1 + samples.clip(-1, 1)) + 0.5)
    Image.fromarray(np.hstack(pixels[:, 0]).repeat(8, 0).repeat(8, 1)).save(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
