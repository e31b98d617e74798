"""The story of a run: lock, converge, collect, judge, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestrator import __version__, drift, intent, lock, probe, snapshot
from orchestrator.collect import collect, stream
from orchestrator.converge import Progress, converge
from orchestrator.errors import KvmfleetError
from orchestrator.history.store import Store
from orchestrator.inventory import AnsibleOptions, Fleet, Secrets
from orchestrator.judge import judge_fleet
from orchestrator.model.drift import HostDrift
from orchestrator.model.finding import FleetFinding
from orchestrator.model.run import Boot, Collected, Depth, HostConverged, HostResult, Step
from orchestrator.past import Comparison, History
from orchestrator.probe import Known, Look, Which
from orchestrator.recording import Recording
from orchestrator.result import STANDARDS, Standards, judged, profile_of, unheard, with_left

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


class _Means(NamedTuple):
    """How each step of a run gets at hosts, and who hears of it."""

    options: AnsibleOptions
    secrets: Secrets
    tell: Tell
    edges: Edges

    def play(self, fleet: Fleet, intents: Mapping[str, str], playbook: str = PLAYBOOK) -> tuple[HostConverged, ...]:
        if not fleet.hosts:
            return ()
        converged = self.edges.converge(
            playbook, fleet, self.options, secrets=self.secrets, intents=intents, on_event=self.tell
        )
        for host in converged:
            self.tell(host)
        return converged

    def prove(
        self,
        fleet: Fleet,
        boot: Boot,
        standards: Standards,
        converged: Mapping[str, HostConverged] | None = None,
    ) -> tuple[HostResult, ...]:
        """One result for each host of the fleet: a silent host never passes."""
        if not fleet.hosts:
            return ()
        answers = self.edges.collect(
            fleet.hosts,
            self.options,
            boot=boot,
            secrets=self.secrets,
            settings=fleet.settings,
            timeout_s=TIMEOUT_S[boot.depth],
            on_answer=self.tell,
            on_step=self.tell,
        )
        heard = {answer.host: answer for answer in answers}
        return tuple(
            judged(
                heard.get(host.name) or unheard(host.name),
                converged.get(host.name) if converged else None,
                host.groups,
                standards.profile or profile_of(host, heard.get(host.name)),
                standards.waivers,
            )
            for host in fleet.hosts
        )


def provision(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
    boot: Boot = Boot(),
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
    means = _Means(options, secrets, on_event or _nothing, edges)
    with lock.hold(fleet, "provision"):
        intents = intent.digests(fleet)
        if options.check:
            return Run((), means.play(fleet, intents))
        if which == "needed" and (options.tags or options.skip_tags):
            which = "all"
        with History(edges.store, "provision") as history:
            known = history.known(fleet, needed=which == "drifted")
            looks = _look(fleet, means, boot, standards, which, known, intents)
            spared = probe.spared(looks.values(), fleet.hosts, which, intents, __version__)
            unchanged = {name: probe.told(looks[name]) for name in spared}
            for host in unchanged.values():
                means.tell(host)
            played = means.play(_only(fleet, lambda name: name not in spared), intents)
            done = unchanged | {host.host: host for host in played}
            settled = {name: _settled(looks[name], boot, history, done[name]) for name in spared}
            asked = _only(fleet, lambda name: not settled.get(name))
            proven = {r.host: r for r in means.prove(asked, boot, standards, done)}
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
    secrets: Secrets = Secrets(),
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Run:
    """Takes back what was added to every host. `converged` tells what happened; there is nothing left to prove.

    Raises:
        LockedError: another run changes one of these hosts.
        ConvergeError: Ansible could not run the playbook at all.
        Interrupted, KeyboardInterrupt: nothing of the run is left on the controller; the next one goes on.
    """
    means = _Means(options, secrets, on_event or _nothing, edges)
    with lock.hold(fleet, "unprovision"):
        if options.check:
            return Run((), means.play(fleet, {}, BACK))
        with History(edges.store, "unprovision") as history:
            converged = means.play(fleet, {}, BACK)
            return Run((), converged, history.leave(host.host for host in converged if host.outcome == "ok"))


def validate(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
    boot: Boot = Boot(),
    standards: Standards = STANDARDS,
    on_event: Tell | None = None,
    edges: Edges = EDGES,
) -> Run:
    """Proves every host as it is. Takes no lock: looking changes nothing, and may go on beside a rollout."""
    means = _Means(options, secrets, on_event or _nothing, edges)
    with History(edges.store, "validate") as history:
        results = means.prove(fleet, boot, standards)
        return Run(results, (), history.keep(results), judge_fleet(results))


def watch(
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
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
        comparison = Comparison(store)
        found: dict[str, HostDrift] = {}

        def heard(collected: Collected) -> None:
            found[collected.host] = comparison.of(collected, intents[collected.host])
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
                heard(unheard(host.name))
        return Watch(tuple(found[host.name] for host in fleet.hosts), comparison.end())


def replay(recordings: Sequence[Recording], standards: Standards = STANDARDS) -> Run:
    """Judges what was recorded. No host is asked, and the history, which tells what was when, stays as it is."""
    results = tuple(_replayed(recording, standards) for recording in recordings)
    return Run(results, fleet=judge_fleet(results))


def _look(
    fleet: Fleet,
    means: _Means,
    boot: Boot,
    standards: Standards,
    which: Which,
    known: Mapping[str, Known],
    intents: Mapping[str, str],
) -> Mapping[str, Look]:
    """How hosts are before the playbook runs: those that have a baseline; where only drift is healed, all of them.

    The look may be all the proof that a host gets, and then it executes a guest. With --boot none it does not, and no
    host is found good enough to be left alone.
    """
    seen = fleet if which == "drifted" else _only(fleet, lambda name: name in known)
    depth = Boot("none" if which == "all" or boot.depth == "none" else "proof")
    looks = {}
    for host, result in zip(seen.hosts, means.prove(seen, depth, standards), strict=True):
        past = known.get(host.name)
        baseline = past.baseline if past else None
        seen_drift = drift.judge(result.collected, baseline, intent=intents[host.name], version=__version__)
        looks[host.name] = Look(host, result, seen_drift, past)
    return looks


def _only(fleet: Fleet, wanted: Callable[[str], bool]) -> Fleet:
    return msgspec.structs.replace(fleet, hosts=tuple(host for host in fleet.hosts if wanted(host.name)))


def _settled(look: Look, boot: Boot, history: History, unchanged: HostConverged) -> HostResult | None:
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
    return with_left(result, drift.timed(left, look.known.drift, time.time())) if left else result


def _replayed(recording: Recording, standards: Standards) -> HostResult:
    collected = msgspec.structs.replace(recording.collected, recorded_at_s=recording.recorded_at_s)
    profile = standards.profile or recording.profile
    return judged(collected, recording.converged, recording.groups, profile, standards.waivers)


def _nothing(_event: Event) -> None:
    """Nobody listens."""
