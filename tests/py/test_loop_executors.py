"""run_in_executor with executors that are not plait's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import plait
from plait import _core


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Prompt(concurrent.futures.Executor):
    """Returns futures that are done already, or whatever it is told to return."""

    def __init__(self, kind: type[Future[Any]] = Future) -> None:
        self.kind = kind
        self.last: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.last = self.kind()
        self.last.set_result(fn(*args, **kwargs))
        return self.last


class Special(Future[Any]):
    """A future whose result is made when it is asked for."""

    def result(self, timeout: float | None = None) -> Any:
        return -super().result(timeout)


@pytest.mark.parametrize("debug", [False, True])
def test_results_come_in_order(loop: plait.Loop, pool: ThreadPoolExecutor, debug: bool) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(loop.run_in_executor(pool, abs, -i) for i in range(200)))

    loop.set_debug(debug)
    assert loop.run_until_complete(main()) == list(range(200))


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (LookupError("x"), LookupError),
        (concurrent.futures.CancelledError("x"), asyncio.CancelledError),
        (concurrent.futures.TimeoutError("x"), TimeoutError),
        (concurrent.futures.InvalidStateError("x"), asyncio.InvalidStateError),
    ],
)
def test_errors_are_those_of_asyncio(
    pool: ThreadPoolExecutor, raised: Exception, seen: type[BaseException]
) -> None:
    def fail() -> None:
        raise raised

    async def main() -> BaseException:
        future = asyncio.get_running_loop().run_in_executor(pool, fail)
        try:
            await future
        except BaseException as error:
            return error
        raise AssertionError("no error")

    for new_loop in (asyncio.SelectorEventLoop, plait.new_event_loop):
        loop = new_loop()
        try:
            error = loop.run_until_complete(asyncio.wait_for(main(), 100))
        finally:
            loop.close()
        assert type(error) is seen, new_loop


def test_cancelling_goes_both_ways(loop: plait.Loop, pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()
    ran: list[int] = []

    async def main() -> None:
        running = loop.run_in_executor(pool, gate.wait)
        queued = loop.run_in_executor(pool, ran.append, 1)
        queued.cancel()
        await asyncio.wait([queued])
        assert queued.cancelled()
        await asyncio.sleep(0)
        gate.set()
        assert await running
        assert await loop.run_in_executor(pool, len, ran) == 0
        given: Future[int] = Future()
        executor = Prompt()
        executor.submit = lambda *_args, **_kwargs: given  # type: ignore[method-assign]
        future = loop.run_in_executor(executor, int)
        given.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future

    loop.run_until_complete(main())


def test_a_result_for_one_that_was_cancelled(loop: plait.Loop, pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()

    async def main() -> None:
        future = loop.run_in_executor(pool, gate.wait)
        future.cancel()
        gate.set()
        assert await loop.run_in_executor(pool, abs, -1) == 1
        assert future.cancelled()

    loop.run_until_complete(main())


@pytest.mark.parametrize("kind", [Future, Special])
def test_futures_that_are_done_already(loop: plait.Loop, kind: type[Future[Any]]) -> None:
    """From Python 3.15 on asyncio does not ask for the result by the method any more."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(Prompt(kind), abs, -7)

    control = asyncio.SelectorEventLoop()
    try:
        expected = control.run_until_complete(main())
    finally:
        control.close()
    assert abs(expected) == 7
    assert loop.run_until_complete(main()) == expected


def test_an_end_after_the_loops_is_nobodys(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    loop = plait.new_event_loop()

    async def main() -> None:
        loop.run_in_executor(pool, gate.wait)

    loop.run_until_complete(main())
    loop.close()
    gate.set()
    assert pool.submit(abs, -1).result() == 1
    assert caplog.records == []


def test_the_executors_future_keeps_no_result_of_the_loops(loop: plait.Loop) -> None:
    executor = Prompt()

    async def main() -> weakref.ref[Any]:
        future = loop.run_in_executor(executor, int)
        assert await future == 0
        return weakref.ref(future)

    gc.disable()
    try:
        assert loop.run_until_complete(main())() is None
    finally:
        gc.enable()
    assert executor.last is not None


def test_a_loop_that_posts_its_own_way_is_asked(pool: ThreadPoolExecutor) -> None:
    class Posting(plait.Loop):
        posts = 0

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
            self.posts += 1
            return super().call_soon_threadsafe(*args, **kwargs)

    loop = Posting()
    try:
        assert loop.run_until_complete(call(loop, pool)) == 1
        assert loop.posts >= 1
    finally:
        loop.close()


async def call(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor) -> int:
    return await loop.run_in_executor(pool, abs, -1)


class Odd(concurrent.futures.Future[int]):
    """What can be asked for its callbacks alone."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[..., Any]] = []

    def add_done_callback(self, fn: Callable[..., Any]) -> None:
        self.callbacks.append(fn)


def test_an_end_for_one_that_is_done_asks_nothing_more(loop: plait.Loop) -> None:
    source = Odd()
    following: Any = _core.Following(loop, source)
    following.future.set_result(1)
    assert following._deliver(source) is None
    assert following.future is None


def test_an_end_that_cannot_be_read_is_told(loop: plait.Loop) -> None:
    source = Odd()
    following: Any = _core.Following(loop, source)
    with pytest.raises(AttributeError, match="_state"):
        following._deliver(source)


@pytest.mark.parametrize("answer", [KeyError("done"), None, 1, "", Odd()])
def test_futures_of_a_loops_own_may_answer_oddly(answer: object) -> None:
    class Target(asyncio.Future[int]):
        def done(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    class Loop(plait.Loop):
        def create_future(self) -> Any:
            return Target(loop=self)

    loop = Loop()
    try:
        source: Future[int] = Future()
        following: Any = _core.Following(loop, source)
        target = following.future
        source.set_result(3)
        if isinstance(answer, Exception):
            with pytest.raises(KeyError):
                following._deliver(source)
        else:
            following._deliver(source)
            assert target._state == ("PENDING" if answer else "FINISHED")
    finally:
        loop.close()


def test_a_blocked_loops_work_is_begun(loop: plait.Loop) -> None:
    async def main() -> None:
        await loop.run_in_executor(None, int)
        for _ in range(20):
            begun = threading.Event()
            future = loop.run_in_executor(None, begun.set)
            begun.wait()  # blocks the loop, as a program should not
            await future

    loop.run_until_complete(main())
