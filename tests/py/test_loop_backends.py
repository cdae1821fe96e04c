"""The two backends: choosing one, a kernel that refuses, and what io_uring must not change."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from loop_support import polled

import plait

# struct sock_filter: load the call's number; io_uring's three are 425 to 427 everywhere.
_LOAD, _AT_LEAST, _ABOVE, _RETURN = 0x20, 0x35, 0x25, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

_REFUSE = """
import ctypes, sys
program = bytes.fromhex({program!r})
class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
code = ctypes.create_string_buffer(program, len(program))
fprog = Fprog(len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(fprog), 0, 0):
    sys.exit(77)
"""

_ECHO = """
import asyncio, plait

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for size in (1, 1000, 100_000):
        writer.write(b"x" * size)
        assert await reader.readexactly(size) == b"x" * size
    writer.close()
    server.close()
    print(asyncio.get_running_loop().backend)

plait.run(main(), backend="uring")
"""


def filter_of(code: int, first: int = 425, last: int = 427) -> str:
    """A seccomp filter by which the calls from first to last fail with a code of errno."""
    program = (
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 2, first),
        (_ABOVE, 1, 0, last),
        (_RETURN, 0, 0, _ERRNO | code),
        (_RETURN, 0, 0, _ALLOW),
    )
    return b"".join(struct.pack("HBBI", *line) for line in program).hex()


def run_child(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )
    if done.returncode == 77:
        pytest.skip("no seccomp filters here")
    return done


@contextlib.contextmanager
def closing_loop(**options: Any) -> Any:
    loop = plait.new_event_loop(**options)
    try:
        yield loop
    finally:
        loop.close()


# ---- choosing -----------------------------------------------------------------


def test_the_backend_is_chosen_by_argument_and_environment(
    uring: plait.Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_BACKEND", "uring")
    with closing_loop() as loop:
        assert loop.backend == loop.statistics()["backend"] == "uring"
    with closing_loop(backend="epoll") as loop:
        assert loop.backend == "epoll"

    async def backend() -> str:
        loop: Any = asyncio.get_running_loop()
        return str(loop.backend)

    assert plait.run(backend()) == "uring"
    assert plait.run(backend(), backend="auto") == "epoll"
    monkeypatch.delenv("PLAIT_BACKEND")
    assert plait.run(backend()) == "epoll"
    assert plait.run(backend(), backend="uring") == "uring"
    with pytest.raises(ValueError, match="backend must be one of auto, epoll, uring, not 'iocp'"):
        plait.new_event_loop(backend="iocp")


def test_a_loop_in_use_keeps_its_core(uring: plait.Loop) -> None:
    uring.call_soon(print)
    with pytest.raises(RuntimeError, match="in use"):
        uring._use_uring()


# ---- a kernel that refuses ------------------------------------------------------


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (errno.EPERM, (425, 427)),
        (errno.ENOSYS, (425, 427)),
        (errno.EACCES, (426, 426)),
        (errno.ENOMEM, (427, 427)),
    ],
)
def test_a_seccomp_filter_means_epoll(code: int, calls: tuple[int, int]) -> None:
    done = run_child(_REFUSE.format(program=filter_of(code, *calls)) + _ECHO)
    assert (done.returncode, done.stdout) == (0, "epoll\n"), done.stderr
    assert f"io_uring is refused ({os.strerror(code)}): the loop waits with epoll" in done.stderr


_READ = """
import asyncio, plait

async def main():
    async with plait.open_file("/proc/self/status") as file:
        print(len(await file.read()) > 0)

