"""Forks while a thread pool is at work, and from within a task."""

import os
import threading
import warnings

import plait

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: that is the point


def attempt(text, call):
    try:
        print(f"{text}: {call()}", flush=True)
    except RuntimeError as error:
        print(f"{text}: {error}", flush=True)


def code_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_in_task():
    pid = os.fork()
    if pid == 0:
        return 3  # the thread, which is all that there is of the child, ends
    return code_of(pid)


gate = threading.Event()
begun = threading.Event()
pool = plait.ThreadPool(2, max_pending=3)


def work():
    begun.set()
    gate.wait()
    return 16


running = pool.options(timeout=60).submit(work)
begun.wait()
pid = os.fork()
if pid == 0:
    attempt("submit", lambda: pool.submit(int))
    attempt("result", running.result)
    attempt("cancel", running.cancel)
    with plait.ThreadPool(1) as mine:
        attempt("new pool", mine.submit(pow, 2, 3).result)
    pool.shutdown()
    print("shutdown", flush=True)
    os._exit(0)
print("child:", code_of(pid), flush=True)
print("child of a task:", pool.submit(fork_in_task).result(), flush=True)
gate.set()
print("parent:", running.result(), flush=True)
pool.shutdown()
