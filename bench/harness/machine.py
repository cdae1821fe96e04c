"""Facts about the machine, cores for server and client, and child processes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def facts() -> dict[str, object]:
    """Describe the machine, as far as it matters for the figures."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": sorted(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_compiler": platform.python_compiler(),
        "load_before": os.getloadavg()[0],
    }


def cores() -> tuple[int | None, int | None]:
    """Choose a core for the server and one for the client; None, None on a single core."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


def limits_dir() -> Path:
    """Find the built echo programs.

    Raises:
        FileNotFoundError: they have not been built.
    """
    named = os.environ.get("PLAIT_BENCH_BIN")
    root = Path(__file__).resolve().parents[2]
    places = [Path(named)] if named else [p.parent for p in root.glob("build/*/bench/echo_load")]
    for place in places:
        if (place / "echo_load").exists() and (place / "echo_server").exists():
            return place
    raise FileNotFoundError("echo_load and echo_server are not built: run `make build`")


def python(*args: str) -> list[str]:
    """Make the command that runs a module of the harness."""
    return [sys.executable, "-m", *args]


def popen(command: Sequence[str], core: int | None) -> subprocess.Popen[str]:
    """Start a child on a core (anywhere when None), with its output in a pipe."""
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=env
    )


@contextmanager
def server(command: Sequence[str], core: int | None) -> Iterator[tuple[int, int]]:
    """Run a server for the length of a block; gives its pid and port."""
    with popen(command, core) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            match = re.search(r":(\d+)\s*$", line)
            if not match:
                raise RuntimeError(f"{' '.join(command)} did not say its port but {line!r}")
            yield child.pid, int(match.group(1))
            if child.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
        finally:
            child.kill()


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Read the user and system time of a process and its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def resident_bytes(pid: int) -> int:
    """Read the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
