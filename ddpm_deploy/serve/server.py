"""A server that drains: on a first signal it goes on answering until what it accepted is drawn."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from ddpm_deploy.serve.app import Service
from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.guard import Bounds, GuardedProtocol

BACKLOG = 2048
KEEP_ALIVE_S = 15
ANSWER_S = 10  # for the answers still to be written when all is drawn
ABORT_S = 2  # for the step under way

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT.

    The first signal makes the engine refuse new requests and `/readyz` say so; when what was accepted is answered, or
    `drain_s` seconds are over, it stops. A second signal stops at once; `aborted` is true from then on, and where the
    process has not ended ABORT_S seconds later, `last_resort` is called.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        drain_s: float,
        bounds: Bounds | None = None,
        last_resort: Callable[[], object] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # its warnings are about what clients send
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=ANSWER_S,
            loop="auto",
            http=cast(Any, partial(GuardedProtocol, bounds=bounds or Bounds(), refused=_counter(app))),
            ws="none",
        )
        super().__init__(config)
        self._engine, self._drain_s, self._last_resort = engine, drain_s, last_resort
        self._draining = self.aborted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop on the second."""
        target = self._abort if self._draining else self._drain
        self.aborted = self._draining
        self._draining = True
        threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def stop(self) -> None:
        """Stop where nothing can be drawn any more."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order, also where nothing is waited for."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _abort(self) -> None:
        """What is not drawn fails, which its clients are still told."""
        self._engine.close(ABORT_S)
        self.should_exit = self.force_exit = True
        time.sleep(ABORT_S)
        self._last_resort()

    def _drain(self) -> None:
        logger.info("serve: draining, samples still to be drawn: %d", self._engine.held)
        if not self._engine.drain(self._drain_s):
            logger.warning("serve: %d samples were not finished in %g s of drain", self._engine.held, self._drain_s)
            self._engine.close(ABORT_S)
        logger.info("serve: drained")
        self.should_exit = True


def _counter(app: FastAPI) -> Callable[[int], object]:
    """What is told of refusals that the application does not see."""
    service: Service = app.state.service
    return service.metrics.refused


def listening(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port: {port} is in use on {host}; give another, or 0 for any free one"
        else:
            message = f"host: {(error.strerror or str(error)).split(' (')[0]}: {host}; give an address of this machine"
        raise OSError(error.errno, message) from None
    # which its connections inherit: else an answer's body waits for the client's delayed acknowledgement, 40 ms
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return listener


def is_open(listener: socket.socket) -> bool:
    """Whether others than this machine can reach it."""
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
