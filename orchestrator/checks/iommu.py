"""Can devices be handed to guests without handing them the host?"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, plain, warned
from orchestrator.model.evidence import Module
from orchestrator.model.finding import Finding

FIRMWARE = "Enable VT-d, AMD-Vi or SMMU in the firmware, then power the machine off and on."
# What asks for an IOMMU. amd_iommu=on is no such word: the kernel knows it not.
ASKING = ("intel_iommu=on", "iommu=pt", "iommu.passthrough=1")
# Switches of VFIO -> what a guest with a device could do where they are on.
SWITCHES = {
    ("vfio_iommu_type1", "allow_unsafe_interrupts"): "send interrupts as it likes",
    ("vfio", "enable_unsafe_noiommu_mode"): "read and write all memory",
}


@check(
    "iommu.effective",
    "The IOMMU that was asked for is used",
    sections=("iommu", "kernel", "system"),
    proves="Where the kernel's arguments or a device for guests ask for an IOMMU, the kernel uses one.",
    how="Arguments such as intel_iommu=on and devices bound to vfio ask; entries in /sys/class/iommu and "
    "/sys/kernel/iommu_groups decide. What host_tuning_iommu asks for is the business of tuning.iommu.",
    todo=FIRMWARE,
)
def effective(case: Case) -> Finding:
    found = case.evidence.iommu
    asking = [word for word in case.evidence.kernel.cmdline.split() if word.startswith(ASKING)]
    asking += ["a device bound to vfio"] if found.handed_out else []
    if case.evidence.system.container:
        return not_applicable("a container has the kernel of its host")
    if found.units and found.groups:
        return passed(f"{found.units} IOMMU units, {found.groups} groups of devices")
    if case.wishes.tuning.iommu:
        return not_applicable("told by tuning.iommu")
    if not asking:
        return not_applicable("none is there, and nobody asks for one")
    return warned(
        f"{', '.join(asking)}, but " + ("no device is behind the IOMMU" if found.units else "there is no IOMMU"),
        expected="entries in /sys/class/iommu and groups of devices",
        seen=f"{found.units} units, {found.groups} groups",
        fix=FIRMWARE,
    )


@check(
    "iommu.groups",
    "Devices for guests share no group with the host's",
    sections=("iommu",),
    proves="Guests that are given these devices start: VFIO hands out whole groups only.",
    how="For every device bound to a driver of vfio, the other devices of its group, except bridges: they must be "
    "bound to vfio, to pci-stub or to nothing.",
    todo="Bind the rest of the group to vfio-pci (`driverctl set-override ADDRESS vfio-pci`), or put the card into a "
    "slot with a group of its own.",
)
def groups(case: Case) -> Finding:
    found = case.evidence.iommu.handed_out
    if not found:
        return not_applicable("no device is bound to vfio")
    split = {
        name: theirs for name, devices in found.items() if (theirs := [each for each in devices if _hosts_own(each)])
    }
    if split:
        name, theirs = min(split.items())
        seen = ", ".join(theirs[:4]) + (", ..." if theirs[4:] else "")
        fix = f"Bind {theirs[0].split()[0]} to vfio-pci, too, or move the card to another slot."
        return failed(f"group {name} is shared with the host: {seen}", expected="vfio alone", seen=seen, fix=fix)
    return passed(f"{sum(map(len, found.values()))} devices in {len(found)} groups are for guests alone")


def _hosts_own(device: str) -> bool:
    _, _, driver = device.partition(" ")
    return bool(driver) and "vfio" not in driver and driver not in ("pci-stub", "pcieport")


@check(
    "iommu.unsafe",
    "No device is handed out unprotected",
    sections=("kernel", "system"),
    proves="A guest with a device of its own cannot reach the host through it, by interrupts or by memory.",
    how="allow_unsafe_interrupts of vfio_iommu_type1 and enable_unsafe_noiommu_mode of vfio, live and in modprobe.d "
    "for the next boot. A failure where guests are strangers (multi-tenant), a warning elsewhere.",
    todo="Remove the option from /etc/modprobe.d and the kernel's arguments, then load the module anew. A machine that "
    "needs it has no interrupt remapping: enable it in the firmware (x2APIC, VT-d), or hand out no devices.",
)
def unsafe(case: Case) -> Finding:
    kernel = case.evidence.kernel
    if case.evidence.system.container:
        return not_applicable("a container has the kernel of its host")
    live, later = [], []
    for module, option in SWITCHES:
        if plain(kernel.modules.get(module, Module()).params.get(option, "")) == "1":
            live.append((module, option))
        elif plain(kernel.configured_options.get(module, {}).get(option, "")) == "1":
            later.append((module, option))
    if not live and not later:
        here = [name for name in ("vfio", "vfio_iommu_type1") if kernel.modules.get(name, Module()).state != "absent"]
        return passed("off") if here else not_applicable("vfio is not loaded, and nobody turns its protection off")
    verdict: Callable[..., Finding] = failed if case.profile == "multi-tenant" else warned
    module, option = (live or later)[0]
    when = "is on" if live else "is on after the next boot"
    return verdict(
        f"{module}.{option} {when}: a guest with a device can {SWITCHES[module, option]}",
        expected="off",
        seen=", ".join(f"{module}.{option}" for module, option in live + later),
        fix=f"Remove it from /etc/modprobe.d and the kernel's arguments, and load {module} anew.",
    )


CHECKS = (effective, groups, unsafe)
