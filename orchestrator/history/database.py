"""Opens the history, in a file of SQLite's or on a PostgreSQL server; says what their failures mean."""

from __future__ import annotations

import functools
import logging
import math
import os
import shlex
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from orchestrator import paths
from orchestrator.errors import DamagedError, StoreError, UnwritableError
from orchestrator.history import address, salvage, tables
from orchestrator.text import printable

__all__ = ["LOOK_S", "Extent", "compact", "connect", "measure", "reading", "writing"]

log = logging.getLogger(__name__)

WAIT_S = 15.0  # for another run that is writing; each of its transactions takes milliseconds
LOOK_S = 0.1  # so often SQLite's waiting writers look whether it is their turn; nobody queues
ANEW_BYTES = 100 << 20  # of an older file that is written anew: whoever writes meanwhile waits, but for no more
INCREMENTAL, STEP_PAGES = 2, 5000  # SQLite's word for giving back space in steps, of 20 MB here
WRITERS = 0x6B766D666C656574  # "kvmfleet": the advisory lock that writers hold on PostgreSQL


class Extent(NamedTuple):
    """How much of a history there is."""

    schema: int  # 0 where it has no tables yet
    size_bytes: int


def connect(place: sa.URL) -> tuple[sa.Engine, StoreError | None]:
    """Opens a history, makes it where there is none, and brings its tables up to date.

    Beside it comes what there is to say: that the one that was there is damaged, and where it lies now. One that is
    there and cannot be written, as on a disk that is full, is opened all the same: `writing` then says why it cannot.

    Raises:
        StoreError: it cannot be opened.
    """
    file = address.file(place)
    if file is None:
        return _opened(place), None
    with _explained(place):
        paths.private(file.parent)
        with salvage.alone(file):
            lost = _set_aside(file, "the file is empty") if salvage.is_emptied(file) else None
            if salvage.is_blank(file):
                log.warning("history %s: the file is empty, so it is taken for a new one", address.name(place))
            try:
                return _opened_or_made(place, file), lost
            except DamagedError as e:
                if not (lost := _set_aside(file, e.message.removeprefix(f"history {file}: "))):
                    raise
            return _opened_or_made(place, file), lost


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that will write, and the only one. Raises StoreError, and then nothing of it was written."""
    if why := engine.get_execution_options().get("kvmfleet_unwritable"):
        raise UnwritableError(why.message, hint=why.hint)
    with _rescued(engine), engine.execution_options(kvmfleet_writes=True).begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent view. Raises StoreError."""
    with _rescued(engine), engine.connect() as connection:
        yield connection


def measure(place: sa.URL) -> Extent:
    """Looks at a history that is there as a run would that is about to write, and leaves it as it is.

    Raises:
        StoreError: it cannot be opened or written, or a newer kvmfleet wrote it.
    """
    engine = _engine(place)
    try:
        with _explained(place), engine.execution_options(kvmfleet_writes=True).begin() as connection:
            schema = tables.version(connection, address.name(place))
            return Extent(schema, int(connection.exec_driver_sql(_SIZES[engine.dialect.name]).scalar() or 0))
    finally:
        engine.dispose()


_SIZES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    "postgresql": "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' "
    f"AND pg_table_is_visible(oid) AND relname IN ({', '.join(map(repr, tables.all_tables))})",
}


def compact(engine: sa.Engine) -> None:
    """Gives back the space of what was deleted. Raises StoreError, and then all is as it was."""
    sqlite = engine.dialect.name == "sqlite"
    level: dict[str, Any] = {} if sqlite else {"isolation_level": "AUTOCOMMIT"}
    how = {"kvmfleet_plain": True, "kvmfleet_patient": True, **level}
    with _rescued(engine), engine.connect().execution_options(**how) as connection:
        if sqlite:
            _compact_sqlite(connection, address.name(engine.url))
        else:
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {', '.join(tables.all_tables)}")


_ANEW = (
    "history %s: an older kvmfleet made it, so it stays as large as it is, and new runs fill what was forgotten. To"
    " have it smaller, let it be written anew when no run writes, with twice its size free: %s"
)


def _compact_sqlite(connection: sa.Connection, name: str) -> None:
    """In steps, so that others write meanwhile; but one of an older kvmfleet is written anew, which takes one step."""
    file = connection.connection.driver_connection
    assert isinstance(file, sqlite3.Connection)
    if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar() != INCREMENTAL:
        if (connection.exec_driver_sql(_SIZES["sqlite"]).scalar() or 0) > ANEW_BYTES:
            log.warning(_ANEW, name, f"sqlite3 {shlex.quote(name)} 'PRAGMA auto_vacuum = {INCREMENTAL}; VACUUM'")
            return
        connection.exec_driver_sql("VACUUM")
    while connection.exec_driver_sql("PRAGMA freelist_count").scalar():
        file.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")  # `execute` would give back one page
        time.sleep(LOOK_S)
    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")  # else all lies twice on the disk


