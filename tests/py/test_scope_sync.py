"""Scopes without a loop, and the bridges between threads, processes and the loop."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import contextvars
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import scope_tasks
from scope_support import AMPLE, Held

import plait

TIMEOUT = 60.0


async def nothing() -> None:
    pass


# ---- scopes without a loop -----------------------------------------------------------


def test_threads_and_processes() -> None:
    with plait.scope() as s:
        one = s.start(pow, 2, 5, where="thread")
        two = s.start(scope_tasks.pid, where="process")
        three = s.start(int, "7")
        assert one.result(TIMEOUT) == 32
    assert two.result() != os.getpid()
    assert three.result() == 7
    assert {t.where for t in s.report().tasks} >= {"thread", "process"}


def test_errors_and_groups() -> None:
    with pytest.raises(LookupError, match="lost"):
        with plait.scope() as s:
            s.start(scope_tasks.fail, LookupError, "lost", where="thread")
    assert s.cancelled
    both = threading.Barrier(3)

    def fail(error: type[Exception]) -> None:
        try:
            both.wait(TIMEOUT)
            while True:
                pass
        finally:
            raise error

    with pytest.raises(ExceptionGroup) as caught:
        with plait.scope(grace=TIMEOUT) as s:
            s.start(fail, KeyError, where="thread")
            s.start(fail, ValueError, where="thread")
            both.wait(TIMEOUT)
            raise OSError
    kinds = {type(error) for error in caught.value.exceptions}
    assert kinds == {OSError, KeyError, ValueError}


def test_cancel_and_deadline() -> None:
    with plait.scope(grace=AMPLE) as s:
        handle = s.start(scope_tasks.spin, 3600, where="thread")
        s.cancel()
        with pytest.raises(asyncio.CancelledError):
            handle.result(TIMEOUT)
    with pytest.raises(plait.DeadlineExceeded):
        with plait.scope(deadline=0.02, grace=AMPLE) as s:
            s.start(scope_tasks.spin, 3600, where="thread").result(TIMEOUT)
    with pytest.raises(plait.TaskTimeout):
        with plait.scope(grace=AMPLE) as s:
            s.start(scope_tasks.spin, 3600, where="thread", timeout=0.02)


def test_grace_bounds_the_end() -> None:
    held = Held()
    began = time.monotonic()
    try:
        with pytest.raises(plait.Unstopped, match="stuck"):
            with plait.scope(grace=0.05) as s:
                s.start(held, where="thread", name="stuck")
                held.wait()
                s.cancel()
    finally:
        held.let_go()
    assert time.monotonic() - began < AMPLE


def test_limit_completed_and_map() -> None:
    with plait.scope(limit=2) as s:
        for n in range(6):
            s.start(abs, -n, where="thread")
        assert sorted(h.result() for h in s.completed()) == list(range(6))
        assert list(s.map(abs, range(-5, 0), where="thread", limit=2)) == [5, 4, 3, 2, 1]
        assert sorted(s.map(abs, range(-5, 0), where="process", ordered=False)) == [1, 2, 3, 4, 5]


def test_timeouts_of_result() -> None:
    go_on = threading.Event()
    with plait.scope() as s:
        handle = s.start(go_on.wait, where="thread")
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        go_on.set()
        assert handle.result(TIMEOUT)


def test_starts_from_other_threads() -> None:
    with plait.scope() as s:

        def parent(depth: int) -> None:
            if depth:
                s.start(parent, depth - 1, where="thread")

        for _ in range(4):
            s.start(parent, 5, where="thread")
    assert sum(row.count for row in s.report().sums) == 24


def test_misuse_without_a_loop() -> None:
    with plait.scope() as s:
        with pytest.raises(RuntimeError, match="no loop"):
            s.start(nothing)
        with pytest.raises(RuntimeError, match="no loop"):
            s.start(abs, 1, where="loop")
        with pytest.raises(TypeError, match="no loop"):
            s.map(abs, _agen(), where="thread")
    with pytest.raises(plait.ScopeClosed):
        s.start(abs, 1)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with"):
            with plait.scope():
                pass

    plait.run(main())


async def _agen() -> Any:
    yield 1


def test_a_scope_in_a_thread_of_a_scope_ends_with_it() -> None:
    began = threading.Event()
    outcomes: list[str] = []

    def work() -> None:
        try:
            with plait.scope() as inner:
                inner.start(scope_tasks.spin, 3600, where="thread")
                began.set()
        finally:
            outcomes.append("inner cancelled" if inner.cancelled else "not")

    async def main() -> None:
        async with plait.scope(grace=TIMEOUT) as s:
            s.start(work, where="thread")
            await plait.to_thread(began.wait)
            s.cancel()

    plait.run(main())
    assert outcomes == ["inner cancelled"]


def test_ctrl_c_ends_a_scope(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import plait, sys, threading\n"
        "main = threading.main_thread().ident\n"
        "def spin():\n"
        "    while 'h' not in globals(): pass\n"
        "    while sys._current_frames()[main].f_code.co_filename == __file__: pass\n"
        "    print('began', flush=True)\n"  # the main thread has left the block
        "    while True: pass\n"
        "try:\n"
        "    with plait.scope(grace=60) as s:\n"
        "        h = s.start(spin, where='thread')\n"
        "except KeyboardInterrupt:\n"
        "    print(h.state, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "began\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "cancelled\n"
        assert child.wait(TIMEOUT) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_default_pools_after_a_fork() -> None:
    with plait.scope() as s:
        assert s.start(abs, -1, where="thread").result(TIMEOUT) == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with plait.scope() as s:
                ok = s.start(abs, -2, where="thread").result(TIMEOUT) == 2
            code = 0 if ok else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- bridges -------------------------------------------------------------------------

var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)


def test_to_thread_and_to_process() -> None:
    async def main() -> None:
        var.set(5)
        assert await plait.to_thread(var.get) == 5
        assert await plait.to_thread(threading.get_ident) != threading.get_ident()
        assert await plait.to_process(scope_tasks.pid) != os.getpid()
        assert await plait.to_thread(int, "ff", base=16) == 255
        with pytest.raises(ZeroDivisionError):
            await plait.to_thread(lambda: 1 // 0)
        with pytest.raises(LookupError, match="far"):
            await plait.to_process(scope_tasks.fail, LookupError, "far")
        with pytest.raises(plait.TaskTimeout):
            await plait.to_thread(scope_tasks.spin, 3600, timeout=0.02, grace=AMPLE)

    plait.run(main())


def test_cancelling_to_thread_stops_the_function() -> None:
    began = threading.Event()
    ended = threading.Event()

    def work() -> None:
        try:
            while True:
                began.set()
        finally:
            ended.set()

    async def main() -> None:
        task = asyncio.create_task(plait.to_thread(work, grace=AMPLE))
        await plait.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    plait.run(main())


def test_to_thread_takes_places_of_a_limiter() -> None:
    async def main() -> None:
        limiter = plait.Limiter(2)
        seen = []

        def work() -> None:
            seen.append(limiter.available)

        await asyncio.gather(*(plait.to_thread(work, limiter=limiter) for _ in range(8)))
        assert max(seen) <= 1
        assert limiter.available == 2

    plait.run(main())


def test_from_thread_calls_on_the_loop() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        assert threading.get_ident() == home
        return 2 * n

    def work() -> tuple[int, int, int]:
        one = plait.from_thread(double, 4)
        two = plait.from_thread(threading.get_ident)
        with pytest.raises(ZeroDivisionError):
            plait.from_thread(lambda: 1 // 0)
        return one, two, var.get()

    async def main() -> None:
        nonlocal home
        home = threading.get_ident()
        var.set(3)
        assert await plait.to_thread(work) == (8, home, 3)
        async with plait.scope() as s:
            handle = s.start(work, where="thread")
        assert handle.result() == (8, home, 3)

    home = 0
    plait.run(main())


def test_from_thread_ends_with_its_scope() -> None:
    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    def work() -> None:
        try:
            plait.from_thread(forever)
        except (asyncio.CancelledError, plait.TaskStopped):
            seen.append("cancelled")
            raise

    async def main() -> None:
        async with plait.scope(grace=TIMEOUT) as s:
            s.start(work, where="thread")
            await began.wait()
            s.cancel()

    seen: list[str] = []
    began = plait.Event()
    plait.run(main())
    assert seen == ["cancelled"]


def test_from_thread_needs_a_home() -> None:
    with pytest.raises(RuntimeError, match="started from a loop"):
        plait.from_thread(abs, 1)

    async def main() -> None:
        with pytest.raises(RuntimeError):
            plait.from_thread(abs, 1)

    plait.run(main())


def test_the_clock_goes_on_after_failures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plait import _strands

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    clock = _strands._Clock()
    called: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            clock.later(0, lambda: called.append("refused"))
    done = threading.Event()
    clock.later(0, lambda: [][0])
    clock.later(0.01, done.set)
    assert done.wait(TIMEOUT)
    assert called == []
    assert "a call of the clock failed" in caplog.text
