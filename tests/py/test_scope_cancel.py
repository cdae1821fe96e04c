"""Scopes on a loop: cancelling, stopping, shielding."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import pathlib
import threading
import time
from typing import Any

import pytest
import scope_tasks
from scope_support import AMPLE, FOREVER, Held, Run, cancelling, fail, forever, value
from until import until

import plait

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
        try:
            while True:
                began.set()
        except plait.TaskStopped:
            seen.append("stopped")
            raise

    async def main() -> None:
        async with plait.scope(grace=AMPLE) as s:
            handle = s.start(work, where="thread")
            await plait.to_thread(began.wait)
            s.cancel()
        assert seen == ["stopped"]
        assert handle.cancelled()

    run(main())


def test_process_is_stopped(run: Run, tmp_path: pathlib.Path) -> None:
    here = tmp_path / "here"

    async def main() -> None:
        async with plait.scope(grace=AMPLE) as s:
            handle = s.start(scope_tasks.announce_and_spin, str(here), where="process")
            await plait.to_thread(until, here.exists)
            s.cancel()
        assert handle.cancelled()
        with pytest.raises(plait.TaskTimeout):
            async with plait.scope(grace=AMPLE) as s:
                s.start(scope_tasks.spin, FOREVER, where="process", timeout=0.05)

    run(main())


def test_what_does_not_stop_is_named_within_grace(run: Run) -> None:
    held = Held()

    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(plait.Unstopped, match=r"sleeper.*thread") as caught:
            async with plait.scope(grace=0.05, name="patient") as s:
                handle = s.start(held, where="thread", name="sleeper")
                await held.begun()
                s.cancel()
        assert time.monotonic() - began < AMPLE
        assert caught.value.scope == "patient"
        assert handle.state == "unstopped"
        assert handle.done()
        with pytest.raises(plait.Unstopped):
            handle.result()

    try:
        run(main())
    finally:
        held.let_go()


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
