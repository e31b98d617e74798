"""The history, in real SQLite files."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import postgresql
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from learned import BAD, GONE, GOOD, SWAP, result, seen

from orchestrator.errors import StoreError, UnwritableError
from orchestrator.history import address, database, salvage, tables
from orchestrator.history.store import Store
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.finding import Finding, Judgement
from orchestrator.model.run import Collected, HostResult
from orchestrator.notify.notices import Notices
from orchestrator.notify.transitions import Notice, Transition, transitions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, file: Path) -> str:
    if request.param == "sqlite":
        file.parent.mkdir(mode=0o700)
        return f"sqlite:///{file}"
    return postgresql.new_database(request.getfixturevalue("server"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as opened:
        yield opened


def execute(url: str, *statements: str) -> list[Any]:
    """What the last statement gives; past all of our own code, but for the choice of the driver."""
    engine = sa.create_engine(address.chosen(url))
    try:
        with engine.begin() as connection:
            for statement in statements:
                done = connection.exec_driver_sql(statement)
            return [tuple(row) for row in done] if done.returns_rows else []
    finally:
        engine.dispose()


# --- what goes in comes out


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


# --- runs that end badly


def test_a_run_whose_process_was_killed_is_interrupted_and_keeps_what_it_learned(url: str) -> None:
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
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


# --- a history that cannot be written or read


def test_the_file_is_for_its_owner_alone_also_what_sqlite_puts_beside_it(file: Path) -> None:
    with Store(f"sqlite:///{file}") as store:
        store.begin("validate").record(result())
        check_modes(file)


def check_modes(file: Path) -> None:
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert set(names) >= {"history.sqlite3", "history.sqlite3-wal"}
    assert set(names.values()) == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_it_lies_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "elsewhere"))
    Store().close()
    assert (tmp_path / "elsewhere" / "history.sqlite3").is_file()


def test_evidence_that_cannot_be_decoded_names_host_and_run(store: Store, url: str) -> None:
    run = store.begin("validate")
    run.record(result())
    execute(url, "UPDATE evidence SET document = substr(document, 2)")
    with pytest.raises(StoreError, match=f"hv1 in run {run.id}"):
        store.last("hv1")


def test_the_history_of_a_newer_kvmfleet_is_not_touched(url: str) -> None:
    Store(url).close()
    execute(url, f"UPDATE schema_version SET version = {tables.SCHEMA + 1}")
    with pytest.raises(StoreError, match="newer kvmfleet") as caught:
        Store(url)
    assert "Upgrade kvmfleet" in caught.value.hint


def test_an_older_history_is_brought_up_to_date_and_keeps_its_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(url) as store:
        store.begin("validate")

    def add_a_column(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN ticket VARCHAR")

    monkeypatch.setattr(tables, "UPGRADES", (*tables.UPGRADES, add_a_column))
    monkeypatch.setattr(tables, "SCHEMA", tables.SCHEMA + 1)
    for _ in range(2):  # the second time there is nothing to do
        with Store(url) as store:
            assert [run.command for run in store.runs()] == ["validate"]
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]
    assert execute(url, "SELECT ticket FROM runs") == [(None,)]


@pytest.mark.parametrize(("place", "reason"), [("file", "File exists"), ("file/folder", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"{place}/history.sqlite3: {reason}") as caught:
        Store(f"sqlite:///{tmp_path}/{place}/history.sqlite3")
    assert "KVMFLEET_STATE_DIR" in caught.value.hint


def test_a_history_that_another_run_keeps_locked_is_given_up_in_the_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0.2)
    with Store(f"sqlite:///{file}") as store:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match="locked") as caught:
                store.begin("validate")
            assert store.runs() == ()  # reading goes on
        finally:
            other.close()
        assert "Another run" in caught.value.hint
        store.begin("validate")


MOUNTED = 'mount -t tmpfs {options} tmpfs {folder} && {before} exec "$@"'


def in_a_mount(folder: Path, options: str, script: str, before: str = ":;") -> str:
    """Output of a Python script that finds a small or read-only file system at `folder`; needs user namespaces."""
    folder.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    command = MOUNTED.format(options=options, folder=folder, before=before)
    if subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let us mount in a user namespace")
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(script)
    done = subprocess.run(
        [*unshare, command, "sh", sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_named_and_what_was_recorded_before_stays(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    said = in_a_mount(
        folder,
        "-o size=400k",
        f"""
        from learned import result
        from orchestrator.errors import StoreError
        from orchestrator.history.store import Store
        with Store("sqlite:///{folder}/history.sqlite3") as store:
            run = store.begin("validate")
            try:
                for n in range(10000):
                    run.record(result(f"hv{{n}}"))
            except StoreError as e:
                print(e)
            kept = len(store.results(run.id))
            print(kept == n > 0)
        """,
    )
    message, hint, kept = said.splitlines()
    assert "full" in message
    assert str(folder) in message
    assert "Free some space" in hint
    assert kept == "True"


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    said = in_a_mount(
        folder,
        "-o size=1m",
        f"""
        from orchestrator.errors import StoreError
        from orchestrator.history.store import Store
        try:
            Store("sqlite:///{folder}/history.sqlite3")
        except StoreError as e:
            print(e)
        """,
        before=f"mount -o remount,ro {folder};",
    )
    assert "Read-only file system" in said
    assert "KVMFLEET_STATE_DIR" in said


def test_a_history_that_is_read_only_is_read(tmp_path: Path, file: Path) -> None:
    with Store(f"sqlite:///{file}") as store:
        store.begin("provision").record(result("hv1"), baseline=True)
    folder = tmp_path / "readonly"
    said = in_a_mount(
        folder,
        "-o size=1m",
        f"""
        from orchestrator.errors import StoreError
        from orchestrator.history.store import Store
        with Store("sqlite:///{folder}/history.sqlite3") as store:
            print(store.hosts(), bool(store.expectation("hv1")))
            try:
                store.begin("drift")
            except StoreError as e:
                print(e)
        """,
        before=f"cp {file} {folder} && mount -o remount,ro {folder};",
    )
    known, message, hint = said.splitlines()
    assert known == "('hv1',) True"
    assert message.startswith(f"history {folder}/history.sqlite3: ")
    assert "KVMFLEET_STATE_DIR" in hint


def test_a_server_that_only_reads_is_read(server: str) -> None:
    url = postgresql.new_database(server)
    with Store(url) as store:
        store.begin("provision").record(result("hv1"), baseline=True)
    with Store(f"{url}%20-cdefault_transaction_read_only%3Don") as store:
        assert store.expectation("hv1")
        with pytest.raises(UnwritableError, match="read-only") as caught:
            store.begin("drift")
        assert "Name the one that writes" in caught.value.hint


def test_a_server_that_does_not_let_us_in_is_told_with_what_it_wants(server: str) -> None:
    """libpq hands on no code while it connects, so one hint has to serve."""
    with pytest.raises(StoreError, match='database "nowhere" does not exist') as caught:
        Store(server.replace("/postgres?", "/nowhere?"))
    assert "createdb" in caught.value.hint
    with pytest.raises(StoreError, match='role "nobody" does not exist') as caught:
        Store(server.replace("//tester@", "//nobody@"))
    assert "pg_hba.conf" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        Store(f"sqlite:///{tmp_path}/history.sqlite3")


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


# --- drift


def test_since_when_is_when_it_was_first_seen_so(store: Store) -> None:
    first = store.begin("drift").watch(seen(SWAP), {"a": "b"})
    again = store.begin("drift").watch(seen(SWAP, GONE), {"a": "b"})
    assert (again.since_s, again.items[0].since_s) == (first.since_s, first.items[0].since_s)
    assert again.items[1].since_s > first.items[0].since_s
    other = store.begin("drift").watch(seen(Drift(SWAP.item, "10", "99")), None)
    assert other.items[0].since_s > again.items[0].since_s, "another value is another drift"
    healed = store.begin("drift").watch(seen(state="in-sync"), None)
    assert healed.since_s > first.since_s
    assert store.watched("hv1") == healed
    assert [watch.state for watch in store.watches("hv1")] == ["in-sync", "drifted", "drifted", "drifted"]
    assert store.watched("hv2") is None


def test_checks_in_a_row_that_see_the_same_are_one_row(store: Store, url: str) -> None:
    def check(found: HostDrift, items: dict[str, str] | None, times: int = 3) -> HostDrift:
        for _ in range(times):
            last = store.begin("drift").watch(found, items)
        return last

    check(seen(state="in-sync"), {"a": "1"})
    check(seen(state="in-sync"), {"a": "2"})
    check(HostDrift("hv1", "unreachable", problem="refused"), None)
    check(HostDrift("hv1", "unreachable", problem="late"), None)
    silent = HostDrift("hv1", "unreachable")
    assert Notices(store.engine).silent_checks([silent], 5) == {"hv1": 5}
    assert Notices(store.engine).silent_checks([silent], 9) == {"hv1": 6}
    check(seen(SWAP), {"a": "2"})
    both = check(seen(SWAP, GONE), {"a": "2"})
    store.begin("provision").record(msgspec.structs.replace(result(), left=(SWAP, GONE)), baseline=True)
    assert check(seen(SWAP, GONE), {"a": "2"}).items == both.items, "never healed"
    store.begin("provision").record(msgspec.structs.replace(result(), left=(SWAP,)), baseline=True)
    assert check(seen(SWAP, GONE), {"a": "2"}).items != both.items, "healed, and broken again"
    assert execute(url, "SELECT checks FROM watches ORDER BY id") == [(n,) for n in (3, 3, 3, 3, 3, 6, 3)]
    assert execute(url, "SELECT count(*) FROM drifts") == [(1 + 2 + 2,)]
    last = store.runs(1)[0].id
    assert execute(url, "SELECT max(run_id), max(seen_s) FROM watches") == [(last, store.watches("hv1")[0].seen_s)]


def test_equal_snapshots_are_kept_once(store: Store, url: str) -> None:
    for number in range(3):
        store.begin("drift").watch(seen(host=f"hv{number}"), {"b": "2", "a": "1"})
    store.begin("drift").watch(seen(), {"a": "1", "b": "3"})
    assert execute(url, "SELECT count(*) FROM snapshots") == [(2,)]


def test_a_host_that_went_silent_keeps_the_time_at_which_it_could_last_be_told(store: Store) -> None:
    assert store.begin("drift").watch(HostDrift("hv1", "unreachable"), None).told_s is None
    told = store.begin("drift").watch(HostDrift("hv1", "pending"), {})
    assert told.told_s == told.seen_s
    store.begin("drift").watch(HostDrift("hv2", "in-sync"), {})
    for state in ("unknown", "unreachable", "never-provisioned"):
        assert store.begin("drift").watch(HostDrift("hv1", state), None).told_s == told.seen_s  # type: ignore[arg-type]


def test_drift_keeps_its_time_across_checks_that_could_not_tell(store: Store) -> None:
    (first,) = store.begin("drift").watch(seen(SWAP), {}).items
    for state in ("unreachable", "unknown"):
        store.begin("drift").watch(HostDrift("hv1", state), None)  # type: ignore[arg-type]
    assert store.begin("drift").watch(seen(SWAP), {}).items == (first,)
    store.begin("drift").watch(HostDrift("hv1", "in-sync"), {})
    assert store.begin("drift").watch(seen(SWAP), {}).items[0].since_s > first.since_s


def test_drift_that_comes_back_after_a_provision_has_healed_it_is_new(store: Store) -> None:
    first = store.begin("drift").watch(seen(SWAP, GONE), {})
    left = msgspec.structs.replace(result(), left=(GONE,))
    store.begin("provision").record(left, baseline=True)
    again = store.begin("drift").watch(seen(SWAP, GONE), {})
    assert again.items[0].since_s > first.since_s, "healed, and broken again"
    assert (again.items[1].since_s, again.since_s) == (first.since_s, first.since_s), "never healed"
    store.begin("provision").record(result(), baseline=True)
    assert store.begin("drift").watch(seen(SWAP, GONE), {}).since_s > again.seen_s


def test_what_a_provision_has_healed_is_there_no_more_to_be_accepted(store: Store) -> None:
    store.begin("drift").watch(seen(SWAP, GONE), {})
    store.begin("provision").record(msgspec.structs.replace(result(), left=(GONE,)), baseline=True)
    watched = store.watched("hv1")
    assert watched
    assert [item.item for item in watched.items] == [GONE.item]


def test_drift_keeps_its_time_across_a_check_that_could_not_look_at_it(store: Store) -> None:
    first, gone = store.begin("drift").watch(seen(SWAP, GONE), {"package:ovmf": "1", SWAP.item: "60"}).items
    for _ in range(2):
        half = msgspec.structs.replace(seen(GONE), problem="tuning: late")
        store.begin("drift").watch(half, {"package:ovmf": "1"})
    assert store.begin("drift").watch(seen(SWAP, GONE), {}).items == (first, gone)
    half = msgspec.structs.replace(seen(SWAP), problem="files: late")
    store.begin("drift").watch(half, {"package:ovmf": "1", "package:swtpm": "0.7", SWAP.item: "60"})
    again = store.begin("drift").watch(seen(SWAP, GONE), {}).items
    assert again[0] == first
    assert again[1].since_s > gone.since_s, "healed meanwhile"


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


def test_pruning_forgets_old_runs_and_keeps_what_is_needed(store: Store, url: str) -> None:
    good = store.begin("provision")
    good.record(result("hv1", hostname="baseline"), baseline=True)
    good.finish("finished")
    for _ in range(3):
        run = store.begin("validate")
        run.record(result("hv1", GOOD, BAD))
        run.finish("finished")
        run = store.begin("drift")
        run.watch(seen(SWAP), {"a": str(run.id)})
        run.finish("finished")
    unfinished = store.begin("drift")
    assert store.prune(0.0) == 0
    assert store.prune(time.time() + 1) == 4
    assert store.expectation("hv1")
    assert store.watched("hv1")
    assert store.last("hv1")
    assert {run.id for run in store.runs()} == {1, 6, 7, unfinished.id}
    for table, rows in {"host_results": 2, "evidence": 2, "watches": 1, "snapshots": 2, "drifts": 1}.items():
        assert execute(url, f"SELECT count(*) FROM {table}") == [(rows,)], table


def test_pruning_keeps_when_a_silent_host_could_last_be_told_and_what_had_drifted(store: Store) -> None:
    run = store.begin("drift")
    told = run.watch(seen(SWAP), {})
    run.finish("finished")
    for _ in range(2):
        run = store.begin("drift")
        run.watch(HostDrift("hv1", "unreachable"), None)
        run.finish("finished")
    assert store.prune(time.time() + 1) == 1
    back = store.begin("drift").watch(HostDrift("hv1", "unreachable"), None)
    assert back.told_s == told.seen_s
    assert store.begin("drift").watch(seen(SWAP), {}).items == told.items


def test_pruning_forgets_old_runs_of_which_the_end_was_never_noted(store: Store, url: str) -> None:
    for _ in range(3):
        store.begin("drift").watch(seen(), {})  # ours: this process is alive
    assert store.prune(time.time() + 1) == 0
    execute(url, "UPDATE runs SET process = 'another-boot 1 1' WHERE id < 3")
    assert store.prune(time.time() - 1000) == 0, "they are young"
    assert store.prune(time.time() + 1) == 2
    execute(url, "UPDATE runs SET controller = 'another', started_at_s = started_at_s - 1000")
    assert store.prune(time.time() - 500) == 0, "it holds the last that was seen of the host"
    store.begin("drift").watch(seen(), {})
    assert store.prune(time.time() - 500) == 1, "no run takes so long"


def test_pruning_forgets_what_was_told_of_hosts_that_nobody_looks_at_any_more(store: Store, url: str) -> None:
    drifted = [seen(SWAP, host=host) for host in ("gone", "hv1", "silent")]
    for told in drifted:
        store.begin("drift").watch(told, None)
    execute(url, "UPDATE watches SET seen_s = seen_s - 1000")
    store.begin("drift").watch(drifted[1], None)
    store.begin("drift").watch(HostDrift("silent", "unreachable"), None)
    notices, known = Notices(store.engine), []

    def choose(found: Mapping[str, Notice]) -> tuple[Transition, ...]:
        known.append(sorted(found))
        return transitions(found, drifted, {}, after=1)

    notices.settle("pager", notices.claim("pager", choose), delivered=True)
    store.prune(time.time() - 2000)
    assert notices.claim("pager", choose) == ()
    store.prune(time.time() - 500)
    assert [one.host.host for one in notices.claim("pager", choose)] == ["gone"]
    assert known == [[], ["gone", "hv1", "silent"], ["hv1", "silent"]]


def test_pruning_forgets_what_was_told_to_urls_that_nobody_notifies_any_more(store: Store, url: str) -> None:
    drifted = [seen(SWAP)]
    store.begin("drift").watch(drifted[0], None)
    notices, known = Notices(store.engine), []

    def choose(found: Mapping[str, Notice]) -> tuple[Transition, ...]:
        known.append(sorted(found))
        return transitions(found, drifted, {}, after=1)

    for one in ("left", "used"):
        notices.settle(one, notices.claim(one, choose), delivered=True)
    execute(url, "UPDATE destinations SET used_s = used_s - 1000")
    assert notices.claim("used", choose) == ()
    store.prune(time.time() - 2000)
    assert execute(url, "SELECT destination FROM notices ORDER BY 1") == [("left",), ("used",)]
    store.prune(time.time() - 500)
    assert [execute(url, f"SELECT {row}") for row in ("destination FROM notices", "id FROM destinations")] == [
        [("used",)]
    ] * 2
    assert len(notices.claim("left", choose)) == 1, "it gets to know of all that is wrong"


def test_past_results_come_latest_first(store: Store) -> None:
    for found in (GOOD, BAD):
        store.begin("validate").record(result("hv1", found))
    assert [past.verdict for past in store.past("hv1")] == ["failed", "proven"]
    assert len(store.past("hv1", 1)) == 1
    store.begin("drift").watch(seen(host="hv0"), None)
    assert store.hosts() == ("hv0", "hv1")


# --- many hosts for a long time


def steps(store: Store, work: Callable[[], object]) -> int:
    """Of SQLite's machine, which is what it had to look at."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with store.engine.connect() as connection:  # the pool has it again afterwards
        file: Any = connection.connection.driver_connection
        file.set_progress_handler(step, 1)
    work()
    file.set_progress_handler(None, 1)
    return count


