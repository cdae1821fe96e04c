"""A script without the guard: the worker's import of it must not start pools without end."""

import plait


def double(x):
    return x * 2


pool = plait.ProcessPool(1)
error = pool.submit(double, 2).exception(20)
print(error)
pool.shutdown()
