"""What a host is to be: the wish, and the values, arguments and files that make it so, now and at every boot."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_host import (
    CPUS,
    KSM_RUN,
    THP,
    Host,
    memory_kib,
    page_sizes,
    pool,
)

SYSCTL_FILE = "/etc/sysctl.d/60-kvmfleet.conf"
UDEV_FILE = "/etc/udev/rules.d/60-kvmfleet-bridge.rules"
UNIT = "kvmfleet-tuning.service"
UNITS = "/etc/systemd/system"
BRIDGE = tuple(f"net.bridge.bridge-nf-call-{table}" for table in ("arptables", "ip6tables", "iptables"))
HEADER = "# Written by kvmfleet, role host_tuning. Changes made here are lost.\n"
GIGANTIC_KIB = 512 << 10  # from here on the buddy allocator has no such pages: they are reserved best at boot


class Wish(NamedTuple):
    """What the host is to be; the fields are the options of the module."""

    hugepages: Any
    thp: Any
    ksm: str
    sysctls: Any
    bridge_netfilter: str
    governor: str
    tuned_profile: str
    iommu: str
    isolated_cpus: str
    kernel_arguments: Any

    def settings(self) -> dict[str, str]:
        """The sysctls, with those of bridges. 1 and 0 for true and false."""
        plain = {key: str(int(v) if isinstance(v, bool) else "" if v is None else v) for key, v in self.sysctls.items()}
        if self.bridge_netfilter != "keep":
            plain.update(dict.fromkeys(BRIDGE, str(int(self.bridge_netfilter == "filter"))))
        return {key: " ".join(plain[key].split()) for key in sorted(plain)}

    def services(self) -> dict[str, bool]:
        """Which services are to run, and which not."""
        found = {}
        if self.ksm != "keep":
            found.update(dict.fromkeys(("ksm.service", "ksmtuned.service"), self.ksm == "ksmtuned"))
        if self.tuned_profile:
            found["tuned.service"] = True
        return found

    def contract(self) -> dict[str, Any]:
        """What validation holds the host to; nothing where nothing is asked for."""
        pages = [{key: page[key] for key in page if page[key] is not None} for page in self.hugepages]
        whole = {
            "hugepages": pages,
            "thp": {key: value for key, value in sorted(self.thp.items()) if value},
            "ksm": "" if self.ksm == "keep" else self.ksm,
            "sysctls": self.settings(),
            "governor": self.governor,
            "tuned_profile": self.tuned_profile,
            "iommu": "" if self.iommu == "keep" else self.iommu,
            "isolated_cpus": self.isolated_cpus,
        }
        return {key: value for key, value in whole.items() if value}


def knobs(host: Host, wish: Wish) -> dict[str, str]:
    """Files of /sys and what is to be in them, as far as this kernel has them."""
    sizes = page_sizes(host)
    found = {
        f"{pool(sizes[page['size']], page['node'])}/nr_hugepages": str(page["pages"])
        for page in wish.hugepages
        if page["size"] in sizes
    }
    found.update({THP[key]: value for key, value in wish.thp.items() if value and key in THP})
    if wish.ksm in ("enabled", "disabled") and host.exists(KSM_RUN):
        found[KSM_RUN] = str(int(wish.ksm == "enabled"))
    if wish.governor:
        found.update(dict.fromkeys(host.find(f"{CPUS}/cpufreq/policy*/scaling_governor"), wish.governor))
    return found


def arguments(host: Host, wish: Wish) -> list[str]:
    """What only the kernel's command line can say."""
    found = []
    sizes = page_sizes(host)
    for size in sorted({page["size"] for page in wish.hugepages if sizes.get(page["size"], 0) >= GIGANTIC_KIB}):
        pages = [page for page in wish.hugepages if page["size"] == size]
        total = str(sum(page["pages"] for page in pages))
        by_node = ",".join(f"{page['node']}:{page['pages']}" for page in pages)
        found += [f"hugepagesz={size}", f"hugepages={by_node if _takes_nodes(host, pages) else total}"]
    if wish.iommu != "keep":
        found += _iommu_arguments(host, passthrough=wish.iommu == "passthrough")
    if wish.isolated_cpus:
        found += [f"{name}={wish.isolated_cpus}" for name in ("isolcpus", "nohz_full", "rcu_nocbs")]
    return found


