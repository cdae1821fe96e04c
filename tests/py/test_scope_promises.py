"""What a scope promises whatever is in it: an end in time, with everything told."""

# ruff: noqa: PT012
# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import scope_tasks
from scope_support import FOREVER, Held, Run, forever, value

import plait

LATE = 60.0
"""Seconds: far beyond every grace here, and far below for ever."""


async def stubborn(go_on: asyncio.Event) -> None:
    """Swallow every cancellation until it is let go."""
    while not go_on.is_set():
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            pass


def test_of_all_strands_what_does_not_stop_is_named_and_the_rest_is_waited_for(run: Run) -> None:
    async def stop_all(held: Held, grace: float) -> bool:
        """Whether what does stop has done so within the grace."""
        go_on = asyncio.Event()
        with pytest.raises(plait.Unstopped) as caught:
            async with plait.scope(grace=grace, name="mixed") as s:
                s.start(stubborn, go_on, name="coroutine")
                s.start(held, where="thread", name="in C")
                good = [
                    s.start(forever),
                    s.start(scope_tasks.spin, FOREVER, where="thread"),
                    s.start(scope_tasks.spin, FOREVER, where="process"),
                ]
                await held.begun()
                began = time.monotonic()
                s.cancel()
        assert time.monotonic() - began < grace + LATE
        named = {name.split(" (")[0] for name in caught.value.tasks}
        assert {"coroutine", "in C"} <= named
        go_on.set()
        await asyncio.sleep(0)
        return len(named) == 2 and all(h.cancelled() for h in good)

    async def main() -> None:
        for grace in (1.0, 5.0, 20.0):  # a busy machine takes its time
            held = Held()
            try:
                if await stop_all(held, grace):
                    return
            finally:
                held.let_go()
        pytest.fail("what can be stopped was not")

    run(main())


def test_a_late_body_is_named(run: Run) -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        with pytest.raises(plait.DeadlineExceeded) as caught:
            async with plait.scope(deadline=0.01, grace=0.02) as s:
                asyncio.get_running_loop().call_later(0.1, go_on.set)
                await stubborn(go_on)
                assert s.cancelled
        assert caught.value.unfinished == ("its body",)

    run(main())


def test_nothing_is_given_more_time_than_a_late_body_took(run: Run) -> None:
    """Only the body can end the body; when it has, the grace of the rest is over, too."""
    held = Held()

    async def main() -> None:
        go_on = asyncio.Event()
        with pytest.raises(plait.Unstopped, match="in C"):
            async with plait.scope(grace=0.02) as s:
                handle = s.start(held, where="thread", name="in C")
                await held.begun()
                s.cancel()
                asyncio.get_running_loop().call_later(0.1, go_on.set)
                await stubborn(go_on)
                done = handle.done()
        assert not done
        assert handle.state == "unstopped"

    try:
        run(main())
    finally:
        held.let_go()


def test_a_shield_keeps_its_own_deadline(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(plait.DeadlineExceeded, match="own"):
            async with plait.scope(deadline=FOREVER) as outer:
                outer.cancel()
                async with plait.scope(deadline=0.01, shield=True, name="own"):
                    await forever()

    run(main())


def test_an_outer_deadline_waits_for_a_shield_and_then_counts(run: Run) -> None:
    async def main() -> None:
        reached: list[str] = []
        with pytest.raises(plait.DeadlineExceeded, match="outer"):
            async with plait.scope(deadline=0.01, name="outer") as outer:
                async with plait.scope(shield=True) as inner:
                    assert inner.remaining is None
                    while not outer.cancelled:
                        await asyncio.sleep(0.001)
                    reached.append("shielded")
                await asyncio.sleep(0)
                reached.append("no more")
        assert reached == ["shielded"]

    run(main())


@pytest.mark.parametrize("where", ["loop", "thread", "process"])
def test_a_deadline_reaches_every_strand(run: Run, where: str) -> None:
    async def main() -> None:
        fn: Any = asyncio.sleep if where == "loop" else scope_tasks.spin
        with pytest.raises(plait.DeadlineExceeded, match="brief") as caught:
            async with plait.scope(deadline=0.05, grace=LATE, name="brief") as s:
                handle = s.start(fn, FOREVER, where=where, name="long")
        assert "long" in caught.value.unfinished
        assert handle.cancelled()
        assert s.expired

    run(main())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("where", ["thread", "process"])
def test_map_over_an_async_iterable_on_other_strands(run: Run, where: str, ordered: bool) -> None:
    """Never more items taken than the limit allows, whatever runs them."""
    taken = given = 0

    async def items() -> AsyncIterator[int]:
        nonlocal taken
        for n in range(20):
            taken += 1
            assert taken - given <= 3 + 1
            yield n
            await asyncio.sleep(0)

    async def main() -> None:
        nonlocal given
        got = []
        async with plait.scope() as s:
            async for result in s.map(abs, items(), limit=3, where=where, ordered=ordered):
                given += 1
                got.append(result)
        assert sorted(got) == list(range(20))
        if ordered:
            assert got == list(range(20))

    run(main())


def test_completed_goes_on_while_things_are_started_and_tells_of_failures(run: Run) -> None:
    async def fails() -> None:
        raise LookupError

    async def main() -> None:
        seen: list[tuple[str, str]] = []
        with pytest.raises(LookupError):
            async with plait.scope() as s:
                s.start(value, 1, name="first")
                async for done in s.completed():
                    seen.append((done.name, done.state))
                    if len(seen) == 1:
                        s.start(value, 2, name="second")
                    elif len(seen) == 2:
                        s.start(fails, name="third")
        assert seen[:2] == [("first", "done"), ("second", "done")]
        assert {t.name: t.outcome for t in s.report().tasks}["third"] == "failed"

    run(main())


def test_a_loop_that_runs_beside_unknown_work_is_never_held_up(run: Run) -> None:
    """The first call of a function of which nothing is known is over when it is away."""
    entered = threading.Event()
    hold = threading.Event()

    def unknown() -> int:
        entered.set()
        hold.wait(LATE)
        return threading.get_ident()

    async def main() -> None:
        async with plait.scope() as s:
            handle = s.start(unknown)
            call = plait.call(unknown)
            assert not handle.done()  # and this line is reached, while they wait
            assert not call.done()
            assert await plait.to_thread(entered.wait, LATE)
            hold.set()
        assert handle.result() != threading.get_ident()
        assert await call != threading.get_ident()

    run(main())


def test_a_pure_call_gives_the_loop_back_within_its_budget(run: Run) -> None:
    """An endless one could not be waited for: it comes back because it is interrupted."""

    async def main() -> None:
        async with plait.scope(grace=LATE) as s:
            handle = s.start(scope_tasks.endless)
            await asyncio.sleep(0)  # so the loop turns
            assert handle.where == "process"
            s.cancel()
        assert handle.cancelled()

    run(main())
