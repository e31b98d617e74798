"""What the collector says of daemons, guests and the kernel's limits, on the text that Linux writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.collector import ceilings, processes

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            8192                 524288               files
Max locked memory         8388608              unlimited            bytes
"""
MAPS = """\
55d0c8a00000-55d0c8a2e000 r--p 00000000 fe:01 1835047                    /usr/sbin/libvirtd (deleted)
7f2b1c000000-7f2b1c021000 rw-p 00000000 00:00 0
7f2b2c6f6000-7f2b2c71c000 r--p 00000000 fe:01 1835124                    /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)
7f2b2c71c000-7f2b2c873000 r-xp 00026000 fe:01 1835124                    /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)
7f2b2c8c6000-7f2b2c8c7000 r--p 00000000 fe:01 1834903                    /usr/lib/x86_64-linux-gnu/libvirt.so.0.9000.0
7f2b2c8d0000-7f2b2c8d8000 rw-s 00000000 00:01 2049                       /memfd:qemu.so (deleted)
7f2b2c8e0000-7f2b2c8e8000 rw-s 00000000 00:05 1                          /SYSV00000000 (deleted)
"""
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:170C 00000000:0000 0A 00000000:00000000 00:00000000 00000000 64055        0 4001 1 0000 100 0 0 10 0
   1: 0100007F:170D 00000000:0000 0A 00000000:00000000 00:00000000 00000000 64055        0 4002 1 0000 100 0 0 10 0
   2: 0A00000A:170F 00000000:0000 0A 00000000:00000000 00:00000000 00000000 64055        0 4003 1 0000 100 0 0 10 0
   3: 00000000:170E 0A000001:C350 01 00000000:00000000 00:00000000 00000000 64055        0 4004 1 0000 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:170C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 64055        0 4005 1 0000 100 0 0 10 0
   1: 00000000000000000000000001000000:170C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 64055        0 4006 1 0000 100 0 0 10 0
