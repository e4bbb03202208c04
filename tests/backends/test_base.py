"""What all backends share: the table, the choice of a file, the guards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.backends import available_backends, open_backend
from ddpm_deploy.backends.base import GuardedBackend, device_index
from ddpm_deploy.backends.signature import check_signature
from ddpm_deploy.bundle import Bundle, TensorSpec
from ddpm_deploy.errors import BackendError, BundleError

X = TensorSpec("x", ("B", 3), "float32")


class Roomy(GuardedBackend):
    """Has room for a batch of `room`."""

    name, room = "roomy", 4

    def __init__(self) -> None:
        how: dict[str, Any] = {
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
            "batch_invariant": True,
            "details": {},
        }
        super().__init__(object(), (X,), (X,), **how)

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(feeds["x"]) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"x": feeds["x"]}


def test_batch_without_room_is_told_with_the_largest_that_had_some() -> None:
    backend, x = Roomy(), np.zeros((9, 3), np.float32)
    with pytest.raises(BackendError, match=r"2\.00 GiB; a batch of 9 does not fit: draw fewer at a time"):
        backend.run({"x": x})
    for batch in (3, 2):
        backend.run({"x": x[:batch]})
    with pytest.raises(BackendError, match="of 8 does not fit, and one of 3 did: draw fewer at a time") as failed:
        backend.run({"x": x[:8]})
    assert "guided samples count twice" in str(failed.value)
    backend.room = 0
    with pytest.raises(BackendError, match="not even one sample fits: free memory, or use a lower precision"):
        backend.run({"x": x[:1]})


def test_every_backend_reports_whether_it_can_be_had() -> None:
    for name, found in available_backends().items():
        assert found.name == name
        if found.available:
            assert found.version
            assert ("cpu" in found.devices) != name.startswith("tensorrt")
            assert "fp32" in found.precisions
        else:
            assert found.reason
            assert found.remedy


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_backend_without_its_package_is_refused_with_the_command_that_mends_it(
    name: str, run_python: Callable[..., str]
) -> None:
    output = run_python(
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from ddpm_deploy.backends import available_backends, open_backend\n"
        "from ddpm_deploy.errors import BackendUnavailable\n"
        "print(available_backends()[sys.argv[1]])\n"
        "try:\n"
        "    open_backend(sys.argv[1], None)\n"
        "except BackendUnavailable as error:\n"
        "    print(error)\n",
        name,
    )
    found, message = output.splitlines()
    assert f"Availability(name='{name}', available=False, reason='import of {name} halted" in found
    assert message.startswith(f"backend '{name}': cannot be imported: import of {name} halted")
    assert message.endswith("]'")
    assert "; run pip install 'ddpm-deploy[" in message


def test_what_is_left_of_an_onnxruntime_is_reported_with_the_command_that_replaces_it(
    run_python: Callable[..., str],
) -> None:
    output = run_python(
        "import sys, types\n"
        "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
        "from ddpm_deploy.backends import available_backends, open_backend\n"
        "from ddpm_deploy.errors import BackendUnavailable\n"
        "found = available_backends()['onnxruntime']\n"
        "print(found.available, found.reason, found.remedy, sep='|')\n"
        "try:\n"
        "    open_backend('onnxruntime', None)\n"
        "except BackendUnavailable as error:\n"
        "    print(error)\n"
        "from ddpm_deploy.doctor import examine\n"
        "print([b['remedy'] for b in examine()['backends'] if b['name'] == 'onnxruntime'])\n"
    )
    found, message, diagnosis = output.splitlines()
    assert found.startswith("False|onnxruntime is only partly there")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in diagnosis
    assert "; run pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in message


def test_openvino_without_its_cpu_plugin_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from ddpm_deploy.backends import openvino

    class Bare:
        available_devices = ("CPU",)

        def get_property(self, *names: str) -> None:
            raise RuntimeError("Device with CPU name\nis not registered")

    monkeypatch.setattr(openvino, "_core", lambda pid: Bare())
    found = available_backends()["openvino"]
    assert (found.available, found.reason) == (False, "Device with CPU name is not registered")
    assert found.remedy == "pip install --force-reinstall openvino"


@pytest.mark.parametrize("config", [{"in_channels": 3, "block_out_channels": 32}, {"in_channels": "a" * 9}, {}])
def test_network_that_torch_cannot_build_is_a_bundle_error(bundle: Bundle, config: dict[str, object]) -> None:
    import dataclasses

    pytest.importorskip("torch")
    manifest = dataclasses.replace(bundle.manifest, network={"kind": "unet", "config": config})
    with pytest.raises(BundleError, match=r"bundle.json: network: cannot be built: UNetConfig: .*"):
        open_backend("torch", dataclasses.replace(bundle, manifest=manifest))


def test_sampling_path_with_onnxruntime_loads_neither_torch_nor_onnx(
    labelled_bundle: Path, run_python: Callable[..., str]
) -> None:
    pytest.importorskip("onnxruntime")
    output = run_python(
        "import sys\n"
        "import ddpm_deploy, ddpm_deploy.backends\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import numpy as np\n"
        "from ddpm_deploy.bundle import read_bundle\n"
        "with ddpm_deploy.backends.open_backend('onnxruntime', read_bundle(sys.argv[1])) as backend:\n"
        "    zeros = {'x': np.zeros((1, 3, 8, 8), np.float32), 't': np.zeros(1, np.float32)}\n"
        "    backend.run(zeros | {'labels': np.zeros(1, np.int64)})\n"
        "print(sorted(heavy & set(sys.modules)))\n",
        str(labelled_bundle),
    )
    assert output.splitlines() == ["[]", "['onnxruntime']"]


def test_unknown_backend_is_refused_with_the_choices(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="backend: got 'tvm', expected one of torch, onnxruntime, openvino, tensorrt"):
        open_backend("tvm", bundle)


def test_zero_threads_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="threads: got 0, expected 1 to 1024"):
        open_backend("onnxruntime", bundle, threads=0)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_precision_or_role_without_a_file_is_refused_naming_what_there_is(bundle: Bundle, name: str) -> None:
    pytest.importorskip(name)
    for wrong in ({"precision": "int8"}, {"role": "sampler"}):
        with pytest.raises(BundleError, match="denoiser fp32"):
            open_backend(name, bundle, **wrong)


def test_weights_changed_after_the_bundle_was_read_are_refused(
    labelled_bundle: Path, tmp_path: Path, bundle: Bundle
) -> None:
    import dataclasses
    import shutil

    shutil.copytree(labelled_bundle, tmp_path / "copy")
    copy = dataclasses.replace(bundle, root=tmp_path / "copy")
    for name, file in (("onnxruntime", "denoiser.fp32.onnx"), ("torch", "denoiser.fp32.torch.safetensors")):
        pytest.importorskip(name)
        path = copy.root / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError):
            open_backend(name, copy)


@pytest.mark.parametrize(("device", "index"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:11", 11)])
def test_device_names(device: str, index: int | None) -> None:
    assert device_index(device) == index


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cpu:0", ""])
def test_wrong_device_names_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:N'"):
        device_index(device)


def test_signature_ignores_order_and_names_of_free_axes() -> None:
    y = TensorSpec("y", (2,), "int64")
    check_signature("it", "inputs", [X, y], [y, TensorSpec("x", ("free", 3), "float32")])


@pytest.mark.parametrize(
    "actual",
    [
        TensorSpec("z", ("B", 3), "float32"),
        TensorSpec("x", ("B", 4), "float32"),
        TensorSpec("x", (1, 3), "float32"),
        TensorSpec("x", ("B", 3), "float16"),
        TensorSpec("x", ("B", 3, 1), "float32"),
    ],
)
def test_graph_that_does_not_fit_its_manifest_is_refused(actual: TensorSpec) -> None:
    with pytest.raises(BackendError, match=r"it: inputs of the graph: received .* expected x float32\[B, 3\]"):
        check_signature("it", "inputs", [X], [actual])
