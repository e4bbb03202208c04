"""The models of a run: weights that torch reads at once, and graphs for those runtimes alone that are installed here.

The benchmarks' own bundles hold a graph for every runtime and precision, whose export takes most of the time of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.models import KEPT, NETWORKS, SEED, Model, unlabelled
from ddpm_deploy import __version__
from ddpm_deploy.backends import available_backends
from ddpm_deploy.bundle import (
    Bundle,
    Defaults,
    Manifest,
    ModelFile,
    ModelInfo,
    OutputAffine,
    TensorSpec,
    default_bundle,
    read_bundle,
    write_bundle,
)
from ddpm_deploy.schedule import NoiseSchedule

WEIGHTS = "denoiser.fp32.torch.safetensors"
SAID = ("sample_shape", "schedule", "output", "prediction", "variance", "clip", "conditions", "defaults")
GRAPHS = ("denoiser", "step")
EXPORTED = ("fp32", "fp16", "bf16")
ENGINES = ("tensorrt", "tensorrt-rtx")

Say = Callable[[str], object]


def torch_model(name: str, folder: Path) -> Model:
    """The model without graphs; what has to be made of it goes into `folder`."""
    if name == "digits":
        return Model(name, _without_labels(folder / name), True, "trained on scikit-learn's digits")
    return Model(name, _random(name, folder), False, f"architecture of Ho et al. 2020, random weights of seed {SEED}")


def with_graphs(model: Model, precisions: tuple[str, ...], say: Say) -> Model:
    """The same with graphs for the GPU runtimes of this machine, made once and kept; as it is where there are none."""
    targets = gpu_targets()
    if not targets:
        return model
    chosen = exported(targets, precisions)
    folder = KEPT / f"gpu-{model.name}-{_key(model.bundle.digest, targets, chosen)}"
    if not folder.exists():
        say(f"exporting {model.name} for {', '.join(targets)} in {', '.join(chosen)}")
        KEPT.mkdir(exist_ok=True)
        _export(model, folder, targets, chosen)
    return Model(model.name, read_bundle(folder), model.trained, model.note)


def gpu_targets() -> tuple[str, ...]:
    """What graphs can be written for here and then run."""
    found = available_backends()
    targets = ("onnxruntime-cuda",) if "cuda" in found["onnxruntime"].devices else ()
    engines = any(found[name].available for name in ENGINES if name in found)
    return (*targets, "tensorrt") if engines else targets


def exported(targets: tuple[str, ...], precisions: tuple[str, ...]) -> tuple[str, ...]:
    """What graphs are written in: fp32 in any case, which tf32 reads too, and bf16 for engines only."""
    wanted = [name for name in EXPORTED if name in precisions or name == "fp32"]
    return tuple(name for name in wanted if name != "bf16" or "tensorrt" in targets)


def network_of(bundle: Bundle) -> Any:
    """The bundle's own module with its float32 weights, in eval mode."""
    from safetensors.torch import load

    from ddpm_deploy.model import build_network

    assert bundle.manifest.network is not None
    network = build_network(bundle.manifest.network)
    network.load_state_dict(load(bundle.open_bytes(bundle.file("denoiser", "fp32", "torch"))))
    return network.eval().requires_grad_(False)


def _without_labels(folder: Path) -> Bundle:
    """The packaged digits model as diffusers' unconditional pipelines can draw it."""
    from ddpm_deploy.export import export_module
    from ddpm_deploy.export.options import Options

    packaged = read_bundle(default_bundle())
    network = unlabelled(network_of(packaged))
    said: Any = {name: getattr(packaged.manifest, name) for name in SAID if name != "conditions"}
    options = Options(graphs=("denoiser",), batches=(1,), parity_timesteps=2)
    export_module(network, folder, **said, name="digits", spec=network.spec(), options=options)
    return read_bundle(folder)


def _saved(network: Any) -> bytes:
    import safetensors.torch

    weights = {key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}
    data: bytes = safetensors.torch.save(weights)
    return data


def _random(name: str, folder: Path) -> Bundle:
    """Random weights as torch draws them from the seed."""
    import torch

    from ddpm_deploy.model import UNet

    config, size, variance = NETWORKS[name]
    torch.manual_seed(SEED)
    network = UNet(config()).eval()
    manifest = _manifest(name, network.spec(), size, variance)
    return write_bundle(folder / name, manifest, {WEIGHTS: _saved(network)})


def _manifest(name: str, spec: Any, size: int, variance: str) -> Manifest:
    picture = ("B", 3, size, size)
    inputs = (TensorSpec("x", picture, "float32"), TensorSpec("t", ("B",), "float32"))
    outputs = (TensorSpec("prediction", picture, "float32"),)
    return Manifest(
        model=ModelInfo(f"{name}, random weights", "1", "unspecified", {"weights": f"random, torch seed {SEED}"}),
        sample_shape=picture[1:],
        output=OutputAffine((127.5,), (127.5,), "8-bit"),
        prediction="eps",
        variance=variance,
        schedule=NoiseSchedule.linear(1000, 1e-4, 0.02),
        clip=(-1.0, 1.0),
        conditions=(),
        defaults=Defaults("unipc", 12, "trailing"),
        network=spec,
        files=(ModelFile(WEIGHTS, "denoiser", "fp32", "torch", None, inputs, outputs),),
        reference=None,
    )


def _export(model: Model, out: Path, targets: tuple[str, ...], precisions: tuple[str, ...]) -> None:
    """Parity at two timesteps only, as the run itself measures it where the graphs run."""
    from ddpm_deploy.export import export_module
    from ddpm_deploy.export.options import Options

    manifest = model.bundle.manifest
    settings: Any = {"targets": targets, "precisions": precisions, "graphs": GRAPHS}
    options = Options(**settings, batches=(1,), parity_timesteps=2, allow_parity_failure=True)
    said: Any = {name: getattr(manifest, name) for name in SAID}
    about: Any = {"name": manifest.model.name, "provenance": manifest.model.provenance, "spec": manifest.network}
    export_module(network_of(model.bundle), out, **said, **about, options=options)


def _key(*said: object) -> str:
    """Of an export: what is exported, and by which exporter."""
    import ddpm_deploy

    package = Path(str(ddpm_deploy.__file__)).parent
    digest = hashlib.sha256(repr((__version__, *said)).encode())
    for source in sorted([*package.glob("export/*.py"), *package.glob("model/*.py"), Path(__file__)]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