def _takes_nodes(host: Host, pages: Any) -> bool:
    """Linux 5.16 is the first that takes hugepages=NODE:PAGES. Before, our unit moves them when the host has booted."""
    release = re.match(r"(\d+)\.(\d+)", host.read("/proc/sys/kernel/osrelease"))
    return pages[0]["node"] is not None and bool(release) and (int(release[1]), int(release[2])) >= (5, 16)


def _iommu_arguments(host: Host, *, passthrough: bool) -> list[str]:
    """AMD's is on where the firmware has it; amd_iommu=on means nothing to the kernel."""
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", host.read("/proc/cpuinfo"), re.MULTILINE)
    if not vendor:  # no x86
        return ["iommu.passthrough=1"] * passthrough
    intel = vendor[1] not in ("AuthenticAMD", "HygonGenuine")
    return ["intel_iommu=on"] * intel + ["iommu=pt"] * passthrough


# --- the files that make it so at every boot


def files(host: Host, wish: Wish) -> dict[str, str]:
    """Path -> text of what is ours alone."""
    found = {}
    settings = wish.settings()
    if settings:
        found[SYSCTL_FILE] = HEADER + "".join(f"{key} = {value}\n" for key, value in settings.items())
    if wish.bridge_netfilter != "keep":
        found[UDEV_FILE] = HEADER + BRIDGE_RULE
    sizes, usual = page_sizes(host), memory_kib(host, "Hugepagesize")
    for size in sorted({page["size"] for page in wish.hugepages}):
        if size in sizes and sizes[size] != usual:
            found[f"{UNITS}/{mount_unit(size)}"] = HEADER + MOUNT.format(size=size)
    lines = boot_lines(host, wish)
    if lines:
        found[f"{UNITS}/{UNIT}"] = HEADER + SERVICE.format(lines="".join(lines))
    return found


def boot_lines(host: Host, wish: Wish) -> list[str]:
    """What the unit does. A governor's files are those of that boot, so the shell looks for them."""
    fixed = knobs(host, wish._replace(governor=""))
    lines = [f"ExecStart=/bin/sh -c 'echo {value} >{path}'\n" for path, value in sorted(fixed.items())]
    return lines + [GOVERNOR.format(cpus=CPUS, governor=wish.governor)] * bool(wish.governor)


BRIDGE_RULE = """\
# These settings come with a module, which may be loaded long after the boot.
ACTION=="add", SUBSYSTEM=="module", KERNEL=="br_netfilter", RUN+="/usr/lib/systemd/systemd-sysctl --prefix=/net/bridge"
"""
SERVICE = """
[Unit]
Description=Memory and processors for guests
Documentation=https://docs.kernel.org/admin-guide/mm/index.html
ConditionVirtualization=!container
After=systemd-modules-load.service systemd-udev-trigger.service ksm.service tuned.service
Before=libvirtd.service virtqemud.service

[Service]
Type=oneshot
RemainAfterExit=yes
{lines}
[Install]
WantedBy=multi-user.target
"""
GOVERNOR = (
    "ExecStart=/bin/sh -c 'for file in {cpus}/cpufreq/policy*/scaling_governor; "
    'do [ ! -e "$$file" ] || echo {governor} >"$$file"; done\'\n'
)
MOUNT = """
[Unit]
Description=Huge pages of {size} for guests
DefaultDependencies=no
ConditionVirtualization=!container
Before=sysinit.target libvirtd.service virtqemud.service

[Mount]
What=hugetlbfs
Where=/dev/hugepages{size}
Type=hugetlbfs
Options=pagesize={size},mode=0755

[Install]
WantedBy=sysinit.target
"""


def mount_unit(size: str) -> str:
    return f"dev-hugepages{size}.mount"
