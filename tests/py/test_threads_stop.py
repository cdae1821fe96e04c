"""plait.ThreadPool: stopping tasks, and never stopping what is no task."""

from __future__ import annotations

import concurrent.futures
import random
import signal
import sys
import threading
import time
from typing import Any

import pytest
from test_threads import Gate
from until import until

import plait
from plait import _core

pytestmark = pytest.mark.usefixtures("no_leaks")


def spin(begun: threading.Event) -> None:
    """Runs Python for ever."""
    while True:
        begun.set()


# ---- signals


class Rang(Exception):
    pass


def test_a_signal_just_before_the_wait_sleeps_is_not_left_for_the_end() -> None:
    def ring(*_: object) -> None:
        raise Rang

    gate = Gate()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with plait.ThreadPool(1) as pool:
            future = pool.submit(gate)
            try:
                assert gate.begun.wait(60)
                # One who waits looks on for some 40 us; a few of these come meanwhile.
                for microseconds in range(1, 81, 2):
                    with pytest.raises(Rang):  # noqa: PT012
                        signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                        future.result(20)
            finally:
                gate.go.set()
            assert future.result(60) is None
    finally:
        signal.signal(signal.SIGALRM, before)


# ---- cancel


def test_cancel_of_a_waiting_task() -> None:
    gate = Gate()
    with plait.ThreadPool(1) as pool:
        pool.submit(gate)
        waiting = pool.submit(int)
        seen: list[Any] = []
        waiting.add_done_callback(seen.append)
        assert waiting.cancel()
        assert waiting.cancelled()
        assert waiting.done()
        assert waiting.stopped == "queued"
        assert seen == [waiting]
        assert waiting.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
        gate.go.set()


def test_cancel_of_a_running_task() -> None:
    begun = threading.Event()
    with plait.ThreadPool(1) as pool:
        future = pool.submit(spin, begun)
        assert begun.wait(60)
        assert not future.cancelled()
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
        assert future.stopped == "exception"
        assert future.cancel()  # it is cancelled
        # The thread is as good as before.
        assert pool.submit(pow, 2, 3).result() == 8
        assert len(pool.statistics().threads) == 1


def test_cancel_of_a_finished_task_changes_nothing() -> None:
    with plait.ThreadPool(1) as pool:
        future = pool.submit(pow, 2, 3)
        future.result()
        assert not future.cancel()
        assert future.result() == 8
        assert future.stopped is None


def test_a_task_may_clean_up() -> None:
    begun = threading.Event()
    steps: list[str] = []

    def task() -> None:
        try:
            spin(begun)
        finally:
            steps.append("cleaned")

    with plait.ThreadPool(1) as pool:
        future = pool.submit(task)
        assert begun.wait(60)
        future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
    assert steps == ["cleaned"]


def test_a_task_that_looks_at_the_flag() -> None:
    begun = threading.Event()

    def task() -> str:
        try:
            while True:
                begun.set()
        except plait.TaskStopped:
            return "asked" if plait.stop_requested() else "not asked"

    answers: list[str] = []
    with plait.ThreadPool(1) as pool:
        future = pool.submit(lambda: answers.append(task()))
        assert not pool.submit(plait.stop_requested).running()
        assert begun.wait(60)
        assert future.cancel()
        # cancel() said so: what the task returns does not change it.
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
        assert future.stopped is None
        assert pool.submit(plait.stop_requested).result() is False
    assert answers == ["asked"]
    assert plait.stop_requested() is False


def test_what_cannot_be_stopped_goes_on_and_is_shown() -> None:
    lock = threading.Lock()
    lock.acquire()
    with plait.ThreadPool(1) as pool:
        future = pool.submit(lock.acquire)
        until(future.running)
        assert future.cancel()
        assert future.running()
        assert not future.cancelled()
        with pytest.raises(TimeoutError):
            future.result(0.02)
        (thread,) = pool.statistics().threads
        assert thread.stopping
        lock.release()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
        assert pool.submit(pow, 2, 3).result() == 8


