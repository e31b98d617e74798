"""Does KVM work: the file, the permission, the interface, a guest that executes?"""

from __future__ import annotations

from shlex import quote

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.finding import Finding

REASONS = {
    "ENOENT": "Load the module kvm_intel or kvm_amd.",
    "ENODEV": "Load the module kvm_intel or kvm_amd; if it refuses, enable virtualization in the firmware setup.",
    "ENXIO": "Load the module kvm_intel or kvm_amd.",
    "EACCES": "Let the group kvm read and write /dev/kvm; see kvm.permission.",
    "EPERM": "Allow the device 10:232 for this container or unit (DeviceAllow=/dev/kvm rw).",
    "EBUSY": "Another hypervisor (VirtualBox, VMware) holds the processor's virtualization: stop it.",
    "ENOMEM": "Free memory on the host.",
}
NEEDED = ("USER_MEMORY", "DESTROY_MEMORY_REGION_WORKS", "JOIN_MEMORY_REGIONS_WORKS")
USEFUL = {
    "x86_64": (
        *("IRQCHIP", "IRQ_ROUTING", "SIGNAL_MSI", "IRQFD", "IOEVENTFD", "IOEVENTFD_ANY_LENGTH"),
        *("READONLY_MEM", "SYNC_MMU", "INTERNAL_ERROR_DATA", "IMMEDIATE_EXIT"),
    ),
    "aarch64": ("IRQCHIP", "IRQFD", "IOEVENTFD", "READONLY_MEM", "SYNC_MMU", "IMMEDIATE_EXIT"),
}
LOOK = "Read `dmesg | grep -i kvm`; it names what KVM does not support."


@check(
    "kvm.node",
    "/dev/kvm is there",
    sections=("kvm",),
    requires=("kernel.module",),
    warns_in=("lab",),
    proves="/dev/kvm is the character device of KVM, and opens.",
    how="stat(2): a character device 10:232; then open(2) for reading and writing.",
    todo="Load the module; udev makes the node. In a container, pass the device in and allow it in the cgroup.",
)
def node(case: Case) -> Finding:
    found = case.evidence.kvm.node
    if not found.exists:
        fix = "Pass /dev/kvm into the container." if case.evidence.system.container else REASONS["ENOENT"]
        return failed("/dev/kvm is missing", expected="a character device", seen=found.errno or "absent", fix=fix)
    if not found.character or (found.major, found.minor) != (10, 232):
        kind = f"device {found.major}:{found.minor}" if found.character else "no device"
        return failed(
            f"/dev/kvm is {kind}", expected="device 10:232", seen=kind, fix="Remove it and reload the module."
        )
    if found.errno:
        return failed(
            f"/dev/kvm does not open: {found.errno}",
            expected="opens",
            seen=found.errno,
            fix=REASONS.get(found.errno, LOOK),
        )
    return passed("/dev/kvm is device 10:232 and opens")


@check(
    "kvm.permission",
    "/dev/kvm belongs to the right group",
    sections=("kvm",),
    requires=("kvm.node",),
    proves="Those who shall start guests may, and on a multi-tenant host nobody else.",
    how="The group is kvm or QEMU's, and may read and write. Mode 0666, the default of some distributions, "
    "is a warning where the profile is multi-tenant.",
    todo="`chgrp kvm /dev/kvm && chmod 0660 /dev/kvm` now; a udev rule or tmpfiles.d keeps it after the next boot.",
)
def permission(case: Case) -> Finding:
    found = case.evidence.kvm.node
    seen = f"{found.owner}:{found.group} {found.mode:04o}"
    open_to_all, open_to_group = found.mode & 0o006 == 0o006, found.mode & 0o060 == 0o060
    fix = "Run `chgrp kvm /dev/kvm && chmod 0660 /dev/kvm`, and find out who changed it (udev rule, tmpfiles.d)."
    if not open_to_all and not (open_to_group and found.group in ("kvm", case.wishes.qemu.group)):
        return failed(f"/dev/kvm is {seen}", expected="root:kvm 0660", seen=seen, fix=fix)
    if open_to_all and case.profile == "multi-tenant":
        return warned(f"everybody may use /dev/kvm: {seen}", expected="root:kvm 0660", seen=seen, fix=fix)
    return passed(f"/dev/kvm is {seen}")


