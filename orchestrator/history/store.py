"""The history: which runs there were, what each learned about each host, and how a host was when it was last good.

Nothing secret goes in: of a command only its name, and of a host its evidence and findings, which hold none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import sqlalchemy as sa

from orchestrator import __version__, identity, snapshot
from orchestrator.drift import Baseline
from orchestrator.errors import StoreError
from orchestrator.history import address, database, observations, pruning, recorder, salvage
from orchestrator.history.rows import carried_items, first, insert, snapshot_id, struct
from orchestrator.history.tables import (
    acceptances,
    baselines,
    carried,
    evidence,
    findings,
    results,
    runs,
    snapshots,
    watches,
)
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Finding, Verdict
from orchestrator.model.run import HostResult

__all__ = ["Acceptance", "PastResult", "PastRun", "Run", "Store"]

State = Literal["running", "finished", "interrupted"]


class PastRun(msgspec.Struct, frozen=True):
    """One run as the history knows it."""

    id: int
    command: str
    user: str
    controller: str
    kvmfleet: str  # the version that ran
    started_at_s: float
    finished_at_s: float | None
    outcome: str | None
    state: State


class PastResult(msgspec.Struct, frozen=True):
    """What one run learned about one host."""

    run_id: int
    host: str
    recorded_at_s: float
    verdict: Verdict
    cause: str  # id of the check that explains the rest, "" when nothing is wrong
    path: str
    problem: str
    contract_digest: str  # "" when the host had none
    intent_digest: str
    findings: tuple[Finding, ...]
    evidence: Evidence | None


class Acceptance(msgspec.Struct, frozen=True):
    """Somebody's word that something is fine from then on."""

    host: str
    item: str
    expected: str | None
    seen: str | None
    author: str
    reason: str
    accepted_s: float


class Run:
    """A run that is being recorded. Each call is one transaction, so that a run that dies keeps what it learned."""

    def __init__(self, engine: sa.Engine, run_id: int) -> None:
        self._engine = engine
        self.id = run_id

    def record(self, result: HostResult, *, baseline: bool = False) -> None:
        """Add one host. `baseline`: this is how the host is when all is well; later runs are compared with it.

        What the playbook left is expected as it was before.

        Raises StoreError, and then nothing about this host was written.
        """
        with database.writing(self._engine) as connection:
            result_id = insert(connection, results, **_row(self.id, result, _insert_evidence(connection, result)))
            if rows := [_finding_row(result_id, n, finding) for n, finding in enumerate(result.judgement.findings)]:
                connection.execute(findings.insert(), rows)
            if baseline:
                connection.execute(baselines.delete().where(baselines.c.host == result.host))
                connection.execute(baselines.insert().values(_baseline_row(connection, result, result_id)))
            if rows := [{"result_id": result_id, "item": d.item, "expected": d.expected} for d in result.left]:
                connection.execute(carried.insert(), rows)

    def watch(self, found: HostDrift, items: Mapping[str, str] | None) -> HostDrift:
        """Add what a drift check saw of one host; gives it with the times since when it is so.

        `items` is the host's snapshot; equal ones are kept once. A check that sees what the one before saw adds no row,
        so that a history grows with what happens and not with time. Raises StoreError, and then nothing was written.
        """
        with database.writing(self._engine) as connection:
            return observations.add(connection, self.id, found, items)

    def forget_baseline(self, host: str) -> None:
        """The host is no longer meant to be anything."""
        with database.writing(self._engine) as connection:
            connection.execute(baselines.delete().where(baselines.c.host == host))

    def finish(self, outcome: str) -> None:
        """Nothing more will come. A run of which this is never said counts as interrupted once its process is gone."""
        with database.writing(self._engine) as connection:
            values = {"finished_at_s": time.time(), "outcome": outcome}
            connection.execute(runs.update().where(runs.c.id == self.id).values(values))


