"""What the tables' readers and writers share: rows as structs, and rows that are kept once."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from orchestrator.history.tables import carried, snapshots

__all__ = ["carried_items", "first", "insert", "snapshot_id", "struct"]

T = TypeVar("T", bound=msgspec.Struct)

_SNAPSHOT = sa.select(snapshots.c.id).where(snapshots.c.digest == sa.bindparam("digest"))


def insert(connection: sa.Connection, table: sa.Table, **values: object) -> int:
    """Adds a row; gives its key."""
    key = connection.execute(table.insert(), values).inserted_primary_key
    assert key  # every table that comes here has an integer key
    return int(key[0])


def first(connection: sa.Connection, query: sa.Select[Any], **parameters: str) -> sa.RowMapping | None:
    """The first row that the query finds."""
    return connection.execute(query, parameters).mappings().first()


def struct(kind: type[T], row: sa.RowMapping, **more: object) -> T:
    """The columns that the struct has; keys of a row may be of a subclass of str, which msgspec does not take."""
    return msgspec.convert({str(key): value for key, value in row.items()} | more, kind)


def snapshot_id(connection: sa.Connection, items: Mapping[str, str]) -> int:
    """The one of equal content, or a new one."""
    document = msgspec.json.encode(items, order="deterministic")
    digest = hashlib.sha256(document).hexdigest()
    found = connection.execute(_SNAPSHOT, {"digest": digest}).scalar()
    return int(found) if found else insert(connection, snapshots, digest=digest, document=zlib.compress(document))


def carried_items(connection: sa.Connection, result_id: int) -> dict[str, str | None]:
    """What a provision left as it had found it: item -> what is expected of it all the same."""
    rows = connection.execute(sa.select(carried.c.item, carried.c.expected).where(carried.c.result_id == result_id))
    return {str(row.item): row.expected for row in rows}
