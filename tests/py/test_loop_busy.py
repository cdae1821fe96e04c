"""Busy polling: who asks for it, when a loop does it, and what it must not delay or lose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import plait
from plait import _busy
from plait.cli import main as plait_main

MOST = 0.01  # seconds: so long that a slow machine wakes a thread in it, too


@contextlib.contextmanager
def quick_loop(backend: str, busy_poll: float) -> Iterator[Any]:
    """A loop, and a thread that answers its requests at once: loop.ask() returns a future."""
    loop: Any = plait.Loop(backend=backend, busy_poll=busy_poll)
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer() -> None:
        while (future := asked.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    async def ask(times: int) -> None:
        for _ in range(times):
            future = loop.create_future()
            asked.put(future)
            await future

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield loop, ask
    finally:
        asked.put(None)
        thread.join()
        loop.close()


def spun(loop: Any) -> int:
    return int(loop.statistics()["spins"])


@pytest.fixture(params=["epoll", "uring"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---- asking for it ----


def test_the_limit_and_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAIT_BUSY_POLL", raising=False)
    assert _busy.limit(0) == (0.0, "the program asks for it")
    assert _busy.limit(0.01)[0] == 0.01
    monkeypatch.setenv("PLAIT_BUSY_POLL", "2e-5")
    assert _busy.limit() == (2e-5, "PLAIT_BUSY_POLL=2e-5")
    assert _busy.limit(1e-6)[0] == 1e-6  # the program goes first


@pytest.mark.parametrize(
    ("processors", "quota", "seconds", "reason"),
    [
        (8, None, 50e-6, "default"),
        (1, None, 0.0, "one processor"),
        (None, None, 0.0, "one processor"),
        (8, 1.5, 0.0, "limit of 1.5 processors"),
    ],
)
def test_the_default(
    monkeypatch: pytest.MonkeyPatch,
    processors: int | None,
    quota: float | None,
    seconds: float,
    reason: str,
) -> None:
    monkeypatch.delenv("PLAIT_BUSY_POLL", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(_busy, "cpu_quota", lambda: quota)
    _busy._default.cache_clear()
    try:
        assert _busy.limit()[0] == seconds
        assert reason in _busy.limit()[1]
    finally:
        _busy._default.cache_clear()


@pytest.mark.parametrize("wrong", [-1e-9, 0.0101, float("nan"), float("inf")])
def test_what_is_out_of_range_is_refused(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    match = f"busy_poll must be from 0 to 0.01 seconds, not {wrong!r}"
    for make in (plait.Loop, plait.new_event_loop):
        with pytest.raises(ValueError, match=match):
            make(busy_poll=wrong)
    monkeypatch.setenv("PLAIT_BUSY_POLL", str(wrong))
    with pytest.raises(ValueError, match=r"PLAIT_BUSY_POLL must be .* seconds"):
        plait.Loop()


def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="busy_poll must be a number of seconds, not 'soon'"):
        plait.Loop(busy_poll="soon")  # type: ignore[arg-type]
    monkeypatch.setenv("PLAIT_BUSY_POLL", "soon")
    with pytest.raises(ValueError, match="PLAIT_BUSY_POLL must be a number of seconds, not 'soon'"):
        plait.Loop()
    plait.Loop(busy_poll=0).close()  # who does not read the variable is not stopped by it


def test_run_takes_it() -> None:
    async def answer() -> int:
        return 42

    assert plait.run(answer(), busy_poll=1e-5) == 42
    never_run = answer()
    with pytest.raises(ValueError, match="busy_poll must be"):
        plait.run(never_run, busy_poll=1.0)
    never_run.close()


def test_doctor_tells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_BUSY_POLL", "0.0001")
    plait_main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["busy_poll"] == {
        "seconds": 0.0001,
        "reason": "PLAIT_BUSY_POLL=0.0001",
    }
    for value, words in (
        ("0.0001", "up to 100 us where it pays, because PLAIT_BUSY_POLL=0.0001"),
        ("0", "off, because PLAIT_BUSY_POLL=0"),
        ("no", "none, because of an error: PLAIT_BUSY_POLL must be"),
    ):
        monkeypatch.setenv("PLAIT_BUSY_POLL", value)
        plait_main(["doctor"])
        assert words in capsys.readouterr().out


# ---- doing it ----


def test_quick_answers_make_it_spin(backend: str) -> None:
    with quick_loop(backend, MOST) as (loop, ask):
        assert spun(loop) == 0
        end = time.monotonic() + 60
        while spun(loop) == 0 and time.monotonic() < end:
            loop.run_until_complete(ask(10))
        assert spun(loop) > 0
        # Nothing that comes meanwhile is lost.
        loop.run_until_complete(asyncio.wait_for(ask(2000), 60))
        figures = loop.statistics()
        assert figures["spins_met"] + figures["spins_crowded"] <= figures["spins"]


def test_who_does_not_want_it_never_spins(backend: str) -> None:
    with quick_loop(backend, 0) as (loop, ask):
        loop.run_until_complete(ask(2000))
        assert spun(loop) == 0


def test_a_loop_that_waits_for_timers_never_spins(backend: str) -> None:
    with quick_loop(backend, MOST) as (loop, _):

        async def ticks() -> None:
            for _ in range(50):
                await asyncio.sleep(0.001)

        loop.run_until_complete(ticks())
        assert spun(loop) == 0


def test_descriptors_children_and_timers_beside_it(backend: str) -> None:
    with quick_loop(backend, MOST) as (loop, ask):

        async def all_of_it() -> None:
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for n in range(200):
                await ask(10)
                writer.write(b"%06d" % n)
                assert await reader.readexactly(6) == b"%06d" % n
                await asyncio.sleep(0.0001 if n % 10 == 0 else 0)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print('ended')", stdout=subprocess.PIPE
            )
            assert (await child.communicate())[0] == b"ended\n"
            writer.close()
            await writer.wait_closed()
            await served.wait()
            server.close()
            await server.wait_closed()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()
            await writer.wait_closed()
            served.set()

        served = asyncio.Event()
        asyncio.set_event_loop(loop)  # 3.11's child watcher asks for it
        try:
            loop.run_until_complete(asyncio.wait_for(all_of_it(), 60))
        finally:
            asyncio.set_event_loop(None)
        assert spun(loop) > 0


# ---- not delaying others ----

_INTERRUPTED = """
import os, queue, signal, socket, sys, threading
import plait

