"""Tables of the history, how to open them, and what their failures mean; store.py is the door to them.

The columns are those of every SQL database; only the opening knows SQLite, which needs no server and no set-up.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.errors import StoreError
from orchestrator.text import printable

__all__ = [
    "SCHEMA",
    "acceptances",
    "baselines",
    "connect",
    "drifts",
    "evidence",
    "explained",
    "findings",
    "notices",
    "reading",
    "results",
    "runs",
    "snapshots",
    "watches",
    "writing",
]


def _watch(connection: sa.Connection) -> None:
    """2: what drift checks saw, and what was accepted."""
    _tables.create_all(connection, tables=[snapshots, watches, drifts, acceptances])


def _notify(connection: sa.Connection) -> None:
    """3: who was told what of a host."""
    _tables.create_all(connection, tables=[notices])


UPGRADES: tuple[Callable[[sa.Connection], None], ...] = (_watch, _notify)
"""The n-th turns schema n+1 into n+2. Tables and columns are only ever added; an older kvmfleet refuses to go on."""

SCHEMA = 1 + len(UPGRADES)
WAIT_S = 15.0  # for another run that is writing; each of its transactions takes milliseconds

_tables = sa.MetaData()

schema = sa.Table("schema_version", _tables, sa.Column("version", sa.Integer, nullable=False))

runs = sa.Table(
    "runs",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("command", sa.String, nullable=False),  # its name; arguments may hold a secret
    sa.Column("user", sa.String, nullable=False),
    sa.Column("controller", sa.String, nullable=False),
    sa.Column("process", sa.String, nullable=False),  # boot, number and start: no other process is ever the same
    sa.Column("kvmfleet", sa.String, nullable=False),
    sa.Column("started_at_s", sa.Double, nullable=False),
    sa.Column("finished_at_s", sa.Double),
    sa.Column("outcome", sa.String),
    sa.Column("exit_status", sa.Integer),
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
    sa.Column("host", sa.String, nullable=False),
    sa.Column("recorded_at_s", sa.Double, nullable=False),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("cause", sa.String, nullable=False),  # id of a check
    sa.Column("path", sa.String, nullable=False),
    sa.Column("problem", sa.String, nullable=False),
    sa.Column("contract_digest", sa.String, nullable=False),
    sa.Column("intent_digest", sa.String, nullable=False),
    sa.Column("evidence_id", sa.ForeignKey("evidence.id")),
    sa.UniqueConstraint("run_id", "host"),
    sa.Index("host_results_by_host", "host", "id"),
)

findings = sa.Table(
    "findings",
    _tables,
    sa.Column("result_id", sa.ForeignKey("host_results.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("check", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("summary", sa.String, nullable=False),
    sa.Column("expected", sa.String, nullable=False),
    sa.Column("seen", sa.String, nullable=False),
    sa.Column("fix", sa.String, nullable=False),
    sa.Column("cause", sa.String, nullable=False),
)

baselines = sa.Table(
    "baselines",
    _tables,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("result_id", sa.ForeignKey("host_results.id"), nullable=False),
)

snapshots = sa.Table(
    "snapshots",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, unique=True),  # SHA-256 of the document before it was compressed
    sa.Column("document", sa.LargeBinary, nullable=False),  # JSON of item -> value, compressed with zlib
)

watches = sa.Table(
    "watches",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("seen_s", sa.Double, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("since_s", sa.Double, nullable=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("problem", sa.String, nullable=False),
    sa.Column("snapshot_id", sa.ForeignKey("snapshots.id")),
    sa.UniqueConstraint("run_id", "host"),
    sa.Index("watches_by_host", "host", "id"),
)

drifts = sa.Table(
    "drifts",
    _tables,
    sa.Column("watch_id", sa.ForeignKey("watches.id"), primary_key=True),
    sa.Column("item", sa.String, primary_key=True),
    sa.Column("expected", sa.String),
    sa.Column("seen", sa.String),
    sa.Column("since_s", sa.Double, nullable=False),
)

acceptances = sa.Table(
    "acceptances",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("item", sa.String, nullable=False),
    sa.Column("expected", sa.String),
    sa.Column("seen", sa.String),
    sa.Column("author", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
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


def connect(url: str) -> sa.Engine:
    """Open the history and bring its tables up to date. Raises StoreError."""
    place = sa.make_url(url)
    with explained(place):
        engine = sa.create_engine(place)
        if engine.dialect.name == "sqlite":
            _prepare_file(place)
            _set_up_sqlite(engine)
        try:
            _bring_up_to_date(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that will write. Raises StoreError, and then nothing of it was written."""
    with explained(engine.url), engine.execution_options(kvmfleet_begin="BEGIN IMMEDIATE").begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent view. Raises StoreError."""
    with explained(engine.url), engine.connect() as connection:
        yield connection


def _prepare_file(url: sa.URL) -> None:
    """Only for its owner, from the first moment: it tells how to break into a fleet, if not the keys to it."""
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _set_up_sqlite(engine: sa.Engine) -> None:
    """Readers never wait (WAL), writers take turns. Python's own transactions are off: they upgrade a read to a write
    in the middle, which SQLite refuses at once when another run writes."""

    @sa.event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("kvmfleet_begin", "BEGIN"))


def _bring_up_to_date(engine: sa.Engine) -> None:
    with reading(engine) as connection:
        if _version(connection) == SCHEMA:
            return
    with writing(engine) as connection:  # again, as two runs may have come this far
        found = _version(connection)
        if found > SCHEMA:
            raise StoreError(
                f"{_name(engine.url)}: written by a newer kvmfleet (schema {found}, this one knows {SCHEMA})",
                hint="Upgrade kvmfleet, or name another history with KVMFLEET_STATE_DIR.",
            )
        if found == 0:
            _tables.create_all(connection)
            connection.execute(schema.insert().values(version=SCHEMA))
        for upgrade in UPGRADES[found - 1 :] if found else ():
            upgrade(connection)
        connection.execute(schema.update().values(version=SCHEMA))


def _version(connection: sa.Connection) -> int:
    """0 for a database without our tables."""
    if not sa.inspect(connection).has_table(schema.name):
        return 0
    return connection.execute(sa.select(schema.c.version)).scalar() or 0


# Primary result codes of SQLite (https://www.sqlite.org/rescode.html) -> what to do.
_SQLITE_HINTS = {
    sqlite3.SQLITE_FULL: "Free some space there, then run the command again.",
    sqlite3.SQLITE_READONLY: "Make the folder and the file writable for you; KVMFLEET_STATE_DIR names another folder.",
    sqlite3.SQLITE_CANTOPEN: "Make the folder and the file writable for you; KVMFLEET_STATE_DIR names another folder.",
    sqlite3.SQLITE_PERM: "Make the folder and the file writable for you; KVMFLEET_STATE_DIR names another folder.",
    sqlite3.SQLITE_BUSY: "Another run has been writing for too long. See which one has it open: fuser {name}",
    sqlite3.SQLITE_CORRUPT: "Move it away; kvmfleet starts a new one. `sqlite3 {name} .recover` saves what is left.",
    sqlite3.SQLITE_NOTADB: "It is no SQLite file. Move it away; kvmfleet starts a new one.",
    sqlite3.SQLITE_IOERR: "See the kernel's log for this disk: dmesg",
}


@contextmanager
def explained(url: sa.URL) -> Iterator[None]:
    """Turn what a database or a file system raises into StoreError."""
    name = _name(url)
    try:
        yield
    except sa.exc.DBAPIError as e:
        code = getattr(e.orig, "sqlite_errorcode", 0) & 0xFF  # the upper bits only say more of the same
        hint = _SQLITE_HINTS.get(code, "See whether the database answers, and whether its user may write there.")
        raise StoreError(f"history {name}: {printable(str(e.orig))}", hint=hint.format(name=name)) from e
    except (sa.exc.SQLAlchemyError, ImportError) as e:
        raise StoreError(
            f"history {name}: {printable(str(e))}", hint="Check the URL, and that its driver is installed."
        ) from e
    except OSError as e:
        raise StoreError(f"history {name}: {e.strerror}", hint=_SQLITE_HINTS[sqlite3.SQLITE_CANTOPEN]) from e


def _name(url: sa.URL) -> str:
    return url.database or ":memory:" if url.drivername.startswith("sqlite") else url.render_as_string()
