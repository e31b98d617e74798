"""Forgets old runs, a piece at a time, and keeps what is still needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import sqlalchemy as sa

from orchestrator.history import database, recorder
from orchestrator.history.tables import (
    baselines,
    carried,
    destinations,
    drifts,
    evidence,
    findings,
    notices,
    results,
    runs,
    snapshots,
    watches,
)
from orchestrator.model.drift import TOLD

__all__ = ["AT_ONCE", "prune"]

AT_ONCE = 500
"""Hosts of runs that a pruning forgets in one transaction."""


def prune(engine: sa.Engine, before_s: float, at_once: int) -> int:
    """What `Store.prune` promises."""
    for forget in (_forget_results, _forget_watches, _forget_snapshots):
        while _forget(engine, forget, before_s, at_once):
            time.sleep(database.LOOK_S)
    with database.writing(engine) as connection:
        _forget_notices(connection, before_s)
        return _forget_runs(connection, before_s)


def _forget(
    engine: sa.Engine, forget: Callable[[sa.Connection, float, int], int], before_s: float, at_once: int
) -> int:
    with database.writing(engine) as connection:
        return forget(connection, before_s, at_once)


def _forget_results(connection: sa.Connection, before_s: float, limit: int) -> int:
    later = results.alias()
    outdated = sa.exists().where(later.c.host == results.c.host, later.c.id > results.c.id)
    is_baseline = sa.exists().where(baselines.c.result_id == results.c.id)
    gone = sa.select(results.c.id, results.c.evidence_id).where(
        results.c.run_id.in_(_old(connection, before_s)), outdated, ~is_baseline
    )
    rows = connection.execute(gone.limit(limit)).all()
    ids = [row.id for row in rows]
    connection.execute(findings.delete().where(findings.c.result_id.in_(ids)))
    connection.execute(carried.delete().where(carried.c.result_id.in_(ids)))
    connection.execute(results.delete().where(results.c.id.in_(ids)))
    connection.execute(evidence.delete().where(evidence.c.id.in_([row.evidence_id for row in rows])))
    return len(rows)


def _forget_watches(connection: sa.Connection, before_s: float, limit: int) -> int:
    later = watches.alias()
    outdated = sa.exists().where(later.c.host == watches.c.host, later.c.id > watches.c.id)
    told_later = outdated.where(later.c.state.in_(TOLD))
    gone = sa.select(watches.c.id).where(
        watches.c.run_id.in_(_old(connection, before_s)), outdated, watches.c.state.not_in(TOLD) | told_later
    )
    ids = connection.execute(gone.limit(limit)).scalars().all()
    connection.execute(drifts.delete().where(drifts.c.watch_id.in_(ids)))
    connection.execute(watches.delete().where(watches.c.id.in_(ids)))
    return len(ids)


def _forget_snapshots(connection: sa.Connection, _before_s: float, limit: int) -> int:
    shown = sa.exists().where(watches.c.snapshot_id == snapshots.c.id)
    expected = sa.exists().where(baselines.c.snapshot_id == snapshots.c.id)
    ids = connection.execute(sa.select(snapshots.c.id).where(~shown, ~expected).limit(limit)).scalars().all()
    connection.execute(snapshots.delete().where(snapshots.c.id.in_(ids)))
    return len(ids)


def _forget_notices(connection: sa.Connection, before_s: float) -> None:
    looked_at = sa.select(watches.c.host).where(watches.c.seen_s >= before_s)
    connection.execute(destinations.delete().where(destinations.c.used_s < before_s))
    reachable = sa.select(destinations.c.id)
    forgotten = notices.c.host.not_in(looked_at) | notices.c.destination.not_in(reachable)
    connection.execute(notices.delete().where(forgotten))


def _forget_runs(connection: sa.Connection, before_s: float) -> int:
    of_result = sa.exists().where(results.c.run_id == runs.c.id)
    of_watch = sa.exists().where(watches.c.run_id == runs.c.id)
    return connection.execute(
        runs.delete().where(runs.c.id.in_(_old(connection, before_s)), ~of_result, ~of_watch)
    ).rowcount


def _old(connection: sa.Connection, before_s: float) -> sa.Select[tuple[int]]:
    """The runs that ended before this time."""
    begun = connection.execute(sa.select(runs).where(runs.c.finished_at_s.is_(None))).mappings()
    alive = [row["id"] for row in begun if row["controller"] == os.uname().nodename and recorder.is_alive(row)]
    ended_s = sa.func.coalesce(runs.c.finished_at_s, runs.c.started_at_s)  # it was killed, and no run takes so long
    return sa.select(runs.c.id).where(ended_s < before_s, runs.c.id.not_in(alive))
