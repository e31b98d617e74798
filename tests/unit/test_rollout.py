"""The story of a run, with the world at its edges replaced."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence import host as evidence_of
from test_lock import other_run

from orchestrator import intent, lock, rollout
from orchestrator import past as rollout_past
from orchestrator.checks.catalogue import explain
from orchestrator.drift import Baseline
from orchestrator.errors import ConvergeError, LockedError, StoreError
from orchestrator.history.store import PastResult, Store
from orchestrator.history.store import Run as Record
from orchestrator.inventory import AnsibleOptions, Fleet, Host, Secrets
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.run import Boot, Collected, EarlierBoot, HostConverged, HostResult, TaskFailure
from orchestrator.rollout import Edges

OPTIONS = AnsibleOptions()
SILENT = {"problem": "connection refused", "unreachable": True}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def history() -> Iterator[Store]:
    with Store() as store:
        yield store


def fleet(*names: str, **variables: Any) -> Fleet:
    return Fleet(hosts=tuple(Host(name=n, address=n, variables=variables) for n in names), sources=("hosts.ini",))


def world(
    *, play: dict[str, HostConverged] | None = None, answers: dict[str, dict[str, Any]] | None = None, calls: Any = None
) -> Edges:
    """A world in which every play and every host is good, but for those that are given."""
    play, answers, calls = play or {}, answers or {}, [] if calls is None else calls

    def converge(_playbook: str, hosts: Fleet, _options: AnsibleOptions, **more: Any) -> tuple[HostConverged, ...]:
        calls.append(("converge", more))
        return tuple(play.get(h.name) or HostConverged(h.name, "ok", ok=20, changed=5) for h in hosts.hosts)

    def collect(hosts: tuple[Host, ...], _options: AnsibleOptions, **more: Any) -> tuple[Collected, ...]:
        calls.append(("collect", more))
        good = {"evidence": evidence_of({})}
        collected = [Collected(h.name, "ssh", **answers.get(h.name, good)) for h in hosts if answers.get(h.name) != {}]
        for answer in collected:
            more["on_answer"](answer)
        return tuple(collected)

    def stream(hosts: tuple[Host, ...], options: AnsibleOptions, **more: Any) -> None:
        collect(hosts, options, **more)

    return Edges(converge=converge, collect=collect, stream=stream)


def failed(host: str, message: str = "the disk is full") -> HostConverged:
    return HostConverged(host, "failed", ok=3, failed=1, failure=TaskFailure("libvirt : Install", message, "libvirt"))


def verdicts(run: rollout.Run) -> dict[str, str]:
    return {result.host: result.judgement.verdict for result in run.results}


def test_good_hosts_are_proven_and_recorded_as_their_own_baseline(history: Store) -> None:
    run = rollout.provision(fleet("h1", "h2"), OPTIONS, edges=world())
    assert verdicts(run) == {"h1": "proven", "h2": "proven"}
    assert run.notes == ()
    assert run.results[0].converged == HostConverged("h1", "ok", ok=20, changed=5)
    (past,) = history.runs()
    assert (past.command, past.state) == ("provision", "finished")
    assert [result.host for result in history.results(past.id)] == ["h1", "h2"]
    assert history.baseline("h1") is not None


def test_a_host_whose_play_failed_is_looked_at_and_stays_failed(history: Store) -> None:
    run = rollout.provision(fleet("h1", "h2", "h3"), OPTIONS, edges=world(play={"h2": failed("h2")}))
    assert verdicts(run) == {"h1": "proven", "h2": "failed", "h3": "proven"}
    judgement = run.results[1].judgement
    assert judgement.cause
    assert judgement.cause.check == "host.converged"
    assert explain("host.converged"), "what a report names can be explained"
    assert judgement.cause.summary == "task libvirt : Install: the disk is full"
    assert "the same command again" in judgement.cause.fix
    assert any(finding.check == "kvm.exec" and finding.status == "pass" for finding in judgement.findings)
    assert history.baseline("h2") is None


def test_a_host_that_ansible_lost_is_failed_when_the_collector_reaches_it() -> None:
    play = HostConverged("h1", "unreachable", failure=TaskFailure("Gather", "timed out"))
    (result,) = rollout.provision(fleet("h1"), OPTIONS, edges=world(play={"h1": play})).results
    assert result.judgement.verdict == "failed"
    assert result.judgement.cause
    assert result.judgement.cause.summary == "unreachable at task Gather: timed out"


def test_a_host_that_nobody_reaches_has_one_cause() -> None:
    play = HostConverged("h1", "unreachable", failure=TaskFailure("Gather", "timed out"))
    edges = world(play={"h1": play}, answers={"h1": SILENT})
    (result,) = rollout.provision(fleet("h1"), OPTIONS, edges=edges).results
    assert result.judgement.verdict == "unreachable"
    assert [finding.check for finding in result.judgement.findings] == ["host.reachable"]


def test_a_host_that_the_playbook_never_got_to_is_not_proven() -> None:
    (result,) = rollout.provision(
        fleet("h1"), OPTIONS, edges=world(play={"h1": HostConverged("h1", "skipped")})
    ).results
    assert result.judgement.verdict == "unknown"
    assert result.judgement.cause
    assert result.judgement.cause.check == "host.converged"


@pytest.mark.parametrize("run", [rollout.provision, rollout.validate])
def test_a_silent_host_does_not_pass(run: Callable[..., rollout.Run]) -> None:
    result = run(fleet("h1", "h2", "h3"), OPTIONS, edges=world(answers={"h1": SILENT, "h2": {}}))
    assert verdicts(result) == {"h1": "unreachable", "h2": "unknown", "h3": "proven"}


def test_check_mode_proves_nothing_and_records_nothing(history: Store) -> None:
    calls: list[Any] = []
    play = {"h2": failed("h2")}
    run = rollout.provision(fleet("h1", "h2"), AnsibleOptions(check=True), edges=world(play=play, calls=calls))
    assert run.results == ()
    assert [host.outcome for host in run.converged] == ["ok", "failed"]
    assert [name for name, _ in calls] == ["converge"]
    assert history.runs() == ()


def test_validate_changes_nothing_and_makes_no_baseline(history: Store) -> None:
    calls: list[Any] = []
    run = rollout.validate(fleet("h1"), OPTIONS, edges=world(calls=calls))
    assert verdicts(run) == {"h1": "proven"}
    assert run.converged == ()
    assert [name for name, _ in calls] == ["collect"]
    assert history.baseline("h1") is None
    assert [past.command for past in history.runs()] == ["validate"]


def test_secrets_boot_and_intents_arrive_where_they_are_needed() -> None:
    calls: list[Any] = []
    secrets = Secrets(connection="a", become="b")
    rollout.provision(fleet("h1"), OPTIONS, secrets=secrets, boot=Boot("proof"), edges=world(calls=calls))
    (_, converging), (_, collecting) = calls
    assert converging["secrets"] is collecting["secrets"] is secrets
    assert len(converging["intents"]["h1"]) == 64
    assert collecting["boot"] == Boot("proof")


def test_whoever_draws_hears_of_every_host_twice() -> None:
    events: list[rollout.Event] = []
    rollout.provision(fleet("h1", "h2"), OPTIONS, on_event=events.append, edges=world())
    assert [(type(e).__name__, e.host) for e in events] == [
        ("HostConverged", "h1"), ("HostConverged", "h2"), ("Collected", "h1"), ("Collected", "h2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [("lab", "degraded"), ("production", "failed"), ("{{ profile }}", "failed"), ("nonsense", "failed")],
)
def test_before_the_first_rollout_the_inventory_names_the_profile(wanted: str, verdict: str) -> None:
    evidence = evidence_of({"contract": {"text": "", "error": "absent"}, "kvm": {"speed": {"outcome": "emulated"}}})
    edges = world(answers={"h1": {"evidence": evidence}})
    (result,) = rollout.validate(fleet("h1", kvmfleet_profile=wanted), OPTIONS, edges=edges).results
    hardware = next(finding for finding in result.judgement.findings if finding.check == "kvm.hardware")
    assert hardware.status == {"degraded": "warn", "failed": "fail"}[verdict]


def test_a_full_disk_costs_the_record_and_not_the_results() -> None:
    def full() -> Store:
        raise StoreError("history: no space left", hint="Free some.")

    run = rollout.provision(fleet("h1"), OPTIONS, edges=world()._replace(store=full))
    assert verdicts(run) == {"h1": "proven"}
    assert [note.message for note in run.notes] == ["history: no space left, so nothing of this run is kept."]


def refusing(problems: dict[str, str], asked: list[str] | None = None) -> type[Store]:
    """A history that does not take what is about these hosts; `asked` hears of all that it is asked to take."""
    heard = [] if asked is None else asked

    def refuse(host: str) -> None:
        heard.append(host)
        if host in problems:
            raise StoreError(problems[host], hint="Free some.")

    class RefusingRun(Record):
        def record(self, result: HostResult, *, baseline: bool = False) -> None:
            refuse(result.host)
            super().record(result, baseline=baseline)

        def watch(self, found: HostDrift, items: Mapping[str, str] | None) -> HostDrift:
            refuse(found.host)
            return super().watch(found, items)

        def forget_baseline(self, host: str) -> None:
            refuse(host)
            super().forget_baseline(host)

        def finish(self, outcome: str) -> None:
            refuse("the end")
            super().finish(outcome)

    class RefusingStore(Store):
        def begin(self, command: str, *, started_at_s: float | None = None) -> Record:
            return RefusingRun(self.engine, super().begin(command).id)

    return RefusingStore


FULL, TORN = "history: no space left", "history: text that it does not take."


def test_a_disk_that_fills_up_meanwhile_costs_the_record_and_not_the_results() -> None:
    store = refusing({"h1": FULL, "h2": FULL, "the end": FULL})
    run = rollout.provision(fleet("h1", "h2"), OPTIONS, edges=world()._replace(store=store))
    assert verdicts(run) == {"h1": "proven", "h2": "proven"}
    assert [note.message for note in run.notes] == [f"{FULL}, so nothing of this run is kept."]


def test_a_host_that_cannot_be_recorded_costs_no_other_host_its_record(history: Store) -> None:
    names = [f"h{n}" for n in range(1, 16)]
    bad = dict.fromkeys(names[1:14], FULL) | {"h1": TORN}
    run = rollout.provision(fleet(*names), OPTIONS, edges=world()._replace(store=refusing(bad)))
    assert set(verdicts(run).values()) == {"proven"}
    first = ", ".join(names[1:11])
    assert [note.message for note in run.notes] == [
        "history: text that it does not take, so nothing of this run is kept about h1.",
        f"{FULL}, so nothing of this run is kept about {first} and 3 more.",
    ]
    (past,) = history.runs()
    assert (past.state, [result.host for result in history.results(past.id)]) == ("finished", ["h15"])
    assert history.baseline("h15")


def test_a_baseline_that_cannot_be_forgotten_costs_no_other_host_its_own(history: Store) -> None:
    hosts = fleet("h1", "h2")
    rollout.provision(hosts, OPTIONS, edges=world())
    run = rollout.unprovision(hosts, OPTIONS, edges=world()._replace(store=refusing({"h1": FULL})))
    assert [note.message for note in run.notes] == [f"{FULL}, so nothing of this run is kept about h1."]
    assert (history.baseline("h1") is None, history.baseline("h2") is None) == (False, True)
    assert history.runs()[0].state == "finished"


def test_a_run_whose_end_cannot_be_noted_says_so_and_keeps_its_hosts(history: Store) -> None:
    run = rollout.validate(fleet("h1"), OPTIONS, edges=world()._replace(store=refusing({"the end": FULL})))
    assert [note.message for note in run.notes] == [FULL]
    assert history.last("h1")


def test_a_history_that_another_run_holds_is_not_waited_for_once_for_each_host(
    history: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_past, "PATIENCE_S", 1e-9)
    asked: list[str] = []
    store = refusing({"h2": FULL, "h3": FULL, "h4": FULL}, asked)
    run = rollout.validate(fleet("h1", "h2", "h3", "h4"), OPTIONS, edges=world()._replace(store=store))
    assert [note.message for note in run.notes] == [f"{FULL}, so nothing of this run is kept about h2, h3, h4."]
    assert asked == ["h1", "h2", "the end"]
    assert history.runs()[0].state == "finished"


def test_an_interrupted_run_is_known_as_unfinished_and_frees_its_hosts(history: Store) -> None:
    def interrupt(*_: Any, **__: Any) -> tuple[HostConverged, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout.provision(fleet("h1"), OPTIONS, edges=world()._replace(converge=interrupt))
    (past,) = history.runs()
    assert past.finished_at_s is None
    assert list((lock.paths.state() / "locks").glob("*.json")) == []


def test_a_playbook_that_cannot_run_at_all_judges_nobody() -> None:
    def refuse(*_: Any, **__: Any) -> tuple[HostConverged, ...]:
        raise ConvergeError("play.yml:3: not a task")

    with pytest.raises(ConvergeError):
        rollout.provision(fleet("h1"), OPTIONS, edges=world()._replace(converge=refuse))


def test_the_hosts_are_held_while_they_are_changed_and_while_they_are_proven() -> None:
    held: list[bool] = []

    def note(*_: Any, **__: Any) -> None:
        held.append(any((lock.paths.state() / "locks").glob("*.json")))

    edges = world()
    spied = Edges(
        converge=lambda *a, **k: (note(), edges.converge(*a, **k))[1],
        collect=lambda *a, **k: (note(), edges.collect(*a, **k))[1],
    )
    rollout.provision(fleet("h1"), OPTIONS, edges=spied)
    rollout.validate(fleet("h1"), OPTIONS, edges=spied)
    assert held == [True, True, False]


def test_a_held_fleet_is_left_alone() -> None:
    calls: list[Any] = []
    with other_run(h1="h1"), pytest.raises(LockedError):
        rollout.provision(fleet("h1"), OPTIONS, edges=world(calls=calls))
    assert calls == []


def test_unprovisioning_proves_nothing_and_drops_the_baseline_of_whoever_left(history: Store) -> None:
    rollout.provision(fleet("h1", "h2"), OPTIONS, edges=world())
    calls: list[Any] = []
    run = rollout.unprovision(fleet("h1", "h2"), OPTIONS, edges=world(play={"h2": failed("h2")}, calls=calls))
    assert run.results == ()
    assert [host.outcome for host in run.converged] == ["ok", "failed"]
    assert [name for name, _ in calls] == ["converge"]
    assert history.baseline("h1") is None
    assert history.baseline("h2") is not None
    assert history.runs()[0].command == "unprovision"


def test_a_dry_run_of_unprovisioning_leaves_the_baseline(history: Store) -> None:
    rollout.provision(fleet("h1"), OPTIONS, edges=world())
    rollout.unprovision(fleet("h1"), AnsibleOptions(check=True), edges=world())
    assert history.baseline("h1") is not None
    assert len(history.runs()) == 1


def states(seen: rollout.Watch) -> dict[str, str]:
    return {host.host: host.state for host in seen.hosts}


def test_hosts_are_compared_with_their_baseline_and_silent_ones_are_never_in_sync(history: Store) -> None:
    hosts = fleet("h1", "h2", "h3", "h4")
    rollout.provision(fleet("h1", "h2", "h3"), OPTIONS, edges=world())
    touched = {"evidence": evidence_of({"packages": {"qemu-system-x86": "1:7.1"}})}
    answers = {"h2": touched, "h3": SILENT}
    # the intent of the base host's contract is not the one that this inventory has
    assert states(rollout.watch(hosts, OPTIONS, edges=world(answers=answers))) == {
        "h1": "pending",
        "h2": "drifted",
        "h3": "unreachable",
        "h4": "never-provisioned",
    }
    assert history.runs()[0].command == "drift"
    assert history.runs()[0].state == "finished"
    known = history.watched("h2")
    assert known
    assert known.items[0].item == "package:qemu-system-x86"
    again = rollout.watch(hosts, OPTIONS, edges=world(answers=answers))
    assert again.hosts[1].items == known.items, "it is so since it was first seen"


def test_a_history_that_another_run_holds_costs_drift_no_wait_for_each_host_and_is_read(
    history: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = fleet("h1", "h2", "h3", "h4")
    rollout.provision(hosts, OPTIONS, edges=world())
    monkeypatch.setattr(rollout_past, "PATIENCE_S", 1e-9)
    asked: list[str] = []
    store = refusing({"h2": FULL, "h3": FULL, "h4": FULL}, asked)
    seen = rollout.watch(hosts, OPTIONS, edges=world()._replace(store=store))
    assert states(seen) == dict.fromkeys(("h1", "h2", "h3", "h4"), "pending")
    assert [note.message for note in seen.notes] == [FULL]
    assert asked == ["h1", "h2", "the end"]


def test_a_history_that_does_not_answer_any_more_is_not_asked_for_each_host(
    history: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_past, "PATIENCE_S", 1e-9)
    asked: list[str] = []

    class Gone(Store):
        def expectation(self, host: str) -> Baseline | None:
            asked.append(host)
            raise StoreError("history: the server is gone", hint="Start it.")

    seen = rollout.watch(fleet("h1", "h2", "h3"), OPTIONS, edges=world()._replace(store=Gone))
    assert {(host.state, host.problem, host.hint) for host in seen.hosts} == {
        ("unknown", "history: the server is gone", "Start it.")
    }
    assert asked == ["h1"]


def test_no_guest_is_started_to_look_for_drift_and_a_host_without_an_answer_is_unknown() -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    seen = rollout.watch(fleet("h1"), OPTIONS, edges=world(answers={"h1": {}}, calls=calls))
    assert states(seen) == {"h1": "unknown"}
    assert [name for name, _ in calls] == ["collect"]
    assert calls[0][1]["boot"] == Boot("none")


def test_each_host_is_in_the_history_as_soon_as_it_answered(history: Store) -> None:
    rollout.provision(fleet("h1", "h2"), OPTIONS, edges=world())

    def stream(hosts: tuple[Host, ...], _options: AnsibleOptions, **more: Any) -> None:
        more["on_answer"](Collected("h1", "ssh", evidence=evidence_of({})))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout.watch(fleet("h1", "h2"), OPTIONS, edges=Edges(stream=stream))
    assert history.watched("h1")
    assert history.watched("h2") is None
    assert history.runs()[0].state != "finished"


OTHER_QEMU = {"packages": {"qemu-system-x86": "1:7.1"}}
FLAGS = {"identity": {"flags": ["svm"]}}  # another processor, as it were


def told(hosts: Fleet, patch: Any = None, **contract: Any) -> dict[str, dict[str, Any]]:
    """What hosts answer that carry the contract of this inventory."""
    digests = intent.digests(hosts)
    return {h: {"evidence": evidence_of(patch, {"intent_digest": d} | contract)} for h, d in digests.items()}


def again(hosts: Fleet, patch: Any = None, *, options: AnsibleOptions = OPTIONS, **more: Any) -> tuple[Any, list[Any]]:
    """A provision of hosts that answer as they did, but for the patch: the run, and what it did."""
    calls: list[Any] = []
    return rollout.provision(hosts, options, edges=world(answers=told(hosts, patch), calls=calls), **more), calls


def done(calls: list[Any]) -> list[str]:
    """What was done in which order: converge, or to collect and how deep."""
    return [str(more["boot"].depth) if name == "collect" else name for name, more in calls]


@pytest.fixture
def hosts() -> Fleet:
    """Two that were provisioned and found good."""
    pair = fleet("h1", "h2")
    again(pair)
    return pair


def test_hosts_that_are_as_they_should_be_are_left_alone_and_proven_by_the_look(hosts: Fleet, history: Store) -> None:
    before = history.baseline("h1")
    run, calls = again(hosts)
    assert done(calls) == ["proof"]
    assert verdicts(run) == {"h1": "proven", "h2": "proven"}
    assert [host.outcome for host in run.converged] == ["unchanged", "unchanged"]
    assert run.results[0].converged == run.converged[0]
    boot = next(finding for finding in run.results[0].judgement.findings if finding.check == "guest.boot")
    assert "a domain booted at 20" in boot.summary
    assert "nothing on the host changed since" in boot.summary
    assert run.results[0].booted == EarlierBoot(before.recorded_at_s if before else 0.0, "firmware", "kvm")
    assert history.baseline("h1") == before
    last = history.last("h1")
    assert last
    assert before
    assert last.run_id > before.run_id


def test_only_those_that_are_not_are_converged(hosts: Fleet) -> None:
    calls: list[Any] = []
    answers = told(hosts) | {"h2": told(hosts, OTHER_QEMU)["h2"]}
    run = rollout.provision(hosts, OPTIONS, edges=world(answers=answers, calls=calls))
    assert done(calls) == ["proof", "converge", "firmware"]
    assert [host.outcome for host in run.converged] == ["unchanged", "ok"]
    assert [result.host for result in run.results] == ["h1", "h2"]


EXPIRING = {"remote": {"certificates": {"/etc/pki/c.pem": {"not_before_s": 0, "not_after_s": 1900000000}}}}


@pytest.mark.parametrize(
    "changed",
    [
        {"which": "all"},
        {"options": AnsibleOptions(tags=("libvirt",))},
        {"options": AnsibleOptions(skip_tags=("libvirt",))},
        {
            "boot": Boot("none"),
            "patch": {"kvm": {"execution": {"outcome": "skipped"}}, "guest": {"outcome": "skipped"}},
        },
        {"patch": OTHER_QEMU},
        {"patch": {"errors": {"packages": "not done after 20 s"}}},
        {"patch": {"kvm": {"execution": {"outcome": "broken"}}}},
    ],
    ids=["forced", "some tags", "not some tags", "no guest", "drifted", "half blind", "broken"],
)
def test_in_doubt_a_host_is_converged(hosts: Fleet, changed: dict[str, Any]) -> None:
    run, calls = again(hosts, **changed)
    assert "converge" in done(calls)
    assert [host.outcome for host in run.converged] == ["ok", "ok"]


def test_a_host_of_which_something_else_is_asked_is_converged(hosts: Fleet) -> None:
    other = fleet("h1", "h2", kvmfleet_profile="lab")
    _, calls = again(other)
    assert "converge" in done(calls)


def test_a_host_that_was_not_good_when_it_was_last_looked_at_is_converged(hosts: Fleet) -> None:
    broken = told(hosts, {"kvm": {"execution": {"outcome": "broken"}}})
    rollout.validate(hosts, OPTIONS, edges=world(answers=broken))
    _, calls = again(hosts)
    assert "converge" in done(calls)


def test_a_host_is_converged_when_its_certificates_are_to_be_renewed(state: Path) -> None:
    pair = fleet("h1")
    assert "converge" in done(again(pair, EXPIRING)[1])
    assert "converge" in done(again(pair, EXPIRING)[1])


def test_a_host_that_another_version_provisioned_is_converged(hosts: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "__version__", "99.0")
    assert "converge" in done(again(hosts)[1])


def test_a_host_that_is_worse_than_after_its_last_rollout_is_converged(state: Path) -> None:
    pair = fleet("h1", kvmfleet_profile="lab")
    again(pair)
    worse = told(pair, {"kvm": {"speed": {"outcome": "emulated"}}}, profile="lab")
    again_worse = world(answers=worse, calls=(calls := []))
    rollout.provision(pair, OPTIONS, edges=again_worse)
    assert "converge" in done(calls)


def test_a_host_that_does_not_answer_is_not_left_alone(hosts: Fleet) -> None:
    calls: list[Any] = []
    run = rollout.provision(hosts, OPTIONS, edges=world(answers=told(hosts) | {"h2": SILENT}, calls=calls))
    assert verdicts(run)["h2"] == "unreachable"
    assert [host.outcome for host in run.converged] == ["unchanged", "ok"]


def test_a_guest_boots_again_after_a_reboot_and_where_a_deeper_one_is_asked_for(hosts: Fleet) -> None:
    run, calls = again(hosts, {"system": {"boot_id": "another"}})
    assert done(calls) == ["proof", "firmware"]
    assert [result.converged.outcome for result in run.results if result.converged] == ["unchanged", "unchanged"]
    assert done(again(hosts, boot=Boot("alpine"))[1]) == ["proof", "alpine"]
    assert done(again(hosts, boot=Boot("proof"))[1]) == ["proof"]


@pytest.mark.parametrize("subnet", [{"subnet": "auto"}, {"mode": "route", "subnet": "10.1.0.0/24"}])
def test_hosts_that_choose_their_subnets_together_are_converged_together(subnet: dict[str, str], state: Path) -> None:
    choosing = fleet("h1", "h2", libvirt_networks=[{"name": "lab", **subnet}])
    again(choosing)
    assert done(again(choosing)[1]) == ["proof"]
    calls: list[Any] = []
    answers = told(choosing) | {"h2": told(choosing, OTHER_QEMU)["h2"]}
    run = rollout.provision(choosing, OPTIONS, edges=world(answers=answers, calls=calls))
    assert [host.outcome for host in run.converged] == ["ok", "ok"]


def test_without_a_history_every_host_is_converged(hosts: Fleet) -> None:
    def full() -> Store:
        raise StoreError("history: no space left")

    calls: list[Any] = []
    edges = world(answers=told(hosts), calls=calls)._replace(store=full)
    run = rollout.provision(hosts, OPTIONS, edges=edges)
    assert done(calls) == ["converge", "firmware"]
    assert [note.message for note in run.notes] == ["history: no space left, so nothing of this run is kept."]
    with pytest.raises(StoreError):
        rollout.provision(hosts, OPTIONS, which="drifted", edges=edges)


def test_a_baseline_that_cannot_be_read_costs_its_host_a_playbook_and_is_made_anew(hosts: Fleet, state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "history.sqlite3")) as connection, connection:
        connection.execute("UPDATE baselines SET taken_by = 'an edition of before'")
        connection.execute("UPDATE evidence SET document = x'00' WHERE id = 1")
    run, _ = again(hosts)
    assert [host.outcome for host in run.converged] == ["ok", "unchanged"]
    (note,) = run.notes
    assert "the evidence of h1 in run 1 cannot be read" in note.message
    assert "kvmfleet provision" in note.hint
    run, _ = again(hosts)
    assert ([host.outcome for host in run.converged], run.notes) == (["unchanged", "unchanged"], ())


def test_when_guests_booted_is_not_asked_for_each_host_of_a_history_that_does_not_answer(
    hosts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_past, "PATIENCE_S", 1e-9)
    asked: list[str] = []

    class Gone(Store):
        def booted(self, host: str) -> PastResult | None:
            asked.append(host)
            raise StoreError("history: the server is gone", hint="Start it.")

    calls: list[Any] = []
    edges = world(answers=told(hosts), calls=calls)._replace(store=Gone)
    assert verdicts(rollout.provision(hosts, OPTIONS, edges=edges)) == {"h1": "proven", "h2": "proven"}
    assert done(calls) == ["proof", "firmware"], "as nobody knows when a guest booted, one does now"
    assert len(asked) == 1


def test_only_what_drifted_is_healed_and_the_others_are_named(hosts: Fleet) -> None:
    wanted = fleet("h1", "h2", "h3", "h4")
    pending = evidence_of(None, {"intent_digest": "older"})
    rollout.provision(fleet("h4"), OPTIONS, edges=world(answers={"h4": {"evidence": pending}}))
    answers = told(wanted) | {"h2": told(wanted, OTHER_QEMU)["h2"], "h4": {"evidence": pending}}
    calls: list[Any] = []
    run = rollout.provision(
        wanted, OPTIONS, which="drifted", boot=Boot("proof"), edges=world(answers=answers, calls=calls)
    )
    assert done(calls) == ["proof", "converge", "proof"]
    assert {host.host: host.outcome for host in run.converged} == {
        "h1": "unchanged", "h2": "ok", "h3": "unchanged", "h4": "unchanged",
    }  # fmt: skip
    notes = {host.host: host.notes for host in run.converged}
    assert "never provisioned" in notes["h3"][0]
    assert "not rolled out" in notes["h4"][0]


def test_where_nothing_drifted_nothing_is_healed(hosts: Fleet) -> None:
    run, calls = again(hosts, which="drifted")
    assert done(calls) == ["proof"]
    assert {host.outcome for host in run.converged} == {"unchanged"}


def test_a_guest_that_booted_before_is_no_word_for_a_host_on_which_none_would_now(hosts: Fleet) -> None:
    run, _ = again(hosts, {"kvm": {"execution": {"outcome": "broken"}}}, which="drifted")
    assert verdicts(run) == {"h1": "failed", "h2": "failed"}
    (boot,) = (finding for finding in run.results[0].judgement.findings if finding.check == "guest.boot")
    assert ("booted at" in boot.summary, run.results[0].booted) == (False, None)


def test_a_silent_host_does_not_pass_for_one_that_did_not_drift(hosts: Fleet) -> None:
    calls: list[Any] = []
    edges = world(answers={"h1": SILENT, "h2": {}}, calls=calls)
    assert verdicts(rollout.provision(hosts, OPTIONS, which="drifted", edges=edges)) == {
        "h1": "unreachable",
        "h2": "unknown",
    }
    assert done(calls) == ["proof"]


def sequence(*answers: dict[str, dict[str, Any]]) -> Edges:
    """A world whose hosts answer otherwise each time."""
    turns = iter(answers)
    edges = world()

    def collect(hosts: tuple[Host, ...], options: AnsibleOptions, **more: Any) -> tuple[Collected, ...]:
        return world(answers=next(turns)).collect(hosts, options, **more)

    return edges._replace(collect=collect)


def items(history: Store, host: str) -> dict[str, str]:
    known = history.expectation(host)
    assert known
    return dict(known.items)


def test_drift_that_a_provision_leaves_is_named_and_stays_drift(hosts: Fleet, history: Store) -> None:
    before = items(history, "h1")
    run, _ = again(hosts, OTHER_QEMU | FLAGS)
    left = run.results[0].left
    assert [msgspec.structs.replace(item, since_s=0.0) for item in left] == [
        Drift("hardware:cpu flags", None, "svm"),
        Drift("package:qemu-system-x86", before["package:qemu-system-x86"], "1:7.1"),
    ]
    (finding,) = [f for f in run.results[0].judgement.findings if f.check == "host.drift"]
    assert "hardware:cpu flags, package:qemu-system-x86" in finding.summary
    assert verdicts(run)["h1"] == "degraded"
    assert explain("host.drift")
    assert items(history, "h1") == before
    seen = rollout.watch(hosts, OPTIONS, edges=world(answers=told(hosts, OTHER_QEMU | FLAGS)))
    assert states(seen)["h1"] == "drifted"
    repeated, _ = again(hosts, OTHER_QEMU | FLAGS)
    assert repeated.results[0].left == seen.hosts[0].items, "since a drift check saw it"
    assert items(history, "h1") == before, "nor does the provision after it forget"


def test_what_was_accepted_is_left_no_more(hosts: Fleet, history: Store) -> None:
    rollout.watch(hosts, OPTIONS, edges=world(answers=told(hosts, FLAGS)))
    seen = history.watched("h1")
    assert seen
    history.accept("h1", seen.items, reason="a new processor")
    run, _ = again(hosts, FLAGS, which="all")
    assert run.results[0].left == ()
    assert [item.item for item in run.results[1].left] == ["hardware:cpu flags"]
    assert items(history, "h1")["hardware:cpu flags"] == "svm"


def test_what_the_playbook_changed_is_how_the_host_should_be(hosts: Fleet, history: Store) -> None:
    edges = sequence(told(hosts), told(hosts, {"packages": {"qemu-system-x86": "1:7.9"}}))
    run = rollout.provision(hosts, OPTIONS, which="all", edges=edges)
    assert run.results[0].left == ()
    assert items(history, "h1")["package:qemu-system-x86"] == "1:7.9"


def test_what_a_playbook_made_whose_host_was_not_good_then_is_not_taken_for_drift(hosts: Fleet, history: Store) -> None:
    """It was told something else, and left no baseline, as it did not end; then comes one that ends well."""
    other, made = fleet("h1", "h2", host_tuning_sysctls={}), {"packages": {"qemu-system-x86": "1:7.9"}}
    ends = world(play={"h1": failed("h1"), "h2": failed("h2")}).converge
    rollout.provision(other, OPTIONS, edges=sequence(told(hosts), told(other, made))._replace(converge=ends))
    run = rollout.provision(other, OPTIONS, edges=sequence(told(other, made), told(other, made)))
    assert run.results[0].left == ()
    assert items(history, "h1")["package:qemu-system-x86"] == "1:7.9"


def test_drift_is_left_also_where_some_tasks_or_a_failed_look_do_not_tell(hosts: Fleet, history: Store) -> None:
    before = items(history, "h1")
    run, _ = again(hosts, FLAGS, options=AnsibleOptions(tags=("host_tuning",)))
    assert [item.item for item in run.results[0].left] == ["hardware:cpu flags"]
    silent = {"h1": SILENT, "h2": SILENT}
    run = rollout.provision(hosts, OPTIONS, edges=sequence(silent, told(hosts, OTHER_QEMU)))
    assert [item.item for item in run.results[0].left] == ["package:qemu-system-x86"]
    assert items(history, "h1") == before


def test_a_provision_that_did_not_end_well_makes_no_baseline(hosts: Fleet, history: Store) -> None:
    before = history.baseline("h1")
    edges = world(answers=told(hosts, FLAGS), play={"h1": failed("h1"), "h2": failed("h2")})
    assert rollout.provision(hosts, OPTIONS, edges=edges).results[0].left == ()
    assert history.baseline("h1") == before


def test_forgotten_runs_take_what_they_left_along(hosts: Fleet, history: Store) -> None:
    again(hosts, FLAGS)
    again(hosts, FLAGS)
    assert history.prune(float("inf")) > 0
    seen = rollout.watch(hosts, OPTIONS, edges=world(answers=told(hosts, FLAGS)))
    assert states(seen) == {"h1": "drifted", "h2": "drifted"}
