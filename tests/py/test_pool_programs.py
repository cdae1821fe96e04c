"""Whole programs around a process pool: Ctrl+C, and the ways a main module is run."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess
import sys
import textwrap

import pytest
from until import until

import plait

TIMEOUT = 100.0
TASKS = pathlib.Path(__file__).parent

LONG = """
import sys
sys.path.insert(0, {tasks!r})
import plait, pool_tasks as tasks

def main():
    {body}

def begin(pool, fn, *args):
    files = [sys.argv[1] + "/" + str(i) for i in range(2)]
    futures = [pool.submit(fn, f) for f in files]
    return futures

if __name__ == "__main__":
    main()
"""

WAYS = {
    "result-in-with": """
        with plait.ProcessPool(2) as pool:
            begin(pool, tasks.sleep_long)[0].result()""",
    "result-without-with": """
        pool = plait.ProcessPool(2)
        begin(pool, tasks.sleep_long)[0].result()""",
    "map": """
        with plait.ProcessPool(2) as pool:
            list(pool.map(tasks.sleep_long, [sys.argv[1] + "/" + str(i) for i in range(2)]))""",
    "shutdown": """
        pool = plait.ProcessPool(2)
        begin(pool, tasks.sleep_long)
        pool.shutdown()""",
    "end-of-script": """
        begin(plait.ProcessPool(2), tasks.sleep_long)""",
    "hanging-in-c": """
        with plait.ProcessPool(2) as pool:
            begin(pool, tasks.hang_in_c)[0].result()""",
    "ignoring-everything": """
        with plait.ProcessPool(2) as pool:
            begin(pool, tasks.ignore_stop)[0].result()""",
    "queue-behind": """
        with plait.ProcessPool(2) as pool:
            first = begin(pool, tasks.sleep_long)
            more = [pool.submit(tasks.plus_one, i) for i in range(5000)]
            more[-1].result()""",
}


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_long_tasks(way: str, tmp_path: pathlib.Path) -> None:
    """Tasks of a thousand seconds are no reason to wait, and no process stays behind."""
    script = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(WAYS[way]).strip(), "    ").strip()
    script.write_text(LONG.format(tasks=str(TASKS), body=body))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    fds = []
    try:
        for i in range(2):
            here = tmp_path / str(i)
            until(lambda here=here: here.exists() or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            fds.append(os.pidfd_open(int(here.read_text())))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert "KeyboardInterrupt" in errors
        for fd in fds:
            assert select.select([fd], [], [], TIMEOUT)[0], "a worker outlived Ctrl+C"
    finally:
        for fd in fds:
            os.close(fd)
        process.kill()
        process.communicate()


MAIN = """
import plait

class Box:
    def __init__(self, value):
        self.value = value

def double(box):
    return Box(2 * box.value)

if __name__ == "__main__":
    with plait.ProcessPool(2) as pool:
        print([b.value for b in pool.map(double, [Box(i) for i in range(3)])])
"""


@pytest.mark.parametrize("how", ["-c", "-"])
def test_scripts_that_are_no_file(how: str) -> None:
    """What a worker could import works; what only lies in such a script needs cloudpickle."""
    code = MAIN.replace("Box(2 * box.value)", "2 * box").replace("Box(i)", "i")
    code = code.replace("b.value for b", "b for b")
    args = ["-c", code] if how == "-c" else ["-"]
    done = subprocess.run(
        [sys.executable, *args],
        input=None if how == "-c" else code,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if plait._sending.find_cloudpickle() is None:
        assert "when cloudpickle is installed" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("[0, 2, 4]\n", "")
    named = code.replace("pool.map(double", "pool.map(abs").replace("[0, 2, 4]", "[0, 1, 2]")
    args = ["-c", named] if how == "-c" else ["-"]
    done = subprocess.run(
        [sys.executable, *args],
        input=None if how == "-c" else named,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")


sys.path.insert(0, str(TASKS.parent / "isolated"))
import ctrl_c  # noqa: E402

BOUND = 60.0  # seconds; on an idle machine all is over in a third of one


@pytest.mark.slow
@pytest.mark.isolated
@pytest.mark.parametrize(
    "case", ["idle, reading", "ignoring every exception", "5000 tasks behind", "pytest hang_in_c"]
)
def test_ctrl_c_in_a_shell(case: str) -> None:
    """The key itself, at a terminal, with a shell's job control; the time is printed."""
    pool, program = ctrl_c.measure(case)
    print(f"{case}: the pool had ended after {pool:.3f} s, the program after {program:.3f} s")
    if not case.startswith("pytest"):  # which has its own to do before and after
        assert program < BOUND


def test_no_interrupt_is_lost() -> None:
    """One that arrives in the pool's own code, where it cannot be raised, comes once more."""
    script = (
        "import plait, signal\n"
        "with plait.ProcessPool(1) as pool:\n"
        "    pool._start_helper = lambda: signal.raise_signal(signal.SIGINT)\n"
        "    try:\n"
        "        pool.submit(abs, -1)\n"
        "        for _ in range(1000): pass\n"
        "    except KeyboardInterrupt:\n"
        "        print('raised')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (done.stdout, done.stderr) == ("raised\n", "")
