"""The story of a run, with the world at its edges replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence import host as evidence_of
from test_lock import other_run

from orchestrator import lock, rollout
from orchestrator.checks.catalogue import explain
from orchestrator.errors import ConvergeError, LockedError, StoreError
from orchestrator.inventory import AnsibleOptions, Fleet, Host, Secrets
from orchestrator.model import Boot, Collected, HostConverged, HostResult, TaskFailure
from orchestrator.rollout import Edges
from orchestrator.store import Run as Record
from orchestrator.store import Store

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
    assert [note.message for note in run.notes] == ["history: no space left"]


def test_a_disk_that_fills_up_meanwhile_costs_the_record_and_not_the_results() -> None:
    class FullRun(Record):
        def record(self, result: HostResult, *, baseline: bool = False) -> None:
            raise StoreError("history: no space left", hint="Free some.")

    class FillingStore(Store):
        def begin(self, command: str, *, started_at_s: float | None = None) -> Record:
            return FullRun(self._engine, super().begin(command).id)

    run = rollout.provision(fleet("h1"), OPTIONS, edges=world()._replace(store=FillingStore))
    assert verdicts(run) == {"h1": "proven"}
    assert [note.message for note in run.notes] == ["history: no space left"]


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
