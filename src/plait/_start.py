"""How the process is started that a pool's workers are born from."""

from __future__ import annotations

import marshal
import os
import signal
import socket
import sys
from typing import Any

# What the zygote runs. The package itself is put in place without being run: importing its
# public face would cost more time than all the rest of the start. It runs on first use.
BOOTSTRAP = """
import sys, os, marshal
data = marshal.loads(os.pread({fd}, {size}, 0))
sys.path[:] = data["path"]
sys.argv[:] = data["argv"]
import importlib.util
spec = importlib.util.find_spec("plait")
if spec is None:
    raise SystemExit("plait: the package cannot be found on the parent's sys.path")
package = importlib.util.module_from_spec(spec)
def __getattr__(name):
    if name.startswith("_") and name != "__version__":
        raise AttributeError(name)
    package.__dict__.pop("__getattr__", None)
    spec.loader.exec_module(package)
    return getattr(package, name)
package.__getattr__ = __getattr__
sys.modules["plait"] = package
from plait._zygote import main
main(data)
"""


def check_start(start_method: Any, mp_context: Any) -> None:
    """Refuse ways to start workers that the pool does not have."""
    if start_method is not None and not isinstance(start_method, str):
        raise TypeError(f"start_method must be a str or None, not {start_method!r}")
    if start_method in ("fork", "spawn", "forkserver"):
        raise ValueError(
            f"start_method {start_method!r} is not supported: workers are forked from a process "
            "that was executed afresh (start_method 'zygote', the default)"
        )
    if start_method not in (None, "zygote"):
        raise ValueError(f"start_method must be 'zygote' or None, not {start_method!r}")
    if mp_context is None:
        return
    try:
        kind = mp_context.get_start_method()
    except AttributeError:
        raise TypeError(
            f"mp_context must be a multiprocessing context or None, not {mp_context!r}"
        ) from None
    if kind not in ("spawn", "forkserver"):
        raise ValueError(
            f"mp_context with start method {kind!r} is not supported: workers begin in a clean "
            "process ('spawn' and 'forkserver' are taken as meaning that)"
        )


def authkey() -> bytes | None:
    """What opens multiprocessing's managers: with it their proxies may be arguments.

    None when the program does not use multiprocessing.
    """
    module = sys.modules.get("multiprocessing.process")
    return None if module is None else bytes(module.current_process().authkey)


def start_zygote(data: dict[str, Any], keep: tuple[int, ...]) -> tuple[int, socket.socket]:
    """Start a zygote by executing the interpreter afresh.

    Args:
        data: what the zygote and its workers are told; see `plait._zygote.main`.
        keep: descriptors that it inherits under their numbers.

    Returns:
        tuple: its process id and this side's end of the control socket, which the caller owns.

    Raises:
        OSError: the process cannot be started.
    """
    import subprocess

    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    start = -1
    try:
        start = os.memfd_create("plait-start", os.MFD_CLOEXEC)
        told = marshal.dumps(
            {
                **data,
                "path": [os.path.abspath(p) if p == "" else p for p in sys.path],
                "argv": [str(word) for word in sys.argv],
                "start": start,
                "control": theirs.fileno(),
                "parent": os.getpid(),
                "authkey": authkey(),
            }
        )
        view = memoryview(told)
        while view:
            view = view[os.write(start, view) :]
        code = BOOTSTRAP.format(fd=start, size=len(told))
        # Duplicating a descriptor onto itself is how a child is told to keep it.
        dups = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (start, theirs.fileno(), *keep)]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *flags, "-P", "-c", code],
            os.environ,
            file_actions=dups,
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        if start >= 0:
            os.close(start)
    ours.setblocking(False)
    return pid, ours
