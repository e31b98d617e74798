"""Can a guest learn what another guest, or the host, keeps secret?"""

from __future__ import annotations

import re
from collections.abc import Callable

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.finding import Finding

CONTAINER = "a container has the kernel of the machine below"
TRUSTED = "guests trust each other in a lab"
# "Vulnerable: no microcode", "Mitigation: PTE Inversion; VMX: vulnerable", "KVM: Vulnerable"
OPEN = re.compile(r"^vulnerable|\b(?:VMX|KVM): vulnerable", re.IGNORECASE)
# Of Linux's kernel-parameters.txt: what switches mitigations off -> the flaw that it leaves open, "" for all of them.
OFF = {
    "mitigations=off": "",
    "nospectre_v1": "spectre_v1",
    **dict.fromkeys(("nospectre_v2", "nospectre_bhb", "spectre_v2=off", "spectre_v2_user=off"), "spectre_v2"),
    "spectre_bhi=off": "spectre_v2",
    **dict.fromkeys(("nopti", "pti=off", "kpti=0", "kpti=off"), "meltdown"),
    **dict.fromkeys(
        ("nospec_store_bypass_disable", "spec_store_bypass_disable=off", "ssbd=force-off"), "spec_store_bypass"
    ),
    **dict.fromkeys(("kvm.nx_huge_pages=off", "kvm.nx_huge_pages=never"), "itlb_multihit"),
    **dict.fromkeys(("kvm-intel.vmentry_l1d_flush=never", "kvm_intel.vmentry_l1d_flush=never"), "l1tf"),
    **{
        f"{flaw}=off": flaw
        for flaw in (
            "gather_data_sampling", "indirect_target_selection", "l1tf", "mds", "mmio_stale_data",
            "reg_file_data_sampling", "retbleed", "spec_rstack_overflow", "srbds", "tsa", "tsx_async_abort", "vmscape",
        )
    },
}  # fmt: skip
SOURCES = re.compile(r"mitigations=.*\bno_")  # since Linux 6.17: auto,no_guest_host


def _verdict(case: Case) -> Callable[..., Finding]:
    """What is a failure where guests belong to strangers is a warning elsewhere."""
    return failed if case.profile == "multi-tenant" else warned


def _off(cmdline: str) -> list[str]:
    return [word for word in cmdline.split() if word in OFF or SOURCES.match(word)]


@check(
    "security.mitigations",
    "The kernel's mitigations are not switched off",
    sections=("kernel", "system"),
    proves="Nobody told the kernel to leave flaws of the processor open, now or at the next boot.",
    how="/proc/cmdline, and the bootloader's default entry: mitigations=off, or without those against some sources of "
    "an attack (no_guest_host), and the arguments for single flaws such as mds=off. Arguments of the contract are "
    "declared; they are a finding all the same.",
    todo="Take the argument out of the bootloader's configuration, or out of kernel_modules_cmdline, then reboot.",
)
def mitigations(case: Case) -> Finding:
    kernel = case.evidence.kernel
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if not kernel.cmdline:
        return undecided("the kernel's arguments are not known", fix="Look at /proc/cmdline on the host.")
    now, later = _off(kernel.cmdline), _off(kernel.next_boot.cmdline)
    if not now and not later:
        return passed("none is switched off")
    if case.profile == "lab":
        return not_applicable(f"{TRUSTED}: {' '.join(dict.fromkeys(now + later))}")
    words = " ".join(dict.fromkeys(now + later))
    if not now:
        when = "after the next boot"
    elif later or not kernel.next_boot.source:
        when = "now, and after the next boot" if later else "now"
    else:
        when = "until the next boot"
    declared = [word for word in (*now, *later) if word in case.wishes.cmdline]
    place = "kernel_modules_cmdline, provision" if declared else "the bootloader's configuration"
    fix = f"Take {words} out of {place}, then reboot." if later or not kernel.next_boot.source else "Reboot."
    return _verdict(case)(f"{words} leaves flaws of the processor open, {when}", expected="none", seen=words, fix=fix)


