"""anyio by backend_options: structure, sockets, threads, processes, signals."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from eco_support import open_kernel_objects, until_stalled

anyio = pytest.importorskip("anyio")

from anyio import (  # noqa: E402
    from_thread,
    to_process,
    to_thread,
)
from anyio.abc import SocketAttribute  # noqa: E402
from anyio.streams.buffered import BufferedByteReceiveStream  # noqa: E402
from anyio.streams.tls import TLSListener, TLSStream  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from eco_support import Pki


@pytest.fixture
def run_anyio(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Any:
    """Run a coroutine function by anyio.run on the loop, and look for what it left open."""

    def strictly(main: Any) -> None:
        gc.collect()
        before = open_kernel_objects()

        async def with_deadline() -> None:
            told: list[str] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: told.append(repr(context)))
            expected = loop_factory()
            assert type(loop) is type(expected)
            expected.close()
            with anyio.fail_after(60):
                await main()
            assert told == []

        anyio.run(with_deadline, backend="asyncio", backend_options={"loop_factory": loop_factory})
        gc.collect()
        assert open_kernel_objects() - before == set()

    return strictly


def test_cancel_scopes(run_anyio: Any) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        with anyio.CancelScope() as outer:
            outer.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0)  # not cancelled in here
                reached = True
            await anyio.sleep(0)
            raise AssertionError("the outer scope is cancelled")
        assert reached
        assert outer.cancelled_caught
        # A scope that is cancelled by another task, with a stubborn one inside.
        tries = 0
        async with anyio.create_task_group() as group:

            async def stubborn() -> None:
                nonlocal tries
                while tries < 10:
                    try:
                        await anyio.sleep_forever()
                    except anyio.get_cancelled_exc_class():
                        tries += 1

            group.start_soon(stubborn)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert tries == 10
        assert anyio.current_effective_deadline() < float("inf")

    run_anyio(main)


def test_task_groups(run_anyio: Any) -> None:
    async def main() -> None:
        ended = []

        async def wait() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("wait")

        async def fail(text: str) -> None:
            raise ValueError(text)

        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(fail, "one")
                group.start_soon(fail, "two")
        assert sorted(str(e) for e in caught.value.exceptions) == ["one", "two"]
        assert ended == ["wait"]

        async def service(*, task_status: Any) -> None:
            task_status.started("ready")
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            assert await group.start(service) == "ready"
            group.cancel_scope.cancel()
        names = []
        async with anyio.create_task_group() as group:
            for i in range(1000):

                async def note(i: int = i) -> None:
                    await anyio.sleep(0)
                    names.append(i)

                group.start_soon(note)
        assert sorted(names) == list(range(1000))

    run_anyio(main)


def test_synchronisation(run_anyio: Any) -> None:
    async def main() -> None:
        limiter = anyio.CapacityLimiter(3)
        busy = most = 0

        async def work() -> None:
            nonlocal busy, most
            async with limiter:
                busy += 1
                most = max(most, busy)
                await anyio.sleep(0)
                busy -= 1

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(work)
        assert most == 3
        send, receive = anyio.create_memory_object_stream[int](2)
        got = []
        async with anyio.create_task_group() as group:

            async def produce() -> None:
                async with send:
                    for i in range(500):
                        await send.send(i)

            group.start_soon(produce)
            async with receive:
                async for item in receive:
                    got.append(item)
        assert got == list(range(500))

    run_anyio(main)


def test_tcp_streams(run_anyio: Any) -> None:
    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)

            async def serve(stream: Any) -> None:
                async with stream:
                    async for part in stream:
                        await stream.send(part)

            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, serve)

                async def client(i: int) -> None:
                    async with await anyio.connect_tcp("localhost", port) as stream:
                        data = os.urandom(1 << 20 if i == 0 else 1000)
                        buffered = BufferedByteReceiveStream(stream)
                        async with anyio.create_task_group() as both:
                            both.start_soon(stream.send, data)
                            assert await buffered.receive_exactly(len(data)) == data
                        await stream.send_eof()
                        with pytest.raises(anyio.EndOfStream):
                            await stream.receive()

                async with anyio.create_task_group() as clients:
                    for i in range(100):
                        clients.start_soon(client, i)
                group.cancel_scope.cancel()
            with pytest.raises(OSError):
                async with await anyio.connect_tcp("127.0.0.1", 1):
                    pass

    run_anyio(main)


def test_slow_reader_stops_the_sender(run_anyio: Any) -> None:
    async def main() -> None:
        sent = 0
        total = 512
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:

            async def flood(stream: Any) -> None:
                nonlocal sent
                async with stream:
                    for _ in range(total):
                        await stream.send(b"x" * 65536)
                        sent += 1

            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, flood)
                async with await anyio.connect_tcp(
                    "127.0.0.1", listener.extra(SocketAttribute.local_port)
                ) as stream:
                    await until_stalled(lambda: sent)
                    assert sent < total
                    received = 0
                    async for part in stream:
                        received += len(part)
                    assert received == total * 65536
                group.cancel_scope.cancel()

    run_anyio(main)


def test_connection_errors(run_anyio: Any) -> None:
    async def main() -> None:
        import struct

        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as group:

                async def reset(stream: Any) -> None:
                    raw = stream.extra(SocketAttribute.raw_socket)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    await anyio.aclose_forcefully(stream)

                group.start_soon(listener.serve, reset)
                for _ in range(20):
                    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                        with pytest.raises(anyio.BrokenResourceError):
                            await stream.receive()
                group.cancel_scope.cancel()
            async with anyio.create_task_group() as group:
                stream = await anyio.connect_tcp("127.0.0.1", port)

                async def read() -> None:
                    with pytest.raises(anyio.ClosedResourceError):
                        await stream.receive()

                group.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError):
                    await stream.receive()
                await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"late")

    run_anyio(main)


def test_tls(run_anyio: Any, pki: Pki) -> None:
    async def main() -> None:
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = plain.extra(SocketAttribute.local_port)
        listener = TLSListener(plain, pki.mutual)

        async def serve(stream: Any) -> None:
            async with stream:
                async for part in stream:
                    await stream.send(part)

        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            async with await anyio.connect_tcp(
                "localhost", port, tls=True, ssl_context=pki.known_client
            ) as stream:
                assert isinstance(stream, TLSStream)
                data = os.urandom(1 << 20)
                buffered = BufferedByteReceiveStream(stream)
                async with anyio.create_task_group() as both:
                    both.start_soon(stream.send, data)
                    assert await buffered.receive_exactly(len(data)) == data
            with pytest.raises(ssl.SSLCertVerificationError):
                await anyio.connect_tcp("localhost", port, tls=True)
            group.cancel_scope.cancel()

    run_anyio(main)


def test_unix_sockets_pass_descriptors(run_anyio: Any, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        (tmp_path / "file").write_text("passed on")
        async with await anyio.create_unix_listener(path) as listener:
            async with anyio.create_task_group() as group:

                async def serve(stream: Any) -> None:
                    async with stream:
                        message, fds = await stream.receive_fds(10, 4)
                        assert message == b"take"
                        with os.fdopen(fds[0]) as file:
                            await stream.send(file.read().encode())

                group.start_soon(listener.serve, serve)
                async with await anyio.connect_unix(path) as stream:
                    with (tmp_path / "file").open() as file:
                        await stream.send_fds(b"take", [file])
                    assert await stream.receive() == b"passed on"
                group.cancel_scope.cancel()

    run_anyio(main)


def test_unix_socket_closed_while_it_waits(run_anyio: Any, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with await anyio.create_unix_listener(path):
            for way in ("receive", "send"):
                stream = await anyio.connect_unix(path)

                async def wait(stream: Any = stream, way: str = way) -> None:
                    with pytest.raises(anyio.ClosedResourceError):  # noqa: PT012
                        if way == "receive":
                            await stream.receive()
                        while True:
                            await stream.send(b"x" * 65536)

                async with anyio.create_task_group() as group:
                    group.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    await stream.aclose()

    run_anyio(main)


def test_udp(run_anyio: Any) -> None:
    async def main() -> None:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
            port = server.extra(SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
                for i in range(200):
                    await client.send(b"%d" % i)
                    data, address = await server.receive()
                    assert data == b"%d" % i
                    await server.sendto(data.upper(), *address)
                    assert await client.receive() == data
            gone = port
        async with await anyio.create_connected_udp_socket("127.0.0.1", gone) as client:
            await client.send(b"is anybody there")

    run_anyio(main)


def test_wait_readable(run_anyio: Any) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            await anyio.wait_writable(a)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.wait_readable, a)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError):
                    await anyio.wait_readable(a)
                b.send(b"x")
            a.recv(1)
            with anyio.move_on_after(0.01) as scope:
                await anyio.wait_readable(a)
            assert scope.cancelled_caught
            async with anyio.create_task_group() as group:

                async def closed() -> None:
                    with pytest.raises(anyio.ClosedResourceError):
                        await anyio.wait_readable(a)

                group.start_soon(closed)
                await anyio.wait_all_tasks_blocked()
                anyio.notify_closing(a)

    run_anyio(main)


def test_threads(run_anyio: Any) -> None:
    async def main() -> None:
        me = threading.get_ident()
        assert await to_thread.run_sync(threading.get_ident) != me

        async def double(value: int) -> int:
            assert threading.get_ident() == me
            await anyio.sleep(0)
            return 2 * value

        def in_thread() -> list[int]:
            return [from_thread.run(double, i) for i in range(20)]

        assert await to_thread.run_sync(in_thread) == [2 * i for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            await to_thread.run_sync(lambda: 1 // 0)
        # Left behind when its scope is cancelled.
        release = threading.Event()
        with anyio.move_on_after(0.02) as scope:
            await to_thread.run_sync(release.wait, abandon_on_cancel=True)
        assert scope.cancelled_caught
        release.set()
        async with anyio.create_task_group() as group:
            for i in range(200):
                group.start_soon(to_thread.run_sync, pow, i, 2)
        async with from_thread.BlockingPortal() as portal:
            assert await to_thread.run_sync(portal.call, double, 21) == 42

    run_anyio(main)


def test_blocking_portal_in_a_thread(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with from_thread.start_blocking_portal(
        "asyncio", backend_options={"loop_factory": loop_factory}
    ) as portal:

        async def where() -> type:
            await anyio.sleep(0)
            return type(asyncio.get_running_loop())

        loop = loop_factory()
        loop.close()
        assert portal.call(where) is type(loop)
        futures = [portal.start_task_soon(where) for _ in range(100)]
        assert {f.result() for f in futures} == {type(loop)}
        waiting = portal.start_task_soon(anyio.sleep_forever)
        waiting.cancel()


def test_subprocess_pipes(run_anyio: Any) -> None:
    async def main() -> None:
        result = await anyio.run_process(["cat"], input=b"y" * 3_000_000)
        assert result.stdout == b"y" * 3_000_000
        with pytest.raises(Exception, match="exit status 3"):
            await anyio.run_process("exit 3")
        async with await anyio.open_process(
            [sys.executable, "-uc", "import sys\nfor l in sys.stdin: print(l.upper(), end='')"]
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            lines = BufferedByteReceiveStream(process.stdout)
            for word in (b"one", b"two", b"three"):
                await process.stdin.send(word + b"\n")
                assert await lines.receive_until(b"\n", 100) == word.upper()
            await process.stdin.aclose()
            assert await process.wait() == 0
        with anyio.move_on_after(0.05) as scope:
            await anyio.run_process(["sleep", "600"])
        assert scope.cancelled_caught
        results = []

        async def short(i: int) -> None:
            done = await anyio.run_process(["echo", str(i)])
            results.append(int(done.stdout))

        async with anyio.create_task_group() as group:
            for i in range(40):
                group.start_soon(short, i)
        assert sorted(results) == list(range(40))

    run_anyio(main)


def test_worker_process(run_anyio: Any) -> None:
    async def main() -> None:
        assert await to_process.run_sync(partial(pow, 3), 5) == 243
        assert await to_process.run_sync(os.getpid) != os.getpid()
        with pytest.raises(ZeroDivisionError):
            await to_process.run_sync(divmod, 1, 0)

    run_anyio(main)


def test_signals(run_anyio: Any) -> None:
    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as received:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                assert await anext(received) == number

    run_anyio(main)


def test_files(run_anyio: Any, tmp_path: Path) -> None:
    async def main() -> None:
        path = anyio.Path(tmp_path / "file")
        await path.write_text("one\ntwo\n")
        async with await anyio.open_file(path) as file:
            assert [line async for line in file] == ["one\n", "two\n"]
        assert [p.name async for p in anyio.Path(tmp_path).iterdir()] == ["file"]

    run_anyio(main)
