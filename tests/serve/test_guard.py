"""Clients that send slowly, or nothing, or do not read, are closed; the others are served meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import PATIENCE_S, numpy_sampler
from numpy_service import PATH, Client, serving

from ddpm_deploy.serve.guard import MAX_PIPELINED, Bounds, room_for

ASK_NO_MORE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def guarded():
    """A service with little patience and room for 20 connections."""
    bounds = Bounds(connections=20, head_s=0.2, stall_s=0.2)
    with serving(numpy_sampler(shape=(1, 4, 4)), bounds=bounds) as (client, _, server):
        yield client, server


@pytest.fixture
def connection(guarded) -> Iterator[socket.socket]:
    client, server = guarded
    with connect(client) as opened:
        yield opened
    until(lambda: not server.server_state.connections)


def connect(client: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), PATIENCE_S)


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_healthy(client: Client) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return client.get("/healthz").status == 200
    return False


def rest(connection: socket.socket) -> bytes:
    """Everything until the service closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_connection_that_says_nothing_is_closed(connection: socket.socket) -> None:
    assert rest(connection).startswith(b"HTTP/1.1 408")


def test_a_head_that_drips_has_one_limit_in_all(connection: socket.socket) -> None:
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in HEAD + b"X-Long: " + b"a" * 1000:  # 11 s of them
            connection.send(bytes([byte]))
            sent += 1
            time.sleep(0.01)
    assert sent < 500, "each byte gave it time again"


def test_a_second_request_that_drips_is_closed_too(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    first = b""
    while not first.endswith(b"}"):
        first += connection.recv(4096)
    time.sleep(0.3)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET")
    answers = rest(connection)
    assert answers.startswith(b"HTTP/1.1 200"), "between requests there is more time"
    assert b"HTTP/1.1 408" in answers


def test_blank_lines_between_requests_do_not_keep_a_connection(connection: socket.socket, guarded) -> None:
    _, server = guarded
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"\r\n\r\n")
    time.sleep(0.05)
    (protocol,) = server.server_state.connections
    assert protocol.timeout_keep_alive_task is not None


def test_a_body_that_nobody_waits_for_is_closed(connection: socket.socket) -> None:
    connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 405")
    began = time.monotonic()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100):
            connection.send(b"x")
            time.sleep(0.02)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        "TLS",
        "no host",
        "negative",
        "lengths",
        "space",
        "hosts",
        "chunked too",
        "gzip",
        "CONNECT",
        "HTTP/2",
        "no ASCII",
    ],
)
def test_what_is_no_request_is_status_400_in_the_usual_form(connection: socket.socket, head: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(head)
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == 400


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(3000)) + b"\r\n",
        b"GET /" + b"a" * 20000,
    ],
    ids=["long header", "many headers", "long path"],
)
@pytest.mark.parametrize("piece", [1000, 100000])
def test_a_head_has_a_limit_in_one_piece_and_in_many(connection: socket.socket, head: bytes, piece: int) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for begin in range(0, len(head), piece):
            connection.sendall(head[begin : begin + piece])
            time.sleep(0.001)
    assert rest(connection).startswith(b"HTTP/1.1 431")


def test_the_head_of_a_second_request_has_a_limit_while_the_first_is_drawn() -> None:
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler) as (client, engine, _), connect(client) as connection:
        sampler.backend.gate.shut()
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        sampler.backend.gate.await_call()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 1000)
                time.sleep(0.001)
        assert rest(connection)[:12] in (b"", b"HTTP/1.1 431")
        until(lambda: engine.held == 0)
        sampler.backend.gate.open()


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_requests_sent_at_once_are_answered_in_turn(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 10 + ASK_NO_MORE)
    assert rest(connection).count(b"HTTP/1.1 200 OK") == 11


def test_of_too_many_sent_at_once_the_first_are_answered(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    answers = rest(connection)
    assert 1 < answers.count(b"HTTP/1.1 200 OK") <= MAX_PIPELINED + 1
    assert answers.count(b"HTTP/1.1") == answers.count(b"HTTP/1.1 200 OK")
    assert answers.count(b"connection: close") == 1, "the last one says so"


def test_who_offers_another_protocol_is_answered_in_this_one(connection: socket.socket) -> None:
    """As Java's client does with its first requests."""
    body = b'{"steps": 1}'
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    for _ in range(2):
        connection.sendall(HEAD + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")


def test_requests_may_be_cut_anywhere(guarded) -> None:
    client, _ = guarded
    body = b'{"steps": 1}'
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    sent = HEAD + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body + ASK_NO_MORE
    for cut in range(1, len(sent), 5):
        with connect(client) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            connection.sendall(sent[:cut])
            time.sleep(0.001)
            connection.sendall(sent[cut:])
            statuses = re.findall(rb"HTTP/1.1 (\d+)", rest(connection))
        assert statuses == [b"200", b"200"], f"cut at {cut}: {sent[cut - 10 : cut + 10]!r}"


def test_a_body_in_chunks_is_read(connection: socket.socket) -> None:
    connection.sendall(HEAD + b'Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\n{"ste\r\n')
    time.sleep(0.05)
    connection.sendall(b'7\r\nps": 1}\r\n0\r\n\r\n')
    assert rest(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("trailer", [b"X: " + b"a" * 100_000, b"X: a\r\n" * 5000], ids=["long", "many"])
def test_what_follows_a_body_has_a_limit_too(connection: socket.socket, trailer: bytes) -> None:
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        for begin in range(0, len(trailer), 1000):
            sent += connection.send(trailer[begin : begin + 1000])
            time.sleep(0.001)
    assert b"HTTP/1.1 431" in rest(connection) or sent < 50_000


def test_what_follows_a_body_is_no_header() -> None:
    body = b"c\r\n" + b'{"steps": 1}' + b"\r\n0\r\nAuthorization: Bearer t\r\nX-Request-Id: trailer\r\n\r\n"
    with serving(numpy_sampler(shape=(1, 4, 4)), token="t") as (client, *_), connect(client) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"trailer" not in answer


def test_a_client_that_goes_with_a_request_behind_the_first_cancels_it(caplog: pytest.LogCaptureFixture) -> None:
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler) as (client, engine, server):
        sampler.backend.gate.shut()
        with connect(client) as connection:
            connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}" + ASK_NO_MORE)
            sampler.backend.gate.await_call()
            assert engine.held == 1
        until(lambda: engine.held == 0)
        sampler.backend.gate.open()
        until(lambda: not server.server_state.tasks)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("before", [1, 2])
def test_garbage_behind_requests_does_not_take_their_answers(connection: socket.socket, before: int) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * before + b"no HTTP\r\n\r\n")
    answers = rest(connection)
    assert answers.count(b"HTTP/1.1 200") == before
    assert answers.count(b"connection: close") == 1


