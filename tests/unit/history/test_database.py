"""Which database it is, and what is said where it cannot be written or read."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import postgresql
import pytest
import sqlalchemy as sa
from histories import FOLDERS, execute
from learned import GOOD, SWAP, result

from orchestrator.errors import StoreError, UnwritableError
from orchestrator.history import address, database, silence, tables
from orchestrator.history.store import Store


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
    script = f"import sys; sys.path[:0] = {FOLDERS}\n" + textwrap.dedent(script)
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


@pytest.fixture
def stop(server: str) -> Iterator[Callable[[sa.Connection], None]]:
    """Stops the process of the server that serves a connection, until the test ends."""
    pids: list[int] = []

    def stop(connection: sa.Connection) -> None:
        pids.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        os.kill(pids[-1], signal.SIGSTOP)

    yield stop
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_server_that_says_nothing_any_more_is_given_up(
    server: str, stop: Callable[[sa.Connection], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(store: Store) -> None:
        with database.reading(store.engine) as connection:
            stop(connection)
            connection.exec_driver_sql("SELECT 1")

    with Store(postgresql.new_database(server)) as store:
        monkeypatch.setattr(silence, "LIMIT_S", 4.0)
        with pytest.raises(StoreError, match="has not answered for 4 s"):
            ask(store)
        monkeypatch.undo()
        store.begin("drift").finish("finished")
        assert [run.state for run in store.runs()] == ["finished"]


def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    """Root may write everywhere because of one capability, which a child can do without."""
    tmp_path.chmod(0o500)
    script = f"""
import sys; sys.path[:0] = {FOLDERS}
from orchestrator.errors import StoreError
from orchestrator.history.store import Store
try:
    Store("sqlite:///{tmp_path}/history.sqlite3")
except StoreError as e:
    print(e)
"""
    without = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
    done = subprocess.run([*without, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Permission denied" in done.stdout


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


WRITES = """
    import sys
    sys.path[:0] = {folders}
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
    script = textwrap.dedent(WRITES.format(folders=FOLDERS, url=url))
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
    from histories import FOLDERS, execute, left_by_a_killed_run
    from orchestrator.errors import StoreError
    from orchestrator.history.store import Store
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
