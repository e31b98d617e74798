"""What of a wish a host cannot be, in sentences, before anything is changed."""

from __future__ import annotations

import re

from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_host import (
    CPUS,
    KSM_RUN,
    NODES,
    THP,
    Host,
    amount,
    memory_kib,
    numbers,
    own_share_kib,
    page_sizes,
    pool,
    reserved,
    sysctl_path,
)
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_plan import BRIDGE, GIGANTIC_KIB, Wish, boot_lines

ALWAYS_THERE = ("kernel.", "vm.", "fs.")  # sysctls that no module brings later


def problems(host: Host, wish: Wish, *, live: bool) -> list[str]:
    """One sentence for each thing that is wrong, with what to do about it."""
    found = [*_wrong_pages(host, wish), *_wrong_settings(host, wish, live), *_wrong_values(host, wish, live)]
    found += _wrong_processors(host, wish)
    return found or _too_little_memory(host, wish, live)


def _wrong_pages(host: Host, wish: Wish) -> list[str]:
    sizes, found = page_sizes(host), []
    places = [(page["size"], page["node"]) for page in wish.hugepages]
    gigantic = {size for size, _ in places if sizes.get(size, 0) >= GIGANTIC_KIB}
    for page in wish.hugepages:
        size, node = page["size"], page["node"]
        if size not in sizes:
            there = " and ".join(sizes) or "none"
            found.append(f"this kernel has no pages of {size}, it has {there}. Use a size that is there.")
        elif node is not None and not host.exists(pool(sizes[size], node)):
            nodes = [path.rsplit("node", 1)[1] for path in host.find(f"{NODES}/node[0-9]*")]
            found.append(f"there is no NUMA node {node}, only {', '.join(nodes) or '0'}.")
        if page["pages"] < 0:
            found.append(f"{page['pages']} pages of {size} cannot be: use 0 or more.")
        if places.count((size, node)) > 1 or (node is not None and (size, None) in places):
            found.append(f"pages of {size} are named twice. Name them once for all nodes, or once for each node.")
    if len(gigantic) > 1:
        found.append(f"{' and '.join(sorted(gigantic))} cannot both be reserved at boot. Keep one of them.")
    words = [word for word in wish.kernel_arguments if word.startswith(("hugepages=", "hugepagesz="))]
    if wish.hugepages and words:
        found.append(f"kernel_modules_cmdline has {' '.join(words)}. Say it in one place.")
    if wish.hugepages and any(key.startswith("vm.nr_hugepages") for key in wish.sysctls):
        found.append("host_tuning_sysctls has vm.nr_hugepages. Say it in one place.")
    return [f"host_tuning_hugepages: {sentence}" for sentence in dict.fromkeys(found)]


def _wrong_settings(host: Host, wish: Wish, live: bool) -> list[str]:
    found = []
    for key, value in wish.settings().items():
        if not re.fullmatch(r"[a-z][\w-]*([./][\w:@-]+)+", key):
            found.append(f"{key!r} is no name of a setting: they look like vm.swappiness.")
        elif not re.fullmatch(r"[\w.:,+|/% -]+", value):
            found.append(f"{key} cannot be {value!r}: a value is a number or words.")
        elif live and key.startswith(ALWAYS_THERE) and not host.exists(sysctl_path(key)):
            found.append(f"this kernel has no {key}. Look at `sysctl --all` for the name.")
    if wish.bridge_netfilter != "keep" and set(wish.sysctls) & set(BRIDGE):
        found.append("host_tuning_bridge_netfilter speaks of the same net.bridge settings. Say it in one place.")
    return [f"host_tuning_sysctls: {sentence}" for sentence in found]


