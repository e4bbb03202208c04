"""What is measured: a bundle for every backend and precision of this machine, made once and kept.

The digits model comes with the package, trained. The CIFAR-10 and CelebA-HQ networks of the DDPM paper have their true
architecture and, where no checkpoint is given, seeded random weights: their speed is real, their pictures are noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm_deploy import __version__
from ddpm_deploy.bench.truth import TRAINED
from ddpm_deploy.bundle import Bundle, Defaults, Manifest, OutputAffine, default_bundle, read_bundle
from ddpm_deploy.schedule import NoiseSchedule

KEPT = Path(__file__).resolve().parent / ".models"
CPU_TARGETS = ("onnxruntime-cpu", "openvino")
CUDA_TARGETS = ("onnxruntime-cuda", "tensorrt")
SEED = 0


@dataclass(frozen=True)
class Model:
    """What the benchmarks run on. trained: whether its pictures mean anything. note: where its weights come from."""

    name: str
    bundle: Bundle
    trained: bool
    note: str

    @property
    def weights(self) -> str:
        """In one word or two, for wherever parity is shown."""
        return TRAINED if self.trained else f"random, seed {SEED}"


def prepare(name: str, checkpoint: str | None = None, say: Callable[[str], object] = print) -> Model:
    """The model by name, "digits", "cifar10", "celebahq256", or a bundle's folder.

    checkpoint: of the CIFAR-10 or CelebA-HQ network, as diffusers saved it, instead of random weights.
    """
    if checkpoint is not None and name not in NETWORKS:
        raise ValueError(f"--checkpoint: got one beside --model {name}; it goes with {', '.join(NETWORKS)}")
    if name == "digits":
        bundle = _kept(f"digits-{read_bundle(default_bundle()).digest[7:19]}", _export_digits, say)
        return Model(name, bundle, True, "trained on scikit-learn's digits, comes with the package")
    if name in NETWORKS and checkpoint is None:
        bundle = _kept(f"{name}-random", lambda out: _export_random(name, out), say)
        return Model(name, bundle, False, f"architecture of Ho et al. 2020, random weights of seed {SEED}")
    if name in NETWORKS:
        key = _digest_of(Path(str(checkpoint)))
        bundle = _kept(f"{name}-{key}", lambda out: _export_checkpoint(str(checkpoint), out), say)
        return Model(name, bundle, True, "weights of the checkpoint given")
    bundle = read_bundle(name)
    said = str(bundle.manifest.model.provenance.get("weights", ""))
    return Model(
        bundle.manifest.model.name, bundle, not said.startswith("random"), said or "weights of the bundle given"
    )


def _kept(key: str, export: Callable[[Path], object], say: Callable[[str], object]) -> Bundle:
    """The bundle of an earlier run, or a new one; what makes it another one is in its name."""
    folder = KEPT / f"{key}-{_fingerprint()}"
    if not folder.exists():
        say(f"exporting {key} for {', '.join(_targets())}; kept in {folder.relative_to(KEPT.parent.parent)}")
        KEPT.mkdir(exist_ok=True)
        export(folder)
    return read_bundle(folder)


def _digest_of(where: Path) -> str:
    """Of a file, or of all files of a folder, by their contents."""
    digest = hashlib.sha256()
    for file in sorted(where.rglob("*")) if where.is_dir() else [where]:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _fingerprint() -> str:
    from importlib.metadata import version

    import ddpm_deploy

    package = Path(str(ddpm_deploy.__file__)).parent
    sources = [source for part in ("export", "model") for source in sorted((package / part).rglob("*.py"))]
    digest = hashlib.sha256(json.dumps([__version__, version("torch"), version("onnx"), _targets()]).encode())
    for source in (*sources, Path(__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


def _targets() -> tuple[str, ...]:
    import torch

    return CPU_TARGETS + (CUDA_TARGETS if torch.cuda.is_available() else ())


def _options(**settings: Any) -> Any:
    import torch

    from ddpm_deploy.export.options import Options

    precisions = ("fp32", "fp16", "bf16", "int8") if torch.cuda.is_available() else ("fp32", "int8")
    return Options(targets=_targets(), precisions=precisions, progress=True, **settings)


def _export_digits(out: Path) -> None:
    """The packaged weights once more, without labels, with int8 and for each runtime."""
    from safetensors.torch import load

    from ddpm_deploy.export import export_module
    from ddpm_deploy.model import build_network

    packaged = read_bundle(default_bundle())
    manifest = packaged.manifest
    assert manifest.network is not None
    network = build_network(manifest.network)
    network.load_state_dict(load(packaged.open_bytes(packaged.file("denoiser", "fp32", "torch"))))
    network = unlabelled(network)
    options = _options(batches=(1, 2), parity_timesteps=12, calibration_states=64)
    export_module(network, out, **_said(manifest), spec=network.spec(), name="digits", options=options)


def unlabelled(network: Any) -> Any:
    """The U-Net as it draws without a label, which is what diffusers' unconditional pipelines can draw.

    The embedding of "no label" is one vector, always added to that of the time: so it moves into a bias.
    """
    from ddpm_deploy.model import UNet

    if network.label is None:
        return network
    config = replace(network.config, num_classes=None, null_class=False)
    weights = network.state_dict()
    labels = weights.pop("label.weight")
    weights["time.linear_out.bias"] = weights["time.linear_out.bias"] + labels[network.config.num_classes]
    plain = UNet(config)
    plain.load_state_dict(weights)
    return plain.eval()


def _said(manifest: Manifest) -> dict[str, Any]:
    """What a manifest tells of a model without conditions, as `export_module` takes it."""
    return {
        "sample_shape": manifest.sample_shape,
        "schedule": manifest.schedule,
        "output": manifest.output,
        "prediction": manifest.prediction,
        "variance": manifest.variance,
        "clip": manifest.clip,
        "defaults": manifest.defaults,
        "licence": manifest.model.licence,
        "provenance": manifest.model.provenance,
    }


def _cifar10() -> Any:
    from ddpm_deploy.model import UNetConfig

    return UNetConfig.cifar10()


def _celebahq256() -> Any:
    from ddpm_deploy.model import UNetConfig

    return UNetConfig.pictures256()


NETWORKS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "cifar10": (_cifar10, 32, "large"),
    "celebahq256": (_celebahq256, 256, "small"),
}


def _export_random(name: str, out: Path) -> None:
    """Random weights as torch draws them; export measures parity at few timesteps only, the benchmarks at more."""
    import torch

    from ddpm_deploy.export import export_module
    from ddpm_deploy.model import UNet

    config, size, variance = NETWORKS[name]
    torch.manual_seed(SEED)
    network = UNet(config()).eval()
    small = size <= 32
    export_module(
        network,
        out,
        sample_shape=(3, size, size),
        schedule=NoiseSchedule.linear(1000, 1e-4, 0.02),
        output=OutputAffine((127.5,), (127.5,), "8-bit"),
        variance=variance,
        clip=(-1.0, 1.0),
        defaults=Defaults("unipc", 12, "trailing"),
        spec=network.spec(),
        name=f"{name}, random weights",
        provenance={"weights": f"random, torch seed {SEED}"},
        options=_options(graphs=("denoiser",), batches=(1,), parity_timesteps=2, calibration_states=24 if small else 4),
    )


def _export_checkpoint(checkpoint: str, out: Path) -> None:
    from ddpm_deploy.export.api import export_source
    from ddpm_deploy.export.sources.open import open_source

    export_source(open_source(checkpoint), out, options=_options(parity_timesteps=24))
