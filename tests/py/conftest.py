"""What all Python tests share: marks, loops, and a watch over what tests leave behind."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import hypothesis
import pytest
from pool_gate import Gate
from tls_support import LIMIT, PAIRS, Side, make_certificates

import plait

# The same examples each time, however slow the machine is: a change is judged by its own faults,
# not by a lucky find. --hypothesis-profile=stress hunts: what has no number of its own runs so many.
SLOW = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=SLOW
)
hypothesis.settings.register_profile(
    "stress", max_examples=3000, deadline=None, suppress_health_check=SLOW
)
hypothesis.settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl+C for what it is, even in the background.

    A shell without job control starts its background commands with SIGINT ignored, and so
    would every process be that a test starts and interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked ``stress`` unless ``-m`` asks for marks."""
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="stress: run by `make stress`")
    for item in items:
        if "stress" in item.keywords:
            item.add_marker(skip)


def open_fds() -> set[int]:
    """The descriptors of this process, but for the one that lists them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.stat(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found.add(int(name))
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail when a test leaves descriptors or threads behind."""
    gc.collect()
    fds = open_fds()
    threads = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(LIMIT)  # told to end, as by the close() of a loop, which does not wait
    assert open_fds() - fds == set(), "descriptors were left open"
    assert set(threading.enumerate()) - threads == set(), "threads were left running"


@pytest.fixture(scope="session")
def sub_interpreters() -> None:
    """Skip where the interpreter itself has none, or crashes (3.12.1) at the end of one.

    The control is what plait's tests do, without plait.
    """
    control = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreter = interpreters.create()
assert interpreters.run_string(interpreter, "import asyncio; asyncio.run(asyncio.sleep(0))") is None
interpreters.destroy(interpreter)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", control], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this interpreter cannot run asyncio in a sub-interpreter")


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """Make the interpreter's own loop."""
    return asyncio.SelectorEventLoop()


@pytest.fixture
def loop() -> Iterator[Any]:
    """Yield a plait loop; it is closed afterwards, with what still runs on it cancelled."""
    new: Callable[[], Any] = plait.new_event_loop
    loop = new()
    asyncio.set_event_loop(None)
    yield loop
    if not loop.is_closed():
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a connected pair of non-blocking sockets."""
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield a non-blocking socket that listens on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture
def uring() -> Iterator[Any]:
    """Yield a loop with io_uring, which this machine's kernel may not have."""
    loop = plait.Loop(backend="uring")
    if loop.backend != "uring":
        loop.close()
        pytest.skip("no io_uring here: see plait doctor")
    yield loop
    loop.close()


@pytest.fixture(params=["plait", "asyncio"])
def any_loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Give a loop factory: plait's and the interpreter's, so that a test proves both alike."""
    if request.param == "asyncio":
        return new_asyncio_loop
    new: Callable[[], asyncio.AbstractEventLoop] = plait.new_event_loop
    return new


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> Iterator[Gate]:
    """Yield a gate that holds pool tasks; it is open at the end."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# ---- TLS ----


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make an authority, and certificates of a server and a client by it."""
    where = tmp_path_factory.mktemp("certs")
    make_certificates(where)
    return where


@pytest.fixture
def server_context(certs: pathlib.Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.pem", certs / "server.key")
    return context


@pytest.fixture
def client_context(certs: pathlib.Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certs / "ca.pem"))


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-serves-{pair[1]}")
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    """Give (server's, client's) loops, one of them plait's at least."""
    made = [Side(kind) for kind in request.param]
    yield made[0], made[1]
    for side in made:
        side.close()


@pytest.fixture
def mine(loop: Any) -> Callable[[Awaitable[Any]], Any]:
    """Run a coroutine on a plait loop in this thread."""

    def run(coroutine: Awaitable[Any]) -> Any:
        return loop.run_until_complete(asyncio.wait_for(coroutine, LIMIT))

    return run


@pytest.fixture
def run(
    any_loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on each kind of loop, for 100 seconds at most."""

    def run_it(coro: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=any_loop_factory) as runner:
            return runner.run(asyncio.wait_for(coro, 100))

    return run_it
