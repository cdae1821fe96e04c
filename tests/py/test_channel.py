"""Channels: order, bounds, closing, cancelling, threads, loops and processes."""

from __future__ import annotations

import asyncio
import collections
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import scope_tasks
from conftest import open_fds
from until import until

import plait

TIMEOUT = 100.0


@pytest.fixture(params=["one process", "shared"])
def make(request: pytest.FixtureRequest) -> Any:
    def make_it(capacity: int = 4) -> Any:
        return plait.channel(capacity, shared=request.param == "shared")

    return make_it


@pytest.fixture(scope="module")
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


def test_order_and_bound(make: Any) -> None:
    channel = make(3)
    for n in range(3):
        channel.send_nowait(n)
    assert len(channel) == 3
    with pytest.raises(asyncio.QueueFull):
        channel.send_nowait(3)
    assert [channel.receive_nowait() for _ in range(2)] == [0, 1]
    channel.send_nowait(3)
    assert [channel.receive_nowait() for _ in range(2)] == [2, 3]
    with pytest.raises(asyncio.QueueEmpty):
        channel.receive_nowait()
    figures = channel.statistics()
    assert (figures.capacity, figures.items, figures.sent, figures.received) == (3, 0, 4, 4)


def test_closing_lets_the_rest_through(make: Any) -> None:
    channel = make()
    channel.send_nowait("a")
    channel.close()
    channel.close()
    assert channel.closed
    with pytest.raises(plait.ChannelClosed):
        channel.send_nowait("b")
    assert list(channel) == ["a"]
    with pytest.raises(plait.ChannelClosed):
        channel.receive_nowait()
    with pytest.raises(plait.ChannelClosed):
        channel.receive_blocking(TIMEOUT)


def test_closing_wakes_everyone(make: Any) -> None:
    full, empty = make(1), make(1)
    full.send_nowait(0)

    async def main() -> None:
        async with plait.scope() as s:
            handles = [
                s.start(_outcome, full.send, 1),
                s.start(_outcome, empty.receive),
                s.start(_outcome_sync, full.send_blocking, 1, where="thread"),
                s.start(_outcome_sync, empty.receive_blocking, where="thread"),
            ]
            while waiting(full) < 2 or waiting(empty) < 2:
                await asyncio.sleep(0)
            full.close()
            empty.close()
        assert [h.result() for h in handles] == [plait.ChannelClosed] * 4

    plait.run(main())


def waiting(channel: Any) -> int:
    """How many tasks and threads wait in one of its calls."""
    if isinstance(channel, plait.Channel):
        return channel._waiting_senders + channel._waiting_receivers
    return channel._ring.users + sum(len(bell.waiters) for bell in channel._bells.values())


async def _outcome(fn: Any, *args: Any) -> Any:
    try:
        return await fn(*args)
    except plait.ChannelClosed as error:
        return type(error)


def _outcome_sync(fn: Any, *args: Any) -> Any:
    try:
        return fn(*args)
    except plait.ChannelClosed as error:
        return type(error)


@pytest.mark.parametrize("capacity", [1, 7, 100])
def test_many_on_both_ends_of_every_kind(make: Any, capacity: int) -> None:
    """Nothing is lost, nothing comes twice, and each sender's items stay in order."""
    channel = make(capacity)
    got: list[list[tuple[int, int]]] = []
    count = 300

    async def produce(who: int) -> None:
        for n in range(count):
            await channel.send((who, n))

    def produce_blocking(who: int) -> None:
        for n in range(count):
            channel.send_blocking((who, n))

    async def consume() -> None:
        got.append([item async for item in channel])

    def consume_blocking() -> None:
        got.append(list(channel))

    async def other_loop() -> None:
        async with plait.scope() as s:
            s.start(consume)
            s.start(consume)

    async def main() -> None:
        async with plait.scope() as receivers:
            receivers.start(consume)
            receivers.start(consume_blocking, where="thread")
            receivers.start(lambda: plait.run(other_loop()), where="thread")
            async with plait.scope() as senders:
                senders.start(produce, 0)
                senders.start(produce, 1)
                senders.start(produce_blocking, 2, where="thread")
                senders.start(produce_blocking, 3, where="thread")
            channel.close()

    plait.run(main())
    everything = [item for part in got for item in part]
    assert sorted(everything) == [(who, n) for who in range(4) for n in range(count)]
    for part in got:
        by_sender = collections.defaultdict(list)
        for who, n in part:
            by_sender[who].append(n)
        assert all(numbers == sorted(numbers) for numbers in by_sender.values())


