"""Calls on a channel as coroutines: tasks, cancelling, fairness, threads that are stopped."""

from __future__ import annotations

import asyncio
import collections.abc
import concurrent.futures
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait

TIMEOUT = 100.0
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[plait.run, asyncio.run], ids=["plait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    fn: Run = request.param
    return fn


def test_a_call_is_a_coroutine_in_all_but_its_type(run: Run) -> None:
    async def main() -> None:
        channel = plait.channel(1)
        call = channel.send("a")
        assert isinstance(call, collections.abc.Coroutine)
        assert "Channel.send" in repr(call)
        assert len(channel) == 0  # nothing happens before it is awaited
        await call
        with pytest.raises(RuntimeError, match="already awaited"):
            await call
        task = asyncio.create_task(channel.receive())
        assert "Channel.receive" in repr(task)
        assert await task == "a"
        assert await asyncio.wait_for(asyncio.gather(channel.receive(), channel.send("b")), TIMEOUT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.receive(), 0.01)
        assert "0 of 1" in repr(channel)

    run(main())


@pytest.mark.parametrize("item", [None, (), (1, 2), StopIteration(3), ValueError("x"), [None]])
def test_any_item_arrives_as_it_is(run: Run, item: Any) -> None:
    async def main() -> None:
        channel = plait.channel(2)
        await channel.send(item)
        assert await channel.receive() is item
        waiting = asyncio.create_task(channel.receive())
        await asyncio.sleep(0)
        await channel.send(item)
        assert await waiting is item
        await channel.send(item)
        channel.close()
        assert [each async for each in channel] == [item]

    run(main())


def test_a_call_that_is_forgotten_is_told() -> None:
    channel = plait.channel(1)
    with pytest.warns(RuntimeWarning, match=r"'Channel\.send' was never awaited"):
        channel.send(1)  # type: ignore[unused-coroutine]
    channel.receive().close()
    assert len(channel) == 0


def test_without_a_loop_only_waiting_fails() -> None:
    channel = plait.channel(1)
    call = channel.send(1)
    with pytest.raises(StopIteration):
        call.send(None)
    call = channel.send(2)
    with pytest.raises(RuntimeError, match="no running event loop"):
        call.send(None)
    assert channel.receive_nowait() == 1


def test_a_value_is_not_kept_after_it_was_received(run: Run) -> None:
    class Item:
        pass

    async def main() -> None:
        channel = plait.channel(1)
        item = Item()
        gone = weakref.ref(item)
        await channel.send(item)
        del item
        item = await channel.receive()
        del item
        assert gone() is None

    run(main())


def test_calls_that_never_wait_leave_the_loop_its_turns(run: Run) -> None:
    """Two tasks for which there is always something; a third one must not starve."""

    async def main() -> None:
        channel = plait.channel(10)
        turns = 0
        stop = False

        async def greedy() -> None:
            while not stop:
                await channel.send(1)
                await channel.receive()

        async def count() -> None:
            nonlocal turns, stop
            while turns < 20:
                turns += 1
                await asyncio.sleep(0)
            stop = True

        await asyncio.wait_for(asyncio.gather(greedy(), count()), TIMEOUT)
        assert turns == 20

    run(main())


def test_a_turn_given_away_can_be_cancelled(run: Run) -> None:
    """The call that lets the loop turn has done nothing yet."""

    async def main() -> None:
        channel = plait.channel(1000)
        sent = 0

        async def produce() -> None:
            nonlocal sent
            while True:
                await channel.send(sent)
                sent += 1

        task = asyncio.create_task(produce())
        await asyncio.sleep(0)
        assert 0 < sent < 1000
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [channel.receive_nowait() for _ in range(len(channel))] == list(range(sent))

    run(main())


def test_senders_need_not_wait_for_a_receiver_that_is_on_its_way(run: Run) -> None:
    async def main() -> None:
        channel = plait.channel(1)
        receiver = asyncio.create_task(channel.receive())
        await asyncio.sleep(0)
        channel.send_nowait(1)  # the receiver's
        channel.send_nowait(2)
        with pytest.raises(asyncio.QueueFull):
            channel.send_nowait(3)
        assert await receiver == 1
        with pytest.raises(asyncio.QueueFull):
            channel.send_nowait(3)
        assert channel.receive_nowait() == 2
        channel.send_nowait(3)

    run(main())


def test_one_who_was_overtaken_waits_in_front(run: Run) -> None:
    async def main() -> None:
        channel = plait.channel(1)
        got: list[str] = []

        async def receive(name: str) -> None:
            got.append(f"{name}{await channel.receive()}")

        first = asyncio.create_task(receive("a"))
        second = asyncio.create_task(receive("b"))
        await asyncio.sleep(0)
        channel.send_nowait(1)
        assert channel.receive_nowait() == 1  # before `first`, which was woken for it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        channel.send_nowait(2)
        channel.send_nowait(3)
        await asyncio.gather(first, second)
        assert got == ["a2", "b3"]

    run(main())


def test_one_who_was_woken_and_goes_wakes_the_next(run: Run) -> None:
    async def main() -> None:
        for side in ("receivers", "senders"):
            channel = plait.channel(1)
            if side == "senders":
                channel.send_nowait(0)

            def call(channel: Any = channel, side: str = side) -> Any:
                return channel.receive() if side == "receivers" else channel.send(1)

            tasks = [asyncio.create_task(call()) for _ in range(3)]
            await asyncio.sleep(0)
            if side == "receivers":
                channel.send_nowait("x")
            else:
                channel.receive_nowait()
            tasks[0].cancel()
            done, _ = await asyncio.wait_for(
                asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED), TIMEOUT
            )
            assert done == {tasks[1]}
            tasks[2].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(o) for o in outcomes[::2]] == [asyncio.CancelledError] * 2

    run(main())


