"""Scopes on a loop: waiting, errors, cancellation, time, limits, reports."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import functools
import gc
import pathlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import scope_tasks

import plait

FOREVER = 3600.0
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def run(any_loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    def run_it(coro: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=any_loop_factory) as runner:
            return runner.run(asyncio.wait_for(coro, 60))

    return run_it


async def value(n: int, turns: int = 1) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return n


async def fail(error: BaseException, turns: int = 1) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise error


async def forever() -> None:
    await asyncio.sleep(FOREVER)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


# ---- waiting and results -------------------------------------------------------------


def test_leaving_waits_for_all(run: Run) -> None:
    async def main() -> None:
        ended = []

        async def one(n: int) -> int:
            for _ in range(n):
                await asyncio.sleep(0)
            ended.append(n)
            return n

        async with plait.scope() as s:
            handles = [s.start(one, n) for n in (3, 1, 2)]
            assert not any(h.done() for h in handles)
        assert sorted(ended) == [1, 2, 3]
        assert [h.result() for h in handles] == [3, 1, 2]
        assert [h.exception() for h in handles] == [None] * 3

    run(main())


def test_all_strands_and_kinds_of_functions(run: Run) -> None:
    class Callme:
        async def __call__(self, n: int) -> int:
            return n

    async def main() -> None:
        async with plait.scope() as s:
            handles = [
                s.start(value, 1),
                s.start(functools.partial(value, 2)),
                s.start(Callme(), 3),
                s.start(lambda: value(4), where="loop"),
                s.start(lambda: 5, where="loop"),
                s.start(threading.get_ident, where="thread"),
                s.start(scope_tasks.pid, where="process"),
                s.start(int, "8"),
                s.start(value, n=9, turns=0),
            ]
        results = [h.result() for h in handles]
        assert results[:5] == [1, 2, 3, 4, 5]
        assert results[5] != threading.get_ident()
        assert results[6] != scope_tasks.pid()
        assert results[7:] == [8, 9]
        assert handles[5].where == "thread"
        assert handles[6].where == "process"

    run(main())


def test_generators_run_on_a_plait_loop() -> None:
    def numbers() -> Any:
        yield plait.generators.sleep(0)  # type: ignore[attr-defined]
        return 7

    import plait.generators

    async def main() -> None:
        async with plait.scope() as s:
            one = s.start(numbers)
            two = s.start(numbers())
        assert (one.result(), two.result()) == (7, 7)

    plait.run(main())


def test_awaiting_a_handle(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            one = s.start(value, 1)
            assert await one == 1
            assert await one == 1
            slow = s.start(value, 2, 50)
            with pytest.raises(asyncio.InvalidStateError):
                slow.result()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await slow
            assert await asyncio.gather(_wait(slow), _wait(slow)) == [2, 2]

    run(main())


async def _wait(handle: Any) -> Any:
    return await handle


def test_children_may_start_while_the_scope_is_left(run: Run) -> None:
    async def main() -> None:
        handles = []

        async def parent(s: plait.Scope, depth: int) -> None:
            await asyncio.sleep(0)
            if depth:
                handles.append(s.start(parent, s, depth - 1))

        async with plait.scope() as s:
            handles.append(s.start(parent, s, 5))
        assert len(handles) == 6
        assert all(h.done() for h in handles)

    run(main())


def test_start_in_an_inner_scope_belongs_to_the_one_named(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as outer:
            async with plait.scope() as inner:
                child = outer.start(forever)
                seen = inner.start(_current)
            assert not child.done()
            assert seen.result() is inner
            assert plait.current_scope() is outer
            outer.cancel()
        assert child.cancelled()
        assert plait.current_scope() is None

    async def _current() -> Any:
        return plait.current_scope()

    run(main())


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loop", "thread", "process"])
def test_first_error_cancels_the_rest(run: Run, where: str) -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match="lost"):
            async with plait.scope() as s:
                rest = s.start(forever)
                if where == "loop":
                    bad = s.start(fail, LookupError("lost"))
                else:
                    bad = s.start(scope_tasks.fail, LookupError, "lost", where=where)
                await forever()
        assert rest.cancelled()
        assert isinstance(bad.exception(), LookupError)
        assert cancelling() == 0

    run(main())


def test_several_errors_are_a_group(run: Run) -> None:
    async def on_cancel() -> None:
        try:
            await forever()
        finally:
            raise KeyError("b")

    async def main() -> None:
        with pytest.raises(ExceptionGroup, match="3 errors in group") as caught:
            async with plait.scope(name="group") as s:
                s.start(on_cancel)
                s.start(on_cancel)
                await value(0)
                raise ValueError("body")
        assert [type(e) for e in caught.value.exceptions] == [ValueError, KeyError, KeyError]

    run(main())


def test_an_error_that_the_body_awaits_is_told_once(run: Run) -> None:
    async def main() -> None:
        error = ValueError("once")
        with pytest.raises(ValueError, match="once") as caught:
            async with plait.scope() as s:
                await s.start(fail, error)
        assert caught.value is error

    run(main())


def test_base_exceptions_make_a_base_group(run: Run) -> None:
    class Odd(BaseException):
        pass

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with plait.scope() as s:
                s.start(fail, Odd())
                s.start(fail, ValueError())
                await forever()
        assert not isinstance(caught.value, ExceptionGroup)

    run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_come_out_bare(run: Run, error: type[BaseException]) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            s.start(forever)
            await value(1)
            raise error

    with pytest.raises(error):
        run(main())


# ---- cancelling ----------------------------------------------------------------------


def test_cancel_is_silent_and_counts_are_given_back(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            child = s.start(forever)
            await value(0)
            s.cancel()
            s.cancel()
            await forever()
        assert child.cancelled()
        assert s.cancelled
        assert cancelling() == 0
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            child.result()

    run(main())


def test_cancel_as_the_last_step_does_not_leak(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            s.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert cancelling() == 0

    run(main())


def test_every_await_in_a_cancelled_scope_raises(run: Run) -> None:
    async def stubborn() -> int:
        for count in range(10):
            try:
                await forever()
            except asyncio.CancelledError:
                if count == 9:
                    raise
        return 0

    async def main() -> None:
        async with plait.scope() as s:
            child = s.start(stubborn)
            await value(0)
            s.cancel()
            for _ in range(3):
                with pytest.raises(asyncio.CancelledError):
                    await forever()
        assert child.cancelled()
        assert cancelling() == 0

    run(main())


def test_what_starts_in_a_cancelled_scope_runs_to_its_first_await(run: Run) -> None:
    async def main() -> None:
        reached = []

        async def child() -> None:
            reached.append("start")
            await forever()
            reached.append("end")

        async with plait.scope() as s:
            s.cancel()
            handle = s.start(child)
            thread = s.start(reached.append, "thread", where="thread")
        assert reached == ["start"]
        assert handle.cancelled()
        assert thread.cancelled()

    run(main())


def test_a_result_on_its_way_is_not_lost(run: Run) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        got = []

        async def child() -> None:
            got.append(await future)

        async with plait.scope() as s:
            s.start(child)
            await value(0)
            future.set_result("kept")
            s.cancel()
        assert got == ["kept"]

    run(main())


def test_cancelling_one_handle(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            one = s.start(forever)
            two = s.start(value, 2, 5)
            await value(0)
            assert one.cancel()
            assert one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
        assert not one.cancel()
        assert two.result() == 2
        assert not s.cancelled

    run(main())


def test_cancel_from_another_thread(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            s.start(s.cancel, where="thread")
            await forever()
        assert s.cancelled

    run(main())


def test_thread_is_stopped(run: Run) -> None:
    began = threading.Event()
    seen = []

    def work() -> None:
        began.set()
        try:
            while True:
                pass
        except plait.TaskStopped:
            seen.append("stopped")
            raise

    async def main() -> None:
        async with plait.scope() as s:
            handle = s.start(work, where="thread")
            await plait.to_thread(began.wait)
            s.cancel()
        assert seen == ["stopped"]
        assert handle.cancelled()

    run(main())


def test_process_is_stopped(run: Run) -> None:
    async def main() -> None:
        async with plait.scope(grace=60) as s:
            handle = s.start(scope_tasks.spin, FOREVER, where="process")
            await s.start(scope_tasks.pid, where="process")  # workers are there
            s.cancel()
        assert handle.cancelled()
        with pytest.raises(plait.TaskTimeout):
            async with plait.scope(grace=60) as s:
                s.start(scope_tasks.spin, FOREVER, where="process", timeout=0.05)

    run(main())


def test_what_does_not_stop_is_named_within_grace(run: Run) -> None:
    go_on = threading.Event()

    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(plait.Unstopped, match=r"sleeper.*thread") as caught:
            async with plait.scope(grace=0.05, name="patient") as s:
                handle = s.start(go_on.wait, where="thread", name="sleeper")
                await plait.to_thread(lambda: None)
                s.cancel()
        assert time.monotonic() - began < 20
        assert caught.value.scope == "patient"
        assert handle.state == "unstopped"
        assert handle.done()
        with pytest.raises(plait.Unstopped):
            handle.result()

    try:
        run(main())
    finally:
        go_on.set()


def test_cancellation_from_outside_goes_through(run: Run) -> None:
    async def main() -> None:
        async def scoped() -> None:
            async with plait.scope() as s:
                children.append(s.start(forever))
                await forever()

        children: list[Any] = []
        task = asyncio.create_task(scoped())
        await value(0, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert children[0].cancelled()

    run(main())


def test_cancellation_from_outside_while_leaving(run: Run) -> None:
    async def main() -> None:
        async def scoped() -> None:
            async with plait.scope() as s:
                children.append(s.start(forever))

        children: list[Any] = []
        task = asyncio.create_task(scoped())
        await value(0, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children[0].cancelled()

    run(main())


def test_outer_cancellation_and_an_error(run: Run) -> None:
    """The error comes first; the cancellation meets the next await."""

    async def on_cancel() -> None:
        try:
            await forever()
        finally:
            raise ValueError("cleanup")

    async def main() -> None:
        trace = []

        async def scoped() -> None:
            try:
                async with plait.scope() as s:
                    s.start(on_cancel)
                    await forever()
            except ValueError:
                trace.append("error")
            trace.append(cancelling())
            await asyncio.sleep(0)
            trace.append("not reached")

        task = asyncio.create_task(scoped())
        await value(0, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trace == ["error", 1]

    run(main())


def test_within_asyncio_timeout(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with plait.scope() as s:
                    child = s.start(forever)
                    await forever()
        assert child.cancelled()
        assert cancelling() == 0
        async with plait.scope() as s:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await forever()
            assert not s.cancelled

    run(main())


def test_task_groups_inside_and_outside(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(in_scope())
                group.create_task(fail(ValueError("group"), 5))
        assert len(caught.value.exceptions) == 1
        before = cancelling()  # asyncio's groups left one behind before Python 3.13
        with pytest.raises(ExceptionGroup, match="TaskGroup"):
            async with plait.scope() as s:
                other = s.start(forever)
                s.start(in_group)
                await forever()
        assert other.cancelled()
        assert cancelling() == before

    async def in_scope() -> None:
        async with plait.scope() as s:
            s.start(forever)

    async def in_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            group.create_task(fail(KeyError("k")))

    run(main())


def test_nested_scopes_cancel_inwards_only(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as outer:
            async with plait.scope() as inner:
                inner.start(forever)
                inner.cancel()
                await forever()
            assert not outer.cancelled
            await asyncio.sleep(0)
            async with plait.scope() as inner:
                child = inner.start(forever)
                outer.cancel()
                await forever()
            raise AssertionError("not reached")
        assert child.cancelled()
        assert inner.cancelled
        assert cancelling() == 0

    run(main())


def test_shield_keeps_outer_cancellation_out(run: Run) -> None:
    async def main() -> None:
        trace = []

        async def child() -> None:
            try:
                await forever()
            finally:
                async with plait.scope(shield=True) as s:
                    for _ in range(10):
                        await asyncio.sleep(0)
                    trace.append(await s.start(value, "inner", 3))
                trace.append("shielded")
                await asyncio.sleep(0)
                trace.append("not reached")

        async with plait.scope() as s:
            s.start(child)
            await value(0)
            s.cancel()
            async with plait.scope(shield=True):
                for _ in range(10):
                    await asyncio.sleep(0)
                trace.append("body")
            await forever()
        assert sorted(trace) == ["body", "inner", "shielded"]
        assert cancelling() == 0

    run(main())


def test_eager_tasks(run: Run) -> None:
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("eager tasks came with Python 3.12")

    async def at_once(n: int) -> int:
        return n

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with plait.scope() as s:
            handles = [s.start(at_once, 1), s.start(value, 2), s.start(at_once, 3, timeout=5)]
        assert [h.result() for h in handles] == [1, 2, 3]
        with pytest.raises(ZeroDivisionError):
            async with plait.scope() as s:
                s.start(broken)
                s.start(forever)
                await forever()

    async def broken() -> None:
        1 / 0  # noqa: B018

    run(main())


# ---- time ----------------------------------------------------------------------------


def test_deadline(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(plait.DeadlineExceeded, match="unfinished: its body, forever") as caught:
            async with plait.scope(deadline=0.01, name="short") as s:
                s.start(forever)
                await forever()
        assert isinstance(caught.value, TimeoutError)
        assert s.expired
        assert cancelling() == 0
        async with plait.scope(deadline=FOREVER) as s:
            s.start(value, 1)
        assert not s.expired

    run(main())


def test_the_tighter_deadline_wins(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(plait.DeadlineExceeded, match="outer"):
            async with plait.scope(deadline=0.02, name="outer"):
                async with plait.scope(deadline=FOREVER, name="inner") as inner:
                    assert inner.remaining is not None
                    assert inner.remaining < 1
                    await forever()
        async with plait.scope(deadline=FOREVER, name="outer") as outer:
            with pytest.raises(plait.DeadlineExceeded, match="inner"):
                async with plait.scope(deadline=0.01, name="inner"):
                    await forever()
            assert not outer.cancelled

    run(main())


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_timeout_of_one(run: Run, where: str) -> None:
    def spin() -> None:
        while True:
            pass

    async def main() -> None:
        with pytest.raises(plait.TaskTimeout, match=r"slow.*0\.02 s"):
            async with plait.scope() as s:
                fn: Any = forever if where == "loop" else spin
                s.start(fn, where=where, timeout=0.02, name="slow")
                await forever()

    run(main())


def test_retries(run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        calls = []

        async def flaky() -> str:
            calls.append(1)
            if len(calls) == 1:
                await forever()
            if len(calls) == 2:
                raise OSError
            return "third"

        async with plait.scope() as s:
            one = s.start(flaky, retries=2, timeout=0.02)
            two = s.start(scope_tasks.flaky, str(tmp_path / "a"), 2, where="thread", retries=2)
            three = s.start(scope_tasks.flaky, str(tmp_path / "b"), 1, where="process", retries=1)
        assert (one.result(), two.result(), three.result()) == ("third", 3, 2)
        assert {t.name: t.attempts for t in s.report().tasks}[two.name] in (2, 3)
        with pytest.raises(OSError, match="attempt 2"):
            async with plait.scope() as s:
                s.start(scope_tasks.flaky, str(tmp_path / "c"), 2, where="thread", retries=1)

    run(main())


# ---- limits, completed, map ----------------------------------------------------------


def test_limit_counts_all_strands(run: Run) -> None:
    async def main() -> None:
        now = peak = 0
        lock = threading.Lock()

        def enter() -> None:
            nonlocal now, peak
            with lock:
                now += 1
                peak = max(peak, now)

        def leave() -> None:
            nonlocal now
            with lock:
                now -= 1

        async def on_loop() -> None:
            enter()
            await asyncio.sleep(0)
            leave()

        def in_thread() -> None:
            enter()
            time.sleep(0.001)
            leave()

        async with plait.scope(limit=3) as s:
            handles = [s.start(on_loop) for _ in range(10)]
            handles += [s.start(in_thread, where="thread") for _ in range(10)]
            assert [h.state for h in handles].count("waiting") == 17
        assert peak == 3
        assert all(h.state == "done" for h in handles)

    run(main())


def test_what_waits_for_the_limit_is_cancelled_unbegun(run: Run) -> None:
    async def main() -> None:
        began = []

        async def one(n: int) -> None:
            began.append(n)
            await forever()

        async with plait.scope(limit=2) as s:
            handles = [s.start(one, n) for n in range(5)]
            await value(0, 3)
            assert handles[4].cancel()
            assert handles[4].cancelled()
            s.cancel()
        assert began == [0, 1]
        assert all(h.cancelled() for h in handles)

    run(main())


def test_completed_gives_each_once_in_order_of_ends(run: Run) -> None:
    async def main() -> None:
        gates = {result: asyncio.Event() for result in (30, 10, 20)}

        async def behind(result: int) -> int:
            await gates[result].wait()
            return result

        async with plait.scope() as s:
            early = s.start(value, 0)
            await early
            for result in gates:
                s.start(behind, result)
            got = []
            async for handle in s.completed():
                got.append(handle.result())
                if got[-1] == 10:
                    s.start(value, 99)
                following = {0: 10, 99: 20, 20: 30}.get(got[-1])
                if following is not None:
                    gates[following].set()
            assert got == [0, 10, 99, 20, 30]
            assert [h async for h in s.completed()] == []

    run(main())


def test_completed_of_very_many(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            for n in range(20000):
                s.start(value, n, 0)
            await value(0, 5)
            with pytest.raises(RuntimeError, match="forgotten"):
                s.completed()
        assert sum(row.count for row in s.report().sums) == 20000
        assert len(s.report().tasks) <= 16385
        async with plait.scope() as s:
            for n in range(20000):
                s.start(value, n, 0)
            assert sorted([h.result() async for h in s.completed()]) == list(range(20000))
        assert len(s.report().tasks) < 2000

    run(main())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_map_has_backpressure(run: Run, ordered: bool, kind: str) -> None:
    async def main() -> None:
        taken = given = most = 0

        def items() -> Any:
            nonlocal taken, most
            for n in range(50):
                taken += 1
                most = max(most, taken - given)
                yield n

        async def async_items() -> AsyncIterator[int]:
            for n in items():
                await asyncio.sleep(0)
                yield n

        async def double(n: int) -> int:
            await asyncio.sleep(0 if n % 3 else 0.001)
            return 2 * n

        async with plait.scope() as s:
            source = items() if kind == "plain" else async_items()
            got = []
            async for result in s.map(double, source, limit=4, ordered=ordered):
                given += 1
                got.append(result)
            assert (got if ordered else sorted(got)) == [2 * n for n in range(50)]
        assert most <= 4 + 1

    run(main())


def test_map_over_strands_and_errors(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            assert [r async for r in s.map(abs, [-1, -2], where="thread")] == [1, 2]
            assert [r async for r in s.map(abs, [-1, -2, -3], where="process")] == [1, 2, 3]
            assert [r async for r in s.map(value, [])] == []
        got = []
        with pytest.raises(ZeroDivisionError):
            async with plait.scope() as s:
                async for r in s.map(lambda n: 1 // n, [1, 0, 1], where="thread", limit=1):
                    got.append(r)
        assert got == [1]

        async def broken() -> AsyncIterator[int]:
            yield 1
            raise LookupError("items")

        got = []
        with pytest.raises(LookupError, match="items"):
            async with plait.scope() as s:
                async for r in s.map(value, broken()):
                    got.append(r)
        assert got == [1]

    run(main())


def test_leaving_a_map_early_cancels_what_it_started(run: Run) -> None:
    async def main() -> None:
        async def slow(n: int) -> int:
            if n:
                await forever()
            return n

        async with plait.scope() as s:
            results = s.map(slow, range(10), limit=5)
            async for r in results:
                assert r == 0
                break
            await results.aclose()
        outcomes = {row.outcome: row.count for row in s.report().sums}
        assert outcomes == {"done": 1, "cancelled": 4}

    run(main())


# ---- misuse, leaks, reports ----------------------------------------------------------


def test_start_after_the_end_and_before_the_begin(run: Run) -> None:
    async def main() -> None:
        s = plait.scope(name="gone")
        with pytest.raises(plait.ScopeClosed, match="has not been entered"):
            s.start(value, 1)
        async with s:
            pass
        with pytest.raises(plait.ScopeClosed, match="gone has ended"):
            s.start(value, 1)
        with pytest.raises(plait.ScopeClosed):
            s.map(value, [1])
        with pytest.raises(RuntimeError, match="entered before"):
            async with s:
                pass

    run(main())


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (TypeError, "function", lambda s: s.start(3)),
        (TypeError, "needs a function", lambda s: s.start()),
        (ValueError, "where", lambda s: s.start(value, 1, where="moon")),
        (ValueError, "loop only", lambda s: s.start(value, 1, where="thread")),
        (ValueError, "timeout", lambda s: s.start(value, 1, timeout=-1)),
        (TypeError, "timeout", lambda s: s.start(value, 1, timeout="x")),
        (ValueError, "retries", lambda s: s.start(value, 1, retries=-1)),
        (TypeError, "name", lambda s: s.start(value, 1, name=3)),
        (TypeError, "argument", lambda s: s.start(value)),
        (TypeError, "argument", lambda s: s.start(value, timeout=1)),
        (ValueError, "limit", lambda s: s.map(value, [], limit=0)),
        (TypeError, "iterable", lambda s: s.map(value, 3)),
    ],
)
def test_bad_arguments_start_nothing(
    run: Run, error: type[Exception], text: str, call: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            with pytest.raises(error, match=text):
                call(s)
            assert s._count == 0
        assert s.report().sums == ()

    run(main())


def test_a_coroutine_is_refused_with_advice(run: Run) -> None:
    async def main() -> None:
        coro = value(1)
        async with plait.scope() as s:
            with pytest.raises(TypeError, match=r"s\.start\(fn, arg\)"):
                s.start(coro)
        coro.close()

    run(main())


def test_bad_arguments_of_scopes() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        plait.scope(limit=0)
    with pytest.raises(ValueError, match="grace"):
        plait.scope(grace=-1)
    with pytest.raises(TypeError, match="deadline"):
        plait.scope(deadline="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        plait.scope(name=3)  # type: ignore[arg-type]


def test_ended_scopes_leave_no_cycle_that_lives(run: Run) -> None:
    class Thing:
        pass

    async def main() -> weakref.ref[Thing]:
        thing = Thing()

        async def hold(what: Thing) -> Thing:
            await asyncio.sleep(0)
            return what

        async with plait.scope() as s:
            s.start(hold, thing)
            s.start(hold, thing, name="slow path")
        return weakref.ref(thing)

    ref = run(main())
    gc.collect()
    assert ref() is None


def test_no_tasks_and_no_timers_are_left(run: Run) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        for _ in range(20):
            async with plait.scope(deadline=FOREVER) as s:
                s.start(value, 1, timeout=FOREVER)
                s.start(forever)
                await value(0)
                s.cancel()
        assert asyncio.all_tasks() == before

    run(main())


def test_report_and_reprs(run: Run) -> None:
    async def main() -> None:
        async with plait.scope(name="told") as s:
            one = s.start(value, 1, name="first")
            two = s.start(time.sleep, 0.001, where="thread")
            three = s.start(forever)
            assert "running" in repr(one)
            assert "told" in repr(s)
            await two
            three.cancel()
        report = s.report()
        rows = {(t.name, t.where, t.outcome) for t in report.tasks}
        assert rows == {
            ("first", "loop", "done"),
            ("sleep", "thread", "done"),
            ("forever", "loop", "cancelled"),
        }
        assert {t.name: t.place for t in report.tasks}["sleep"].startswith("plait")
        assert report.seconds > 0
        text = str(report)
        assert "told: open for" in text
        assert "cancelled" in text
        assert "done in thread plait" in repr(two)

    run(main())


def test_context_variables_reach_all_strands(run: Run) -> None:
    import contextvars

    var = contextvars.ContextVar("var", default="none")

    async def read() -> str:
        return var.get()

    async def main() -> None:
        var.set("set")
        async with plait.scope() as s:
            handles = [
                s.start(read),
                s.start(read, name="slow path"),
                s.start(var.get, where="thread"),
            ]
        assert [h.result() for h in handles] == ["set"] * 3

    run(main())


def test_closing_a_coroutine_inside_a_scope(run: Run) -> None:
    async def main() -> None:
        children = []

        async def scoped() -> None:
            async with plait.scope() as s:
                children.append(s.start(forever))
                await forever()

        coro = scoped()
        # Driven by hand within a task, then closed as a generator is.
        loop = asyncio.get_running_loop()
        task = loop.create_task(_drive_and_close(coro))
        await task
        for _ in range(3):
            await asyncio.sleep(0)
        assert children[0].done()

    async def _drive_and_close(coro: Coroutine[Any, Any, Any]) -> None:
        coro.send(None)
        coro.close()

    run(main())


# ---- auto ----------------------------------------------------------------------------


def test_auto_learns_where_a_function_belongs(run: Run) -> None:
    def short(n: int) -> int:
        return n + 1

    async def main() -> None:
        places = set()
        for n in range(200):
            async with plait.scope() as s:
                handle = s.start(short, n % 2)
            assert handle.result() == n % 2 + 1
            places.add(handle.where)
        assert "inline" in places

    run(main())


def test_auto_errors_inline_and_away(run: Run) -> None:
    def broken(n: int) -> float:
        return 1 / n

    async def main() -> None:
        for _ in range(100):
            async with plait.scope() as s:
                s.start(broken, 1)
            with pytest.raises(ZeroDivisionError):
                async with plait.scope() as s:
                    s.start(broken, 0)

    run(main())


def test_pure_tasks_go_to_processes_and_come_back(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            handles = [s.start(scope_tasks.count_down, 3_000_000) for _ in range(3)]
            small = s.start(scope_tasks.count_down, 3)
        assert [h.result() for h in handles] == [0] * 3
        assert small.result() == 0
        async with plait.scope() as s:
            explicit = s.start(scope_tasks.count_down, 3, where="process")
            thread = s.start(scope_tasks.count_down, 3, where="thread")
        assert (explicit.result(), thread.result()) == (0, 0)
        assert (explicit.where, thread.where) == ("process", "thread")

    run(main())
    with plait.scope() as s:
        handles = [s.start(scope_tasks.count_down, n) for n in (3, 3_000_000, 3_000_000)]
    assert [h.result() for h in handles] == [0] * 3