def test_cancel_by_the_task_itself() -> None:
    futures: list[Any] = []
    given = threading.Event()

    def task() -> None:
        assert given.wait(60)
        futures[0].cancel()
        while True:
            pass

    with plait.ThreadPool(1) as pool:
        futures.append(pool.submit(task))
        given.set()
        with pytest.raises(concurrent.futures.CancelledError):
            futures[0].result(60)


def test_a_task_stopped_by_its_own_exception_is_no_cancel() -> None:
    def task() -> None:
        raise plait.TaskStopped

    with plait.ThreadPool(1) as pool:
        future = pool.submit(task)
        assert isinstance(future.exception(), plait.TaskStopped)
        assert not future.cancelled()
        assert future.stopped is None


def test_cancel_wins_over_retries() -> None:
    begun = threading.Event()
    times: list[int] = []

    def task() -> None:
        times.append(1)
        try:
            spin(begun)
        except plait.TaskStopped:
            raise OSError("it was closed under me") from None

    with plait.ThreadPool(1) as pool:
        future = pool.options(retries=5).submit(task)
        assert begun.wait(60)
        future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
    assert times == [1]


# ---- timeouts


def test_timeout() -> None:
    begun = threading.Event()
    with plait.ThreadPool(1) as pool:
        future = pool.options(timeout=0.02, name="spinning").submit(spin, begun)
        with pytest.raises(plait.TaskTimeout, match=r"spinning ran for longer than .* 0.02 s"):
            future.result(60)
        error = future.exception()
        assert isinstance(error, TimeoutError)
        assert isinstance(error, plait.PlaitError)
        assert isinstance(error, plait.TaskTimeout)
        assert (error.task, error.timeout) == ("spinning", 0.02)
        # Where it was is told, too.
        assert isinstance(error.__cause__, plait.TaskStopped)
        assert error.__cause__.__traceback__ is not None
        assert future.stopped == "exception"
        assert not future.cancelled()
        assert pool.submit(pow, 2, 3).result() == 8
        assert pool.statistics().timed_out == 1


def test_timeout_counts_from_the_start() -> None:
    gate = Gate()
    with plait.ThreadPool(1) as pool:
        pool.submit(gate)
        assert gate.begun.wait(60)
        future = pool.options(timeout=5).submit(pow, 2, 3)
        short = pool.options(timeout=0.001).submit(pow, 2, 3)
        with plait.ThreadPool(1) as other:  # meanwhile its time passes, and more
            late = other.options(timeout=0.02).submit(spin, threading.Event())
            assert isinstance(late.exception(), plait.TaskTimeout)
        assert not short.done()
        gate.go.set()
        assert future.result() == 8
        # Most likely 8, too; but a thread may lose its core for a millisecond.
        assert short.exception() is None or isinstance(short.exception(), plait.TaskTimeout)


def test_timeouts_of_many_lengths() -> None:
    with plait.ThreadPool(8) as pool:
        started = [threading.Event() for _ in range(8)]
        lengths = [0.2, 0.05, 0.1, 0.02, 0.15, 0.01, 0.08, 0.03]
        futures = [
            pool.options(timeout=length).submit(spin, event)
            for length, event in zip(lengths, started, strict=True)
        ]
        for future in futures:
            assert isinstance(future.exception(60), plait.TaskTimeout)
        assert pool.submit(pow, 2, 3).result() == 8


def test_timeout_of_what_cannot_be_stopped() -> None:
    lock = threading.Lock()
    lock.acquire()
    with plait.ThreadPool(1) as pool:
        future = pool.options(timeout=0.01).submit(lock.acquire)
        until(lambda: any(thread.stopping for thread in pool.statistics().threads))
        assert not future.done()
        assert not future.cancel()  # it will end as timed out
        lock.release()
        error = future.exception(60)
        assert isinstance(error, plait.TaskTimeout)
        assert future.stopped is None


def test_timeout_of_zero_is_the_shortest() -> None:
    begun = threading.Event()
    with plait.ThreadPool(1) as pool:
        future = pool.options(timeout=0).submit(spin, begun)
        assert isinstance(future.exception(60), plait.TaskTimeout)