class Store:
    """The history in a database: that of `url`, else of KVMFLEET_STORE, else a file of SQLite's in the state folder.

    `notes` holds what is to be said about its opening: that there was another, which is damaged. `engine` is for what
    else is kept in it. Every method raises StoreError when the history cannot be read or written.
    """

    def __init__(self, url: str = "") -> None:
        place = address.chosen(url)
        self.engine, lost = database.connect(place)
        self._file = address.file(place)
        self.notes = (lost,) if lost else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.engine.dispose()

    def begin(self, command: str) -> Run:
        """`command` is its name, such as `provision`, never its arguments: they may hold a secret."""
        with database.writing(self.engine) as connection:
            run_id = insert(
                connection, runs,
                command=command,
                user=identity.user(),
                controller=os.uname().nodename,
                process=recorder.process(os.getpid()),
                kvmfleet=__version__,
                started_at_s=time.time(),
            )  # fmt: skip
        return Run(self.engine, run_id)

    def runs(self, limit: int = 20) -> tuple[PastRun, ...]:
        """The latest first."""
        with database.reading(self.engine) as connection:
            rows = connection.execute(sa.select(runs).order_by(runs.c.id.desc()).limit(limit)).mappings()
            return tuple(_past_run(row) for row in rows)

    def results(self, run_id: int) -> tuple[PastResult, ...]:
        """What one run learned, in the order in which it did."""
        return self._results(sa.select(results).where(results.c.run_id == run_id).order_by(results.c.id))

    def last_verdict(self, host: str) -> Verdict | None:
        """What `last` says of a host in one word."""
        with database.reading(self.engine) as connection:
            verdict: Verdict | None = connection.execute(_LAST_VERDICT, {"host": host}).scalar()
            return verdict

    def last(self, host: str) -> PastResult | None:
        """What was last learned about a host, by a finished run or not."""
        query = sa.select(results).where(results.c.host == host).order_by(results.c.id.desc()).limit(1)
        return next(iter(self._results(query)), None)

    def past(self, host: str, limit: int = 20) -> tuple[PastResult, ...]:
        """What was learned about a host, the latest first."""
        return self._results(
            sa.select(results).where(results.c.host == host).order_by(results.c.id.desc()).limit(limit)
        )

    def baseline(self, host: str) -> PastResult | None:
        """How the host was after its last validated provision."""
        query = sa.select(results).join(baselines, baselines.c.result_id == results.c.id)
        return next(iter(self._results(query.where(baselines.c.host == host))), None)

    def booted(self, host: str) -> PastResult | None:
        """The last result with a domain that booted on the host."""
        query = sa.select(results).join(findings, findings.c.result_id == results.c.id)
        passed = (findings.c.check == "guest.boot") & (findings.c.status == "pass")
        query = query.where(results.c.host == host, passed).order_by(results.c.id.desc()).limit(1)
        return next(iter(self._results(query)), None)

    def expectation(self, host: str) -> Baseline | None:
        """What the host should be like: its baseline, and what was accepted since. None without a baseline.

        What the playbook left then as it had found it is expected as it was before.
        """
        with database.reading(self.engine) as connection:
            row = first(connection, _BASELINE, host=host)
            if row is None:
                return None
            items = _snapshot(row)
            carries = carried_items(connection, row["result_id"]) if row["carries"] else {}
            changes = dict(carries)
            if row["latest"]:
                later = _acceptances(connection, host, after=row["accepted_id"])
                changes |= {accepted.item: accepted.seen for accepted in later}
        if items is None:
            items = self._taken_again(host)
        if items is None:
            return None
        wanted = {item: value for item, value in (items | changes).items() if value is not None}
        left = {item: items.get(item) for item in carries}
        if row["left_since"]:
            left |= self._left_since(host, row["result_id"])
        return Baseline(wanted, row["intent_digest"], row["kvmfleet"], row["verdict"], left)

    def lost(self) -> Path | None:
        """Where a damaged history lies that was here before this one: what is unknown here may be known there."""
        return salvage.left(self._file) if self._file else None

    def _taken_again(self, host: str) -> dict[str, str] | None:
        """The snapshot of a baseline by this edition, from its evidence; kept, so that this happens once."""
        past = self.baseline(host)
        if past is None or past.evidence is None:
            return None
        items = snapshot.take(past.evidence).items
        with contextlib.suppress(StoreError), database.writing(self.engine) as connection:
            values = {"snapshot_id": snapshot_id(connection, items), "taken_by": snapshot.EDITION}
            same = sa.select(results.c.id).where(results.c.host == host, results.c.run_id == past.run_id)
            connection.execute(baselines.update().where(baselines.c.result_id.in_(same)).values(values))
        return items

    def _left_since(self, host: str, baseline_id: int) -> dict[str, str | None]:
        """What the last provision left that ended since the baseline, and after which the host was not good."""
        query = sa.select(results.c.id, results.c.host, results.c.run_id, evidence.c.document).join(evidence)
        query = query.where(results.c.host == host, results.c.id > baseline_id, _LEAVES).order_by(results.c.id.desc())
        with contextlib.suppress(StoreError), database.reading(self.engine) as connection:
            if row := connection.execute(query.limit(1)).mappings().first():
                items = snapshot.take(_evidence(row)).items
                return {item: items.get(item) for item in carried_items(connection, row["id"])}
        return {}

    def watched(self, host: str) -> HostDrift | None:
        """What the last drift check saw of a host, without the items that a provision has healed since."""
        with database.reading(self.engine) as connection:
            return observations.unhealed(connection, host)

    def dated(self, found: HostDrift) -> HostDrift:
        """What a drift check saw of one host, with the times since when it is so, where that cannot be recorded."""
        with database.reading(self.engine) as connection:
            return observations.dated(connection, found)

    def watches(self, host: str, limit: int = 20) -> tuple[HostDrift, ...]:
        """What drift checks saw of a host, the latest first; those in a row that saw the same are one."""
        with database.reading(self.engine) as connection:
            return observations.past(connection, host, limit)

    def accept(self, host: str, items: Sequence[Drift], *, reason: str) -> tuple[Acceptance, ...]:
        """These are fine from now on; says so in the name of the user who runs this."""
        now, author = time.time(), identity.user()
        made = tuple(Acceptance(host, item.item, item.expected, item.seen, author, reason, now) for item in items)
        if made:
            with database.writing(self.engine) as connection:
                connection.execute(acceptances.insert(), [msgspec.structs.asdict(one) for one in made])
        return made

    def accepted(self, host: str) -> tuple[Acceptance, ...]:
        """What was ever accepted on a host, the oldest first."""
        with database.reading(self.engine) as connection:
            return _acceptances(connection, host)

    def hosts(self) -> tuple[str, ...]:
        """Every host that the history knows, sorted."""
        with database.reading(self.engine) as connection:
            known = sa.union(sa.select(results.c.host), sa.select(watches.c.host)).subquery()
            return tuple(connection.execute(sa.select(known.c.host).order_by(known.c.host)).scalars())

    def prune(self, before_s: float, *, at_once: int = pruning.AT_ONCE) -> int:
        """Forget runs that ended before this time, and what they learned; gives their number.

        Kept is what is still needed: baselines with their evidence, the last that was seen of each host, and how it was
        when that could last be told. A run whose end was never noted ended when it began, unless it is alive. What was
        told of a host goes once no drift check looked at it since then: it is in no inventory any more. One that is
        silent is looked at by every check, and what was told of it stays. What was told to a URL goes once no check was
        to notify it since then.

        Each transaction forgets `at_once` hosts of runs at most, so that others write meanwhile; whatever interrupts
        it, the next pruning goes on.
        """
        return pruning.prune(self.engine, before_s, at_once)

    def compact(self) -> None:
        """Gives back the space of what was forgotten."""
        database.compact(self.engine)

    def _results(self, query: sa.Select[Any]) -> tuple[PastResult, ...]:
        with database.reading(self.engine) as connection:
            rows = connection.execute(query.add_columns(evidence.c.document).outerjoin(evidence)).mappings().all()
            return tuple(_past_result(row, _findings(connection, row["id"])) for row in rows)


