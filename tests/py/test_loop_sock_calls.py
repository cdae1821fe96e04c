"""sock_recv and its kin: they try first, wait without forgetting, and take nothing in vain."""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import gc
import os
import socket
import ssl
import warnings
import weakref
from typing import Any

import pytest
from loop_support import Poller, polled
from sanitizer import needs_plain_memory

import plait


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


def registered(fd: int) -> bool:
    """Whether a poller of this process has the descriptor."""
    for name in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{name}") as file:
            for line in file:
                words = line.split()
                if words[:1] == ["tfd:"] and int(words[1]) == fd:
                    return True
    return False


def test_nothing_happens_before_it_is_awaited(loop: plait.Loop, pair: Any) -> None:
    a, b = pair
    b.send(b"x")
    with pytest.warns(RuntimeWarning, match=r"'Loop.sock_recv' was never awaited"):
        loop.sock_recv(a, 10)
    assert loop.run_until_complete(loop.sock_recv(a, 10)) == b"x"


def test_it_is_a_coroutine_to_tasks(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        call = loop.sock_recv(a, 10)
        assert asyncio.iscoroutine(call)
        task = asyncio.create_task(call, name="receiver")
        await asyncio.sleep(0)
        assert "sock_recv" in repr(task)
        assert not task.done()
        b.send(b"data")
        assert await task == b"data"
        with pytest.raises(RuntimeError, match="already awaited"):
            await call
        closed = loop.sock_recv(a, 10)
        closed.close()
        with pytest.raises(RuntimeError, match="already awaited"):
            closed.send(None)
        thrown = loop.sock_recv(a, 10)
        with pytest.raises(LookupError, match="mine"):
            thrown.throw(LookupError("mine"))

    loop.run_until_complete(main())


def test_a_cancelled_call_has_received_nothing(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        for turn in range(20):
            task = asyncio.create_task(loop.sock_recv(a, 100))
            await polled()
            b.send(b"%d" % turn)
            if turn % 2:
                await polled()  # it has been woken, and would receive in its next step
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await task == b"%d" % turn
                continue
            assert await loop.sock_recv(a, 100) == b"%d" % turn
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(a, 100), 0.001)
        b.send(b"after")
        assert await asyncio.wait_for(loop.sock_recv(a, 100), 60) == b"after"

    loop.run_until_complete(main())


def test_several_wait_for_one_socket(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        tasks = [asyncio.create_task(loop.sock_recv(a, 1)) for _ in range(3)]
        await polled()
        b.send(b"ab")
        b.send(b"c")
        assert sorted(await asyncio.gather(*tasks)) == [b"a", b"b", b"c"]
        # One that reads and one that writes.
        reading = asyncio.create_task(loop.sock_recv(a, 100))
        await polled()
        writing = asyncio.create_task(loop.sock_sendall(a, bytes(4 << 20)))
        await polled()
        b.send(b"now")
        assert await reading == b"now"
        left = 4 << 20
        while left:
            left -= len(await loop.sock_recv(b, 1 << 20))
        await writing

    loop.run_until_complete(main())


def test_a_descriptor_stays_registered(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        b.send(b"x")
        assert await loop.sock_recv(a, 10) == b"x"
        assert not registered(a.fileno()), "it need not have asked"
        task = asyncio.create_task(loop.sock_recv(a, 10))
        await polled()
        b.send(b"y")
        assert await task == b"y"
        assert registered(a.fileno())
        # What arrives while nobody waits wakes nobody, and keeps the loop asleep.
        b.send(b"z")
        await polled()
        assert not Poller(loop).reports()
        assert await loop.sock_recv(a, 10) == b"z"

    loop.run_until_complete(main())


def test_a_reused_descriptor_is_anothers(loop: plait.Loop) -> None:
    async def main() -> None:
        numbers = set()
        kept = []
        for turn in range(12):
            a, b = socket.socketpair()
            a.setblocking(False)
            numbers.add(a.fileno())
            task = asyncio.create_task(loop.sock_recv(a, 10))
            await polled()
            b.send(b"%d" % turn)
            assert await task == b"%d" % turn
            if turn % 3 == 2:
                # The kernel keeps what is registered for as long as a duplicate is open.
                kept.append((a.dup(), b))
                a.close()
                kept[-1][1].send(b"for the duplicate")
            else:
                a.close()
                b.close()
        assert len(numbers) < 12
        for a, b in kept:
            a.close()
            b.close()

    loop.run_until_complete(main())


def test_a_socket_closed_under_a_waiting_call(loop: plait.Loop, pair: Any) -> None:
    """asyncio's would wait for ever; ours is told when the descriptor has a new owner."""

    async def main() -> None:
        a, _ = pair
        fd = a.fileno()
        waiting = asyncio.create_task(loop.sock_recv(a, 10))
        await polled()
        a.close()
        c, d = socket.socketpair()
        c.setblocking(False)
        assert c.fileno() == fd
        second = asyncio.create_task(loop.sock_recv(c, 10))
        with pytest.raises(OSError, match="Bad file descriptor"):
            await waiting
        d.send(b"x")
        assert await second == b"x"
        c.close()
        d.close()

    loop.run_until_complete(main())


def test_two_objects_wait_on_one_descriptor(loop: plait.Loop, pair: Any) -> None:
    """Side by side, and without waking each other for ever."""

    async def main() -> None:
        a, b = pair
        twin = socket.socket(fileno=a.fileno())
        try:
            with contextlib.suppress(BlockingIOError):
                while True:
                    a.send(b"-" * 65_536)
            receiving = asyncio.create_task(loop.sock_recv(a, 10))
            sending = asyncio.create_task(loop.sock_sendall(twin, b"end"))
            await polled()
            before = loop.statistics()["callbacks"]
            turns = 20
            for _ in range(turns):
                await asyncio.sleep(0)
            # One in each turn is this coroutine's own step.
            assert loop.statistics()["callbacks"] - before < 2 * turns  # type: ignore[operator]
            assert not receiving.done()
            assert not sending.done()
            b.send(b"x")
            assert await receiving == b"x"
            got = b""
            while not got.endswith(b"end"):
                got = await loop.sock_recv(b, 1 << 16)
            await sending
        finally:
            twin.detach()

    loop.run_until_complete(main())


def test_readers_and_calls_share_a_descriptor(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        task = asyncio.create_task(loop.sock_recv(a, 10))
        await polled()
        seen: asyncio.Future[str] = loop.create_future()
        loop.add_writer(a, lambda: seen.done() or seen.set_result("writable"))
        assert await seen == "writable"
        assert loop.remove_writer(a)
        assert not task.done()
        b.send(b"x")
        assert await task == b"x"
        # The record that the call left is no reader.
        assert not loop.remove_reader(a)
        told: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(a, lambda: told.set_result(a.recv(10)))
        b.send(b"y")
        assert await told == b"y"
        # While a reader is there, a call waits beside it, and leaves it as it was.
        loop.add_reader(a, lambda: None)
        call = asyncio.create_task(loop.sock_recv(a, 10))
        await polled()
        b.send(b"z")
        assert await call == b"z"
        assert loop.remove_reader(a)

    loop.run_until_complete(main())


@pytest.mark.parametrize("leave", ["reader", "call"])
def test_a_transport_takes_over_a_descriptor_closed_while_watched(
    loop: plait.Loop, leave: str
) -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        a, b = socket.socketpair()
        a.setblocking(False)
        b.setblocking(False)
        tasks = []
        for sock in (a, b):
            if leave == "reader":
                loop.add_reader(sock, pytest.fail, "the closed socket's")
            else:
                tasks.append(asyncio.create_task(loop.sock_recv(sock, 10)))
        await polled()
        a.close()
        b.close()
        # The client's and the accepted socket get their numbers.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        for task in tasks:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await task
        server.close()
        await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(main(), 100))


def test_sendall_sends_all_and_lets_the_buffer_go(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, b = pair
        data = bytearray(os.urandom(8 << 20))
        sending = asyncio.create_task(loop.sock_sendall(a, memoryview(data)[1:]))
        await polled()
        got = bytearray()
        while len(got) < len(data) - 1:
            got += await loop.sock_recv(b, 1 << 18)
        await sending
        assert got == data[1:]
        data.append(0)  # BufferError while it is exported
        stuck = asyncio.create_task(loop.sock_sendall(a, data))
        await polled()
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        data.append(0)
        b.close()
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(a, b"x" * 10)

    loop.run_until_complete(main())


def test_datagrams(loop: plait.Loop) -> None:
    async def main() -> None:
        with udp() as a, udp() as b:
            waiting = asyncio.create_task(loop.sock_recvfrom(b, 100))
            await polled()
            assert await loop.sock_sendto(a, b"hello", b.getsockname()) == 5
            assert await waiting == (b"hello", a.getsockname())
            buffer = bytearray(10)
            into = asyncio.create_task(loop.sock_recvfrom_into(b, buffer))
            await polled()
            assert await loop.sock_sendto(a, b"into", b.getsockname()) == 4
            assert await into == (4, a.getsockname())
            assert await loop.sock_sendto(a, b"partly", b.getsockname()) == 6
            assert await loop.sock_recvfrom_into(b, buffer, 2) == (2, a.getsockname())
            assert buffer[:4] == b"pato"
            assert await loop.sock_sendto(a, b"", b.getsockname()) == 0
            assert await loop.sock_recvfrom(b, 100) == (b"", a.getsockname())
            with pytest.raises(OSError, match="Message too long"):
                await loop.sock_sendto(a, bytes(70_000), b.getsockname())

    loop.run_until_complete(main())


def test_accept_and_connect(loop: plait.Loop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            address = listener.getsockname()
            accepting = asyncio.create_task(loop.sock_accept(listener))
            await polled()
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, address)
                conn, peer = await accepting
                with conn:
                    assert peer == client.getsockname()
                    assert conn.gettimeout() == 0
                    buffer = bytearray(10)
                    await loop.sock_sendall(client, b"to the buffer")
                    assert await loop.sock_recv_into(conn, buffer) == 10
                    assert buffer == b"to the buf"
                    client.close()
                    assert await loop.sock_recv(conn, 10) == b"fer"
                    assert await loop.sock_recv(conn, 10) == b""
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, address)
                conn, _ = await loop.sock_accept(listener)
                conn.close()
                gone = weakref.ref(conn)
                del conn
                assert gone() is None, "the loop keeps what it has given"
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(client, address)

    loop.run_until_complete(main())


def test_what_is_refused(loop: plait.Loop, pair: Any) -> None:
    async def main() -> None:
        a, _ = pair
        with pytest.raises(TypeError):
            await loop.sock_recv(a, "10")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="negative"):
            await loop.sock_recv(a, -1)
        with pytest.raises(TypeError):
            await loop.sock_recv_into(a, b"constant")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await loop.sock_sendall(a, "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await loop.sock_recv(a)  # type: ignore[call-arg]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with (
            socket.socket() as plain,
            context.wrap_socket(plain, do_handshake_on_connect=False) as secure,
            pytest.raises(TypeError, match="SSLSocket"),
        ):
            await loop.sock_recv(secure, 10)
        with socket.socket() as gone:
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            await loop.sock_recv(gone, 10)
        loop.set_debug(True)
        with socket.socket() as blocking:
            for call in (
                loop.sock_recv(blocking, 10),
                loop.sock_sendall(blocking, b""),
                loop.sock_accept(blocking),
            ):
                with pytest.raises(ValueError, match="non-blocking"):
                    await call

    loop.run_until_complete(main())


def test_a_blocking_socket_does_not_stop_the_loop(loop: plait.Loop) -> None:
    a, b = socket.socketpair()
    with a, b:
        task = loop.create_task(loop.sock_recv(a, 10))
        loop.run_until_complete(polled())
        b.send(b"x")
        assert loop.run_until_complete(task) == b"x"


def test_a_call_that_waits_lives_as_long_as_its_loop(pair: Any) -> None:
    a, _ = pair

    def start(loop: plait.Loop) -> list[weakref.ref[Any]]:
        async def receive() -> None:
            await loop.sock_recv(a, 10)

        task = loop.create_task(receive())
        loop.run_until_complete(polled())
        return [weakref.ref(task), weakref.ref(loop)]

    loops = [plait.new_event_loop()]
    gone = start(loops[0])
    gc.collect()
    assert gone[0]() is not None, "nobody but the loop holds it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loops.clear()
        gc.collect()
        gc.collect()
    # The task's coroutine names the loop: the cycle goes as a whole.
    assert [one() for one in gone] == [None, None]


def test_an_open_socket_may_be_dropped(loop: plait.Loop) -> None:
    """What a call leaves registered does not keep the socket."""

    async def main() -> None:
        a, b = socket.socketpair()
        a.setblocking(False)
        task = asyncio.create_task(loop.sock_recv(a, 10))
        await polled()
        b.send(b"x")
        await task
        gone = weakref.ref(a)
        del a, task
        gc.collect()
        assert gone() is None
        b.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop.run_until_complete(main())


def test_the_descriptor_is_what_fileno_says(
    loop: plait.Loop, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair

    async def main() -> None:
        b.send(b"one")
        assert await loop.sock_recv(a, 10) == b"one"
        # A method that a program puts in the class is called; taken out again, it is not.
        asked: list[int] = []

        def fileno(sock: socket.socket) -> int:
            asked.append(1)
            return _socket.socket.fileno(sock)

        for times in (1, 2):
            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "fileno", fileno)
                b.send(b"two")
                assert await loop.sock_recv(a, 10) == b"two"
            assert len(asked) == times
            b.send(b"three")
            assert await loop.sock_recv(a, 10) == b"three"
            assert len(asked) == times
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "fileno", lambda sock: 1 << 40)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_recv(a, 10)
            patch.setattr(socket.socket, "fileno", lambda sock: "three")
            with pytest.raises(TypeError):
                await loop.sock_recv(a, 10)
        with socket.socket(fileno=a.detach()):
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_recv(a, 10)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_sendall(a, b"x")

    loop.run_until_complete(main())


@needs_plain_memory
def test_nothing_received_is_lost_for_want_of_memory(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Each allocation of a receive fails once: what it took is there, or comes the next time."""
    testcapi = pytest.importorskip("_testcapi")
    a, b = pair

    async def main() -> None:
        loop = asyncio.get_running_loop()
        a.send(b"first")  # which makes what is made once
        assert await loop.sock_recv(b, 4096) == b"first"
        for nth in range(30):
            message = b"number %d" % nth
            a.send(message)
            call = loop.sock_recv(b, 4096)
            testcapi.set_nomemory(nth, nth + 1)
            try:
                data = await call
            except MemoryError:
                data = None
            finally:
                testcapi.remove_mem_hooks()
            assert message == (data or await loop.sock_recv(b, 4096))

    plait.run(asyncio.wait_for(main(), 100))
