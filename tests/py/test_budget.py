"""The interrupt: it meets the call whose time is up, and nothing else, however hard it rains."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import plait
from plait import _core

TINY = 0.0003
"""Seconds: near what the calls below take, so that many end just when the interrupt comes."""

LONG = 0.02
"""Seconds: longer than a budget and a switch interval together."""

AMPLE = 60.0
"""Seconds: beyond what a call takes that is to end by itself, on however busy a machine."""


class Counting:
    """Stands for the pools: runs the call at once, and counts that it did."""

    def __init__(self) -> None:
        self.again = 0

    def __call__(self, task: Any, fn: Any, index: int, args: Any, kwargs: Any, wait: bool) -> Any:
        assert wait
        self.again += 1
        # Nothing is learnt, so the next call starts inline again.
        task._seed({task._records()[index][0]: (0, 1, *[0] * 8)})
        return _core._run_plain(fn, *args, **kwargs)


def make(fn: Callable[..., Any], budget: float = TINY) -> tuple[Any, Counting]:
    """A task whose calls start inline again and again, whatever was learnt."""
    elsewhere = Counting()
    return _core.Task(fn, elsewhere, budget, True), elsewhere


def spin(seconds: float) -> float:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def in_thread(fn: Callable[[], None]) -> None:
    """Run in a thread, and pass on what it raises."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.fixture(params=["main", "thread"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run a function in the main thread, or in another one: the interrupt differs."""
    if request.param == "main":
        yield lambda fn: fn()
        return
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # the interrupt waits for it, and these calls are short
    yield in_thread
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when an interrupt arrives where no budget runs, or is told as unraisable.

    Nothing is collected meanwhile: other tests' garbage may have generators and callbacks, and an
    interrupt that meets one of them, run by a collection inside the function, is told and sent anew.
    """
    told: list[Any] = []
    gc.collect()
    gc.disable()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    yield
    spin(0.01)  # bytecodes that a late one would meet
    gc.enable()
    gc.collect()
    assert not told


def test_short_call_returns_its_value(anywhere: Any) -> None:
    def body() -> None:
        task, elsewhere = make(lambda a, *, b: (a, b), AMPLE)
        for i in range(1000):
            assert task.sync(i, b=-i) == (i, -i)
        assert elsewhere.again == 0

    anywhere(body)


def test_endless_call_is_interrupted_and_runs_again(anywhere: Any) -> None:
    def body() -> None:
        def endless_once() -> str:
            while not elsewhere.again:
                pass
            return "again"

        task, elsewhere = make(endless_once)
        assert task.sync() == "again"
        assert elsewhere.again == 1

    anywhere(body)


def test_interrupt_passes_with_blocks_and_finally(anywhere: Any) -> None:
    def body() -> None:
        lock = threading.Lock()
        left: list[str] = []
        begun: list[int] = []

        def work() -> int:
            if elsewhere.again:
                return 7
            try:
                begun.append(1)
                with lock:
                    while True:
                        pass
            finally:
                left.append("finally")

        task, elsewhere = make(work)
        assert task.sync() == 7
        assert left == ["finally"] * len(begun)
        assert not lock.locked()

    anywhere(body)


def test_a_swallowed_interrupt_still_drops_the_result(anywhere: Any) -> None:
    def body() -> None:

        def work() -> str:
            if elsewhere.again:
                return "right"
            try:
                while True:
                    pass
            except BaseException:
                return "wrong"

        task, elsewhere = make(work)
        assert task.sync() == "right"
        assert elsewhere.again == 1

    anywhere(body)


def test_a_call_that_swallows_again_and_again_is_interrupted_again(anywhere: Any) -> None:
    def body() -> None:
        swallowed: list[int] = []

        def work() -> str:
            if elsewhere.again:
                return "right"
            while len(swallowed) < 3:
                with contextlib.suppress(BaseException):
                    while True:
                        pass
                swallowed.append(1)
            return "wrong"

        task, elsewhere = make(work)
        assert task.sync() == "right"

    anywhere(body)


def test_an_exception_of_an_interrupted_run_is_dropped(anywhere: Any) -> None:
    def body() -> None:

        def work() -> str:
            if elsewhere.again:
                return "right"
            try:
                while True:
                    pass
            except BaseException as error:
                raise ValueError("only since it was interrupted") from error

        task, elsewhere = make(work)
        assert task.sync() == "right"

    anywhere(body)


def test_the_functions_own_exception_comes_through(anywhere: Any) -> None:
    def body() -> None:
        def work() -> None:
            raise KeyError("mine")

        task, elsewhere = make(work, AMPLE)
        for _ in range(100):
            with pytest.raises(KeyError, match="mine"):
                task.sync()
        assert elsewhere.again == 0

    anywhere(body)


def test_ctrl_c_in_an_interrupted_call_is_not_dropped() -> None:
    def work() -> None:
        try:
            while True:
                pass
        except _core.OverBudget:
            raise KeyboardInterrupt from None

    task, elsewhere = make(work)
    with pytest.raises(KeyboardInterrupt):
        task.sync()
    assert elsewhere.again == 0


def test_c_code_is_not_interrupted(anywhere: Any) -> None:
    """A sleep ends as a whole; the interrupt comes after it, before the next bytecodes."""

    def body() -> None:
        slept: list[float] = []

        def work() -> int:
            if elsewhere.again:
                return 1
            start = time.perf_counter()
            try:
                time.sleep(0.05)
                while True:
                    pass
            finally:
                slept.append(time.perf_counter() - start)

        for _ in range(20):  # the thread may have had no turn until its time was over
            task, elsewhere = make(work, 0.01)
            assert task.sync() == 1
            if slept and slept[-1] >= 0.05:
                return
        pytest.fail(f"interrupted in its sleep: {slept}")

    anywhere(body)


def test_enter_and_exit_are_left_alone(anywhere: Any) -> None:
    def body() -> None:
        whole: list[str] = []

        class Slow:
            def __enter__(self) -> None:
                spin(20 * TINY)
                whole.append("enter")

            def __exit__(self, *args: object) -> None:
                spin(20 * TINY)
                whole.append("exit")

        def work() -> int:
            if len(whole) >= 2:
                return 1
            with Slow():
                pass
            while not elsewhere.again:
                pass
            return 1

        task, elsewhere = make(work)
        assert task.sync() == 1
        assert whole == ["enter", "exit"]
        assert elsewhere.again == 1

    anywhere(body)


def test_an_import_is_left_alone(anywhere: Any, tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import sys, time\nsys.imports.append(1)\nend = time.perf_counter() + 0.02\n"
        "while time.perf_counter() < end: pass\ndone = True\n"
    )
    imports: list[int] = []
    monkeypatch.setattr(sys, "imports", imports, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("slow_to_import", None)

    def body() -> None:

        def work() -> int:
            import slow_to_import  # type: ignore[import-not-found]

            assert slow_to_import.done
            while not elsewhere.again:
                pass
            return 1

        task, elsewhere = make(work)
        assert task.sync() == 1
        assert sys.modules["slow_to_import"].done
        assert len(imports) == 1

    anywhere(body)


def test_a_signal_handler_on_top_is_left_alone() -> None:
    handled: list[str] = []

    def handler(signum: int, frame: object) -> None:
        spin(20 * TINY)
        handled.append("whole")

    before = signal.signal(signal.SIGUSR1, handler)
    try:

        def work() -> int:
            if not handled:
                os.kill(os.getpid(), signal.SIGUSR1)
            while not elsewhere.again:
                pass
            return 1

        task, elsewhere = make(work)
        assert task.sync() == 1
        assert handled == ["whole"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_destructors_of_the_functions_variables_are_left_alone() -> None:
    """In the main thread. In others one that was on its way when the function returned can meet
    the first of them; the interpreter offers no way to take it back in time."""

    def body() -> None:
        whole: list[str] = []

        class Slow:
            def __del__(self) -> None:
                spin(10 * TINY)
                whole.append("del")

        def work() -> int:
            slow = Slow()
            assert slow
            return 1

        task, _elsewhere = make(work)
        for _ in range(20):
            assert task.sync() == 1
        assert len(whole) >= 20

    body()


class Dying:
    """Whose end takes longer than any budget, and is seen to come to its end."""

    ended = 0

    def __del__(self) -> None:
        spin(LONG)
        Dying.ended += 1


def clear(items: list[object]) -> None:
    items.clear()


@pytest.mark.parametrize("kind", ["C", "partial", "partial of C"])
def test_destructors_within_a_function_of_c_are_left_alone(
    anywhere: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function without code of its own has no frame, so its caller tells what is above."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))

    def body() -> None:
        Dying.ended = 0
        items: list[object] = [Dying() for _ in range(3)]
        fn = {
            "C": items.clear,
            "partial": functools.partial(clear, items),
            "partial of C": functools.partial(list.clear, items),
        }[kind]
        task, _ = make(fn)
        assert task.sync() is None
        assert Dying.ended == 3

    anywhere(body)
    assert unraisable == []


@pytest.mark.parametrize("kind", ["C", "instance", "partial of an instance"])
def test_python_within_what_has_no_code_is_interrupted(anywhere: Any, kind: str) -> None:
    """What a function of C calls, and what stands behind partials and instances."""

    def body() -> None:
        steps = 0

        def endless_at_first(n: int) -> int:
            nonlocal steps
            steps += 1
            while not elsewhere.again:
                pass
            return n

        class Endless:
            def __call__(self, n: int) -> int:
                return endless_at_first(n)

        fn: Any = {
            "C": functools.partial(sorted, key=endless_at_first),
            "instance": Endless(),
            "partial of an instance": functools.partial(Endless(), 3),
        }[kind]
        task, elsewhere = make(fn)
        args: Any = {"C": [[3, 1, 2]], "instance": [3]}.get(kind, [])
        assert task.sync(*args) == ([1, 2, 3] if kind == "C" else 3)
        assert elsewhere.again == 1
        # It may have been interrupted before its first step.
        assert steps in ((3, 4) if kind == "C" else (1, 2))

    anywhere(body)


@pytest.mark.parametrize(("inner", "outer"), [(AMPLE, TINY), (TINY, AMPLE), (TINY, 2 * TINY)])
def test_nested_budgets(anywhere: Any, inner: float, outer: float) -> None:
    """The tighter one ends its own call: an outer one takes the inner call with it."""

    def body() -> None:
        random_ = random.Random(5)
        inner_task, inner_again = make(spin, inner)

        def outer_body(seconds: float) -> float:
            assert inner_task.sync(seconds) == seconds
            return seconds

        outer_task, outer_again = make(outer_body, outer)
        tighter = outer_again if inner > outer else inner_again
        rounds = 0
        while rounds < 60 or (AMPLE in (inner, outer) and not tighter.again):
            rounds += 1
            seconds = random_.choice([0.0, random_.uniform(0, 3 * TINY), LONG])
            assert outer_task.sync(seconds) == seconds
        if outer == AMPLE:
            assert outer_again.again == 0

    anywhere(body)


def test_generators_within_a_call(anywhere: Any) -> None:
    def body() -> None:
        closed: list[int] = []

        def numbers(n: int) -> Iterator[int]:
            try:
                for i in range(n):  # `yield from` would hide the turns in C
                    yield i + 0
            finally:
                closed.append(n)

        def work(n: int) -> int:
            return sum(numbers(n))

        task, elsewhere = make(work)
        calls = 0
        while calls < 20 or not elsewhere.again:
            for n in (10, 100, 1000, 200_000):
                assert task.sync(n) == n * (n - 1) // 2
                calls += 1
        # One that was never started has nothing to close.
        assert calls <= len(closed) <= calls + elsewhere.again

    anywhere(body)


def test_deep_recursion(anywhere: Any) -> None:
    def body() -> None:
        def down(n: int) -> int:
            if n == 0:
                while elsewhere.again < interrupts:
                    pass
                return 0
            return 1 + down(n - 1)

        task, elsewhere = make(down)
        for interrupts, n in enumerate((1, 10, 100, 500), 1):
            assert task.sync(n) == n
            assert elsewhere.again == interrupts

    anywhere(body)


def storm(calls: int, seed: int) -> tuple[int, int]:
    """Many calls that end near their budget, in every manner: (calls, interrupted ones)."""
    random_ = random.Random(seed)
    begun: list[int] = [0]

    def work(manner: int, units: int) -> int:
        begun[0] += 1
        total = 0
        if manner == 0:
            for i in range(units):
                total += i
        elif manner == 1:
            total = sum(i for i in range(units))
        elif manner == 2:
            try:
                for i in range(units):
                    total += i
                raise ValueError(total)
            except ValueError as error:
                total = error.args[0]
        elif manner == 3:
            with contextlib.nullcontext():
                for i in range(units):
                    total += i
        elif manner == 4:
            try:
                for i in range(units):
                    total += i
            except BaseException:
                return -1  # wrong, and to be dropped
        else:
            total = nested.sync(0, units)
        return total

    nested, nested_again = make(work, 0.0009)
    task, again = make(work, 0.0005)
    # How much takes about as long as the budget, here and now.
    start = time.perf_counter()
    work(0, 20_000)
    unit = max(1e-9, (time.perf_counter() - start) / 20_000)
    near = int(0.0005 / unit)
    for _ in range(calls):
        manner = random_.randrange(6)
        units = int(near * random_.choice([0.001, 0.01, random_.uniform(0.8, 1.2)]))
        before = begun[0]
        interrupted = again.again + nested_again.again
        assert task.sync(manner, units) == units * (units - 1) // 2
        runs = begun[0] - before
        extra = again.again + nested_again.again - interrupted
        # Once, or once more for each interrupt; a nested call counts twice.
        assert runs <= (1 + (manner == 5)) * (1 + extra) + extra
    return calls, again.again + nested_again.again


def test_storm(anywhere: Any) -> None:
    # Off the main thread interrupts come up to a switch interval late, and a storm may see none.
    anywhere(lambda: check_storms(2000, range(30)))


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_storm_long(anywhere: Any, seed: int) -> None:
    anywhere(lambda: check_storms(250_000, [seed]))


def check_storms(calls: int, seeds: Iterable[int]) -> None:
    """Storm until one has met an interrupt, which one of them must."""
    for seed in seeds:
        done, interrupted = storm(calls, seed)
        assert done == calls
        if interrupted > 0:
            return
    pytest.fail("no call was interrupted")


def test_storm_in_many_threads_at_once() -> None:
    failed: list[BaseException] = []

    def body(seed: int) -> None:
        try:
            storm(150, seed)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=body, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    storm(300, 9)
    for thread in threads:
        thread.join()
    assert not failed


def test_thread_slots_are_used_again() -> None:
    task, _ = make(lambda: 1, 1.0)
    for _ in range(200):
        in_thread(lambda: task.sync() and None)


def run_script(text: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(text), *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


ENDLESS = """
    import os, sys, threading
    from plait import _core
    def make():
        runs = []
        def work():
            runs.append(1)
            while len(runs) == 1:
                pass
            return "again"
        return _core.Task(work, lambda t, fn, i, a, k, w: fn(), 0.001, True)
