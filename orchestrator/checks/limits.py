"""Is there room left below the limits that the kernel and systemd set?"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from orchestrator.checks.host import BECOME
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Runner
from orchestrator.model.finding import Finding

NEARLY = 0.8
ROOM = 16  # descriptors: a daemon opens some ten more while it starts a guest
HOLDERS = ("virtlogd", "virtlockd")  # of what guests need: a restart takes it from them
CONTAINER = "the kernel's limits are those of the machine below"
READ = "Look at /proc/sys on the host."


def _full(used: int | None, most: int | None) -> bool:
    """Nearly all of it is in use. What is not known is not full, and is reported by the caller."""
    return used is not None and most is not None and most >= 0 and used >= NEARLY * most


def _cramped(daemon: Runner) -> bool:
    """It cannot start a guest any more. virtlogd needs one file for each guest."""
    return daemon.files is not None and daemon.files_max is not None and 0 <= daemon.files_max < daemon.files + ROOM


def _scarce(what: Iterable[tuple[str, int | None, int | None]]) -> list[str]:
    return [f"{name}: {used} of {most}" for name, used, most in what if _full(used, most)]


def _settled(scarce: list[str], *, fix: str, good: str) -> Finding:
    if not scarce:
        return passed(good)
    more = f"; and {len(scarce) - 4} more" if len(scarce) > 4 else ""
    return warned(
        f"nearly used up: {'; '.join(scarce[:4])}{more}", expected=f"below {NEARLY:.0%}", seen=scarce[0], fix=fix
    )


@check(
    "limits.files",
    "libvirt, guests and the kernel can open more files",
    sections=("limits", "processes", "system"),
    proves="A guest with many disks and interfaces starts, and the daemon takes another client: no limit of open "
    "files is near.",
    how="/proc/PID/fd against /proc/PID/limits for every libvirt daemon and QEMU; /proc/sys/fs/file-nr. A daemon that "
    f"cannot open {ROOM} more is a failure: it starts no guest.",
    todo="A daemon: LimitNOFILE= of its unit, then restart it; guests go on. But virtlogd and virtlockd are never "
    "restarted under guests: `prlimit --pid PID --nofile=524288`. A guest: max_files in qemu.conf, then start it "
    "again. The kernel: sysctl fs.file-max.",
)
def files(case: Case) -> Finding:
    runners, limits = case.evidence.processes, case.evidence.limits
    if runners is None or any(runner.files is None for runner in runners):
        return undecided("open files cannot be counted", fix=BECOME)
    scarce = _scarce((runner.name, runner.files, runner.files_max) for runner in runners)
    if not case.evidence.system.container:
        if limits.files is None or limits.files_max is None:
            return undecided("the kernel does not tell how many files are open", fix=READ)
        scarce += _scarce([("the kernel", limits.files, limits.files_max)])
    for one in runners:
        if not one.guest and (_full(one.files, one.files_max) or _cramped(one)):
            fix = f"Run `systemctl edit {shlex.quote(one.name)}`: LimitNOFILE=524288; then "
            fix += f"`prlimit --pid {one.pid} --nofile=524288`." if one.name in HOLDERS else "restart it, guests go on."
            summary = f"{one.name} has {one.files} files open, of {one.files_max}"
            verdict = failed if _cramped(one) else warned
            return verdict(summary, expected=f"{ROOM} more", seen=f"{one.files} of {one.files_max}", fix=fix)
    fix = "Raise max_files in qemu.conf and start the guest again, or fs.file-max."
    return _settled(scarce, fix=fix, good=f"{len(runners)} daemons and guests, none near its limit")


@check(
    "limits.pids",
    "There is room for more processes",
    sections=("limits", "processes", "system"),
    proves="QEMU can start its threads: one for each virtual processor, and more for disks.",
    how="pids.current, pids.max and pids.events of the units of libvirt's daemons and of guests; the threads of the "
    "whole machine against kernel.pid_max and kernel.threads-max.",
    todo="A unit: TasksMax= of the daemon or of machine.slice; `systemctl set-property UNIT TasksMax=32768`. The "
    "kernel: sysctl kernel.pid_max=4194304.",
)
def pids(case: Case) -> Finding:
    runners, limits = case.evidence.processes, case.evidence.limits
    if runners is None:
        return undecided("the units of guests cannot be looked at", fix=BECOME)
    refused = [runner for runner in runners if runner.tasks_refused]
    if refused:
        names = ", ".join(f"{runner.name} {runner.tasks_refused} times" for runner in refused[:5])
        fix = "Raise TasksMax= of that unit: `systemctl set-property UNIT TasksMax=32768`. The count goes with it."
        return warned(f"could not start a thread: {names}", expected="never", seen=names, fix=fix)
    scarce = _scarce((runner.name, runner.tasks, runner.tasks_max) for runner in runners)
    if not case.evidence.system.container:
        if limits.threads is None or limits.pid_max is None or limits.threads_max is None:
            return undecided("the kernel does not tell how many threads there are", fix=READ)
        scarce += _scarce([("the kernel", limits.threads, min(limits.pid_max, limits.threads_max))])
    elif all(runner.tasks is None for runner in runners):
        return not_applicable(CONTAINER)
    fix = "Raise TasksMax= of that unit, or kernel.pid_max and kernel.threads-max."
    return _settled(scarce, fix=fix, good=f"{len(runners)} daemons and guests, none near its limit")


@check(
    "limits.aio",
    "Disks can have more asynchronous requests",
    sections=("limits", "system"),
    proves="A guest whose disks use io=native starts: QEMU reserves requests for each of them, and there is one pool "
    "for the whole machine.",
    how="/proc/sys/fs/aio-nr against aio-max-nr.",
    todo="Put fs.aio-max-nr: 1048576 into host_tuning_sysctls and provision; databases on the host need many, too.",
)
def aio(case: Case) -> Finding:
    limits = case.evidence.limits
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if limits.aio is None or limits.aio_max is None:
        return undecided("the kernel does not tell", fix=READ)
    fix = f"Run `sysctl -w fs.aio-max-nr={max(1048576, 2 * limits.aio_max)}`, and put it into host_tuning_sysctls."
    scarce = _scarce([("asynchronous requests", limits.aio, limits.aio_max)])
    return _settled(scarce, fix=fix, good=f"{limits.aio} of {limits.aio_max}")


@check(
    "limits.inotify",
    "dnsmasq can watch its files",
    sections=("limits", "system"),
    proves="Another network of libvirt starts: its dnsmasq needs an inotify instance, and root has only so many.",
    how="The inotify instances of root's processes against /proc/sys/fs/inotify/max_user_instances.",
    todo="Put fs.inotify.max_user_instances: 1024 into host_tuning_sysctls and provision.",
)
def inotify(case: Case) -> Finding:
    limits = case.evidence.limits
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if limits.inotify is None or limits.inotify_max is None:
        return undecided("instances cannot be counted", fix=BECOME)
    fix = "Run `sysctl -w fs.inotify.max_user_instances=1024`, and put it into host_tuning_sysctls."
    scarce = _scarce([("inotify instances of root", limits.inotify, limits.inotify_max)])
    return _settled(scarce, fix=fix, good=f"{limits.inotify} of {limits.inotify_max}")


@check(
    "limits.memlock",
    "A guest's memory may be locked",
    sections=("processes", "system"),
    requires=("contract.present", "libvirt.connect"),
    warns_in=("lab",),
    proves="A guest that is given a device (VFIO) starts: all of its memory is locked then.",
    how="Where the contract wants an IOMMU: the hard limit of locked memory of libvirt's daemon, or its capability to "
    "raise it (CAP_SYS_RESOURCE), with which libvirt gives each guest its own limit.",
    todo="Take CapabilityBoundingSet= and LimitMEMLOCK= out of the drop-ins of the daemon's unit, then restart it.",
)
def memlock(case: Case) -> Finding:
    if not case.wishes.tuning.iommu or case.evidence.system.container:
        return not_applicable("no devices are handed to guests" if not case.wishes.tuning.iommu else CONTAINER)
    family = "libvirtd" if case.wishes.libvirt.family == "monolithic" else "virtqemud"
    daemons = [runner for runner in case.evidence.processes or () if runner.name == family and not runner.guest]
    if case.evidence.processes is None or any(daemon.memlock_max is None for daemon in daemons):
        return undecided("the daemon's limits cannot be read", fix=BECOME)
    if not daemons:
        return not_applicable(f"{family} does not run just now")
    poor = [daemon for daemon in daemons if daemon.memlock_max != -1 and not daemon.raises_limits]
    if poor:
        mib = (poor[0].memlock_max or 0) >> 20
        fix = f"Run `systemctl edit {family}`: LimitMEMLOCK=infinity; then restart it, guests go on."
        summary = f"{family} may lock {mib} MiB and cannot raise that"
        return failed(summary, expected="no limit, or CAP_SYS_RESOURCE", seen=f"{mib} MiB", fix=fix)
    return passed("without a limit" if daemons[0].memlock_max == -1 else f"{family} raises the limit for each guest")


CHECKS = (files, pids, aio, inotify, memlock)
