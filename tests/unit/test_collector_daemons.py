"""libvirt's daemons as processes, and a daemon that never answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.collector import daemons, libvirt, network, shell, storage
from orchestrator.collector.contract import Contract

MAPS = """\
55d0-55d1 r--p 00000000 fe:00 1 /usr/sbin/libvirtd
7f00-7f01 r--p 00000000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f02-7f03 rw-s 00000000 00:01 3 /dev/zero (deleted)
7f04-7f05 r--p 00000000 fe:00 4 /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so
"""


def process(proc: Path, pid: int, name: str, maps: str = MAPS) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(name + "\n")
    (folder / "maps").write_text(maps)


def in_namespace(proc: Path, pid: str, number: int) -> None:
    (proc / pid / "ns").mkdir(parents=True)
    (proc / pid / "ns" / "pid").symlink_to(f"pid:[{number}]")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param("", "", [], id="nothing"),
        pytest.param("libc.so.6", "libc.so.6 (deleted)", [], id="the-C-library-is-another-matter"),
        pytest.param("sbin/libvirtd", "sbin/libvirtd (deleted)", ["libvirtd"], id="the-program"),
        pytest.param("driver_qemu.so", "driver_qemu.so (deleted)", ["libvirtd"], id="a-driver"),
        pytest.param("libc.so.6", "libvirt.so.0.9000.0 (deleted)", ["libvirtd"], id="the-library"),
    ],
)
def test_a_daemon_whose_files_were_replaced_is_found(
    tmp_path: Path, before: str, after: str, expected: list[str]
) -> None:
    process(tmp_path, 811, "libvirtd", MAPS.replace(before, after))
    assert daemons.replaced({"libvirtd": 811}, str(tmp_path)) == expected


def test_what_cannot_be_read_is_not_taken_for_current(tmp_path: Path) -> None:
    assert daemons.replaced({"libvirtd": 811}, str(tmp_path)) is None


def test_a_daemon_in_a_container_or_of_another_name_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, name, number in ((5, "virtqemud", 1), (6, "virtnetworkd", 2), (7, "virtlogd", 1)):
        process(tmp_path, pid, name)
        in_namespace(tmp_path, str(pid), number)
    in_namespace(tmp_path, "self", 1)
    found = daemons.running(str(tmp_path))
    owner = tmp_path.stat().st_uid
    assert found == ({"virtqemud": 5} if owner == 0 else {})


def test_the_journal_is_asked_for_the_processes_that_run() -> None:
    words = daemons.question({"virtqemud": 5, "virtnetworkd": 6})
    unit = "_SYSTEMD_UNIT="
    asked = words[words.index("-n") + 2 :]
    assert asked == [unit + "virtnetworkd.service", "_PID=6", "+", unit + "virtqemud.service", "_PID=5"]


def test_messages_are_one_line_each_whatever_they_are_made_of() -> None:
    lines = [
        {"MESSAGE": "one\ntwo\n"},
        {"MESSAGE": [98, 255, 98]},
        {"MESSAGE": None},
        {"MESSAGE": " "},
        {"MESSAGE": [-1]},
    ]
    said = "\n".join(map(json.dumps, lines)) + "\nno JSON\n[1]\n"
    assert daemons.messages(said) == ["one two", "b\ufffdb"]


@pytest.fixture
def libvirtd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that tells its version, and a process that is said to run it."""
    program = tmp_path / "libvirtd"
    program.write_text("#!/bin/sh\necho 'libvirtd (libvirt) 10.0.0'\n")
    program.chmod(0o755)
    (tmp_path / "proc" / "811").mkdir(parents=True)
    (tmp_path / "proc" / "811" / "exe").symlink_to(program)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    monkeypatch.setattr(daemons, "running", lambda: {"libvirtd": 811})
    monkeypatch.setattr(daemons, "replaced", lambda pids: [])
    there = daemons.runs
    monkeypatch.setattr(daemons, "runs", lambda pid, path: there(pid, path, str(tmp_path / "proc")))
    return program


@pytest.mark.parametrize(
    ("answered", "installed"),
    [
        pytest.param({"version": "9.0.0"}, "9.0.0", id="what-answers-is-the-file-that-is-installed"),
        pytest.param({}, "10.0.0", id="nothing-answers"),
    ],
)
def test_a_program_that_runs_is_as_old_as_what_answers(
    libvirtd: Path, answered: dict[str, str], installed: str
) -> None:
    assert daemons.look(answered)["installed"] == installed


def test_a_program_that_another_one_took_the_place_of_is_asked_itself(
    libvirtd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "replaced", lambda pids: ["libvirtd"])
    assert daemons.look({"version": "9.0.0"})["installed"] == "10.0.0"
    monkeypatch.setattr(daemons, "replaced", lambda pids: [])
    exe = tmp_path / "proc" / "811" / "exe"
    exe.unlink()
    exe.symlink_to("/bin/sh")
    assert daemons.look({"version": "9.0.0"})["installed"] == "10.0.0"


def test_the_version_is_that_of_the_program() -> None:
    assert daemons.installed("libvirtd (libvirt) 9.0.0\n") == "9.0.0"
    assert daemons.installed("") == ""


def test_a_daemon_that_never_answers_costs_its_time_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped libvirtd accepts through its socket, and virsh waits: what else would be asked is not asked."""
    asked = tmp_path / "asked"
    (tmp_path / "virsh").write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexec /bin/sleep 60\n')
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    found = {"libvirt": libvirt.connection("qemu:///system", 0.5)}
    assert found["libvirt"]["connected"] is False
    assert "gave no answer in time" in found["libvirt"]["error"]
    contract = Contract({"networks": {"lab": {}}, "pools": {"images": {}}})
    assert network.look(contract, found["libvirt"])["error"] == found["libvirt"]["error"]
    assert storage.look(contract, True, found["libvirt"])["error"] == found["libvirt"]["error"]
    assert len(asked.read_text().splitlines()) == 1