def _wrong_values(host: Host, wish: Wish, live: bool) -> list[str]:
    found = []
    for key, value in wish.thp.items():
        offered = host.read(THP.get(key, "/")).replace("[", "").replace("]", "").split()
        if key not in THP:
            found.append(f"host_tuning_thp: there is no {key}, only {' and '.join(THP)}.")
        elif value and not offered:
            found.append("host_tuning_thp: this kernel has no transparent hugepages. Leave it empty.")
        elif value and value not in offered:
            found.append(f"host_tuning_thp: {key} cannot be {value} here. Use one of {', '.join(offered)}.")
    if wish.ksm in ("enabled", "ksmtuned") and not host.exists(KSM_RUN):
        found.append("host_tuning_ksm: this kernel has no KSM. Set it to keep or disabled.")
    if wish.governor and wish.tuned_profile:
        found.append("host_tuning_governor: the profile of tuned chooses the governor. Keep one of the two.")
    if wish.governor and not re.fullmatch(r"\w+", wish.governor):
        found.append(f"host_tuning_governor: {wish.governor!r} is no name of a governor, such as performance.")
    elif wish.governor and live:
        found += _wrong_governor(host, wish.governor)
    installed = host.exists("/usr/lib/tuned") and wish.tuned_profile
    folders = ("/usr/lib/tuned", "/usr/lib/tuned/profiles", "/etc/tuned", "/etc/tuned/profiles")
    places = [f"{folder}/{wish.tuned_profile}" for folder in folders]
    if wish.tuned_profile and not re.fullmatch(r"[\w.-]+", wish.tuned_profile):
        found.append(f"host_tuning_tuned_profile: {wish.tuned_profile!r} is no name of a profile.")
    elif installed and not any(map(host.exists, places)):
        found.append(f"host_tuning_tuned_profile: tuned has no profile {wish.tuned_profile}, see `tuned-adm list`.")
    if boot_lines(host, wish) and not host.which("systemctl"):
        found.append("host_tuning: hugepages, THP, KSM and governor need systemd to come back after a boot.")
    return found


def _wrong_governor(host: Host, governor: str) -> list[str]:
    offered = " ".join(map(host.read, host.find(f"{CPUS}/cpufreq/policy*/scaling_available_governors"))).split()
    release = host.read("/proc/sys/kernel/osrelease").strip()
    loadable = f"/cpufreq_{governor}.ko" in host.read(f"/lib/modules/{release}/modules.dep")
    if not offered or governor in offered or loadable:
        return []
    there = ", ".join(sorted(set(offered)))
    return [f"host_tuning_governor: these processors have no governor {governor}. Use one of {there}."]


def _wrong_processors(host: Host, wish: Wish) -> list[str]:
    if not wish.isolated_cpus:
        return []
    name = "host_tuning_isolated_cpus"
    try:
        asked = set(numbers(wish.isolated_cpus))
    except ValueError as error:
        return [f"{name}: {str(error)!r} is no list of processors: they look like 2-7,10."]
    there = set(numbers(host.read(f"{CPUS}/present").strip() or "0"))
    if asked - there:
        absent = ", ".join(map(str, sorted(asked - there)[:8]))
        return [f"{name}: there is no processor {absent}. This host has {host.read(f'{CPUS}/present').strip()}."]
    if 0 in asked:
        return [f"{name}: processor 0 starts the host and stays with it. Leave it out."]
    return []


def _too_little_memory(host: Host, wish: Wish, live: bool) -> list[str]:
    sizes = page_sizes(host)
    asked = sum(page["pages"] * sizes[page["size"]] for page in wish.hugepages)
    had = sum(reserved(host, pool(sizes[page["size"]], page["node"])) * sizes[page["size"]] for page in wish.hugepages)
    total, available = memory_kib(host, "MemTotal"), memory_kib(host, "MemAvailable")
    own = own_share_kib(host)
    if not asked or (asked + own <= total and (not live or asked - had + own <= available)):
        return _too_little_on_a_node(host, wish)
    pages = " and ".join(f"{page['pages']} pages of {page['size']}" for page in wish.hugepages)
    return [
        f"host_tuning_hugepages: not enough memory for {pages}. They are {amount(asked)}, of which {amount(had)} are "
        f"reserved already; {amount(available)} of {amount(total)} are available, and {amount(own)} are left to the "
        "host itself. Ask for fewer pages, or end guests, or add memory."
    ]


def _too_little_on_a_node(host: Host, wish: Wish) -> list[str]:
    sizes, found = page_sizes(host), []
    for node in sorted({page["node"] for page in wish.hugepages if page["node"] is not None}):
        asked = sum(page["pages"] * sizes[page["size"]] for page in wish.hugepages if page["node"] == node)
        total = memory_kib(host, "MemTotal", node)
        if asked > total:
            found.append(
                f"host_tuning_hugepages: node {node} has {amount(total)} of memory, and {amount(asked)} are asked for. "
                "Ask for fewer pages there, or for pages of another node."
            )
    return found
