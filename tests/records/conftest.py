from pathlib import Path

import pytest

from kit.stored_cells import CONFIG
from normscope.records import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run with 'quotes' and ü"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store.create(folder, CONFIG)
