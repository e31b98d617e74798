"""Histories of older versions, and of newer ones."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
import zlib
from pathlib import Path

import msgspec
import postgresql
import pytest
import sqlalchemy as sa
from histories import execute, unindexed
from learned import SWAP, result, seen

from orchestrator.errors import StoreError
from orchestrator.history import database, silence, tables
from orchestrator.history.store import Store
from orchestrator.model.drift import HostDrift
from orchestrator.notify.notices import Notices
from orchestrator.notify.transitions import transitions


def test_the_history_of_a_newer_kvmfleet_is_not_touched(url: str) -> None:
    Store(url).close()
    execute(url, f"UPDATE schema_version SET version = {tables.SCHEMA + 1}")
    with pytest.raises(StoreError, match="newer kvmfleet") as caught:
        Store(url)
    assert "Upgrade kvmfleet" in caught.value.hint


def test_an_older_history_is_brought_up_to_date_and_keeps_its_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(url) as store:
        store.begin("validate")

    def add_a_column(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN ticket VARCHAR")

    monkeypatch.setattr(tables, "UPGRADES", (*tables.UPGRADES, add_a_column))
    monkeypatch.setattr(tables, "SCHEMA", tables.SCHEMA + 1)
    for _ in range(2):  # the second time there is nothing to do
        with Store(url) as store:
            assert [run.command for run in store.runs()] == ["validate"]
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]
    assert execute(url, "SELECT ticket FROM runs") == [(None,)]


FIRST = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE runs (id {id}, command VARCHAR NOT NULL, "user" VARCHAR NOT NULL, controller VARCHAR NOT NULL,
  process VARCHAR NOT NULL, kvmfleet VARCHAR NOT NULL, started_at_s DOUBLE PRECISION NOT NULL,
  finished_at_s DOUBLE PRECISION, outcome VARCHAR, exit_status INTEGER);
CREATE TABLE evidence (id {id}, document {bytes} NOT NULL);
CREATE TABLE host_results (id {id}, run_id INTEGER NOT NULL REFERENCES runs (id), host VARCHAR NOT NULL,
  recorded_at_s DOUBLE PRECISION NOT NULL, verdict VARCHAR NOT NULL, cause VARCHAR NOT NULL, path VARCHAR NOT NULL,
  problem VARCHAR NOT NULL, contract_digest VARCHAR NOT NULL, intent_digest VARCHAR NOT NULL,
  evidence_id INTEGER REFERENCES evidence (id), UNIQUE (run_id, host));
CREATE INDEX host_results_by_host ON host_results (host, id);
CREATE TABLE findings (result_id INTEGER NOT NULL REFERENCES host_results (id), position INTEGER NOT NULL,
  "check" VARCHAR NOT NULL, status VARCHAR NOT NULL, summary VARCHAR NOT NULL, expected VARCHAR NOT NULL,
  seen VARCHAR NOT NULL, fix VARCHAR NOT NULL, cause VARCHAR NOT NULL, PRIMARY KEY (result_id, position));
CREATE TABLE baselines (host VARCHAR NOT NULL PRIMARY KEY, result_id INTEGER NOT NULL REFERENCES host_results (id));
INSERT INTO runs (command, "user", controller, process, kvmfleet, started_at_s)
  VALUES ('provision', 'u', 'c', 'b 1 1', '0.1', 1);
INSERT INTO evidence (document) VALUES ({document});
INSERT INTO host_results (run_id, host, recorded_at_s, verdict, cause, path, problem, contract_digest, intent_digest,
  evidence_id) VALUES (1, 'hv1', 100, 'proven', '', 'ssh', '', '', 'abc', 1);
INSERT INTO baselines VALUES ('hv1', 1);
"""

SECOND = """
CREATE TABLE acceptances (id {id}, host VARCHAR NOT NULL, item VARCHAR NOT NULL, expected VARCHAR, seen VARCHAR,
  author VARCHAR NOT NULL, reason VARCHAR NOT NULL, accepted_s DOUBLE PRECISION NOT NULL);
INSERT INTO acceptances (host, item, seen, author, reason, accepted_s)
  VALUES ('hv1', 'contract', 'before', 'u', 'r', 99), ('hv1', 'system:hostname', 'after', 'u', 'r', 101);
CREATE TABLE snapshots (id {id}, digest VARCHAR NOT NULL UNIQUE, document {bytes} NOT NULL);
CREATE TABLE watches (id {id}, run_id INTEGER NOT NULL REFERENCES runs (id), host VARCHAR NOT NULL,
  seen_s DOUBLE PRECISION NOT NULL, state VARCHAR NOT NULL, since_s DOUBLE PRECISION NOT NULL, pending BOOLEAN NOT NULL,
  problem VARCHAR NOT NULL, snapshot_id INTEGER REFERENCES snapshots (id), UNIQUE (run_id, host));
CREATE TABLE drifts (watch_id INTEGER NOT NULL REFERENCES watches (id), item VARCHAR NOT NULL, expected VARCHAR,
  seen VARCHAR, since_s DOUBLE PRECISION NOT NULL, PRIMARY KEY (watch_id, item));
UPDATE schema_version SET version = 2;
"""