def _opened_or_made(place: sa.URL, file: Path) -> sa.Engine:
    made = _make_file(file)
    try:
        return _opened(place)
    except StoreError as e:
        if made:
            salvage.discard(file)  # else the next run would take it for one that was damaged
        elif isinstance(e, UnwritableError) and (engine := _opened_to_read(place, file, e)):
            return engine
        raise


def _opened_to_read(place: sa.URL, file: Path, why: UnwritableError) -> sa.Engine | None:
    """Nothing is written, not even what SQLite keeps beside a file; None where that is not enough to read it.

    A connection lasts as long as a transaction: its lock keeps out everybody else.
    """
    engine = sa.create_engine(place, creator=functools.partial(_connect_to_read, file), poolclass=sa.NullPool)
    _begin_as_told(engine)
    try:
        with engine.connect() as connection:
            usable = tables.is_up_to_date(connection)
    except sa.exc.DBAPIError:
        return None
    return engine.execution_options(kvmfleet_unwritable=why) if usable else None


def _connect_to_read(file: Path) -> sqlite3.Connection:
    """What was written last may still be in the journal: a full disk has no room to move it into the file.

    An exclusive lock lets that be read without a file of shared memory (https://www.sqlite.org/wal.html#noshm). Without
    a journal the file is all there is, and read without a lock.
    """
    journal = file.with_name(f"{file.name}-wal")
    mode = "mode=rw" if journal.exists() and journal.stat().st_size else "mode=ro&immutable=1"
    uri = f"file:{urllib.parse.quote(str(file))}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    return connection


def _engine(place: sa.URL) -> sa.Engine:
    file = address.file(place)
    with _explained(place):
        if file and file.exists() and not file.is_file():
            hint = "Move it away, or name another with --store."
            raise StoreError(f"history {address.name(place)}: it is no regular file.", hint=hint)
        engine = sa.create_engine(place, pool_pre_ping=place.drivername != "sqlite")
    (_set_up_sqlite if engine.dialect.name == "sqlite" else _set_up_postgresql)(engine)
    return engine


