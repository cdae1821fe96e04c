"""The computation that every model serves."""

from __future__ import annotations

__all__ = ["fib"]


def fib(n: int) -> int:
    """Compute a Fibonacci number the slow way, so that its cost is real.

    Args:
        n: Which one; fib(1) and fib(2) are 1. The number of calls grows with the
            result itself: fib(30) makes 1.7 million.

    Returns:
        The n-th Fibonacci number.
    """
    return 1 if n <= 2 else fib(n - 1) + fib(n - 2)
