"""What several files of tests do to a history past its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.history import address, tables
from orchestrator.history.store import Store

FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
"""Where a script that a test starts finds this module, and those that all tests share."""


def execute(url: str, *statements: str) -> list[Any]:
    """What the last statement gives; past all of our own code, but for the choice of the driver."""
    engine = sa.create_engine(address.chosen(url))
    try:
        with engine.begin() as connection:
            for statement in statements:
                done = connection.exec_driver_sql(statement)
            return [tuple(row) for row in done] if done.returns_rows else []
    finally:
        engine.dispose()


def left_by_a_killed_run(file: Path) -> None:
    """Moves all that was written last into the journal, where only somebody who reads it finds it."""
    whole = file.read_bytes()
    with Store(f"sqlite:///{file}") as store:
        store.begin("killed")
        journal = file.with_name(f"{file.name}-wal").read_bytes()
    file.write_bytes(whole)
    file.with_name(f"{file.name}-wal").write_bytes(journal)


def unindexed(store: Store) -> list[tuple[str, str]]:
    """Columns that refer to another table, and that no index begins with."""
    inspector, found = sa.inspect(store.engine), []
    for table in tables.all_tables:
        first = {index["column_names"][0] for index in inspector.get_indexes(table)}
        first |= {constraint["column_names"][0] for constraint in inspector.get_unique_constraints(table)}
        first |= {*inspector.get_pk_constraint(table)["constrained_columns"][:1]}
        keys = [key["constrained_columns"][0] for key in inspector.get_foreign_keys(table)]
        found += [(table, column) for column in keys if column not in first]
    return found