"""


def test_budgets_work_in_a_forked_child() -> None:
    out = run_script(
        ENDLESS
        + """
    assert make().sync() == "again"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if make().sync() == "again" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert make().sync() == "again"
    print("ok")
    """
    )
    assert out == "ok\n"


def test_a_budget_that_begins_during_a_fork() -> None:
    """Another thread's, between the fork's first step and the fork itself."""
    out = run_script(
        ENDLESS
        + """
    asked, done = threading.Event(), threading.Event()
    def other():
        asked.wait()
        assert _core.Task(int, lambda *a: None, 0.5, True).sync() == 0
        done.set()
    def hook():
        asked.set()
        done.wait()
    os.register_at_fork(before=hook)
    threading.Thread(target=other).start()
    assert make().sync() == "again"
    pid = os.fork()
    if pid == 0:
        __import__("signal").alarm(60)
        os._exit(0 if make().sync() == "again" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert make().sync() == "again"
    print("ok")
    """
    )
    assert out == "ok\n"


def test_fork_within_a_budget() -> None:
    out = run_script(
        """
    import os
    from plait import _core
    def work():
        return os.fork()
    task = _core.Task(work, lambda t, fn, i, a, k, w: fn(), 10.0, True)
    pid = task.sync()
    if pid == 0:
        os._exit(0 if _core.Task(int, lambda *a: None, 1.0, True).sync() == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    print("ok")
    """
    )
    assert out == "ok\n"


def test_the_monitor_ends_with_the_interpreter() -> None:
    """While a daemon thread still runs calls, too."""
    out = run_script(
        ENDLESS
        + """
    task = _core.Task(sum, lambda t, fn, i, a, k, w: fn(*a), 0.0005, True)
    def rain():
        while True:
            task.sync(range(20000))
            task._note_away(0, 0, 0)
    threading.Thread(target=rain, daemon=True).start()
    assert make().sync() == "again"
    print("ok")
    """
    )
    assert out == "ok\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sub-interpreters have a lock each")
def test_sub_interpreters(sub_interpreters: None) -> None:
    """Each has a monitor of its own; one that ends takes it along."""
    out = run_script(
        """
    import sys, threading
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    code = '''if True:
        from plait import _core
        runs = []
        def work():
            runs.append(1)
            while len(runs) == 1:
                pass
            return "again"
        task = _core.Task(work, lambda t, fn, i, a, k, w: fn(), 0.001, True)
        assert task.sync() == "again"
    '''
    def one():
        ident = interpreters.create()
        failed = interpreters.run_string(ident, code)
        assert failed is None, failed
        interpreters.destroy(ident)
    one()
    threads = [threading.Thread(target=one) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    print("ok")
    """
    )
    assert out == "ok\n"


def test_an_error_nobody_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))

    @plait.task(pure=True, budget=60)
    def fail() -> None:
        raise ValueError("lost?")

    for _ in range(3):  # a Call's memory is used again
        call = fail()
        assert call.where == "inline"
        del call
        gc.collect()
        assert [str(error) for error in told] == ["lost?"]
        told.clear()

    async def main() -> None:
        with pytest.raises(ValueError, match="lost"):
            await fail()

    asyncio.run(main())
    assert not told