# ---- stops that land near the end of short tasks


def short(n: int) -> int:
    for _ in range(n % 7 * 50):
        pass
    return n


class Outcomes:
    """Counts how each future ended; every one exactly once."""

    def __init__(self) -> None:
        self.results = 0
        self.cancelled = 0
        self.timeouts = 0
        self.calls = 0

    def add(self, n: int, future: Any) -> None:
        if future.cancelled():
            self.cancelled += 1
            return
        error = future.exception()
        if error is None:
            assert future.result() == n
            self.results += 1
        else:
            assert isinstance(error, plait.TaskTimeout), repr(error)
            self.timeouts += 1


def hammer(tasks: int, workers: int, how: str) -> Outcomes:
    """Short tasks, stopped by other threads at any moment, between tasks that nobody stops."""
    outcomes = Outcomes()
    tickets: list[Any] = []
    lock = threading.Lock()
    stop = threading.Event()

    def cancel() -> None:
        source = random.Random(threading.get_ident())
        while not stop.is_set():
            with lock:
                some = tickets[-64:]
            for future in some:
                if source.random() < 0.5:
                    future.cancel()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # else a task of this length is never interrupted
    cancelers = [threading.Thread(target=cancel) for _ in range(2 if how == "cancel" else 0)]
    with plait.ThreadPool(workers, max_pending=200) as pool:
        for thread in cancelers:
            thread.start()
        timed = pool.options(timeout=1e-5)
        victims: list[tuple[int, Any]] = []
        bystanders: list[tuple[int, Any]] = []
        called: list[Any] = []
        try:
            for n in range(tasks):
                if n % 2:
                    bystanders.append((n, pool.submit(short, n)))
                    continue
                future: Any = pool.submit(short, n) if how == "cancel" else timed.submit(short, n)
                future.add_done_callback(called.append)
                victims.append((n, future))
                if how == "cancel":
                    with lock:
                        tickets.append(future)
                        del tickets[:-128]
            concurrent.futures.wait([future for _, future in victims])
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            for thread in cancelers:
                thread.join()
        # Who was not stopped never sees a stop: neither its own thread's last task's, nor any.
        for n, future in bystanders:
            assert future.result() == n
            assert future.stopped is None
        for n, future in victims:
            outcomes.add(n, future)
        figures = pool.statistics()
        assert figures.submitted == tasks
        assert figures.done + figures.cancelled == tasks
        assert figures.cancelled == outcomes.cancelled
        assert figures.timed_out == outcomes.timeouts
    outcomes.calls = len(called)
    assert len(set(map(id, called))) == len(called) == len(victims)
    assert outcomes.results + outcomes.cancelled + outcomes.timeouts == len(victims)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_cancels_near_the_end(workers: int) -> None:
    outcomes = hammer(30_000, workers, "cancel")
    assert outcomes.cancelled > 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_timeouts_near_the_end(workers: int) -> None:
    outcomes = hammer(30_000, workers, "timeout")
    assert outcomes.timeouts > 0


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_stops_near_the_end_of_many(workers: int, how: str) -> None:
    outcomes = hammer(400_000, workers, how)
    assert outcomes.results > 0
    assert outcomes.cancelled + outcomes.timeouts > 0


@pytest.mark.parametrize("budget", [0.01, 0.3], ids=["budget-first", "stop-first"])
def test_a_stop_and_the_end_of_a_budget_meet(budget: float) -> None:
    """Both are sent to the thread while C runs, and the stop is the one that stays."""
    begun, gone = threading.Event(), threading.Event()
    short = _core.Task(time.sleep, lambda *ignored: None, budget, True)

    def work() -> None:
        begun.set()
        short.sync(0.6)
        while not gone.is_set():
            pass

    with plait.ThreadPool(1) as pool:
        future = pool.submit(work)
        assert begun.wait(60)
        if budget < 0.1:
            time.sleep(0.1)
        assert future.cancel()
        try:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(60)
            assert not gone.is_set()
            assert future.stopped == "exception"
        finally:
            gone.set()
