"""Servers that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import postgresql
import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server; `postgresql.new_database` makes room on it."""
    if not postgresql.SERVER:
        pytest.skip("postgresql is not installed")
    with postgresql.server() as url:
        yield url
