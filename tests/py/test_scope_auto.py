"""Scopes that place functions by what their calls have cost."""

# What a scope raises comes from its whole block, and a scope is a block of its own.
from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import scope_tasks
from scope_support import Run

import plait
from plait import _auto

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
        # Begun inline or not, that is where they ran.
        assert {h.where for h in handles} == {"process"}
        assert {t.where for t in s.report().tasks} <= {"process", "inline"}
        async with plait.scope() as s:
            explicit = s.start(scope_tasks.count_down, 3, where="process")
            thread = s.start(scope_tasks.count_down, 3, where="thread")
        assert (explicit.result(), thread.result()) == (0, 0)
        assert (explicit.where, thread.where) == ("process", "thread")

    run(main())
    with plait.scope() as s:
        handles = [s.start(scope_tasks.count_down, n) for n in (3, 3_000_000, 3_000_000)]
    assert [h.result() for h in handles] == [0] * 3


def test_a_pure_result_that_cannot_be_sent_runs_again_in_a_thread(run: Run) -> None:
    task = scope_tasks.unsendable

    async def main() -> None:
        await task(0.02)  # it begins inline and is interrupted: from now on it begins elsewhere
        for known in _auto.state_of(task).away.values():
            known.refused = ""
        for _ in range(2):
            async with plait.scope() as s:
                handle = s.start(task, 0.02)
            assert handle.result()() == 0.02
            assert handle.where == "thread"
        assert "not in a process" in str(plait.explain(task))

    run(main())


def test_what_computes_stays_in_threads_when_its_result_cannot_be_sent(run: Run) -> None:
    """Nothing runs twice that was not declared pure, so it is found out before it moves."""
    calls = 0

    def compute() -> Any:
        nonlocal calls
        calls += 1
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return threading.Lock()

    async def main() -> None:
        for n in range(8):
            async with plait.scope() as s:
                handle = s.start(compute)
            assert handle.where == "thread"
            assert not handle.result().locked()
            call = plait.call(compute)
            await call
            assert call.where == "thread"
            assert calls == 2 * (n + 1)
        assert "cannot be pickled" in str(plait.explain(compute))

    run(main())
