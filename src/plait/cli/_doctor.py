"""``plait doctor``: what there is on this machine, what plait uses of it, and why."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import sys
from pathlib import Path
from typing import Any

from .. import _busy, _core
from ._extras import LAB

__all__ = ["examine", "main"]

# The numbers of io_uring are the same on every architecture, that of futex is not.
_SYS_IO_URING_SETUP = 425
_SYS_IO_URING_ENTER = 426
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX_WAKE = 1


def main(*, as_json: bool) -> int:
    """Print what was found.

    Args:
        as_json: For programs instead of people.

    Returns:
        The exit code: 0, or 1 when something that plait cannot do without is missing.
    """
    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print(_text(found))
    return 0 if all(found["kernel"][name]["works"] for name in ("epoll", "pidfd", "memfd")) else 1


def _pool() -> dict[str, str]:
    """How a pool that is made with no arguments starts its workers."""
    from .._start import choose_method

    try:
        name = choose_method(None, None)
    except RuntimeError as error:
        return {"name": "fork", "reason": f"on request only, because {error}"}
    return {"name": name, "reason": "a clean process of the pool's own, from which they are forked"}


def examine() -> dict[str, Any]:
    """Look at everything; no probe leaves anything behind."""
    build = _core.build_config()
    kernel: dict[str, Any] = {
        "release": platform.release(),
        "machine": platform.machine(),
        "epoll": _epoll(),
        "io_uring": _io_uring(),
        "pidfd": _pidfd(),
        "memfd": _memfd(),
        "futex": _futex(),
    }
    return {
        "plait": _core.__version__,
        "build": build,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
            "switch_interval_s": sys.getswitchinterval(),
        },
        "kernel": kernel,
        "backend": _backend(kernel["io_uring"]),
        "busy_poll": _busy_poll(),
        "files": _files(build, kernel["io_uring"]),
        "cpu": {
            "count": os.cpu_count(),
            "usable": sorted(os.sched_getaffinity(0)),
            "cgroup_quota": _quota(),
        },
        "pool": _pool(),
        "multiprocessing_start_method": multiprocessing.get_start_method(allow_none=True)
        or multiprocessing.get_all_start_methods()[0],
        "extras": {"lab": {name: _version(name) for name in LAB}},
        "loop": _coverage(),
    }


def _works(reason: str = "") -> dict[str, Any]:
    return {"works": True, "reason": reason}


def _fails(reason: str) -> dict[str, Any]:
    return {"works": False, "reason": reason}


def _failed(error: OSError) -> dict[str, Any]:
    return _fails(error.strerror or str(error))


def _epoll() -> dict[str, Any]:
    import select

    try:
        select.epoll().close()
    except OSError as error:
        return _failed(error)
    return _works()


def _io_uring() -> dict[str, Any]:
    """Ask the kernel for the smallest ring, and use it; the answer counts, not its version."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)  # struct io_uring_params, all zero
    fd = libc.syscall(ctypes.c_long(_SYS_IO_URING_SETUP), ctypes.c_uint(1), ctypes.byref(params))
    code = ctypes.get_errno()
    if fd >= 0:
        # A filter may allow the call that makes a ring and refuse the one that uses it.
        none = ctypes.c_long(0)
        used = libc.syscall(ctypes.c_long(_SYS_IO_URING_ENTER), fd, none, none, none, none, none)
        code = ctypes.get_errno()
        os.close(fd)
        if used >= 0:
            return _works()
    if code == errno.ENOSYS:
        return _fails("the kernel has no io_uring, or a seccomp filter hides it")
    if code in (errno.EPERM, errno.EACCES):
        with contextlib.suppress(OSError, ValueError):
            level = int(Path("/proc/sys/kernel/io_uring_disabled").read_text())
            if level > 0:
                return _fails(f"forbidden by the sysctl kernel.io_uring_disabled = {level}")
        return _fails("forbidden, as by the seccomp filter of a container")
    return _fails(os.strerror(code))


def _pidfd() -> dict[str, Any]:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return _failed(error)
    return _works()


def _memfd() -> dict[str, Any]:
    try:
        os.close(os.memfd_create("plait-doctor"))
    except OSError as error:
        return _failed(error)
    return _works()