# With a wake-up descriptor that is another's, a signal is no event of the loop's.
not_ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())

loop = plait.Loop(backend=sys.argv[1], busy_poll=0.01)
asked = queue.SimpleQueue()

def answer():
    while loop.statistics()["spins"] == 0:
        asked.get()
        loop.call_soon_threadsafe(asked.put, None)
    os.kill(os.getpid(), signal.SIGINT)  # in the midst of the first spin, which meets nothing

signal.signal(signal.SIGINT, eval(sys.argv[2]))
thread = threading.Thread(target=answer)
thread.start()
asked.put(None)
try:
    loop.run_forever()  # falls asleep for ever unless the signal is seen
    print("stopped")
except KeyboardInterrupt:
    print("interrupted")
thread.join()
loop.close()
"""


@pytest.mark.parametrize("times", range(2))
@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ("signal.default_int_handler", "interrupted\n"),
        # It runs between the spin and the sleep: what it schedules must not be slept over.
        ("lambda *_: loop.call_soon(loop.stop)", "stopped\n"),
    ],
    ids=["raises", "schedules"],
)
def test_a_ctrl_c_in_its_midst_is_seen(backend: str, handler: str, told: str, times: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, backend, handler],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.stderr) == (told, "")


def test_other_threads_run_meanwhile(backend: str) -> None:
    """The interpreter is free during a spin: what ends one is a thread that answers."""
    with quick_loop(backend, MOST) as (loop, ask):
        end = time.monotonic() + 60
        while loop.statistics()["spins_met"] == 0 and time.monotonic() < end:
            loop.run_until_complete(ask(10))
        assert loop.statistics()["spins_met"] > 0
