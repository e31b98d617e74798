"""What a history costs that is old: checks of 1,000 hosts every hour and a validation every day, for 90 days, beside a
new one; in SQLite and in PostgreSQL.

Everything is written as runs write it, but that the validations of the first day are then copied to the other days, as
the database copies rows faster. Each host changes six times: it drifts by ten packages, is as it was, and has another
snapshot from then on. Every hundredth host is silent all the time.

    .venv/bin/python bench/history.py [HOSTS [DAYS [ROUNDS]]] [SQLite|PostgreSQL]
"""

from __future__ import annotations

import functools
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from measure import ROOT, heading, table

sys.path.insert(0, str(ROOT / "tests" / "unit"))

import postgresql  # type: ignore[import-not-found]  # through the line above
from evidence import host as recorded  # type: ignore[import-not-found]

from orchestrator import snapshot
from orchestrator.history import address, database
from orchestrator.history.store import Store
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.run import Collected
from orchestrator.result import judged
from orchestrator.waivers import Waivers

DAY_S = 86400
CHANGES = 6
PACKAGES = tuple(Drift(f"package:package-{n}", "1:2.3.4-5+deb12u1", "1:2.3.4-5+deb12u2") for n in range(10))
COPIES = (  # of what the runs of the first day left, for another day
    """INSERT INTO runs (id, command, "user", controller, process, kvmfleet, started_at_s, finished_at_s, outcome)
    SELECT id + :run, command, "user", controller, process, kvmfleet, :at_s, :at_s, outcome
    FROM runs WHERE id = :first""",
    """INSERT INTO evidence (id, document)
    SELECT id + :row, document FROM evidence WHERE id > :hosts AND id <= 2 * :hosts""",
    """INSERT INTO host_results (id, run_id, host, recorded_at_s, verdict, cause, path, problem, contract_digest,
      intent_digest, evidence_id)
    SELECT id + :row, run_id + :run, host, :at_s, verdict, cause, path, problem, contract_digest, intent_digest,
      evidence_id + :row FROM host_results WHERE run_id = :first""",
    """INSERT INTO findings (result_id, position, "check", status, summary, expected, seen, fix, cause)
    SELECT result_id + :row, position, "check", status, summary, expected, seen, fix, cause FROM findings
    WHERE result_id > :hosts AND result_id <= 2 * :hosts""",
)


class Size(NamedTuple):
    """Of a fleet and its past."""

    hosts: int
    days: int

    @property
    def names(self) -> list[str]:
        return [f"hv{number:04}" for number in range(self.hosts)]


def is_silent(name: str) -> bool:
    return name.endswith("00")


def seen(name: str, change: int) -> tuple[HostDrift, Mapping[str, str] | None]:
    """What a check sees after so many changes, every other of which takes drift back."""
    if is_silent(name):
        return HostDrift(name, "unreachable", problem="connection refused"), None
    drifted = change % 2 == 1
    now = HostDrift(name, "drifted" if drifted else "in-sync", items=PACKAGES if drifted else ())
    return now, {**items(name), "package:changed": str(change)}


@functools.cache
def items(name: str) -> Mapping[str, str]:
    found: Mapping[str, str] = snapshot.take(recorded({"system": {"hostname": name}})).items
    return found


def check(store: Store, size: Size, change: int) -> None:
    """The part of a drift check that is the history's."""
    run = store.begin("drift")
    for name in size.names:
        store.expectation(name)
        run.watch(*seen(name, change))
    run.finish("finished")


def validate(store: Store, size: Size, command: str) -> None:
    run = store.begin(command)
    for name in size.names:
        collected = Collected(name, "ssh", evidence=recorded({"system": {"hostname": name}}))
        run.record(judged(collected, None, (), "production", Waivers()), baseline=command == "provision")
    run.finish("finished")


def make(url: str, size: Size, *, is_old: bool) -> None:
    """Every host is provisioned, validated and checked; in an old history that began so many days ago."""
    with Store(url) as store:
        validate(store, size, "provision")
        validate(store, size, "validate")
        for change in range(2 * CHANGES + 1 if is_old else 1):
            check(store, size, change)
        if is_old:
            age(store, size)
        store.compact()


def age(store: Store, size: Size) -> None:
    """Spreads over the days what is there, and adds the days on which nothing was new."""
    began_s, hours = time.time() - size.days * DAY_S, size.days * 24
    with database.writing(store.engine) as connection:
        changes = {"s": began_s, "apart": size.days * DAY_S / (2 * CHANGES)}
        at_s = ":s + (id - 3) * :apart"
        for statement in (
            f"UPDATE runs SET started_at_s = {at_s}, finished_at_s = {at_s}",
            f"UPDATE watches SET seen_s = {at_s.replace('id', 'run_id')}, since_s = :s",
        ):
            connection.execute(sa.text(statement), changes)
        check_run = {"from": 3, "s": began_s, "hours": hours}
        connection.execute(
            sa.text(
                """INSERT INTO runs (id, command, "user", controller, process, kvmfleet, started_at_s, finished_at_s)
                WITH RECURSIVE hour (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM hour WHERE n < :hours)
                SELECT 1000 + n, command, "user", controller, process, kvmfleet, :s + n * 3600, :s + n * 3600
                FROM hour, runs WHERE id = :from"""
            ),
            check_run,
        )
        for day in range(1, size.days):
            row = {"run": 100000 + day, "row": day * size.hosts, "hosts": size.hosts, "first": 2}
            for statement in COPIES:
                connection.execute(sa.text(statement), row | {"at_s": began_s + day * DAY_S})
        if store.engine.dialect.name == "postgresql":
            for name in ("runs", "evidence", "host_results"):
                connection.exec_driver_sql(f"SELECT setval('{name}_id_seq', (SELECT max(id) FROM {name}))")