@pytest.mark.parametrize("found", [seen(SWAP), HostDrift("hv1", "unreachable"), seen(state="in-sync")])
def test_a_check_costs_the_same_however_many_there_were(file: Path, found: HostDrift) -> None:
    with Store(f"sqlite:///{file}") as store:
        store.begin("provision").record(result(), baseline=True)
        store.begin("drift").watch(seen(state="in-sync"), {})

        def check() -> None:
            run = store.begin("drift")
            assert store.expectation("hv1")
            run.watch(found, {} if found.state != "unreachable" else None)
            assert store.watched("hv1")

        check()
        first = steps(store, check)
        for _ in range(100):
            check()
        last = steps(store, check)
    assert first
    assert last < 1.1 * first


def test_every_reference_is_found_by_an_index(store: Store) -> None:
    """Else whoever deletes a row reads whole tables, as both databases ask what refers to it."""
    assert unindexed(store) == []


def unindexed(store: Store) -> list[tuple[str, str]]:
    inspector, found = sa.inspect(store.engine), []
    for table in tables.all_tables:
        first = {index["column_names"][0] for index in inspector.get_indexes(table)}
        first |= {constraint["column_names"][0] for constraint in inspector.get_unique_constraints(table)}
        first |= {*inspector.get_pk_constraint(table)["constrained_columns"][:1]}
        keys = [key["constrained_columns"][0] for key in inspector.get_foreign_keys(table)]
        found += [(table, column) for column in keys if column not in first]
    return found


