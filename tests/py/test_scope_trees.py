"""Properties of scopes, over random trees of strands, failures, times and cancellations.

Each started thing ends exactly once and before its scope does; no error is lost or told twice;
no result comes twice; what cannot be stopped does not keep a scope from ending; nothing is
left: no tasks, no busy threads, no descriptors, no cancellation counts.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import scope_tasks
from conftest import new_asyncio_loop, open_fds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from until import until

import plait
from plait import _strands

TIMEOUT = 60.0
GRACE = 0.08
FOREVER = 3600.0


class Marker(Exception):
    """An error that a leaf raises on purpose; each is one of its kind."""


@dataclass(frozen=True)
class Leaf:
    """Something that is started.

    Attributes:
        where: its strand.
        steps: awaits (or checks, in a thread) before it does what `end` says.
        end: "return", "raise", "forever", or "stuck", which ignores everything.
        on_cancel: "pass" (let it go on), "raise" (an error of its own), or "swallow" (twice).
        timeout: as for start, or None.
        retries: as for start.
        cancel_after: the body of its scope cancels it after so many turns; None for never.
    """

    where: str
    steps: int
    end: str
    on_cancel: str
    timeout: float | None
    retries: int
    cancel_after: int | None


@dataclass(frozen=True)
class Tree:
    """A scope.

    Attributes:
        children: what is started in it, in this order.
        inline: a scope that its body enters, or None.
        limit: as for scope.
        deadline: as for scope.
        shield: as for scope.
        body: "wait", "raise" or "cancel" (the scope), after `turns` turns of the loop.
        turns: turns of the loop that the body takes.
        iterate: whether the body iterates over completed().
    """

    children: tuple[Leaf | Tree, ...]
    inline: Tree | None
    limit: int | None
    deadline: float | None
    shield: bool
    body: str
    turns: int
    iterate: bool


def leaves() -> st.SearchStrategy[Leaf]:
    short = st.integers(0, 3)
    on_loop = st.builds(
        Leaf,
        st.just("loop"),
        short,
        st.sampled_from(["return", "return", "raise", "forever"]),
        st.sampled_from(["pass", "pass", "raise", "swallow"]),
        st.sampled_from([None, None, None, 0.0, 0.005]),
        st.sampled_from([0, 0, 1]),
        st.sampled_from([None, None, None, 0, 2]),
    )
    in_thread = st.builds(
        Leaf,
        st.just("thread"),
        short,
        st.sampled_from(["return", "raise", "forever", "stuck"]),
        st.sampled_from(["pass", "raise"]),
        st.sampled_from([None, None, 0.005]),
        st.just(0),
        st.sampled_from([None, None, 0]),
    )
    in_process = st.builds(
        Leaf,
        st.just("process"),
        st.just(0),
        st.sampled_from(["return", "raise", "return", "raise", "forever"]),
        st.just("pass"),
        st.none(),
        st.just(0),
        st.none(),
    )
    return st.one_of(on_loop, on_loop, on_loop, in_thread, in_process)


def scopes(children: st.SearchStrategy[Any], inline: st.SearchStrategy[Any]) -> Any:
    return st.builds(
        Tree,
        st.lists(children, max_size=4).map(tuple),
        inline,
        st.sampled_from([None, None, 1, 2]),
        st.sampled_from([None, None, None, 0.0, 0.01]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from(["wait", "wait", "raise", "cancel"]),
        st.integers(0, 4),
        st.booleans(),
    )


trees = st.recursive(
    scopes(leaves(), st.none()),
    lambda inner: scopes(st.one_of(leaves(), inner), st.one_of(st.none(), inner)),
    max_leaves=4,
)


@dataclass
class Log:
    """What happened in one run.

    Attributes:
        inside: number of bodies that have begun and not ended, by the number of their scope.
        errors: the errors that leaves let out, by leaf (the last attempt's).
        given: how often completed() gave a handle.
        threads: (scope, leaf) of what runs in threads.
        thread_handles: the handles of these, and whether each must fail.
    """

    inside: collections.Counter[int] = field(default_factory=collections.Counter)
    errors: dict[int, Marker] = field(default_factory=dict)
    threads: set[tuple[int, int]] = field(default_factory=set)
    thread_handles: list[tuple[Any, bool]] = field(default_factory=list)
    given: collections.Counter[int] = field(default_factory=collections.Counter)
    go_on: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))
    broken: list[str] = field(default_factory=list)

    def running(self, scope: int) -> int:
        """How many bodies that a scope started have begun and not ended."""
        return self.inside[scope] + sum(of == scope for of, _ in list(self.threads))

    def due(self) -> set[int]:
        """The errors that must be told, by identity."""
        errors: list[BaseException] = list(self.errors.values())
        for handle, must_fail in self.thread_handles:
            # A thread that is stopped at its last step has not raised what it was about to.
            if handle.state == "failed":
                errors += [e for e in flatten(handle._error) if isinstance(e, Marker)]
            elif must_fail and handle.state == "done":
                self.broken.append(f"{handle} has lost its error")
        return {id(error) for error in errors}

    def out(self, number: int) -> Marker:
        """The error that leaf `number` is about to let out."""
        error = Marker(number)
        with self.lock:
            self.errors[number] = error
        return error


async def run_leaf(log: Log, number: int, scope: int, leaf: Leaf) -> int:
    log.inside[scope] += 1
    log.errors.pop(number, None)  # an attempt before this one
    left = 2 if leaf.on_cancel == "swallow" else 0
    try:
        while True:
            try:
                for _ in range(leaf.steps):
                    await asyncio.sleep(0)
                if leaf.end == "forever":
                    await asyncio.sleep(FOREVER)
                break
            except asyncio.CancelledError:
                if leaf.on_cancel == "raise":
                    raise log.out(number) from None
                if left == 0:
                    raise
                left -= 1
        if leaf.end == "raise":
            raise log.out(number)
        return number
    finally:
        log.inside[scope] -= 1


def run_thread(log: Log, number: int, scope: int, leaf: Leaf) -> int:
    # TaskStopped may be raised at any instruction, but once: so each step here can be repeated.
    token = (scope, number)
    try:
        log.threads.add(token)
        try:
            if leaf.end == "stuck":
                log.go_on.wait(TIMEOUT)
            while leaf.end == "forever":
                time.sleep(0.001)  # a step that handlers cover: not all jumps of a loop are
            if leaf.end == "raise":
                raise Marker(number)
            return number
        except plait.TaskStopped:
            if leaf.on_cancel == "raise":
                raise Marker(number) from None
            raise
    finally:
        try:
            log.threads.discard(token)
        except plait.TaskStopped:
            log.threads.discard(token)
            raise


async def run_tree(log: Log, tree: Tree) -> None:
    mine = next(log.numbers)
    handles: list[Any] = []
    host = asyncio.current_task()
    assert host is not None
    before = host.cancelling()
    s = plait.scope(
        deadline=tree.deadline,
        limit=tree.limit,
        shield=tree.shield,
        grace=GRACE,
        name=f"scope {mine}",
    )
    try:
        async with s:
            await body(log, tree, mine, s, handles)
    finally:
        unstopped = sum(h.state == "unstopped" for h in handles)
        if not all(h.done() for h in handles):
            log.broken.append(f"scope {mine} ended before {handles}")
        if log.running(mine) > unstopped:
            log.broken.append(f"scope {mine} ended before {log.running(mine)} that it started")
        if host.cancelling() < before:
            log.broken.append(f"scope {mine} took back cancellations that were not its own")
        if plait.current_scope() is s:
            log.broken.append(f"scope {mine} is still the current one")
        try:
            s.start(run_tree, log, tree)
        except plait.ScopeClosed:
            pass
        else:
            log.broken.append(f"scope {mine} could be used after its end")


async def body(log: Log, tree: Tree, mine: int, s: plait.Scope, handles: list[Any]) -> None:
    by_turn = collections.defaultdict(list)
    for child in tree.children:
        number = next(log.numbers)
        if isinstance(child, Tree):
            handles.append(s.start(run_tree, log, child))
            continue
        options: dict[str, Any] = {"timeout": child.timeout, "retries": child.retries}
        if child.timeout is None and child.retries == 0:
            options = {}
        if child.where == "loop":
            handle = s.start(run_leaf, log, number, mine, child, **options)
        elif child.where == "thread":
            handle = s.start(run_thread, log, number, mine, child, where="thread", **options)
            log.thread_handles.append((handle, child.end == "raise"))
        elif child.end == "raise":
            handle = s.start(scope_tasks.fail, Marker, "process", where="process", **options)
        elif child.end == "forever":
            handle = s.start(scope_tasks.spin, FOREVER, where="process", **options)
        else:
            handle = s.start(scope_tasks.pid, number, where="process", **options)
        handles.append(handle)
        if child.cancel_after is not None:
            by_turn[child.cancel_after].append(handle)
    if tree.inline is not None:
        await run_tree(log, tree.inline)
    for turn in range(tree.turns + 1):
        for handle in by_turn[turn]:
            handle.cancel()
        await asyncio.sleep(0)
    if tree.body == "raise":
        raise log.out(next(log.numbers))
    if tree.body == "cancel":
        s.cancel()
    if tree.iterate and not any(_lasts(c) for c in tree.children):
        async for handle in s.completed():
            log.given[id(handle)] += 1
            if log.given[id(handle)] > 1:
                log.broken.append(f"{handle} was given twice")
    elif any(_lasts(c) for c in tree.children) and tree.deadline is None:
        s.cancel()  # it would last for ever


def _lasts(child: Leaf | Tree) -> bool:
    return isinstance(child, Leaf) and child.end in ("forever", "stuck")


def flatten(error: BaseException) -> Iterator[BaseException]:
    """The leaves of an exception group."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from flatten(part)
    else:
        yield error


def check(tree: Tree, cancel_at: int | None, factory: Callable[[], Any]) -> None:
    log = Log()
    late: list[BaseException] = []

    def tell_late(loop: Any, context: dict[str, Any]) -> None:
        assert "could not stop" in context["message"], context
        late.extend(flatten(context["exception"]))

    async def main() -> BaseException | None:
        asyncio.get_running_loop().set_exception_handler(tell_late)
        before = asyncio.all_tasks()
        task = asyncio.create_task(run_tree(log, tree))
        if cancel_at is not None:
            for _ in range(cancel_at):
                await asyncio.sleep(0)
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=TIMEOUT)
        assert done, "the tree did not end"
        log.go_on.set()
        # A shielded scope may take longer than the grace around it, and, on a busy machine,
        # others as well: they are given up, but they end, and their errors are told late.
        rest = asyncio.all_tasks() - before
        if rest:
            await asyncio.wait(rest, timeout=TIMEOUT)
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        if task.cancelled():
            return None
        return task.exception()

    with asyncio.Runner(loop_factory=factory) as runner:
        error = runner.run(main())
    told = [*late, *([] if error is None else flatten(error))]
    assert log.broken == []
    markers = [e for e in told if isinstance(e, Marker)]
    ours = [e for e in markers if isinstance(e.args[0], int)]
    assert len({id(e) for e in ours}) == len(ours), "an error was told twice"
    due = log.due()
    # A thread that was given up may fail after all: then its error comes late.
    extra = {id(e) for e in ours} - {id(e) for e in late}
    assert extra <= due <= {id(e) for e in ours}, f"{log.errors} of leaves, but {told} was told"
    assert log.broken == []
    allowed = (Marker, plait.DeadlineExceeded, plait.Unstopped, plait.TaskTimeout)
    assert all(isinstance(e, allowed) for e in told), told


