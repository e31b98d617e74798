"""Is the host kept up: nothing failed, nothing full, nothing outdated in memory, no error that the kernel counted?"""

from __future__ import annotations

import re
import shlex

from orchestrator.checks.host import BECOME
from orchestrator.checks.limits import HOLDERS
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Disk, Runner
from orchestrator.model.finding import Finding
from orchestrator.text import listed

CONTAINER = "the kernel is that of the machine below"
READ = "Look below /proc on the host."
OURS = re.compile(r"(libvirt|virt[a-z]+d|virtlo|qemu|kvm|ksm|tuned|openvswitch|ovs|systemd-modules-load)")
GIB = 1024


@check(
    "upkeep.units",
    "No unit has failed",
    sections=("upkeep", "libvirt"),
    explained_by=(
        "libvirt.daemon",
        "libvirt.sockets",
        "libvirt.connect",
        "security.firewall",
        "remote.sockets",
        "guests.service",
    ),
    warns_in=("lab",),
    proves="Everything that systemd was told to start did its work, what guests need above all.",
    how="`systemctl list-units --state=failed`. One of the contract's units is a failure, any other a warning.",
    todo="`systemctl status UNIT` and `journalctl -u UNIT` say why; then `systemctl restart UNIT`, or `systemctl "
    "reset-failed UNIT` where it is over.",
)
def units(case: Case) -> Finding:
    found, wish = case.evidence.upkeep.failed_units, case.wishes
    if not case.evidence.libvirt.units and found is None:
        return not_applicable("systemd does not run this host")
    if found is None:
        return undecided("systemd does not tell which units failed", fix="Run `systemctl --failed` on the host.")
    if not found:
        return passed("none")
    promised = {*wish.libvirt.sockets, *wish.libvirt.services, *wish.remote.sockets, wish.guests.unit}
    broken = [name for name in found if name in promised]
    ordered = [*broken, *sorted(set(found) - set(broken), key=lambda name: (not OURS.match(name), name))]
    names = listed(ordered)
    fix = (
        f"Read `journalctl -b -u {shlex.quote(ordered[0])}`; then `systemctl restart` it, or `systemctl reset-failed`."
    )
    if broken:
        return failed(f"failed: {names}", expected="none", seen=names, fix=fix)
    if case.profile == "lab" and not any(OURS.match(name) for name in found):
        return passed(f"none that guests need; {names} failed")
    return warned(f"failed: {names}", expected="none", seen=names, fix=fix)


@check(
    "upkeep.libraries",
    "Daemons and guests run what is installed",
    sections=("processes",),
    proves="An update, of OpenSSL for instance, is in force: no libvirt daemon and no QEMU has a library in memory "
    "that was replaced on the disk.",
    how="Libraries in /proc/PID/maps that are marked as deleted. libvirt's own, in the daemons that answer clients, "
    "are the business of libvirt.current.",
    todo="A daemon: restart it, guests go on; virtlogd and virtlockd are reloaded, they hold what guests need. A "
    "guest: migrate it, or end and start it.",
)
def libraries(case: Case) -> Finding:
    runners = case.evidence.processes
    if runners is None or any(runner.replaced is None for runner in runners):
        return undecided("the memory maps of daemons and guests cannot be read", fix=BECOME)
    replaced = {runner.pid: names for runner in runners if (names := _foreign(runner, case))}
    old = [runner for runner in runners if runner.pid in replaced]
    if not old:
        return passed(f"{len(runners)} daemons and guests")
    daemons = sorted({runner.name for runner in old if not runner.guest})
    held = [name for name in daemons if name in HOLDERS]
    restart = [name for name in daemons if name not in held]
    guests = [runner.name for runner in old if runner.guest]
    who = ", ".join([*daemons, *guests][:6]) + (", ..." if len(daemons) + len(guests) > 6 else "")
    libs = sorted({name for names in replaced.values() for name in names})
    seen = ", ".join(libs[:4]) + (", ..." if libs[4:] else "")
    steps = [f"Run `systemctl restart {shlex.join(restart)}`, guests go on."] if restart else []
    steps += ["Migrate these guests, or end and start them."] if guests else []
    steps += (
        [f"Run `systemctl reload {shlex.join(held)}`: they execute themselves anew and lose nothing."] if held else []
    )
    return warned(
        f"use libraries that were replaced: {who} ({seen})",
        expected="what is installed",
        seen=seen,
        fix=" ".join(steps),
    )


