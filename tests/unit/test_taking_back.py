"""What is remembered before a host changes, and how it is taken back: packages, files, units, guests that run."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """As Ansible finds it: through the link in collections/."""
    if (folder := str(ROOT / "collections")) not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"ansible_collections.kvmfleet.host.plugins.{name}")


packages, processes, restore, units = (
    load(f"module_utils.{name}") for name in ("packages", "processes", "restore", "units")
)
remember, give_back = load("modules.remember"), load("modules.give_back")
open_record = load("module_utils.record").open_record
DPKG = packages.MANAGERS[0]


class Commands:
    """A host's commands: the beginning of a command line -> what it prints, or (code, complaint)."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", " "): answer for name, answer in answers.items()}
        self.called: list[str] = []

    def __call__(self, argv: list[str], said: str = "") -> tuple[int, str, str]:
        line = " ".join(argv)
        self.called.append(line)
        known = [name for name in self.answers if line.startswith(name)]
        answer = self.answers[max(known, key=len)] if known else ""
        return (0, answer, "") if isinstance(answer, str) else (answer[0], "", answer[1])

    def which(self, name: str) -> str | None:
        return f"/bin/{name}" if any(line.split()[0] == name for line in self.answers) else None


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lib" / "record.json")


def note(path, commands, **wish):
    whole = {**{key: [] for key in remember.LISTS}, "members": {}, "came": False, **wish}
    with open_record(path) as record:
        remember.note(record, whole, commands, commands.which)


def undo(path, commands, tmp_path, check=False, disrupt=False):
    """Takes back what the record holds, below a root of its own."""
    with open_record(path, check=check) as record:
        work = restore.Work(
            restore.Host(commands, commands.which, str(tmp_path), str(tmp_path / "proc")), record, check
        )
        give_back.give_back(work, disrupt)
    return work


# --- packages


def dpkg(*names, chosen="", **more):
    listing = "".join(f"{name} installed\n" for name in names)
    answers = {"dpkg-query -W -f ${binary:Package} ${db": listing, "apt-mark showmanual": chosen}
    commands = Commands(**more)
    commands.answers |= answers
    return commands


def status(*rows):
    """Lines of dpkg-query: name, provides, depends."""
    return "".join(f"{name}\tinstalled\t{provides}\t\t{depends}\n" for name, provides, depends in rows)


def test_what_came_with_the_transaction_is_ours_and_nothing_else(path):
    note(path, dpkg("bash", "vim"), packages=["qemu"])
    note(path, dpkg("bash", "vim", "qemu", "libslirp0", chosen="bash\nqemu\n"), packages=["qemu"], came=True)
    with open_record(path) as record:
        assert record.names("package") == ["libslirp0", "qemu"]
        assert record.names("asked") == ["qemu"]
        assert record.names("transaction") == []


def test_what_a_person_installed_between_two_halves_of_a_run_is_theirs(path):
    note(path, dpkg("bash"), packages=["qemu"])
    note(
        path, dpkg("bash", "htop", chosen="bash\nhtop\n"), packages=["qemu"]
    )  # the first run broke off, this is the next
    note(path, dpkg("bash", "htop", "qemu", chosen="bash\nhtop\nqemu\n"), packages=["qemu"], came=True)
    with open_record(path) as record:
        assert record.names("package") == ["qemu"]


def test_what_scripts_of_packages_leave_in_etc_goes_as_long_as_it_is_empty(path, tmp_path, monkeypatch):
    etc = tmp_path / "etc"
    monkeypatch.setattr(remember, "ETC", str(etc))
    (etc / "theirs").mkdir(parents=True)
    note(path, dpkg("bash"), packages=["qemu"])
    for name in ("xml", "apparmor.d/local", "libvirt/secrets"):
        (etc / name).mkdir(parents=True)
    (etc / "apparmor.d/local/libvirt-qemu").touch()
    commands = dpkg("bash", "qemu")
    note(path, commands, packages=["qemu"], came=True)
    commands.answers["apt-get"] = ""
    (etc / "libvirt/secrets/s.xml").touch()
    with open_record(path) as record:
        work = restore.Work(restore.Host(commands, commands.which, "", str(tmp_path)), record, False)
        restore.remove_packages(work)
        assert record.kinds() == []
    assert sorted(str(p.relative_to(etc)) for p in etc.rglob("*")) == [
        "libvirt", "libvirt/secrets", "libvirt/secrets/s.xml", "theirs"
    ]  # fmt: skip


def test_without_a_transaction_nothing_becomes_ours(path):
    note(path, dpkg("bash", "qemu"), packages=["qemu"])
    note(path, dpkg("bash", "qemu", "htop"), packages=["qemu"], came=True)
    with open_record(path) as record:
        assert record.names("package") == []


