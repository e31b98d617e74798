"""Connections to PostgreSQL on which a server that says nothing any more is given up.

What IMPATIENT asks of TCP does not notice one that is stopped, or whose disk hangs: its kernel answers for it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

__all__ = ["LIMIT_S", "Connection"]

LIMIT_S = 60.0
"""Longer than any statement takes, but for those that have no limit: upgrades of tables and VACUUM."""

T = TypeVar("T")


class Connection(psycopg.Connection[Any]):
    """One that lasts until a statement got no answer in `limit_s`."""

    limit_s = LIMIT_S

    def wait(self, gen: Generator[Any, Any, T], *how: Any, **more: Any) -> T:
        return super().wait(self._limited(gen), *how, **more)

    def _limited(self, steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The steps in which psycopg talks with the server; it looks several times a second whether it is told more."""
        heard_s = time.monotonic()
        try:
            wanted = next(steps)
            while True:
                if ready := (yield wanted):
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > self.limit_s:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {self.limit_s:g} s")
                wanted = steps.send(ready)
        except StopIteration as e:
            given: T = e.value
            return given