class Cost(NamedTuple):
    """Of one thing that was done."""

    wall_s: float
    cpu_s: float  # of this process; a server's own is not in it


def cost(work: Callable[[], object]) -> Cost:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def known(store: Store, size: Size) -> None:
    """What a provision reads first."""
    for name in size.names:
        store.expectation(name), store.last_verdict(name), store.watched(name)


def everything(store: Store, size: Size, place: sa.URL) -> dict[str, Callable[[], object]]:
    name = "hv0001"
    return {
        "a drift check, a host": lambda: check(store, size, 2 * CHANGES),
        "what a provision reads first, a host": lambda: known(store, size),
        "`history`": store.runs,
        "`history HOST`": lambda: (name in store.hosts(), store.past(name), store.watches(name), store.accepted(name)),
        "what `accept` reads": lambda: store.watched(name),
        "names for the shell to complete": store.hosts,
        "`doctor`": lambda: database.measure(place),
    }


def by_turns(urls: Mapping[str, str], size: Size, rounds: int) -> dict[str, dict[str, list[Cost]]]:
    found: dict[str, dict[str, list[Cost]]] = {}
    with ExitStack() as stack:
        works = {
            age: everything(stack.enter_context(Store(url)), size, address.chosen(url)) for age, url in urls.items()
        }
        for number in range(rounds + 1):
            for age in list(works)[:: -1 if number % 2 else 1]:
                for name, work in works[age].items():
                    spent = cost(work)
                    if number:  # what comes first is in no cache
                        found.setdefault(name, {}).setdefault(age, []).append(spent)
    return found


def show_costs(costs: Mapping[str, Mapping[str, list[Cost]]], hosts: int) -> None:
    rows = []
    for name, of_age in costs.items():
        row = [name]
        for kind in (0, 1):
            new, old = (statistics.median(spent[kind] for spent in of_age[age]) for age in ("new", "old"))
            each_ms = 1000 / hosts if name.endswith("a host") else 1000
            row += [f"{new * each_ms:.2f} ms", f"{old * each_ms:.2f} ms", f"{old / new:.2f}"]
        rows.append(row)
    table(("", "wall, new", "old", "old against new", "processor, new", "old", "old against new"), rows)


@contextmanager
def somebody_who_writes(url: str) -> Iterator[list[float]]:
    """How long each of their transactions took, in seconds, while this lasts."""
    took: list[float] = []
    done = threading.Event()

    def write() -> None:
        with Store(url) as store:
            run = store.begin("drift")
            while not done.wait(0.05):
                took.append(cost(lambda: run.watch(HostDrift("hv0001", "in-sync"), {})).wall_s)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def show_growth(url: str, size: Size) -> None:
    """What an old history takes, and how pruning the first week of it goes."""
    place = address.chosen(url)
    with Store(url) as store:
        full = database.measure(place).size_bytes
        for _ in range(24):
            check(store, size, 2 * CHANGES)
        day = database.measure(place).size_bytes - full
        with somebody_who_writes(url) as took:
            forgot = cost(lambda: store.prune(time.time() - (size.days - 7) * DAY_S))
            gave_back = cost(store.compact)
        left = database.measure(place).size_bytes
    table(
        ("an old history", ""),
        (
            ("size", f"{full / 2**20:.0f} MiB"),
            ("a host and a day of it", f"{full / size.hosts / size.days / 1024:.1f} KiB"),
            ("more after 24 checks that see nothing new", f"{day / 1024:.0f} KiB"),
            ("`history prune` of a week: forgetting", f"{forgot.wall_s:.1f} s"),
            ("giving back the space", f"{gave_back.wall_s:.1f} s"),
            ("the longest that somebody else waited to write", f"{max(took):.2f} s of {database.WAIT_S:.0f} s"),
            ("size afterwards", f"{left / 2**20:.0f} MiB"),
        ),
    )


def main() -> None:
    given = [int(word) for word in sys.argv[1:] if word.isdigit()]
    hosts, days, rounds = (*given, *(1000, 90, 3)[len(given) :])
    size = Size(hosts, days)
    with tempfile.TemporaryDirectory() as folder, postgresql.server() as server:
        kinds = {
            "SQLite": {age: f"sqlite:///{Path(folder) / age}.sqlite3" for age in ("new", "old")},
            "PostgreSQL": {age: postgresql.new_database(server) for age in ("new", "old")},
        }
        version = sa.create_engine(address.chosen(server)).connect().exec_driver_sql("SHOW server_version").scalar()
        title = f"The history of {hosts:,} hosts, checked every hour and validated every day for {days} days"
        heading(title, rounds, f"SQLite {sqlite3.sqlite_version}", f"PostgreSQL {version}")
        for kind, urls in kinds.items():
            if not {kind} >= kinds.keys() & sys.argv:  # the other one is wanted
                continue
            for age, url in urls.items():
                make(url, size, is_old=age == "old")
            print(f"{kind}:\n")
            show_costs(by_turns(urls, size, rounds), hosts)
            show_growth(urls["old"], size)


if __name__ == "__main__":
    main()