@check(
    "kvm.api",
    "KVM speaks the known interface",
    sections=("kvm",),
    requires=("kvm.node",),
    warns_in=("lab",),
    proves="Behind /dev/kvm is KVM, and it answers.",
    how="The ioctl KVM_GET_API_VERSION gives 12, as on every kernel since 2.6.22.",
    todo="Reload the KVM modules; a node that answers something else is not KVM's.",
)
def api(case: Case) -> Finding:
    version = case.evidence.kvm.api_version
    if version != 12:
        return failed(
            f"the interface answers {version}", expected="12", seen=str(version), fix="Reload the KVM modules."
        )
    return passed("interface version 12")


@check(
    "kvm.capabilities",
    "KVM offers what QEMU needs",
    sections=("kvm", "system"),
    requires=("kvm.api",),
    proves="QEMU starts with this kernel's KVM, and keeps interrupts and notifications of guests inside the kernel.",
    how="The ioctl KVM_CHECK_EXTENSION. Without the capabilities for memory no QEMU starts, which is a failure; "
    "without those for interrupts, eventfds and read-only memory guests are slow or lack UEFI's variables, which is "
    "a warning.",
    todo="Boot the distribution's own kernel: one that was built or patched by hand left something out.",
)
def capabilities(case: Case) -> Finding:
    found = case.evidence.kvm.capabilities
    if not found:
        return undecided("the capabilities were not read", fix="Run `kvmfleet validate` again.")
    useful = USEFUL.get(case.evidence.system.arch, ())
    missing = [name for name in NEEDED if found.get(name, 0) <= 0]
    poorer = [name for name in useful if found.get(name, 0) <= 0]
    fix = "Boot the distribution's own kernel, or a newer one."
    if missing:
        seen = f"without {', '.join(missing + poorer)}"
        return failed(f"no QEMU starts: KVM lacks {', '.join(missing)}", expected="all of it", seen=seen, fix=fix)
    if poorer:
        seen = f"without {', '.join(poorer)}"
        return warned(f"guests are worse off: KVM lacks {', '.join(poorer)}", expected="all of it", seen=seen, fix=fix)
    return passed(f"all {len(NEEDED) + len(useful)} that were asked for")


@check(
    "kvm.vcpus",
    "A guest may be as large as the host",
    sections=("kvm", "cpu"),
    requires=("kvm.api",),
    proves="KVM lets one guest have as many processors as the host has.",
    how="KVM_CAP_MAX_VCPUS against the processors in /proc/cpuinfo.",
    todo="Nothing, where no guest is meant to be that large. Otherwise boot a newer kernel, which allows more.",
)
def vcpus(case: Case) -> Finding:
    most, threads = case.evidence.kvm.capabilities.get("MAX_VCPUS", 0), case.evidence.cpu.threads
    if most <= 0:
        return undecided("KVM does not tell how many processors a guest may have", fix=LOOK)
    if most < threads:
        return warned(
            f"a guest has {most} processors at most, this host has {threads}",
            expected=f"{threads} or more",
            seen=str(most),
            fix="Boot a newer kernel, or keep guests smaller.",
        )
    return passed(f"up to {most} processors a guest, this host has {threads}")


@check(
    "kvm.exec",
    "A guest executes",
    sections=("kvm",),
    requires=("kvm.api",),
    explained_by=("cpu.conflicts", "cpu.flags_everywhere", "memory.overcommit", "kvm.capabilities"),
    warns_in=("lab",),
    proves="KVM creates a machine and executes code in it: not that a file exists, that it works.",
    how="Twenty bytes of code read a random nonce from guest memory, change it, and write it to a port and back to "
    "memory; both must match. Through ioctls in a child process with a time limit; needs no package, takes "
    "milliseconds.",
    todo="The finding names the step and the error. EBUSY: another hypervisor. ENODEV: firmware or module. A hang or "
    f"an unexpected exit: {LOOK}",
)
def executes(case: Case) -> Finding:
    found = case.evidence.kvm.execution
    if found.outcome == "works":
        return passed(f"a guest executed and returned the nonce in {found.duration_ms:.0f} ms")
    if found.outcome == "skipped":
        return not_applicable(f"no guest was executed: {found.detail}")
    seen = ", ".join(part for part in (found.errno, found.detail) if part)
    fix = REASONS.get(found.errno, LOOK)
    return failed(
        f"no guest executes: {found.step}: {seen}", expected="the nonce", seen=f"{found.step}: {seen}", fix=fix
    )


