"""Do memory and processors serve the guests as they were told to, now and after the next boot?"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, numbers, passed, warned
from orchestrator.model.contract import HugepagesWish, TuningWish
from orchestrator.model.evidence import Hugepages, Sysctl, Tuning, Unit
from orchestrator.model.finding import Finding

MM = "/sys/kernel/mm"
REBOOT = "Reboot when no guest runs."
CONTAINER = "a container has the kernel of its host"
ENABLE = "systemctl enable kvmfleet-tuning.service"


def _both(case: Case) -> tuple[TuningWish, Tuning]:
    return case.wishes.tuning, case.evidence.tuning


def _compared(what: str, now: Iterable[str], later: Iterable[str], *, fix: str = PROVISION) -> Finding:
    """A finding from what differs now, and what will differ after the next boot. The second decides what helps."""
    now, later = list(now), list(later)
    if later:
        words, seen = ("neither live nor configured" if now else "gone after the next boot"), "; ".join([*now, *later])
        return failed(f"{words}: {seen}", expected=what, seen=seen, fix=fix)
    if now:
        return failed(f"configured, not live: {'; '.join(now)}", expected=what, seen="; ".join(now), fix=fix)
    return passed(f"{what}, now and after the next boot")


def _at_boot(tuning: Tuning, path: str, value: str) -> list[str]:
    """What our unit will write there, where that is something else."""
    found = tuning.at_boot.get(path)
    if found == value:
        return []
    return [f"nothing sets {path} to {value}" if found is None else f"{path} becomes {found}, not {value}"]


@check(
    "tuning.boot",
    "What is tuned is tuned again at boot",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("contract.files",),
    proves="The service that sets hugepages, THP, KSM and the governor is started at boot.",
    how="The links to kvmfleet-tuning.service in /etc/systemd/system, where there is that service. What it sets is "
    "the business of the check of each thing.",
    todo=f"`{ENABLE}`",
)
def boot(case: Case) -> Finding:
    enabled = case.evidence.tuning.unit_enabled
    if enabled is None or case.evidence.system.container:
        return not_applicable("nothing is asked for that a service sets" if enabled is None else CONTAINER)
    if not enabled:
        return failed(
            "kvmfleet-tuning.service does not start at boot",
            expected="enabled",
            seen="disabled",
            fix=f"Run `{ENABLE}`.",
        )
    return passed("kvmfleet-tuning.service starts at boot")


# --- hugepages


def _name(wish: HugepagesWish) -> str:
    return wish.size if wish.node is None else f"{wish.size}@{wish.node}"


def _said(wish: HugepagesWish) -> str:
    return f"{wish.pages} pages of {wish.size}" + ("" if wish.node is None else f" on node {wish.node}")


def _pool(wish: HugepagesWish) -> str:
    factor = {"K": 1, "M": 1 << 10, "G": 1 << 20}.get(wish.size[-1:], 0)
    kib = int(wish.size[:-1]) * factor if wish.size[:-1].isdecimal() else 0
    parent = MM if wish.node is None else f"/sys/devices/system/node/node{wish.node}"
    return f"{parent}/hugepages/hugepages-{kib}kB/nr_hugepages"


@check(
    "tuning.hugepages",
    "The hugepages are reserved",
    sections=("tuning", "kernel", "system"),
    requires=("contract.present",),
    explained_by=("contract.files", "tuning.boot"),
    proves="The pages of the contract are there for guests, of their size and on their node, mounted where libvirt "
    "finds them, and will be after the next boot.",
    how="/sys/kernel/mm/hugepages, or the node's; /proc/mounts; for the next boot the lines of the enabled "
    "kvmfleet-tuning.service. Arguments for pages of 1G are the business of kernel.cmdline.",
    todo="Fewer than configured: memory is fragmented. Provision tries again, and a reboot always helps. Not "
    f"configured or not mounted: {PROVISION}",
)
def hugepages(case: Case) -> Finding:
    wishes, found = case.wishes.tuning.hugepages, case.evidence.tuning.hugepages
    if not wishes or case.evidence.system.container:
        return not_applicable(CONTAINER if wishes else "no hugepages are asked for")
    pools = [(wish, found.get(_name(wish), Hugepages())) for wish in wishes]
    later = [text for wish in wishes for text in _at_boot(case.evidence.tuning, _pool(wish), str(wish.pages))]
    fewer = [f"{pool.pages} of {_said(wish)} are reserved" for wish, pool in pools if pool.pages < wish.pages]
    wrong = [f"{pool.pages}, not {_said(wish)}, are reserved" for wish, pool in pools if pool.pages > wish.pages]
    wrong += [f"pages of {wish.size} are not mounted" for wish, pool in pools if wish.pages and not pool.mounted]
    what = ", ".join(map(_said, wishes))
    if fewer and not (wrong or later):
        booted = case.evidence.kernel.cmdline.split()
        short = [wish.size for wish, pool in pools if pool.pages < wish.pages and f"hugepagesz={wish.size}" in booted]
        fix = "Reboot when no guest runs, or provision again when there is more memory in one piece."
        if short:
            fix = f"No more memory was whole even at boot. Ask for fewer pages of {', '.join(short)}, or smaller ones."
        return warned(f"configured, not live: {'; '.join(fewer)}", expected=what, seen="; ".join(fewer), fix=fix)
    return _compared(what, [*fewer, *wrong], later)


# --- what the kernel does with memory


@check(
    "tuning.thp",
    "Transparent hugepages are as asked for",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("contract.files", "tuning.boot"),
    proves="The kernel makes huge pages of ordinary memory as the contract says, and will after the next boot.",
    how="The chosen words in /sys/kernel/mm/transparent_hugepage; for the next boot kvmfleet-tuning.service, which "
    "comes after the kernel's arguments and wins.",
    todo=PROVISION,
)
def thp(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.thp or case.evidence.system.container:
        return not_applicable(CONTAINER if wish.thp else "nothing is asked for")
    now = [
        f"{key} is {tuning.thp.get(key) or 'unknown'}, not {value}"
        for key, value in wish.thp.items()
        if tuning.thp.get(key) != value
    ]
    later = [
        text for key, value in wish.thp.items() for text in _at_boot(tuning, f"{MM}/transparent_hugepage/{key}", value)
    ]
    return _compared(", ".join(f"{key} {value}" for key, value in wish.thp.items()), now, later)


@check(
    "tuning.ksm",
    "KSM is as asked for",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("contract.files", "tuning.boot"),
    proves="Equal pages of guests are merged by the one who should, or by nobody and none is left merged.",
    how="/sys/kernel/mm/ksm, the services ksm and ksmtuned, and the enabled kvmfleet-tuning.service for the next boot.",
    todo=f"{PROVISION} Pages that stay merged need memory to be taken apart: end guests and provision, or reboot.",
)
def ksm(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.ksm or case.evidence.system.container:
        return not_applicable(CONTAINER if wish.ksm else "nothing is asked for")
    if wish.ksm == "ksmtuned":
        return _compared("ksmtuned", *_service(tuning, "ksmtuned.service", on=True))
    if wish.ksm == "disabled" and not tuning.ksm_run:
        return passed("this kernel has no KSM")
    run = str(int(wish.ksm == "enabled"))
    daemons = [_service(tuning, name, on=False) for name in ("ksm.service", "ksmtuned.service")]
    now = [text for texts, _ in daemons for text in texts]
    later = [text for _, texts in daemons for text in texts] + _at_boot(tuning, f"{MM}/ksm/run", run)
    if (tuning.ksm_run == "1") != (run == "1"):
        now.append("KSM runs" if tuning.ksm_run == "1" else "KSM does not run")
    elif run == "0" and tuning.ksm_sharing:
        now.append(f"{tuning.ksm_sharing} pages are still merged")
    return _compared(f"KSM {wish.ksm}", now, later)


def _service(tuning: Tuning, name: str, *, on: bool) -> tuple[list[str], list[str]]:
    """What is wrong with a service now, and after the next boot."""
    unit = tuning.units.get(name, Unit())
    active, enabled = unit.active == "active", unit.enabled == "enabled"
    return (
        [] if active == on else [f"{name} is {unit.active or 'absent'}"],
        [] if enabled == on else [f"{name} is {unit.enabled or 'absent'}"],
    )


@check(
    "tuning.sysctl",
    "The kernel's settings are as asked for",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("contract.files",),
    proves="Every sysctl of the contract is live, and no file sets it to something else at the next boot.",
    how="/proc/sys for now; for the next boot sysctl.d in the order of systemd-sysctl(8), where the last file wins. "
    "net.bridge.bridge-nf-call-* may be absent where it is to be 0: without its module nothing is filtered.",
    todo=f"{PROVISION} Where a file of sysctl.d that sorts after 60-kvmfleet.conf says otherwise, remove its line.",
)
def sysctl(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.sysctls or case.evidence.system.container:
        return not_applicable(CONTAINER if wish.sysctls else "no settings are asked for")
    found = {key: tuning.sysctls.get(key, Sysctl()) for key in wish.sysctls}
    now = [
        f"{key} is {found[key].live or 'not there'}, not {value}"
        for key, value in wish.sysctls.items()
        if not _same(found[key].live, value)
        and not (found[key].live is None and key.startswith("net.bridge.bridge-nf-call-") and value == "0")
    ]
    later = [
        f"{key} becomes {later}, not {value}" if (later := found[key].next_boot) is not None else f"nothing sets {key}"
        for key, value in wish.sysctls.items()
        if not _same(found[key].next_boot, value)
    ]
    absent = [key for key in wish.sysctls if found[key].live is None]
    bring = f"Put the module that brings {', '.join(absent)} into kernel_modules_extra, then provision."
    others = [
        key for key in wish.sysctls if not _same(found[key].next_boot, wish.sysctls[key]) and found[key].next_boot
    ]
    stays = f"{PROVISION} If it stays, remove {', '.join(others)} from the file of sysctl.d that sorts after ours."
    fix = stays if others else bring if absent and now else PROVISION
    return _compared(f"{len(wish.sysctls)} settings", now, later, fix=fix)


def _same(found: str | None, wished: str) -> bool:
    return found is not None and " ".join(found.split()) == " ".join(wished.split())


# --- processors


@check(
    "tuning.governor",
    "The governor is as asked for",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("contract.files", "tuning.boot"),
    proves="Every processor has the governor of the contract, and gets it again at the next boot.",
    how="/sys/devices/system/cpu/cpufreq, and the enabled kvmfleet-tuning.service for the next boot. Where the kernel "
    "does not scale frequencies, as in most virtual machines, firmware or hypervisor decides.",
    todo=f"{PROVISION} If it comes back, another service sets it: tuned, cpupower or power-profiles-daemon.",
)
def governor(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.governor or case.evidence.system.container:
        return not_applicable(CONTAINER if wish.governor else "none is asked for")
    if not tuning.governors:
        return not_applicable("this kernel does not scale the frequency of its processors")
    pattern = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    now = [f"processors {cpus} have {name}" for name, cpus in sorted(tuning.governors.items()) if name != wish.governor]
    return _compared(f"governor {wish.governor}", now, _at_boot(tuning, pattern, wish.governor))


@check(
    "tuning.tuned",
    "tuned has its profile",
    sections=("tuning", "system"),
    requires=("contract.present",),
    proves="tuned runs with the profile of the contract, and will after the next boot.",
    how="/etc/tuned/active_profile, and what systemd says about tuned.service.",
    todo=PROVISION,
)
def tuned(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.tuned_profile:
        return not_applicable("no profile is asked for")
    now, later = _service(tuning, "tuned.service", on=True)
    if tuning.tuned_profile != wish.tuned_profile:
        later.append(f"the profile is {tuning.tuned_profile or 'not chosen'}, not {wish.tuned_profile}")
    return _compared(f"profile {wish.tuned_profile}", [] if case.evidence.system.container else now, later)


# --- what acts after a reboot


@check(
    "tuning.iommu",
    "The IOMMU works",
    sections=("tuning", "system"),
    requires=("contract.present",),
    explained_by=("kernel.cmdline",),
    proves="Devices can be handed to guests: the kernel uses an IOMMU and has put the devices into groups.",
    how="/sys/class/iommu and /sys/kernel/iommu_groups decide, whatever the arguments are; those are the business "
    "of kernel.cmdline.",
    todo="Enable VT-d, AMD-Vi or SMMU in the firmware. On Intel most kernels need intel_iommu=on, which provision "
    "hands over and a reboot makes live.",
)
def iommu(case: Case) -> Finding:
    wish, tuning = _both(case)
    if not wish.iommu or case.evidence.system.container:
        return not_applicable(CONTAINER if wish.iommu else "none is asked for")
    if tuning.iommus and tuning.iommu_groups:
        return passed(f"{tuning.iommus} IOMMU units, {tuning.iommu_groups} groups of devices")
    return warned(
        "the kernel uses no IOMMU" if not tuning.iommus else "an IOMMU is there, and no device is behind it",
        expected="entries in /sys/class/iommu and groups of devices",
        seen=f"{tuning.iommus} units, {tuning.iommu_groups} groups",
        fix="Enable VT-d, AMD-Vi or SMMU in the firmware, then power the machine off and on.",
    )


@check(
    "tuning.isolation",
    "The isolated processors are isolated",
    sections=("tuning", "kernel", "system"),
    requires=("contract.present",),
    proves="The kernel keeps its own work off the processors of the contract, and will after the next boot.",
    how="/sys/devices/system/cpu/isolated and nohz_full for now; isolcpus=, nohz_full= and rcu_nocbs= of the "
    "bootloader's default entry for the next boot.",
    todo=f"Configured, not live: {REBOOT} Not configured: {PROVISION}",
)
def isolation(case: Case) -> Finding:
    wish, tuning = _both(case)
    wanted = wish.isolated_cpus
    if not wanted or case.evidence.system.container:
        return not_applicable(CONTAINER if wanted else "none are asked for")
    later, source = case.evidence.kernel.next_boot.cmdline.split(), case.evidence.kernel.next_boot.source
    words = [f"{name}={wanted}" for name in ("isolcpus", "nohz_full", "rcu_nocbs")]
    lost = [word for word in words if source and word not in later]
    if lost:
        return failed(f"not configured for the next boot: {' '.join(lost)}", expected=f"in {source}", fix=PROVISION)
    if numbers(tuning.isolated) != numbers(wanted):
        seen = tuning.isolated or "none"
        return warned(f"configured, not live: {seen} isolated, not {wanted}", expected=wanted, seen=seen, fix=REBOOT)
    ticks = "" if numbers(tuning.nohz_full) == numbers(wanted) else ", with timer ticks: this kernel keeps them"
    return passed(f"processors {wanted} are isolated{ticks}")


CHECKS = (boot, hugepages, thp, ksm, sysctl, governor, tuned, iommu, isolation)
