"""Files that nobody should trust, and small sound ones to make them from."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 4, 4)
SAID = (
    "--schedule", "linear:T=20,beta_start=1e-3,beta_end=0.2", "--prediction", "eps",
    "--set", "source.output.scale=1.0", "--set", "source.output.offset=0.0", "--set", "source.output.units=none",
    "--quiet",
)  # fmt: skip
DIFFUSERS_CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "num_train_timesteps": 20,
}


class Attack:
    """Writes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def pickled(canary: Path) -> bytes:
    """A bare pickle that runs code; loading it with `pickle.loads` shows that it does."""
    return pickle.dumps({"conv_in.weight": Attack(canary)})


def torch_archive(value: Any) -> bytes:
    """What `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def object_array(canary: Path) -> bytes:
    """A `.npy` member of pickled objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Attack(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """A `.npy` file that announces an array and ends there."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def safetensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def diffusers_folder(folder: Path, weights: dict[str, bytes], **scheduler: Any) -> Path:
    """A folder that diffusers might have written, with any bytes as weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG))
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER_CONFIG | scheduler))
    for name, data in weights.items():
        (folder / name).write_bytes(data)
    return folder


def tiny_onnx() -> onnx.ModelProto:
    """A network: a 1x1 convolution of x plus the time."""
    weights = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3, 1, 1)
    nodes = [
        helper.make_node("Reshape", ["t", "column"], ["time_column"]),
        helper.make_node("Conv", ["x", "weights"], ["convolved"]),
        helper.make_node("Add", ["convolved", "time_column"], ["prediction"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("B", *SHAPE)),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ("B",)),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ("B", *SHAPE))],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "column"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_external(tensor: TensorProto, location: str, **entries: int | str) -> None:
    """Let a tensor say that its values lie elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