def _insert_evidence(connection: sa.Connection, result: HostResult) -> int | None:
    if result.collected.evidence is None:
        return None
    return insert(connection, evidence, document=zlib.compress(msgspec.json.encode(result.collected.evidence)))


def _baseline_row(connection: sa.Connection, result: HostResult, result_id: int) -> dict[str, object]:
    found = result.collected.evidence
    newest = sa.select(sa.func.max(acceptances.c.id)).where(acceptances.c.host == result.host)
    return {
        "host": result.host,
        "result_id": result_id,
        "snapshot_id": snapshot_id(connection, snapshot.take(found).items) if found else None,
        "taken_by": snapshot.EDITION if found else "",
        "accepted_id": connection.execute(newest).scalar() or 0,
    }


# What is asked for every host that answers, built once: building a query costs SQLAlchemy as much as running it.
_LATER = results.alias()
_LEAVES = sa.exists().where(carried.c.result_id == results.c.id)
_BASELINE = (
    sa.select(
        baselines.c.result_id,
        baselines.c.taken_by,
        baselines.c.accepted_id,
        results.c.intent_digest,
        results.c.verdict,
        runs.c.kvmfleet,
        snapshots.c.document,
        sa.exists()
        .where(acceptances.c.host == baselines.c.host, acceptances.c.id > baselines.c.accepted_id)
        .label("latest"),  # whether anything was accepted since
        sa.exists().where(carried.c.result_id == baselines.c.result_id).label("carries"),  # whether there are any
        sa.exists()
        .where(
            _LATER.c.host == baselines.c.host, _LATER.c.id > baselines.c.result_id, carried.c.result_id == _LATER.c.id
        )
        .label("left_since"),  # whether `_left_since` has any
    )
    .join(results, results.c.id == baselines.c.result_id)
    .join(runs, runs.c.id == results.c.run_id)
    .outerjoin(snapshots, snapshots.c.id == baselines.c.snapshot_id)
    .where(baselines.c.host == sa.bindparam("host"))
)
_LAST_VERDICT = (
    sa.select(results.c.verdict).where(results.c.host == sa.bindparam("host")).order_by(results.c.id.desc()).limit(1)
)


