"""What the collector says of clock, leaks and upkeep, on the text that Linux and its programs write."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from orchestrator.collector import clock, files, inventory, leaks, libvirt, security, shell, upkeep
from orchestrator.collector.contract import Contract


def test_the_kernel_tells_how_far_its_clock_may_be_off() -> None:
    """Between nothing and the limit at which the kernel stops to count."""
    found = clock.max_error_ms()
    assert found is None or 0 <= found <= 16000  # None in a container that is not let


def test_a_container_is_not_asked_about_the_clock_of_another_machine() -> None:
    assert clock.look("systemd-nspawn")["max_error_ms"] is None


# --- leaks


def test_flaws_of_the_processor_are_told_in_the_kernels_words(tmp_path: Path) -> None:
    (tmp_path / "cpu" / "vulnerabilities").mkdir(parents=True)
    (tmp_path / "cpu" / "smt").mkdir()
    (tmp_path / "ksm").mkdir()
    (tmp_path / "cpu" / "vulnerabilities" / "l1tf").write_text("Mitigation: PTE Inversion; VMX: vulnerable\n")
    (tmp_path / "cpu" / "smt" / "active").write_text("1\n")
    (tmp_path / "ksm" / "run").write_text("1\n")
    (tmp_path / "ksm" / "pages_sharing").write_text("4711\n")
    assert leaks.look(str(tmp_path / "cpu"), str(tmp_path / "ksm")) == {
        "vulnerabilities": {"l1tf": "Mitigation: PTE Inversion; VMX: vulnerable"},
        "smt": True,
        "ksm_run": "1",
        "ksm_sharing": 4711,
    }


def test_a_kernel_that_tells_nothing_is_not_taken_for_a_safe_one(tmp_path: Path) -> None:
    assert leaks.look(str(tmp_path), str(tmp_path)) == {
        "vulnerabilities": None,
        "smt": None,
        "ksm_run": "",
        "ksm_sharing": None,
    }


def test_a_file_that_cannot_be_read_is_not_one_that_is_not_there(tmp_path: Path) -> None:
    assert files.known(str(tmp_path / "absent")) == ""
    (tmp_path / "folder").mkdir()
    assert files.known(str(tmp_path / "folder")) is None


@pytest.mark.parametrize(
    ("text", "number"), [("12\n", 12), ("-1\n", None), ("18446744073709551615", 2**63 - 1), ("max\n", None), ("", None)]
)
def test_a_number_is_a_number_or_unknown(text: str, number: int | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert files.number(str(tmp_path / "file")) == number


# --- upkeep


# As `systemctl show --state=failed UNIT... "*"` of systemd 252.
SHOWN = """\
MainPID=811
Id=libvirtd.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
FragmentPath=/lib/systemd/system/libvirtd.service
DropInPaths=

Id=libvirtd-tls.socket
LoadState=loaded
ActiveState=failed
UnitFileState=disabled

MainPID=0
Id=virtqemud.service
LoadState=not-found
ActiveState=inactive
UnitFileState=

