"""What the pool's tests run in workers. A module, so that workers can import it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

kept: list[Any] = []


def plus_one(x: int) -> int:
    return x + 1


def noop() -> None:
    return None


def pid() -> int:
    return os.getpid()


def echo(x: Any) -> Any:
    return x


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
    while not os.path.exists(path):
        time.sleep(0.001)
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


def nested() -> int:
    import plait

    with plait.ProcessPool(1) as pool:
        return pool.submit(plus_one, 41).result()


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
