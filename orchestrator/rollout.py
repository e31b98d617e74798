"""The story of a run: lock, converge, collect, judge, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Self, get_args

import msgspec

from orchestrator import __version__, drift, intent, lock, probe, snapshot
from orchestrator.checks.host import CONVERGED, DRIFT
from orchestrator.collect import collect, stream
from orchestrator.converge import Progress, converge
from orchestrator.errors import KvmfleetError, StoreError, UnwritableError
from orchestrator.history.store import PastResult, Store
from orchestrator.history.store import Run as Record
from orchestrator.inventory import AnsibleOptions, Fleet, Host, Secrets
from orchestrator.judge import judge, judge_fleet, read_contract, silence
from orchestrator.model import (
    Boot,
    Collected,
    Depth,
    Drift,
    Finding,
    FleetFinding,
    HostConverged,
    HostDrift,
    HostResult,
    Judgement,
    Profile,
    Step,
)
from orchestrator.probe import Known, Look, Which
from orchestrator.recording import Recording
from orchestrator.text import printable
from orchestrator.waivers import Waivers

__all__ = [
    "Edges",
    "Event",
    "Run",
    "Standards",
    "Watch",
    "provision",
    "replay",
    "unprovision",
    "validate",
    "watch",
]

PLAYBOOK = "provision.yml"
BACK = "unprovision.yml"
TIMEOUT_S: Mapping[Depth, float] = {
    "none": 120.0, "proof": 120.0, "firmware": 180.0, "uefi": 300.0, "alpine": 480.0, "file": 480.0,
}  # fmt: skip
"""Of one host; generous, as a guest in an emulated host takes a hundred times as long as in hardware."""

Event = Progress | HostConverged | Collected | Step
Tell = Callable[[Event], None]
Command = Literal["provision", "validate", "unprovision"]


class Run(msgspec.Struct, frozen=True):
    """What a run learned. `notes` are problems that cost no answer, such as a history that could not be written.

    Check mode proves nothing: there, `converged` tells what would have happened and `results` is empty.
    """

    results: tuple[HostResult, ...]
    converged: tuple[HostConverged, ...] = ()
    notes: tuple[KvmfleetError, ...] = ()
    fleet: tuple[FleetFinding, ...] = ()  # what the hosts are together


class Watch(msgspec.Struct, frozen=True):
    """What a drift check learned: every host of the fleet, in its order."""

    hosts: tuple[HostDrift, ...]
    notes: tuple[KvmfleetError, ...] = ()


class Edges(NamedTuple):
    """Where a run touches the world; tests put something else there."""

    converge: Callable[..., tuple[HostConverged, ...]] = converge
    collect: Callable[..., tuple[Collected, ...]] = collect
    stream: Callable[..., None] = stream
    store: Callable[[], Store] = Store


EDGES = Edges()


class Standards(NamedTuple):
    """What hosts are judged by."""

    profile: Profile | None = None  # instead of the one that each host was told to have
    waivers: Waivers = Waivers()


STANDARDS = Standards()


def provision(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    boot: Boot = Boot(),  # noqa: B008 - frozen
    standards: Standards = STANDARDS,
    which: Which = "needed",
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Run:
    """Makes hosts KVM hosts, then proves every one, those on which the playbook failed among them.

    The hosts are looked at first, and the playbook runs on `which` of them. In check mode, and where only some of its
    tasks run, all hosts are needed.

    Raises:
        LockedError: another run changes one of these hosts.
        ConvergeError: Ansible could not run the playbook at all.
        StoreError: only what drifted is to be healed, and the history, which knows what that is, cannot be read.
        Interrupted, KeyboardInterrupt: nothing of the run is left on the controller.
    """
    tell = on_event or _nothing
    with lock.hold(fleet, "provision"):
        intents = intent.digests(fleet)
        if options.check:
            return Run((), _play(fleet, options, secrets, intents, tell, edges))
        if which == "needed" and (options.tags or options.skip_tags):
            which = "all"
        with _History(edges.store, "provision") as history:
            known = history.known(fleet, needed=which == "drifted")
            looks = _look(fleet, options, secrets, boot, standards, which, known, intents, tell, edges)
            spared = probe.spared(looks.values(), fleet.hosts, which, intents, __version__)
            unchanged = {name: probe.told(looks[name]) for name in spared}
            for host in unchanged.values():
                tell(host)
            played = _play(_only(fleet, lambda name: name not in spared), options, secrets, intents, tell, edges)
            done = unchanged | {host.host: host for host in played}
            settled = {name: _settled(looks[name], boot, history, done[name]) for name in spared}
            asked = _only(fleet, lambda name: not settled.get(name))
            proven = {r.host: r for r in _prove(asked, options, secrets, boot, standards, tell, edges, done)}
            results = tuple(
                _with_drift(settled.get(host.name) or proven[host.name], looks.get(host.name), intents[host.name])
                for host in fleet.hosts
            )
            converged = tuple(done[host.name] for host in fleet.hosts)
            return Run(results, converged, history.keep(results), judge_fleet(results))


def unprovision(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Run:
    """Takes back what was added to every host. `converged` tells what happened; there is nothing left to prove.

    Raises:
        LockedError: another run changes one of these hosts.
        ConvergeError: Ansible could not run the playbook at all.
        Interrupted, KeyboardInterrupt: nothing of the run is left on the controller; the next one goes on.
    """
    tell = on_event or _nothing
    with lock.hold(fleet, "unprovision"):
        if options.check:
            return Run((), _play(fleet, options, secrets, {}, tell, edges, BACK))
        with _History(edges.store, "unprovision") as history:
            converged = _play(fleet, options, secrets, {}, tell, edges, BACK)
            return Run((), converged, history.leave(host.host for host in converged if host.outcome == "ok"))


def validate(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    boot: Boot = Boot(),  # noqa: B008 - frozen
    standards: Standards = STANDARDS,
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Run:
    """Proves every host as it is. Takes no lock: looking changes nothing, and may go on beside a rollout."""
    with _History(edges.store, "validate") as history:
        results = _prove(fleet, options, secrets, boot, standards, on_event or _nothing, edges, {})
        return Run(results, (), history.keep(results), judge_fleet(results))


def watch(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Watch:
    """Compares every host with its baseline. Changes nothing, starts no guest, and takes no lock.

    Each host goes into the history as it answers, and its evidence is then dropped: only what drifted is kept. What
    cannot be written there is a note, and costs no answer.

    Raises:
        StoreError: the history, which knows the baselines, cannot be read.
    """
    tell, intents = on_event or _nothing, intent.digests(fleet)
    with edges.store() as store:
        past = _Past(store)
        found: dict[str, HostDrift] = {}

        def heard(collected: Collected) -> None:
            found[collected.host] = past.compare(collected, intents[collected.host])
            tell(collected)

        edges.stream(
            fleet.hosts,
            options,
            boot=Boot("none"),
            secrets=secrets,
            settings=fleet.settings,
            timeout_s=TIMEOUT_S["none"],
            on_answer=heard,
            on_step=tell,
        )
        for host in fleet.hosts:
            if host.name not in found:
                heard(Collected(host.name, "ssh", problem="the collector gave no answer for it"))
        return Watch(tuple(found[host.name] for host in fleet.hosts), past.end())


def replay(recordings: Sequence[Recording], standards: Standards = STANDARDS) -> Run:
    """Judges what was recorded. No host is asked, and the history, which tells what was when, stays as it is."""
    results = tuple(_replayed(recording, standards) for recording in recordings)
    return Run(results, fleet=judge_fleet(results))


def _play(
    fleet: Fleet,
    options: AnsibleOptions,
    secrets: Secrets,
    intents: Mapping[str, str],
    tell: Tell,
    edges: Edges,
    playbook: str = PLAYBOOK,
) -> tuple[HostConverged, ...]:
    if not fleet.hosts:
        return ()
    converged = edges.converge(playbook, fleet, options, secrets=secrets, intents=intents, on_event=tell)
    for host in converged:
        tell(host)
    return converged


def _look(
    fleet: Fleet,
    options: AnsibleOptions,
    secrets: Secrets,
    boot: Boot,
    standards: Standards,
    which: Which,
    known: Mapping[str, Known],
    intents: Mapping[str, str],
    tell: Tell,
    edges: Edges,
) -> Mapping[str, Look]:
    """How hosts are before the playbook runs: those that have a baseline; where only drift is healed, all of them.

    The look may be all the proof that a host gets, and then it executes a guest. With --boot none it does not, and no
    host is found good enough to be left alone.
    """
    seen = fleet if which == "drifted" else _only(fleet, lambda name: name in known)
    depth = Boot("none" if which == "all" or boot.depth == "none" else "proof")
    looks = {}
    for host, result in zip(seen.hosts, _prove(seen, options, secrets, depth, standards, tell, edges, {}), strict=True):
        past = known.get(host.name)
        baseline = past.baseline if past else None
        seen_drift = drift.judge(result.collected, baseline, intent=intents[host.name], version=__version__)
        looks[host.name] = Look(host, result, seen_drift, past)
    return looks


def _only(fleet: Fleet, wanted: Callable[[str], bool]) -> Fleet:
    return msgspec.structs.replace(fleet, hosts=tuple(host for host in fleet.hosts if wanted(host.name)))


def _settled(look: Look, boot: Boot, history: _History, unchanged: HostConverged) -> HostResult | None:
    """The result of a host that was spared; None where it is yet to be asked to boot a guest."""
    booted = history.booted(look.host.name) if boot.depth not in ("none", "proof") else None
    before = probe.earlier_boot(look, boot, booted)
    if not probe.is_settled(look, boot, before):
        return None
    result = msgspec.structs.replace(look.result, converged=unchanged)
    return probe.booted_before(result, before) if before else result


def _with_drift(result: HostResult, look: Look | None, wanted: str) -> HostResult:
    """The result, with the drift that the playbook left as it found it."""
    evidence = result.collected.evidence
    if not (look and look.known and evidence and result.converged and result.converged.outcome == "ok"):
        return result
    before, contract = look.result.collected.evidence, look.result.contract
    # A playbook that was told something else ran since the baseline: what it made was there before this one began.
    touched = contract is not None and contract.intent_digest != look.known.baseline.intent_digest
    left = drift.left(
        look.known.baseline,
        snapshot.take(before) if before and not touched else None,
        snapshot.take(evidence),
        intent=wanted,
        version=__version__,
    )
    if not left:
        return result
    left = drift.timed(left, look.known.drift, time.time())
    finding, (verdict, findings, cause) = _drift_finding(left), msgspec.structs.astuple(result.judgement)
    judgement = Judgement("degraded" if verdict == "proven" else verdict, (finding, *findings), cause or finding)
    return msgspec.structs.replace(result, left=left, judgement=judgement)


def _drift_finding(left: Sequence[Drift]) -> Finding:
    names = ", ".join(item.item for item in left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    return Finding(
        DRIFT.id,
        "warn",
        f"the playbook left drift as it found it: {names}",
        printable(left[0].expected or "nothing", 160),
        printable(left[0].seen or "nothing", 160),
        "`kvmfleet drift --diff` shows it. Repair it on the host, or say that it is fine with `kvmfleet drift accept`.",
    )


def _prove(
    fleet: Fleet,
    options: AnsibleOptions,
    secrets: Secrets,
    boot: Boot,
    standards: Standards,
    tell: Tell,
    edges: Edges,
    converged: Mapping[str, HostConverged],
) -> tuple[HostResult, ...]:
    """One result for each host of the fleet: a silent host never passes."""
    if not fleet.hosts:
        return ()
    answers = edges.collect(
        fleet.hosts,
        options,
        boot=boot,
        secrets=secrets,
        settings=fleet.settings,
        timeout_s=TIMEOUT_S[boot.depth],
        on_answer=tell,
        on_step=tell,
    )
    heard = {answer.host: answer for answer in answers}
    unheard = "the collector gave no answer for it"
    return tuple(
        _result(
            heard.get(host.name) or Collected(host.name, "ssh", problem=unheard),
            converged.get(host.name),
            host.groups,
            standards.profile or _profile(host, heard.get(host.name)),
            standards.waivers,
        )
        for host in fleet.hosts
    )


def _replayed(recording: Recording, standards: Standards) -> HostResult:
    collected = msgspec.structs.replace(recording.collected, recorded_at_s=recording.recorded_at_s)
    profile = standards.profile or recording.profile
    return _result(collected, recording.converged, recording.groups, profile, standards.waivers)


def _result(
    collected: Collected,
    converged: HostConverged | None,
    groups: tuple[str, ...],
    profile: Profile,
    waivers: Waivers,
) -> HostResult:
    host = collected.host
    contract, judgement = None, silence(collected)
    if collected.evidence:
        contract = read_contract(collected.evidence)
        judgement = judge(collected.evidence, contract, profile, waivers.of(host, groups))
    return HostResult(host, _with_play(judgement, converged), collected, contract, converged, profile, groups)


def _profile(host: Host, collected: Collected | None) -> Profile:
    """As the host was told; before the first rollout, as it will be told. The strict one where Jinja decides."""
    contract = read_contract(collected.evidence) if collected and collected.evidence else None
    if contract:
        return contract.profile
    wanted = host.variables.get("kvmfleet_profile")
    return next((profile for profile in get_args(Profile) if profile == wanted), "production")


def _with_play(judgement: Judgement, converged: HostConverged | None) -> Judgement:
    """A host that the playbook did not finish is never good, whatever its evidence says of what was there before."""
    if converged is None or converged.outcome in ("ok", "unchanged") or judgement.verdict == "unreachable":
        return judgement
    finding = _play_finding(converged)
    findings = (finding, *judgement.findings)
    if finding.status == "fail":
        return Judgement("failed", findings, finding)
    return Judgement("failed" if judgement.verdict == "failed" else "unknown", findings, judgement.cause or finding)


def _play_finding(converged: HostConverged) -> Finding:
    """The failed task as a finding, so that every report shows it where it shows all others."""
    # The same words for every host: a report tells hosts that share a failure once.
    fix = "Settle that, then run the same command again; what is done is not done twice."
    if converged.failure is None:
        return Finding(CONVERGED.id, "error", "the playbook never got to this host", "the playbook finishes", "", fix)
    task, item = converged.failure.task, f" ({converged.failure.item})" if converged.failure.item else ""
    where = f"task {task}{item}" if converged.outcome == "failed" else f"unreachable at task {task}"
    summary = f"{where}: {converged.failure.message}"
    return Finding(CONVERGED.id, "fail", summary, "the playbook finishes", converged.outcome, fix)


class _History:
    """The record of one run, from its start, so that one that was interrupted is known too.

    What cannot be written becomes a note beside the results, and never takes their place; it may still be read.
    """

    def __init__(self, store: Callable[[], Store], command: Command) -> None:
        self._store: Store | None = None
        self._problem: StoreError | None = None
        self._notes: tuple[StoreError, ...] = ()
        try:
            self._store = store()
            self._notes = self._store.notes
            self._run = self._store.begin(command)
        except StoreError as e:
            self._problem = e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store:
            self._store.close()

    def known(self, fleet: Fleet, *, needed: bool) -> Mapping[str, Known]:
        """The hosts that have a baseline: none where the history cannot be read, unless it is `needed`."""
        try:
            if self._problem and not (self._store and isinstance(self._problem, UnwritableError)):
                raise self._problem
            return _known(self._store, fleet) if self._store else {}
        except StoreError as e:
            if needed:
                raise
            self._problem = self._problem or e
            return {}

    def booted(self, host: str) -> PastResult | None:
        """The last result with a guest that booted on the host, as far as it can be told."""
        try:
            return self._store.booted(host) if self._store else None
        except StoreError:
            return None

    def keep(self, results: Sequence[HostResult]) -> tuple[KvmfleetError, ...]:
        """A host is its own baseline once the playbook finished on it and it was found good."""
        if self._problem:
            return (*self._notes, _unkept(self._problem))
        try:
            for result in results:
                good = result.judgement.verdict in ("proven", "degraded")
                played = result.converged is not None and result.converged.outcome == "ok"
                self._run.record(result, baseline=good and played)
            self._run.finish("finished")
        except StoreError as e:
            return (*self._notes, e)
        return self._notes

    def leave(self, hosts: Iterable[str]) -> tuple[KvmfleetError, ...]:
        """These hosts are no KVM hosts any more, so there is nothing that they should be like."""
        if self._problem:
            return (*self._notes, _unkept(self._problem))
        try:
            for host in hosts:
                self._run.forget_baseline(host)
            self._run.finish("finished")
        except StoreError as e:
            return (*self._notes, e)
        return self._notes


class _Past:
    """What hosts are compared with, and the record of the comparison."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes: dict[str, KvmfleetError] = {note.message: note for note in store.notes}
        self._run: Record | None = None
        try:
            self._run = store.begin("drift")
        except StoreError as e:
            self._notes[e.message] = _unkept(e)

    def compare(self, collected: Collected, wanted: str) -> HostDrift:
        """`wanted` is the digest of what the inventory wants of the host now."""
        host, now = collected.host, snapshot.take(collected.evidence) if collected.evidence else None
        try:
            baseline = self._store.expectation(host)
            seen = drift.judge(collected, baseline, intent=wanted, version=__version__, now=now)
        except StoreError as e:
            seen = HostDrift(host, "unknown", problem=e.message, hint=e.hint)
        if seen.state == "never-provisioned" and (lost := self._store.lost()):
            problem = f"{seen.problem}; or its baseline was in the history that was damaged, and lies in {lost} now"
            seen = msgspec.structs.replace(seen, problem=problem)
        with self._noted():
            if self._run:
                return self._run.watch(seen, now.items if now else None)
        seen = msgspec.structs.replace(seen, seen_s=time.time())
        with self._noted():
            seen = self._store.dated(seen)
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


def _unkept(error: StoreError) -> StoreError:
    return type(error)(f"{error.message.rstrip('.')}, so nothing of this run is kept.", hint=error.hint)


def _known(store: Store, fleet: Fleet) -> Mapping[str, Known]:
    found = {}
    for host in fleet.hosts:
        baseline, last = store.expectation(host.name), store.last(host.name)
        if baseline and last:
            watched = store.watched(host.name)
            found[host.name] = Known(baseline, last.verdict, watched.items if watched else ())
    return found


def _nothing(_event: Event) -> None:
    """Nobody listens."""
