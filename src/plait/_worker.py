"""What a worker process does around the loop in C: its main module, its initializer, errors."""

from __future__ import annotations

import _pickle
import _socket
import fcntl
import os
import resource
import sys
import types

from . import _core
from ._stopped import TaskStopped as TaskStopped  # the loop in C asks for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # the other one has enumerations, which take long to make

importing_main = False
"""True while the parent's script is imported here: no pool may be made then."""


class MainModule(types.ModuleType):
    """Stands for the parent's ``__main__`` and imports it when a name in it is needed.

    So a task that uses no name of the script never runs the script, and one that does runs it
    under the name ``__mp_main__``, which the usual guard tells from ``__main__``.
    """

    def __init__(self, how: tuple[str, str | None]) -> None:
        super().__init__("__main__")
        self.__dict__["_plait_how"] = how

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        load_main(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(
                f"the main module of the pool's parent has no attribute {name!r} when it is "
                "imported (is it defined below the `if __name__ == '__main__'` guard?)"
            ) from None


def load_main(module: MainModule) -> None:
    """Import the parent's main module into its stand-in, once."""
    global importing_main
    how = module.__dict__.pop("_plait_how", None)
    if how is None:
        return
    kind, where = how
    if kind == "none" or where is None:
        raise AttributeError(
            "the main module of the pool's parent cannot be imported, since it was not read from "
            "a file: put what workers use into a module, or install cloudpickle"
        )
    import runpy

    importing_main = True
    try:
        if kind == "module":
            content = runpy.run_module(where, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(where, run_name="__mp_main__")
    except BaseException:
        module.__dict__["_plait_how"] = how  # the next task meets the same error, not a lesser one
        raise
    finally:
        importing_main = False
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def load_function(data: bytes) -> Any:
    """Unpickle a task's function."""
    return _pickle.loads(data)


by_value = False
"""Whether results may be of classes that the parent's main module made and nobody can import."""


def dump_again(value: Any, error: BaseException) -> tuple[bytes, list[Any]]:
    """Pickle a result by value, after pickle refused it with `error`."""
    if not by_value:
        raise error
    from ._sending import find_cloudpickle

    cloudpickle = find_cloudpickle()
    if cloudpickle is None:
        raise error
    buffers: list[Any] = []
    return cloudpickle.dumps(value, 5, buffer_callback=buffers.append), buffers


def run_each(fn: Any, items: Any) -> list[Any]:
    """Call fn on each item of a chunk."""
    return [fn(item) for item in items]


def dump_exception(error: BaseException, fn: Any) -> bytes:
    """A task's exception for the parent, as `plait._sending.decode_exception` reads it.

    Args:
        error: what the task raised, or what its result could not be sent for.
        fn: in the second case what the task called, else None.
    """
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    text = "".join(lines)
    error.__traceback__ = None
    kind = type(error)
    try:
        try:
            data = _pickle.dumps(error, 5)
        except Exception as refused:
            data = dump_again(error, refused)[0]
        _pickle.loads(data)
    except Exception:
        data = None
    try:
        message = str(error)
    except Exception as second:
        message = f"<str() raised {type(second).__name__}>"
    name = None if fn is None else _name_of(fn)
    sent = (data, f"{kind.__module__}.{kind.__qualname__}", message, text, name)
    return _pickle.dumps(sent, 5)


def _name_of(fn: Any) -> str:
    """What a note calls a task's function, whatever that is; "" for one of the pool's own."""
    try:
        module = getattr(fn, "__module__", None)
        if isinstance(module, str) and module.startswith("plait."):
            return ""  # map's chunks
        name = getattr(fn, "__qualname__", None)
        return name if isinstance(name, str) and name else repr(fn)
    except Exception:
        return f"an object of the type {type(fn).__qualname__}"


STOP_SIGNAL = signal.SIGURG
"""Asks a worker to stop its task. Ignored by default, so it harms nobody who is not ready."""

STACK_SIGNAL = signal.SIGSTKFLT if hasattr(signal, "SIGSTKFLT") else signal.SIGRTMAX
"""Asks a worker for its last Python stack, before it is killed. Nobody else sends it."""


def watch_faults(stackfd: int, handler: Any) -> None:
    """Have faults and the pool's second signal leave the Python stack in a file.

    That one is written by the signal's C half, even while the interpreter hangs in foreign code.
    It can find frames that are half made, and then the worker dies: so the first signal, which
    workers survive, runs nothing but `handler`, when the interpreter gets to it.
    """
    import faulthandler

    if handler is None:
        faulthandler.unregister(STACK_SIGNAL)
        for number in (STACK_SIGNAL, STOP_SIGNAL):
            signal.signal(number, signal.SIG_IGN)
        return
    faulthandler.enable(stackfd, all_threads=False)
    faulthandler.register(STACK_SIGNAL, stackfd, all_threads=False)
    signal.signal(STOP_SIGNAL, handler)


def out_of_the_way(fd: int) -> int:
    """Move a descriptor to a high number.

    A task that closes descriptors by the range and opens others then gets low numbers: what
    the worker writes to its own descriptor cannot end up in the task's files.
    """
    try:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(fd, min(soft, 1024) - 16))
    except OSError:
        return fd
    os.close(fd)
    return high


def limit_memory(limit: int) -> None:
    """Bound this process's private memory: what goes beyond raises MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def serve(
    data: dict[str, Any], seat: int, low_mark: int, control: _socket.socket, stackfd: int
) -> int:
    """Be a worker until the pool ends.

    Returns:
        int: the exit code of the process.
    """
    global by_value
    from ._zygote import HEAD, TEXT_MAX, load_setup, send

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    by_value = data["by_value"]
    if data["main"][0] == "own":
        sys.modules["__mp_main__"] = sys.modules["__main__"]
    else:
        main = MainModule(data["main"])
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    stackfd = out_of_the_way(stackfd)
    try:
        if data["memory_limit"]:
            limit_memory(data["memory_limit"])
        initializer, initargs = load_setup(data)
        if initializer is not None:
            me = os.getpid()
            initializer(*initargs)
            if os.getpid() != me:
                return 0  # it has forked, and its copy has no part in the pool
    except BaseException:
        import traceback

        text = traceback.format_exc().encode(errors="replace")[-TEXT_MAX:]
        send(control, HEAD.pack(b"I", seat, os.getpid(), 0, 0, 0) + text)
        return 1
    send(control, HEAD.pack(b"R", seat, os.getpid(), 0, 0, 0))
    control.close()
    _core.worker_run(
        data["memfd"],
        out_of_the_way(data["eventfd"]),
        seat,
        low_mark,
        data["most"],
        load_function,
        dump_exception,
        lambda *args: watch_faults(stackfd, *args),
    )
    return 0


def leave(code: int) -> None:
    """End this process without the interpreter's own, slow, end."""
    import atexit

    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(code)
