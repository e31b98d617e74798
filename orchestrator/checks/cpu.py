"""Can this processor run guests?"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from orchestrator.checks.registry import Case, check, failed, not_applicable, numbers, passed, undecided, warned
from orchestrator.model.evidence import CpuKind
from orchestrator.model.finding import Finding

ARCHITECTURES = ("x86_64", "aarch64")
FIRMWARE = "Enable virtualization (Intel VT-x, AMD SVM) in the firmware setup, then switch the machine off and on."
NESTED = "Enable nested virtualization for this machine in the hypervisor below it, then stop and start it."
OTHERS = {
    "vboxdrv": "VirtualBox (module vboxdrv)",
    "vmmon": "VMware (module vmmon)",
    "mshv_root": "Hyper-V, whose root partition this is",
    "xen": "Xen, whose dom0 this is",
}
MANY = "the processors differ so much that not all of them were looked at"
ASK = "Read /proc/cpuinfo on the host: no two processors are alike there."
BELOW = ("mshv_root", "xen")  # they have the processor for as long as the machine runs
LEVELS = {
    "x86-64-v2": ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"),
    "x86-64-v3": ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"),
    "x86-64-v4": ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
}


@check(
    "cpu.arch",
    "The architecture is supported",
    sections=("system",),
    proves="The roles and the proof know this architecture.",
    how="`uname -m` is x86_64 or aarch64.",
    todo="Take the host out of the group kvm_hosts.",
)
def arch(case: Case) -> Finding:
    found = case.evidence.system.arch
    if found not in ARCHITECTURES:
        wanted = " or ".join(ARCHITECTURES)
        return failed(
            f"the architecture is {found or 'unknown'}", expected=wanted, seen=found, fix="Use another machine."
        )
    return passed(f"{found}, {case.evidence.cpu.threads} threads, {case.evidence.cpu.model}")


@check(
    "cpu.conflicts",
    "No other hypervisor holds the processor",
    sections=("kernel", "kvm", "system"),
    requires=("cpu.arch",),
    proves="KVM has the processor's virtualization for itself.",
    how="/proc/modules and /sys/module for those of VirtualBox, VMware and Hyper-V, /proc/xen for Xen's dom0, and "
    "whether KVM is refused with EBUSY. One that is there and does not use the processor just now is a warning.",
    todo="End the other hypervisor's guests and unload its module, or boot the kernel without Xen or Hyper-V below it.",
)
def conflicts(case: Case) -> Finding:
    others, busy = case.evidence.kernel.hypervisors, case.evidence.kvm.execution.errno == "EBUSY"
    if others is None:
        return not_applicable("the kernel's modules cannot be seen from here")
    names = " and ".join(OTHERS.get(name, name) for name in others)
    if not others:
        return passed("no other hypervisor is there")
    loaded = [name for name in others if name not in BELOW]
    where = f"on the machine below, whose kernel this {case.evidence.system.container} shares"
    fix = f"Stop its guests and run `modprobe -r {shlex.join(loaded)}`" if loaded else "Boot Linux without it"
    fix += f", {where}." if case.evidence.system.container else "."
    if busy or (len(loaded) < len(others) and not case.kvm_runs):
        return failed(f"the processor belongs to {names}", expected="KVM alone", seen=names, fix=fix)
    return warned(f"KVM shares this machine with {names}", expected="KVM alone", seen=names, fix=fix)


@check(
    "cpu.firmware",
    "The firmware leaves virtualization to the kernel",
    sections=("cpu", "system", "kvm"),
    requires=("cpu.arch",),
    explained_by=("cpu.conflicts",),
    warns_in=("lab",),
    proves="VT-x or SVM is not switched off and locked in the firmware's setup, on any processor.",
    how="IA32_FEATURE_CONTROL (locked without VMX) or VM_CR (SVMDIS) of every processor, where the module msr is "
    "loaded; otherwise the kernel's log since the boot. Where KVM runs, nothing can be locked.",
    todo=FIRMWARE,
)
def firmware(case: Case) -> Finding:
    found = case.evidence.cpu.firmware
    if case.evidence.system.arch != "x86_64":
        return not_applicable("no firmware switch is known for this architecture")
    if case.kvm_runs:
        return passed("KVM runs, so nothing is locked")
    if case.evidence.system.virtual:
        return not_applicable(f"a virtual machine has what {case.evidence.system.virtual} gives it")
    off = [cpus for value, cpus in sorted(found.registers.items()) if _locked(case.evidence.cpu.vendor, value)]
    if off or found.complaint:
        seen = f"off on processors {','.join(off)}" if off else f"the kernel says: {found.complaint}"
        return failed(f"virtualization is off in the firmware: {seen}", expected="on", seen=seen, fix=FIRMWARE)
    if found.registers:
        return passed(f"not locked on processors {','.join(found.registers.values())}")
    if found.log == "whole":
        return passed("the kernel's log since the boot has no complaint")
    return not_applicable(
        "the kernel's log no longer goes back to the boot, and the module msr is not loaded"
        if found.log
        else "neither the processor's registers nor the kernel's log can be read"
    )


def _locked(vendor: str, value: str) -> bool:
    """Intel: bit 0 locks, bits 1 and 2 allow VMX after a measured and after an ordinary boot. AMD: bit 4 is SVMDIS."""
    bits = int(value, 16) if value[:2] == "0x" and set(value[2:]) <= set("0123456789abcdef") and value[2:] else 0
    return bits & 0b111 == 0b001 if vendor == "GenuineIntel" else bool(bits & 1 << 4)


@check(
    "cpu.extensions",
    "The processor has virtualization",
    sections=("cpu", "system"),
    requires=("cpu.arch",),
    explained_by=("cpu.conflicts", "cpu.firmware"),
    warns_in=("lab",),
    proves="The processor offers VT-x or SVM, and the firmware has not switched it off.",
    how="The flag vmx or svm in /proc/cpuinfo. Flags are a hint and never the last word: KVM exists without them, and "
    "where a guest executes, their absence is noted and passes.",
    todo=f"On bare metal: {FIRMWARE} In a virtual machine: {NESTED}",
)
def extensions(case: Case) -> Finding:
    flags = sorted({"vmx", "svm"} & set(case.evidence.cpu.flags))
    if flags:
        return passed(f"{flags[0]} in /proc/cpuinfo")
    if case.evidence.system.arch == "aarch64":
        return passed("aarch64 has no flag for it; KVM itself tells")
    if case.kvm_runs:
        return passed("neither vmx nor svm in /proc/cpuinfo, but KVM runs")
    fix = NESTED if case.evidence.system.virtual else FIRMWARE
    return failed("neither vmx nor svm in /proc/cpuinfo, and no KVM", expected="vmx or svm", seen="neither", fix=fix)


@check(
    "cpu.flags_everywhere",
    "Every processor has virtualization",
    sections=("cpu", "kvm"),
    requires=("cpu.extensions",),
    warns_in=("lab",),
    proves="No processor lacks what the others have of VT-x or SVM: KVM refuses a machine on which one does.",
    how="The flags vmx and svm of every processor in /proc/cpuinfo.",
    todo="Firmware that forgot a processor: update it, load its defaults, and switch virtualization on again.",
)
def flags_everywhere(case: Case) -> Finding:
    cpu = case.evidence.cpu
    flags = sorted({"vmx", "svm"} & set(cpu.flags))
    if not flags:
        return not_applicable("no flag says how this machine's KVM works")
    if cpu.kind_count > len(cpu.kinds):
        return undecided(MANY, fix=ASK)
    without = [kind.cpus for kind in cpu.kinds if flags[0] in kind.lacks]
    if not without:
        return passed(f"{flags[0]} on all {cpu.threads} processors")
    verdict: Callable[..., Finding] = warned if case.kvm_runs else failed
    return verdict(
        f"no {flags[0]} on processors {','.join(without)}",
        expected=f"{flags[0]} on all {cpu.threads}",
        seen=f"without: {','.join(without)}",
        fix="Update the firmware, load its defaults and enable virtualization, then switch the machine off and on.",
    )


@check(
    "cpu.nested_paging",
    "The processor translates guest memory",
    sections=("cpu",),
    requires=("cpu.extensions",),
    proves="Guest memory is translated by the processor, not by page tables that the kernel shadows.",
    how="The flag ept or npt in /proc/cpuinfo, where the processor has vmx or svm.",
    todo="Guests work without it and are several times slower in memory-bound work. In a virtual machine, let the "
    "hypervisor below expose EPT or NPT.",
)
def nested_paging(case: Case) -> Finding:
    flags = set(case.evidence.cpu.flags)
    if not flags & {"vmx", "svm"}:
        return not_applicable("no flag says how this machine's KVM works")
    if flags & {"ept", "npt"}:
        return passed(f"{min(flags & {'ept', 'npt'})} in /proc/cpuinfo")
    return warned(
        "no nested paging: guests will be slow",
        expected="ept or npt",
        seen="neither",
        fix="Expose EPT or NPT to this machine, or accept slow guests.",
    )


@check(
    "cpu.homogeneous",
    "The processors are alike",
    sections=("cpu",),
    requires=("cpu.arch",),
    proves="A guest finds the same processor wherever the kernel runs it.",
    how="Vendor, family, model, stepping and all flags of every processor in /proc/cpuinfo, and the types of cores "
    "that the kernel tells apart, which no lab is warned of.",
    todo="Different sockets: put in processors of one kind. Fast and slow cores: pin guests to one type (vcpupin), or "
    "switch the other off in the firmware.",
)
def homogeneous(case: Case) -> Finding:
    cpu = case.evidence.cpu
    if not cpu.kinds:
        return undecided("/proc/cpuinfo names no processor", fix="Run `kvmfleet validate` again.")
    if cpu.kind_count > len(cpu.kinds):
        return warned(MANY, expected="one kind", seen=f"{cpu.kind_count} kinds", fix=ASK)
    # a kind without VT-x or SVM lacks all that comes with it, and is the business of cpu.flags_everywhere
    kinds = {(kind.id, () if {"vmx", "svm"} & set(kind.lacks) else kind.lacks): kind for kind in cpu.kinds}
    if len(kinds) > 1:
        seen = "; ".join(_told(kind) for kind in list(kinds.values())[:4])
        return warned(
            f"{len(kinds)} kinds of processors: {seen}",
            expected="one kind",
            seen=seen,
            fix="Pin guests to processors of one kind, or give them a CPU model that all kinds have.",
        )
    types = ", ".join(f"{name} {cpus}" for name, cpus in sorted(cpu.hybrid.items()))
    if len(cpu.hybrid) > 1 and case.profile != "lab":
        fix = "Pin guests to cores of one type (vcpupin), or switch the other type off in the firmware."
        return warned(f"types of cores differ in speed: {types}", expected="one type", seen=types, fix=fix)
    return passed(f"{cpu.threads} processors of one kind, {cpu.kinds[0].id}" + (f": {types}" if types else ""))


def _told(kind: CpuKind) -> str:
    lacks = ", ".join(kind.lacks[:6]) + (", ..." if kind.lacks[6:] else "")
    return f"{kind.cpus} {kind.id}" + (f" without {lacks}" if lacks else "")


@check(
    "cpu.microcode",
    "The microcode is one, and current",
    sections=("cpu", "system"),
    requires=("cpu.arch",),
    proves="Every processor runs the same revision of its microcode, and none that the kernel knows to be outdated.",
    how="The line microcode of every processor in /proc/cpuinfo; since Linux 6.16 "
    "/sys/devices/system/cpu/vulnerabilities/old_microcode.",
    todo="Install intel-microcode or amd64-microcode, as the distribution calls it, or newer firmware; then reboot.",
)
def microcode(case: Case) -> Finding:
    cpu, system = case.evidence.cpu, case.evidence.system
    if system.arch != "x86_64" or system.virtual:
        why = f"of a virtual machine is {system.virtual}'s business" if system.virtual else "is unknown on this machine"
        return not_applicable(f"the microcode {why}")
    revisions: dict[tuple[str, str], list[str]] = {}
    for kind in cpu.kinds:
        revisions.setdefault((kind.id, kind.microcode), []).append(kind.cpus)
    names = [f"{revision or 'none'} on {','.join(cpus)}" for (_, revision), cpus in revisions.items()]
    fix = "Install the distribution's package of microcode, or newer firmware, and reboot when no guest runs."
    if len(revisions) > len({id for id, _ in revisions}) and not cpu.hybrid:
        seen = "; ".join(names[:4])
        return warned(f"processors of one kind differ: {seen}", expected="one revision", seen=seen, fix=fix)
    if cpu.old_microcode.startswith("Vulnerable"):
        return warned(f"the kernel knows a newer one than {names[0]}", expected="current", seen=names[0], fix=fix)
    if not any(revision for _, revision in revisions):
        return not_applicable("the kernel tells no revision")
    told = ", and the kernel knows no newer one" if cpu.old_microcode == "Not affected" else ""
    return passed(f"revision {' and '.join(sorted({revision for _, revision in revisions}))}{told}")


@check(
    "cpu.online",
    "The processors are online",
    sections=("cpu", "system"),
    requires=("cpu.arch",),
    proves="The kernel uses every processor that is there.",
    how="/sys/devices/system/cpu/present and online. The second threads of cores may be off where SMT is.",
    todo="`echo 1 > /sys/devices/system/cpu/cpuN/online`, and find out who took it: maxcpus=, nr_cpus=, a service, or "
    "the kernel after errors, which its log tells.",
)
def online(case: Case) -> Finding:
    cpu = case.evidence.cpu
    if case.evidence.system.container:
        return not_applicable("a container has the kernel of its host")
    here, used = numbers(cpu.present), numbers(cpu.online)
    if not here or not used:
        return undecided("the kernel does not tell which processors are there", fix="Is /sys mounted and readable?")
    off = sorted(here - used)
    if off and not (cpu.smt in ("off", "forceoff") and len(off) * 2 <= len(here)):
        names = ", ".join(map(str, off[:16])) + (", ..." if off[16:] else "")
        return warned(
            f"{len(off)} of {len(here)} processors are offline: {names}",
            expected=f"{len(here)} online",
            seen=f"{len(used)} online",
            fix=f"Run `echo 1 > /sys/devices/system/cpu/cpu{off[0]}/online`, and read `dmesg` for why it went.",
        )
    return passed(f"{len(used)} of {len(here)} online" + (", SMT is off" if off else ""))


@check(
    "cpu.baseline",
    "The processors have the baseline of the contract",
    sections=("cpu", "system"),
    requires=("cpu.arch",),
    proves="Guests that were made for that level of x86-64 run here, and can move here.",
    how="The flags of the level and of those below it, in /proc/cpuinfo, on every processor.",
    todo="Use another machine, lower qemu_kvm_cpu_baseline, or let the hypervisor below expose the flags.",
)
def baseline(case: Case) -> Finding:
    cpu, wanted = case.evidence.cpu, case.wishes.qemu.cpu_baseline
    if not wanted:
        return not_applicable("none is asked for")
    if case.evidence.system.arch != "x86_64":
        return not_applicable(f"{wanted} means nothing on this architecture")
    if cpu.kind_count > len(cpu.kinds):
        return undecided(MANY, fix=ASK)
    names = [name for level, names in LEVELS.items() if level <= wanted for name in names]
    everywhere = set(cpu.flags).difference(*(kind.lacks for kind in cpu.kinds))
    missing = [name for name in names if name not in everywhere]
    if missing:
        fix = "Use another machine, or a lower qemu_kvm_cpu_baseline."
        if case.evidence.system.virtual:
            fix = f"Let {case.evidence.system.virtual}, the hypervisor below, expose them, or lower the baseline."
        seen = f"without {', '.join(missing)}"
        return failed(f"not {wanted}: lacks {', '.join(missing)}", expected=wanted, seen=seen, fix=fix)
    return passed(f"all {cpu.threads} processors are {wanted}")


CHECKS = (
    arch,
    conflicts,
    firmware,
    extensions,
    flags_everywhere,
    nested_paging,
    homogeneous,
    microcode,
    online,
    baseline,
)