@pytest.fixture(scope="module", autouse=True)
def warm_and_watched() -> Iterator[None]:
    """Start the default pools, and see at the end that nothing runs or is open beyond them."""
    with plait.scope() as s:
        s.start(scope_tasks.pid, where="process")
        s.start(scope_tasks.pid, where="thread")
    with asyncio.Runner(loop_factory=plait.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))
    gc.collect()
    kinds = kinds_of_fds()
    yield
    gc.collect()
    pool = _strands.threads()
    # Stuck threads have been let go, and end by themselves.
    until(lambda: pool.statistics().running == 0)
    # A worker that was killed has a successor, with descriptors of the same kinds.
    until(lambda: kinds_of_fds() <= kinds)


def kinds_of_fds() -> collections.Counter[str]:
    """How many descriptors of each kind this process has; numbers in their names are left out."""
    return collections.Counter(
        re.sub(r"[0-9]+", "", os.readlink(f"/proc/self/fd/{fd}")) for fd in open_fds()
    )


PROFILE = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@PROFILE
@given(trees, st.one_of(st.none(), st.none(), st.integers(0, 8)))
def test_trees_on_a_plait_loop(tree: Tree, cancel_at: int | None) -> None:
    check(tree, cancel_at, plait.new_event_loop)


@settings(PROFILE, max_examples=50)
@given(trees, st.one_of(st.none(), st.integers(0, 8)))
def test_trees_on_asyncios_loop(tree: Tree, cancel_at: int | None) -> None:
    check(tree, cancel_at, new_asyncio_loop)


