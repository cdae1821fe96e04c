"""What plait.serve and its command take and refuse, before anything is started."""

from __future__ import annotations

import asyncio
import functools
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import serve_targets
from serve_support import HERE

import plait
from plait._serve_target import resolve

try:
    import uvicorn  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:
    uvicorn = None


async def plain(reader: Any, writer: Any) -> None:
    """A streams callback."""


async def wide(prefix: str, reader: Any, writer: Any) -> None:
    """One that becomes a streams callback by functools.partial."""


class Handler:
    async def on_connection(self, reader: Any, writer: Any) -> None:
        """A streams callback as a method."""


def wrapped(app: Any) -> Any:
    @functools.wraps(app)
    async def outer(*args: Any) -> None:
        await app(*args)

    return outer


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (serve_targets.Short, "protocol"),
        (lambda: serve_targets.Short(), "protocol"),
        (functools.partial(serve_targets.Short), "protocol"),
        (plain, "streams"),
        (Handler().on_connection, "streams"),
        (functools.partial(wide, "x"), "streams"),
        (serve_targets.application, "asgi"),
        (serve_targets.Application(), "asgi"),
        (wrapped(serve_targets.application), "asgi"),
        ("serve_targets:Short", "protocol"),
        ("serve_targets:commands", "streams"),
    ],
)
def test_kinds_are_told_by_arguments(target: Any, kind: str) -> None:
    assert resolve(target, None, False).kind == kind


@pytest.mark.parametrize(
    ("target", "factory", "message"),
    [
        (7, False, "7, which cannot be called"),
        (dict, False, "is a class, but no asyncio protocol"),
        (lambda a: a, False, "takes the arguments"),
        (lambda a, b: a, False, "takes the arguments"),
        (lambda *a: a, False, "takes the arguments"),
        (serve_targets.no_factory, True, "is an async function"),
        (lambda: 7, True, "7, which cannot be called"),
    ],
)
def test_what_it_cannot_be(target: Any, factory: bool, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        resolve(target, None, factory)


def test_kind_can_be_said() -> None:
    target = resolve(lambda *a: None, "asgi", False)
    assert target.kind == "asgi"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": "nothing"}, ValueError, "'module:attribute', not 'nothing'"),
        ({"target": "a b:c"}, ValueError, "'module:attribute', not 'a b:c'"),
        ({"target": 7}, TypeError, "cannot be called"),
        ({"target": 7, "factory": True}, TypeError, "must be callable with factory"),
        ({"workers": 0}, ValueError, "workers must be from 1 to 240, not 0"),
        ({"workers": 241}, ValueError, "workers must be from 1 to 240, not 241"),
        ({"workers": True}, TypeError, "workers must be an int, not True"),
        ({"backlog": 0}, ValueError, "backlog must be from 1"),
        ({"grace": -1}, ValueError, "grace must be finite and at least 0, not -1"),
        ({"grace": float("nan")}, ValueError, "grace must be finite"),
        ({"timeout": 0}, ValueError, "timeout must be finite and at least 0.5, not 0"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not '1'"),
        ({"start_timeout": float("inf")}, ValueError, "start_timeout must be finite"),
        ({"max_restarts": -1}, ValueError, "max_restarts must be from 0"),
        ({"kind": "http"}, ValueError, "kind must be one of protocol, streams, asgi, not 'http'"),
        ({"ssl": object()}, TypeError, "ssl must be a function"),
        ({"options": {"log_level": "info"}}, ValueError, "options is for ASGI applications"),
        ({"options": {"workers": 2}}, ValueError, "options must leave 'workers'"),
        ({"port": 65536}, ValueError, "port must be from 0 to 65535, not 65536"),
        ({"port": "80"}, TypeError, "port must be an int, not '80'"),
        ({"host": 7}, TypeError, "int"),
        ({"host": [7]}, TypeError, "host must be a str or several, not 7"),
        ({"path": b"x"}, TypeError, "path must be a str or None, not b'x'"),
        ({"sockets": [7]}, TypeError, "sockets must be sockets, not 7"),
    ],
)
def test_bad_arguments(
    no_leaks: None, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"target": serve_targets.Short, "port": 0, **change}
    with pytest.raises(error, match=message):
        plait.serve(arguments.pop("target"), **arguments)


def test_datagram_sockets_are_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="stream sockets"):
            plait.serve(serve_targets.Short, sockets=[sock])


@pytest.mark.skipif(uvicorn is not None, reason="uvicorn is installed")
def test_uvicorn_is_asked_for() -> None:
    with pytest.raises(RuntimeError, match="pip install uvicorn"):
        plait.serve(serve_targets.application, port=0)


def test_only_from_the_main_thread_without_a_loop() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            plait.serve(serve_targets.Short, port=0)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])

    async def main() -> None:
        with pytest.raises(RuntimeError, match="from a running event loop"):
            plait.serve(serve_targets.Short, port=0)

    asyncio.run(main())


def test_nobody_serves_here() -> None:
    assert plait.serving() is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 2, "'module:attribute', not 'nothing'"),
        (["a:b", "--bind", "nowhere"], 2, "HOST:PORT, unix:PATH or fd:N, not 'nowhere'"),
        (["a:b", "--bind", "127.0.0.1:99999"], 2, "not '127.0.0.1:99999'"),
        (["a:b", "--workers", "0"], 2, "whole number from 1 to 240"),
        (["a:b", "--option", "x"], 2, "an option is NAME=VALUE, not 'x'"),
        (["a:b", "--bind", "127.0.0.1:0", "--keyfile", "x"], 2, "--keyfile goes with --certfile"),
        (["a:b", "--bind", "unix:"], 2, "HOST:PORT, unix:PATH or fd:N, not 'unix:'"),
        (["a:b", "--option", "workers=2"], 2, "--option must leave 'workers'"),
        (
            ["a:b", "--bind", "127.0.0.1:0", "--certfile", "/missing"],
            1,
            "--certfile: cannot read '/missing': No such file",
        ),
        (
            ["a:b", "--bind", "127.0.0.1:0", "--certfile", __file__, "--keyfile", "/missing"],
            1,
            "--keyfile: cannot read '/missing': No such file",
        ),
        (["a:b", "--certfile", __file__], 1, f"--certfile {__file__} cannot be used"),
        (["a:b", "--bind", "fd:999999"], 1, "descriptor 999999 is no socket"),
    ],
)
def test_command_refuses(
    arguments: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from plait.cli import main

    path = list(sys.path)
    try:
        found = main(["serve", *arguments])
    except SystemExit as error:
        found = error.code  # type: ignore[assignment]
    finally:
        sys.path[:] = path
    assert found == code
    assert message in capfd.readouterr().err


def test_socket_of_a_parent() -> None:
    """As systemd hands sockets over."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        child = subprocess.Popen(
            [sys.executable, "-m", "plait", "serve", "serve_targets:Short", "--workers", "1"]
            + ["--bind", f"fd:{sock.fileno()}", "--app-dir", str(HERE)],
            pass_fds=[sock.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            with socket.create_connection(sock.getsockname(), timeout=100) as client:
                client.sendall(b"?")
                assert int(client.recv(100)) != child.pid
        finally:
            child.terminate()
            assert child.wait(100) == 0
