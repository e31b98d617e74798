"""What must be this host's alone in a fleet, and what it is made of: digests and names, no secret."""

import base64
import glob
import hashlib
import os
import re
from typing import Any, Dict, List

from . import files

SALT = b"kvmfleet fleet identity\n"


def look(etc: str = "/etc", cpuinfo: str = "/proc/cpuinfo", sys: str = "/sys") -> Dict[str, Any]:
    return {
        "machine": machine(etc + "/machine-id"),
        "host_keys": host_keys(etc + "/ssh"),
        "flags": flags(files.text(cpuinfo, 1 << 16)),
        "memory_mib": memory_mib(sys + "/devices/system/memory"),
        "interfaces": interfaces(sys + "/class/net"),
    }


def machine(path: str) -> str:
    """A digest of the machine id, which itself is for nobody outside the host, machine-id(5)."""
    found = files.text(path).strip()
    if not re.match(r"[0-9a-f]{32}$", found):
        return ""
    return hashlib.sha256(SALT + found.encode("ascii")).hexdigest()[:32]


def host_keys(folder: str) -> List[str]:
    """Fingerprints of sshd's public keys, as `ssh-keygen -l` prints them."""
    found = []
    for path in sorted(glob.glob(folder + "/ssh_host_*_key.pub"))[:16]:
        kind, _, rest = files.text(path).partition(" ")
        try:
            digest = hashlib.sha256(base64.b64decode(rest.split()[0], validate=True)).digest()
        except (IndexError, ValueError):  # binascii.Error is one
            continue
        found.append("{} SHA256:{}".format(kind[:64], base64.b64encode(digest).decode("ascii").rstrip("=")))
    return found


def flags(cpuinfo: str) -> List[str]:
    """All features of the first processor that the kernel names."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return sorted(set(found.group(1).split())) if found else []


def memory_mib(folder: str) -> int:
    """The blocks of memory that are online; MemTotal is what a kernel leaves of them, and each leaves another rest."""
    size = files.text(folder + "/block_size_bytes").strip()
    try:
        block = int(size, 16)
    except ValueError:
        return 0
    names = [name for name in os.listdir(folder) if name.startswith("memory")]  # 200 on a small host: no second look
    online = [name for name in names if files.text("{}/{}/state".format(folder, name)).strip() == "online"]
    return block * len(online) >> 20


def interfaces(folder: str) -> Dict[str, str]:
    """Name -> its own address and its driver, of those behind which is hardware; bonds and bridges have none.

    The virtual functions of a card are for guests: they come and go with them, under addresses of the moment.
    """
    found = {}
    cards = [path for path in glob.glob(folder + "/*/device") if not os.path.exists(path + "/physfn")]
    for path in sorted(cards)[:256]:
        parent = os.path.dirname(path)
        driver = os.path.basename(os.path.realpath(path + "/driver"))
        # a port of a bond shows the bond's address; only bonds tell in /sys what a port's own one is
        address = files.text(parent + "/bonding_slave/perm_hwaddr").strip() or files.text(parent + "/address").strip()
        found[os.path.basename(parent)] = "{} {}".format(
            address[:64], "" if driver == "driver" else driver[:64]
        ).strip()
    return found
