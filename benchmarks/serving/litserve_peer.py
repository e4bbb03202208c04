"""LitServe around the same sampler, in a process of its own: `python -m benchmarks.serving.litserve_peer BUNDLE`.

As its documentation has it: requests that wait are drawn in one call of `predict`, in batches of one plan each, and
answered together. The picture is sent as our service sends it.
"""

from __future__ import annotations

import argparse
import base64
import io
from typing import Any

import litserve
import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy.images import NETWORK_RANGE, to_pil
from ddpm_deploy.noise import initial_noise

WIDEST = 32
GATHER_S = 0.001


class Pictures(litserve.LitAPI):
    """A worker with a sampler."""

    def __init__(self, bundle: str, threads: int) -> None:
        super().__init__(max_batch_size=WIDEST, batch_timeout=GATHER_S)
        self._bundle, self._threads = bundle, threads

    def setup(self, device: str) -> None:
        """Open the sampler, in the worker."""
        self._sampler = Sampler.load(self._bundle, backend="onnxruntime", threads=self._threads, warmup=True)
        self._range = self._sampler.manifest.clip or NETWORK_RANGE

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe takes an annotation for a query field
        """(solver, steps, seed) of a JSON body."""
        return str(request["solver"]), int(request["steps"]), int(request["seed"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def predict(self, x: list[tuple[str, int, int]]) -> list[np.ndarray]:
        """A picture for each."""
        drawn: dict[int, np.ndarray] = {}
        for plan in sorted({(solver, steps) for solver, steps, _ in x}, key=lambda each: each[1]):
            places = [i for i, (solver, steps, _) in enumerate(x) if (solver, steps) == plan]
            shape = self._sampler.manifest.sample_shape
            x_T = np.concatenate([initial_noise(x[i][2], [0], shape) for i in places])
            samples = self._sampler.sample(x_T=x_T, solver=plan[0], steps=plan[1], batch_size=len(places))
            drawn.update(zip(places, samples, strict=True))
        return [drawn[i] for i in range(len(x))]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """The picture as a PNG."""
        file = io.BytesIO()
        to_pil(output[None], self._range)[0].save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2, help="of all workers together")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    pictures = Pictures(args.bundle, args.threads // args.workers)
    server = litserve.LitServer(pictures, accelerator="cpu", timeout=300, workers_per_device=args.workers)
    server.run(host="127.0.0.1", port=args.port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
