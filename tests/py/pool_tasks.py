"""What the pool's tests run in workers. A module, so that workers can import it."""

from __future__ import annotations

import ctypes
import itertools
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from until import until

kept: list[Any] = []


def plus_one(x: int) -> int:
    return x + 1


def noop() -> None:
    return None


def pid() -> int:
    return os.getpid()


def echo(x: Any) -> Any:
    return x


def are_one(x: Any, y: Any) -> bool:
    return x is y


def call_a_lot() -> int:
    """Frames come and go, called by Python and by C."""

    def down(n: int) -> int:
        return n if n < 2 else down(n - 1) + down(n - 2)

    for _ in range(20):
        sorted((i for i in range(300)), key=lambda i: -i)
        max(range(30), key=lambda i: down(6))
    return os.getpid()


def both(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def fail(text: str) -> None:
    raise ValueError(text)


def exit_with(code: int) -> None:
    os._exit(code)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def segfault() -> None:
    ctypes.string_at(0)


def system_exit() -> None:
    sys.exit(7)


def unpicklable_result() -> Any:
    return lambda: None


def unpicklable_of(x: int) -> Any:
    return lambda: x


async def coroutine(x: int) -> int:
    return x


def generator(x: int) -> Iterator[int]:
    yield x


def coroutine_of(x: int) -> Any:
    made = coroutine(x)
    made.close()  # so that nobody warns that it was not awaited
    return made


def takes_timeout(*, timeout: Any) -> Any:
    if timeout == "deeper":
        deeper: Any = plus_one
        deeper(1, timeout=1)
    return timeout


class Stubborn(Exception):
    """An exception that pickles but cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("stubborn")


class Unsendable(Exception):
    def __init__(self) -> None:
        super().__init__("unsendable")
        self.fn = lambda: None


def raise_stubborn() -> None:
    raise Stubborn(1, 2)


def raise_unsendable() -> None:
    raise Unsendable()


class BadUnpickle:
    def __reduce__(self) -> Any:
        return (fail, ("in unpickle",))


class DiesInUnpickle:
    def __reduce__(self) -> Any:
        return (exit_with, (9,))


class BadPickle:
    def __reduce__(self) -> Any:
        raise RuntimeError("in pickle")


def return_bad_pickle() -> BadPickle:
    return BadPickle()


def return_bad_unpickle() -> BadUnpickle:
    return BadUnpickle()


def wait_for_file(path: str) -> int:
    """Run until a file is there: how a test holds a worker without guessing times."""
    until(lambda: os.path.exists(path), 1000)
    return os.getpid()


def announce_and_wait(here: str, path: str) -> int:
    with open(here, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    return wait_for_file(path)


def keep(x: Any) -> Any:
    kept.append(x)
    return x


def kept_first(i: int = -1) -> Any:
    return kept[i].flat[0]


def set_env(name: str, value: str) -> None:
    os.environ[name] = value


def get_env(name: str) -> str | None:
    return os.environ.get(name)


def put(queue: Any, value: Any) -> None:
    queue.put(value)


def total(x: Any) -> float:
    return float(x.sum())


def twice_the_array(x: Any) -> Any:
    return x * 2


def scribble(x: Any) -> Any:
    x[:] = 7
    return x


def fill(x: Any, value: float) -> None:
    x[:] = value


def nested(start_method: str | None = None) -> int:
    import plait

    with plait.ProcessPool(1, start_method=start_method) as pool:
        return pool.submit(plus_one, 41).result()


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def announce(path: str) -> None:
    """Say in a file that the task runs; whole, so that a reader never sees a part."""
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)


def block() -> None:
    """Wait in C for very long."""
    time.sleep(1000)


def sleep_long(path: str) -> None:
    announce(path)
    block()


def spin_long(path: str) -> None:
    announce(path)
    while True:
        pass


def stop_slowly(path: str, told: str) -> None:
    """Clean up when stopped, as a task may."""
    try:
        sleep_long(path)
    finally:
        announce(told)


def ignore_stop(path: str) -> None:
    told = False
    while True:
        try:  # what comes after the announcement comes in here
            if not told:
                announce(path)
                told = True
            block()
        except BaseException:
            told = True


def return_when_stopped(path: str) -> str:
    try:
        sleep_long(path)
    except BaseException:
        pass
    return "went on"


def hang_in_c(path: str) -> None:
    told = path + ".told"
    announce(told)
    # One call that never looks for signals, and announces itself from within.
    appear = map(os.symlink, [told], [path])
    sum(itertools.chain(filter(None, appear), range(10**14)))


class SleepsInPickle:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        sleep_long(self.path)
        return (int, ())


def result_sleeps_in_pickle(path: str) -> SleepsInPickle:
    return SleepsInPickle(path)


class SleepsInUnpickle:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (sleep_long, (self.path,))


def with_child(path: str) -> None:
    """Start a child that outlives an ordinary end, and wait."""
    import subprocess

    child = subprocess.Popen(["sleep", "1000"])
    with open(path + ".child", "w", encoding="ascii") as file:
        file.write(str(child.pid))
    sleep_long(path)


def die_then(path: str, deaths: int) -> int:
    """Kill the worker at the first `deaths` tries."""
    with open(path, "a", encoding="ascii") as file:
        file.write("x")
    tries = os.path.getsize(path)
    if tries <= deaths:
        os._exit(3)
    return tries


def raise_then(path: str, errors: int) -> int:
    with open(path, "a", encoding="ascii") as file:
        file.write("x")
    tries = os.path.getsize(path)
    if tries <= errors:
        raise ValueError(f"try {tries}")
    return tries


def close_descriptors() -> str:
    os.closerange(3, 65536)
    return "closed"


def fork_and_return() -> int:
    """Return in both processes."""
    os.fork()
    return os.getpid()


def fork_and_raise() -> int:
    if os.fork() == 0:
        raise ValueError("in the child")
    return os.getpid()


def spoil_board(offset: int, data: bytes) -> str:
    """Write into the first page of the pool's memory, as a stray pointer would."""
    for line in pathlib.Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        if "plait-pool" in line:
            start = int(line.split("-")[0], 16)
            ctypes.memmove(start + offset, data, len(data))
            return "spoilt"
    raise RuntimeError("no pool's memory here")


def eat_memory(n: int) -> int:
    return len(bytearray(n))


def write_line(path: str, text: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        file.write(text + "\n")


def import_then_sleep(folder: str, module: str) -> None:
    sys.path.insert(0, folder)
    __import__(module)
    block()


def value_of(module: str) -> Any:
    return sys.modules[module].VALUE  # type: ignore[attr-defined]


def noop_of() -> Callable[[], None]:
    """What a callable is turned into on its way."""
    return noop


def zeros(n: int) -> bytes:
    """A result of some size."""
    return bytes(n)


def end_once_ready() -> None:
    """An initializer after which the worker ends as soon as it is ready."""
    from plait import _core

    def end(*_: Any) -> None:
        os._exit(9)

    _core.worker_run = end


def exit_when_stopped() -> None:
    """Take the worker along as soon as this is to stop."""
    try:
        while True:
            time.sleep(0.01)
    except BaseException:
        os._exit(3)
