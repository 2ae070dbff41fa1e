"""What rules find is measured on networks after some steps of training: every test here holds such an outcome."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.trains)
