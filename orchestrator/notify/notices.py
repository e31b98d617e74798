"""The part of the history that says what was told, to whom, about which host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from orchestrator.history.database import reading, writing
from orchestrator.history.tables import destinations, notices, watches
from orchestrator.model.drift import HostDrift
from orchestrator.notify.transitions import Notice, Transition, group

__all__ = ["CLAIM_S", "Notices"]

CLAIM_S = 120.0
"""Whoever claims something has told it by then, or has died: the time limit of sending is much shorter."""

Choose = Callable[[Mapping[str, Notice]], Sequence[Transition]]


class Notices:
    """Who was told what. Every method raises StoreError when the history cannot be read or written.

    A claim is written before anything is sent, and settled after. So what was not sent, because the destination or we
    failed, is told by the next run, and two runs at one time do not both tell it.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def silent_checks(self, hosts: Sequence[HostDrift], enough: int) -> dict[str, int]:
        """How many of the last checks in a row could not tell how the host is, counted up to `enough`."""
        with reading(self._engine) as connection:
            return {host.host: _silent(connection, host, enough) for host in hosts}

    def claim(self, destination: str, choose: Choose) -> tuple[Transition, ...]:
        """What `choose` finds to tell, given what is known there, but for what another run is telling just now."""
        now_s = time.time()
        with writing(self._engine) as connection:
            query = sa.select(notices).where(notices.c.destination == destination)
            rows = {row["host"]: row for row in connection.execute(query).mappings()}
            busy = {host for host, row in rows.items() if 0 <= now_s - row["claimed_s"] < CLAIM_S}
            known = {host: _notice(row) for host, row in rows.items()}
            claimed = tuple(one for one in choose(known) if one.host.host not in busy)
            _write(connection, destination, claimed, claimed_s=now_s)
            connection.execute(destinations.delete().where(destinations.c.id == destination))
            connection.execute(destinations.insert().values(id=destination, used_s=now_s))
        return claimed

    def settle(self, destination: str, claimed: Sequence[Transition], *, delivered: bool) -> None:
        """These were told, or could not be."""
        with writing(self._engine) as connection:
            if delivered:
                _write(connection, destination, claimed, claimed_s=0.0, delivered=True)
            else:
                _release(connection, destination, claimed)


def _silent(connection: sa.Connection, host: HostDrift, enough: int) -> int:
    query = sa.select(watches.c.state, watches.c.checks).where(watches.c.host == host.host)
    count = 0
    for row in connection.execute(query.order_by(watches.c.id.desc()).limit(enough)):
        if row.state not in group(host.state):
            break
        count += row.checks
    return min(count, enough)


def _write(
    connection: sa.Connection,
    destination: str,
    told: Sequence[Transition],
    *,
    claimed_s: float,
    delivered: bool = False,
) -> None:
    """What is known there now. Until it arrived that all is well, what was told before stays."""
    rows = [
        {
            "destination": destination,
            "host": one.host.host,
            "state": notice.state,
            "items": msgspec.json.encode(notice.items).decode(),
            "delivered": delivered if one.now else notice.delivered,
            "claimed_s": claimed_s,
        }
        for one in sorted(told, key=lambda one: one.host.host)  # the same order in every run: no deadlock
        if (notice := one.now or (None if delivered else one.before))
    ]
    if told:
        connection.execute(_of(notices.delete()), _keys(destination, told))
    if rows:
        connection.execute(notices.insert(), rows)


def _release(connection: sa.Connection, destination: str, told: Sequence[Transition]) -> None:
    if told:
        connection.execute(_of(notices.update().values(claimed_s=0.0)), _keys(destination, told))


def _of(statement: sa.Delete | sa.Update) -> sa.Delete | sa.Update:
    mine = notices.c.destination == sa.bindparam("to_whom")
    return statement.where(mine, notices.c.host == sa.bindparam("about"))


def _keys(destination: str, told: Sequence[Transition]) -> list[dict[str, str]]:
    return [{"to_whom": destination, "about": one.host.host} for one in told]


def _notice(row: sa.RowMapping) -> Notice:
    items = msgspec.json.decode(row["items"], type=dict[str, str])
    return Notice(row["state"], items, row["delivered"])
