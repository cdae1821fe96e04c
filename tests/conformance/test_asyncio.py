"""CPython's own tests of asyncio, on plait's loop."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("test.test_asyncio") is None:
    pytest.skip("this Python comes without its test package", allow_module_level=True)

from suite import adopt, modules

for _name in modules():
    adopt(_name, globals())
