"""Stream transports: flow control, writing, ends, resets, and protocols that misbehave."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loop_support import polled
from transport_support import KeepsOpen, Recorder, connect, in_thread, receive, receive_all

import plait


@pytest.fixture
def tcp() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Make connected TCP pairs: a non-blocking end for the loop, and a plain one."""
    opened = []

    def make() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.settimeout(100)
        opened.extend((ours, theirs))
        return ours, theirs

    yield make
    for sock in opened:
        sock.close()


# ---- what they are ----


def test_the_interfaces_hold(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        transport, protocol = await connect(Recorder, tcp()[0])
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport)
        assert isinstance(transport, asyncio.WriteTransport)
        assert transport.get_protocol() is protocol
        assert transport.can_write_eof()
        assert transport.is_reading()
        assert not transport.is_closing()
        assert "SocketTransport" in repr(transport)
        transport.close()
        assert transport.is_closing()
        await protocol.lost
        assert "closed" in repr(transport)
        assert isinstance(asyncio.get_running_loop(), asyncio.AbstractEventLoop)

    mine(main())


def test_extra_info_survives_the_connection(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        for end in ("close", "reset"):
            ours, theirs = tcp()
            names = ours.getsockname(), ours.getpeername()
            transport, protocol = await connect(Recorder, ours)
            assert transport.get_extra_info("socket").fileno() == ours.fileno()
            if end == "close":
                transport.close()
            else:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                theirs.close()
            await protocol.lost
            assert transport.get_extra_info("sockname") == names[0]
            assert transport.get_extra_info("peername") == names[1]
            assert transport.get_extra_info("nothing") is None
            assert transport.get_extra_info("nothing", 5) == 5
            assert transport.get_extra_info("socket").fileno() == -1

    mine(main())


def test_accepted_connections_know_their_names(mine: Any) -> None:
    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            try:
                server = await asyncio.get_running_loop().create_server(factory, host, 0)
            except OSError:
                assert family == socket.AF_INET6  # a machine without IPv6
                continue
            address = server.sockets[0].getsockname()
            with socket.create_connection(address[:2]) as theirs:
                while not made or made[-1].transport is None:
                    await asyncio.sleep(0)
                transport = made[-1].transport
                assert transport.get_extra_info("peername") == theirs.getsockname()
                assert transport.get_extra_info("sockname") == theirs.getpeername()
                assert transport.get_extra_info("socket").family == family
                nodelay = transport.get_extra_info("socket").getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY
                )
                assert nodelay
            await made[-1].lost
            server.close()
            made.clear()

    mine(main())


# ---- flow control ----


def test_pausing_and_resuming_follow_the_marks(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        total = 0
        while "pause" not in protocol.told:
            transport.write(b"x" * 100_000)
            total += 100_000
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 1000
        received = 0
        while received < total:
            received += len(await in_thread(theirs.recv, 1 << 20))
        await protocol.heard("resume")
        assert transport.get_write_buffer_size() <= 250
        assert protocol.told == ["made", "pause", "resume"]
        transport.set_write_buffer_limits(high=0)
        transport.write(b"y")
        assert protocol.told[-1] == "pause"
        await polled()
        assert protocol.told[-1] == "resume"
        transport.abort()
        await protocol.lost

    mine(main())


@pytest.mark.parametrize("first", [1, 40_000])
def test_a_large_write_after_a_pause_resumes(mine: Any, tcp: Any, first: int) -> None:
    """What is paused for before it is sent goes out with the next write, all of it."""

    async def main() -> None:
        ours, theirs = tcp()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        transport, protocol = await connect(Recorder, ours)
        transport.set_write_buffer_limits(high=first - 1)
        transport.write(b"x" * first)
        assert protocol.told[-1] == "pause"
        transport.write(b"y" * 65_536)
        total = first + 65_536
        received = in_thread(receive, theirs, total)
        await protocol.heard("resume")
        assert len(await received) == total
        assert protocol.told == ["made", "pause", "resume"]
        transport.close()
        await protocol.lost

    mine(main())


@pytest.mark.parametrize("limits", [(1, 2), (-1, None), (None, -1), (10, 11)])
def test_marks_that_make_no_sense(mine: Any, tcp: Any, limits: tuple[Any, Any]) -> None:
    async def main() -> None:
        transport, protocol = await connect(Recorder, tcp()[0])
        before = transport.get_write_buffer_limits()
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=limits[0], low=limits[1])
        assert transport.get_write_buffer_limits() == before
        transport.close()
        await protocol.lost

    mine(main())