@pytest.mark.stress
@settings(PROFILE, max_examples=5000)
@given(trees, st.one_of(st.none(), st.integers(0, 8)))
def test_very_many_trees(tree: Tree, cancel_at: int | None) -> None:
    check(tree, cancel_at, plait.new_event_loop)


# ---- without a loop ------------------------------------------------------------------


def thread_tree(log: Log, tree: Tree) -> None:
    mine = next(log.numbers)
    handles: list[Any] = []
    s = plait.scope(deadline=tree.deadline, limit=tree.limit, grace=GRACE, name=f"scope {mine}")
    try:
        with s:
            for child in tree.children:
                number = next(log.numbers)
                if isinstance(child, Tree):
                    handles.append(s.start(thread_tree, log, child, where="thread"))
                    log.thread_handles.append((handles[-1], False))
                elif child.where != "process":
                    handle = s.start(
                        run_thread, log, number, mine, child, where="thread", timeout=child.timeout
                    )
                    handles.append(handle)
                    log.thread_handles.append((handle, child.end == "raise"))
            if tree.inline is not None:
                thread_tree(log, tree.inline)
            if tree.body == "raise":
                # A body in a thread may be stopped before this is raised.
                raise Marker(mine) if mine else log.out(mine)
            if tree.body == "cancel" or any(_lasts(c) for c in tree.children):
                s.cancel()
    finally:
        unstopped = sum(h.state == "unstopped" for h in handles)
        if not all(h.done() for h in handles):
            log.broken.append(f"scope {mine} ended before {handles}")
        if log.running(mine) > unstopped:
            log.broken.append(f"scope {mine} ended before {log.running(mine)} of its own")


