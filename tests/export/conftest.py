"""One export for all tests of this folder: the first in a process takes a dozen seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="exports from torch")
pytest.importorskip("onnx", reason="writes ONNX")
pytest.importorskip("onnxruntime", reason="every export is checked with ONNX Runtime")


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """What `export_module` is told of the labelled network."""
    from ddpm_deploy.bundle import Condition, OutputAffine
    from ddpm_deploy.schedule import NoiseSchedule

    return {
        "sample_shape": (3, 8, 8),
        "schedule": NoiseSchedule.linear(40, 1e-3, 0.2),
        "output": OutputAffine((127.5,), (127.5,), "8-bit"),
        "clip": (-1.0, 1.0),
        "conditions": (Condition("labels", (), "int64", ("a", "b", "c")),),
        "name": "labelled",
        "licence": "Apache-2.0",
        "provenance": {"weights": "random"},
    }


@pytest.fixture(scope="session")
def labelled() -> Any:
    """A U-Net with three classes, in train mode, as a trainer would leave it."""
    from ddpm_deploy.model import UNet, UNetConfig

    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_groups=4,
        dropout=0.5,
        num_classes=3,
    )
    network = UNet(config).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)  # none is 0 or 1, which the exporter might fold away
    return network


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, labelled: Any, settings: dict[str, Any]) -> Path:
    """The bundle of `labelled`."""
    from ddpm_deploy.export import export_module

    out = tmp_path_factory.mktemp("exported") / "bundle"
    export_module(labelled, out, spec=labelled.spec(), **settings)
    return out
