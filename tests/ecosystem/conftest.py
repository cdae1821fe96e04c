"""Fixtures: the loops under test, certificates, and real servers on loopback.

Every test takes ``run`` or ``loop_factory`` and so runs twice: on plait, and on the
interpreter's own loop as a control. A failure on both is the library's, or the test's. What is
served to the world (``BOTH_BACKENDS``) runs on plait with io_uring as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import gc
import os
import pwd
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from eco_support import Daemon, Pki, Postgres, Redis, free_port, open_kernel_objects

import plait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

DEADLINE = 60.0  # seconds that one test may take, ended by the loop
HARD_LIMIT = 120.0  # seconds after which a hung process tells where it hangs, and dies

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "plait": plait.new_event_loop,
    "plait-uring": lambda: plait.Loop(backend="uring"),
    "asyncio": asyncio.SelectorEventLoop,
}


def pytest_configure(config: pytest.Config) -> None:
    """Register what these tests are marked with."""
    config.addinivalue_line("markers", "ecosystem: released libraries on plait's loop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here. Warnings are errors, as everywhere, but for these."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("ecosystem")
            # What libraries say of each other's age is no concern of the loop's.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


#: The files whose tests run on each backend.
BOTH_BACKENDS = (
    "test_eco_aiohttp",
    "test_eco_connections",
    "test_eco_uvicorn",
    "test_eco_websockets",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tell each test its loops."""
    if "loop_name" in metafunc.fixturenames:
        both = metafunc.module.__name__ in BOTH_BACKENDS
        names = [name for name in FACTORIES if both or name != "plait-uring"]
        metafunc.parametrize("loop_name", names, indirect=True)


@functools.cache
def has_uring() -> bool:
    """Tell whether the kernel gives us io_uring."""
    with contextlib.closing(plait.Loop(backend="uring")) as loop:
        return loop.backend == "uring"


@pytest.fixture(autouse=True)
def _hard_limit() -> Iterator[None]:
    """End the process, with its stacks, when a loop hangs so that no deadline helps."""
    faulthandler.dump_traceback_later(HARD_LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def loop_name(request: pytest.FixtureRequest) -> str:
    """Which loop, of FACTORIES."""
    name: str = request.param
    if name == "plait-uring" and not has_uring():
        pytest.skip("no io_uring here: see plait doctor")
    return name


@pytest.fixture
def loop_factory(loop_name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop."""
    return FACTORIES[loop_name]


@pytest.fixture
def run(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Run a coroutine function on the loop, to its end and strictly.

    The test fails when the loop's exception handler hears of anything, when the deadline
    passes, or when a socket, pipe or poller is still open after the loop is closed.
    """

    def strictly(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        gc.collect()
        before = open_kernel_objects()
        told: list[str] = []

        async def with_deadline() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: told.append(repr(context)))
            async with asyncio.timeout(DEADLINE):
                await main()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(with_deadline())
        gc.collect()
        assert told == []
        assert open_kernel_objects() - before == set()

    return strictly


# ---- certificates ----


@pytest.fixture(scope="session")
def authority() -> Any:
    """A certificate authority of this run."""
    return pytest.importorskip("trustme").CA()


def _write(path: Path, data: bytes, mode: int = 0o644) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


@pytest.fixture(scope="session")
def pki(authority: Any, tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates of a server and of a client."""
    place = tmp_path_factory.mktemp("pki")
    cert = authority.issue_cert("localhost", "127.0.0.1")
    mine = authority.issue_cert("client@example.org", common_name="a known client")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    mutual = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    mutual.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(mutual)
    for context in (server, mutual):
        cert.configure_cert(context)
    client, known_client = ssl.create_default_context(), ssl.create_default_context()
    for context in (client, known_client):
        authority.configure_trust(context)
    mine.configure_cert(known_client)
    return Pki(
        server=server,
        mutual=mutual,
        client=client,
        known_client=known_client,
        ca_file=_write(place / "ca.pem", authority.cert_pem.bytes()),
        cert_file=_write(place / "cert.pem", b"".join(b.bytes() for b in cert.cert_chain_pems)),
        key_file=_write(place / "key.pem", cert.private_key_pem.bytes(), 0o600),
        client_cert_file=_write(
            place / "client.pem", b"".join(b.bytes() for b in mine.cert_chain_pems)
        ),
        client_key_file=_write(place / "client-key.pem", mine.private_key_pem.bytes(), 0o600),
    )


# ---- real servers ----


def _find_postgres() -> Path | None:
    for place in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


@pytest.fixture(scope="session")
def postgres(authority: Any) -> Iterator[Postgres]:
    """A PostgreSQL server of our own, new and empty."""
    binaries = _find_postgres()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    user = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = next((u for u in ("postgres", "nobody") if _user_with_group(u)), None)
        if user is None:
            pytest.skip("we are root, and there is no user to run PostgreSQL as")
    # Not under pytest's directory, which only its owner may enter.
    base = Path(tempfile.mkdtemp(prefix="plait-postgres-"))
    daemon = None
    try:
        cert = authority.issue_cert("localhost", "127.0.0.1")
        _write(base / "server.crt", b"".join(b.bytes() for b in cert.cert_chain_pems))
        _write(base / "server.key", cert.private_key_pem.bytes(), 0o600)
        if user is not None:
            for path in (base, base / "server.crt", base / "server.key"):
                shutil.chown(path, user, user)
        data = base / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "plait", "-A", "trust", "-E", "UTF8"]
            + ["--no-sync", "--no-locale"],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            **({} if user is None else {"user": user, "group": user, "extra_groups": []}),
        )
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(base),
            "fsync": "off",
            "max_connections": "60",
            "ssl": "on",
            "ssl_cert_file": str(base / "server.crt"),
            "ssl_key_file": str(base / "server.key"),
        }
        argv = [str(binaries / "postgres"), "-D", str(data)]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        daemon = Daemon(argv, "database system is ready to accept connections", user=user)
        yield Postgres("127.0.0.1", port, "plait", str(base))
    finally:
        if daemon is not None:
            daemon.stop()
        shutil.rmtree(base, ignore_errors=True)


def _user_with_group(name: str) -> bool:
    import grp

    try:
        pwd.getpwnam(name)
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def redis_server(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis server of our own, in memory only."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    place = tmp_path_factory.mktemp("redis")
    port, tls_port = free_port(), free_port()
    unix_socket = str(place / "redis.sock")
    plain = [binary, "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", unix_socket]
    plain += ["--save", "", "--appendonly", "no", "--dir", str(place), "--daemonize", "no"]
    tls = ["--tls-port", str(tls_port), "--tls-cert-file", pki.cert_file]
    tls += ["--tls-key-file", pki.key_file, "--tls-ca-cert-file", pki.ca_file]
    tls += ["--tls-auth-clients", "no"]
    has_tls: int | None = tls_port
    try:
        daemon = Daemon(plain + tls, "Ready to accept connections")
    except RuntimeError:
        has_tls = None
        daemon = Daemon(plain, "Ready to accept connections")
    try:
        yield Redis(port, has_tls, unix_socket)
    finally:
        daemon.stop()