@check(
    "kvm.hardware",
    "The processor executes the guest",
    sections=("kvm",),
    requires=("kvm.exec",),
    warns_in=("lab",),
    proves="Guest instructions run on the processor and are not emulated one by one, a thousand times slower.",
    how="A loop of 20000 turns in 64 bit mode. The kernel's counter insn_emulation decides; before Linux "
    "5.14 the time does.",
    todo="The machine is probably virtual, and the hypervisor below passes no virtualization on: enable nested "
    "virtualization there, or use bare metal. Good enough for a lab.",
)
def hardware(case: Case) -> Finding:
    found = case.evidence.kvm.speed
    if case.evidence.kvm.execution.outcome == "skipped":
        return not_applicable("no guest was executed")
    if found.outcome == "unknown":
        return warned(f"could not be told: {found.detail}", expected="hardware", seen="unknown", fix=LOOK)
    count = found.emulated_instructions
    told = f"{found.loop_ms:.1f} ms" if count is None else f"{count} instructions emulated"
    seen = f"{found.iterations} turns of a loop: {told}"
    if found.outcome == "emulated":
        fix = "Enable nested virtualization in the hypervisor below, or use bare metal."
        return failed(f"KVM works, but emulates every instruction ({seen})", expected="hardware", seen=seen, fix=fix)
    return passed(f"guests run in hardware ({seen})")


@check(
    "kvm.open_as",
    "QEMU's user can open /dev/kvm",
    sections=("kvm",),
    requires=("kvm.permission",),
    proves="The user that libvirt starts QEMU as may use KVM, not only root.",
    how="A child process takes that user's id and groups, and opens /dev/kvm.",
    todo="Put the user into the group kvm (`usermod -aG kvm USER`) and restart the libvirt daemon.",
)
def open_as(case: Case) -> Finding:
    found = case.evidence.kvm.open_as
    if not found.user:
        return not_applicable("no user for QEMU is known yet")
    if not found.tried:
        return failed(
            f"{found.user}: {found.errno}",
            expected="a user",
            seen=found.errno,
            fix="Run `kvmfleet provision` for this host.",
        )
    if found.errno:
        names = f"{quote(case.evidence.kvm.node.group)} {quote(found.user)}"
        fix = f"Run `usermod -aG {names}`, then restart the libvirt daemon."
        return failed(f"{found.user} cannot open /dev/kvm: {found.errno}", expected="opens", seen=found.errno, fix=fix)
    return passed(f"{found.user} opens /dev/kvm")


@check(
    "kvm.users",
    "The users of the contract reach KVM",
    sections=("kvm",),
    requires=("contract.present",),
    explained_by=("host.evidence",),
    proves="Every user of the contract has an account, and opens /dev/kvm itself or lets libvirt do so.",
    how="A child process for each user (16 at most) takes its id and groups, and opens /dev/kvm. Who is in libvirt's "
    "group needs no more for guests of qemu:///system; only those of qemu:///session are QEMUs of the user's own.",
    todo="Create the account, or take the name out of libvirt_users. For qemu:///session: `usermod -aG kvm USER`.",
)
def users(case: Case) -> Finding:
    wished, found = case.wishes.libvirt.users, case.evidence.kvm.users
    if not wished:
        return not_applicable("no users are asked for")
    gone = [name for name in wished if name in found and not found[name].tried]
    if gone:
        why = found[gone[0]].errno or "could not be tried"
        fix = f"Create the account {gone[0]}, or take it out of libvirt_users and provision."
        return failed(f"{', '.join(gone)}: {why}", expected="an account", seen=why, fix=fix)
    if not case.evidence.kvm.node.exists:
        return not_applicable("there is no /dev/kvm to open")
    if not found:
        return undecided("nobody was tried", fix="Run `kvmfleet validate` again.")
    itself = [name for name in wished if name in found and not found[name].errno]
    others = [name for name in wished if name in found and found[name].errno]
    parts = [f"/dev/kvm opens as {', '.join(itself)}"] if itself else []
    parts += [f"through libvirt alone: {', '.join(others)}"] if others else []
    return passed("; ".join(parts))


CHECKS = (node, permission, api, capabilities, vcpus, executes, hardware, open_as, users)