"""  # noqa: E501 - as the kernel writes it


def machine(
    folder: Path, *, cmdline: str = "-name\0guest=web,debug-threads=on\0", exe: str = "qemu-system-x86_64"
) -> Path:
    """A /proc with one process, 71, of which root could see everything."""
    proc, process = folder / "proc", folder / "proc" / "71"
    (process / "fd").mkdir(parents=True)
    (proc / "net").mkdir()
    for number, target in enumerate(("anon_inode:inotify", "/dev/kvm", *(f"socket:[{4001 + i}]" for i in range(6)))):
        (process / "fd" / str(number)).symlink_to(target)
    (process / "exe").symlink_to(f"/usr/bin/{exe}")
    (process / "cmdline").write_text(f"/usr/bin/{exe}\0{cmdline}")
    (process / "comm").write_text(exe[:15] + "\n")
    (process / "limits").write_text(LIMITS)
    (process / "maps").write_text(MAPS)
    (process / "status").write_text("Name:\tqemu\nCapEff:\t000001ffffffffff\n")
    (process / "cgroup").write_text("0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n")
    (proc / "net" / "tcp").write_text(TCP)
    (proc / "net" / "tcp6").write_text(TCP6)
    unit = folder / "cgroup" / "machine.slice" / "machine-qemu\\x2d1\\x2dweb.scope"
    unit.mkdir(parents=True)
    (unit / "pids.current").write_text("12\n")
    (unit / "pids.max").write_text("max\n")
    (unit / "pids.events").write_text("max 3\n")
    (unit / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return proc


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root")
def test_a_guest_is_described_by_what_the_kernel_says_of_it(tmp_path: Path) -> None:
    assert processes.look(str(machine(tmp_path)), str(tmp_path / "cgroup")) == [
        {
            "pid": 71,
            "name": "web",
            "guest": True,
            "files": 8,
            "files_max": 8192,
            "memlock_max": -1,
            "raises_limits": True,
            "tasks": 12,
            "tasks_max": -1,
            "tasks_refused": 3,
            "controllers": ["cpuset", "cpu", "io", "memory", "pids"],
            "replaced": ["libssl.so.3"],
            "listens": ["0.0.0.0:5900", "[::]:5900"],
        }
    ]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("exe", ["libvirtd", "virtqemud", "virtlogd", "libvirtd (deleted)"])
def test_a_daemon_is_no_guest_and_its_sockets_are_its_own_affair(exe: str, tmp_path: Path) -> None:
    found = processes.look(str(machine(tmp_path, exe=exe, cmdline="")), str(tmp_path / "cgroup"))
    assert found
    assert (found[0]["name"], found[0]["guest"], found[0]["listens"]) == (exe.split()[0], False, [])


@pytest.mark.usefixtures("root")
def test_a_qemu_of_a_user_has_its_own_groups_and_a_number_for_a_name(tmp_path: Path) -> None:
    proc = machine(tmp_path, cmdline="-nographic\0")
    (proc / "71" / "cgroup").write_text("0::/user.slice/user-1000.slice/session-1.scope\n")
    found = processes.look(str(proc), str(tmp_path / "cgroup"))
    assert found
    assert (found[0]["name"], found[0]["controllers"], found[0]["tasks"]) == ("process 71", None, None)


@pytest.mark.usefixtures("root")
def test_other_programs_are_left_out(tmp_path: Path) -> None:
    assert processes.look(str(machine(tmp_path, exe="virtiofsd"))) == []


def test_who_is_not_root_does_not_say_that_there_are_no_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert processes.look(str(machine(tmp_path))) is None


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("comm", "known"), [("qemu-system-x86", False), ("virtqemud", False), ("sshd", True)])
def test_a_process_that_is_closed_even_to_root_hides_a_guest_only_if_it_may_be_one(
    comm: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = machine(tmp_path)
    (proc / "71" / "comm").write_text(comm + "\n")

    def closed(path: str) -> str:
        raise PermissionError(path)

    monkeypatch.setattr(os, "readlink", closed)
    assert (processes.look(str(proc)) == []) is known


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], ["0.0.0.0:5900", "[::]:5900"]),
        (["-vnc", "0.0.0.0:0,audiodev=audio1"], ["0.0.0.0:5900", "[::]:5900"]),
        (["-vnc", "0.0.0.0:0,tls-creds=vnc-tls-creds0"], []),
        (["-vnc", "0.0.0.0:1,tls-creds=vnc-tls-creds0"], ["0.0.0.0:5900", "[::]:5900"]),
        (["-spice", "port=5900,addr=0.0.0.0,disable-ticketing=on"], ["0.0.0.0:5900", "[::]:5900"]),
        (["-spice", "tls-port=5900,addr=0.0.0.0,x509-dir=/etc/pki/libvirt-spice"], []),
    ],
)
def test_a_screen_with_tls_is_not_open(arguments: list[str], left: list[str]) -> None:
    everywhere = {"socket:[4001]": "0.0.0.0:5900", "socket:[4005]": "[::]:5900", "socket:[22]": "0.0.0.0:22"}
    assert processes.heard_by_all(arguments, ["socket:[4001]", "socket:[4005]", "/dev/kvm"], everywhere) == left


def test_a_process_in_no_unit_of_systemds_has_no_limits_of_one() -> None:
    assert processes.unit_of("0::/user.slice\n") == "/nowhere"
    assert processes.unit_of("12:pids:/x.service\n") == "/nowhere"
    assert processes.unit_of("0::/system.slice/libvirtd.service\n") == "/system.slice/libvirtd.service"


# --- the kernel's limits


def kernel(folder: Path, **values: str) -> str:
    files = {
        "sys/fs/file-nr": "4523\t0\t2466177\n",
        "loadavg": "0.42 0.36 0.38 6/1262 2380\n",
        "sys/kernel/threads-max": "192730\n",
        "sys/kernel/pid_max": "4194304\n",
        "sys/fs/aio-nr": "128\n",
        "sys/fs/aio-max-nr": "65536\n",
        "sys/fs/inotify/max_user_instances": "128\n",
        **values,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def test_the_kernels_limits_are_read_with_what_is_in_use(tmp_path: Path) -> None:
    assert ceilings.limits(kernel(tmp_path)) == {
        "files": 4523, "files_max": 2466177, "threads": 1262, "threads_max": 192730, "pid_max": 4194304,
        "aio": 128, "aio_max": 65536, "inotify": 0, "inotify_max": 128,
    }  # fmt: skip


def test_what_the_kernel_does_not_show_is_unknown_and_not_nothing(tmp_path: Path) -> None:
    assert set(ceilings.limits(str(tmp_path)).values()) == {None, 0}  # no process has an inotify instance there
    assert ceilings.limits(kernel(tmp_path, loadavg="?", **{"sys/fs/file-nr": "many"}))["files"] is None


def test_inotify_instances_are_those_of_one_user(tmp_path: Path) -> None:
    proc = machine(tmp_path)
    owner = (proc / "71").stat().st_uid
    assert ceilings.watchers(str(proc), owner) == 1
    assert ceilings.watchers(str(proc), owner + 1) == 0


def test_files_that_are_closed_make_the_count_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = machine(tmp_path)

    def closed(path: str) -> list[str]:
        raise PermissionError(path)

    monkeypatch.setattr(os, "listdir", closed)
    assert ceilings.watchers(str(proc), (proc / "71").stat().st_uid) is None


@pytest.mark.parametrize(
    ("mounts", "word"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "unified"),
        ("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0", "legacy"),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0",
            "hybrid",
        ),
        ("proc /proc proc rw 0 0", ""),
        ("", None),
    ],
)
def test_the_hierarchy_is_the_one_that_is_mounted(mounts: str, word: str | None, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(mounts)
    found = ceilings.cgroups(str(tmp_path / "mounts"))
    assert found["hierarchy"] == word