def test_pruning_lets_others_write_between_its_pieces(store: Store, url: str) -> None:
    for hostname in ("old", "new"):
        run = store.begin("validate")
        for n in range(7):
            run.record(result(f"hv{n}", hostname=hostname))
            run.watch(seen(SWAP, host=f"hv{n}"), {"a": f"{hostname}{n}"})
        execute(url, "UPDATE watches SET problem = 'another'")  # so that the next is no repetition
        run.finish("finished")
    pieces: list[int] = [0]

    @sa.event.listens_for(store.engine, "after_cursor_execute")
    def _(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        pieces[-1] = max(pieces[-1], cursor.rowcount) if statement.startswith("DELETE") else pieces[-1]

    @sa.event.listens_for(store.engine, "commit")
    def _(_connection: Any) -> None:
        pieces.append(0)

    assert store.prune(time.time() + 1, at_once=3) == 1
    assert max(pieces) == 3
    assert pieces.count(3) == 6
    for table in ("host_results", "evidence", "findings", "watches", "drifts", "snapshots"):
        assert execute(url, f"SELECT count(*) FROM {table}") == [(7,)], table


# --- which database


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:sesame@localhost/kvmfleet",
        "postgresql+psycopg2://user:sesame@localhost/kvmfleet",
        "postgresql://user:ses@ame@localhost/kvmfleet",
        "postgresql://user:sesame",
        "sesame",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_what_can_and_none_of_it_is_repeated(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "ame" not in str(caught.value).replace("name", "")
    assert "postgresql://" in caught.value.hint or "%40" in caught.value.hint


@pytest.mark.parametrize("url", ["postgresql://u:sesame@/d?host={0}", "postgresql://u@/d?host={0}&password=sesame"])
def test_no_message_shows_a_password(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError, match="No such file") as caught:
        Store(url.format(tmp_path))
    assert "sesame" not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert address.secret(address.chosen(url))


def test_the_environment_names_the_history(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMFLEET_STORE", f"sqlite:///{file}")
    Store().close()
    assert file.is_file()


# --- older schemas

FIRST = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE runs (id {id}, command VARCHAR NOT NULL, "user" VARCHAR NOT NULL, controller VARCHAR NOT NULL,
  process VARCHAR NOT NULL, kvmfleet VARCHAR NOT NULL, started_at_s DOUBLE PRECISION NOT NULL,
  finished_at_s DOUBLE PRECISION, outcome VARCHAR, exit_status INTEGER);
CREATE TABLE evidence (id {id}, document {bytes} NOT NULL);
CREATE TABLE host_results (id {id}, run_id INTEGER NOT NULL REFERENCES runs (id), host VARCHAR NOT NULL,
  recorded_at_s DOUBLE PRECISION NOT NULL, verdict VARCHAR NOT NULL, cause VARCHAR NOT NULL, path VARCHAR NOT NULL,
  problem VARCHAR NOT NULL, contract_digest VARCHAR NOT NULL, intent_digest VARCHAR NOT NULL,
  evidence_id INTEGER REFERENCES evidence (id), UNIQUE (run_id, host));
CREATE INDEX host_results_by_host ON host_results (host, id);
CREATE TABLE findings (result_id INTEGER NOT NULL REFERENCES host_results (id), position INTEGER NOT NULL,
  "check" VARCHAR NOT NULL, status VARCHAR NOT NULL, summary VARCHAR NOT NULL, expected VARCHAR NOT NULL,
  seen VARCHAR NOT NULL, fix VARCHAR NOT NULL, cause VARCHAR NOT NULL, PRIMARY KEY (result_id, position));
CREATE TABLE baselines (host VARCHAR NOT NULL PRIMARY KEY, result_id INTEGER NOT NULL REFERENCES host_results (id));
INSERT INTO runs (command, "user", controller, process, kvmfleet, started_at_s)
  VALUES ('provision', 'u', 'c', 'b 1 1', '0.1', 1);
INSERT INTO evidence (document) VALUES ({document});
INSERT INTO host_results (run_id, host, recorded_at_s, verdict, cause, path, problem, contract_digest, intent_digest,
  evidence_id) VALUES (1, 'hv1', 100, 'proven', '', 'ssh', '', '', 'abc', 1);
INSERT INTO baselines VALUES ('hv1', 1);
"""
SECOND = """
CREATE TABLE acceptances (id {id}, host VARCHAR NOT NULL, item VARCHAR NOT NULL, expected VARCHAR, seen VARCHAR,
  author VARCHAR NOT NULL, reason VARCHAR NOT NULL, accepted_s DOUBLE PRECISION NOT NULL);
INSERT INTO acceptances (host, item, seen, author, reason, accepted_s)
  VALUES ('hv1', 'contract', 'before', 'u', 'r', 99), ('hv1', 'system:hostname', 'after', 'u', 'r', 101);
CREATE TABLE snapshots (id {id}, digest VARCHAR NOT NULL UNIQUE, document {bytes} NOT NULL);
CREATE TABLE watches (id {id}, run_id INTEGER NOT NULL REFERENCES runs (id), host VARCHAR NOT NULL,
  seen_s DOUBLE PRECISION NOT NULL, state VARCHAR NOT NULL, since_s DOUBLE PRECISION NOT NULL, pending BOOLEAN NOT NULL,
  problem VARCHAR NOT NULL, snapshot_id INTEGER REFERENCES snapshots (id), UNIQUE (run_id, host));
CREATE TABLE drifts (watch_id INTEGER NOT NULL REFERENCES watches (id), item VARCHAR NOT NULL, expected VARCHAR,
  seen VARCHAR, since_s DOUBLE PRECISION NOT NULL, PRIMARY KEY (watch_id, item));
UPDATE schema_version SET version = 2;
"""
FIFTH = """
ALTER TABLE baselines ADD COLUMN snapshot_id INTEGER REFERENCES snapshots (id);
ALTER TABLE baselines ADD COLUMN taken_by VARCHAR NOT NULL DEFAULT '';
ALTER TABLE baselines ADD COLUMN accepted_id INTEGER NOT NULL DEFAULT 0;
UPDATE baselines SET accepted_id = 1;
CREATE TABLE notices (destination VARCHAR NOT NULL, host VARCHAR NOT NULL, state VARCHAR NOT NULL,
  items VARCHAR NOT NULL, delivered BOOLEAN NOT NULL, claimed_s DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (destination, host));
CREATE TABLE carried (result_id INTEGER NOT NULL REFERENCES host_results (id), item VARCHAR NOT NULL,
  expected VARCHAR, PRIMARY KEY (result_id, item));
CREATE INDEX watches_by_host ON watches (host, id);
INSERT INTO runs (command, "user", controller, process, kvmfleet, started_at_s)
  VALUES ('drift', 'u', 'c', 'b 1 1', '0.1', 2), ('drift', 'u', 'c', 'b 1 1', '0.1', 3);
INSERT INTO watches (run_id, host, seen_s, state, since_s, pending, problem)
  VALUES (2, 'hv2', 200, 'unreachable', 200, false, 'refused'), (3, 'hv2', 300, 'unreachable', 200, false, 'refused');
UPDATE schema_version SET version = 5;
"""


def make_old(url: str, *schemas: str) -> None:
    sqlite = url.startswith("sqlite")
    found = result("hv1", hostname="old", contract="{}").collected.evidence
    document = zlib.compress(msgspec.json.encode(found)).hex()
    words = {
        "id": "INTEGER PRIMARY KEY" if sqlite else "SERIAL PRIMARY KEY",
        "bytes": "BLOB" if sqlite else "BYTEA",
        "document": f"x'{document}'" if sqlite else f"decode('{document}', 'hex')",
    }
    statements = "".join(schemas).format(**words).split(";\n")
    execute(url, *(statement for statement in statements if statement.strip()))


@pytest.mark.parametrize(
    ("schemas", "hostname"), [((FIRST,), "old"), ((FIRST, SECOND), "after"), ((FIRST, SECOND, FIFTH), "after")]
)
def test_an_older_history_is_upgraded_and_keeps_what_it_has(url: str, schemas: tuple[str, ...], hostname: str) -> None:
    make_old(url, *schemas)
    with Store(url) as store:
        for _ in range(2):  # the second time from the snapshot that was kept the first time
            expected = store.expectation("hv1")
            assert expected
            assert (expected.items["system:hostname"], expected.items["contract"]) == (hostname, "{}")
        store.begin("drift").watch(seen(SWAP), {"a": "b"})
        assert store.watched("hv1")
        assert unindexed(store) == []
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]
    assert execute(url, "SELECT count(*) FROM baselines WHERE snapshot_id IS NOT NULL") == [(1,)]


def test_urls_that_an_older_history_knows_count_as_used_now(url: str) -> None:
    with Store(url) as store:
        store.begin("drift").watch(seen(SWAP), None)
        Notices(store.engine).claim("pager", lambda known: transitions(known, [seen(SWAP)], {}, after=1))
    execute(url, "DROP TABLE destinations", "UPDATE schema_version SET version = 5")
    with Store(url) as store:
        store.prune(time.time() - 500)
    assert execute(url, "SELECT destination FROM notices") == [("pager",)]


def test_checks_of_before_an_upgrade_count_among_those_in_a_row(url: str) -> None:
    make_old(url, FIRST, SECOND, FIFTH)
    silent = HostDrift("hv2", "unreachable", problem="refused")
    with Store(url) as store:
        for _ in range(2):
            assert store.begin("drift").watch(silent, None).since_s == 200
        assert Notices(store.engine).silent_checks([silent], 9) == {"hv2": 4}
        assert len(store.watches("hv2")) == 2


def test_two_runs_upgrade_at_once(url: str) -> None:
    make_old(url, FIRST)
    script = (
        f"import sys; sys.stdin.read(); from orchestrator.history.store import Store; Store({url!r}).expectation('hv1')"
    )
    ready = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [child.communicate()[1].decode() for child in ready] == [""] * 4
    assert execute(url, "SELECT version FROM schema_version") == [(tables.SCHEMA,)]


def test_a_snapshot_of_another_edition_is_taken_again_from_the_evidence(store: Store, url: str) -> None:
    store.begin("provision").record(result("hv1", hostname="old", contract="{}"), baseline=True)
    execute(url, "UPDATE baselines SET taken_by = 'another'", "UPDATE snapshots SET document = substr(document, 2)")
    expected = store.expectation("hv1")
    assert expected
    assert expected.items["system:hostname"] == "old"


# --- what must not be lost

WRITES = """
    import sys
    sys.path.insert(0, {here!r})
    from learned import SWAP, result, seen
    from orchestrator.history.store import Store
    with Store({url!r}) as store:
        for n in range(100000):
            run = store.begin("provision")
            for host in range(3):
                run.record(result(f"hv{{host}}", hostname=str(n)), baseline=True)
                run.watch(seen(SWAP, host=f"hv{{host}}"), {{"a": str(n)}})
            run.finish("finished")
            if n == 0:
                print("go", flush=True)
"""


def writer(url: str) -> subprocess.Popen[str]:
    script = textwrap.dedent(WRITES.format(here=str(Path(__file__).parent), url=url))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_writers_that_are_killed_at_any_moment_leave_nothing_by_half(url: str) -> None:
    chance = random.Random(6)
    for _ in range(4):
        with writer(url) as first, writer(url) as second:
            for child in (first, second):
                assert child.stdout
                assert child.stdout.readline() == "go\n"
            time.sleep(chance.uniform(0, 0.2))
            first.kill()
            time.sleep(chance.uniform(0, 0.05))
            second.kill()
        with Store(url) as store:
            assert store.notes == ()
            assert {run.state for run in store.runs()} <= {"finished", "interrupted"}
            for host in store.hosts():
                last, watched = store.last(host), next(iter(store.watches(host, 1)), None)
                assert last
                assert (last.findings, bool(last.evidence), bool(store.expectation(host))) == ((GOOD,), True, True)
                assert watched is None or watched.items[0].item == SWAP.item
    with Store(url) as store:
        assert len(store.hosts()) == 3
    unfinished = "SELECT count(*) FROM host_results WHERE id NOT IN (SELECT result_id FROM findings)"
    assert execute(url, unfinished) == [(0,)]
    if url.startswith("sqlite"):
        assert execute(url, "PRAGMA integrity_check") == [("ok",)]


def test_a_full_disk_costs_a_drift_check_no_answer_and_nothing_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    said = in_a_mount(
        folder,
        "-o size=4m",
        f"""
        import os
        from pathlib import Path
        os.environ["KVMFLEET_STORE"] = "sqlite:///{folder}/history.sqlite3"
        os.environ["KVMFLEET_STATE_DIR"] = "{tmp_path}"
        from test_rollout import OPTIONS, fleet, rollout, world
        names = [f"h{{n}}" for n in range(20)]
        rollout.provision(fleet(*names), OPTIONS, edges=world())
        filler, good = Path("{folder}/filler"), world()
        def stream(*hosts, **more):
            try:
                filler.write_bytes(b"x" * (8 << 20))
            except OSError:
                pass
            good.stream(*hosts, **more)
        seen = rollout.watch(fleet(*names), OPTIONS, edges=good._replace(stream=stream))
        print({{host.state for host in seen.hosts}} == {{"pending"}}, [note.message for note in seen.notes])
        filler.unlink()
        seen = rollout.watch(fleet(*names), OPTIONS, edges=world())
        print({{host.state for host in seen.hosts}} == {{"pending"}}, seen.notes)
        """,
    )
    full, after = said.splitlines()
    assert full.startswith("True")
    assert "full" in full
    assert after == "True ()"


FULL_FROM_THE_START = """
    import os
    from pathlib import Path
    file = Path("{folder}/history.sqlite3")
    os.environ |= {{"KVMFLEET_STORE": f"sqlite:///{{file}}", "KVMFLEET_STATE_DIR": "{elsewhere}"}}
    from test_rollout import FLAGS, OPTIONS, fleet, rollout, told, world
    from learned import fill
    from test_store import Store, StoreError, execute, left_by_a_killed_run
    hosts = fleet("h1", "h2", "h3")
    good = told(hosts)
    rollout.provision(hosts, OPTIONS, edges=world(answers=good))
    rollout.watch(hosts, OPTIONS, edges=world(answers=told(hosts, FLAGS)))
    {before}
    fill(file.parent)
"""
RUNS = """
    def tell(run):
        (note,) = run.notes
        print(note, "|", note.exit_code)
    seen = rollout.watch(hosts, OPTIONS, edges=world(answers=told(hosts, FLAGS)))
    print([host.state for host in seen.hosts], seen.hosts[0].items[0].since_s < seen.hosts[0].seen_s - 0.01)
    tell(seen)
    run = rollout.validate(hosts, OPTIONS, edges=world(answers=good))
    print([result.judgement.verdict for result in run.results])
    tell(run)
    run = rollout.provision(hosts, OPTIONS, edges=world(answers=good))
    print([host.outcome for host in run.converged])
    tell(run)
    with Store() as store:
        try:
            store.prune(0)
        except StoreError as e:
            print(e, "|", e.exit_code)
        print([run.command for run in store.runs()])
    Path("{folder}/filler").unlink()
    print(rollout.watch(hosts, OPTIONS, edges=world(answers=good)).notes)
    with Store() as store:
        print([run.command for run in store.runs()])
    print(execute(f"sqlite:///{{file}}", "PRAGMA integrity_check"))
"""


def left_by_a_killed_run(file: Path) -> None:
    """Moves all that was written last into the journal, where only somebody who reads it finds it."""
    whole = file.read_bytes()
    with Store(f"sqlite:///{file}") as store:
        store.begin("killed")
        journal = file.with_name(f"{file.name}-wal").read_bytes()
    file.write_bytes(whole)
    file.with_name(f"{file.name}-wal").write_bytes(journal)


@pytest.mark.parametrize("before", ["", "left_by_a_killed_run(file)"], ids=["closed", "killed"])
def test_a_disk_that_is_full_from_the_start_costs_the_record_and_no_answer(tmp_path: Path, before: str) -> None:
    folder = tmp_path / "small"
    script = (FULL_FROM_THE_START + RUNS).format(folder=folder, elsewhere=tmp_path, before=before)
    said = iter(in_a_mount(folder, "-o size=2m", script).splitlines())
    why = f"history {folder}/history.sqlite3: database or disk is full"
    unkept = [f"{why}, so nothing of this run is kept.", "Free some space there, then run the command again. | 1"]
    for report in ("['drifted', 'drifted', 'drifted'] True", str(["proven"] * 3), str(["unchanged"] * 3)):
        assert [next(said), next(said), next(said)] == [report, *unkept]
    assert [next(said), next(said)] == [why, unkept[1]]
    kept = [*(["killed"] if before else []), "drift", "provision"]
    assert next(said) == str(kept)
    assert next(said) == "()"
    assert list(said) == [str(["drift", *kept]), "[('ok',)]"]


@pytest.mark.parametrize("version", [None, tables.SCHEMA - 1], ids=["none", "an older one"])
def test_a_full_disk_without_a_history_that_could_be_read_is_named(tmp_path: Path, version: int | None) -> None:
    file = tmp_path / "small" / "history.sqlite3"
    said = in_a_mount(
        file.parent,
        "-o size=1m",
        f"""
        import sqlite3
        from pathlib import Path
        from learned import fill
        from orchestrator.errors import StoreError
        from orchestrator.history.store import Store
        if {version}:
            Store("sqlite:///{file}").close()
            with sqlite3.connect("{file}") as connection:
                connection.execute("UPDATE schema_version SET version = {version}")
            connection.close()
        fill(Path("{file.parent}"))
        try:
            Store("sqlite:///{file}")
        except StoreError as e:
            print(e)
        print(sorted(path.name for path in Path("{file.parent}").iterdir()))
        """,
    )
    message, hint, left = said.splitlines()
    assert message == f"history {file}: database or disk is full"
    assert "Free some space" in hint
    if version is None:
        assert left == "['filler']", "the next run would take an empty one for one that was damaged"


def overwritten(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + random.Random(1).randbytes(length) + content[start + length :]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A history of some pages."""
    file = tmp_path_factory.mktemp("good") / "history.sqlite3"
    with Store(f"sqlite:///{file}") as store:
        run = store.begin("provision")
        for n in range(60):
            run.record(result(f"hv{n}"), baseline=True)
    return file.read_bytes()


@pytest.fixture
def filled(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where kvmfleet keeps its own."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    (tmp_path / "history.sqlite3").write_bytes(good)
    return tmp_path / "history.sqlite3"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"these are somebody's notes\n" * 100,
        lambda content: random.Random(1).randbytes(len(content)),
        lambda content: content[: len(content) // 2],
        lambda content: content[:50],
        lambda content: overwritten(content, 0, 4096),
        lambda content: overwritten(content, 4096, len(content) - 4096),
    ],
    ids=["empty", "text", "random", "truncated", "a few bytes", "first page", "all but the first page"],
)
def test_a_damaged_history_is_moved_aside_whole_and_a_new_one_begins(filled: Path, damage: Any) -> None:
    bad = damage(filled.read_bytes())
    filled.write_bytes(bad)
    filled.with_name("history.sqlite3-wal").write_bytes(b"")
    with Store() as store:
        (note,) = store.notes
        aside = store.lost()
        assert aside
        assert aside.read_bytes() == bad
        assert (str(filled) in note.message, aside.name in note.message) == (True, True)
        assert (".recover" in note.hint, "provision" in note.hint) == (True, True)
        assert store.runs() == ()
        store.begin("validate")
    with Store() as store:
        assert store.notes == ()
        assert len(store.runs()) == 1


def test_damage_in_the_data_is_found_when_it_is_read_and_the_next_run_starts_anew(filled: Path) -> None:
    pages = filled.stat().st_size // 4096
    filled.write_bytes(overwritten(filled.read_bytes(), 4096 * (pages - pages // 3), 4096 * (pages // 3)))
    with Store() as store:
        assert store.notes == ()
        with pytest.raises(StoreError, match="moved aside") as caught:
            [store.last(f"hv{n}") for n in range(60)]
        assert ".recover" in caught.value.hint
        for again in (store.runs, lambda: store.begin("validate")):
            with pytest.raises(StoreError) as repeated:
                again()
            assert str(repeated.value) == str(caught.value)
        assert not filled.exists(), "it would have no tables, and not be for its owner alone"
    with Store() as store:
        assert store.lost()
        assert store.runs() == ()


def test_a_file_elsewhere_that_is_no_history_is_named_and_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("not a database, but somebody's notes\n" * 100)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store(f"sqlite:///{file}")
    assert str(file) in caught.value.message
    assert file.read_text().startswith("not a database, but")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("beside", ["", "-wal", "-shm"])
def test_an_empty_file_that_somebody_made_becomes_a_history_unless_it_has_been_one(
    file: Path, beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.touch()
    if beside:
        file.with_name(file.name + beside).touch()
    with Store(f"sqlite:///{file}") as store:
        assert [note.message.partition(": ")[2][:17] for note in store.notes] == ["the file is empty"] * bool(beside)
        store.begin("validate")
    assert bool(list(file.parent.glob("*.damaged-*"))) == bool(beside)
    assert ("the file is empty, so it is taken for a new one" in caplog.text) == (not beside)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_regular_file_is_named_and_left_alone(file: Path, make: Callable[[Path], None]) -> None:
    file.parent.mkdir()
    make(file)
    with pytest.raises(StoreError, match="no regular file"):
        Store(f"sqlite:///{file}")
    with pytest.raises(StoreError, match="no regular file"):
        database.measure(address.chosen(f"sqlite:///{file}"))
    assert salvage.damage(file) == ""
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_pruning_gives_back_the_space(store: Store, url: str) -> None:
    run = store.begin("validate")
    for n in range(200):
        run.record(result(f"hv{n}", hostname=random.Random(n).randbytes(100).hex()))
    run.finish("finished")
    again = store.begin("validate")
    for n in range(200):
        again.record(HostResult(f"hv{n}", Judgement("unreachable", ()), Collected(f"hv{n}", "ssh")))
    size = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname = 'evidence' AND pg_table_is_visible(oid)"
    if url.startswith("sqlite"):
        size = "SELECT page_count * 4096 FROM pragma_page_count"
    ((before,),) = execute(url, size)
    assert store.prune(time.time() + 1) == 1
    store.compact()
    ((after,),) = execute(url, size)
    assert after < before / 2
    store.begin("validate")


def test_space_that_cannot_be_given_back_is_said(file: Path) -> None:
    with Store(f"sqlite:///{file}") as store:
        for hostname in ("old", "new"):
            run = store.begin("validate")
            run.record(result(hostname=hostname, contract=random.Random(1).randbytes(50000).hex()))
            run.finish("finished")
        assert store.prune(time.time() + 1) == 1
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(UnwritableError, match="readonly"):
            store.compact()
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = OFF")
        free = "PRAGMA freelist_count"
        ((before,),) = execute(f"sqlite:///{file}", free)
        store.compact()
        assert before > 0
        assert execute(f"sqlite:///{file}", free) == [(0,)]


def test_a_file_of_an_older_kvmfleet_is_written_anew_once(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    url = f"sqlite:///{file}"
    make_old(url, FIRST)
    assert execute(url, "PRAGMA auto_vacuum") == [(0,)]
    with Store(url) as store:
        store.compact()
        assert store.last("hv1")
    assert execute(url, "PRAGMA auto_vacuum") == [(database.INCREMENTAL,)]
