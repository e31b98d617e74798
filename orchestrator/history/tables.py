"""Tables of the history, and how older ones become them; database.py opens the database, store.py is the door."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from orchestrator.errors import StoreError

__all__ = [
    "SCHEMA",
    "acceptances",
    "all_tables",
    "baselines",
    "bring_up_to_date",
    "carried",
    "destinations",
    "drifts",
    "evidence",
    "findings",
    "is_up_to_date",
    "notices",
    "results",
    "runs",
    "snapshots",
    "version",
    "watches",
]


def _watch(connection: sa.Connection) -> None:
    """2: what drift checks saw, and what was accepted."""
    _tables.create_all(connection, tables=[snapshots, watches, drifts, acceptances])


def _remember(connection: sa.Connection) -> None:
    """3: baselines know their snapshot, and the last acceptance that is older than they are.

    Acceptances were compared with baselines by time before, which two controllers may not agree on. Snapshots are taken
    from the evidence when they are first asked for.
    """
    for column in (
        "snapshot_id INTEGER REFERENCES snapshots (id)",
        "taken_by VARCHAR NOT NULL DEFAULT ''",
        "accepted_id INTEGER NOT NULL DEFAULT 0",
    ):
        connection.exec_driver_sql(f"ALTER TABLE baselines ADD COLUMN {column}")
    older = (
        sa.select(sa.func.max(acceptances.c.id))
        .join(results, results.c.id == baselines.c.result_id)
        .where(acceptances.c.host == baselines.c.host, acceptances.c.accepted_s <= results.c.recorded_at_s)
    )
    older = older.correlate(baselines)
    connection.execute(baselines.update().values(accepted_id=sa.func.coalesce(older.scalar_subquery(), 0)))


def _notify(connection: sa.Connection) -> None:
    """4: who was told what of a host."""
    _tables.create_all(connection, tables=[notices])


def _carry(connection: sa.Connection) -> None:
    """5: what a provision left as it found it, so that it stays drift."""
    _tables.create_all(connection, tables=[carried])


def _use(connection: sa.Connection) -> None:
    """6: when destinations were last told something, or would have been. Of those there are, that is now."""
    _tables.create_all(connection, tables=[destinations])
    known = sa.select(notices.c.destination, sa.literal(time.time(), sa.Double)).distinct()
    connection.execute(destinations.insert().from_select(["id", "used_s"], known))


def _span(connection: sa.Connection) -> None:
    """7: checks in a row that see the same are one row, and what refers to a row is found without reading all rows.

    Rows of before stay as they are, one a check.
    """
    if "checks" not in {column["name"] for column in sa.inspect(connection).get_columns(watches.name)}:  # since 2
        connection.exec_driver_sql("ALTER TABLE watches ADD COLUMN checks INTEGER NOT NULL DEFAULT 1")
    for index in (*results.indexes, *baselines.indexes, *watches.indexes):
        index.create(connection, checkfirst=True)


UPGRADES: tuple[Callable[[sa.Connection], None], ...] = (_watch, _remember, _notify, _carry, _use, _span)
"""The n-th turns schema n+1 into n+2. Tables and columns are only ever added; an older kvmfleet refuses to go on."""

SCHEMA = 1 + len(UPGRADES)

_tables = sa.MetaData()


class _Escaped(sa.types.TypeDecorator[str]):
    """Whatever a host may send. PostgreSQL takes no NUL; there, a SUB and a digit stand for it, and for SUB itself."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value.replace("\x1a", "\x1a1").replace("\0", "\x1a0")

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return value and value.replace("\x1a0", "\0").replace("\x1a1", "\x1a")


Text = sa.String().with_variant(_Escaped(), "postgresql")

schema = sa.Table("schema_version", _tables, sa.Column("version", sa.Integer, nullable=False))

runs = sa.Table(
    "runs",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("command", Text, nullable=False),  # its name; arguments may hold a secret
    sa.Column("user", Text, nullable=False),
    sa.Column("controller", Text, nullable=False),
    sa.Column("process", Text, nullable=False),  # boot, number and start: no other process is ever the same
    sa.Column("kvmfleet", Text, nullable=False),
    sa.Column("started_at_s", sa.Double, nullable=False),
    sa.Column("finished_at_s", sa.Double),
    sa.Column("outcome", Text),
    sa.Column("exit_status", sa.Integer),  # never written: it is known only when the run has ended
)

evidence = sa.Table(
    "evidence",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("document", sa.LargeBinary, nullable=False),  # JSON of model.Evidence, compressed with zlib
)

results = sa.Table(
    "host_results",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("host", Text, nullable=False),
    sa.Column("recorded_at_s", sa.Double, nullable=False),
    sa.Column("verdict", Text, nullable=False),
    sa.Column("cause", Text, nullable=False),  # id of a check
    sa.Column("path", Text, nullable=False),
    sa.Column("problem", Text, nullable=False),
    sa.Column("contract_digest", Text, nullable=False),
    sa.Column("intent_digest", Text, nullable=False),
    sa.Column("evidence_id", sa.ForeignKey("evidence.id")),
    sa.UniqueConstraint("run_id", "host"),
    sa.Index("host_results_by_host", "host", "id"),
    sa.Index("host_results_by_evidence", "evidence_id"),  # who deletes a row asks for all that refers to it
)

