"""What drift checks saw of hosts, and since when it is so."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping

import msgspec
import sqlalchemy as sa

from orchestrator import drift
from orchestrator.history.rows import carried_items, first, insert, snapshot_id, struct
from orchestrator.history.tables import baselines, drifts, results, snapshots, watches
from orchestrator.model.drift import TOLD, Drift, HostDrift

__all__ = ["add", "dated", "past", "unhealed"]

# What is asked for every host that answers, built once: building a query costs SQLAlchemy as much as running it.
_LAST_WATCH = sa.select(watches).where(watches.c.host == sa.bindparam("host")).order_by(watches.c.id.desc()).limit(1)
_LAST_TOLD_WATCH = _LAST_WATCH.where(watches.c.state.in_(TOLD))
_LAST_WHOLE_WATCH = _LAST_TOLD_WATCH.where(watches.c.problem == "")
_SEEN_AGAIN = (
    watches.update()
    .where(watches.c.id == sa.bindparam("watch_id"))
    .values(run_id=sa.bindparam("run"), seen_s=sa.bindparam("now_s"), checks=watches.c.checks + 1)
)
_RENEWED = (
    sa.select(baselines.c.result_id, results.c.recorded_at_s, results.c.run_id)
    .join(results, results.c.id == baselines.c.result_id)
    .where(baselines.c.host == sa.bindparam("host"))
)


def add(connection: sa.Connection, run_id: int, found: HostDrift, items: Mapping[str, str] | None) -> HostDrift:
    """What `Run.watch` promises."""
    before = first(connection, _LAST_WATCH, host=found.host)
    found = _dated(connection, found, before)
    row = {
        "host": found.host,
        "state": found.state,
        "since_s": found.since_s,
        "pending": found.pending,
        "problem": found.problem,
        "snapshot_id": None if items is None else snapshot_id(connection, items),
    }
    if before and _is_the_same(connection, found, row, before):
        connection.execute(_SEEN_AGAIN, {"watch_id": before["id"], "run": run_id, "now_s": found.seen_s})
        return found
    watch_id = insert(connection, watches, run_id=run_id, seen_s=found.seen_s, **row)
    if found.items:
        rows = [{"watch_id": watch_id, **msgspec.structs.asdict(item)} for item in found.items]
        connection.execute(drifts.insert(), rows)
    return found


def dated(connection: sa.Connection, found: HostDrift) -> HostDrift:
    """With the times since when it is so, as `Store.dated` gives them."""
    return _dated(connection, found, first(connection, _LAST_WATCH, host=found.host))


def unhealed(connection: sa.Connection, host: str) -> HostDrift | None:
    """The last that was seen of a host, without the items that a provision has healed since."""
    row = first(connection, _LAST_WATCH, host=host)
    if row is None:
        return None
    renewed = first(connection, _RENEWED, host=host)
    items = _not_healed(connection, _drifts(connection, row["id"]), row, renewed)
    return msgspec.structs.replace(_past_watch(connection, row), items=items)


def past(connection: sa.Connection, host: str, limit: int) -> tuple[HostDrift, ...]:
    """What was seen of a host, the latest first."""
    query = sa.select(watches).where(watches.c.host == host).order_by(watches.c.id.desc()).limit(limit)
    return tuple(_past_watch(connection, row) for row in connection.execute(query).mappings().all())


def _dated(connection: sa.Connection, found: HostDrift, before: sa.RowMapping | None) -> HostDrift:
    """With the times since when it is so, going by what was seen before; `before` is the last of that."""
    now, told = time.time(), before
    if before and before["state"] not in TOLD:
        told = first(connection, _LAST_TOLD_WATCH, host=found.host)
    renewed = first(connection, _RENEWED, host=found.host) if before and found.state in ("drifted", "pending") else None
    known = _known_drift(connection, told, renewed) if told and found.items else ()
    went_on = before and before["state"] == found.state and (known or not _is_later(renewed, before))
    return msgspec.structs.replace(
        found,
        items=drift.timed(found.items, known, now),
        since_s=before["since_s"] if before and went_on else now,
        seen_s=now,
        told_s=now if found.state in TOLD else told["seen_s"] if told else None,
    )


def _is_the_same(connection: sa.Connection, found: HostDrift, row: Mapping[str, object], before: sa.RowMapping) -> bool:
    """Whether a check saw what the one before did, since the same times."""
    if any(before[column] != value for column, value in row.items()):
        return False
    return found.state != "drifted" or set(_drifts(connection, before["id"])) == set(found.items)


def _known_drift(connection: sa.Connection, told: sa.RowMapping, renewed: sa.RowMapping | None) -> tuple[Drift, ...]:
    """What had drifted at the last check that could tell and, of kinds that it could not look at, at the one before."""
    known = _not_healed(connection, _drifts(connection, told["id"]), told, renewed)
    if told["problem"] and (whole := first(connection, _LAST_WHOLE_WATCH, host=told["host"])):
        looked_at = _kinds(connection, told["snapshot_id"])
        unseen = (item for item in _drifts(connection, whole["id"]) if item.item.partition(":")[0] not in looked_at)
        known += _not_healed(connection, unseen, whole, renewed)
    return known


def _not_healed(
    connection: sa.Connection, items: Iterable[Drift], watch: sa.RowMapping, renewed: sa.RowMapping | None
) -> tuple[Drift, ...]:
    """Of what a drift check saw, what a baseline since then did not find healed: all, or what was left."""
    if renewed is None or not _is_later(renewed, watch):
        return tuple(items)
    left = carried_items(connection, renewed["result_id"])
    return tuple(item for item in items if item.item in left)


def _is_later(renewed: sa.RowMapping | None, watch: sa.RowMapping) -> bool:
    """Whether the baseline is younger than what a drift check saw. A run may last while others begin and end, so the
    times tell, unless a clock was ahead."""
    if renewed is None:
        return False
    recorded_s, seen_s = float(renewed["recorded_at_s"]), float(watch["seen_s"])
    if max(recorded_s, seen_s) > time.time():
        return bool(renewed["run_id"] > watch["run_id"])
    return recorded_s > seen_s


def _kinds(connection: sa.Connection, kept_id: int | None) -> set[str]:
    """The kinds of items in a snapshot; none where it cannot be read."""
    query = sa.select(snapshots.c.document).where(snapshots.c.id == kept_id)
    try:
        items = msgspec.json.decode(zlib.decompress(connection.execute(query).scalar() or b""), type=dict[str, str])
    except (zlib.error, msgspec.MsgspecError):
        return set()
    return {item.partition(":")[0] for item in items}


def _last_told(connection: sa.Connection, host: str, until_id: int) -> float | None:
    """When, up to this watch, the state of a host could last be told."""
    told = sa.select(watches.c.seen_s).where(
        watches.c.host == host, watches.c.id <= until_id, watches.c.state.in_(TOLD)
    )
    return connection.execute(told.order_by(watches.c.id.desc()).limit(1)).scalar()


def _past_watch(connection: sa.Connection, row: sa.RowMapping) -> HostDrift:
    told_s = row["seen_s"] if row["state"] in TOLD else _last_told(connection, row["host"], row["id"])
    return struct(HostDrift, row, items=_drifts(connection, row["id"]), told_s=told_s)


def _drifts(connection: sa.Connection, watch_id: int) -> tuple[Drift, ...]:
    query = sa.select(drifts).where(drifts.c.watch_id == watch_id).order_by(drifts.c.item)
    return tuple(struct(Drift, item) for item in connection.execute(query).mappings())