def _opened(place: sa.URL) -> sa.Engine:
    engine = _engine(place)
    with _explained(place):
        try:
            _bring_up_to_date(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine


def _bring_up_to_date(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if tables.is_up_to_date(connection):
            return
    with engine.execution_options(kvmfleet_writes=True, kvmfleet_patient=True).begin() as connection:
        # which looks again, as two runs may have come so far
        tables.bring_up_to_date(connection, address.name(engine.url))


@contextmanager
def _rescued(engine: sa.Engine) -> Iterator[None]:
    """What is damaged may be found late, as nobody reads all of it: then it is moved aside, for the next run.

    For this one it is lost from then on: SQLite would make an empty file in its place, without tables, that everybody
    may read.
    """
    if lost := engine.get_execution_options().get("kvmfleet_lost"):
        raise StoreError(lost.message, hint=lost.hint)
    try:
        with _explained(engine.url):
            yield
    except DamagedError as e:
        file = address.file(engine.url)
        if file is None:
            raise
        engine.dispose()  # else SQLite would look after files that are not its own any more
        with _explained(engine.url), salvage.alone(file):
            lost = _set_aside(file, e.message.removeprefix(f"history {file}: "))
        if lost is None:
            raise
        engine.update_execution_options(kvmfleet_lost=lost)
        raise lost from e


def _set_aside(file: Path, why: str) -> StoreError | None:
    moved = salvage.set_aside(file)
    if moved is None:
        return None
    return StoreError(
        f"history {printable(str(file))}: {why}. It was moved aside to {printable(moved.name)}, and a new one begins, "
        "which knows no baselines and nothing that was accepted.",
        hint=f"Save what can be saved: sqlite3 {moved} .recover | sqlite3 saved.sqlite3; put that in its place, "
        "or make new baselines: kvmfleet provision",
    )


def _make_file(file: Path) -> bool:
    """Only for its owner, from the first moment: it tells how to break into a fleet, if not the keys to it."""
    if file.exists():
        return False
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    return True


def _set_up_sqlite(engine: sa.Engine) -> None:
    """Readers never wait (WAL), writers take turns. Python's own transactions are off: they upgrade a read to a write
    in the middle, which SQLite refuses at once when another run writes."""

    @sa.event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")  # comes before all else; in an old file, with VACUUM
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    _begin_as_told(engine)


def _begin_as_told(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        if not _plain(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _set_up_postgresql(engine: sa.Engine) -> None:
    """The same there: one view for a reader, one writer at a time, and nobody waits for the disk.

    A crash of the server's machine may take the last half second with it, as with SQLite's NORMAL; never half a host.
    """
    from orchestrator.history import silence

    @sa.event.listens_for(engine, "do_connect")
    def _(_dialect: Any, _record: Any, given: Sequence[Any], named: Mapping[str, Any]) -> silence.Connection:
        return silence.Connection.connect(*given, **named)

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute(f"SET lock_timeout = {int(WAIT_S * 1000)}")
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET client_encoding = 'UTF8'")
        connection.commit()

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, silence.Connection)
        driver.limit_s = math.inf if connection.get_execution_options().get("kvmfleet_patient") else silence.LIMIT_S
        if _writes(connection):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
        elif not _plain(connection):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _writes(connection: sa.Connection) -> bool:
    return bool(connection.get_execution_options().get("kvmfleet_writes"))


def _plain(connection: sa.Connection) -> bool:
    """Outside of any transaction."""
    return bool(connection.get_execution_options().get("kvmfleet_plain"))


# Primary result codes of SQLite (https://www.sqlite.org/rescode.html) -> what to do.
_WRITABLE = "Make the folder and the file writable for you; KVMFLEET_STATE_DIR or --store names another place."
_SQLITE_HINTS = {
    sqlite3.SQLITE_FULL: "Free some space there, then run the command again.",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_BUSY: "Another run has been writing for too long. See which one has it open: fuser {name}",
    sqlite3.SQLITE_CORRUPT: "Move it away; kvmfleet starts a new one. `sqlite3 {name} .recover` saves what is left.",
    sqlite3.SQLITE_NOTADB: "It is no SQLite file. Move it away, or name another with --store.",
    sqlite3.SQLITE_IOERR: "See the kernel's log for this disk: dmesg",
}
_UNWRITABLE = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_IOERR, "25006", "53100"),  # the last two are PostgreSQL's: it only reads, its disk is full
)

# Codes of PostgreSQL, or the class that they begin with (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_POSTGRESQL_HINTS = {
    "42501": "Let the user own the database, or: GRANT CREATE ON SCHEMA public TO USER",
    "22P05": "The database is not in UTF-8. Make another: createdb --encoding UTF8 --template template0",
    "25006": "That server only reads. Name the one that writes.",
    "53": "The server has no room, memory or connection left.",
    "55P03": "Another run has been writing for too long. See what the server does: SELECT * FROM pg_stat_activity",
}
_UNKNOWN_HINT = "See whether the database answers, and whether its user may write there."
_NO_CONNECTION_HINT = (
    "See that the server answers there, lets this user in (pg_hba.conf; a password belongs into ~/.pgpass or"
    " KVMFLEET_STORE), and has the database: createdb --encoding UTF8 --owner USER DATABASE"
)


@contextmanager
def _explained(url: sa.URL) -> Iterator[None]:
    """Turn what a database or a file system raises into StoreError."""
    name = address.name(url)
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as e:
        error = getattr(e, "orig", e)
        code = getattr(error, "sqlite_errorcode", 0)
        full = code == sqlite3.SQLITE_IOERR_SHMSIZE  # no room for the file of shared memory beside it
        code = sqlite3.SQLITE_FULL if full else code & 0xFF  # the upper bits only say more of the same
        why = "database or disk is full" if full else " ".join(printable(str(error)).split())
        hint = (_SQLITE_HINTS.get(code) or _postgresql_hint(error)).format(name=name)
        code = code or getattr(error, "sqlstate", None)
        kind = DamagedError if code in salvage.DAMAGE else UnwritableError if code in _UNWRITABLE else StoreError
        raise kind(f"history {name}: {why}", hint=hint) from e
    except (sa.exc.SQLAlchemyError, ImportError) as e:
        raise StoreError(f"history {name}: {printable(str(e))}", hint=f"Write {address.POSSIBLE}.") from e
    except OSError as e:
        raise StoreError(f"history {name}: {e.strerror}", hint=_WRITABLE) from e


def _postgresql_hint(error: object) -> str:
    code = getattr(error, "sqlstate", "")
    if code is None:  # the server never answered, or libpq said why in words alone, as it does while it connects
        return _NO_CONNECTION_HINT
    return _POSTGRESQL_HINTS.get(code) or _POSTGRESQL_HINTS.get(code[:2]) or _UNKNOWN_HINT
