"""What pools say to those who hold them wrongly."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate

import plait

TIMEOUT = 100.0


@pytest.fixture(scope="module")
def shared() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(1) as pool:
        yield pool


@pytest.fixture(params=["process", "thread"])
def either(request: pytest.FixtureRequest, shared: plait.ProcessPool) -> Iterator[Any]:
    if request.param == "process":
        yield shared
    else:
        with plait.ThreadPool(1) as pool:
            yield pool


class Frames:
    """Functions that make what cannot leave a process."""

    async def coroutine(self) -> int:
        return 1

    def generator(self) -> Iterator[int]:
        yield 1

    async def agen(self) -> Any:
        yield 1

    async def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (
            tasks.coroutine,
            ["<function coroutine", "coroutine function", "scope.start", "asyncio.run"],
        ),
        (Frames().coroutine, ["Frames.coroutine", "coroutine function"]),
        (functools.partial(tasks.coroutine, 1), ["coroutine function"]),
        (functools.partial(functools.partial(Frames().generator)), ["generator function"]),
        (tasks.generator, ["<function generator", "generator function", "list"]),
        (Frames().agen, ["generator function"]),
    ],
)
def test_what_makes_frames_is_refused(
    shared: plait.ProcessPool, fn: Callable[..., Any], words: list[str]
) -> None:
    for submit in (shared.submit, shared.options(retries=3).submit, shared.map):
        with pytest.raises(TypeError) as caught:
            submit(fn, [1])
        assert all(word in str(caught.value) for word in words)
    assert shared.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_a_coroutine_function_is_refused_by_run_in_executor(shared: plait.ProcessPool) -> None:
    async def main() -> None:
        run: Any = asyncio.get_running_loop().run_in_executor
        with pytest.raises(TypeError, match="coroutine function"):
            await run(shared, tasks.coroutine, 1)

    plait.run(main())


def notes(future: Any) -> str:
    error = future.exception(TIMEOUT)
    assert error is not None
    return "\n".join(getattr(error, "__notes__", []))


def test_a_result_that_cannot_be_sent_names_its_task(shared: plait.ProcessPool) -> None:
    text = notes(shared.submit(tasks.unpicklable_result))
    assert "unpicklable_result" in text
    assert "sent back" in text
    text = notes(shared.options(name="report").submit(tasks.unpicklable_result))
    assert "unpicklable_result (task 'report')" in text
    text = notes(shared.submit(tasks.coroutine_of, 1))
    assert "coroutine_of" in text
    assert "runs it there" in text
    with pytest.raises((AttributeError, pickle.PicklingError)) as caught:
        list(shared.map(tasks.unpicklable_of, range(4), chunksize=2))
    assert "unpicklable_of" in "".join(caught.value.__notes__)
    assert notes(shared.submit(tasks.fail, "its own")) == ""


class Nameless:
    """A function that does not tell what it is."""

    def __call__(self) -> Any:
        return threading.Lock()

    def __repr__(self) -> str:
        raise ValueError("no text of it")


class Anything(Nameless):
    """One with all attributes, whatever is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            return threading.Lock()
        raise AttributeError(name)


@pytest.mark.parametrize("kind", [Nameless, Anything])
def test_a_result_that_cannot_be_sent_of_what_has_no_name(
    shared: plait.ProcessPool, kind: Callable[[], Any]
) -> None:
    error = shared.submit(kind()).exception(TIMEOUT)
    assert isinstance(error, TypeError)  # the worker has not died of it
    assert f"an object of the type {kind.__name__}" in "".join(error.__notes__)


class Deadly(Nameless):
    def __call__(self) -> Any:
        os._exit(3)


def test_a_worker_that_dies_of_what_has_no_name_is_replaced() -> None:
    with plait.ProcessPool(1) as pool:
        future = pool.submit(Deadly())
        try:
            error = future.exception(TIMEOUT)
            assert isinstance(error, plait.WorkerDied)
            assert "an object of the type" in str(error)
            assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        finally:
            if not future.done():
                pool.kill_workers()


def test_options_given_to_submit(either: Any) -> None:
    for option in ("timeout", "priority", "name", "retries"):
        future = either.submit(tasks.plus_one, 1, **{option: 1})
        assert isinstance(future.exception(TIMEOUT), TypeError)
        assert f"pool.options({option}=...)" in notes(future)
        assert "plus_one" in notes(future)
    assert "pool.options(timeout=...)" in notes(either.submit(len, [], timeout=1.0))


def test_other_keyword_arguments_have_no_hint(either: Any) -> None:
    assert notes(either.submit(tasks.plus_one, 1, other=1)) == ""
    assert notes(either.submit(tasks.takes_timeout, timeout=1, other=2)) == ""
    assert notes(either.submit(tasks.takes_timeout, timeout="deeper")) == ""
    assert either.submit(tasks.takes_timeout, timeout=3).result(TIMEOUT) == 3


@pytest.mark.parametrize("kind", [plait.ProcessPool, plait.ThreadPool])
def test_max_workers(kind: Callable[..., Any]) -> None:
    with kind(max_workers=3) as pool:
        assert pool.statistics().workers == 3 or len(pool.statistics().workers) == 3
    with pytest.raises(TypeError, match="max_workers"):
        kind(2, max_workers=2)
    with pytest.raises(ValueError, match="workers"):
        kind(max_workers=0)
    with pytest.raises(TypeError, match="workers"):
        kind(max_workers="2")


def test_a_full_pool_tells_a_loop_what_to_do(gate: Gate) -> None:
    with plait.ProcessPool(1, max_pending=1) as pool, plait.ThreadPool(1, max_pending=1) as threads:
        held = gate.hold(pool)
        running = [threads.submit(held[0].result, TIMEOUT)]
        while not running[0].running():
            pass
        running.append(threads.submit(held[0].result, TIMEOUT))

        async def main() -> None:
            for full in (pool, threads):
                with pytest.raises(plait.PoolFull, match=r"event loop.*await pool\.submit_soon"):
                    full.submit(tasks.plus_one, 1)
            soon = asyncio.ensure_future(pool.submit_soon(tasks.plus_one, 1))
            await asyncio.sleep(0)
            gate.open()
            assert await (await soon) == 2

        plait.run(main())


def test_cancel_is_a_promise_until_the_task_has_stopped(gate: Gate) -> None:
    with plait.ProcessPool(1) as pool:
        (held,) = gate.hold(pool)
        assert held.cancel()
        ended = held._ended
        assert held.cancelled() >= ended
        with pytest.raises(concurrent.futures.CancelledError):
            held.result(TIMEOUT)
        assert held.cancelled()
