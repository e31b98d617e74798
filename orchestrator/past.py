"""What a run reads in the history and leaves there. What cannot be written is a note, and costs no answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, ParamSpec, Self, TypeVar

import msgspec

from orchestrator import __version__, drift, snapshot
from orchestrator.errors import KvmfleetError, StoreError, UnwritableError
from orchestrator.history.store import PastResult, Run, Store
from orchestrator.inventory import Fleet
from orchestrator.model.drift import HostDrift
from orchestrator.model.run import Collected, HostResult
from orchestrator.probe import Known
from orchestrator.text import listed

__all__ = ["Comparison", "History"]

T = TypeVar("T")
P = ParamSpec("P")
Command = Literal["provision", "validate", "unprovision"]

PATIENCE_S = 30.0
"""With what fails: each host may wait for a database that another run holds, or that does not answer."""
NAMED = 10  # hosts in a note


class History:
    """The record of one run, from its start, so that one that was interrupted is known too.

    What cannot be written becomes a note beside the results, and never takes their place; it may still be read.
    """

    def __init__(self, store: Callable[[], Store], command: Command) -> None:
        self._store: Store | None = None
        self._problem: StoreError | None = None
        self._notes: dict[str, StoreError] = {}
        self._reads = _Patience()
        try:
            self._store = store()
            self._notes = {note.message: note for note in self._store.notes}
            self._run = self._store.begin(command)
        except StoreError as e:
            self._problem = e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store:
            self._store.close()

    def known(self, fleet: Fleet, *, needed: bool) -> Mapping[str, Known]:
        """The hosts that have a baseline, but for those of which it cannot be read: a note, unless it is `needed`."""
        if self._store is None or (self._problem and not isinstance(self._problem, UnwritableError)):
            if needed and self._problem:
                raise self._problem
            return {}
        found = {}
        for host in fleet.hosts:
            try:
                if known := self._reads.ask(_known, self._store, host.name):
                    found[host.name] = known
            except StoreError as e:
                if needed:
                    raise
                self._notes[e.message] = e
        return found

    def booted(self, host: str) -> PastResult | None:
        """The last result with a guest that booted on the host, as far as it can be told."""
        try:
            return self._reads.ask(self._store.booted, host) if self._store else None
        except StoreError:
            return None

    def keep(self, results: Sequence[HostResult]) -> tuple[KvmfleetError, ...]:
        """A host is its own baseline once the playbook finished on it and it was found good."""
        return self._write({result.host: result for result in results}, _record)

    def leave(self, hosts: Iterable[str]) -> tuple[KvmfleetError, ...]:
        """These hosts are no KVM hosts any more, so there is nothing that they should be like."""
        return self._write({host: host for host in hosts}, lambda run, host: run.forget_baseline(host))

    def _write(self, about: Mapping[str, T], write: Callable[[Run, T], None]) -> tuple[KvmfleetError, ...]:
        """Each host for itself, and the end of the run; gives what could not be written, each reason once."""
        if self._problem:
            return (*self._notes.values(), _unkept(self._problem))
        failed: dict[str, tuple[StoreError, list[str]]] = {}
        patience = _Patience()
        for host, what in about.items():
            try:
                patience.ask(write, self._run, what)
            except StoreError as e:
                failed.setdefault(e.message, (e, []))[1].append(host)
        notes = [_unkept(e, hosts if len(hosts) < len(about) else ()) for e, hosts in failed.values()]
        try:
            self._run.finish("finished")
        except StoreError as e:
            if e.message not in failed:
                notes.append(e)
        told = (note for message, note in self._notes.items() if message not in failed)
        return (*told, *notes)


class _Patience:
    """Asks a history, and once its failures have taken too long asks no more: it fails as it did the last time."""

    def __init__(self) -> None:
        self._failing_s = 0.0
        self._problem: StoreError | None = None

    def ask(self, question: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Raises StoreError."""
        if self._problem and self._failing_s >= PATIENCE_S:
            raise type(self._problem)(self._problem.message, hint=self._problem.hint)
        began_s = time.monotonic()
        try:
            return question(*arguments, **named)
        except StoreError as e:
            self._failing_s += time.monotonic() - began_s
            self._problem = e
            raise


class Comparison:
    """Compares hosts with their baselines, and keeps the record of that as far as it can be written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes: dict[str, KvmfleetError] = {note.message: note for note in store.notes}
        self._run: Run | None = None
        self._reads, self._writes = _Patience(), _Patience()  # where another run writes, reading goes on
        try:
            self._run = store.begin("drift")
        except StoreError as e:
            self._notes[e.message] = _unkept(e)

    def of(self, collected: Collected, wanted: str) -> HostDrift:
        """How one host compares. `wanted` is the digest of what the inventory wants of the host now."""
        host, now = collected.host, snapshot.take(collected.evidence) if collected.evidence else None
        try:
            baseline = self._reads.ask(self._store.expectation, host)
            seen = drift.judge(collected, baseline, intent=wanted, version=__version__, now=now)
        except StoreError as e:
            seen = HostDrift(host, "unknown", problem=e.message, hint=e.hint)
        if seen.state == "never-provisioned" and (lost := self._store.lost()):
            problem = f"{seen.problem}; or its baseline was in the history that was damaged, and lies in {lost} now"
            seen = msgspec.structs.replace(seen, problem=problem)
        with self._noted():
            if self._run:
                return self._writes.ask(self._run.watch, seen, now.items if now else None)
        seen = msgspec.structs.replace(seen, seen_s=time.time())
        with self._noted():
            seen = self._reads.ask(self._store.dated, seen)
        return seen

    def end(self) -> tuple[KvmfleetError, ...]:
        """Each thing that could not be written once, however many hosts it concerned."""
        with self._noted():
            if self._run:
                self._run.finish("finished")
        return tuple(self._notes.values())

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StoreError as e:
            self._notes.setdefault(e.message, e)


def _record(run: Run, result: HostResult) -> None:
    good = result.judgement.verdict in ("proven", "degraded")
    played = result.converged is not None and result.converged.outcome == "ok"
    run.record(result, baseline=good and played)


def _unkept(error: StoreError, hosts: Sequence[str] = ()) -> StoreError:
    """What is said of it; `hosts`: those that it costs their record, where it does not cost all."""
    about = f" about {listed(hosts, NAMED)}" if hosts else ""
    return type(error)(f"{error.message.rstrip('.')}, so nothing of this run is kept{about}.", hint=error.hint)


def _known(store: Store, host: str) -> Known | None:
    baseline, verdict = store.expectation(host), store.last_verdict(host)
    if not (baseline and verdict):
        return None
    watched = store.watched(host)
    return Known(baseline, verdict, watched.items if watched else ())
