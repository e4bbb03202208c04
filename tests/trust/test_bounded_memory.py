"""Files of a few megabytes that would fill the machine: refused for what they are, within a bound of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MORE_MIB = 384

BOMBS = r"""
import contextlib, io, json, os, resource, sys, zipfile
from pathlib import Path

import hostile as h
import torch
from onnx import TensorProto

import ddpm_deploy.export.api
from ddpm_deploy.export.__main__ import main as export
from ddpm_deploy.sample import main as sample

folder, more_mib = Path(sys.argv[1]), int(sys.argv[2])


def deflated(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (head, mib) in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(head)
                for _ in range(mib):
                    member.write(bytes(2**20))
    return path


legacy = io.BytesIO()
torch.save({"w": torch.zeros(4)}, legacy, _use_new_zipfile_serialization=False)
(folder / "legacy.pt").write_bytes(legacy.getvalue().replace(b"K\x04", b"\x8a\x06" + (2**40).to_bytes(6, "little")))
model = h.tiny_onnx()
with open(folder / "w", "wb") as hole:
    hole.truncate(2**25)
for i in range(64):
    tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[2**23])
    h.make_external(tensor, "w", offset=0, length=2**25)
    model.graph.initializer.append(tensor)
(folder / "m.onnx").write_bytes(model.SerializeToString())
(folder / "zero.json").symlink_to("/dev/zero")
(folder / "zero.toml").symlink_to("/dev/zero")
giant = h.safetensors({"w": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}})
h.diffusers_folder(folder / "giant", {"diffusion_pytorch_model.safetensors": giant})
CASES = {
    "plan.npz": (sample, "--plan", deflated(folder / "plan.npz", {"t.npy": (h.npy_header((2**26,), "<f8"), 512)})),
    "x_T.npy": (sample, "--x-T", deflated(folder / "x_T.npy", {"t.npy": (h.npy_header((2**26,), "<f8"), 512)})),
    "zero.json": (sample, "--plan", folder / "zero.json"),
    "zero.toml": (export, "--recipe", folder / "zero.toml"),
    "bomb.pt": (export, deflated(folder / "bomb.pt", {"archive/data.pkl": (b"", 1), "archive/data/0": (b"", 512)})),
    "legacy.pt": (export, folder / "legacy.pt"),
    "m.onnx": (export, folder / "m.onnx", *h.SAID),
    "giant": (export, folder / "giant"),
}
size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + more_mib * 2**20,) * 2)
for name, (main, *arguments) in CASES.items():
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main([*map(str, arguments), "--out", str(folder / "out.npy")])
    print(json.dumps([name, code, error.getvalue()]))
"""

MESSAGES = {
    "plan.npz": "unpacks to 536871040 bytes, expected at most 67108864",
    "x_T.npy": "not a .npy file of numbers (it is an archive)",
    "zero.json": "got more than 67108864 bytes; it is no plan file",
    "zero.toml": "is larger than 1048576 bytes; it is no recipe",
    "bomb.pt": "is compressed, which torch.save never does",
    "legacy.pt": "is no whole torch checkpoint",
    "m.onnx": "its tensors take 67108864 bytes of 33554432, so they overlap",
    "giant": "is no whole safetensors file",
}


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space: Linux only")
def test_bombs_are_refused_for_what_they_are_within_384_mib(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BOMBS, str(tmp_path), str(MORE_MIB)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in results] == list(MESSAGES)
    for name, code, line in results:
        assert (code, line.count("\n")) == (2, 1), line
        assert MESSAGES[name] in line
    assert not (tmp_path / "out.npy").exists()