def _foreign(runner: Runner, case: Case) -> list[str]:
    """Libraries of the process that were replaced, without those that another check tells."""
    told = runner.name in case.evidence.daemons.daemons and not runner.guest
    return [name for name in runner.replaced or () if not (told and name.startswith("libvirt"))]


@check(
    "upkeep.disk",
    "The host's file systems have room",
    sections=("upkeep",),
    proves="Logs, packages, kernels and libvirt's state can be written.",
    how="statvfs of /, /boot, /var and below, as far as they are file systems of their own and local. Nearly full is "
    "less than 10 % and less than 2 GiB (/boot: 100 MiB) for those who are not root, or less than 5 % of the inodes; "
    "full is less than 1 % and 50 MiB, or a /var that is read-only. Pools are the business of storage.*.",
    todo="`du -xh / | sort -h | tail`; `journalctl --vacuum-size=500M`; the package manager's cache; old kernels. "
    "Read-only: the file system had an error, `dmesg` has it.",
)
def disk(case: Case) -> Finding:
    disks = case.evidence.upkeep.disks
    if not disks:
        return undecided("the file systems could not be looked at", fix="Run `df` on the host.")
    home = next(path for path in ("/var/lib/libvirt", "/var/lib", "/var", "/", *disks) if path in disks)
    if disks[home].read_only:
        fix = f"Read `dmesg` for the error, check the file system, then `mount -o remount,rw {shlex.quote(home)}`."
        return failed(f"{home} is read-only", expected="writable", seen="read-only", fix=fix)
    needed = {path: one for path, one in disks.items() if path != "/boot"}  # guests do without
    full = [f"{path} {words}" for path, one in needed.items() if (words := _full(one, 0.01, 50, 0))]
    nearly = [f"{path} {words}" for path, one in disks.items() if (words := _full(one, 0.1, _spare(path), 0.05))]
    fix = "Remove what is not needed: `journalctl --vacuum-size=500M`, old kernels, the package manager's cache."
    if full:
        return failed(f"full: {'; '.join(full)}", expected="room", seen=full[0], fix=fix)
    if nearly and case.profile != "lab":
        return warned(f"nearly full: {'; '.join(nearly)}", expected="room", seen=nearly[0], fix=fix)
    return passed("; ".join(f"{path} has {_size(one.free_mib)} left" for path, one in disks.items()))


def _spare(path: str) -> int:
    """MiB: two kernels with their initrds, or what a day of logs and an upgrade may take."""
    return 100 if path == "/boot" else 2 * GIB


def _full(disk: Disk, share: float, mib: int, inodes: float) -> str:
    if disk.read_only:
        return ""
    if disk.size_mib and disk.free_mib <= share * disk.size_mib and disk.free_mib < mib:
        return f"has {_size(disk.free_mib)} of {_size(disk.size_mib)} left"
    if disk.inodes and disk.inodes_free <= inodes * disk.inodes:
        return f"has {disk.inodes_free} of {disk.inodes} inodes left"
    return ""


def _size(mib: int) -> str:
    return f"{mib / GIB:.0f} GiB" if mib >= 10 * GIB else f"{mib} MiB"


