"""What may be chosen from: the precisions, the device and the threads that somebody allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm_deploy.backends import BACKENDS, Availability
from ddpm_deploy.backends.base import check_threads, device_index, usable_cpus
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.bundle.manifest import TORCH

ANY = "any"
CPU, CUDA = "cpu", "cuda"
FP32 = "fp32"


@dataclass(frozen=True)
class Candidate:
    """One way to open a bundle's denoiser; threads: None where the runtime's own setting is left alone."""

    backend: str
    precision: str
    device: str = CPU
    threads: int | None = None

    @property
    def label(self) -> str:
        """Its name in tables and records."""
        place = "" if self.device == CPU else f" on {self.device}"
        count = "" if self.threads is None else f", {self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.backend} {self.precision}{place}{count}"


@dataclass(frozen=True)
class Question:
    """What a choice may be made of.

    precisions: those allowed, or ("any",) for all that the bundle and the machine have; float32 alone unless somebody
    asks for more. device: "cpu", "cuda", "cuda:1", or "any" for the CPU and a CUDA device. threads: of one call, None
    compares one thread with all CPUs.
    """

    precisions: tuple[str, ...] = (FP32,)
    device: str = CPU
    threads: int | None = None

    @classmethod
    def of(cls, precision: str | Sequence[str], device: str, threads: int | None) -> Question:
        """The question as `Sampler.load` is asked; raises ValueError."""
        from ddpm_deploy.parity.budget import budget_for

        precisions = tuple(dict.fromkeys([precision] if isinstance(precision, str) else precision))
        if not precisions or (ANY in precisions and len(precisions) > 1):
            raise ValueError(f"precision: got {list(precisions)}, expected names of precisions, or {ANY!r} alone")
        for name in precisions:
            if name != ANY:
                budget_for(name)
        if device != ANY:
            device_index(device)
        check_threads(threads)
        return cls(precisions, device, threads)

    def candidates(self, bundle: Bundle, found: Mapping[str, Availability]) -> list[Candidate]:
        """All that are worth an attempt; whether the bundle and the machine have them is seen on opening."""
        return [
            Candidate(name, precision, device, threads)
            for name, backend in found.items()
            if backend.available
            for device in self._devices(backend)
            for precision in self._precisions(bundle, backend)
            for threads in self._threads(name, device)
        ]

    def admits(self, candidate: Candidate) -> bool:
        """Whether a remembered candidate is an answer to this question."""
        return (
            candidate.backend in BACKENDS
            and (self.precisions == (ANY,) or candidate.precision in self.precisions)
            and candidate.device in ((CPU, CUDA) if self.device == ANY else (self.device,))
            and candidate.threads in self._threads(candidate.backend, candidate.device)
        )

    def _devices(self, backend: Availability) -> list[str]:
        """The CPU of those that have it; a CUDA device that is asked for of all, so that each says why it cannot."""
        has_cuda = any(device.startswith(CUDA) for device in backend.devices)
        asked = [CPU, *([CUDA] if has_cuda else [])] if self.device == ANY else [self.device]
        return [device for device in asked if device != CPU or CPU in backend.devices]

    def _precisions(self, bundle: Bundle, backend: Availability) -> list[str]:
        if self.precisions != (ANY,):
            return list(self.precisions)
        stored = [file.precision for file in bundle.manifest.files if file.role == "denoiser"]
        opened = [name for name, file in backend.of_files.items() if file in stored]
        return list(dict.fromkeys([FP32, *stored, *backend.precisions, *opened]))

    def _threads(self, backend: str, device: str) -> list[int | None]:
        if device != CPU:
            return [None]
        if backend == TORCH:  # it has one number for the whole process, which is not ours to set
            return [None] if self.threads is None else []
        return [self.threads] if self.threads else [*sorted({1, usable_cpus()})]