findings = sa.Table(
    "findings",
    _tables,
    sa.Column("result_id", sa.ForeignKey("host_results.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("check", Text, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("summary", Text, nullable=False),
    sa.Column("expected", Text, nullable=False),
    sa.Column("seen", Text, nullable=False),
    sa.Column("fix", Text, nullable=False),
    sa.Column("cause", Text, nullable=False),
)

baselines = sa.Table(
    "baselines",
    _tables,
    sa.Column("host", Text, primary_key=True),
    sa.Column("result_id", sa.ForeignKey("host_results.id"), nullable=False),
    # of the evidence of this result, so that it need not be read
    sa.Column("snapshot_id", sa.ForeignKey("snapshots.id")),
    sa.Column("taken_by", Text, nullable=False, default="", server_default=""),  # the snapshot.EDITION that took it
    sa.Column("accepted_id", sa.Integer, nullable=False, default=0, server_default="0"),  # later ones count on top
    sa.Index("baselines_by_result", "result_id"),
    sa.Index("baselines_by_snapshot", "snapshot_id"),
)

carried = sa.Table(  # what a provision left as it found it; of a baseline it is expected as the one before had it
    "carried",
    _tables,
    sa.Column("result_id", sa.ForeignKey("host_results.id"), primary_key=True),
    sa.Column("item", Text, primary_key=True),
    sa.Column("expected", Text),
)

snapshots = sa.Table(
    "snapshots",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", Text, nullable=False, unique=True),  # SHA-256 of the document before it was compressed
    sa.Column("document", sa.LargeBinary, nullable=False),  # JSON of item -> value, compressed with zlib
)

watches = sa.Table(  # of a host, one row for all checks in a row that saw the same
    "watches",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False),  # the last of them
    sa.Column("host", Text, nullable=False),
    sa.Column("seen_s", sa.Double, nullable=False),  # by the last of them
    sa.Column("state", Text, nullable=False),
    sa.Column("since_s", sa.Double, nullable=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("problem", Text, nullable=False),
    sa.Column("snapshot_id", sa.ForeignKey("snapshots.id")),
    sa.Column("checks", sa.Integer, nullable=False, default=1, server_default="1"),  # so many
    sa.UniqueConstraint("run_id", "host"),
    sa.Index("watches_by_host", "host", "id"),
    sa.Index("watches_by_snapshot", "snapshot_id"),
)

drifts = sa.Table(
    "drifts",
    _tables,
    sa.Column("watch_id", sa.ForeignKey("watches.id"), nullable=False),
    sa.Column("item", Text, nullable=False),  # not in a key: PostgreSQL's take 2.7 kB, hosts may say more
    sa.Column("expected", Text),
    sa.Column("seen", Text),
    sa.Column("since_s", sa.Double, nullable=False),
    sa.Index("drifts_by_watch", "watch_id"),
)

acceptances = sa.Table(
    "acceptances",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("host", Text, nullable=False),
    sa.Column("item", Text, nullable=False),
    sa.Column("expected", Text),
    sa.Column("seen", Text),
    sa.Column("author", Text, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("accepted_s", sa.Double, nullable=False),
    sa.Index("acceptances_by_host", "host", "id"),
)

notices = sa.Table(
    "notices",
    _tables,
    sa.Column("destination", sa.String, primary_key=True),  # its Destination.id: the URL itself is a secret
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("items", sa.String, nullable=False),  # JSON of transitions.Notice.items
    sa.Column("delivered", sa.Boolean, nullable=False),
    sa.Column("claimed_s", sa.Double, nullable=False),  # when a run began to send it; 0 when none does
)

destinations = sa.Table(
    "destinations",
    _tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("used_s", sa.Double, nullable=False),  # when a run last looked whether there is something to tell it
)

all_tables = tuple(_tables.tables)
"""Their names."""


def is_up_to_date(connection: sa.Connection) -> bool:
    return _found(connection) == SCHEMA


def bring_up_to_date(connection: sa.Connection, name: str) -> None:
    """Makes the tables, or adds what is new in them; `name` is that of the history, for messages.

    Raises:
        StoreError: a newer kvmfleet wrote it.
    """
    found = version(connection, name)
    if found == 0:
        _tables.create_all(connection)
        connection.execute(schema.insert().values(version=SCHEMA))
    for upgrade in UPGRADES[found - 1 :] if found else ():
        upgrade(connection)
    connection.execute(schema.update().values(version=SCHEMA))


def version(connection: sa.Connection, name: str) -> int:
    """The schema of the tables; 0 for a database without ours. `name` is that of the history, for messages.

    Raises:
        StoreError: a newer kvmfleet wrote it.
    """
    found = _found(connection)
    if found > SCHEMA:
        raise StoreError(
            f"{name}: written by a newer kvmfleet (schema {found}, this one knows {SCHEMA})",
            hint="Upgrade kvmfleet, or name another history with --store.",
        )
    return found


def _found(connection: sa.Connection) -> int:
    if not sa.inspect(connection).has_table(schema.name):
        return 0
    return connection.execute(sa.select(schema.c.version)).scalar() or 0