FIFTH = """
ALTER TABLE baselines ADD COLUMN snapshot_id INTEGER REFERENCES snapshots (id);
ALTER TABLE baselines ADD COLUMN taken_by VARCHAR NOT NULL DEFAULT '';
ALTER TABLE baselines ADD COLUMN accepted_id INTEGER NOT NULL DEFAULT 0;
UPDATE baselines SET accepted_id = 1;
CREATE TABLE notices (destination VARCHAR NOT NULL, host VARCHAR NOT NULL, state VARCHAR NOT NULL,
  items VARCHAR NOT NULL, delivered BOOLEAN NOT NULL, claimed_s DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (destination, host));
CREATE TABLE carried (result_id INTEGER NOT NULL REFERENCES host_results (id), item VARCHAR NOT NULL,
  expected VARCHAR, PRIMARY KEY (result_id, item));
CREATE INDEX watches_by_host ON watches (host, id);
INSERT INTO runs (command, "user", controller, process, kvmfleet, started_at_s)
  VALUES ('drift', 'u', 'c', 'b 1 1', '0.1', 2), ('drift', 'u', 'c', 'b 1 1', '0.1', 3);
INSERT INTO watches (run_id, host, seen_s, state, since_s, pending, problem)
  VALUES (2, 'hv2', 200, 'unreachable', 200, false, 'refused'), (3, 'hv2', 300, 'unreachable', 200, false, 'refused');
UPDATE schema_version SET version = 5;
"""


def make_old(url: str, *schemas: str) -> None:
    sqlite = url.startswith("sqlite")
    found = result("hv1", hostname="old", contract="{}").collected.evidence
    document = zlib.compress(msgspec.json.encode(found)).hex()
    words = {
        "id": "INTEGER PRIMARY KEY" if sqlite else "SERIAL PRIMARY KEY",
        "bytes": "BLOB" if sqlite else "BYTEA",
        "document": f"x'{document}'" if sqlite else f"decode('{document}', 'hex')",
    }
    statements = "".join(schemas).format(**words).split(";\n")
    execute(url, *(statement for statement in statements if statement.strip()))


@pytest.mark.parametrize(
    ("schemas", "hostname"), [((FIRST,), "old"), ((FIRST, SECOND), "after"), ((FIRST, SECOND, FIFTH), "after")]
)
def test_an_older_history_is_upgraded_and_keeps_what_it_has(url: str, schemas: tuple[str, ...], hostname: str) -> None:
    make_old(url, *schemas)
    with Store(url) as store:
        for _ in range(2):  # the second time from the snapshot that was kept the first time
            expected = store.expectation("hv1")
            assert expected
            assert (expected.items["system:hostname"], expected.items["contract"]) == (hostname, "{}")
        store.begin("drift").watch(seen(SWAP), {"a": "b"})
        assert store.watched("hv1")
        assert unindexed(store) == []
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]
    assert execute(url, "SELECT count(*) FROM baselines WHERE snapshot_id IS NOT NULL") == [(1,)]


def test_urls_that_an_older_history_knows_count_as_used_now(url: str) -> None:
    with Store(url) as store:
        store.begin("drift").watch(seen(SWAP), None)
        Notices(store.engine).claim("pager", lambda known: transitions(known, [seen(SWAP)], {}, after=1))
    execute(url, "DROP TABLE destinations", "UPDATE schema_version SET version = 5")
    with Store(url) as store:
        store.prune(time.time() - 500)
    assert execute(url, "SELECT destination FROM notices") == [("pager",)]


def test_checks_of_before_an_upgrade_count_among_those_in_a_row(url: str) -> None:
    make_old(url, FIRST, SECOND, FIFTH)
    silent = HostDrift("hv2", "unreachable", problem="refused")
    with Store(url) as store:
        for _ in range(2):
            assert store.begin("drift").watch(silent, None).since_s == 200
        assert Notices(store.engine).silent_checks([silent], 9) == {"hv2": 4}
        assert len(store.watches("hv2")) == 2


def test_two_runs_upgrade_at_once(url: str) -> None:
    make_old(url, FIRST)
    script = (
        f"import sys; sys.stdin.read(); from orchestrator.history.store import Store; Store({url!r}).expectation('hv1')"
    )
    ready = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [child.communicate()[1].decode() for child in ready] == [""] * 4
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]


def test_an_upgrade_may_take_long(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgresql.new_database(server)
    make_old(url, FIRST)
    last = tables.UPGRADES[-1]

    def slow(connection: sa.Connection) -> None:
        last(connection)
        connection.exec_driver_sql("SELECT pg_sleep(6)")

    monkeypatch.setattr(silence, "LIMIT_S", 4.0)
    monkeypatch.setattr(tables, "UPGRADES", (*tables.UPGRADES[:-1], slow))
    with Store(url) as store:
        assert store.last("hv1")


def test_a_file_of_an_older_kvmfleet_is_written_anew_once(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    url = f"sqlite:///{file}"
    make_old(url, FIRST)
    assert execute(url, "PRAGMA auto_vacuum") == [(0,)]
    with Store(url) as store:
        store.compact()
        assert store.last("hv1")
    assert execute(url, "PRAGMA auto_vacuum") == [(database.INCREMENTAL,)]


def test_a_large_file_of_an_older_kvmfleet_is_written_anew_by_hand(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir(mode=0o700)
    url = f"sqlite:///{file}"
    make_old(url, FIRST)
    execute(url, "CREATE TABLE much (much)", "INSERT INTO much VALUES (zeroblob(100000))", "DROP TABLE much")
    monkeypatch.setattr(database, "ANEW_BYTES", 0)
    with Store(url) as store:
        store.compact()
        (told,) = caplog.messages
        assert f"history {file}: an older kvmfleet made it" in told
        assert execute(url, "PRAGMA auto_vacuum") == [(0,)]
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(told.rpartition(f"sqlite3 {file} ")[2].strip("'"))
    assert execute(url, "PRAGMA auto_vacuum") == [(database.INCREMENTAL,)]
    assert execute(url, "PRAGMA freelist_count") == [(0,)]
