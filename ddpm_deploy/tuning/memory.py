"""Where records lie: a file for each bundle, machine, set of versions and question, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm_deploy import __version__
from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.tensorrt.cache import VARIABLE, default_root
from ddpm_deploy.backends.tensorrt.files import check_owner, open_folder, read_regular, write_atomic
from ddpm_deploy.backends.tensorrt.lock import build_lock
from ddpm_deploy.bench.machine import describe_cpu, describe_gpus, package_version
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BackendError
from ddpm_deploy.tuning.question import CPU, Question
from ddpm_deploy.tuning.record import Key, Record, read_record

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "torch")
CPU_FIELDS = ("model", "architecture", "flags", "physical", "logical", "usable", "quota")
MAX_BYTES = 2**20

_log = logging.getLogger(__name__)


def folder() -> Path:
    """In $DDPM_DEPLOY_CACHE, else in the platform's folder for caches, beside that of the engines."""
    root = default_root()
    return (root if os.environ.get(VARIABLE) else root.parent) / "tuned"


def key_of(bundle: Bundle, question: Question) -> dict[str, Any]:
    """Everything that a choice depends on; imports no runtime."""
    cpu = describe_cpu()
    versions = {name: package_version(name) for name in PACKAGES}
    return {
        "bundle": bundle.digest,
        "question": asdict(question),
        "package": __version__,
        "versions": {name: version for name, version in versions.items() if version},
        "torch threads": os.environ.get("OMP_NUM_THREADS"),
        "cpu": {name: cpu.get(name) for name in CPU_FIELDS},
        "gpus": [] if question.device == CPU else [gpu.get("name") for gpu in describe_gpus()],
    }


def path_of(key: Key) -> Path:
    """The file of a key."""
    text = json.dumps(key, sort_keys=True).encode()
    return folder() / f"{hashlib.sha256(text).hexdigest()[:32]}.json"


def recall(key: Key, question: Question) -> Record | None:
    """The record of a key, or None; one that is damaged or foreign is told of in the log, and ignored."""
    path = path_of(key)
    try:
        if path.parent.exists():
            check_owner(path.parent, path.parent.stat())
        data = read_regular(path, MAX_BYTES)
        return None if data is None else read_record(data, key, question)
    except (BackendError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s: %s; it is ignored, and measured again", path, one_line(error))
        return None


def remember(record: Record) -> Path | None:
    """Write a record, as a whole or not at all; None, with a line in the log, where that cannot be done."""
    path = path_of(record.key)
    try:
        open_folder(path.parent)
        write_atomic(path, json.dumps(record.to_dict(), indent=1).encode())
    except BackendError as error:
        _log.warning("%s; the choice is not remembered", error)
        return None
    return path


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for other processes that measure: they would disturb each other. Without a lock where none can be had."""
    lock = folder() / "tune.lock"
    with ExitStack() as stack:
        try:
            open_folder(lock.parent)
            stack.enter_context(build_lock(lock, "a choice of backends", tell=_log.info))
        except BackendError as error:
            _log.info("%s; measuring without a lock", error)
        yield