def _snapshot(row: sa.RowMapping) -> dict[str, str] | None:
    """What was kept beside a baseline; None where another edition took it, or it cannot be read."""
    if row["taken_by"] != snapshot.EDITION or not row["document"]:
        return None
    try:
        return msgspec.json.decode(zlib.decompress(row["document"]), type=dict[str, str])
    except (zlib.error, msgspec.MsgspecError):
        return None


def _acceptances(connection: sa.Connection, host: str, after: int = 0) -> tuple[Acceptance, ...]:
    """Those with a higher id. Times are only shown: the clocks of two controllers may differ."""
    query = sa.select(acceptances).where(acceptances.c.host == host, acceptances.c.id > after)
    return tuple(struct(Acceptance, row) for row in connection.execute(query.order_by(acceptances.c.id)).mappings())


def _row(run_id: int, result: HostResult, evidence_id: int | None) -> dict[str, object]:
    found, cause = result.collected.evidence, result.judgement.cause
    contract = found.contract.text if found else ""
    return {
        "run_id": run_id,
        "host": result.host,
        "recorded_at_s": time.time(),
        "verdict": result.judgement.verdict,
        "cause": cause.check if cause else "",
        "path": result.collected.path,
        "problem": result.collected.problem,
        "contract_digest": hashlib.sha256(contract.encode()).hexdigest() if contract else "",
        "intent_digest": result.contract.intent_digest if result.contract else "",
        "evidence_id": evidence_id,
    }


def _finding_row(result_id: int, position: int, finding: Finding) -> dict[str, object]:
    return {"result_id": result_id, "position": position, **msgspec.structs.asdict(finding)}


def _findings(connection: sa.Connection, result_id: int) -> tuple[Finding, ...]:
    query = sa.select(findings).where(findings.c.result_id == result_id).order_by(findings.c.position)
    return tuple(struct(Finding, row) for row in connection.execute(query).mappings())


def _past_run(row: sa.RowMapping) -> PastRun:
    state: State = (
        "finished" if row["finished_at_s"] is not None else "running" if recorder.is_alive(row) else "interrupted"
    )
    return struct(PastRun, row, state=state)


def _past_result(row: sa.RowMapping, found: Sequence[Finding]) -> PastResult:
    decoded = _evidence(row) if row["document"] else None
    return struct(PastResult, row, findings=tuple(found), evidence=decoded)


def _evidence(row: sa.RowMapping) -> Evidence:
    try:
        return msgspec.json.decode(zlib.decompress(row["document"]), type=Evidence)
    except (zlib.error, msgspec.MsgspecError) as e:
        raise StoreError(
            f"history: the evidence of {row['host']} in run {row['run_id']} cannot be read: {e}",
            hint="Collect it again: kvmfleet validate; where it is the baseline: kvmfleet provision",
        ) from e
