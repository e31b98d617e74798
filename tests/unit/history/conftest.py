"""A history of a test's own, in either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest

from orchestrator.history.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, file: Path) -> str:
    if request.param == "sqlite":
        file.parent.mkdir(mode=0o700)
        return f"sqlite:///{file}"
    return postgresql.new_database(request.getfixturevalue("server"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as opened:
        yield opened
