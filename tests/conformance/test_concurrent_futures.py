"""CPython's own tests of concurrent.futures, on plait's pools."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("test.test_concurrent_futures") is None:
    pytest.skip("this Python comes without its test package", allow_module_level=True)

from futures_suite import adopt

adopt(globals())
