"""Presses Ctrl+C in a shell's terminal, and measures how long everything takes to end.

    python tests/isolated/ctrl_c.py [--rounds N] [CASE ...]

prints, for each case, the median of the milliseconds from the key to the end of the last process
of the pool, the same with the program itself, and the worst of these. A round is a program of its
own, the foreground job of an interactive shell on a terminal of its own. pytest reports where it
was before it ends its fixtures; what that takes shows "pytest without a pool".
"""

from __future__ import annotations

import argparse
import os
import pathlib
import pty
import select
import statistics
import sys
import tempfile
import time
import warnings

HERE = pathlib.Path(__file__).resolve()
TASKS = HERE.parent.parent / "py"
TIMEOUT = 60.0

# What the program does once its tasks run. `begin(fn)` returns futures of two tasks that run.
CASES = {
    "idle": "begin(None); threading.Event().wait()",
    "idle, reading": "begin(None); input()",
    "busy in Python": "begin(tasks.spin_long)[0].result()",
    "sleeping in C": "begin(tasks.sleep_long)[0].result()",
    "computing in C": "begin(tasks.hang_in_c)[0].result()",
    "ignoring every exception": "begin(tasks.ignore_stop)[0].result()",
    "5000 tasks behind": "begin(tasks.sleep_long); list(pool.map(abs, range(5000)))",
    "at the end of the with": "begin(tasks.hang_in_c)",
    "awaited on a loop": "plait.run(wait(begin(tasks.hang_in_c)))",
    "awaited by other threads": "in_threads(begin(tasks.hang_in_c))",
}

VICTIM = """
import os, sys, threading, time
sys.path.insert(0, {tasks!r})
import plait
import pool_tasks as tasks

def begin(fn):
    files = [{folder!r} + "/" + str(i) for i in range(2)]
    futures = [pool.submit(fn or tasks.announce, name) for name in files]
    while not all(map(os.path.exists, files)):
        os.sched_yield()
    pids = {{worker.pid for worker in pool.statistics().workers}}
    with open({folder!r} + "/new", "w") as file:
        print(os.getpid(), pool._zygote, *pids, file=file)
    os.rename({folder!r} + "/new", {folder!r} + "/pids")
    return futures

async def wait(futures):
    for future in futures:
        await future

def in_threads(futures):
    threads = [threading.Thread(target=f.exception) for f in futures]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

if __name__ == "__main__":
    with plait.ProcessPool(2, start_method={method!r}) as pool:
        {body}
"""

TESTED = """
import os, sys
import pytest
exec(compile(open({victim!r}).read().split("if __name__")[0], {victim!r}, "exec"))

@pytest.fixture
def the_pool():
    global pool
    pool = plait.ProcessPool(2)
    yield pool
    pool.shutdown()

def test_long(the_pool):
    begin(tasks.{task})[0].result()
"""


PLAIN = """
import os, signal
def test_long():
    with open({folder!r} + "/new", "w") as file:
        print(os.getpid(), file=file)
    os.rename({folder!r} + "/new", {folder!r} + "/pids")
    signal.pause()
"""


def press(words: list[str], folder: pathlib.Path) -> tuple[float, float]:
    """Run a program in a shell and interrupt it.

    Returns:
        tuple: seconds until all other processes of its pool have ended, and all with it.

    Raises:
        AssertionError: one of them has not within a minute.
    """
    with warnings.catch_warnings():  # the child executes another program at once
        warnings.simplefilter("ignore", DeprecationWarning)
        pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "$ "
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    fds: list[int] = []
    told = b""
    try:
        line = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
        os.write(terminal, line.encode() + b"\n")
        end = time.monotonic() + TIMEOUT
        while not (folder / "pids").exists():
            if select.select([terminal], [], [], 0.01)[0]:
                told += os.read(terminal, 65536)
            assert time.monotonic() < end, told.decode(errors="replace")
        fds = [os.pidfd_open(int(word)) for word in (folder / "pids").read_text().split()]
        begin = time.monotonic()
        os.write(terminal, b"\x03")
        left = set(fds)
        others = 0.0
        while left:
            ready = select.select([*left, terminal], [], [], TIMEOUT)[0]
            assert ready, f"{len(left)} processes outlive Ctrl+C: {told.decode(errors='replace')}"
            left -= set(ready)
            if not others and left <= {fds[0]}:
                others = time.monotonic() - begin
            if terminal in ready:
                told += os.read(terminal, 65536)
        return others, time.monotonic() - begin
    finally:
        for fd in fds:
            os.close(fd)
        os.close(terminal)  # the shell gets SIGHUP
        os.waitpid(pid, 0)


def measure(case: str, method: str | None = None) -> tuple[float, float]:
    """One round of a case; "pytest" and the name of a task is a test that is interrupted."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        victim = folder / "victim.py"
        body = CASES.get(case, "pass")
        victim.write_text(VICTIM.format(tasks=str(TASKS), folder=name, method=method, body=body))
        if case in CASES:
            return press([sys.executable, str(victim)], folder)
        test = folder / "test_long.py"
        if case == "pytest without a pool":
            test.write_text(PLAIN.format(folder=name))
        else:
            test.write_text(TESTED.format(victim=str(victim), task=case.split()[1]))
        options = ["-q", "--noconftest", "-c", os.devnull, "--rootdir", name]
        return press([sys.executable, "-m", "pytest", *options, str(test)], folder)


ALL = [*CASES, "pytest sleep_long", "pytest hang_in_c", "pytest ignore_stop"]
ALL.append("pytest without a pool")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--method", metavar="START_METHOD")
    parser.add_argument("cases", nargs="*", default=ALL, metavar="CASE")
    options = parser.parse_args()
    for case in options.cases:
        times = [measure(case, options.method) for _ in range(options.rounds)]
        pool, program = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        worst = max(max(pair) for pair in times) * 1e3
        print(
            f"{case:26} pool {pool:6.0f} ms, all {program:6.0f} ms, worst {worst:.0f}", flush=True
        )


if __name__ == "__main__":
    main()
