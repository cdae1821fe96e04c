"""Placement by measurement: where calls go, what is learnt, and what is told about it."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import pickle
import random
import resource
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import auto_tasks
import pytest
from auto_costs import Costs
from until import until

import plait
from plait import _auto, _core
from plait._measure import Measured


@pytest.fixture(scope="module")
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


@pytest.fixture
def fresh(
    pool: plait.ProcessPool, request: pytest.FixtureRequest
) -> Iterator[Callable[[Any], Any]]:
    """Tasks of auto_tasks without what earlier tests have learnt, in a pool of the module."""
    plait.auto.use_pool(pool)
    used: list[tuple[str, Any]] = []

    def remake(task: Any) -> Any:
        name = task.fn.__name__
        new = plait.task(pure=task.pure, budget=task.budget)(task.fn)
        used.append((name, task))
        setattr(auto_tasks, name, new)
        return new

    yield remake
    for name, task in used:
        setattr(auto_tasks, name, task)
    plait.auto.use_pool(None)


def shapes(fn: Any) -> dict[str, plait.auto.ShapeFigures]:
    return {shape.shape: shape for shape in plait.explain(fn).shapes}


def test_long_calls_move_to_a_process_and_short_ones_stay(fresh: Any) -> None:
    compute = fresh(auto_tasks.compute)

    async def main() -> None:
        for _ in range(3):
            assert await compute(28) == 317811
            assert await compute(1) == 1
        assert compute(1).where == "inline"
        call = compute(28)
        assert call.where == "process"
        assert not call.done()
        assert await call == 317811
        assert call.done()
        assert await call == 317811, "awaited twice"

    plait.run(main())
    known = shapes(compute)
    assert known["int 28"].where == "process"
    assert known["int 28"].over_budget == 1, "learnt: only the first was interrupted"
    assert known["int 28"].process is not None
    assert known["int 28"].process.calls == 4
    assert known["int 1"].where == "inline"


def test_works_on_asyncio_and_off_the_main_thread(fresh: Any) -> None:
    compute = fresh(auto_tasks.compute)
    got: list[int] = []

    async def main() -> None:
        got.extend(await asyncio.gather(*(compute(n) for n in (1, 28, 2, 28))))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert got == [1, 317811, 1, 317811]


def test_a_completed_call_takes_no_turn_of_the_loop(fresh: Any) -> None:
    compute = fresh(auto_tasks.compute)

    async def main() -> None:
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert await compute(3) == 2
        assert not turns

    plait.run(main())


@pytest.mark.parametrize("value", [None, (1, 2), (), ValueError("a value"), StopIteration(3), [1]])
def test_any_value_comes_through_await(value: Any) -> None:
    give = plait.task(pure=True, budget=60)(lambda: value)

    async def main() -> None:
        assert await give() is value
        assert await give() is value

    asyncio.run(main())
    assert give.sync() is value


def test_await_keeps_no_reference_to_the_value() -> None:
    class Thing:
        pass

    give = plait.task(pure=True, budget=60)(Thing)

    async def main() -> None:
        thing = await give()
        seen = weakref.ref(thing)
        del thing
        assert seen() is None

    asyncio.run(main())


def test_a_stop_iteration_that_is_kept_does_not_change() -> None:
    give = plait.task(pure=True, budget=60)(lambda n: n)
    kept = []
    for n in (1, 2, 3):
        with pytest.raises(StopIteration) as raised:
            next(give(n).__await__())
        kept.append(raised.value)
    assert [stop.value for stop in kept] == [1, 2, 3]


def test_a_stop_iteration_of_the_function_is_no_result() -> None:
    @plait.task(pure=True)
    def stop(value: int) -> int:
        raise StopIteration(value)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await stop(5)
        assert isinstance(caught.value.__cause__, StopIteration)
        assert caught.value.__cause__.value == 5
        call = stop(6)
        with pytest.raises(StopIteration):
            call.result()

    plait.run(main())


def test_calls_as_iterators_pile_up_no_tracebacks() -> None:
    @plait.task(pure=True, budget=60.0)
    def double(value: list[int]) -> list[int]:
        return value * 2

    def once() -> int:
        call: Any = double([1])
        value, depth = None, 0
        try:
            next(call)
        except StopIteration as stop:
            value, tb = stop.value, stop.__traceback__
            while tb is not None:
                tb, depth = tb.tb_next, depth + 1
        assert value == [1, 1]
        return depth

    assert {once() for _ in range(20)} == {1}


def test_errors_come_from_every_strand(fresh: Any) -> None:
    fail = fresh(auto_tasks.fail)

    async def main() -> None:
        for n in (1, 28, 28):
            with pytest.raises(KeyError) as raised:
                await fail(n)
            assert raised.value.args == (n,)

    plait.run(main())
    with pytest.raises(KeyError):
        fail.sync(1)
    with pytest.raises(KeyError):
        fail.sync(28)


def test_a_task_within_a_task_is_a_plain_call(fresh: Any) -> None:
    own_fib = fresh(auto_tasks.own_fib)
    assert own_fib.sync(10) == 55
    assert own_fib.sync(25) == 75025  # interrupted, and computed in a worker
    assert asyncio.run(_await(own_fib(10))) == 55


async def _await(call: Any) -> Any:
    return await call


def test_what_cannot_be_returned_from_a_process_runs_in_a_thread(fresh: Any) -> None:
    unsendable = fresh(auto_tasks.unsendable)
    assert unsendable.sync(28)() == 28
    assert unsendable.sync(28)() == 28
    shape = shapes(unsendable)["int 28"]
    assert shape.where == "thread"
    assert "not in a process, as" in shape.why


def test_a_closure_runs_in_a_thread_when_it_cannot_be_sent(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait import _sending

    monkeypatch.setattr(_sending, "find_cloudpickle", lambda: None)
    task = plait.task(pure=True)(lambda n: auto_tasks.fib(n))
    assert asyncio.run(_await(task(28))) == 317811
    told = plait.explain(task)
    assert told.picklable is False
    assert told.shapes[0].where == "thread"
    assert "cannot be sent" in str(told)


def test_unknown_functions_do_not_stall_the_loop(fresh: Any) -> None:
    sleep = fresh(auto_tasks.sleep)

    async def main() -> None:
        call = sleep(0.05)
        assert call.where == "thread"
        ticks = 0
        while not call.done():
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 1
        assert await call == 0.05

    plait.run(main())


def test_a_short_function_comes_inline_when_it_has_proved_to_be_short(fresh: Any) -> None:
    sleep = fresh(auto_tasks.sleep)

    async def main() -> None:
        places = []
        for _ in range(300):
            call = sleep(0.0)
            places.append(call.where)
            await call
        assert places[0] == "thread"
        assert places[-1] == "inline" or shapes(sleep)["float 2^0"].over_budget

    plait.run(main())


def test_waiting_stays_in_threads_and_computing_moves_to_processes(fresh: Any) -> None:
    sleep, crunch = fresh(auto_tasks.sleep), fresh(auto_tasks.crunch)

    async def main() -> None:
        for _ in range(8):
            await sleep(0.005)
        assert sleep(0.005).where == "thread"
        for _ in range(8):
            last = await crunch(0.005)
        assert last != os.getpid()

    plait.run(main())
    told = plait.explain(crunch).shapes[0]
    assert told.where == "process"
    assert told.thread is not None
    assert told.process is not None
    assert told.gil_wait is not None
    assert "computing" in told.why


def test_votes_have_hysteresis() -> None:
    """Figures that change from call to call move a function seldom, and ever more seldom."""
    away = _auto.Away("thread")
    computing = Measured(None, 10_000_000, 9_000_000, 0, -1)
    waiting = Measured(None, 10_000_000, 100_000, 0, -1)
    for _ in range(1000):
        away.vote(computing, 0.001)
        away.vote(waiting, 0.001)
    assert (away.strand, away.turns) == ("thread", 0)
    for _ in range(500):
        for m in (computing, waiting):
            for _ in range(4):
                away.vote(m, 0.001)
    assert away.turns <= 4


def test_queueing_for_a_processor_is_no_waiting() -> None:
    away = _auto.Away("process")
    for _ in range(100):
        away.vote(Measured(None, 100_000_000, 10_000_000, 89_000_000, -1), 0.001)
    assert away.strand == "process"


@pytest.mark.parametrize("seed", range(5))
def test_changing_costs_do_not_flap(seed: int) -> None:
    """Whatever the cost does, too long calls inline become rare: each doubles the proof."""
    random_ = random.Random(seed)
    costs = Costs(pure=False)
    too_long = 0
    calls = 4000
    for i in range(calls):
        if i % random_.choice([1, 2, 5, 50]) == 0:
            costs.cost = random_.choice([1_000, 100_000, 600_000, 900_000, 1_500_000, 50_000_000])
        too_long += costs.call(1)
    assert too_long <= 14, "doubling: 3 + 6 + 12 ... short calls in a row must come first"


def test_a_function_that_became_short_for_good_comes_back() -> None:
    costs = Costs(pure=False)
    costs.cost = 50_000_000
    for _ in range(10):
        costs.call(1)
    assert costs.away == 10
    costs.cost = 1000
    for _ in range(20):
        costs.call(1)
    assert costs.away == 13
    costs.cost = 50_000_000
    assert costs.call(1), "one long call inline is enough"
    assert not costs.call(1)


def test_new_shapes_of_a_long_function_start_away() -> None:
    """After enough first calls that were stopped, the budget is no longer spent on each."""
    again = []

    def endless(n: int) -> int:
        while not again:
            pass
        return n

    def elsewhere(task: Any, fn: Any, index: int, args: Any, kwargs: Any, wait: bool) -> Any:
        again.append(1)
        task._note_away(index, 5_000_000, 5_000_000)
        try:
            return fn(*args)
        finally:
            again.clear()

    task = _core.Task(endless, elsewhere, 0.0005, True)
    for n in range(100):
        assert task.sync(n) == n
    strikes = sum(record[4] for record in task._records())
    assert 8 <= strikes <= 8 + (100 - 8) // 8 + 1


def test_shapes() -> None:
    task = _core.Task(lambda *a, **k: None, lambda *a: None, 1.0, True)

    def label(*args: Any, **kwargs: Any) -> str:
        index, _ = task._record(args, kwargs)
        return str(task._records()[index][0])

    assert label() == ""
    assert label(30) == "int 30"
    assert label(1000) == "int ~896"
    assert label(-1000) == "int ~-896"
    assert label(10**400) == "int 2^99999"
    assert label(True) == "bool 1"
    assert label(None) == "NoneType"
    assert label(0.3) == "float 2^-1"
    assert label(float("nan")) == "float 2^100000"
    assert label([0] * 1000) == "list ~768"
    assert label("abc", x=b"") == "str 3, x=bytes 0"
    assert label(bytearray(5000)) == "bytearray ~4096 B"
    assert label(object()) == "object"
    assert label(*range(10)) == ", ".join(f"int {i}" for i in range(8)) + ", 2 more"
    count = len(task._records())
    assert label([1] * 1001) == "list ~768"
    assert len(task._records()) == count, "the same class"
    for n in range(10_000):
        label(n % 256, n * 7919)
        label(n * 1.5, [0] * (n % 50))
    assert len(task._records()) <= 256
    assert task._records()[-1][0] == "(other shapes)"


def test_place_says_where(fresh: Any) -> None:
    compute = fresh(auto_tasks.compute)

    async def coroutine() -> None: ...

    assert plait.auto.place(coroutine) == "loop"
    assert plait.auto.place(compute, (1,)) == "inline"
    assert plait.auto.place(auto_tasks.fib, (1,)) == "thread"
    compute.sync(28)
    assert plait.auto.place(compute, (28,)) == "process"
    with pytest.raises(TypeError, match="callable"):
        plait.auto.place(3)  # type: ignore[arg-type]


def test_calls_that_others_ran_are_counted() -> None:
    def job(n: int) -> int:
        return n

    def seen(strand: str, wall: int, cpu: int) -> str:
        _auto.observe(job, (1,), {}, strand, Measured(1, wall, cpu, 0, -1))
        return plait.auto.place(job, (1,))

    assert plait.auto.place(job, (1,)) == "thread"
    assert [seen("thread", 1000, 900) for _ in range(3)][-1] == "inline"
    assert seen("inline", 1000, 0) == "inline"
    assert seen("inline", 5_000_000, 0) == "thread", "one that was too long is enough"
    with pytest.raises(ValueError, match="strand"):
        _auto.observe(job, (1,), {}, "moon", Measured(1, 1, 1, 0, -1))


def test_call_learns_about_functions_that_are_no_tasks(fresh: Any) -> None:
    del fresh

    def double(n: int) -> int:
        return 2 * n

    async def main() -> None:
        for _ in range(30):
            assert await plait.call(double, 4) == 8
            assert await plait.call(functools.partial(double, 4)) == 8
            assert await plait.call(lambda n: -n, 4) == -4
        with pytest.raises(TypeError, match="asynchronous"):
            plait.call(main)

    asyncio.run(main())
    assert plait.explain(double).shapes[0].inline > 0
    assert len(_auto._known) <= _auto._KNOWN_MAX


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: plait.task(budget=0), ValueError, "budget"),
        (lambda: plait.task(budget=float("nan")), ValueError, "budget"),
        (lambda: plait.task(budget="1"), TypeError, "budget"),  # type: ignore[call-overload]
        (lambda: plait.task(pool=3), TypeError, "pool"),  # type: ignore[call-overload]
        (lambda: plait.task(3), TypeError, "function"),  # type: ignore[call-overload]
        (lambda: plait.task(auto_tasks.compute), TypeError, "task already"),
        (lambda: plait.task(asyncio.sleep), TypeError, "asynchronous"),
        (lambda: plait.auto.use_pool(3), TypeError, "pool"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    def with_function() -> None:
        made = make()
        if not isinstance(made, plait.Task) and callable(made):
            made(len)

    with pytest.raises(error, match=words):
        with_function()


def test_generators_are_refused() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        plait.task(numbers)


def test_methods_names_and_pickles() -> None:
    class Thing:
        @plait.task(pure=True, budget=60)
        def value(self, n: int) -> int:
            """The doc."""
            return n + 1

    assert Thing.value.__doc__ == "The doc."
    assert asyncio.run(_await(Thing().value(1))) == 2
    assert pickle.loads(pickle.dumps(auto_tasks.compute)) is auto_tasks.compute
    assert plait.Call[int] is not None
    assert "compute" in repr(auto_tasks.compute)


def test_tasks_are_collected() -> None:
    def make() -> Any:
        @plait.task(pure=True, budget=60)
        def loop_back() -> Any:
            return loop_back

        loop_back.sync()
        return weakref.ref(loop_back)

    seen = make()
    gc.collect()
    assert seen() is None


def test_cancelling_the_wait_cancels_the_call(fresh: Any, pool: plait.ProcessPool) -> None:
    where = fresh(auto_tasks.where)

    async def main() -> None:
        await where(0.03)
        busy = [pool.submit(auto_tasks.fib, 28) for _ in range(4)]
        call = where(0.03)
        assert call.where == "process"
        waiting = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for future in busy:
            await future

    plait.run(main())


# ---- explain and files -----------------------------------------------------------------


def test_explain_is_readable(fresh: Any) -> None:
    compute = fresh(auto_tasks.compute)
    assert "not called yet" in str(plait.explain(compute))
    compute.sync(1)
    assert "(int 1): inline, since it is short: 1 call took" in str(plait.explain(compute))
    for n in (1, 28, 28):
        compute.sync(n)
    text = str(plait.explain(compute))
    assert "compute: pure, budget 8 ms" in text
    assert "(int 1): inline, since it is short: 2 calls took" in text
    assert "(int 28): process, since 1 call inline was stopped at the budget" in text
    assert "bytes sent" in text


def test_figures_are_saved_and_loaded(fresh: Any, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    compute = fresh(auto_tasks.compute)
    for n in (1, 28, 28):
        compute.sync(n)
    plait.auto.save(path)
    again = fresh(compute)
    assert plait.auto.place(again, (28,)) == "inline"
    assert plait.auto.load(path) >= 1
    assert plait.auto.place(again, (28,)) == "process", "a shape that was seen"
    later = fresh(again)
    assert plait.auto.place(later, (28,)) == "process", "a task that was made after loading"
    assert shapes(later)["int 28"].over_budget == 1
    assert os.listdir(tmp_path) == ["figures.json"]
    _auto.seeds.clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(plait="?"), "no figures"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(tasks=[]), "tasks"),
        (lambda d: d["tasks"]["m.f"].pop("shapes"), "shapes"),
        (lambda d: d["tasks"]["m.f"].update(budget="x"), "budget"),
        (lambda d: d["tasks"]["m.f"]["shapes"]["int 1"].update(calls=-1), "calls"),
        (lambda d: d["tasks"]["m.f"]["shapes"]["int 1"].update(total=1.5), "total"),
        (lambda d: d["tasks"]["m.f"]["shapes"]["int 1"].update(need=0), "range"),
        (lambda d: d["tasks"]["m.f"]["shapes"]["int 1"].update(strand="moon"), "strand"),
        (lambda d: d["tasks"]["m.f"]["shapes"].update(x=3), "object"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    shape = dict.fromkeys(_auto.Record._fields[1:], 0) | {"need": 1}
    data = {
        "plait": "figures",
        "version": 1,
        "tasks": {"m.f": {"budget": 0.001, "shapes": {"int 1": shape}}},
    }
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(data))
    assert plait.auto.load(path) == 1
    _auto.seeds.clear()
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=words):
        plait.auto.load(path)
    assert not _auto.seeds
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        plait.auto.load(path)


def test_a_failing_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")

    def refuse(*args: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        plait.auto.save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]


# ---- a busy machine ------------------------------------------------------------------


def test_a_call_that_was_preempted_is_no_long_one() -> None:
    """Another process has the only processor for most of the call's time."""
    taken: list[tuple[float, float, int]] = []  # of the last call: wall and CPU time, waits

    def give_way() -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        while time.monotonic() - wall < 0.003 and time.thread_time() - cpu < 0.0003:
            os.sched_yield()  # which is no wait: it could go on
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waits
        taken.append((time.monotonic() - wall, time.thread_time() - cpu, waits))

    def elsewhere(task: Any, fn: Any, index: int, args: Any, kwargs: Any, wait: bool) -> None:
        task._note_away(index, 1, 1)

    def preempted() -> bool:
        task = _core.Task(give_way, elsewhere, 0.001, False)
        for _ in range(3):
            task.sync()  # it comes to be trusted
        taken.clear()
        task.sync()
        wall, cpu, waits = taken[0]
        if wall < 0.0015 or cpu > 0.0006 or waits:
            return False
        (record,) = task._records()
        assert (record[1], record[4]) == (0, 0), "here still, without a strike"
        return True

    processors = os.sched_getaffinity(0)
    one = {min(processors)}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(other.pid, one)
        os.sched_setaffinity(0, one)
        until(preempted)
    finally:
        os.sched_setaffinity(0, processors)
        other.kill()
        other.wait()


def test_a_call_that_waits_is_a_long_one() -> None:
    def elsewhere(task: Any, fn: Any, index: int, args: Any, kwargs: Any, wait: bool) -> None:
        task._note_away(index, 1, 1)

    read, write = os.pipe()
    task = _core.Task(select.select, elsewhere, 0.001, False)
    try:
        for _ in range(4):
            task.sync([read], [], [], 0.002)
        (record,) = task._records()
        assert (record[1], record[4]) == (1, 1), "away, for it was too long once"
    finally:
        os.close(read)
        os.close(write)
