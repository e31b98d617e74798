"""Memory and processors, as far as the contract speaks of them: live, and as the next boot will have them.

Only files are read, but for one question to systemd where services are in the contract.
"""

import glob
import os
import re
from typing import Any, Dict, List, Optional

from . import files, shell
from .contract import Contract

MM = "/sys/kernel/mm"
NODES = "/sys/devices/system/node"
CPUS = "/sys/devices/system/cpu"
UNIT = "kvmfleet-tuning.service"
UNITS = "/etc/systemd/system"
SHOWN = (("load", "LoadState"), ("active", "ActiveState"), ("enabled", "UnitFileState"))
UNIT_LINE = re.compile(r"^ExecStart=/bin/sh -c 'echo (\S+) >(/sys/\S+)'$", re.MULTILINE)
UNIT_GOVERNOR = re.compile(r"^ExecStart=/bin/sh -c 'for file in (/sys/\S+); do .*echo (\w+) >", re.MULTILINE)


def look(contract: Contract) -> Dict[str, Any]:
    wishes = contract.table("tuning")
    if not wishes:
        return {}
    return {
        "hugepages": hugepages(wishes.get("hugepages")),
        "thp": {key: selected(files.text(MM + "/transparent_hugepage/" + key)) for key in ("enabled", "defrag")},
        "ksm_run": files.text(MM + "/ksm/run").strip() if "ksm" in wishes else "",
        "ksm_sharing": files.number(MM + "/ksm/pages_sharing") or 0,
        "sysctls": sysctls(contract.names("tuning.sysctls")),
        "governors": governors() if "governor" in wishes else {},
        "tuned_profile": files.text("/etc/tuned/active_profile").strip(),
        "units": services(wishes),
        "unit_enabled": unit_enabled(),
        "at_boot": at_boot(),
        "iommus": len(glob.glob("/sys/class/iommu/*")),
        "iommu_groups": len(glob.glob("/sys/kernel/iommu_groups/*")),
        "isolated": files.text(CPUS + "/isolated").strip(),
        "nohz_full": files.text(CPUS + "/nohz_full").strip(),
    }


def hugepages(wishes: Any) -> Dict[str, Any]:
    """The pools that the contract names."""
    found: Dict[str, Any] = {}
    mounts = mounted(files.text("/proc/mounts", 1 << 20))
    for wish in wishes if isinstance(wishes, list) else []:
        if not isinstance(wish, dict):
            continue
        size, node = wish.get("size"), wish.get("node")
        kib = kibibytes(size) if isinstance(size, str) else 0
        if not kib:
            continue
        parent = MM if not isinstance(node, int) else "{}/node{:d}".format(NODES, node)
        folder = "{}/hugepages/hugepages-{:d}kB/".format(parent, kib)
        if os.path.isdir(folder):
            name = "{}@{:d}".format(size, node) if isinstance(node, int) else str(size)
            pages, surplus, free = (
                files.number(folder + kind + "_hugepages") or 0 for kind in ("nr", "surplus", "free")
            )
            found[name] = {"pages": pages - surplus, "free": free, "mounted": mounts.get(kib, "")}
    return found


def kibibytes(size: str) -> int:
    """2M is 2048; 0 for what is no size."""
    found = re.match(r"(\d{1,9})([KMG])$", size)
    return int(found.group(1)) << {"K": 0, "M": 10, "G": 20}[found.group(2)] if found else 0


def mounted(mounts: str) -> Dict[int, str]:
    """KiB of a page -> the first place where pages of that size are mounted. The kernel always shows the size."""
    found: Dict[int, str] = {}
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 3 and words[2] == "hugetlbfs":
            size = re.search(r"(?:^|,)pagesize=(\d+[KMG])", words[3])
            found.setdefault(kibibytes(size.group(1)) if size else 0, words[1])
    return found


def selected(text: str) -> str:
    """The word in brackets of "always [madvise] never"."""
    found = re.search(r"\[([\w+-]+)\]", text)
    return found.group(1) if found else ""


def sysctls(names: List[str]) -> Dict[str, Any]:
    later = configured([content for _, content in files.dropins("sysctl.d")])
    return {name: {"live": live(name), "next_boot": later.get(plain(name))} for name in names}


def live(name: str) -> Optional[str]:
    try:
        return " ".join(files.content("/proc/sys/" + plain(name)).split())
    except OSError:
        return None


def plain(name: str) -> str:
    """The path below /proc/sys. Dots separate, unless a slash comes first; then a dot is part of a name."""
    separator = re.search(r"[./]", name)
    path = name.translate({46: "/", 47: "."}) if separator and separator.group() == "." else name
    return path if ".." not in path.split("/") else "nowhere"


def configured(texts: List[str]) -> Dict[str, str]:
    """What sysctl.d(5) makes of the files: the last that speaks of a setting wins."""
    found = {}
    for text in texts:
        for line in text.splitlines():
            key, equals, value = line.strip().partition("=")
            if equals and key and key[0] not in "#;":
                found[plain(key.strip().lstrip("-"))] = " ".join(value.split())
    return found


def governors() -> Dict[str, str]:
    """Governor -> processors, such as {"performance": "0 1 2 3"}."""
    found: Dict[str, List[str]] = {}
    for policy in sorted(glob.glob(CPUS + "/cpufreq/policy*")):
        name = files.text(policy + "/scaling_governor").strip()
        if name:
            found.setdefault(name, []).extend(files.text(policy + "/affected_cpus").split())
    return {name: " ".join(sorted(cpus, key=lambda cpu: (len(cpu), cpu))) for name, cpus in found.items()}


def services(wishes: Dict[str, Any]) -> Dict[str, Any]:
    names = ["ksm.service", "ksmtuned.service"] if "ksm" in wishes else []
    names += ["tuned.service"] if "tuned_profile" in wishes else []
    if not names or not shell.which("systemctl"):
        return {}
    answer = shell.run(["systemctl", "show", "--property=Id,LoadState,ActiveState,UnitFileState", "--", *names])
    found: Dict[str, Any] = {}
    for block in answer.out.split("\n\n"):
        unit = dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE))
        if unit.get("LoadState", "not-found") != "not-found":
            found[unit["Id"]] = {key: unit.get(name, "") for key, name in SHOWN}
    return found


def unit_enabled() -> Optional[bool]:
    """Whether systemd starts our unit at boot; None where there is no such unit."""
    if not os.path.exists("{}/{}".format(UNITS, UNIT)):
        return None
    return bool(glob.glob("{}/*.wants/{}".format(UNITS, UNIT)))


def at_boot() -> Dict[str, str]:
    """File of /sys -> value, of our unit, when it is there and enabled."""
    return unit_values(files.text("{}/{}".format(UNITS, UNIT))) if unit_enabled() else {}


def unit_values(text: str) -> Dict[str, str]:
    found = [(path, value) for value, path in UNIT_LINE.findall(text)]
    return dict(found + UNIT_GOVERNOR.findall(text))
