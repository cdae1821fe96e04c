"""Signals: Ctrl+C out of every place where a loop can be, and handlers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import plait

PRELUDE = """
import asyncio, os, signal, sys, threading, time
import plait

def ready():
    print("ready", flush=True)
"""


def interrupt(code: str, *signals: int) -> tuple[int, str, str]:
    """Run a program, send it the signals when it says "ready", and wait for its end."""
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        for number in signals:
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
        out, err = child.communicate(timeout=100)
    finally:
        child.kill()
        child.wait()
    return child.returncode, out, err


pytestmark = pytest.mark.isolated


def test_ctrl_c_of_a_program_cancels_its_main_task() -> None:
    code, out, err = interrupt(
        """
        async def main():
            ready()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise
        try:
            plait.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        signal.SIGINT,
    )
    assert (code, out, err) == (0, "cancelled\ninterrupted\n", "")


def test_a_second_ctrl_c_does_not_wait() -> None:
    code, out, _ = interrupt(
        """
        async def main():
            ready()
            try:
                await asyncio.Event().wait()
            finally:
                ready()
                await asyncio.Event().wait()
        try:
            plait.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        signal.SIGINT,
        signal.SIGINT,
    )
    assert (code, out) == (0, "interrupted\n")


@pytest.mark.parametrize("where", ["poller", "timer", "callbacks", "computing"])
def test_ctrl_c_out_of_run_forever(where: str) -> None:
    code, out, err = interrupt(
        f"""
        where = {where!r}
        loop = plait.new_event_loop()
        def again():
            loop.call_soon(again)
        def compute():
            ready()
            while True:
                pass
        if where == "timer":
            loop.call_later(60, print)
        if where == "callbacks":
            loop.call_soon(again)
        loop.call_soon(compute if where == "computing" else ready)
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted", loop.is_running())
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        """,
        signal.SIGINT,
    )
    assert (code, out, err) == (0, "interrupted False\n", "")


def test_ctrl_c_that_another_thread_takes() -> None:
    """The kernel may give a signal to any thread: the loop must still wake."""
    code, out, err = interrupt(
        """
        loop = plait.new_event_loop()
        stopped = threading.Event()
        def take():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            loop.call_soon_threadsafe(ready)
            stopped.wait()
        thread = threading.Thread(target=take)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        thread.start()
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        stopped.set()
        thread.join()
        loop.close()
        """,
        signal.SIGINT,
    )
    assert (code, out, err) == (0, "interrupted\n", "")


def test_a_program_dies_of_the_signal_as_others_do() -> None:
    code, _, err = interrupt(
        """
        async def main():
            ready()
            await asyncio.Event().wait()
        plait.run(main())
        """,
        signal.SIGINT,
    )
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def kill_from_a_thread(number: int) -> threading.Event:
    """Let another thread send this process a signal, once the event is set."""
    go = threading.Event()

    def send() -> None:
        if go.wait(100):
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    return go


def test_handlers_run_in_the_loop(loop: plait.Loop) -> None:
    got: list[tuple[object, ...]] = []

    def note(*args: object) -> None:
        got.append((*args, threading.current_thread() is threading.main_thread()))
        go.set()
        if len(got) == 2:
            loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, note, "one")
    loop.add_signal_handler(signal.SIGUSR2, note, "two", 2)
    loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    go = kill_from_a_thread(signal.SIGUSR2)
    loop.run_forever()
    assert got == [("one", True), ("two", 2, True)]
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert not loop.remove_signal_handler(signal.SIGUSR1)
    assert loop.remove_signal_handler(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_run_leaves_the_wakeup_descriptor_as_it_was(loop: plait.Loop) -> None:
    async def nothing() -> None:
        pass

    ours, theirs = os.pipe2(os.O_NONBLOCK)
    try:
        for mine in (-1, theirs):
            before = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
            loop.run_until_complete(nothing())
            assert signal.set_wakeup_fd(before) == mine
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_a_python_signal_handler_raises_leaves_the_loop(loop: plait.Loop) -> None:
    def handler(_number: int, _frame: object) -> None:
        raise LookupError("from the handler")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        go = kill_from_a_thread(signal.SIGUSR1)
        loop.call_soon(go.set)
        with pytest.raises(LookupError, match="from the handler"):
            loop.run_forever()
    finally:
        signal.signal(signal.SIGUSR1, before)
    loop.run_until_complete(asyncio.sleep(0))


def test_what_a_python_signal_handler_posts_is_run(loop: plait.Loop) -> None:
    def handler(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(loop.stop)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for _ in range(50):
            go = kill_from_a_thread(signal.SIGUSR1)
            loop.call_soon(go.set)
            loop.run_forever()
    finally:
        signal.signal(signal.SIGUSR1, before)
