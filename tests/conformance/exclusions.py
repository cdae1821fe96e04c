"""What of CPython's asyncio tests does not run on plait, and why.

A pattern names a class, or a test: "module.Class" or "module.Class.test".
"""

from __future__ import annotations

_SAME = "the same tests with another of the selectors module's classes, which plait has not"
_MOCK_LOOP = "asyncio's pipe transport against a mock loop; test_events has the real one"
_WINDOWS = "Windows only"

EXCLUSIONS: dict[str, str] = {
    "*.PollEventLoopTests": _SAME,
    "*.SelectEventLoopTests": _SAME,
    "*.KqueueEventLoopTests": _SAME,
    "*.Proactor*": _WINDOWS,
    "test_unix_events.UnixReadPipeTransportTests": _MOCK_LOOP,
    "test_unix_events.UnixWritePipeTransportTests": _MOCK_LOOP,
}
