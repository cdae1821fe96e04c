"""Ends while a task of a thread pool runs: "wait" or "daemon"."""

import sys
import threading

import plait

begun, go = threading.Event(), threading.Event()


def work():
    print("begun", flush=True)
    begun.set()
    go.wait()
    print("ended", flush=True)


pool = plait.ThreadPool(1, daemon=sys.argv[1] == "daemon")
pool.submit(work)
if sys.argv[1] == "daemon":
    pool.submit(print, "never")
begun.wait()
if sys.argv[1] == "wait":
    threading._register_atexit(go.set)  # before the pool waits for its threads