MainPID=0
Id=Nightly.service
LoadState=loaded
ActiveState=failed
UnitFileState=static
"""


def test_what_failed_is_told_with_the_units_of_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown").write_text(SHOWN)
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/shown\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    monkeypatch.setitem(shell.ENVIRONMENT, "PATH", str(tmp_path))
    ask = libvirt.units
    monkeypatch.setattr(libvirt, "units", lambda names: ask(names, str(tmp_path)))
    monkeypatch.setattr(libvirt, "wanted", lambda extra: ["libvirtd.service", "libvirtd-tls.socket"])
    found = libvirt.look(Contract(None))
    assert set(found["units"]) == {"libvirtd.service", "libvirtd-tls.socket"}
    assert upkeep.look(found)["failed_units"] == ["Nightly.service", "libvirtd-tls.socket"]


def test_a_systemd_that_does_not_answer_has_not_lost_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho Failed to connect to bus: Connection refused >&2; exit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    monkeypatch.setitem(shell.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(OSError, match="Connection refused"):
        libvirt.units(["libvirtd.service"], str(tmp_path))
    assert libvirt.units(["libvirtd.service"], str(tmp_path / "not booted")) == {}


def test_where_the_units_of_libvirt_are_not_known_systemd_is_asked_for_what_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "failed_units", lambda: ["a.service"])
    assert upkeep.look({})["failed_units"] == ["a.service"]
    assert upkeep.look({"units": {}, "failed_units": []})["failed_units"] == ["a.service"]


def test_failed_units_are_found_with_and_without_the_dot() -> None:
    listing = (
        "  apt-daily.service loaded failed failed Daily apt download activities\n"
        "● run-user-1000.mount loaded failed failed /run/user/1000\n"
        "machine-qemu\\x2d1.scope loaded failed failed Virtual Machine\n"
    )
    assert upkeep.names(listing) == ["apt-daily.service", "run-user-1000.mount", "machine-qemu\\x2d1.scope"]
    assert upkeep.names("") == []


def test_only_local_file_systems_that_matter_are_looked_at() -> None:
    found = upkeep.disks("/dev/sda1 / ext4 rw 0 0\nsrv:/x /var/lib/libvirt nfs4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n")
    assert list(found) == ["/"]
    assert found["/"]["size_mib"] >= found["/"]["free_mib"] >= 0


def test_a_kernel_is_installed_when_it_has_modules_and_an_image(tmp_path: Path) -> None:
    for release in ("6.1.0-37-amd64", "6.1.0-38-amd64", "6.1.0-39-amd64"):
        (tmp_path / "lib" / "modules" / release).mkdir(parents=True)
    for whole in ("6.1.0-37-amd64", "6.1.0-38-amd64"):
        (tmp_path / "lib" / "modules" / whole / "modules.dep").touch()
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "vmlinuz-6.1.0-37-amd64").touch()
    (tmp_path / "boot" / "vmlinuz-6.1.0-39-amd64").touch()
    (tmp_path / "lib" / "modules" / "6.1.0-38-amd64" / "vmlinuz").touch()
    assert upkeep.kernels(str(tmp_path)) == ["6.1.0-37-amd64", "6.1.0-38-amd64"]


def test_kills_are_counted_by_the_kernel() -> None:
    assert upkeep.oom_kills("drop_slab 0\noom_kill 3\nnuma_pte_updates 0\n") == 3
    assert upkeep.oom_kills("drop_slab 0\n") is None


# --- security and members


def test_of_qemu_conf_only_what_confines_leaves_the_host(tmp_path: Path) -> None:
    path = tmp_path / "qemu.conf"
    path.write_text('#user = "root"\nvnc_password = "XYZ12345"\nnamespaces = [ ]\nseccomp_sandbox = 1\n')
    assert security.qemu_conf(str(path)) == {"namespaces": "[ ]", "seccomp_sandbox": "1"}
    assert security.qemu_conf(str(tmp_path / "absent")) == {}
    assert security.qemu_conf(str(tmp_path)) is None


def test_the_unit_that_loads_the_rules_is_told_also_where_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in {"nft": "echo no such table >&2; exit 1", "systemctl": "echo disabled; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    monkeypatch.setitem(shell.ENVIRONMENT, "PATH", str(tmp_path))
    assert security.nftables(str(tmp_path)) == {"error": "no such table", "unit": "disabled"}
    assert security.nftables(str(tmp_path / "not booted"))["unit"] == "enabled"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root gives a file to somebody else")
def test_the_owner_of_a_socket_is_told_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    os.mknod(path, stat.S_IFSOCK | 0o640)
    os.chown(path, 4711, 4712)
    assert security.sockets(str(tmp_path)) == {
        str(path): {"exists": True, "mode": 0o640, "owner": "4711", "group": "4712"}
    }


STATUS = """\
Package: libvirt-daemon-system
Status: install ok installed
Priority: optional
Version: 9.0.0-4+deb12u2
Description: Libvirt daemon configuration files
 Package: ovmf
 .
 Version: 1

Package: ovmf
Status: deinstall ok config-files
Version: 2022.11-6

Package: swtpm
Status: install ok half-installed
Version: 0.7.1-1.3

Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9
"""


@pytest.fixture
def dpkg(tmp_path: Path) -> Path:
    (tmp_path / "status").write_text(STATUS)
    (tmp_path / "updates").mkdir()
    return tmp_path


def test_packages_of_dpkg_are_those_that_are_installed(dpkg: Path) -> None:
    names = ["libvirt-daemon-system", "ovmf", "swtpm", "libc", "absent"]
    assert inventory.of_dpkg(names, str(dpkg)) == {"libvirt-daemon-system": "9.0.0-4+deb12u2"}


def test_dpkg_is_asked_where_its_list_is_not_all(dpkg: Path, tmp_path: Path) -> None:
    assert inventory.of_dpkg(["libc6:amd64"], str(dpkg)) is None
    assert inventory.of_dpkg(["libc6"], str(dpkg / "absent")) is None
    (dpkg / "updates" / "0000").write_text("Package: libc6\nStatus: install reinstreq half-installed\n")
    assert inventory.of_dpkg(["libc6"], str(dpkg)) is None


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="no dpkg here")
def test_dpkg_says_the_same_of_what_is_on_this_machine() -> None:
    said = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True).stdout
    names = sorted(set(said.split()))
    listed = inventory.of_dpkg(names)
    assert (listed is None) == bool(os.listdir("/var/lib/dpkg/updates"))  # dpkg is at work, or was killed at it
    if listed is not None:
        command, options, pattern = inventory.MANAGERS[0]
        told = subprocess.run([command, *options, *names], capture_output=True, text=True, check=False).stdout
        assert listed == dict(re.findall(pattern, told, re.MULTILINE))


def test_local_accounts_are_known_by_their_primary_group() -> None:
    passwd = "root:x:0:0:root:/root:/bin/bash\n+nis::::::\n# note\nalice:x:1000:109::/home/alice:/bin/sh\n"
    assert inventory.local_accounts(passwd) == {"root": 0, "alice": 109}
