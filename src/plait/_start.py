"""How the process is started that a pool's workers are born from."""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import sys
from typing import Any

from . import _core, _stopped, _worker, _zygote

METHODS = ("zygote", "fork", "spawn")

FLAG = "--plait-process"
"""The first argument of a frozen program that is to be a process of a pool."""

# What the interpreter runs that is executed for a pool. The package is put in place without
# being run: importing its public face would cost more time than all the rest of the start. It
# runs on first use. What the process does is compiled already, in the parent.
BOOTSTRAP = """
import sys, marshal, posix
words = [int(word) for word in sys.argv[1:]]
data = marshal.loads(posix.pread(words[0], words[1], 0))
sys.path[:] = data["path"]
Module, Spec = type(sys), type(sys.__spec__)
package = Module("plait")
package.__path__ = data["package"]
package.__spec__ = Spec("plait", None, is_package=True)
package.__spec__.submodule_search_locations[:] = data["package"]
def __getattr__(name):
    if name.startswith("_") and name != "__version__":
        raise AttributeError(name)
    import _frozen_importlib
    spec = _frozen_importlib._find_spec("plait", None)
    if spec is None:
        raise ImportError("plait: the package cannot be found on the parent's sys.path")
    del package.__getattr__
    package.__spec__, package.__loader__, package.__file__ = spec, spec.loader, spec.origin
    spec.loader.exec_module(package)
    return getattr(package, name)
package.__getattr__ = __getattr__
sys.modules["plait"] = package
for name, file, code in data["code"]:
    module = Module(name)
    module.__file__, module.__package__ = file, "plait"
    module.__spec__ = Spec(name, None, origin=file)
    sys.modules[name] = module
    exec(code, module.__dict__)
    setattr(package, name[6:], module)
from plait._zygote import enter
enter(data, words[2:])
"""

_MEANS = {"fork": "fork", "spawn": "spawn", "forkserver": "zygote"}

_supported = False


def frozen() -> bool:
    """Whether this is a program that was packed together with its interpreter."""
    return bool(getattr(sys, "frozen", False))


def freeze_support() -> None:
    """Let a frozen program start pools: call it first under its ``__main__`` guard.

    The workers of a pool begin as an interpreter that is executed afresh. A program that was
    packed into one file with its interpreter (PyInstaller, cx_Freeze, Nuitka) has none, so
    it executes itself: its main module runs up to this call, which is where such a process
    becomes part of the pool and does not return. What workers need from the main module is
    therefore defined above. In other programs this does nothing.

    Example:
        >>> import plait
        >>> if __name__ == "__main__":
        ...     plait.freeze_support()
    """
    global _supported
    _supported = True
    if not frozen() or sys.argv[1:2] != [FLAG]:
        return
    words = [int(word) for word in sys.argv[2:]]
    _zygote.enter(marshal.loads(os.pread(words[0], words[1], 0)), words[2:])
    sys.exit(0)


def choose_method(start_method: Any, mp_context: Any) -> str:
    """The start method that a pool's arguments mean, after a check that there is one."""
    if start_method is not None and not isinstance(start_method, str):
        raise TypeError(f"start_method must be a str or None, not {start_method!r}")
    if start_method == "forkserver":
        raise ValueError("start_method 'forkserver' goes by the name of 'zygote' here")
    if start_method not in (None, *METHODS):
        raise ValueError(
            f"start_method must be one of {', '.join(map(repr, METHODS))} or None, "
            f"not {start_method!r}"
        )
    method = start_method
    if mp_context is not None:
        try:
            kind = mp_context.get_start_method()
        except AttributeError:
            raise TypeError(
                f"mp_context must be a multiprocessing context or None, not {mp_context!r}"
            ) from None
        if kind not in _MEANS:
            raise ValueError(f"mp_context has a start method that is not known: {kind!r}")
        method = _MEANS[kind]
        if start_method not in (None, method):
            raise ValueError(
                f"start_method {start_method!r} and mp_context, which means {method!r}, disagree"
            )
    method = method or "zygote"
    if method != "fork":
        if not sys.executable:
            raise RuntimeError(
                f"sys.executable is not set: start_method {method!r} has nothing to execute"
            )
        if frozen() and not _supported:
            raise RuntimeError(
                "in a frozen program call plait.freeze_support() first under "
                "`if __name__ == '__main__':`, or make the pool with start_method='fork'"
            )
    return method


def threads_run() -> bool:
    """Whether this process has threads beside the one that asks."""
    return len(os.listdir("/proc/self/task")) > 1


def authkey() -> bytes | None:
    """What opens multiprocessing's managers: with it their proxies may be arguments.

    None when the program does not use multiprocessing.
    """
    module = sys.modules.get("multiprocessing.process")
    return None if module is None else bytes(module.current_process().authkey)


def codes() -> list[tuple[str, str, Any]]:
    """What a process of a pool runs first: (module, file, code), in the order of imports.

    Empty when that cannot be had; then it is imported, and compiled where the interpreter has
    no place to keep what it compiled.
    """
    found = []
    if _zygote.codes is None:
        _zygote.codes = []
        for module in (_stopped, _worker, _zygote):
            loader: Any = module.__loader__
            try:
                code = loader.get_code(module.__name__)
            except (AttributeError, ImportError):
                return []
            found.append((module.__name__, str(module.__file__), code))
        _zygote.codes = found
    return _zygote.codes


def command() -> list[str]:
    """How a fresh process of a pool is executed, but for the numbers that it is told."""
    if frozen():
        return [sys.executable, FLAG]
    import subprocess

    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-P", "-c", BOOTSTRAP]


def start_zygote(
    method: str, told: dict[str, Any], keep: tuple[int, ...]
) -> tuple[int, socket.socket]:
    """Start the process that a pool's workers come from.

    Args:
        method: "zygote": executed afresh, it forks the workers; "spawn": likewise, and it has
            each worker executed afresh, too; "fork": a copy of this process, which forks them.
        told: what the zygote and its workers are told; see `plait._zygote.enter`.
        keep: descriptors that it inherits under their numbers.

    Returns:
        tuple: its process id and this side's end of the control socket, which the caller owns.

    Raises:
        OSError: the process cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        told = {**told, "method": method, "control": theirs.fileno(), "parent": os.getpid()}
        pid = fork_zygote(told, ours) if method == "fork" else execute_zygote(told, keep)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return pid, ours


def execute_zygote(told: dict[str, Any], keep: tuple[int, ...]) -> int:
    """Execute the interpreter afresh to be a zygote: its process id."""
    start = os.memfd_create("plait-start", os.MFD_CLOEXEC)
    try:
        words = command()
        data = marshal.dumps(
            {
                **told,
                "path": [os.path.abspath(p) if p == "" else p for p in sys.path],
                "argv": [str(word) for word in sys.argv],
                "package": [str(path) for path in sys.modules["plait"].__path__],
                "code": [] if frozen() else codes(),
                "start": start,
                "command": words,
                "authkey": authkey(),
            }
        )
        view = memoryview(data)
        while view:
            view = view[os.write(start, view) :]
        return _zygote.execute(
            [*words, str(start), str(len(data))], (start, told["control"], *keep)
        )
    finally:
        os.close(start)


def fork_zygote(told: dict[str, Any], ours: socket.socket) -> int:
    """Copy this process to be a zygote: its process id; the copy does not return."""
    for stream in (sys.stdout, sys.stderr):
        # What they hold would be written by every copy.
        with contextlib.suppress(Exception):
            stream.flush()
    # No handler of this process may run in the copy.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = _core.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                _zygote.enter_copy(told)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid
