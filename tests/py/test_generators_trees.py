"""Random trees of generators: each ends once, no error is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import plait
from plait.generators import (
    Cancelled,
    Deadlock,
    Strand,
    Task,
    all_tasks,
    join,
    sleep,
    spawn,
    start,
    timeout,
    wait,
)

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.slow]


class Boom(Exception):
    """An error with the number of the node that raised it."""


@dataclass
class Node:
    """What a generator of the tree does, one action after the other.

    An action is a name and what belongs to it: a node, a number of a node, or nothing.
    """

    actions: list[tuple[str, Any]]
    stubborn: bool = False  # raises while it is closed
    number: int = -1


@dataclass
class World:
    """What has happened."""

    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    raised: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    reported: list[int] = field(default_factory=list)
    tasks: dict[int, Task[Any]] = field(default_factory=dict)
    refs: list[weakref.ref[Task[Any]]] = field(default_factory=list)


def boom(world: World, node: Node) -> Boom:
    world.raised.add(node.number)
    return Boom(node.number)


def strand(world: World, node: Node, inline: bool = False) -> Strand[int]:
    world.begun.append(node.number)
    try:
        for name, what in node.actions:
            try:
                yield from act(world, node, name, what)
            except Boom as error:
                if error.args[0] == node.number and error.args in [(node.number,)]:
                    raise
                world.seen.add(error.args[0])
            except (Cancelled, Deadlock, TimeoutError, TypeError):
                pass
        return node.number
    except GeneratorExit:
        # Through `yield from` the caller would take it for an ordinary error, and go on.
        if node.stubborn and not inline:
            raise boom(world, node) from None
        raise
    finally:
        world.ended.append(node.number)


def act(world: World, node: Node, name: str, what: Any) -> Strand[None]:
    if name == "turn":
        yield sleep(0)
    elif name == "sleep":
        yield sleep(what / 10_000)
    elif name == "raise":
        raise boom(world, node)
    elif name == "wrong":
        yield what
    elif name in ("spawn", "call"):
        task = yield spawn(strand(world, what))
        world.tasks[what.number] = task
        world.refs.append(weakref.ref(task))
        if name == "call":
            assert (yield join(task)) == what.number
    elif name == "inline":
        assert (yield from strand(world, what, True)) == what.number
    elif name == "timeout":
        assert (yield timeout(0.0005, strand(world, what))) == what.number
    elif name == "future":
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.0002, finish, future)
        yield timeout(0.0001 * what, wait(future))
    elif world.tasks:
        other = list(world.tasks.values())[what % len(world.tasks)]
        if name == "cancel":
            other.cancel()
        elif name == "throw":
            if not other.done() and other is not world.tasks.get(node.number):
                try:
                    other.throw(Cancelled("thrown"))
                except RuntimeError:
                    pass  # it is an inline caller of this node
        elif name == "join":
            yield timeout(0.0005, join(other))


def finish(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_result(1)


leaf = st.one_of(
    st.tuples(st.just("turn"), st.none()),
    st.tuples(st.just("sleep"), st.integers(1, 5)),
    st.tuples(st.just("raise"), st.none()),
    st.tuples(st.just("wrong"), st.integers()),
    st.tuples(st.just("future"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["cancel", "throw", "join"]), st.integers(0, 50)),
)


def grow(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    branch = st.tuples(st.sampled_from(["spawn", "call", "inline", "timeout"]), children)
    return st.builds(Node, st.lists(st.one_of(leaf, branch), max_size=6), st.booleans())


trees = st.recursive(st.builds(Node, st.lists(leaf, max_size=4), st.booleans()), grow)


def number_nodes(node: Node, count: int = 0) -> int:
    node.number = count
    count += 1
    for _, what in node.actions:
        if isinstance(what, Node):
            count = number_nodes(what, count)
    return count


@hypothesis.settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(tree=trees, wait_for_all=st.booleans())
def test_trees(tree: Node, wait_for_all: bool) -> None:
    number_nodes(tree)
    world = World()
    strange: list[Any] = []

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Boom):
            world.reported.append(error.args[0])
        elif not isinstance(error, Cancelled):
            strange.append(context)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(handle)
        task = start(strand(world, tree))
        try:
            await asyncio.wait_for(task, 100)
        except Boom as error:
            world.seen.add(error.args[0])
        except (asyncio.CancelledError, Cancelled):
            pass
        del task
        if wait_for_all:
            while all_tasks():
                await asyncio.sleep(0)

    plait.run(main())
    tasks = list(world.tasks.values())
    assert all(task.done() for task in tasks)
    world.tasks.clear()
    del tasks
    if len(world.begun) != len(world.ended) or any(ref() is not None for ref in world.refs):
        gc.collect()  # of everything that there is, which takes longer than the rest
    assert sorted(world.begun) == sorted(world.ended), "one did not end, or ended twice"
    assert len(set(world.begun)) == len(world.begun)
    assert world.raised == world.seen | set(world.reported), "an error was lost"
    assert len(world.reported) == len(set(world.reported)), "an error was told twice"
    assert not strange
    assert all(ref() is None for ref in world.refs), "a task was left behind"
