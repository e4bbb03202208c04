"""The bundle: the folder that export writes and everything else reads. Its format is described in docs/bundle.md."""

from ddpm_deploy.bundle.codec import from_json, from_metadata, to_json, to_metadata
from ddpm_deploy.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    ROLES,
    Condition,
    DataFile,
    Defaults,
    Manifest,
    ModelFile,
    ModelInfo,
    OutputAffine,
    TensorSpec,
)
from ddpm_deploy.bundle.onnx_metadata import METADATA_KEY
from ddpm_deploy.bundle.read import PACKAGED, Bundle, default_bundle, read_bundle, read_onnx_manifest, sha256_of
from ddpm_deploy.bundle.write import check_target, write_bundle
from ddpm_deploy.solvers import VARIANCES

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "METADATA_KEY",
    "PACKAGED",
    "ROLES",
    "VARIANCES",
    "Bundle",
    "Condition",
    "DataFile",
    "Defaults",
    "Manifest",
    "ModelFile",
    "ModelInfo",
    "OutputAffine",
    "TensorSpec",
    "check_target",
    "default_bundle",
    "from_json",
    "from_metadata",
    "read_bundle",
    "read_onnx_manifest",
    "sha256_of",
    "to_json",
    "to_metadata",
    "write_bundle",
]
