"""Through what a guest could learn about another one: the processor's flaws, its shared cores, and shared memory."""

import glob
import os
from typing import Any, Dict, Optional

from . import files

CPU = "/sys/devices/system/cpu"
KSM = "/sys/kernel/mm/ksm"


def look(cpu: str = CPU, ksm: str = KSM) -> Dict[str, Any]:
    return {
        "vulnerabilities": vulnerabilities(cpu + "/vulnerabilities"),
        "smt": {"1": True, "0": False}.get(files.known(cpu + "/smt/active") or ""),
        "ksm_run": files.known(ksm + "/run"),
        "ksm_sharing": files.number(ksm + "/pages_sharing"),
    }


def vulnerabilities(folder: str) -> Optional[Dict[str, str]]:
    """Name -> the kernel's words. None where the kernel, or the container around us, does not show them."""
    found = {os.path.basename(path): files.known(path) for path in glob.glob(folder + "/*")}
    return {name: words for name, words in found.items() if words} or None
