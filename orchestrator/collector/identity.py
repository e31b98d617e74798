"""What must be this host's alone in a fleet, and what its guests may count on: digests and names, no secret."""

import base64
import glob
import hashlib
import re
from typing import Any, Dict, List

from . import files

SALT = b"kvmfleet fleet identity\n"


def look(etc: str = "/etc", cpuinfo: str = "/proc/cpuinfo") -> Dict[str, Any]:
    return {
        "machine": machine(etc + "/machine-id"),
        "host_keys": host_keys(etc + "/ssh"),
        "flags": flags(files.text(cpuinfo, 1 << 16)),
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
