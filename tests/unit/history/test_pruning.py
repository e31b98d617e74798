"""What is forgotten, what is kept, and the space that it gives back."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from histories import execute, unindexed
from learned import BAD, GOOD, SWAP, result, seen

from orchestrator.errors import UnwritableError
from orchestrator.history.store import Store
from orchestrator.model.drift import HostDrift
from orchestrator.model.finding import Judgement
from orchestrator.model.run import Collected, HostResult
from orchestrator.notify.notices import Notices
from orchestrator.notify.transitions import Notice, Transition, transitions


def test_pruning_forgets_old_runs_and_keeps_what_is_needed(store: Store, url: str) -> None:
    good = store.begin("provision")
    good.record(result("hv1", hostname="baseline"), baseline=True)
    good.finish("finished")
    for _ in range(3):
        run = store.begin("validate")
        run.record(result("hv1", GOOD, BAD))
        run.finish("finished")
        run = store.begin("drift")
        run.watch(seen(SWAP), {"a": str(run.id)})
        run.finish("finished")
    unfinished = store.begin("drift")
    assert store.prune(0.0) == 0
    assert store.prune(time.time() + 1) == 4
    assert store.expectation("hv1")
    assert store.watched("hv1")
    assert store.last("hv1")
    assert {run.id for run in store.runs()} == {1, 6, 7, unfinished.id}
    for table, rows in {"host_results": 2, "evidence": 2, "watches": 1, "snapshots": 2, "drifts": 1}.items():
        assert execute(url, f"SELECT count(*) FROM {table}") == [(rows,)], table


def test_pruning_keeps_when_a_silent_host_could_last_be_told_and_what_had_drifted(store: Store) -> None:
    run = store.begin("drift")
    told = run.watch(seen(SWAP), {})
    run.finish("finished")
    for _ in range(2):
        run = store.begin("drift")
        run.watch(HostDrift("hv1", "unreachable"), None)
        run.finish("finished")
    assert store.prune(time.time() + 1) == 1
    back = store.begin("drift").watch(HostDrift("hv1", "unreachable"), None)
    assert back.told_s == told.seen_s
    assert store.begin("drift").watch(seen(SWAP), {}).items == told.items


def test_pruning_forgets_old_runs_of_which_the_end_was_never_noted(store: Store, url: str) -> None:
    for _ in range(3):
        store.begin("drift").watch(seen(), {})  # ours: this process is alive
    assert store.prune(time.time() + 1) == 0
    execute(url, "UPDATE runs SET process = 'another-boot 1 1' WHERE id < 3")
    assert store.prune(time.time() - 1000) == 0, "they are young"
    assert store.prune(time.time() + 1) == 2
    execute(url, "UPDATE runs SET controller = 'another', started_at_s = started_at_s - 1000")
    assert store.prune(time.time() - 500) == 0, "it holds the last that was seen of the host"
    store.begin("drift").watch(seen(), {})
    assert store.prune(time.time() - 500) == 1, "no run takes so long"


def test_pruning_forgets_what_was_told_of_hosts_that_nobody_looks_at_any_more(store: Store, url: str) -> None:
    drifted = [seen(SWAP, host=host) for host in ("gone", "hv1", "silent")]
    for told in drifted:
        store.begin("drift").watch(told, None)
    execute(url, "UPDATE watches SET seen_s = seen_s - 1000")
    store.begin("drift").watch(drifted[1], None)
    store.begin("drift").watch(HostDrift("silent", "unreachable"), None)
    notices, known = Notices(store.engine), []

    def choose(found: Mapping[str, Notice]) -> tuple[Transition, ...]:
        known.append(sorted(found))
        return transitions(found, drifted, {}, after=1)

    notices.settle("pager", notices.claim("pager", choose), delivered=True)
    store.prune(time.time() - 2000)
    assert notices.claim("pager", choose) == ()
    store.prune(time.time() - 500)
    assert [one.host.host for one in notices.claim("pager", choose)] == ["gone"]
    assert known == [[], ["gone", "hv1", "silent"], ["hv1", "silent"]]


def test_pruning_forgets_what_was_told_to_urls_that_nobody_notifies_any_more(store: Store, url: str) -> None:
    drifted = [seen(SWAP)]
    store.begin("drift").watch(drifted[0], None)
    notices, known = Notices(store.engine), []

    def choose(found: Mapping[str, Notice]) -> tuple[Transition, ...]:
        known.append(sorted(found))
        return transitions(found, drifted, {}, after=1)

    for one in ("left", "used"):
        notices.settle(one, notices.claim(one, choose), delivered=True)
    execute(url, "UPDATE destinations SET used_s = used_s - 1000")
    assert notices.claim("used", choose) == ()
    store.prune(time.time() - 2000)
    assert execute(url, "SELECT destination FROM notices ORDER BY 1") == [("left",), ("used",)]
    store.prune(time.time() - 500)
    assert [execute(url, f"SELECT {row}") for row in ("destination FROM notices", "id FROM destinations")] == [
        [("used",)]
    ] * 2
    assert len(notices.claim("left", choose)) == 1, "it gets to know of all that is wrong"


def test_every_reference_is_found_by_an_index(store: Store) -> None:
    """Else whoever deletes a row reads whole tables, as both databases ask what refers to it."""
    assert unindexed(store) == []


def test_pruning_lets_others_write_between_its_pieces(store: Store, url: str) -> None:
    for hostname in ("old", "new"):
        run = store.begin("validate")
        for n in range(7):
            run.record(result(f"hv{n}", hostname=hostname))
            run.watch(seen(SWAP, host=f"hv{n}"), {"a": f"{hostname}{n}"})
        execute(url, "UPDATE watches SET problem = 'another'")  # so that the next is no repetition
        run.finish("finished")
    pieces: list[int] = [0]

    @sa.event.listens_for(store.engine, "after_cursor_execute")
    def _(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        pieces[-1] = max(pieces[-1], cursor.rowcount) if statement.startswith("DELETE") else pieces[-1]

    @sa.event.listens_for(store.engine, "commit")
    def _(_connection: Any) -> None:
        pieces.append(0)

    assert store.prune(time.time() + 1, at_once=3) == 1
    assert max(pieces) == 3
    assert pieces.count(3) == 6
    for table in ("host_results", "evidence", "findings", "watches", "drifts", "snapshots"):
        assert execute(url, f"SELECT count(*) FROM {table}") == [(7,)], table


def test_pruning_gives_back_the_space(store: Store, url: str) -> None:
    run = store.begin("validate")
    for n in range(200):
        run.record(result(f"hv{n}", hostname=random.Random(n).randbytes(100).hex()))
    run.finish("finished")
    again = store.begin("validate")
    for n in range(200):
        again.record(HostResult(f"hv{n}", Judgement("unreachable", ()), Collected(f"hv{n}", "ssh")))
    size = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname = 'evidence' AND pg_table_is_visible(oid)"
    if url.startswith("sqlite"):
        size = "SELECT page_count * 4096 FROM pragma_page_count"
    ((before,),) = execute(url, size)
    assert store.prune(time.time() + 1) == 1
    store.compact()
    ((after,),) = execute(url, size)
    assert after < before / 2
    store.begin("validate")


def test_space_that_cannot_be_given_back_is_said(file: Path) -> None:
    with Store(f"sqlite:///{file}") as store:
        for hostname in ("old", "new"):
            run = store.begin("validate")
            run.record(result(hostname=hostname, contract=random.Random(1).randbytes(50000).hex()))
            run.finish("finished")
        assert store.prune(time.time() + 1) == 1
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(UnwritableError, match="readonly"):
            store.compact()
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = OFF")
        free = "PRAGMA freelist_count"
        ((before,),) = execute(f"sqlite:///{file}", free)
        store.compact()
        assert before > 0
        assert execute(f"sqlite:///{file}", free) == [(0,)]
