"""`python -m ddpm_deploy.serve`: pictures over HTTP."""

from __future__ import annotations

import argparse
import gc
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.cli import PACKAGED, make_parser, run_command, words
from ddpm_deploy.errors import BackendError
from ddpm_deploy.serve.engine import CAPACITY, Engine
from ddpm_deploy.serve.limits import TIMES_TRAINED, Limits
from ddpm_deploy.serve.loading import TOKEN_VARIABLE, load_samplers, token_of
from ddpm_deploy.serve.priority import DEFAULT_NICE, made_nicely
from ddpm_deploy.serve.settings import VARIABLES, SettingsParser

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger("ddpm_deploy.serve")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `serve`."""
    parser = make_parser(
        "serve",
        f"Serve a bundle over HTTP. Every option may also be set as {VARIABLES}NAME in the environment, or as NAME in "
        f"the file of --config. A bearer token is required of clients if {TOKEN_VARIABLE} is set.",
        SettingsParser,
    )
    add = parser.add_argument
    add("bundle", nargs="?", help=f"bundle folder, lone .onnx file, or {PACKAGED}")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all of this machine's")
    add("--port", type=int, default=8000, help="0 takes any free one")
    add("--backend", choices=(*BACKENDS, AUTO), default="onnxruntime", help=f"runtime; {AUTO}: as `tune` chose it")
    add("--precision", default="fp32", help=f"a precision that the backend or the bundle has; {AUTO} takes A,B or any")
    add("--device", default="cpu", help="such as cpu or cuda:0; several, with commas, share one queue")
    add("--threads", type=int, help="of all streams together; default: every CPU that the process may use")
    add(
        "--streams",
        type=int,
        help="samplers side by side on a CPU, each with a share of the threads; default: measured",
    )
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--buckets", type=_sizes, metavar="A,B", help="batch sizes that the network is called with; default: up to 32")
    add("--capacity", type=int, default=CAPACITY, help="pictures waiting or under way; beyond it, status 429")
    add("--max-n", type=int, default=Limits.max_n, help="pictures of one request")
    add("--max-steps", type=int, default=Limits.max_steps, help="network evaluations of one picture")
    add(
        "--max-pixels",
        type=int,
        default=Limits.max_pixels,
        help=f"of one picture, where the model leaves its size free; default: {TIMES_TRAINED} times the trained size",
    )
    add("--max-work", type=int, default=Limits.max_work, help="pixels x evaluations of all pictures of a request")
    add("--deadline-s", type=float, default=Limits.deadline_s, help="a request not finished by then gets status 504")
    add("--drain-s", type=float, default=30.0, help="seconds to finish what was accepted, after SIGTERM or Ctrl+C")
    add(
        "--nice",
        type=int,
        default=DEFAULT_NICE,
        help="by how much drawing comes after answering clients, 0 to 19; Linux",
    )
    add("--max-connections", type=int, default=2048, help="open at once; beyond it, status 503")
    add("--log-format", choices=FORMATS, default="text", help="a line for each request, on standard error")
    add("--log-level", choices=LEVELS, default="info", help="warning leaves out the requests")
    add(
        "--otel",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says",
    )
    add("--config", metavar="FILE", help="TOML file of settings; the environment and flags override it")
    add("--print-config", action="store_true", help="show every setting and where it is from, and stop")
    return parser


def run(
    *,
    bundle: str | None,
    host: str,
    port: int,
    backend: str,
    precision: str,
    device: str,
    threads: int | None,
    streams: int | None,
    digest: str | None,
    buckets: Sequence[int] | None,
    capacity: int,
    max_n: int,
    max_steps: int,
    max_pixels: int | None,
    max_work: int,
    deadline_s: float,
    drain_s: float,
    nice: int,
    max_connections: int,
    log_format: str,
    log_level: str,
    otel: bool,
) -> int:
    """Serve until a signal, 1 if it had to be sent twice; see `build_parser` for the arguments."""
    from ddpm_deploy.serve.app import Service, make_app
    from ddpm_deploy.serve.guard import Bounds, room_for
    from ddpm_deploy.serve.logs import set_up_logging
    from ddpm_deploy.serve.server import DrainingServer, address, is_open, listening
    from ddpm_deploy.serve.tracing import Tracing

    set_up_logging(log_format, log_level)
    limits = Limits(max_n=max_n, max_steps=max_steps, max_pixels=max_pixels, max_work=max_work, deadline_s=deadline_s)
    token = token_of(os.environ)
    if not 0 <= port < 65536:
        raise ValueError(f"port: got {port}, expected 0 to 65535")
    if max_connections < 1:
        raise ValueError(f"max_connections: got {max_connections}, expected at least 1")
    if not 0 <= drain_s < float("inf"):
        raise ValueError(f"drain_s: got {drain_s:g}, expected a number of seconds of at least 0")
    with ExitStack() as stack:
        tracing = Tracing() if otel else None
        if tracing is not None:
            stack.callback(tracing.close)

        def make_engine() -> Engine:
            samplers = load_samplers(
                stack,
                bundle,
                backend=backend,
                precision=precision,
                device=device,
                threads=threads,
                streams=streams,
                digest=digest,
            )
            engine = Engine(samplers, buckets=buckets, capacity=capacity)
            stack.callback(engine.close)
            return engine

        engine = made_nicely(nice, make_engine)
        app = make_app(engine, limits, token, tracing)
        listener = stack.enter_context(listening(host, port))
        if token is None and is_open(listener):
            logger.warning("serve: whoever reaches %s may draw; set %s to ask for a token", host, TOKEN_VARIABLE)
        logger.info("serve: samplers side by side: %d", len(engine.samplers))
        print(f"serving {engine.samplers[0].manifest.model.name} at {address(listener)}; Ctrl+C drains it", flush=True)
        bounds = Bounds(room_for(max_connections))
        server = DrainingServer(app, engine, drain_s, bounds, last_resort=partial(os._exit, 1))
        service: Service = app.state.service
        service.when_failed = server.stop
        gc.collect()
        gc.freeze()  # what was imported stays for good, and need not be looked through again
        server.run(sockets=[listener])
        if service.failure is not None:
            raise BackendError(f"the warm-up failed: {service.failure}") from service.failure
        return int(server.aborted)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers, such as 1,4,16") from None


if __name__ == "__main__":
    raise SystemExit(main())
