"""Whether the tests run under AddressSanitizer, which keeps what is freed and maps terabytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

needs_plain_memory = pytest.mark.skipif(
    SANITIZED, reason="no limit on address space leaves room for the sanitizer's own"
)


@contextlib.contextmanager
def lost_on_purpose() -> Iterator[None]:
    """What this thread allocates inside is no leak: the package's documents say it is not freed."""
    if not SANITIZED:
        yield
        return
    runtime = ctypes.CDLL(None)
    runtime.__lsan_disable()
    try:
        yield
    finally:
        runtime.__lsan_enable()