@check(
    "security.vulnerabilities",
    "The processor's flaws are mitigated",
    sections=("leaks", "kernel", "system"),
    proves="For every flaw of this processor that the kernel knows, the kernel and the microcode do what can be done.",
    how="/sys/devices/system/cpu/vulnerabilities: a line that begins with Vulnerable, or says so of VMX or KVM. What "
    "the kernel cannot know, because a hypervisor below hides it, is not counted.",
    todo="Install the distribution's microcode package (intel-microcode, amd64-microcode, microcode_ctl, "
    "linux-firmware) or a firmware update, and the newest kernel, then reboot. In a virtual machine, the hypervisor "
    "below has to.",
)
def vulnerabilities(case: Case) -> Finding:
    found, system = case.evidence.leaks.vulnerabilities, case.evidence.system
    if system.container:
        return not_applicable(CONTAINER)
    if found is None:
        return not_applicable("this kernel tells nothing about flaws of the processor")
    exposed = {name: words for name, words in sorted(found.items()) if OPEN.search(words)}
    if not exposed:
        hidden = [name for name, words in sorted(found.items()) if words.startswith("Unknown")]
        return passed(
            f"{len(found)} looked at, none open" + (f"; nobody knows of {', '.join(hidden)}" if hidden else "")
        )
    off = {OFF.get(word, "") for word in _off(case.evidence.kernel.cmdline)}
    own = {name: words for name, words in exposed.items() if name not in off and "" not in off}
    if not own:
        return not_applicable(f"{', '.join(exposed)}: switched off by an argument, which is a finding of its own")
    names = ", ".join(own)
    if case.profile == "lab":
        return not_applicable(f"{TRUSTED}: {names}")
    fix = "Install the processor's microcode and the newest kernel, then reboot."
    if system.virtual:
        fix = f"This host is a virtual machine: the {system.virtual} below needs the microcode, and has to show it."
    seen = "; ".join(f"{name}: {words}" for name, words in own.items())
    return _verdict(case)(f"open: {names}", expected="mitigated, or not affected", seen=seen, fix=fix)


@check(
    "security.smt",
    "Guests of strangers share no core where that leaks",
    sections=("leaks", "system"),
    proves="In the profile multi-tenant two guests do not run on the two threads of one core of a processor on which "
    "one thread can read what the other left behind.",
    how="/sys/devices/system/cpu/smt/active, and the words `SMT vulnerable` in the lines about flaws such as l1tf and "
    "mds.",
    todo="`echo off > /sys/devices/system/cpu/smt/control` for now, nosmt in kernel_modules_cmdline for the next boot; "
    "or core scheduling for each guest, which this check does not see.",
)
def smt(case: Case) -> Finding:
    found = case.evidence.leaks
    if case.profile != "multi-tenant":
        return not_applicable("guests are not strangers' in this profile")
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if found.smt is False:
        return passed("off, or this processor has none")
    if found.vulnerabilities is None or found.smt is None:
        return not_applicable("this kernel does not tell")
    leaking = [name for name, words in sorted(found.vulnerabilities.items()) if "SMT vulnerable" in words]
    if leaking:
        names = ", ".join(leaking)
        fix = "Put nosmt into kernel_modules_cmdline and provision, then reboot."
        return warned(f"SMT is on, and leaks: {names}", expected="off", seen="on", fix=fix)
    return passed("on, and the processor does not leak through it")


@check(
    "security.ksm",
    "Guests of strangers share no memory",
    sections=("leaks", "system"),
    requires=("contract.present",),
    explained_by=("tuning.ksm",),
    proves="In the profile multi-tenant KSM does not merge pages of guests: by the time that a write takes, a guest "
    "learns what is in the memory of another.",
    how="/sys/kernel/mm/ksm/run and pages_sharing.",
    todo="Set host_tuning_ksm to disabled and provision; or `echo 2 > /sys/kernel/mm/ksm/run`, which takes merged "
    "pages apart as well.",
)
def ksm(case: Case) -> Finding:
    found = case.evidence.leaks
    if case.profile != "multi-tenant":
        return not_applicable("guests are not strangers' in this profile")
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if found.ksm_run is None:
        return undecided("/sys/kernel/mm/ksm/run cannot be read", fix="Look at it on the host.")
    if found.ksm_run == "1":
        asked = case.wishes.tuning.ksm in ("enabled", "ksmtuned")
        fix = "Set host_tuning_ksm to disabled and provision."
        words = "KSM merges pages of guests" + (", declared so" if asked else "")
        return (warned if asked else failed)(words, expected="0 or 2", seen="1", fix=fix)
    if found.ksm_sharing:
        fix = "Run `echo 2 > /sys/kernel/mm/ksm/run`, which takes them apart."
        return warned(f"KSM is off, and {found.ksm_sharing} pages are still merged", expected="0", fix=fix)
    return passed("off" if found.ksm_run else "this kernel has no KSM")


CHECKS = (mitigations, vulnerabilities, smt, ksm)
