"""Is there memory for guests, and is it sound?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Memory
from orchestrator.model.finding import Finding

UNREAD = "Is /proc mounted? Read /proc/meminfo on the host."


def _told(mib: int) -> str:
    return f"{mib} MiB" if mib < 10240 else f"{mib // 1024} GiB"


def _reserve(memory: Memory) -> int:
    """MiB that the host keeps for itself: a twentieth, and at most 1 GiB."""
    return min((memory.total_mib or 0) // 20, 1024)


@check(
    "memory.available",
    "Memory is left",
    sections=("memory",),
    proves="The host has memory that a guest can take without driving others, or the host itself, into the OOM killer.",
    how="MemAvailable in /proc/meminfo: at least a twentieth of all, and never more than 1 GiB is asked for. Reserved "
    "hugepages count as taken.",
    todo="End or move guests, reserve fewer hugepages, or find what else uses it: `ps axk -rss o rss,comm | head`.",
)
def available(case: Case) -> Finding:
    memory = case.evidence.memory
    if memory.total_mib is None or memory.available_mib is None:
        return undecided("the kernel does not tell how much memory there is", fix=UNREAD)
    huge = f", {_told(memory.hugepages_mib)} of it in hugepages" if memory.hugepages_mib else ""
    seen = f"{_told(memory.available_mib)} of {_told(memory.total_mib)} available{huge}"
    if memory.available_mib < _reserve(memory):
        fix = "End or move guests" + (", or reserve fewer hugepages." if huge else ", or see what else takes memory.")
        return warned(f"only {seen}", expected=f"{_told(_reserve(memory))} or more", seen=seen, fix=fix)
    return passed(seen)


@check(
    "memory.overcommit",
    "The kernel promises guests their memory",
    sections=("memory",),
    warns_in=("lab",),
    proves="QEMU can map a guest's memory: vm.overcommit_memory does not refuse what is there.",
    how="vm.overcommit_memory; where it is 2, CommitLimit less Committed_AS in /proc/meminfo against what is there.",
    todo="`sysctl vm.overcommit_memory=0`, or raise vm.overcommit_ratio, and put it into host_tuning_sysctls. With 2, "
    "the kernel counts a guest's whole memory from its start.",
)
def overcommit(case: Case) -> Finding:
    memory = case.evidence.memory
    if memory.overcommit in ("0", "1"):
        return passed("the kernel guesses" if memory.overcommit == "0" else "the kernel promises everything")
    if memory.overcommit != "2" or None in (memory.commit_limit_mib, memory.committed_mib, memory.available_mib):
        return undecided("the kernel does not tell what it promises", fix="Read /proc/sys/vm/overcommit_memory.")
    left = max((memory.commit_limit_mib or 0) - (memory.committed_mib or 0), 0)
    usable = memory.available_mib or 0
    seen = f"{_told(left)} may still be promised, {_told(usable)} are available"
    fix = "Run `sysctl vm.overcommit_memory=0`, or raise vm.overcommit_ratio, and set it in host_tuning_sysctls."
    if left < _reserve(memory) <= usable:
        return failed(f"no guest gets memory: {seen}", expected="vm.overcommit_memory = 0", seen="2", fix=fix)
    if left < usable // 2:
        return warned(f"guests get less than there is: {seen}", expected=_told(usable), seen=_told(left), fix=fix)
    return passed(f"strict, and enough: {seen}")


@check(
    "memory.swap",
    "Swap is not used up",
    sections=("memory",),
    requires=("memory.available",),
    proves="What does not fit into memory still has a place. A host without swap passes, and is told to be one.",
    how="SwapTotal and SwapFree in /proc/meminfo. Full swap is a warning where little memory is available besides; "
    "otherwise it holds what nobody asks for.",
    todo="End or move guests: the host has promised more than it has. More swap makes it slow instead of full.",
)
def swap(case: Case) -> Finding:
    memory = case.evidence.memory
    if memory.swap_mib is None or memory.swap_free_mib is None:
        return undecided("the kernel does not tell about swap", fix=UNREAD)
    if not memory.swap_mib:
        return passed("no swap: what does not fit into memory is killed")
    used = memory.swap_mib - memory.swap_free_mib
    seen = f"{_told(used)} of {_told(memory.swap_mib)} used" + (", with zswap before it" if memory.zswap else "")
    if used * 10 >= memory.swap_mib * 9 and (memory.available_mib or 0) * 10 < (memory.total_mib or 0):
        seen += f", and {_told(memory.available_mib or 0)} of memory available"
        return warned(f"swap is used up: {seen}", expected="some free", seen=seen, fix="End or move guests.")
    return passed(seen)


@check(
    "memory.pressure",
    "Nobody waits for memory",
    sections=("memory",),
    proves="The host does its work, and does not spend its time fetching pages back.",
    how="The line full in /proc/pressure/memory: how much of the last minute everything that wanted to run waited for "
    "memory. 10 % is a warning.",
    todo="End or move guests, then validate again after a minute: `cat /proc/pressure/memory`.",
)
def pressure(case: Case) -> Finding:
    stalled = case.evidence.memory.stalled_percent
    if stalled is None:
        return not_applicable("this kernel keeps no account of it (psi=1)")
    if stalled >= 10:
        seen = f"{stalled:.0f} % of the last minute"
        return warned(f"everything waited for memory in {seen}", expected="below 10 %", seen=seen, fix="Move guests.")
    return passed(f"{stalled:.0f} % of the last minute")


@check(
    "memory.numa",
    "Every NUMA node has memory",
    sections=("memory",),
    proves="Processors have memory next to them, so that a guest that is pinned to a node is not slower than another.",
    how="/sys/devices/system/node. Nodes of memory without processors (CXL, HBM) are told, and pass.",
    todo="Put memory modules beside that socket, or see why the firmware left them out; till then pin no guest to it.",
)
def numa(case: Case) -> Finding:
    nodes = dict(sorted(case.evidence.memory.nodes.items(), key=lambda item: (len(item[0]), item[0])))
    if not nodes:
        return not_applicable("this kernel knows no NUMA nodes")
    empty = [name for name, node in nodes.items() if node.cpus and not node.memory_mib]
    if empty:
        return warned(
            f"no memory beside the processors {nodes[empty[0]].cpus} of node {', '.join(empty)}",
            expected="memory on every node with processors",
            seen=", ".join(f"node {name}: {_told(node.memory_mib)}" for name, node in list(nodes.items())[:8]),
            fix="Put memory modules beside that socket, or pin no guest to that node.",
        )
    bare = [name for name, node in nodes.items() if not node.cpus and node.memory_mib]
    sizes = ", ".join(_told(node.memory_mib) for node in list(nodes.values())[:8]) + (", ..." if len(nodes) > 8 else "")
    many = f"{len(nodes)} nodes" if len(nodes) > 1 else "one node"
    return passed(f"{many}: {sizes}" + (f"; without processors: {', '.join(bare)}" if bare else ""))


@check(
    "memory.errors",
    "The memory is sound",
    sections=("memory",),
    warns_in=("lab",),
    proves="No memory failed since the boot in a way that ECC could not correct.",
    how="ue_count of the memory controllers in /sys/devices/system/edac, and HardwareCorrupted in /proc/meminfo. "
    "Corrected errors are told, and pass.",
    todo="Move the guests, and replace the memory module: `ras-mc-ctl --errors`, the firmware's event log and the "
    "kernel's log name it.",
)
def errors(case: Case) -> Finding:
    memory = case.evidence.memory
    counted = f"{memory.corrected} corrected errors" if memory.controllers else "no memory controller is watched"
    if memory.uncorrected or memory.failing or memory.failed_kib:
        parts = [f"{memory.uncorrected} uncorrected errors"] if memory.uncorrected else []
        parts += [f"in {', '.join(memory.failing[:4])}"] if memory.failing else []
        parts += [f"{memory.failed_kib} KiB taken out of use"] if memory.failed_kib else []
        seen = ", ".join(parts)
        fix = "Move the guests and replace the memory module, which `dmesg` and the firmware's event log name."
        return failed(f"memory failed: {seen}", expected="no uncorrected errors", seen=seen, fix=fix)
    if not memory.controllers and memory.failed_kib is None:
        return not_applicable("nobody counts errors here: no ECC, or no driver for it")
    return passed(f"no uncorrected errors, {counted}")


CHECKS = (available, overcommit, swap, pressure, numa, errors)