plait.run(asyncio.wait_for(main(), 30))
"""


@pytest.mark.isolated
@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_files_go_by_threads_where_a_ring_cannot_be_used(code: int) -> None:
    done = run_child(_REFUSE.format(program=filter_of(code, 426, 426)) + _READ)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("code", "calls"),
    [(errno.EPERM, (425, 427)), (errno.ENOSYS, (425, 427)), (errno.EPERM, (426, 426))],
)
def test_doctor_tells_of_a_refusal(code: int, calls: tuple[int, int]) -> None:
    doctor = "from plait.cli import main; sys.exit(main(['doctor', '--json']))"
    refuse = _REFUSE.format(program=filter_of(code, *calls))
    done = run_child(refuse + doctor, PLAIT_BACKEND="uring")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["backend"]["name"] == "epoll"
    assert "PLAIT_BACKEND=uring asks for, is refused" in found["backend"]["reason"]
    assert "seccomp" in found["backend"]["reason"]
    assert found["files"]["name"] == "threads"
    done = run_child(refuse + doctor, PLAIT_BACKEND="auto")
    assert json.loads(done.stdout)["backend"]["reason"].startswith("io_uring: ")


@pytest.mark.isolated
def test_no_locked_memory_is_no_crash() -> None:
    limit = f"import resource; resource.setrlimit({resource.RLIMIT_MEMLOCK}, (0, 0))\n"
    done = run_child(limit + _ECHO)
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("uring\n", "epoll\n")


def test_doctor_tells_of_a_wrong_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plait.cli import main

    monkeypatch.setenv("PLAIT_BACKEND", "iocp")
    assert main(["doctor"]) == 0
    assert "PLAIT_BACKEND must be one of auto, epoll, uring" in capsys.readouterr().out


# ---- what must be as with epoll ----------------------------------------------------


def peer_sees_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_socket_that_calls_used_is_closed_at_once(uring: plait.Loop) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.send(b"first")

    async def main() -> None:
        assert await uring.sock_recv(ours, 100) == b"first"
        waiting = uring.create_task(uring.sock_recv(ours, 100))
        await asyncio.sleep(0)
        theirs.send(b"second")
        assert await waiting == b"second"
        waiting = uring.create_task(uring.sock_recv(ours, 100))
        await polled()
        ours.close()
        assert peer_sees_end(theirs)
        waiting.cancel()

    uring.run_until_complete(main())
    theirs.close()


def test_a_watched_socket_is_closed_at_once(uring: plait.Loop) -> None:
    ours, theirs = socket.socketpair()
    uring.add_reader(ours, print)
    uring.run_until_complete(asyncio.sleep(0))
    ours.close()
    assert peer_sees_end(theirs)
    theirs.close()


def test_a_transport_is_closed_when_it_says_so(uring: plait.Loop) -> None:
    ours, theirs = socket.socketpair()
    seen: list[bool] = []

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            # The descriptor is closed right after this call.
            uring.call_soon(lambda: seen.append(peer_sees_end(theirs)))

    async def main() -> None:
        transport, _ = await uring.create_connection(Protocol, sock=ours)
        await polled()
        transport.close()
        while not seen:
            await asyncio.sleep(0)

    uring.run_until_complete(main())
    assert seen == [True]
    theirs.close()


def test_a_server_leaves_its_port_at_once(uring: plait.Loop) -> None:
    async def main() -> None:
        port = 0
        for _ in range(5):
            server = await uring.create_server(
                asyncio.Protocol, "127.0.0.1", port, reuse_address=False
            )
            port = server.sockets[0].getsockname()[1]
            await asyncio.sleep(0)
            server.close()

    uring.run_until_complete(main())


def test_what_came_while_reading_paused_is_kept(uring: plait.Loop) -> None:
    """Data received ahead goes to whichever protocol reads next, buffered or not."""
    ours, theirs = socket.socketpair()

    class First(asyncio.Protocol):
        got = b""

        def data_received(self, data: bytes) -> None:
            self.got += data
            transport.pause_reading()

    class Second(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(7)
            self.got = b""
            self.ended = uring.create_future()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, n: int) -> None:
            self.got += self.buffer[:n]

        def eof_received(self) -> None:
            self.ended.set_result(None)

    transport: Any = None

    async def main() -> None:
        nonlocal transport
        transport, first = await uring.create_connection(First, sock=ours)
        data = bytes(range(256)) * 40
        for at in range(0, len(data), 64):
            theirs.send(data[at : at + 64])
            await asyncio.sleep(0)
        assert first.got
        assert len(first.got) < len(data)
        second = Second()
        transport.set_protocol(second)
        transport.resume_reading()
        theirs.shutdown(socket.SHUT_WR)
        await second.ended
        assert first.got + second.got == data
        transport.close()

    uring.run_until_complete(main())
    theirs.close()


def test_threads_may_take_turns(uring: plait.Loop) -> None:
    ours, theirs = socket.socketpair()
    opened: Any = None

    async def open_it() -> None:
        nonlocal opened
        opened = await asyncio.open_connection(sock=ours)

    async def exchange() -> None:
        reader, writer = opened
        for size in (10, 3000, 50_000, 10):
            theirs.sendall(b"x" * size)
            await reader.readexactly(size)
            writer.write(b"y" * 10)
            await asyncio.sleep(0)  # which sends it
            assert theirs.recv(10) == b"y" * 10
        await uring.run_in_executor(None, int)

    uring.run_until_complete(open_it())
    failed: list[BaseException] = []

    def work() -> None:
        try:
            uring.run_until_complete(exchange())
        except BaseException as exc:
            failed.append(exc)

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
    assert not failed
    opened[1].close()
    uring.run_until_complete(asyncio.sleep(0))
    theirs.close()


def test_threads_may_take_turns_with_files(uring: plait.Loop, tmp_path: Path) -> None:
    """Threads after each other go by the same number, and are not the same to the kernel."""
    path = tmp_path / "file"
    path.write_bytes(b"data")

    async def read() -> bytes:
        async with await plait.open_file(path, "rb") as file:
            return await file.read()

    outcomes: list[bytes | BaseException | None] = []

    def work(what: Callable[[], Coroutine[Any, Any, bytes | None]]) -> None:
        try:
            outcomes.append(uring.run_until_complete(what()))
        except BaseException as exc:
            outcomes.append(exc)

    async def pause() -> None:
        await asyncio.sleep(0.001)

    for what in (pause, read, read):
        thread = threading.Thread(target=work, args=(what,))
        thread.start()
        thread.join()
    assert outcomes == [None, b"data", b"data"]