def test_settings_that_a_removed_package_had_left_are_left_again(path, tmp_path):
    before = Commands()
    before.answers = {"dpkg-query -W": "bash installed\nqemu config-files\n"}
    note(path, before, packages=["qemu"])
    after = dpkg("bash", "qemu", "swtpm")
    note(path, after, packages=["qemu", "swtpm"], came=True)
    after.answers |= {"apt-get": ""}
    undo(path, after, tmp_path)
    real = [line for line in after.called if line.startswith("apt-get") and "--simulate" not in line]
    assert [line.split("--no-auto-remove ")[1] for line in real] == ["--purge swtpm", "--no-purge qemu"]


def test_a_package_that_something_else_needs_now_stays_with_what_it_needs():
    found = packages._dpkg_status(
        Commands(**{"dpkg-query": status(
            ("bash", "", "libc6 (>= 2.36)"), ("libc6:amd64", "libc6-x (= 2)", ""), ("qemu", "", "libslirp0 (>= 4)"),
            ("libslirp0:amd64", "", ""), ("cloud", "", "nothing | qemu"), ("swtpm", "", "libslirp0"),
        )})
    )  # fmt: skip
    assert packages.needed(found, frozenset({"qemu", "libslirp0:amd64", "swtpm"})) == {
        "qemu": "cloud",
        "libslirp0:amd64": "qemu",
    }


def test_a_dependency_that_another_package_meets_keeps_nothing():
    found = packages._dpkg_status(
        Commands(**{"dpkg-query": status(("mail", "", "exim | postfix"), ("postfix", "", ""), ("exim", "", ""))})
    )
    assert packages.needed(found, frozenset({"exim"})) == {}


def test_apt_is_stopped_when_it_would_take_along_what_is_not_ours():
    commands = Commands(**{"apt-get": "Purg qemu [1]\nPurg cloud [2]\nInst other (3)\n"})
    with pytest.raises(packages.PackageError, match="cloud, other, so nothing was removed"):
        packages._apt_remove(commands, frozenset({"qemu"}), frozenset())
    assert not [line for line in commands.called if line.startswith("apt-get") and "--simulate" not in line]


def test_rpm_says_what_is_needed_and_the_rest_goes():
    answers = iter(
        [(1, "error: Failed\n\tlibvirt.so.0()(64bit) is needed by (installed) cockpit-1.el9.x86_64\n"), (0, "")]
    )

    def run(argv):
        if argv[:2] == ["rpm", "-q"]:
            return 0, "libvirt-libs\n", ""
        code, complaint = next(answers)
        return code, "", complaint

    assert packages._rpm_keep(run, frozenset({"libvirt-libs", "qemu-kvm"})) == {"libvirt-libs": "cockpit-1.el9.x86_64"}


def test_pacman_says_what_is_needed():
    def run(argv):
        lacks = "libvirt" in argv
        return int(lacks), "", ":: removing libvirt breaks dependency 'libvirt' required by virt-top\n" if lacks else ""

    assert packages._pacman_keep(run, frozenset({"libvirt", "qemu-base"})) == {"libvirt": "virt-top"}


# --- files


def test_a_file_comes_back_byte_for_byte_with_its_mode(path, tmp_path):
    file = tmp_path / "etc" / "qemu.conf"
    file.parent.mkdir()
    file.write_bytes(b"caf\xe9\r\nuser = 1")
    file.chmod(0o640)
    note(path, Commands(), edited=[str(file)])
    file.write_bytes(b"ours")
    file.chmod(0o600)
    with open_record(path) as record:
        work = restore.Work(restore.Host(Commands(), lambda _: None, "", str(tmp_path)), record, False)
        assert restore.files(work) == [str(file)]
        assert record.names("file") == []
    assert file.read_bytes() == b"caf\xe9\r\nuser = 1"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_not_there_goes_with_the_folders_that_it_needed(path, tmp_path):
    file = tmp_path / "etc" / "modprobe.d" / "kvmfleet.conf"
    note(path, Commands(), files=[str(file)])
    file.parent.mkdir(parents=True)
    file.write_text("options kvm\n")
    with open_record(path) as record:
        work = restore.Work(restore.Host(Commands(), lambda _: None, "", str(tmp_path)), record, False)
        restore.files(work)
        restore.folders(work)
    assert not (tmp_path / "etc").exists()


def test_what_others_put_into_our_folder_stays(path, tmp_path):
    folder = tmp_path / "pool"
    with open_record(path) as record:
        record.note("folder", str(folder))
        folder.mkdir()
        (folder / "disk.qcow2").touch()
        work = restore.Work(restore.Host(Commands(), lambda _: None, "", str(tmp_path)), record, False)
        restore.folders(work)
    assert (folder / "disk.qcow2").exists()
    assert work.kept == [f"{folder}: the folder is not empty"]


