"""Runs what cannot be stopped, and waits, to be interrupted."""

import sys
import threading

import plait

lock = threading.Lock()
lock.acquire()


def work():
    print("running", flush=True)
    lock.acquire()


def main(pool):
    future = pool.submit(work)
    pool.submit(print, "never")
    future.result()


if sys.argv[1] == "with":
    with plait.ThreadPool(1) as pool:
        main(pool)
else:
    main(plait.ThreadPool(1))