@check(
    "upkeep.kernel",
    "The newest kernel that is installed runs",
    sections=("upkeep", "kernel", "system"),
    proves="An update of the kernel is in force on a host whose bootloader says nothing about the next boot.",
    how="Kernels of the running one's kind in /boot and /lib/modules, by their versions. Where a bootloader was found, "
    "what it will start is the business of kernel.reboot.",
    todo="Move the guests or end them, then reboot. What is not wanted can be removed.",
)
def kernel(case: Case) -> Finding:
    found, running = case.evidence.upkeep.kernels, case.evidence.system.kernel
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if case.evidence.kernel.next_boot.source:
        return not_applicable("the bootloader tells what comes next: kernel.reboot")
    if found is None:
        return undecided("the installed kernels are not known", fix="Look at /boot and /lib/modules on the host.")
    alike = [release for release in found if _kind(release) == _kind(running)]
    newest = max([running, *alike], key=_numbers)
    if not found:
        return not_applicable("no kernel is installed here, it comes from elsewhere")
    if _numbers(newest) > _numbers(running):
        fix = "Reboot when no guest runs."
        return warned(f"Linux {newest} is installed, {running} runs", expected=newest, seen=running, fix=fix)
    return passed(f"Linux {running}")


def _kind(release: str) -> list[str]:
    """6.1.0-37-cloud-amd64 is of the kind cloud, amd: only kernels of one kind replace each other."""
    return re.findall(r"[a-z]+", release.lower())


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,18}", release)]


# Linux's Documentation/admin-guide/tainted-kernels.rst. FOREIGN tells where modules came from, no fault of theirs.
BROKEN = {
    1: "a module was loaded by force",
    3: "a module was unloaded by force",
    4: "the processor reported a machine check",
    5: "a page of memory was found damaged",
    7: "the kernel hit a bug and went on (oops)",
    14: "a processor was stuck (soft lockup)",
}
FOREIGN = {0: "a proprietary module", 9: "a warning", 12: "a module from outside the kernel", 13: "an unsigned module"}


@check(
    "upkeep.taint",
    "The kernel has met no error",
    sections=("upkeep", "system"),
    proves="Since the boot the kernel had no oops, no machine check and no damaged page, after which nothing that it "
    "does can be relied on.",
    how="/proc/sys/kernel/tainted. Proprietary and foreign modules and warnings are told, and pass.",
    todo="`journalctl -k -b` has the report: send it to the distribution. Move the guests, then reboot; a machine "
    "check that comes back is hardware.",
)
def taint(case: Case) -> Finding:
    tainted = case.evidence.upkeep.tainted
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if tainted is None or tainted < 0:
        return undecided("the kernel does not tell", fix=READ)
    broken = [words for bit, words in BROKEN.items() if tainted >> bit & 1]
    foreign = [words for bit, words in FOREIGN.items() if tainted >> bit & 1]
    if broken and case.profile != "lab":
        summary = f"since the boot: {'; '.join(broken)}"
        fix = "Read `journalctl -k -b` for the report; move the guests, then reboot."
        return warned(summary, expected="no error", seen=f"tainted {tainted}", fix=fix)
    return passed(
        f"tainted {tainted}: {'; '.join([*broken, *foreign]) or 'nothing broke'}" if tainted else "not tainted"
    )


@check(
    "upkeep.oom",
    "No process was killed for want of memory",
    sections=("upkeep", "system"),
    proves="Since the boot the kernel had not to kill a process to get memory; the largest, a guest, goes first.",
    how="oom_kill of /proc/vmstat. It counts kills within a control group, too.",
    todo="`journalctl -k -b -g 'Killed process'` names them. Give guests less memory, or the host more, or swap. The "
    "count begins anew with a boot.",
)
def oom(case: Case) -> Finding:
    kills = case.evidence.upkeep.oom_kills
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if kills is None:
        return undecided("the kernel does not count", fix=READ)
    if kills and case.profile != "lab":
        fix = "Run `journalctl -k -b -g 'Killed process'` for the names; give guests less memory, or the host more."
        return warned(f"{kills} killed since the boot", expected="0", seen=str(kills), fix=fix)
    return passed(f"{kills} killed since the boot")


CHECKS = (units, libraries, disk, kernel, taint, oom)
