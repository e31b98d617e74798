"""What goes into the history comes out of it, however its runs end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping

import msgspec
import postgresql
import pytest
from histories import FOLDERS, execute
from hypothesis import given
from hypothesis import strategies as st
from learned import BAD, GOOD, result, seen

from orchestrator.errors import StoreError
from orchestrator.history import tables
from orchestrator.history.store import Store
from orchestrator.model.drift import Drift
from orchestrator.model.finding import Finding, Judgement
from orchestrator.model.run import Collected, HostResult


def test_a_recorded_host_comes_back_whole(store: Store) -> None:
    run = store.begin("validate")
    given = result("hv1", GOOD, BAD, contract='{"schema":1}')
    run.record(given)
    last = store.last("hv1")
    assert last
    assert (last.verdict, last.cause, last.path, last.problem) == ("failed", "kvm.node", "ssh", "")
    assert last.findings == (GOOD, BAD)
    assert last.evidence == given.collected.evidence
    assert last.intent_digest == "abc"
    assert len(last.contract_digest) == 64


def test_a_host_that_gave_no_evidence_is_recorded_with_its_problem(store: Store) -> None:
    silent = HostResult("hv2", Judgement("unreachable", ()), Collected("hv2", "ssh", problem="refused"))
    store.begin("validate").record(silent)
    last = store.last("hv2")
    assert last
    assert (last.verdict, last.problem, last.evidence, last.findings) == ("unreachable", "refused", None, ())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest) -> Iterator[Store]:
    sqlite = request.param == "sqlite"
    with Store("sqlite://" if sqlite else postgresql.new_database(request.getfixturevalue("server"))) as opened:
        yield opened


TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # msgspec lets no lone surrogate in


@given(TEXT, TEXT)
def test_any_text_a_host_may_send_comes_back_unchanged(shared: Store, summary: str, hostname: str) -> None:
    shared.begin("validate").record(result("hv1", Finding("a.b", "warn", summary), hostname=hostname))
    last = shared.last("hv1")
    assert last
    assert last.evidence
    assert (last.findings[0].summary, last.evidence.system.hostname) == (summary, hostname)


def test_what_is_known_of_an_unknown_host_is_nothing(store: Store) -> None:
    assert store.last("hv9") is None
    assert store.baseline("hv9") is None
    assert store.runs() == ()
    assert store.results(1) == ()


def test_runs_come_latest_first_and_results_in_the_order_of_the_run(store: Store) -> None:
    first, second = store.begin("provision"), store.begin("validate")
    for host in ("c", "a", "b"):
        second.record(result(host))
    assert [run.id for run in store.runs()] == [second.id, first.id]
    assert [run.command for run in store.runs(limit=1)] == ["validate"]
    assert [past.host for past in store.results(second.id)] == ["c", "a", "b"]


def test_a_finished_run_says_how_it_ended(store: Store) -> None:
    store.begin("validate").finish("failed")
    (run,) = store.runs()
    assert (run.state, run.outcome) == ("finished", "failed")
    assert run.finished_at_s
    assert run.finished_at_s >= run.started_at_s


def test_the_baseline_stays_what_it_was_until_a_new_one_is_set(store: Store) -> None:
    store.begin("provision").record(result(hostname="good"), baseline=True)
    store.begin("validate").record(result(hostname="later"))
    baseline, last = store.baseline("hv1"), store.last("hv1")
    assert baseline
    assert baseline.evidence
    assert baseline.evidence.system.hostname == "good"
    assert last
    assert last.evidence
    assert last.evidence.system.hostname == "later"
    store.begin("provision").record(result(hostname="better"), baseline=True)
    renewed = store.baseline("hv1")
    assert renewed
    assert renewed.evidence
    assert renewed.evidence.system.hostname == "better"


def test_a_history_outlives_its_process(url: str) -> None:
    with Store(url) as store:
        store.begin("validate").record(result())
    with Store(url) as store:
        assert store.last("hv1")


def test_a_run_whose_process_was_killed_is_interrupted_and_keeps_what_it_learned(url: str) -> None:
    script = f"""
        import os, signal, sys
        sys.path[:0] = {FOLDERS}
        from learned import result
        from orchestrator.history.store import Store
        run = Store({url!r}).begin("provision")
        run.record(result("hv1"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert child.returncode == -9
    with Store(url) as store:
        (run,) = store.runs()
        assert (run.state, run.finished_at_s) == ("interrupted", None)
        assert [past.host for past in store.results(run.id)] == ["hv1"]


def test_a_run_of_this_process_is_running(store: Store) -> None:
    store.begin("provision")
    assert store.runs()[0].state == "running"


def test_a_number_that_another_process_has_now_does_not_keep_a_run_alive(store: Store, url: str) -> None:
    store.begin("provision")
    execute(url, "UPDATE runs SET process = process || '1'")
    assert store.runs()[0].state == "interrupted"


def test_a_host_cannot_be_recorded_twice_in_a_run_and_the_first_stays(store: Store) -> None:
    run = store.begin("validate")
    run.record(result(hostname="first"))
    with pytest.raises(StoreError):
        run.record(result(hostname="second"))
    assert [past.evidence.system.hostname for past in store.results(run.id) if past.evidence] == ["first"]


def test_two_runs_record_at_once(url: str) -> None:
    def work(name: str) -> None:
        with Store(url) as store:
            run = store.begin(name)
            for n in range(40):
                run.record(result(f"hv{n}"), baseline=True)
            run.finish("proven")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("provision", "validate", "drift")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store(url) as store:
        assert {run.command: run.state for run in store.runs()} == dict.fromkeys(
            ("provision", "validate", "drift"), "finished"
        )
        assert [len(store.results(run.id)) for run in store.runs()] == [40, 40, 40]


def test_evidence_that_cannot_be_decoded_names_host_and_run(store: Store, url: str) -> None:
    run = store.begin("validate")
    run.record(result())
    execute(url, "UPDATE evidence SET document = substr(document, 2)")
    with pytest.raises(StoreError, match=f"hv1 in run {run.id}"):
        store.last("hv1")


def test_nothing_of_a_command_but_its_name_is_kept(store: Store) -> None:
    """The columns of a run are few enough to see that none could hold an argument."""
    store.begin("provision")
    assert {column.name for column in tables.runs.columns} == {
        "id", "command", "user", "controller", "process", "kvmfleet",
        "started_at_s", "finished_at_s", "outcome", "exit_status",
    }  # fmt: skip


def test_a_changed_contract_has_another_digest(store: Store) -> None:
    for text in ("{}", "{ }", "{}"):
        store.begin("validate").record(result(contract=text))
    first, changed, same = (store.results(run.id)[0].contract_digest for run in store.runs())
    assert first == same != changed


def test_what_provisions_left_is_known_also_where_the_host_was_not_good_after_the_last(store: Store) -> None:
    name, ovmf = Drift("system:hostname", "hv1", "renamed"), Drift("package:ovmf", "2", None)

    def record(found: HostResult, left: tuple[Drift, ...], *, baseline: bool = False) -> None:
        store.begin("provision").record(msgspec.structs.replace(found, left=left), baseline=baseline)

    def left() -> Mapping[str, str | None]:
        found = store.expectation("hv1")
        assert found
        assert found.items["system:hostname"] == "hv1"
        return found.left

    record(result(), (), baseline=True)
    assert left() == {}
    record(result("hv1", BAD, hostname="renamed"), (name, ovmf))
    assert left() == {name.item: "renamed", ovmf.item: None}
    record(result("hv1", BAD, hostname="renamed"), (name,))
    store.begin("validate").record(result("hv1", BAD))
    assert left() == {name.item: "renamed"}
    record(result(hostname="renamed"), (name,), baseline=True)
    assert left() == {name.item: "renamed"}
    record(result(), (), baseline=True)
    assert left() == {}, "healed"


def test_the_expectation_is_the_baseline_and_what_was_accepted_since(store: Store) -> None:
    assert store.expectation("hv1") is None
    store.begin("provision").record(result("hv1", hostname="old", contract="{}"), baseline=True)
    before = store.expectation("hv1")
    assert before
    assert before.items["system:hostname"] == "old"
    assert before.intent_digest == "abc"
    made = store.accept(
        "hv1", [Drift("system:hostname", "old", "new"), Drift("contract", "{}", None)], reason="renamed"
    )
    assert store.accepted("hv1") == made
    after = store.expectation("hv1")
    assert after
    assert after.items["system:hostname"] == "new"
    assert "contract" not in after.items
    store.begin("provision").record(result("hv1", hostname="newer", contract="{}"), baseline=True)
    newest = store.expectation("hv1")
    assert newest
    assert (newest.items["system:hostname"], newest.items["contract"]) == ("newer", "{}")
    assert store.accepted("hv1") == made, "who accepted what stays known"


def test_past_results_come_latest_first(store: Store) -> None:
    for found in (GOOD, BAD):
        store.begin("validate").record(result("hv1", found))
    assert [past.verdict for past in store.past("hv1")] == ["failed", "proven"]
    assert len(store.past("hv1", 1)) == 1
    store.begin("drift").watch(seen(host="hv0"), None)
    assert store.hosts() == ("hv0", "hv1")


def test_a_snapshot_of_another_edition_is_taken_again_from_the_evidence(store: Store, url: str) -> None:
    store.begin("provision").record(result("hv1", hostname="old", contract="{}"), baseline=True)
    execute(url, "UPDATE baselines SET taken_by = 'another'", "UPDATE snapshots SET document = substr(document, 2)")
    expected = store.expectation("hv1")
    assert expected
    assert expected.items["system:hostname"] == "old"
