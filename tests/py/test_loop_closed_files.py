"""A file that is closed before the loop stops watching it."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

import pytest

import plait


@pytest.fixture(params=[plait.new_event_loop, asyncio.SelectorEventLoop], ids=["plait", "asyncio"])
def loop(request: pytest.FixtureRequest):
    loop = request.param()
    yield loop
    loop.close()


@pytest.mark.parametrize("way", ["reader", "writer"])
def test_a_closed_socket_is_known_by_its_object(loop: asyncio.AbstractEventLoop, way: str) -> None:
    remove = getattr(loop, f"remove_{way}")
    a, b = socket.socketpair()
    with b:
        getattr(loop, f"add_{way}")(a, lambda: None)
        a.close()
        assert remove(a) is True
        with pytest.raises(ValueError):
            remove(a)


def test_a_closed_socket_loses_its_watches_one_by_one() -> None:
    loop = plait.new_event_loop()  # asyncio's raises OSError (EBADF) at the first
    a, b = socket.socketpair()
    with b:
        loop.add_reader(a, lambda: None)
        loop.add_writer(a, lambda: None)
        a.close()
        assert loop.remove_reader(a) is True
        assert loop.remove_writer(a) is True
    loop.close()


def test_the_descriptor_can_be_used_again(loop: asyncio.AbstractEventLoop) -> None:
    a, b = socket.socketpair()
    number = a.fileno()
    loop.add_reader(a, lambda: pytest.fail("it is closed"))
    a.close()
    loop.remove_reader(a)
    c, d = socket.socketpair()
    with b, c, d:
        assert number in (c.fileno(), d.fileno())
        loop.add_reader(c, loop.stop)
        d.send(b"x")
        loop.run_forever()
        loop.remove_reader(c)


def test_an_unwatched_closed_socket_is_no_file(loop: asyncio.AbstractEventLoop) -> None:
    a, b = socket.socketpair()
    with b:
        a.close()
        for method in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(ValueError):
                method(a)
        with pytest.raises(ValueError):
            loop.add_reader(a, lambda: None)
        with pytest.raises(ValueError):
            loop.remove_reader(-1)


def test_a_watched_file_is_let_go(loop: asyncio.AbstractEventLoop) -> None:
    a, b = socket.socketpair()
    with a, b:
        file = a.makefile("rb")
        gone = weakref.ref(file)
        loop.add_reader(file, lambda: None)
        loop.remove_reader(file)
        file.close()
        del file
        assert gone() is None


def test_a_file_that_refers_to_its_loop_is_collected() -> None:
    class File:
        def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
            self.sock, self.loop = sock, loop

        def fileno(self) -> int:
            return self.sock.fileno()

    a, b = socket.socketpair()
    with a, b:
        loop = plait.new_event_loop()
        file = File(a, loop)
        gone = weakref.ref(file)
        loop.add_reader(file, lambda: None)
        loop.close()
        del loop, file
        gc.collect()
        assert gone() is None
