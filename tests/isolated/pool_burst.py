"""Submits 10,000 tasks and waits for them, to be interrupted."""

import time

import plait


def work(x):
    time.sleep(0.01)
    return x


if __name__ == "__main__":
    with plait.ProcessPool(2) as pool:
        futures = [pool.submit(work, i) for i in range(10_000)]
        futures[0].result()
        pool._on_control()
        print(*[w.pid for w in pool._seats.values() if w.pid], pool._zygote, flush=True)
        for future in futures:
            future.result()