def test_lines_of_ours_from_a_time_without_a_record_do_not_count(tmp_path):
    file = tmp_path / "qemu.conf"
    file.write_text("# BEGIN kvmfleet: wins\nmax_files = 1\n# END kvmfleet: wins\nuser = 1\n")
    assert remember.file_before(str(file))["content"] == "user = 1\n"
    file.write_text("# Written by kvmfleet, role kernel_modules. Changes made here are lost.\nkvm\n")
    assert remember.file_before(str(file)) is None


def test_a_package_s_file_that_is_not_there_is_not_noted_as_ours(path, tmp_path):
    note(path, Commands(), edited=[str(tmp_path / "virtqemud.conf")])
    with open_record(path) as record:
        assert record.names("file") == []


def test_packages_of_a_host_without_a_record_stay_and_that_is_said(path, tmp_path, monkeypatch):
    monkeypatch.setattr(remember, "CONTRACT", str(tmp_path / "contract.json"))
    (tmp_path / "contract.json").touch()
    note(path, dpkg("bash", "qemu"), packages=["qemu"])
    work = undo(path, Commands(), tmp_path)
    assert "packages qemu and what came with them" in work.kept[0]


# --- units, values of the kernel, memberships


def shown(**states):
    return "\n\n".join(
        f"Id={name}\nLoadState=loaded\nUnitFileState={enabled}\nActiveState={active}"
        for name, (enabled, active) in states.items()
    )


def test_a_unit_goes_back_to_where_it_stood(path, tmp_path):
    commands = Commands(**{"systemctl show": shown(**{"libvirtd.socket": ("disabled", "inactive")})})
    note(path, commands, units=["libvirtd.socket", "virtqemud.socket"])
    commands.answers["systemctl show"] = shown(**{"libvirtd.socket": ("enabled", "active")})
    work = undo(path, commands, tmp_path)
    assert work.done == ["systemctl disable libvirtd.socket", "systemctl stop libvirtd.socket"]


def test_virtlogd_is_not_stopped_even_then(path, tmp_path):
    commands = Commands(**{"systemctl show": shown(**{"virtlogd.service": ("disabled", "inactive")})})
    note(path, commands, units=["virtlogd.service"])
    commands.answers["systemctl show"] = shown(**{"virtlogd.service": ("disabled", "active")})
    assert undo(path, commands, tmp_path).done == []


def test_a_unit_of_ours_ends_before_its_file_goes(path, tmp_path):
    unit = tmp_path / "etc/systemd/system/kvmfleet-ports.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    with open_record(path) as record:
        record.note("file", "/etc/systemd/system/kvmfleet-ports.service")
    commands = Commands(**{"systemctl show": shown(**{"kvmfleet-ports.service": ("enabled", "active")})})
    assert undo(path, commands, tmp_path).done == [
        "systemctl disable kvmfleet-ports.service",
        "systemctl stop kvmfleet-ports.service",
        "/etc/systemd/system/kvmfleet-ports.service: removed",
        "systemctl daemon-reload",
    ]