def test_loops_of_other_threads_are_woken_and_may_be_closed() -> None:
    channel = plait.channel(1)
    waiting = threading.Event()
    go = threading.Event()

    def other() -> None:
        loop = plait.new_event_loop()
        task = loop.create_task(channel.receive())
        loop.call_later(0, loop.stop)
        loop.run_forever()
        loop.close()
        assert channel._waiting_receivers == 1
        waiting.set()
        go.wait(TIMEOUT)
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def live() -> int:
        asyncio.get_running_loop().call_soon(waiting.set)
        return int(await channel.receive())

    thread = threading.Thread(target=other)
    thread.start()
    assert waiting.wait(TIMEOUT)
    got: list[int] = []
    waiting.clear()
    second = threading.Thread(target=lambda: got.append(plait.run(live())))
    second.start()
    assert waiting.wait(TIMEOUT)
    channel.send_blocking(7)  # the first one's loop is closed: the second gets it
    second.join(TIMEOUT)
    go.set()
    thread.join(TIMEOUT)
    assert got == [7]


def test_tasks_that_are_dropped_while_they_wait_leave_no_trace() -> None:
    loop = plait.new_event_loop()
    channel = plait.channel(1)

    async def wait() -> None:
        await channel.receive()

    task = loop.create_task(wait())
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert channel._waiting_receivers == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    loop.close()
    del loop
    gc.collect()
    assert channel._waiting_receivers == 0
    channel.send_nowait(1)
    assert channel.receive_nowait() == 1


@pytest.mark.parametrize("sends", [False, True])
def test_a_thread_that_waits_in_a_channel_can_be_stopped(sends: bool) -> None:
    """An exception does not reach a thread that sleeps: the scope gets it up."""
    channel = plait.channel(1)
    if sends:
        channel.send_nowait(0)

    def wait() -> None:
        if sends:
            channel.send_blocking(1)
        else:
            channel.receive_blocking()

    async def main() -> None:
        async with plait.scope(grace=TIMEOUT) as s:
            handle = s.start(wait, where="thread")
            while not (channel._waiting_senders if sends else channel._waiting_receivers):
                await asyncio.sleep(0)
            s.cancel()
        assert handle.cancelled()

    plait.run(main())
    assert channel._waiting_senders == channel._waiting_receivers == 0


@pytest.mark.parametrize("what", ["lock", "limiter", "event", "shared channel"])
def test_threads_that_wait_in_locks_and_events_can_be_stopped(what: str) -> None:
    lock, limiter, event = plait.Lock(), plait.Limiter(1), plait.Event()
    shared = plait.channel(1, shared=True)
    lock.acquire_nowait()
    limiter.acquire_nowait()
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        if what == "lock":
            lock.acquire_blocking()
        elif what == "limiter":
            limiter.acquire_blocking()
        elif what == "event":
            event.wait_blocking()
        else:
            shared.receive_blocking()

    with plait.scope(grace=TIMEOUT) as s:
        handle = s.start(wait, where="thread")
        assert ready.wait(TIMEOUT)
        s.cancel()
    assert handle.cancelled()
    assert "0 waiting" in repr(lock)
    assert "0 waiting" in repr(limiter)
    assert "0 waiting" in repr(event)
    lock.release()
    assert lock.acquire_nowait()


