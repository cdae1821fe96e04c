"""CPython's own tests of asyncio, on plait's loop."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("test.test_asyncio") is None:
    pytest.skip("this Python comes without its test package", allow_module_level=True)

from suite import adopt

MODULES = (
    "test_base_events",
    "test_buffered_proto",
    "test_context",
    "test_eager_task_factory",
    "test_events",
    "test_free_threading",
    "test_futures",
    "test_futures2",
    "test_graph",
    "test_locks",
    "test_pep492",
    "test_queues",
    "test_runners",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_staggered",
    "test_streams",
    "test_subprocess",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_tools",
    "test_transports",
    "test_unix_events",
    "test_waitfor",
)

for _name in MODULES:
    adopt(_name, globals())