@settings(PROFILE, max_examples=80)
@given(trees)
def test_trees_without_a_loop(tree: Tree) -> None:
    check_threads(tree)


@pytest.mark.stress
@settings(PROFILE, max_examples=3000)
@given(trees)
def test_very_many_trees_without_a_loop(tree: Tree) -> None:
    check_threads(tree)


def check_threads(tree: Tree) -> None:
    log = Log()
    error: BaseException | None = None
    try:
        thread_tree(log, tree)
    except Exception as caught:
        error = caught
    finally:
        log.go_on.set()
    told = [] if error is None else list(flatten(error))
    assert log.broken == []
    told_markers = [id(e) for e in told if isinstance(e, Marker)]
    assert len(set(told_markers)) == len(told_markers), "an error was told twice"
    # On a busy machine an inner scope may be given up although it is about to end. Its errors
    # are logged then.
    given_up = [name for e in told if isinstance(e, plait.Unstopped) for name in e.tasks]
    if any("thread_tree" in name for name in given_up):
        return
    # What the body of an inner scope raises has no handle; all else that is told has one.
    assert set(told_markers) >= log.due(), (log.errors, told)
    assert log.broken == []
    allowed = (Marker, plait.DeadlineExceeded, plait.Unstopped, plait.TaskTimeout)
    assert all(isinstance(e, allowed) for e in told), told
