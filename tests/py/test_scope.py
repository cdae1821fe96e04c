"""Scopes on a loop: waiting, results, errors, misuse, reports."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import scope_tasks
from scope_support import FOREVER, Run, cancelling, fail, forever, value

import plait

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


@pytest.mark.parametrize("slow", [False, True], ids=["c", "python"])
def test_what_cannot_be_watched_does_not_begin(run: Run, slow: bool) -> None:
    """A start that fails half way leaves nothing that runs beside the scope."""
    begun: list[int] = []

    async def body() -> None:
        begun.append(1)

    class Unwatchable(asyncio.Task):  # type: ignore[type-arg]
        def add_done_callback(self, fn: Any, /, *, context: Any = None) -> None:
            raise MemoryError

    def unwatched(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        return Unwatchable(coro, loop=loop, **kwargs)

    def refuse(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        raise MemoryError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        options = {"name": "slow"} if slow else {}
        async with plait.scope() as s:
            for factory in (unwatched, refuse):
                loop.set_task_factory(factory)
                with pytest.raises(MemoryError):
                    s.start(body, **options)
                loop.set_task_factory(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert begun == []
        assert s.report().tasks == ()

    run(main())
