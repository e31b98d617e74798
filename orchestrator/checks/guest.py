"""Does a guest boot the way that users will start them?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Guest
from orchestrator.model.finding import Finding

NEXT = {
    "": "Free space in /var/lib/libvirt, then validate again.",
    "image": "The reason is libvirt's: read `journalctl -u libvirtd -u virtqemud`.",
    "create": "QEMU started and nothing of the guest did: read /var/log/libvirt/qemu and `dmesg`.",
    "firmware": "What the firmware started did not go on: read `dmesg | grep -i kvm`.",
    "shell": "The shell did not run its script: read `dmesg | grep -i kvm`.",
    "kernel": "The kernel stopped on its way: read `dmesg | grep -i kvm`.",
    "init": "The kernel is up, and its first process did not answer: read `dmesg | grep -i kvm`.",
    "nonce": "The guest could not turn itself off (ACPI, APM): read `dmesg | grep -i kvm`.",
    "userspace": "The guest could not turn itself off (ACPI): read `dmesg | grep -i kvm`.",
}
NO_FIRMWARE = "Install the package ovmf or edk2-ovmf, as the distribution calls it."
SILENT_IMAGE = "Does the image boot from a disk with BIOS firmware, and use the first serial line (console=ttyS0)?"
UNUSABLE = "Give --boot file= the path of a qcow2 or raw image on this host that QEMU's user may read."


@check(
    "guest.boot",
    "A domain boots",
    sections=("guest", "kvm", "libvirt", "qemu"),
    requires=("qemu.binary", "libvirt.connect"),
    explained_by=(
        "memory.overcommit",
        "kvm.node",
        "kvm.capabilities",
        "kvm.exec",
        "kvm.open_as",
        "libvirt.kvm",
        "limits.files",
        "upkeep.disk",
    ),
    proves="libvirt, QEMU, firmware, disk, serial line and power management work together, as users will use them.",
    how="A transient domain, as deep as --boot says. firmware: a generated disk of 1 MiB, whose boot sector unmasks "
    "a nonce, writes it to the serial line and turns the machine off. uefi: OVMF starts its shell, which finds "
    "a script on a generated FAT disk, joins the two halves of a nonce, and turns the machine off. alpine: an "
    "unmodified kernel and initramfs of Alpine Linux, whose shell multiplies two random numbers, names its "
    "kernel, and turns the machine off. file: an image on the host behind a throwaway overlay, until its serial "
    "line says something, or what was expected. With KVM, or with TCG where KVM cannot, which is a warning in a "
    "lab and a failure elsewhere. Everything is removed afterwards, and libvirt destroys the domain should the "
    "collector be killed.",
    todo="The finding names the last milestone. firmware: image, create, firmware, nonce, poweroff. uefi: image, "
    "create, firmware, shell, nonce, poweroff. alpine: image, create, kernel, init, userspace, poweroff. file: "
    "image, create, console.",
)
def boot(case: Case) -> Finding:
    found = case.evidence.guest
    if found.outcome == "skipped":
        return not_applicable(f"no domain was booted: {found.detail}")
    if found.outcome == "unusable":
        return undecided(f"nothing to boot: {found.detail}", fix=UNUSABLE)
    if found.outcome == "broken":
        return _broken(found)
    if found.leftovers:
        names = ", ".join(found.leftovers)
        return warned(f"a domain booted, but this could not be removed: {names}", fix=f"Remove {names} by hand.")
    if found.domain_type != "kvm":
        verdict, lab = (warned, "") if case.profile == "lab" else (failed, ", or give the host the profile lab")
        fix = f"Make KVM work, the checks of kvm say how{lab}."
        summary = f"a domain booted without KVM, under TCG, {_story(found)}. {found.detail}".strip()
        return verdict(summary, expected="kvm", seen=found.domain_type, fix=fix)
    end = "" if found.depth == "file" else " and turned itself off"
    return passed(f"a domain of type kvm booted{end} {_story(found)}")


def _broken(found: Guest) -> Finding:
    summary = (
        f"a domain of type {found.domain_type} does not boot: after the step {found.step or 'none'}: {found.detail}"
    )
    fix = NEXT.get(found.step, NEXT["image"])
    if found.depth == "uefi" and found.step == "image" and "firmware" in found.detail:
        fix = NO_FIRMWARE
    elif found.depth == "file" and found.step == "create":
        fix = SILENT_IMAGE
    return failed(summary, expected="console" if found.depth == "file" else "poweroff", seen=found.step, fix=fix)


def _story(found: Guest) -> str:
    """How long it took, which way it went, and what it was."""
    steps = sorted(found.milestones, key=lambda step: found.milestones[step])
    way = f" ({found.depth}: {', '.join(steps)})" if steps else ""
    said = f"; it is {found.said}" if found.said and found.depth == "alpine" else ""
    said = f'; it says "{found.said}"' if found.said and found.depth == "file" else said
    return f"in {found.duration_ms / 1000:.1f} s{way}{said}"


CHECKS = (boot,)
