"""Programs that use a pool from their main module; the argument says which."""

import os
import sys

import plait


def double(x):
    return x * 2


class Point:
    def __init__(self, x):
        self.x = x

    def moved(self):
        return Point(self.x + 1)


def move(point):
    return point.moved()


if __name__ == "__main__":
    case = sys.argv[1]
    if case == "main":
        with plait.ProcessPool(2) as pool:
            assert pool.submit(double, 21).result(100) == 42
            assert pool.submit(move, Point(1)).result(100).x == 2
            assert list(pool.map(double, range(10), chunksize=3)) == list(range(0, 20, 2))
    elif case == "exit":
        # Interpreter exit ends a pool that nobody shut down, after its work.
        pool = plait.ProcessPool(1)
        pool.submit(double, 1).result(100)
        pool.submit(os.getpid)
    elif case == "unjoined":
        pool = plait.ProcessPool(1)
        future = pool.submit(double, 1)
        future.add_done_callback(lambda f: None)
        pool.shutdown(wait=False)
    print(case, "ok")
elif __name__ == "__mp_main__":
    pass
else:
    raise RuntimeError(f"imported as {__name__}")
