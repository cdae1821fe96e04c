"""Ends while a task of a thread pool runs: "wait" or "daemon"."""

import sys
import threading
import time

import plait

begun = threading.Event()


def work():
    print("begun", flush=True)
    begun.set()
    time.sleep(0.3 if sys.argv[1] == "wait" else 600)
    print("ended", flush=True)


pool = plait.ThreadPool(1, daemon=sys.argv[1] == "daemon")
pool.submit(work)
if sys.argv[1] == "daemon":
    pool.submit(print, "never")
begun.wait()