def test_a_task_of_a_thread_pool_that_waits_in_a_channel_can_be_cancelled() -> None:
    channel = plait.channel(1)
    with plait.ThreadPool(1) as pool:
        future = pool.submit(channel.receive_blocking)
        while not channel._waiting_receivers:
            assert not future.done()
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(TIMEOUT)
        assert future.stopped == "exception"
        assert pool.submit(pow, 2, 2).result(TIMEOUT) == 4


def test_scopes_take_the_methods_for_coroutine_functions() -> None:
    async def main() -> None:
        channel = plait.channel(1)
        async with plait.scope() as s:
            got = s.start(channel.receive)
            s.start(channel.send, 5)
        assert got.result() == 5
        assert got.where == "loop"

    plait.run(main())
    assert inspect.signature(plait.Channel.send).parameters.keys() == {"self", "item"}


# ---- any order of anything -----------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["send", "receive", "send_nowait", "receive_nowait", "turn"])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(capacity=st.integers(1, 3), steps=steps, close=st.booleans())
def test_any_order_of_calls_turns_and_cancels(
    capacity: int, steps: list[tuple[Any, ...]], close: bool
) -> None:
    """Nothing that was sent is lost or comes twice; what was cancelled was not sent."""

    async def main() -> None:
        channel = plait.channel(capacity)
        senders: dict[int, asyncio.Task[None]] = {}
        receivers: list[asyncio.Task[int]] = []
        got: list[int] = []
        sent: list[int] = []
        for number, (what, *args) in enumerate(steps):
            if what == "send":
                senders[number] = asyncio.create_task(channel.send(number))
            elif what == "receive":
                receivers.append(asyncio.create_task(channel.receive()))
            elif what == "send_nowait":
                try:
                    channel.send_nowait(number)
                    sent.append(number)
                except asyncio.QueueFull:
                    pass
            elif what == "receive_nowait":
                try:
                    got.append(channel.receive_nowait())
                except asyncio.QueueEmpty:
                    pass
            elif what == "turn":
                await asyncio.sleep(0)
            else:
                tasks = [*senders.values(), *receivers]
                if tasks:
                    tasks[args[0] % len(tasks)].cancel()
            assert len(channel) <= capacity + len(receivers)
        # What can come to an end does. Each turn lets at least one of those who wait go on.
        for _ in range(2 * len(steps) + 4):
            await asyncio.sleep(0)
        waiting = [t for t in receivers if not t.done()]
        unsent = [t for t in senders.values() if not t.done()]
        assert not (waiting and len(channel))  # nobody sleeps beside an item
        assert not (unsent and len(channel) < capacity)  # or beside room
        if close:
            channel.close()
        else:
            for task in [*waiting, *unsent]:
                task.cancel()
        await asyncio.gather(*waiting, *unsent, return_exceptions=True)
        got += [t.result() for t in receivers if not t.cancelled() and t.exception() is None]
        while len(channel):
            got.append(channel.receive_nowait())
        sent += [n for n, t in senders.items() if not t.cancelled() and t.exception() is None]
        assert sorted(got) == sorted(sent)
        assert channel._waiting_receivers == channel._waiting_senders == 0
        assert channel.statistics().sent == channel.statistics().received == len(sent)

    plait.run(main())


def test_the_end_of_a_value_may_receive_another() -> None:
    """What ends an awaitable is used again: not while it is on its way."""

    async def receive(channel: Any) -> Any:
        return await channel.receive()

    class Curious:
        def __del__(self) -> None:
            inner.send_nowait("inner")
            try:
                receive(inner).send(None)
            except StopIteration as end:
                heard.append(end.value)

    heard: list[str] = []
    inner = plait.channel(1)

    async def main() -> None:
        channel: Any = plait.channel(3)
        channel.send_nowait(Curious())
        channel.send_nowait("outer")
        first = channel.receive()  # kept, so that nothing lets go of the value before the next
        second = channel.receive()
        assert type(await first) is Curious
        assert await second == "outer"
        del first, second
        assert heard == ["inner"]

    plait.run(main())


def test_nothing_leaks() -> None:
    async def main() -> None:
        channel = plait.channel(3)

        async def consume() -> int:
            return sum([n async for n in channel])

        for _ in range(50):
            task = asyncio.create_task(consume())
            for n in range(20):
                await channel.send(n)
            while len(channel):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    plait.run(main())
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(5):
        plait.run(main())
    gc.collect()
    assert sys.getallocatedblocks() - before < 200


def test_a_send_that_cannot_wait_lets_its_item_go() -> None:
    class Item:
        pass

    channel = plait.channel(1)
    channel.send_nowait("full")
    item = Item()
    gone = weakref.ref(item)
    call = channel.send(item)
    with pytest.raises(RuntimeError, match="no running event loop"):
        call.send(None)
    del item, call
    gc.collect()
    assert gone() is None
