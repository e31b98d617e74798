"""Does a guest boot the way that users will start them?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, warned
from orchestrator.model import Finding

NEXT = {
    "": "Free space in /var/lib/libvirt, then validate again.",
    "image": "The reason is libvirt's: read `journalctl -u libvirtd -u virtqemud`.",
    "create": "QEMU started and its firmware did not load the disk: read /var/log/libvirt/qemu and `dmesg`.",
    "firmware": "The boot sector started and stopped: read `dmesg | grep -i kvm`.",
    "nonce": "The guest could not turn itself off (ACPI, APM): read `dmesg | grep -i kvm`.",
}


@check(
    "guest.boot",
    "A domain boots",
    sections=("guest", "kvm", "libvirt", "qemu"),
    requires=("qemu.binary", "libvirt.connect"),
    explained_by=("kvm.node", "kvm.exec", "kvm.open_as", "libvirt.kvm"),
    proves="libvirt, QEMU, firmware, disk, serial line and power management work together, as users will use them.",
    how="A transient domain boots a generated disk of 1 MiB; its boot sector unmasks a nonce, writes it to the serial "
    "line and turns the machine off. With KVM, or with TCG where KVM cannot, which is a warning in a lab and a failure "
    "elsewhere. Everything is removed afterwards, and libvirt destroys the domain should the collector be killed.",
    todo="The finding names the last milestone: image, create, firmware, nonce, poweroff.",
)
def boot(case: Case) -> Finding:
    found = case.evidence.guest
    if found.outcome == "skipped":
        return not_applicable(f"no domain was booted: {found.detail}")
    seconds = f"{found.duration_ms / 1000:.1f} s"
    if found.outcome == "broken":
        fix = NEXT.get(found.step, NEXT["image"])
        summary = (
            f"a domain of type {found.domain_type} does not boot: after the step {found.step or 'none'}: {found.detail}"
        )
        return failed(summary, expected="poweroff", seen=found.step or "nothing", fix=fix)
    if found.leftovers:
        names = ", ".join(found.leftovers)
        return warned(f"a domain booted, but this could not be removed: {names}", fix=f"Remove {names} by hand.")
    if found.domain_type != "kvm":
        verdict, lab = (warned, "") if case.profile == "lab" else (failed, ", or give the host the profile lab")
        fix = f"Make KVM work, the checks of kvm say how{lab}."
        summary = f"a domain booted in {seconds} without KVM, under TCG. {found.detail}".strip()
        return verdict(summary, expected="kvm", seen=found.domain_type, fix=fix)
    return passed(f"a domain of type kvm booted and turned itself off in {seconds}")


CHECKS = (boot,)
