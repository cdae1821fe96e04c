"""Descriptors: watching files, dup'ed and reused ones, and running out of them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from loop_support import polled

import plait


def run_until(loop: plait.Loop, condition: Any, turns: int = 2000) -> None:
    """Run iterations until the condition holds; fail when it never does."""
    for _ in range(turns):
        if condition():
            return
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
    pytest.fail("the condition never came true")


def test_readers_and_writers(loop: plait.Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    got: list[object] = []
    loop.add_reader(a, lambda: got.append(a.recv(10)))
    loop.add_writer(a.fileno(), got.append, "writable")
    run_until(loop, lambda: "writable" in got)
    assert loop.remove_writer(a)
    assert not loop.remove_writer(a)
    got.clear()
    b.send(b"x")
    run_until(loop, lambda: got == [b"x"])
    loop.add_reader(a, lambda: got.append(("second", a.recv(10))))
    b.send(b"y")
    run_until(loop, lambda: got == [b"x", ("second", b"y")])
    assert loop.remove_reader(a)
    assert not loop.remove_reader(a)
    b.send(b"z")
    for _ in range(3):
        loop.run_until_complete(polled())
    assert len(got) == 2


def test_it_tells_as_long_as_it_lasts(
    loop: plait.Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    b.send(b"abc")
    got: list[bytes] = []
    loop.add_reader(a, lambda: got.append(a.recv(1)))
    run_until(loop, lambda: len(got) == 3)
    loop.remove_reader(a)


def test_callbacks_that_remove_and_replace(
    loop: plait.Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    b.send(b"x")
    got: list[str] = []

    def first() -> None:
        got.append("first")
        loop.remove_reader(a)
        loop.remove_writer(a)
        loop.add_reader(a, second)

    def second() -> None:
        got.append("second")
        loop.remove_reader(a)

    loop.add_reader(a, first)
    loop.add_writer(a, lambda: got.append("write"))
    run_until(loop, lambda: "second" in got)
    assert got[0] == "first"
    assert got[-1] == "second"
    assert got.count("first") == got.count("second") == 1


@pytest.mark.parametrize("other", [False, True])
def test_a_cancelled_handle_watches_no_more(
    loop: plait.Loop, pair: tuple[socket.socket, socket.socket], other: bool
) -> None:
    """What is ready and has a handle that was cancelled does not keep the loop busy."""
    a, b = pair
    got: list[bytes] = []

    async def main() -> None:
        handle = loop._add_writer(a, pytest.fail)
        if other:
            loop.add_reader(a, lambda: got.append(a.recv(10)))
        handle.cancel()
        await polled()
        watched = loop._watched(a.fileno())
        assert watched == ((watched[0], None) if other else None)
        assert not loop.remove_writer(a)
        b.send(b"x")
        await polled()
        assert got == ([b"x"] if other else [])
        assert loop.remove_reader(a) == other

    loop.run_until_complete(main())


def test_files_cannot_be_watched(loop: plait.Loop, tmp_path: Any) -> None:
    with open(tmp_path / "file", "w+") as file:
        for add in (loop.add_reader, loop.add_writer):
            with pytest.raises(PermissionError):
                add(file, print)
        assert not loop.remove_reader(file)


@pytest.mark.parametrize("wrong", [-1, "x", None, 1.5, object()])
def test_what_is_no_file_is_refused(loop: plait.Loop, wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        loop.add_reader(wrong, print)


def test_a_closed_descriptor_is_refused(loop: plait.Loop) -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(fd, print)


def test_a_descriptor_closed_and_reused_behind_the_loops_back(loop: plait.Loop) -> None:
    got: list[str] = []
    for turn in range(20):
        a, b = os.pipe2(os.O_NONBLOCK)
        loop.add_reader(a, got.append, f"old {turn}")
        os.close(a)
        os.close(b)
        c, d = os.pipe2(os.O_NONBLOCK)
        assert (c, d) == (a, b)  # the same numbers again
        loop.add_reader(c, lambda fd=c, turn=turn: got.append(f"{turn}{os.read(fd, 9)!r}"))
        os.write(d, b"new")
        run_until(loop, lambda turn=turn: f"{turn}b'new'" in got)
        assert loop.remove_reader(c)
        os.close(c)
        os.close(d)
    assert not [text for text in got if text.startswith("old")]


def test_closing_without_removing_wakes_nobody(loop: plait.Loop) -> None:
    got: list[str] = []
    a, b = os.pipe2(os.O_NONBLOCK)
    other = os.dup(a)  # keeps the file open, so that the kernel would still report it
    loop.add_reader(a, got.append, "a")
    loop.remove_reader(a)
    os.close(a)
    os.write(b, b"x")
    loop.run_until_complete(polled())
    assert got == []
    loop.add_reader(other, lambda: got.append(os.read(other, 9).decode()))
    run_until(loop, lambda: got == ["x"])
    assert loop.remove_reader(other)
    os.close(other)
    os.close(b)


def test_dup_ed_descriptors_are_two(
    loop: plait.Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, b = pair
    got: list[str] = []
    twin = a.dup()
    twin.setblocking(False)
    loop.add_reader(a, got.append, "a")
    loop.add_reader(twin, got.append, "twin")
    b.send(b"x")
    run_until(loop, lambda: {"a", "twin"} <= set(got))
    loop.remove_reader(a)
    got.clear()
    run_until(loop, lambda: "twin" in got)
    assert "a" not in got
    loop.remove_reader(twin)
    twin.close()


def test_a_transports_descriptor_is_refused(
    loop: plait.Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    a, _ = pair
    fd = a.fileno()

    async def main() -> None:
        lost = loop.create_future()

        class Tells(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                lost.set_result(exc)

        transport, _ = await loop.connect_accepted_socket(Tells, a)
        for act in (
            lambda: loop.add_reader(fd, print),
            lambda: loop.add_writer(fd, print),
            lambda: loop.remove_reader(fd),
        ):
            with pytest.raises(RuntimeError, match="is used by transport"):
                act()
        transport.close()
        await lost
        await asyncio.sleep(0)  # it closes the socket when connection_lost has returned
        assert a.fileno() == -1

    loop.run_until_complete(main())


def test_sock_calls_on_reused_descriptors(loop: plait.Loop) -> None:
    async def main() -> None:
        numbers = set()
        for i in range(50):
            a, b = socket.socketpair()
            a.setblocking(False)
            b.setblocking(False)
            numbers.add(a.fileno())
            waiting = loop.create_task(loop.sock_recv(a, 100))
            await asyncio.sleep(0)
            if i % 2:
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                await loop.sock_sendall(b, b"x")
                assert await waiting == b"x"
            a.close()
            b.close()
        assert len(numbers) == 1

    loop.run_until_complete(main())


@pytest.mark.isolated
def test_a_server_out_of_descriptors_goes_on() -> None:
    code = """
    import asyncio, os, resource, socket, time, plait

    async def echo(reader, writer):
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    async def main():
        loop = asyncio.get_running_loop()
        told = []
        starved = asyncio.Event()
        def handler(loop, context):
            told.append(context)
            starved.set()
        loop.set_exception_handler(handler)
        # Before the server: a request to accept keeps the limit of the time when it was made.
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [socket.socket() for _ in range(10)]
        began = time.monotonic()
        fill = []
        try:
            while True:
                fill.append(os.dup(0))
        except OSError:
            pass
        for client in clients:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, b"x")
        await starved.wait()
        assert "out of system resource" in told[0]["message"], told
        assert told[0]["exception"].errno == 24, told
        for fd in fill:
            os.close(fd)
        for client in clients:
            assert await asyncio.wait_for(loop.sock_recv(client, 10), 60) == b"x"
            client.close()
        assert len(told) < 10 + time.monotonic() - began, len(told)  # one in a second
        server.close()
        print("served")

    plait.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr


@pytest.mark.isolated
def test_a_loop_out_of_descriptors_is_refused() -> None:
    code = """
    import os, resource, plait
    plait.new_event_loop().close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    fill = []
    try:
        while True:
            fill.append(os.dup(0))
    except OSError:
        pass
    for free in range(6):
        try:
            loop = plait.new_event_loop()
        except OSError as error:
            assert error.errno == 24, error
        else:
            break
        os.close(fill.pop())
    else:
        raise SystemExit("never")
    assert free == {"epoll": 4, "uring": 5}[loop.backend], free
    loop.close()
    print("made")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "made\n"
    assert done.stderr == ""
