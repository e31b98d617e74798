"""Can guests have control groups with all that libvirt limits them by?"""

from __future__ import annotations

from orchestrator.checks.host import BECOME
from orchestrator.checks.registry import Case, check, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Runner, System
from orchestrator.model.finding import Finding

CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")  # devices and freezer are no controllers in v2
UNIFIED = "Take systemd.unified_cgroup_hierarchy= out of the kernel's arguments, or set it to 1, then reboot."


@check(
    "cgroups.version",
    "Control groups are those of version 2",
    sections=("cgroups", "system"),
    proves="There is one hierarchy, in which systemd and libvirt share the work; newer systemd knows no other.",
    how="The file systems below /sys/fs/cgroup. In a release whose default is version 1, as EL 8, that passes.",
    todo=f"{UNIFIED} A container has them from the machine below: systemd-nspawn needs "
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 there.",
)
def version(case: Case) -> Finding:
    hierarchy, system = case.evidence.cgroups.hierarchy, case.evidence.system
    if hierarchy is None:
        return undecided("the mounted file systems are not known", fix="Look at /proc/self/mounts on the host.")
    if hierarchy == "unified":
        return passed("version 2")
    if not hierarchy:
        fix = "Mount them: systemd does, and on other hosts the service cgroups."
        return warned("no control groups are mounted: nothing limits a guest", expected="version 2", fix=fix)
    words = "version 1" if hierarchy == "legacy" else "version 1 beside an empty version 2"
    if not system.container and (_old(system) or case.profile == "lab"):
        return passed(f"{words}, the default of this release" if _old(system) else words)
    fix = "Start the container with the unified hierarchy." if system.container else UNIFIED
    return warned(words, expected="version 2", seen=hierarchy, fix=fix)


def _old(system: System) -> bool:
    return system.os_version.split(".")[0] == "8" and "rhel" in (system.os_id, *system.os_like)


@check(
    "cgroups.controllers",
    "Guests have every controller",
    sections=("cgroups", "processes", "kernel", "system"),
    requires=("cgroups.version",),
    proves="libvirt can limit and count the processors, memory, disks and tasks of a guest: memtune, cputune and "
    "blkiotune work.",
    how="cgroup.controllers of the root, and of the unit that libvirt made for each guest that runs.",
    todo="Missing in the kernel: take cgroup_disable= out of its arguments. Missing in guests: DisableControllers= of "
    "machine.slice, or Delegate= of the daemon's unit; `systemctl show -p DisableControllers machine.slice`.",
)
def controllers(case: Case) -> Finding:
    found = case.evidence.cgroups
    if found.hierarchy is not None and found.hierarchy != "unified":
        return not_applicable("there are none of version 2")
    if found.controllers is None:
        return undecided("the controllers cannot be read", fix="Look at /sys/fs/cgroup/cgroup.controllers on the host.")
    lacking = [name for name in CONTROLLERS if name not in found.controllers]
    if lacking and case.evidence.system.container:
        return not_applicable(f"the machine below hands this container no {', '.join(lacking)}")
    if lacking:
        return warned(
            f"the kernel has no controller {', '.join(lacking)}",
            expected=", ".join(CONTROLLERS),
            seen=", ".join(found.controllers),
            fix="Take cgroup_disable= and cgroup_no_v1= out of the kernel's arguments, then reboot.",
        )
    if case.evidence.processes is None:
        return undecided("the units of guests cannot be looked at", fix=BECOME)
    poor = {guest.name: names for guest in case.evidence.processes if (names := _missing(guest))}
    if poor:
        lost = ", ".join(name for name in CONTROLLERS if any(name in names for names in poor.values()))
        summary = f"without {lost}: {', '.join(list(poor)[:5])}{', ...' if len(poor) > 5 else ''}"
        fix = "Run `systemctl cat machine.slice`: take DisableControllers= out, then start those guests again."
        return warned(summary, expected=", ".join(CONTROLLERS), seen=f"without {lost}", fix=fix)
    guests = sum(runner.guest for runner in case.evidence.processes)
    return passed(", ".join(CONTROLLERS) + (f", in {guests} guests too" if guests else ""))


def _missing(guest: Runner) -> list[str]:
    """What a guest's unit lacks. libvirt limits no tasks; and a QEMU in no unit of its was not started by it."""
    if not guest.guest or guest.controllers is None:
        return []
    return [name for name in CONTROLLERS if name not in (*guest.controllers, "pids")]


CHECKS = (version, controllers)
