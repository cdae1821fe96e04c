"""plait.serve with uvicorn: reloads under keep-alive load, lifespans, TLS, WebSockets."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

sys.path.append(str(Path(__file__).parents[1] / "py"))
from eco_support import get
from serve_support import Server, until

from plait._serve_worker import LINGER

if TYPE_CHECKING:
    from eco_support import Pki

HERE = Path(__file__).parent


def serving(target: str, *options: str) -> Server:
    return Server(f"eco_serve_app:{target}", *options, path=HERE)


@contextmanager
def keep_alive_load(address: tuple[str, int], clients: int) -> Iterator[list[str]]:
    """Clients that ask again and again on connections that they keep.

    A worker that leaves goes on for a second on connections where nobody asks. Who has had no
    turn for so long, on a busy machine, may be late: that is nobody's failure, and not told.
    """
    stop = threading.Event()
    outcomes: list[str] = []

    def run() -> None:
        connection = http.client.HTTPConnection(*address, timeout=100)
        asked = time.monotonic()
        while not stop.is_set():
            before, sent = asked, False
            try:
                # It connects anew when the last answer said that the connection closes; what
                # fails is not tried again.
                connection.request("GET", "/")
                asked, sent = time.monotonic(), True
                answer = connection.getresponse()
                text = answer.read().decode()
                outcomes.append("ok" if answer.status == 200 and text.isdigit() else text)
            except (OSError, http.client.HTTPException) as error:
                if not sent:
                    asked = time.monotonic()
                # However long it then took to fail: one that is never answered is a failure.
                if asked - before < LINGER / 2:
                    outcomes.append(repr(error))
                connection.close()
                asked = time.monotonic()
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(100)


def test_load_tells_of_a_request_that_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with keep_alive_load(listener.getsockname(), clients=1) as outcomes:
            for _ in range(20):  # a busy machine may ask late, which is not told
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(65536).startswith(b"GET / ")
                    time.sleep(LINGER)  # it is the passing of time that is not to hide it
                if outcomes:
                    break
            listener.close()
    assert "RemoteDisconnected" in outcomes[0]


@pytest.mark.parametrize("http_class", ["httptools", "h11"])
def test_reload_under_keep_alive_load_fails_no_request(http_class: str) -> None:
    pytest.importorskip(http_class)
    with serving("app", "--workers", "2", "--option", f"http={http_class}") as server:
        address = server.address()
        before = set(server.workers())
        with keep_alive_load(address, clients=6) as outcomes:
            for count in (1, 2, 3):
                server.send(signal.SIGHUP)
                server.wait_for("serving on", count + 1)
                until(lambda: len(server.workers()) == 2)
            seen = len(outcomes)
            until(lambda: len(outcomes) > seen + 50)
        assert set(outcomes) == {"ok"}, Counter(outcomes).most_common(5)
        assert before.isdisjoint(server.workers())
        assert server.end() == 0
    assert server.log.count("lifespan.startup") == 8
    assert server.log.count("lifespan.shutdown") == 8
    assert "Traceback" not in server.log


def test_request_under_way_is_answered() -> None:
    with serving("make", "--factory", "--workers", "1") as server:
        address = server.address()
        assert "plait.Loop" in get(address, "/loop")
        connection = http.client.HTTPConnection(*address, timeout=100)
        connection.request("GET", "/slow")
        server.wait_for("slow request in")
        server.send(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.read().decode().isdigit()
        assert answer.headers["connection"] == "close"
        connection.close()
        assert server.process.wait(100) == 0


def test_quick_end_waits_for_no_request() -> None:
    with serving("app", "--workers", "1", "--grace", "600") as server:
        address = server.address()
        connection = http.client.HTTPConnection(*address, timeout=100)
        connection.request("GET", "/")
        connection.getresponse().read()
        assert server.end(signal.SIGINT) == 0
        connection.close()


def test_lifespan_that_fails_ends_it() -> None:
    with serving("broken", "--workers", "2") as server:
        server.wait_for("no database")
        assert server.process.wait(100) == 1
        server.wait_for("plait: a worker could not start")


def test_connections_are_shared_out() -> None:
    with serving("app", "--workers", "4") as server:
        address = server.address()
        counts = Counter(get(address) for _ in range(1000))
        assert len(counts) == 4
        assert max(counts.values()) <= 1.2 * 250, counts


def test_tls(pki: Pki) -> None:
    options = ("--certfile", pki.cert_file, "--keyfile", pki.key_file)
    with serving("app", "--workers", "2", *options) as server:
        host, port = server.address()
        connection = http.client.HTTPSConnection("localhost", port, context=pki.client)
        connection.request("GET", "/scheme")
        assert connection.getresponse().read() == b"https"
        connection.close()
        assert host == "127.0.0.1"
        assert server.end() == 0


def test_websockets_are_told() -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    with serving("app", "--workers", "1", "--grace", "5") as server:
        host, port = server.address()
        with websockets.connect(f"ws://{host}:{port}/") as sock:
            sock.send("who")
            old = sock.recv()
            server.send(signal.SIGHUP)
            with pytest.raises(exceptions.ConnectionClosed) as caught:
                sock.recv(timeout=100)
            assert caught.value.rcvd.code == 1012
        assert get((host, port)) != old


def test_bench_measures_loops_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    from plait.cli import main

    arguments = ["--loops", "asyncio,plait-epoll", "--rounds", "1", "--seconds", "0.5", "--json"]
    assert main(["bench", "http", *arguments]) == 0
    series = json.loads(capsys.readouterr().out)["series"]
    assert [s["name"] for s in series] == ["asyncio", "plait-epoll"]
    assert all(s["rates"][0] > 0 for s in series)
