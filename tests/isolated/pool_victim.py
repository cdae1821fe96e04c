"""Prints the pids of its pool's processes and works until it is killed."""

import os
import signal

import plait


def spin():
    while True:
        pass


if __name__ == "__main__":
    pool = plait.ProcessPool(2)
    futures = [pool.submit(spin) for _ in range(2)]
    while not all(f.running() for f in futures):
        pool._on_control()
    while not all(worker.pid for worker in pool._seats.values()):
        pool._on_control()
    pids = [worker.pid for worker in pool._seats.values()] + [pool._zygote]
    # A child of the user's holds copies of every descriptor; it must not keep the pool alive.
    if os.fork() == 0:
        os.close(1)
        os.read(0, 1)  # until the test closes it
        os._exit(0)
    print(*pids, flush=True)
    signal.pause()
