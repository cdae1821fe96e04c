"""CPython's tests bring their own views on warnings."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings be warnings here: the tests were not written to be free of them."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))