def test_values_of_the_kernel_go_back_unless_they_are_there_already(path, tmp_path):
    for name, text in (("proc/sys/vm/swappiness", "10\n"), ("sys/thp", "always [madvise] never\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with open_record(path) as record:
        record.note("sysctl", "vm.swappiness", "60")
        record.note("sysctl", "net.bridge.gone", "1")
        record.note("sysfs", "/sys/thp", "madvise")
    assert undo(path, Commands(), tmp_path).done == ["vm.swappiness = 60"]
    assert (tmp_path / "proc/sys/vm/swappiness").read_text() == "60"


# --- libvirt's things


def test_networks_pools_and_secrets_of_ours_go_through_virsh(path, tmp_path):
    with open_record(path) as record:
        record.note("network", "lan")
        record.note("network", "default", {"xml": "<network/>", "active": False, "autostart": False})
        record.note("pool", "images")
        record.note("secret", "ceph rbd guests")
        record.note("secret", "iscsi old", {"uuid": "u2"})
    commands = Commands(virsh="")
    commands.answers |= {
        "virsh -q -c qemu:///system net-list": "lan\ndefault\n",
        "virsh -q -c qemu:///system pool-list": "images\n",
        "virsh -q -c qemu:///system secret-list": " u1   ceph   rbd guests\n u2   iscsi   old\n",
    }
    work = undo(path, commands, tmp_path)
    assert work.done == [
        "network default: stopped", "network default: as it was", "network default: autostart",
        "network lan: stopped", "network lan: removed",
        "pool images: stopped", "pool images: removed",
        "secret ceph rbd guests: removed",
    ]  # fmt: skip
    assert "virsh -q -c qemu:///system secret-undefine u1" in commands.called
    assert "iscsi old" in work.kept[0]


def test_where_virsh_is_gone_that_is_said(path, tmp_path):
    with open_record(path) as record:
        record.note("network", "lan")
    assert undo(path, Commands(), tmp_path).kept == ["network lan: there is no virsh any more to remove it with"]


# --- guests


def process(tmp_path, pid, exe, *words, holds=""):
    folder = tmp_path / "proc" / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "exe").symlink_to(exe)
    (folder / "cmdline").write_text("\0".join(words))
    (folder / "comm").write_text("comm\n")
    if holds:
        (folder / "fd" / "9").symlink_to(holds)


def test_guests_are_qemu_with_or_without_kvm_and_whoever_holds_a_kvm(tmp_path):
    process(tmp_path, 10, "/usr/bin/qemu-system-x86_64", "qemu", "-name", "guest=web,debug-threads=on")
    process(tmp_path, 11, "/usr/libexec/qemu-kvm (deleted)", "qemu-kvm")
    process(tmp_path, 12, "/opt/firecracker", "firecracker", holds="anon_inode:kvm-vm")
    process(tmp_path, 13, "/usr/bin/qemu-img", "qemu-img", "convert")
    process(tmp_path, 14, "/usr/bin/qemu-system-x86_64", "qemu", "-machine", "none,accel=kvm:tcg")  # libvirt's question
    found = processes.guests(str(tmp_path / "proc"))
    assert [str(guest) for guest in found] == ["web (process 10)", "comm (process 11)", "comm (process 12)"]


def test_a_guest_that_runs_stops_everything_before_a_change(path, tmp_path):
    process(tmp_path, 10, "/usr/bin/qemu-system-x86_64", "qemu", "-name", "guest=web")
    with open_record(path) as record:
        record.note("file", "/etc/a")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a").touch()
    with pytest.raises(
        restore.GiveBackError, match=r"web \(process 10\).*Nothing was changed.*kvmfleet_allow_disruption"
    ):
        undo(path, Commands(), tmp_path)
    assert (tmp_path / "etc" / "a").exists()


def test_a_record_from_the_future_stops_everything_before_a_change(path, tmp_path):
    with open_record(path) as record:
        record.note("teleporter", "t1")
    with pytest.raises(restore.GiveBackError, match=r"teleporter.*the version that provisioned it"):
        undo(path, Commands(), tmp_path)


def test_definitions_of_guests_are_named_and_stay(path, tmp_path):
    definition = tmp_path / "etc/libvirt/qemu/web.xml"
    definition.parent.mkdir(parents=True)
    definition.touch()
    assert undo(path, Commands(), tmp_path).kept == [
        "/etc/libvirt/qemu/web.xml: a guest's definition, which is never removed"
    ]
    assert definition.exists()


# --- interrupted


def test_an_interrupted_run_goes_on_where_it_was(path, tmp_path):
    (tmp_path / "etc").mkdir()
    for name in ("a", "b"):
        (tmp_path / "etc" / name).touch()
        with open_record(path) as record:
            record.note("file", f"/etc/{name}")
            record.note("unit", "libvirtd.socket", {"enabled": False, "active": False})
    commands = Commands(
        **{
            "systemctl show": shown(**{"libvirtd.socket": ("enabled", "inactive")}),
            "systemctl disable": (1, "the bus is gone"),
        }
    )
    with pytest.raises(restore.GiveBackError, match=r"the bus is gone.*unprovision again"):
        undo(path, commands, tmp_path)
    with open_record(path) as record:
        assert (record.names("file"), record.names("unit")) == ([], ["libvirtd.socket"])
    commands.answers["systemctl disable"] = ""
    assert undo(path, commands, tmp_path).done == ["systemctl disable libvirtd.socket"]
    with open_record(path) as record:
        assert record.kinds() == []


def test_what_goes_is_decided_before_the_first_package_is_gone(path, tmp_path):
    """apt that is killed leaves the packages that it did not get to as if a person had asked for them."""
    note(path, dpkg("bash"), packages=["qemu"])
    note(path, dpkg("bash", "qemu", "libslirp0", "vim", chosen="qemu vim"), packages=["qemu"], came=True)
    killed = dpkg("bash", "qemu", "libslirp0")
    killed.answers["apt-get"] = (100, "Killed")
    with pytest.raises(packages.PackageError, match="Killed"):
        undo(path, killed, tmp_path)
    again = dpkg("bash", "libslirp0", chosen="libslirp0")
    again.answers["apt-get"] = ""
    assert undo(path, again, tmp_path).done == ["packages removed: libslirp0"]


def test_check_mode_says_everything_and_touches_nothing(path, tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a").touch()
    with open_record(path) as record:
        record.note("file", "/etc/a")
        record.note("module", "kvm", True)
    before = Path(path).read_text()
    assert undo(path, Commands(), tmp_path, check=True).done == ["/etc/a: removed"]
    assert Path(path).read_text() == before
    assert os.path.exists(tmp_path / "etc" / "a")
