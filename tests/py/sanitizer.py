"""Whether the tests run under AddressSanitizer, which keeps what is freed and maps terabytes."""

from __future__ import annotations

import os

import pytest

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

needs_plain_memory = pytest.mark.skipif(
    SANITIZED, reason="no limit on address space leaves room for the sanitizer's own"
)
