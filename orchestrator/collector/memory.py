"""The host's memory: how much is left, who may promise how much, and what failed."""

import glob
import os
import re
from typing import Any, Dict, Optional

from . import files

NODES = "/sys/devices/system/node"
CONTROLLERS = "/sys/devices/system/edac/mc"


def look() -> Dict[str, Any]:
    return dict(
        amounts(files.content("/proc/meminfo")),
        zswap=files.text("/sys/module/zswap/parameters/enabled").strip() == "Y",
        overcommit=files.text("/proc/sys/vm/overcommit_memory").strip(),
        stalled_percent=stalled_percent(files.text("/proc/pressure/memory")),
        nodes=nodes(),
        **errors(),
    )


def amounts(meminfo: str) -> Dict[str, Any]:
    """Of /proc/meminfo, whose kB are KiB. Lines that a kernel does not have are None."""
    kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", meminfo, re.MULTILINE)}

    def mib(name: str) -> Optional[int]:
        return kib[name] // 1024 if name in kib else None

    return {
        "total_mib": mib("MemTotal"),
        "available_mib": mib("MemAvailable"),
        "hugepages_mib": mib("Hugetlb") or 0,
        "swap_mib": mib("SwapTotal"),
        "swap_free_mib": mib("SwapFree"),
        "committed_mib": mib("Committed_AS"),
        "commit_limit_mib": mib("CommitLimit"),
        "failed_kib": kib.get("HardwareCorrupted"),
    }


def stalled_percent(pressure: str) -> Optional[float]:
    """Of "full avg10=0.00 avg60=0.00 ..."; None where the kernel keeps no such account."""
    found = re.search(r"^full .*\bavg60=(\d+\.\d+)", pressure, re.MULTILINE)
    return float(found.group(1)) if found else None


def nodes(folder: str = NODES) -> Dict[str, Any]:
    found = {}
    for path in glob.glob(folder + "/node[0-9]*"):
        total = re.search(r"MemTotal:\s+(\d+)", files.text(path + "/meminfo"))
        if total:
            found[os.path.basename(path)[len("node") :]] = {
                "cpus": files.text(path + "/cpulist").strip(),
                "memory_mib": int(total.group(1)) // 1024,
            }
    return found


def errors(folder: str = CONTROLLERS) -> Dict[str, Any]:
    """What the memory controllers counted since the boot. None of them without ECC or without a driver."""
    controllers = [mc for mc in glob.glob(folder + "/mc[0-9]*") if files.number(mc + "/ue_count") is not None]
    modules = [path for mc in controllers for path in glob.glob(mc + "/dimm[0-9]*") + glob.glob(mc + "/rank[0-9]*")]
    return {
        "controllers": len(controllers),
        "corrected": sum(files.number(mc + "/ce_count") or 0 for mc in controllers),
        "uncorrected": sum(files.number(mc + "/ue_count") or 0 for mc in controllers),
        "failing": sorted(label(path) for path in modules if files.number(path + "/dimm_ue_count")),
    }


def label(path: str) -> str:
    """What is printed on the board beside it, or the kernel's own name."""
    return files.text(path + "/dimm_label").strip() or "/".join(path.split("/")[-2:])
