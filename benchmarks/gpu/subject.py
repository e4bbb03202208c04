"""One model with everything that was opened for it: the reference, and a sampler of ours for each path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.gpu.parity import Reference
from benchmarks.gpu.paths import COMPILED
from benchmarks.models import Model
from ddpm_deploy import Sampler
from ddpm_deploy.backends.base import usable_cpus

if TYPE_CHECKING:
    from ddpm_deploy.bench.work import Work


class Subject:
    """A model on a device."""

    def __init__(self, model: Model, device: str) -> None:
        self.model, self.device = model, device
        self.reference = Reference(model, device)
        self.threads = usable_cpus()
        self._samplers: dict[tuple[str, str, bool], Sampler] = {}
        self._flops: int | None = None

    def sampler(self, contender: str, precision: str, *, twin: bool = False) -> Sampler:
        """Ours by the name of its path, opened once; a twin is opened for itself."""
        key = (contender, precision, twin)
        if key not in self._samplers:
            self._samplers[key] = self._load(contender, precision)
        return self._samplers[key]

    def work(self, batch: int) -> Work:
        """Of one forward of the module as it was written, before any export left work out."""
        from ddpm_deploy.bench.work import Work

        manifest = self.model.bundle.manifest
        weights = sum(parameter.numel() * 4 for parameter in self.reference.network.parameters())
        shape = manifest.sample_shape
        edges = 4 * batch * (2 * shape[0] * shape[1] * shape[2] + 1)
        return Work(batch, {"products": batch * self._flops_of_one()}, weights, edges, 0)

    def free(self) -> None:
        """Give back the memory of all samplers but those that took minutes to compile; asked for, they open again."""
        for key in [key for key in self._samplers if key[0] != COMPILED]:
            self._samplers.pop(key).close()

    def close(self) -> None:
        """Free all samplers."""
        self.free()
        while self._samplers:
            self._samplers.popitem()[1].close()

    def _load(self, contender: str, precision: str) -> Sampler:
        backend, _, how = contender.partition(", ")
        options: dict[str, Any] = {"options": {"compile": True}} if contender == COMPILED else {}
        assert how in ("", "compiled")
        settings: Any = {"backend": backend, "precision": precision, "device": self.device, **options}
        return Sampler.load(self.model.bundle, **settings)

    def _flops_of_one(self) -> int:
        if self._flops is None:
            import torch
            from torch.utils.flop_counter import FlopCounterMode

            x = torch.zeros(1, *self.model.bundle.manifest.sample_shape, device=self.device)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self.reference.network(x, torch.zeros(1, device=self.device))
            self._flops = int(counter.get_total_flops())
        return self._flops
