"""Scopes whose coroutine is closed, and stops that come too late for what they were meant for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from scope_support import AMPLE, FOREVER, Run
from until import until

import plait
from plait import _ending, _handle

# ---- a coroutine that is closed ------------------------------------------------------


class Stubborn:
    """Work of a thread that goes on until it is stopped."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.began.set()
            plait.Event().wait_blocking(AMPLE)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize("closed", [False, True], ids=["open loop", "closed loop"])
@pytest.mark.parametrize("leaving", [False, True], ids=["in its body", "leaving"])
@pytest.mark.parametrize("new_loop", [plait.new_event_loop, asyncio.new_event_loop])
def test_closing_a_coroutine_stops_what_its_scope_started(
    new_loop: Callable[[], asyncio.AbstractEventLoop], leaving: bool, closed: bool
) -> None:
    work = Stubborn()
    scopes: list[plait.Scope] = []

    async def main() -> None:
        async with plait.scope() as s:
            scopes.append(s)
            s.start(work, where="thread")
            if not leaving:
                await asyncio.sleep(FOREVER)

    async def wait() -> None:
        while not work.began.is_set():
            await asyncio.sleep(0.001)

    loop = new_loop()
    try:
        task = loop.create_task(main())
        loop.run_until_complete(wait())
        if closed:
            loop.close()
        coro: Any = task.get_coro()
        coro.close()
        assert work.ended.wait(AMPLE)
        assert isinstance(work.error, plait.TaskStopped)
        assert "closed" in repr(scopes[0])
        assert plait.current_scope() is None
    finally:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        if not closed:
            task.cancel()
            with pytest.raises((asyncio.CancelledError, RuntimeError)):
                loop.run_until_complete(task)  # whose coroutine is gone
        loop.close()


# ---- a thread that waits for the loop ------------------------------------------------


def test_a_thread_that_waits_for_the_loop_can_be_stopped(run: Run) -> None:
    told: list[dict[str, Any]] = []
    inside = asyncio.Event()
    errors: list[BaseException] = []

    async def long() -> None:
        inside.set()
        try:
            await asyncio.sleep(FOREVER)
        finally:
            raise ValueError("while cleaning up")

    def work() -> None:
        try:
            plait.from_thread(long)
        except BaseException as error:
            errors.append(error)
            raise

    async def main() -> None:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()

        def hear(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            told.append(context)
            heard.set()

        loop.set_exception_handler(hear)
        async with plait.scope(grace=AMPLE) as s:
            handle = s.start(work, where="thread")
            await inside.wait()
            handle.cancel()
        assert handle.cancelled()
        await heard.wait()

    run(main())
    assert [type(error) for error in errors] == [plait.TaskStopped]
    assert [str(context["exception"]) for context in told] == ["while cleaning up"]


def test_a_loop_that_is_closed_ends_the_wait_of_a_thread() -> None:
    inside, ended = asyncio.Event(), threading.Event()
    errors: list[BaseException] = []

    async def long() -> None:
        inside.set()
        await asyncio.sleep(FOREVER)

    def work() -> None:
        try:
            plait.from_thread(long)
        except BaseException as error:
            errors.append(error)
        ended.set()

    async def main() -> None:
        async with plait.scope() as s:
            s.start(work, where="thread")

    loop = plait.new_event_loop()
    task = loop.create_task(main())
    loop.run_until_complete(inside.wait())
    for each in asyncio.all_tasks(loop):
        each._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert ended.wait(AMPLE)
    assert [type(error) for error in errors] == [RuntimeError]
    coro: Any = task.get_coro()
    coro.close()


# ---- stops that come late ------------------------------------------------------------


def test_a_stop_that_was_put_off_does_not_meet_the_next_attempt(run: Run) -> None:
    put_off: list[Any] = []
    attempts = 0
    masked, go, again, end = (threading.Event() for _ in range(4))

    def work() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            with _handle.Masked():  # as in the midst of entering a scope of its own
                masked.set()
                go.wait(AMPLE)
            raise ValueError("once")
        again.set()
        end.wait(AMPLE)
        return 7

    async def main() -> None:
        async with plait.scope() as s:
            handle = s.start(work, where="thread", timeout=FOREVER, retries=1)
            later = s._later

            def collect(seconds: float, call: Any) -> Any:
                if isinstance(call, partial) and call.func == s._stop_far:
                    put_off.append(call)
                    return None
                return later(seconds, call)

            await asyncio.to_thread(masked.wait, AMPLE)
            s._later = collect  # type: ignore[method-assign]
            s._expire_one(handle)
            assert len(put_off) == 1
            go.set()
            await asyncio.to_thread(again.wait, AMPLE)
            put_off[0]()
            end.set()
            assert await handle == 7

    run(main())
    assert attempts == 2


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Calls that are due, made by the test."""
    calls: list[Callable[[], None]] = []

    class Timer:
        def cancel(self) -> None:
            pass  # too late: its thread waits for the scope's lock

    def later(seconds: float, call: Callable[[], None]) -> Timer:
        calls.append(call)
        return Timer()

    monkeypatch.setattr(_ending._strands, "later", later)
    return calls


def test_a_timeout_that_waited_for_the_lock_does_not_meet_the_next_attempt(
    timers: list[Callable[[], None]],
) -> None:
    attempts = 0
    again, end = threading.Event(), threading.Event()

    def work() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("once")
        again.set()
        end.wait(AMPLE)
        return 7

    with plait.scope() as s:
        handle = s.start(work, where="thread", timeout=FOREVER, retries=1)
        assert again.wait(AMPLE)
        until(lambda: len(timers) == 2)
        timers[0]()  # that of the first attempt, which has been cancelled
        end.set()
        assert handle.result() == 7
