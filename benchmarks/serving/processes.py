"""Services in processes of their own, on this machine's loopback, ended with the block that opened them."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load import LATE, LIMIT, MIX, Trace, Trial

READY_S = 120.0
END_S = 40.0
PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).resolve().parents[2]
REFUSED = (429, 503)
PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Service:
    """A service that answers. path: where pictures are asked for."""

    name: str
    port: int
    path: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def post(self, **fields: Any) -> Any:
        """The answer to one request; RuntimeError for a status that is not 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        with_body = json.dumps(fields), {"Content-Type": "application/json"}
        try:
            connection.request("POST", self.path, *with_body)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: status {answer.status}: {text[:200]!r}")
        return json.loads(text)

    def offer(self, trace: Trace, rate: float, alone_s: Sequence[float], *, stop_when_lost: bool = True) -> Trial:
        """As `load.offer`, from a process of its own; an answer that is an error counts as none."""
        return self._offer(trace, rate, alone_s, stop_when_lost)[0]

    def flood(self, trace: Trace, rate: float, alone_s: Sequence[float]) -> tuple[Trial, list[float]]:
        """All of a trace, and how long each refusal took: by the engine, 429, or for too many connections, 503.

        RuntimeError for any other answer.
        """
        trial, answered = self._offer(trace, rate, alone_s, False)
        wrong = {status for status in answered["status"] if status not in (200, *REFUSED, None)}
        if wrong:
            raise RuntimeError(f"{self.name}: answered {wrong}, expected pictures or {REFUSED}")
        ends = zip(answered["done"], trace.at / rate, answered["status"], strict=True)
        return trial, [end - due for end, due, status in ends if status in REFUSED]

    def _offer(
        self, trace: Trace, rate: float, alone_s: Sequence[float], stop_when_lost: bool
    ) -> tuple[Trial, dict[str, Any]]:
        at, own_s = trace.at / rate, trace.of_kinds(alone_s)
        asked = {
            "url": self.url,
            "at": at.tolist(),
            "bodies": [json.dumps(body(k, i)) for i, k in enumerate(trace.kinds)],
            "allowed_s": (LIMIT * own_s).tolist(),
            "stop_after": int(LATE * len(at)) if stop_when_lost else None,
        }
        answered = ask_in_process(asked)
        done = np.array([
            end if end is not None and status == 200 else np.inf
            for end, status in zip(answered["done"], answered["status"], strict=True)
        ])  # fmt: skip
        ended = done[np.isfinite(done)]
        lost = stop_when_lost and float(np.mean(done - at > LIMIT * own_s)) > LATE
        seconds = float(ended.max()) if ended.size else 1 / rate
        return Trial(rate, done - at, own_s, trace.kinds, seconds, lost), answered


def body(kind: int, seed: int) -> dict[str, Any]:
    """What asks a service for a picture of a kind."""
    return {"solver": MIX[kind].solver, "steps": MIX[kind].steps, "seed": seed}


def ask_in_process(asked: dict[str, Any]) -> dict[str, Any]:
    """Run the load generator on what it reads."""
    command = [sys.executable, "-m", "benchmarks.serving.http_load"]
    done = subprocess.run(command, input=json.dumps(asked).encode(), capture_output=True, cwd=ROOT, timeout=600)
    if done.returncode:
        raise RuntimeError(f"load: the generator failed: {done.stderr.decode()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def our_service(bundle: Path, threads: int, *options: str) -> Iterator[Service]:
    """`python -m ddpm_deploy.serve` on a bundle."""
    words = ["ddpm_deploy.serve", str(bundle), "--threads", str(threads), *options]
    with _served("our service", words, PATH, "/readyz") as service:
        yield service


@contextmanager
def litserve(bundle: Path, threads: int, *options: str) -> Iterator[Service]:
    """LitServe on the same bundle; ImportError where it is not installed."""
    import litserve as _  # noqa: F401

    words = ["benchmarks.serving.litserve_peer", str(bundle), "--threads", str(threads), *options]
    with _served("LitServe", words, "/predict", "/health") as service:
        yield service


@contextmanager
def _served(name: str, words: Sequence[str], path: str, ready: str) -> Iterator[Service]:
    port = _free_port()
    command = [sys.executable, "-m", *words, "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_end_with_parent
    )
    try:
        _await_ready(name, process, port, ready)
        yield Service(name, port, path, process)
    finally:
        _end(process)


def _await_ready(name: str, process: subprocess.Popen[bytes], port: int, path: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{name}: ended with {process.returncode} before it was ready")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.05)
    raise RuntimeError(f"{name}: not ready within {READY_S:g} s")


def _end_with_parent() -> None:
    """Linux sends this process SIGTERM when the one that started it is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and insist after a while, with all processes that it started."""
    children = _descendants(process.pid)
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Of a process, as /proc has them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
