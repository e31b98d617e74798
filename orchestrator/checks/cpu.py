"""Can this processor run guests?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, warned
from orchestrator.model import Finding

ARCHITECTURES = ("x86_64", "aarch64")
FIRMWARE = "Enable virtualization (Intel VT-x, AMD SVM) in the firmware setup, then switch the machine off and on."
NESTED = "Enable nested virtualization for this machine in the hypervisor below it, then stop and start it."


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
    "cpu.extensions",
    "The processor has virtualization",
    sections=("cpu", "system"),
    requires=("cpu.arch",),
    lab_warns=True,
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


CHECKS = (arch, extensions, nested_paging)