def test_cancelling_loses_nothing(make: Any) -> None:
    async def main() -> None:
        channel = make(1)
        got = []

        async def receive() -> None:
            got.append(await channel.receive())

        for round_ in range(30):
            tasks = [asyncio.create_task(receive()) for _ in range(3)]
            await asyncio.sleep(0)
            channel.send_nowait(round_)
            tasks[0].cancel()  # woken or not
            if round_ % 2:
                await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.wait_for(asyncio.wait([tasks[2]]), TIMEOUT) if len(
                got
            ) <= round_ else None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert got == list(range(round_ + 1))
        # The same for those who wait for room.
        channel.send_nowait("full")
        senders = [asyncio.create_task(channel.send(n)) for n in range(3)]
        await asyncio.sleep(0)
        channel.receive_nowait()
        senders[0].cancel()
        await asyncio.wait_for(asyncio.wait(senders, return_when="FIRST_COMPLETED"), TIMEOUT)
        first = await asyncio.wait_for(channel.receive(), TIMEOUT)
        rest = [await asyncio.wait_for(channel.receive(), TIMEOUT)] if first == 1 else []
        assert [first, *rest] in ([1, 2], [0], [2])
        for task in senders:
            task.cancel()
        await asyncio.gather(*senders, return_exceptions=True)

    plait.run(main())


def test_blocking_calls_time_out_and_refuse_loops(make: Any) -> None:
    channel = make(1)
    with pytest.raises(TimeoutError):
        channel.receive_blocking(0.01)
    channel.send_blocking(1, 0.01)
    with pytest.raises(TimeoutError):
        channel.send_blocking(2, 0.01)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="block the loop"):
            channel.send_blocking(2)
        assert channel.receive_blocking() == 1  # there is something: no wait
        with pytest.raises(RuntimeError, match="block the loop"):
            channel.receive_blocking()

    plait.run(main())