def test_a_request_is_answered_once(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"zz\r\n")
    assert b"HTTP/1.1" not in rest(connection)


def test_many_short_headers_are_no_long_head(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:x\r\nConnection:close\r\n" + b"a:b\r\n" * 3000 + b"\r\n")
    assert rest(connection).startswith(b"HTTP/1.1 200")


def test_garbage_in_a_body_is_cut_off(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n")
    assert rest(connection).startswith(b"HTTP/1.1 400")


def test_a_client_that_does_not_read_is_cut_off(guarded) -> None:
    client, server = guarded
    stalled = False
    with socket.socket() as deaf, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", client.port))
        until(lambda: server.server_state.connections)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
            time.sleep(0.04)
            stalled = stalled or any(each._stalled for each in list(server.server_state.connections))
    assert stalled
    until(lambda: not server.server_state.connections)


def test_idle_connections_keep_nobody_out_for_long(guarded) -> None:
    client, server = guarded
    idle = [connect(client) for _ in range(200)]
    try:
        until(lambda: is_healthy(client))
        assert client.post(steps=2).status == 200
    finally:
        for each in idle:
            each.close()
    until(lambda: not server.server_state.connections)


def test_beyond_its_connections_it_says_so() -> None:
    bounds = Bounds(connections=3)
    with serving(numpy_sampler(shape=(1, 4, 4)), bounds=bounds) as (client, _, server), contextlib.ExitStack() as stack:
        until(lambda: not server.server_state.connections)
        for _ in range(3):
            stack.enter_context(connect(client))
        until(lambda: len(server.server_state.connections) == 3)
        answer = client.post(steps=1)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.message == "the service has no connection left; ask again"


def test_refusals_that_the_application_does_not_see_are_counted(guarded) -> None:
    client, _ = guarded
    before = counted(client, "408"), counted(client, "431")
    with connect(client) as silent, connect(client) as long:
        long.sendall(b"GET /" + b"a" * 20000)
        rest(long)
        rest(silent)
    assert (counted(client, "408"), counted(client, "431")) == (before[0] + 1, before[1] + 1)


def counted(client: Client, status: str) -> float:
    found = re.search(rf'refused_connections_total{{status="{status}"}} (\S+)', client.get("/metrics").body.decode())
    return float(found[1]) if found else 0.0


def test_a_connection_that_is_gone_has_no_timers() -> None:
    with serving(numpy_sampler(shape=(1, 4, 4)), bounds=Bounds(stall_s=1000)) as (client, _, server):
        until(lambda: not server.server_state.connections)
        with connect(client) as refused:
            until(lambda: server.server_state.connections)
            (protocol,) = server.server_state.connections
            refused.sendall(b"no HTTP\r\n\r\n")
            rest(refused)
        until(lambda: not server.server_state.connections)
        assert protocol._ending.cancelled()


def test_a_thousand_idle_streams_leave_nothing_behind() -> None:
    """Each asks for a picture and does not read; the engine's capacity bounds what is accepted."""
    sampler = numpy_sampler(shape=(1, 4, 4))
    bounds = Bounds(connections=1200, head_s=PATIENCE_S, stall_s=1)
    with serving(sampler, capacity=50, bounds=bounds) as (client, engine, server):
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        body = b'{"stream": true, "steps": 50, "preview_every": 1}'
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        sampler.backend.gate.shut()
        idle = [connect(client) for _ in range(1000)]
        for each in idle:
            each.sendall(request)
        until(lambda: engine.held == 50)
        sampler.backend.gate.open()
        until(lambda: client.post(steps=2).status == 200)  # once all that came in the meantime has been refused
        answers = [each.recv(12) for each in idle]
        assert {answer[9:] for answer in answers} == {b"200", b"429"}
        for each in idle:
            each.close()
        until(lambda: not server.server_state.connections)
        if files:
            until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_there_is_room_for_fewer_connections_than_files() -> None:
    resource = pytest.importorskip("resource", reason="only POSIX limits files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert room_for(100) == 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
        assert room_for(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head(guarded) -> None:
    """On a connection that is kept, a delayed acknowledgement takes 40 ms."""
    client, _ = guarded
    kept, seconds = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S), []
    with contextlib.closing(kept):
        for _ in range(20):
            begin = time.perf_counter()
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
            seconds.append(time.perf_counter() - begin)
    assert statistics.median(seconds) < 0.03
