"""What asyncio documents is there, under the names and with the parameters of this version."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import socket
import ssl
import sys
import threading
from asyncio import selector_events, sslproto
from collections.abc import Callable
from typing import Any

import pytest
from tls_support import Recorder, connect, finish, serve, stop

import plait
from plait import _core

Factory = Callable[[], asyncio.AbstractEventLoop]


def run_on(factory: Factory, coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(asyncio.wait_for(coroutine, 100))


def public(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))]


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    """The parameters of a method but for self: names, kinds, defaults."""
    found = list(inspect.signature(method).parameters.values())[1:]
    return [(one.name, one.kind, one.default) for one in found]


# ---- by signature ----


@pytest.mark.parametrize("name", public(asyncio.AbstractEventLoop))
def test_methods_of_the_loop(name: str) -> None:
    mine = getattr(plait.Loop, name)
    assert mine is not getattr(asyncio.AbstractEventLoop, name), "it is abstract"
    expected = parameters(getattr(asyncio.SelectorEventLoop, name))
    if name == "create_task":  # takes whatever this version's asyncio.Task takes
        assert parameters(mine)[0] == expected[0]
    else:
        assert parameters(mine) == expected


@pytest.mark.parametrize(
    ("mine", "asyncios"),
    [
        (_core.SocketTransport, selector_events._SelectorSocketTransport),  # type: ignore[attr-defined]
        (_core.SSLTransport, sslproto._SSLProtocolTransport),
    ],
)
def test_methods_of_transports(mine: type, asyncios: type) -> None:
    for name in public(asyncio.Transport):
        method = getattr(mine, name)
        assert method is not getattr(asyncio.Transport, name, None), f"{name} is abstract"
        assert parameters(method) == parameters(getattr(asyncios, name)), name


def test_fast_streams_have_asyncios_parameters(any_loop_factory: Factory) -> None:
    """The reader and writer that a server's callback is given, for which there is C."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        given: asyncio.Future[tuple[Any, Any]] = loop.create_future()
        server = await asyncio.start_server(lambda *pair: given.set_result(pair), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        theirs = await given
        for pair in ((reader, writer), theirs):
            for one, cls in zip(pair, (asyncio.StreamReader, asyncio.StreamWriter), strict=True):
                assert isinstance(one, cls)
                for name in public(cls):
                    mine = inspect.signature(getattr(one, name))
                    names = [p for p in mine.parameters if p != "self"]
                    assert names == [p for p, _, _ in parameters(getattr(cls, name))], name
        theirs[1].write(data=b"a line\nmore")
        theirs[1].writelines(data=[b" and", b" more"])
        assert await reader.readuntil(separator=b"\n") == b"a line\n"
        assert await reader.readexactly(n=4) == b"more"
        assert await reader.read(n=3) == b" an"
        writer.write(data=b"x")
        assert await theirs[0].read(n=10) == b"x"
        theirs[0].feed_data(data=b"fed")
        assert await theirs[0].read(n=10) == b"fed"
        for one in (writer, theirs[1]):
            one.close()
        server.close()

    run_on(any_loop_factory, main())


# ---- by calls ----


def test_parameters_by_name(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        called: asyncio.Queue[Any] = asyncio.Queue()
        context = contextvars.copy_context()
        put = called.put_nowait
        for scheduled in (
            lambda: loop.call_soon(callback=lambda: put(1)),
            lambda: loop.call_soon(callback=lambda: put(1), context=context),
            lambda: loop.call_soon_threadsafe(callback=lambda: put(1)),
            lambda: loop.call_later(delay=0, callback=lambda: put(1)),
            lambda: loop.call_later(0, callback=lambda: put(1), context=context),
            lambda: loop.call_at(when=loop.time(), callback=lambda: put(1)),
            lambda: loop.call_at(callback=lambda: put(1), when=loop.time()),
        ):
            scheduled()
            assert await called.get() == 1
        assert await loop.create_task(coro=asyncio.sleep(0, 2), name="t") == 2

        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            buffer = bytearray(3)
            b.send(b"onetwosixten")
            assert await loop.sock_recv(sock=a, n=3) == b"one"
            assert await loop.sock_recv_into(sock=a, buf=buffer) == 3
            assert await loop.sock_recvfrom(sock=a, bufsize=3) == (b"six", None)
            assert (await loop.sock_recvfrom_into(sock=a, buf=buffer, nbytes=2))[0] == 2
            await loop.sock_sendall(sock=a, data=b"all")
            assert b.recv(10) == b"all"
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            listening.setblocking(False)
            client.setblocking(False)
            await loop.sock_connect(sock=client, address=listening.getsockname())
            (await loop.sock_accept(sock=listening))[0].close()
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.setblocking(False)
            one.bind(("127.0.0.1", 0))
            assert await loop.sock_sendto(sock=one, data=b"x", address=one.getsockname()) == 1

        a, b = socket.socketpair()
        with b:
            a.setblocking(False)
            b.setblocking(False)
            transport, protocol = await loop.connect_accepted_socket(
                protocol_factory=asyncio.Protocol, sock=a
            )
            transport.write(data=b"one")
            transport.writelines(list_of_data=[b"two", b"six"])
            received = b""
            while len(received) < 9:
                received += await loop.sock_recv(b, 10)
            assert received == b"onetwosix"
            transport.set_protocol(protocol=protocol)
            transport.set_write_buffer_limits(high=10, low=5)
            assert transport.get_extra_info(name="nothing", default=7) == 7
            transport.close()

    run_on(any_loop_factory, main())


def test_parameters_by_name_over_tls(
    mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        server, port, protocols = await serve(Recorder, server_context)
        protocol = await connect(port, client_context)
        transport = protocol.transport
        transport.write(data=b"one")
        transport.writelines(list_of_data=[b"two", b"six"])
        transport.set_protocol(protocol=protocol)
        transport.set_write_buffer_limits(high=10, low=5)
        assert transport.get_extra_info(name="nothing", default=7) == 7
        assert await (await protocols.reached(1)).received(9) == b"onetwosix"
        await finish(protocol)
        await stop(server, protocols)

    mine(main())


def test_wrong_names_are_refused(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with b:
            a.setblocking(False)
            transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, a)
            for wrong in (
                lambda: loop.call_soon(),
                lambda: loop.call_soon(call=print),
                lambda: loop.call_soon(print, callback=print),
                lambda: loop.call_soon(callback=print, nothing=1),
                lambda: loop.call_later(callback=print),
                lambda: loop.call_later(0, delay=0, callback=print),
                lambda: loop.call_at(1),
                lambda: loop.call_at(when=1, callback=print, **dict.fromkeys("abcdefgh")),
                lambda: transport.write(),
                lambda: transport.write(dat=b"x"),
                lambda: transport.write(b"x", data=b"x"),
                lambda: transport.write(b"x", b"x"),
                lambda: transport.set_protocol(),
            ):
                with pytest.raises(TypeError):
                    wrong()
            transport.close()

    run_on(any_loop_factory, main())


@pytest.mark.parametrize("factory", [None, "eager", "own"])
def test_what_create_task_takes(any_loop_factory: Factory, factory: str | None) -> None:
    """Name and context everywhere; eager_start from Python 3.14 on."""
    if factory == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    given: list[dict[str, Any]] = []

    def own(loop: Any, coro: Any, **kwargs: Any) -> Any:
        given.append(dict(kwargs))
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def body(began: list[int]) -> int:
        began.append(variable.get())
        await asyncio.sleep(0)
        return variable.get()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        eager = factory == "eager"
        loop.set_task_factory(
            {"eager": getattr(asyncio, "eager_task_factory", None), "own": own}.get(factory)
        )
        context = contextvars.copy_context()
        context.run(variable.set, 5)
        began: list[int] = []
        task = loop.create_task(body(began), name="named", context=context)
        assert began == [5] * eager
        assert task.get_name() == "named"
        assert task in asyncio.all_tasks()
        assert await task == 5
        began.clear()
        if sys.version_info >= (3, 14):
            assert await loop.create_task(body(began), eager_start=False) == 0
            began.clear()
            task = loop.create_task(body(began), name="at once", eager_start=True)
            assert began == [0]
            assert task.get_name() == "at once"
            assert await task == 0
        coroutine = body(began)
        for wrong in (
            lambda: loop.create_task(coroutine, no_such_thing=1),
            lambda: loop.create_task(None),
            lambda: loop.create_task(),
        ):
            with pytest.raises(TypeError):
                wrong()
        coroutine.close()
        if factory == "own":
            assert given[0].get("context") is context

    run_on(any_loop_factory, main())


@pytest.mark.skipif(sys.version_info < (3, 12, 2), reason="Python 3.12.2 has the timeout first")
def test_shutting_the_executor_down_has_a_limit(any_loop_factory: Factory) -> None:
    go = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.create_future()

        def stuck() -> None:
            loop.call_soon_threadsafe(begun.set_result, None)
            go.wait(30)

        future = loop.run_in_executor(None, stuck)
        await begun
        with pytest.warns(RuntimeWarning, match="within 0.01 seconds"):
            await loop.shutdown_default_executor(timeout=0.01)
        with pytest.raises(RuntimeError, match="shut"):
            loop.run_in_executor(None, print)
        go.set()
        with contextlib.suppress(asyncio.CancelledError):
            await future

    try:
        run_on(any_loop_factory, main())
    finally:
        go.set()
