"""Two runs never change the same host at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import lock
from orchestrator.errors import LockedError, StoreError
from orchestrator.inventory import Fleet, Host


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def fleet(connection: str = "ssh", **addresses: str) -> Fleet:
    return Fleet(tuple(Host(name, address, connection) for name, address in addresses.items()), sources=())


HOLDER = """
import sys
from orchestrator.inventory import Fleet, Host
from orchestrator.lock import hold
connection, *pairs = sys.argv[1:]
hosts = tuple(Host(*pair.split("="), connection) for pair in pairs)
with hold(Fleet(hosts=hosts, sources=()), "provision"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_run(connection: str = "ssh", **addresses: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds these hosts; locks of one process do not exclude themselves."""
    pairs = [f"{name}={address}" for name, address in addresses.items()]
    command = [sys.executable, "-c", HOLDER, connection, *pairs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


def test_the_second_run_says_who_holds_the_host() -> None:
    with (
        other_run(h1="10.0.0.1", h2="10.0.0.2") as child,
        pytest.raises(LockedError) as caught,
        lock.hold(fleet(h2="10.0.0.2", h3="10.0.0.3"), "provision"),
    ):
        pass
    assert caught.value.message.startswith("h2: held by `kvmfleet provision`, process ")
    assert f"process {child.pid} of " in caught.value.message
    assert f" on {os.uname().nodename}, since 2" in caught.value.message
    assert caught.value.message.endswith(" UTC")
    assert f"kill {child.pid}" in caught.value.hint


def test_the_same_machine_under_another_name_is_the_same() -> None:
    with (
        other_run(h1="10.0.0.1"),
        pytest.raises(LockedError, match=r"^alias: held by"),
        lock.hold(fleet(alias="10.0.0.1"), "provision"),
    ):
        pass


def test_fleets_that_share_no_host_do_not_wait_for_each_other() -> None:
    with other_run(h1="10.0.0.1"), lock.hold(fleet(h2="10.0.0.2"), "provision"):
        pass


def test_a_run_that_could_not_have_all_holds_none() -> None:
    with other_run(h2="10.0.0.2"):
        with pytest.raises(LockedError), lock.hold(fleet(h1="10.0.0.1", h2="10.0.0.2"), "provision"):
            pass
        with other_run(h1="10.0.0.1"):
            pass


def test_a_lock_goes_with_the_run_that_was_killed(state: Path) -> None:
    with other_run(h1="10.0.0.1") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert len(list((state / "locks").glob("*.json"))) == 1
    with lock.hold(fleet(h1="10.0.0.1"), "provision"):
        (note,) = (state / "locks").glob("*.json")
        assert note.stem.endswith(f"-{os.getpid()}")
    assert list((state / "locks").glob("*.json")) == []


def test_a_run_after_the_other_gets_the_lock() -> None:
    with other_run(h1="10.0.0.1"):
        pass
    with lock.hold(fleet(h1="10.0.0.1"), "provision"):
        pass


def test_hosts_that_are_this_machine_are_one() -> None:
    with (
        other_run("local", a="a"),
        pytest.raises(LockedError, match=r"^b: held by"),
        lock.hold(fleet("local", b="b"), "provision"),
    ):
        pass


def test_a_torn_note_hides_nobodys_lock(state: Path) -> None:
    with other_run(h1="10.0.0.1"):
        (note,) = (state / "locks").glob("*.json")
        note.write_text("{")
        with (
            pytest.raises(LockedError, match=r"^h1: held by another run"),
            lock.hold(fleet(h1="10.0.0.1"), "provision"),
        ):
            pass


def test_others_cannot_look_into_the_state_which_the_first_run_makes(state: Path) -> None:
    before = os.umask(0)
    try:
        with lock.hold(fleet(h1="10.0.0.1"), "provision"):
            assert [path.stat().st_mode & 0o777 for path in (state, state / "locks")] == [0o700, 0o700]
    finally:
        os.umask(before)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(state: Path) -> None:
    state.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="locks: ") as caught, lock.hold(fleet(h1="10.0.0.1"), "provision"):
        pass
    assert "KVMFLEET_STATE_DIR" in caught.value.hint


def test_a_full_disk_is_an_error_and_frees_the_hosts(state: Path) -> None:
    (state / "locks").mkdir(parents=True)
    note = state / "locks" / f"{os.uname().nodename}-{os.getpid()}.json"
    note.symlink_to("/dev/full")  # answers every write with ENOSPC
    with pytest.raises(StoreError, match="No space left"), lock.hold(fleet(h1="10.0.0.1"), "provision"):
        pass
    with other_run(h1="10.0.0.1"):
        pass
