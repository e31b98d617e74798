"""libvirt's daemons as processes, and a daemon that never answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.collector import daemons, libvirt, network, shell, storage, windows
from orchestrator.collector.contract import Contract
from orchestrator.collector.limits import bounded
from orchestrator.payload import shape

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
    asked.touch()  # for a virsh that is ended before it could
    (tmp_path / "virsh").write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexec /bin/sleep 60\n')
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    found = {"libvirt": libvirt.connection("qemu:///system", 0.5)}
    assert found["libvirt"]["connected"] is False
    assert "gave no answer in time" in found["libvirt"]["error"]
    questions = asked.read_text()
    contract = Contract({"networks": {"lab": {}}, "pools": {"images": {}}})
    assert network.look(contract, found["libvirt"])["error"] == found["libvirt"]["error"]
    assert storage.look(contract, True, found["libvirt"])["error"] == found["libvirt"]["error"]
    assert "error" in windows.look(contract, found)
    assert asked.read_text() == questions


# Speaks as virsh does: about guests, and about itself.
VIRSH = """#!/bin/sh
echo "$*" >> {asked}
case "$*" in *domcapabilities*) {guests} ;; esac
case "$*" in
    *"; capabilities") echo "Running against daemon: 9.0.0"; echo "<capabilities><guest><arch name='{arch}'>"
        echo "<domain type='kvm'/></arch></guest></capabilities>" ;;
esac
"""
GUESTS = "<domainCapabilities><domain>{}</domain><machine>pc-q35-7.2</machine></domainCapabilities>"


def ask_virsh(folder: Path, guests: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """What both sections find, and with which words virsh was asked for it."""
    asked = folder / "asked"
    (folder / "virsh").write_text(VIRSH.format(asked=asked, guests=guests, arch=os.uname().machine))
    (folder / "virsh").chmod(0o755)
    monkeypatch.setattr(shell, "PATH", f"{folder}:/usr/bin:/bin")
    found: dict[str, Any] = {"libvirt": libvirt.connection("qemu:///system", 5)}
    found["windows"] = windows.look(Contract(None), found)
    return found, asked.read_text().splitlines()


@pytest.mark.parametrize(
    ("guests", "questions"),
    [
        pytest.param(f"echo '{GUESTS.format('kvm')}'", 1, id="one-virsh-for-both"),
        pytest.param(f'echo "{GUESTS.format("$([ $# = 4 ] && echo qemu || echo kvm)")}"', 2, id="another-kind"),
        pytest.param(f"[ $# = 4 ] && exec sleep 60; echo '{GUESTS.format('kvm')}'", 3, id="late"),
    ],
)
def test_the_daemon_and_its_guests_are_told_in_as_few_answers_as_can_be(
    guests: str, questions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = ask_virsh(tmp_path, guests, monkeypatch)
    assert (found["libvirt"]["version"], found["libvirt"]["domain_types"]) == ("9.0.0", ["kvm"])
    assert found["windows"]["machine"] == "pc-q35-7.2"
    assert len(asked) == questions
    assert not {"of_guests", "of_guests_error"} & set(bounded(found, shape())["libvirt"])


def test_what_guests_may_have_is_not_what_the_daemon_takes_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = f"echo '{GUESTS.format('kvm')}'; echo; echo '(Time: 60000.000 ms)'"
    found, _ = ask_virsh(tmp_path, timed, monkeypatch)
    assert -60000 < found["libvirt"]["answer_ms"] < 0  # nothing really took a minute


def test_an_error_about_guests_is_no_error_of_the_daemon_and_provoked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"printf 'error: failed\nerror: no such machine\nerror: failed to get the version\nerror: why\n' >&2"
    found, asked = ask_virsh(tmp_path, said, monkeypatch)
    assert (found["libvirt"]["connected"], found["libvirt"]["version"]) == (True, "9.0.0")
    assert found["windows"]["error"] == "failed: no such machine"
    assert len(asked) == 1