def test_a_paused_reader_receives_nothing(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        theirs.sendall(b"held")
        theirs.shutdown(socket.SHUT_WR)
        for _ in range(5):
            await polled()
        assert protocol.told == ["made"]
        transport.resume_reading()
        transport.resume_reading()
        await protocol.lost
        assert protocol.told == ["made", "data", "eof", "lost"]
        assert protocol.data == b"held"

    mine(main())


def test_a_protocol_that_pauses_in_data_received(mine: Any, tcp: Any) -> None:
    class Stepwise(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.001, self.transport.resume_reading)

    async def main() -> None:
        ours, theirs = tcp()
        _, protocol = await connect(Stepwise, ours)
        payload = bytes(range(256)) * 20_000
        sender = in_thread(lambda: (theirs.sendall(payload), theirs.shutdown(socket.SHUT_WR)))
        await asyncio.gather(sender, protocol.lost)
        assert protocol.data == payload

    mine(main())


# ---- writing ----


def test_what_the_caller_changes_later_is_sent_as_it_was(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        expected = b""
        for size in (1, 3000, 400_000):
            array = bytearray(b"a" * size)
            transport.write(array)
            transport.write(memoryview(array)[: size // 2])
            transport.write(memoryview(array)[::2])
            transport.writelines([array, memoryview(array), bytes(array)])
            expected += b"a" * (size + size // 2 + (size + 1) // 2 + 3 * size)
            array[:] = b"z" * size
            array.clear()  # no buffer of it is held
        transport.close()
        assert await in_thread(receive_all, theirs) == expected
        assert await protocol.lost is None

    mine(main())


def test_what_is_no_bytes_is_refused_before_anything_is_sent(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        for wrong in ("text", 1, None, [b"x"]):
            with pytest.raises(TypeError):
                transport.write(wrong)
        for wrong in ([b"ok", "text"], 5):
            with pytest.raises(TypeError):
                transport.writelines(wrong)
        transport.write(b"")
        transport.writelines([])
        transport.write(b"end")
        transport.close()
        assert await in_thread(receive_all, theirs) == b"end"
        await protocol.lost

    mine(main())


def test_close_sends_what_is_written_to_a_slow_reader(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        payload = bytes(range(251)) * 8000
        transport.write(payload)
        transport.close()
        transport.write(b"")

        def read_slowly() -> bytes:
            first = b"".join(theirs.recv(1) for _ in range(5000))
            return first + receive_all(theirs)

        assert await in_thread(read_slowly) == payload
        assert await protocol.lost is None
        assert "eof" not in protocol.told

    mine(main())


@pytest.mark.slow
def test_close_flushes_fifty_megabytes(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        piece = bytes(1 << 20)
        for _ in range(50):
            transport.write(piece)
        transport.close()

        def count() -> int:
            total = 0
            while n := len(theirs.recv(1 << 20)):
                total += n
            return total

        assert await in_thread(count) == 50 << 20
        assert await protocol.lost is None

    mine(main())


def test_abort_drops_what_is_not_sent(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.write(bytes(20 << 20))
        transport.abort()
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert await protocol.lost is None
        assert len(await in_thread(receive_all, theirs)) < 20 << 20

    mine(main())


def test_writes_after_the_end_are_dropped_and_told(
    mine: Any, tcp: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ours, _ = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.close()
        await protocol.lost
        for _ in range(10):
            transport.write(b"late")
            transport.writelines([b"late"])
        transport.close()
        transport.abort()
        transport.write_eof()
        transport.pause_reading()
        transport.resume_reading()
        assert transport.get_write_buffer_size() == 0
        assert "socket.send() raised exception." in caplog.text
        with pytest.raises(TypeError):
            transport.write("text")

    mine(main())


def test_a_log_handler_changes_what_is_written(mine: Any, tcp: Any) -> None:
    """Lines are those that there were at the call, whatever runs during it."""
    told = 0

    class Emptying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal told
            told += 1
            lines.clear()

    lines = [bytes([n]) * 100 for n in range(200)]
    handler = Emptying()

    async def main() -> None:
        transport, protocol = await connect(Recorder, tcp()[0])
        transport.close()
        await protocol.lost
        for _ in range(5):
            transport.write(b"late")
        logging.getLogger("asyncio").addHandler(handler)
        transport.writelines(lines)
        assert lines == []
        assert told == 200

    try:
        mine(main())
    finally:
        logging.getLogger("asyncio").removeHandler(handler)


def test_half_close_by_us(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.write(b"a" * 3_000_000)
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"more")
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.writelines([b"more"])
        assert len(await in_thread(receive_all, theirs)) == 3_000_000
        theirs.sendall(b"answer")
        theirs.close()
        assert await protocol.lost is None
        assert protocol.data == b"answer"

    mine(main())


def test_half_close_by_the_peer(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(KeepsOpen, ours)
        theirs.sendall(b"question")
        theirs.shutdown(socket.SHUT_WR)
        await protocol.heard("eof")
        assert not transport.is_closing()
        for _ in range(5):  # an end of stream is told once
            await polled()
        transport.write(b"answer" * 100_000)
        transport.close()
        assert await in_thread(receive_all, theirs) == b"answer" * 100_000
        await protocol.lost
        assert protocol.told == ["made", "data", "eof", "lost"]

    mine(main())


# ---- resets and failures ----


@pytest.mark.parametrize("writing", [False, True])
def test_a_reset_ends_the_connection(mine: Any, tcp: Any, writing: bool) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        if writing:
            transport.write(bytes(30 << 20))
            await polled()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert protocol.told.count("lost") == 1
        assert transport.is_closing()

    mine(main())


def test_a_task_that_only_writes_sees_the_end(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.pause_reading()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        for _ in range(10_000):
            transport.write(b"x" * 1000)
            if transport.is_closing():
                break
        else:
            pytest.fail("is_closing() never told")
        transport.write(b"and on")
        transport.close()
        assert isinstance(await protocol.lost, OSError)

    mine(main())


@pytest.mark.parametrize(
    "name", ["connection_made", "data_received", "eof_received", "connection_lost"]
)
def test_a_protocol_that_raises(mine: Any, tcp: Any, name: str) -> None:
    def boom(self: Any, *args: Any) -> None:
        getattr(Recorder, name)(self, *args)
        raise LookupError(name)

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, ctx: told.append(ctx))
        ours, theirs = tcp()
        transport, protocol = await connect(type("Raises", (Recorder,), {name: boom}), ours)
        theirs.sendall(b"x")
        theirs.shutdown(socket.SHUT_WR)
        exc = await protocol.lost
        await asyncio.sleep(0)
        assert [type(one["exception"]) for one in told] == [LookupError]
        if name != "connection_made":
            assert told[0]["transport"] is transport
        if name in ("data_received", "eof_received"):
            assert exc is told[0]["exception"]
        assert protocol.told.count("lost") == 1

    mine(main())


def test_callbacks_that_close_and_abort(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        for when in ("connection_made", "data_received", "eof_received", "pause_writing"):
            for how in ("close", "abort"):

                def act(self: Any, *args: Any, when: str = when, how: str = how) -> Any:
                    result = getattr(Recorder, when)(self, *args)
                    getattr(self.transport, how)()
                    return result

                ours, theirs = tcp()
                transport, protocol = await connect(type("Acts", (Recorder,), {when: act}), ours)
                if not transport.is_closing():
                    theirs.sendall(b"x")
                    theirs.shutdown(socket.SHUT_WR)
                    transport.write(bytes(10 << 20) if when == "pause_writing" else b"y")
                reading = in_thread(receive_all, theirs)
                assert await protocol.lost is None
                await reading

    mine(main())


# ---- buffered protocols ----


class Buffered(asyncio.BufferedProtocol):
    """Receives into one small buffer."""

    def __init__(self, size: int = 1000) -> None:
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_buffered_protocol_gets_every_byte(mine: Any, tcp: Any, size: int) -> None:
    async def main() -> None:
        ours, theirs = tcp()
        _, protocol = await connect(lambda: Buffered(size), ours)
        payload = bytes(range(256)) * (10 if size == 1 else 10_000)
        sender = in_thread(lambda: (theirs.sendall(payload), theirs.close()))
        await asyncio.gather(sender, protocol.lost)
        assert protocol.data == payload
        protocol.buffer.clear()  # nothing holds on to it

    mine(main())


@pytest.mark.parametrize(
    ("buffer", "error"),
    [(bytearray(), RuntimeError), (b"constant", BufferError), (None, TypeError), (1, TypeError)],
)
def test_a_get_buffer_that_is_wrong(
    mine: Any, tcp: Any, buffer: Any, error: type[Exception]
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, ctx: told.append(ctx))
        ours, theirs = tcp()
        _, protocol = await connect(Buffered, ours)
        protocol.get_buffer = lambda sizehint: buffer
        theirs.sendall(b"x")
        exc = await protocol.lost
        assert isinstance(exc, error)
        assert told[0]["exception"] is exc
        assert "get_buffer" in told[0]["message"]

    mine(main())


def test_protocols_that_raise_over_a_buffer(mine: Any, tcp: Any) -> None:
    def boom(*args: Any) -> Any:
        raise LookupError("boom")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, ctx: None)
        for name in ("get_buffer", "buffer_updated"):
            ours, theirs = tcp()
            _, protocol = await connect(Buffered, ours)
            setattr(protocol, name, boom)
            theirs.sendall(b"x")
            assert isinstance(await protocol.lost, LookupError)

    mine(main())


def test_switching_protocols_in_mid_stream(mine: Any, tcp: Any) -> None:
    """Each kind takes over from the other, within a callback, and no byte is lost."""

    async def main() -> None:
        got = bytearray()
        switches = 0
        lost = asyncio.get_running_loop().create_future()

        def switch(transport: Any, to: Any) -> None:
            nonlocal switches
            switches += 1
            transport.set_protocol(to)

        class Plain(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                got.extend(data)
                into = Buffered(777)
                into.transport = self.transport
                into.buffer_updated = updated.__get__(into)
                into.connection_lost = self.connection_lost
                switch(self.transport, into)

            def connection_lost(self, exc: Exception | None) -> None:
                lost.set_result(exc)

        def updated(self: Buffered, nbytes: int) -> None:
            got.extend(self.buffer[:nbytes])
            plain = Plain()
            plain.connection_made(self.transport)
            switch(self.transport, plain)

        ours, theirs = tcp()
        await connect(Plain, ours)
        payload = bytes(range(256)) * 4000
        sender = in_thread(lambda: (theirs.sendall(payload), theirs.close()))
        await asyncio.gather(sender, lost)
        assert got == payload
        assert switches > 3

    mine(main())


# ---- closing the loop, and garbage ----


def test_a_loop_closed_with_open_transports(tcp: Any) -> None:
    loop = plait.new_event_loop()
    ours, theirs = tcp()
    fd = ours.fileno()

    async def main() -> Any:
        return await connect(Recorder, ours)

    transport, protocol = loop.run_until_complete(main())
    transport.write(b"x" * 10)
    loop.close()
    transport.write(b"y")
    transport.close()
    assert theirs.recv(100) == b"x" * 10
    with pytest.warns(ResourceWarning, match="unclosed transport"):  # noqa: PT031
        del transport, protocol
        gc.collect()
    assert ours.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket.socket(fileno=fd).getsockname()


def test_a_handshake_cut_short_by_close(mine: Any, tcp: Any) -> None:
    async def main() -> None:
        for end in ("ours", "theirs", "cancel"):
            ours, theirs = tcp()
            loop = asyncio.get_running_loop()
            task = loop.create_task(
                loop.create_connection(
                    Recorder, sock=ours, ssl=ssl.create_default_context(), server_hostname="x"
                )
            )
            assert (await in_thread(theirs.recv, 5))[0] == 22  # a client hello is on its way
            if end == "theirs":
                theirs.close()
                with pytest.raises((ConnectionError, ssl.SSLError)):
                    await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await in_thread(receive_all, theirs)

    mine(main())


def test_closing_the_loop_during_a_handshake(tcp: Any) -> None:
    loop = plait.new_event_loop()
    ours, theirs = tcp()
    task = loop.create_task(
        loop.create_connection(
            lambda: asyncio.Protocol(),
            sock=ours,
            ssl=ssl.create_default_context(),
            server_hostname="x",
        )
    )
    while True:
        loop.call_soon(loop.stop)
        loop.run_forever()
        theirs.setblocking(False)
        try:
            assert theirs.recv(5)
            break
        except BlockingIOError:
            continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task, loop
        gc.collect()


def test_nothing_is_written_into_a_sendfile(mine: Any, tcp: Any, tmp_path: Any) -> None:
    """Not even when something had to be sent before the file."""
    content = bytes(range(256)) * 16_384
    (tmp_path / "file").write_bytes(content)

    async def main(file: Any) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        before = b"b" * (4 << 20)
        transport.write(before)
        assert transport.get_write_buffer_size() > 0
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        total = len(before) + len(content)
        received = bytearray()
        while len(received) < total:
            received += await in_thread(theirs.recv, 1 << 16)
            if not sending.done() and len(received) < total - (1 << 20):
                with pytest.raises(RuntimeError, match="sendfile is in progress"):
                    transport.write(b"intruder")
        assert await sending == len(content)
        assert received == before + content
        transport.write(b"after")
        assert await in_thread(receive, theirs, 5) == b"after"
        transport.close()
        await protocol.lost

    with open(tmp_path / "file", "rb") as file:
        mine(main(file))


def test_a_sendfile_that_is_cancelled_gives_the_transport_back(
    mine: Any, tcp: Any, tmp_path: Any
) -> None:
    (tmp_path / "file").write_bytes(b"f")

    async def main(file: Any) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = tcp()
        transport, protocol = await connect(Recorder, ours)
        transport.write(b"b" * (4 << 20))
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert transport.is_reading()
        transport.write(b"after")
        total = (4 << 20) + 5
        received = await in_thread(receive, theirs, total)
        assert received[-6:] == b"bafter"
        transport.close()
        await protocol.lost

    with open(tmp_path / "file", "rb") as file:
        mine(main(file))
