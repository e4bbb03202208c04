"""`python -m ddpm_deploy.serve` as a process of its own, with its log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy_service import Client, await_ready


@dataclass
class Running:
    """client: of the service. log: where its lines go, which are JSON."""

    process: subprocess.Popen
    client: Client
    log: Path

    def requests(self) -> list[dict[str, Any]]:
        """What it logged of requests."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["message"] == "request"]


@contextlib.contextmanager
def running(log: Path, *arguments: str) -> Iterator[Running]:
    """A service that is ready, on a free port; it is killed at the end, if it still runs."""
    command = [sys.executable, "-m", "ddpm_deploy.serve", "--port", "0", "--threads", "1", "--log-format", "json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_DEPLOY")}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=stream, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving \S+ at http://127.0.0.1:(\d+); .*\n", line)
        assert found, line + log.read_text()
        client = Client(int(found[1]))
        await_ready(client)
        yield Running(process, client, log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