def _futex() -> dict[str, Any]:
    number = _SYS_FUTEX.get(platform.machine())
    if number is None:
        return _fails(f"not probed: unknown system call number on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_uint32(0)
    woken = libc.syscall(
        ctypes.c_long(number), ctypes.byref(word), ctypes.c_int(_FUTEX_WAKE), ctypes.c_int(1)
    )
    return _works() if woken == 0 else _fails(os.strerror(ctypes.get_errno()))


def _backend(uring: dict[str, Any]) -> dict[str, str]:
    """Which poller a loop gets, and why not the other one: one is made to see."""
    from .._loop import Loop

    wanted = os.environ.get("PLAIT_BACKEND") or "auto"
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would tell of a refusal, which is told here
    try:
        loop = Loop(busy_poll=0)
    except ValueError as error:
        return {"name": "none", "reason": f"of an error: {error}"}
    finally:
        logger.setLevel(level)
    name = loop.backend
    loop.close()
    if name == wanted:
        reason = f"PLAIT_BACKEND={wanted}"
    elif wanted == "uring":
        why = "of features that this kernel lacks" if uring["works"] else uring["reason"]
        reason = f"io_uring, which PLAIT_BACKEND={wanted} asks for, is refused: {why}"
    elif uring["works"]:
        reason = "io_uring works but is not faster for sockets; PLAIT_BACKEND=uring takes it"
    else:
        reason = f"io_uring: {uring['reason']}"
    return {"name": name, "reason": reason}


def _busy_poll() -> dict[str, Any]:
    """For how long a loop looks for events before it sleeps, and why."""
    try:
        seconds, reason = _busy.limit()
    except ValueError as error:
        return {"seconds": None, "reason": f"of an error: {error}"}
    return {"seconds": seconds, "reason": reason}


def _files(build: dict[str, Any], uring: dict[str, Any]) -> dict[str, str]:
    """What runs the operations of plait.open_file, and why not the other engine."""
    wanted = os.environ.get("PLAIT_FILES")
    if wanted:
        return {"name": wanted, "reason": f"PLAIT_FILES={wanted}"}
    if not build.get("io_uring"):
        reason = "plait was built without the kernel's header for io_uring"
    elif not uring["works"]:
        reason = f"io_uring: {uring['reason']}"
    else:
        return {"name": "io_uring", "reason": "the kernel allows it"}
    return {"name": "threads", "reason": reason}


def _quota() -> dict[str, Any] | None:
    """The tightest limit on processor time of the control groups that we are in.

    Returns:
        Processors' worth of time and the file that says so, or None without a limit.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    tightest: dict[str, Any] | None = None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root = Path("/sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            root = Path("/sys/fs/cgroup/cpu")
        else:
            continue
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            found = _quota_in(place)
            if found and (tightest is None or found["cpus"] < tightest["cpus"]):
                tightest = found
    return tightest


def _quota_in(place: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (place / "cpu.max").read_text().split()
        if quota != "max":
            return {"cpus": int(quota) / int(period), "from": str(place / "cpu.max")}
    with contextlib.suppress(OSError, ValueError):
        old_quota = int((place / "cpu.cfs_quota_us").read_text())
        old_period = int((place / "cpu.cfs_period_us").read_text())
        if old_quota > 0:
            return {"cpus": old_quota / old_period, "from": str(place / "cpu.cfs_quota_us")}
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _coverage() -> dict[str, str]:
    """Which parts of the loop run in C, and which are not there yet, as the loop says."""
    from .. import _loop

    coverage = getattr(_loop, "coverage", None)
    return dict(coverage()) if coverage is not None else {}


def _told_busy_poll(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return f"none, because {found['reason']}"
    if found["seconds"] == 0:
        return f"off, because {found['reason']}"
    return f"up to {found['seconds'] * 1e6:g} us where it pays, because {found['reason']}"


def _text(found: dict[str, Any]) -> str:
    python, kernel, cpu = found["python"], found["kernel"], found["cpu"]
    backend, files, build = found["backend"], found["files"], found["build"]
    gil = "with the GIL" if python["gil"] else "without the GIL"
    rows: list[tuple[str, str]] = [
        ("plait", f"{found['plait']} (compiler {build['compiler']})"),
        (
            "python",
            f"{python['implementation']} {python['version']} {gil}, "
            f"switch interval {python['switch_interval_s'] * 1000:g} ms",
        ),
        ("kernel", f"Linux {kernel['release']} {kernel['machine']}"),
        ("sockets", f"{backend['name']}, because {backend['reason']}"),
        ("busy polling", _told_busy_poll(found["busy_poll"])),
        ("files", f"{files['name']}, because {files['reason']}"),
    ]
    for name in ("epoll", "io_uring", "pidfd", "memfd", "futex"):
        probe = kernel[name]
        verdict = "works" if probe["works"] else "does not work"
        rows.append((f"  {name}", f"{verdict}: {probe['reason']}" if probe["reason"] else verdict))
    quota = cpu["cgroup_quota"]
    usable = ", ".join(map(str, cpu["usable"]))
    rows += [
        ("processors", f"{cpu['count']}, of which this process may use {len(cpu['usable'])}"),
        ("  numbers", usable),
        (
            "  cgroup quota",
            f"{quota['cpus']:g} processors ({quota['from']})" if quota else "none",
        ),
        ("workers start by", f"{found['pool']['name']}, {found['pool']['reason']}"),
        ("  multiprocessing", f"{found['multiprocessing_start_method']}; plait does not use it"),
    ]
    for extra, parts in found["extras"].items():
        missing = [name for name, version in parts.items() if version is None]
        state = ", ".join(f"{name} {version}" for name, version in parts.items() if version)
        if missing:
            lack = f"{', '.join(missing)} missing: pip install 'plait[{extra}]'"
            state = f"{state}; {lack}" if state else lack
        rows.append((f"plait[{extra}]", state))
    if found["loop"]:
        rows.append(("loop", ""))
        rows += [(f"  {name}", text) for name, text in found["loop"].items()]
    else:
        rows.append(("loop", "this build does not tell what its loop covers"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}".rstrip() for name, text in rows)
