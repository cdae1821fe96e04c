"""Scopes on a loop: deadlines, timeouts, limits, completed and map."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import scope_tasks
from scope_support import AMPLE, FOREVER, Run, cancelling, forever, value

import plait

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
            async with plait.scope(grace=AMPLE) as s:
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


async def end_by(event: asyncio.Event, result: int) -> int:
    await event.wait()
    return result


def test_completed_gives_each_once_in_order_of_ends(run: Run) -> None:
    async def main() -> None:
        async with plait.scope() as s:
            early = s.start(value, 0)
            await early
            events = {n: asyncio.Event() for n in (30, 10, 20)}
            for n in events:
                s.start(end_by, events[n], n)
            events[10].set()
            got = []
            async for handle in s.completed():
                got.append(handle.result())
                if got[-1] == 10:
                    s.start(value, 99)
                elif got[-1] in (99, 20):
                    events[20 if got[-1] == 99 else 30].set()
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