@pytest.mark.parametrize("bad", [0, -1])
def test_bad_arguments(bad: int) -> None:
    for shared in (False, True):
        with pytest.raises(ValueError, match="capacity"):
            plait.channel(bad, shared=shared)
    with pytest.raises(ValueError, match="size"):
        plait.channel(1, shared=True, size=bad)
    with pytest.raises(TypeError, match="capacity"):
        plait.channel(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shared=True"):
        pickle.dumps(plait.channel(1))
    with pytest.raises(ValueError, match="below"):
        plait.channel(1 << 23, shared=True)


def test_items_are_dropped_with_the_channel() -> None:
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    channel = plait.channel(8)
    for _ in range(5):
        channel.send_nowait(Item())
    channel.receive_nowait()
    gc.collect()
    assert Item.alive == 4
    item: Any = Item()
    item.channel = channel
    channel.send_nowait(item)
    del channel, item
    gc.collect()
    assert Item.alive == 0


# ---- processes -----------------------------------------------------------------------


def test_values_survive(make: Any) -> None:
    channel = make(64)
    values: list[Any] = [None, True, 0, -(2**70), 1.5, "x" * 1000, b"\0" * 70000, {"a": [1, (2,)]}]
    for item in values:
        channel.send_nowait(item)
    assert [channel.receive_nowait() for _ in values] == values


def test_messages_of_all_sizes_wrap_around() -> None:
    channel = plait.channel(16, shared=True, size=4096)
    for n in range(3000):
        item = bytes([n % 256]) * (n * 7 % 1900)
        channel.send_nowait(item)
        assert channel.receive_nowait() == item
    with pytest.raises(ValueError, match="larger size="):
        channel.send_nowait(b"x" * 3000)
    # Bytes bound it as well as items.
    channel.send_nowait(b"x" * 1500)
    channel.send_nowait(b"x" * 1500)
    with pytest.raises(asyncio.QueueFull):
        channel.send_nowait(b"x" * 1500)


def test_between_processes(pool: plait.ProcessPool) -> None:
    there, back = plait.channel(8, shared=True), plait.channel(8, shared=True)
    echo = [pool.submit(scope_tasks.echo, there, back) for _ in range(2)]
    items = list(range(2000))
    sender = threading.Thread(target=scope_tasks.send_range, args=(there, 0, len(items)))
    sender.start()
    got = sorted(back.receive_blocking(TIMEOUT) for _ in items)
    there.close()
    sender.join(TIMEOUT)
    assert got == items
    assert sum(f.result(TIMEOUT) for f in echo) == len(items)


def test_a_loop_and_a_process(pool: plait.ProcessPool) -> None:
    async def main() -> None:
        there, back = plait.channel(4, shared=True), plait.channel(4, shared=True)
        async with plait.scope() as s:
            count = s.start(scope_tasks.echo, there, back, where="process")

            async def produce() -> None:
                for n in range(500):
                    await there.send(n)
                there.close()

            s.start(produce)
            assert [await back.receive() for _ in range(500)] == list(range(500))
        assert count.result() == 500

    plait.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_death_harms_nobody_else(pool: plait.ProcessPool) -> None:
    channel = plait.channel(8, shared=True)
    with pytest.raises(plait.WorkerDied):
        pool.submit(scope_tasks.die_sending, channel).result(TIMEOUT)
    assert channel.receive_blocking(TIMEOUT) == "last words"
    assert pool.submit(scope_tasks.send_range, channel, 0, 3).result(TIMEOUT) == 3
    assert [channel.receive_blocking(TIMEOUT) for _ in range(3)] == [0, 1, 2]


def test_an_end_sent_through_a_channel() -> None:
    outer, inner = plait.channel(2, shared=True), plait.channel(2, shared=True)
    outer.send_nowait(inner)
    arrived = outer.receive_nowait()
    arrived.send_nowait("hello")
    assert inner.receive_nowait() == "hello"


def test_an_end_whose_sender_is_gone() -> None:
    channel = plait.channel(2, shared=True)
    data = pickle.dumps(channel)
    other = pickle.loads(data)
    channel.release()
    with pytest.raises(plait.ChannelClosed, match="is gone"):
        pickle.loads(data)
    other.send_nowait(1)
    assert other.receive_nowait() == 1
    with pytest.raises(ValueError, match="released"):
        channel.send_nowait(1)
    assert "released" in repr(channel)


def test_descriptors_and_memory_are_given_back() -> None:
    gc.collect()
    before = open_fds(), mappings()
    for _ in range(20):
        channel = plait.channel(2, shared=True)
        other = pickle.loads(pickle.dumps(channel))
        other.send_nowait(1)
        assert channel.receive_nowait() == 1
        other.release()
        del channel, other
    gc.collect()
    assert (open_fds(), mappings()) == before


def mappings() -> int:
    """How many channels' memories this process has."""
    with open("/proc/self/maps") as file:
        return file.read().count("plait-channel")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_shares_it() -> None:
    channel = plait.channel(2, shared=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            channel.send_blocking("from the child", TIMEOUT)
            code = 0
        finally:
            os._exit(code)
    assert channel.receive_blocking(TIMEOUT) == "from the child"
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("waits", ["threads wait", "a task waits"])
def test_a_forked_child_releases_its_end_whoever_waits_in_the_parent(waits: str) -> None:
    channel = plait.channel(1, shared=True)
    ring: Any = channel._ring
    loop = asyncio.new_event_loop()
    tasks = []
    if waits == "a task waits":
        tasks.append(loop.create_task(channel.receive()))
        loop.run_until_complete(asyncio.sleep(0))
        assert channel._bells
    else:
        thread = threading.Thread(target=ring.wait, args=(False, 3600.0))
        thread.start()
        until(lambda: ring.users == 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            channel.send_nowait("from the child")
            channel.release()
            with pytest.raises(ValueError, match="released"):
                channel.send_nowait("more")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    if tasks:
        assert loop.run_until_complete(tasks[0]) == "from the child"
    else:
        thread.join(TIMEOUT)
        assert channel.receive_nowait() == "from the child"
    loop.close()
    channel.release()


def test_an_end_that_a_thread_waits_in_is_not_released() -> None:
    channel = plait.channel(1, shared=True)
    ring: Any = channel._ring
    thread = threading.Thread(target=ring.wait, args=(False, 3600.0))
    thread.start()
    until(lambda: ring.users == 1)
    with pytest.raises(RuntimeError, match="a thread waits"):
        channel.release()
    channel.send_nowait("end")
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert channel.receive_nowait() == "end"
    channel.release()


class Releases:
    """What lets go of the channel that it comes out of."""

    channel: Any = None

    def __setstate__(self, state: Any) -> None:
        with pytest.raises(RuntimeError, match="waits for"):
            self.channel.release()

    def __getstate__(self) -> str:
        return "something"


def test_an_end_is_not_released_under_an_item() -> None:
    Releases.channel = channel = plait.channel(1, shared=True)
    try:
        channel.send_nowait(Releases())
        assert isinstance(channel.receive_nowait(), Releases)
        channel.release()
    finally:
        Releases.channel = None


def test_times_that_are_no_numbers(make: Any) -> None:
    channel = make()
    channel.send_nowait(1)
    for call in (channel.receive_blocking, lambda timeout: channel.send_blocking(2, timeout)):
        with pytest.raises(
            ValueError, match="timeout must be a number of seconds or None, not nan"
        ):
            call(timeout=float("nan"))
    assert len(channel) == 1  # neither taken nor put
    assert channel.receive_nowait() == 1
