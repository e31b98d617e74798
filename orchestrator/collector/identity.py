"""What must be this host's alone in a fleet, and what it is made of: digests and names, no secret."""

import base64
import glob
import hashlib
import os
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, Set

from . import files

SALT = b"kvmfleet fleet identity\n"
GUESTS = "/run/libvirt/qemu"  # a file for each that runs
PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
NETWORK = "0x02"  # the class that a network card says it is of
MOST = 256


def look(etc: str = "/etc", cpuinfo: str = "/proc/cpuinfo", sys: str = "/sys", guests: str = GUESTS) -> Dict[str, Any]:
    return {
        "machine": machine(etc + "/machine-id"),
        "host_keys": host_keys(etc + "/ssh"),
        "flags": flags(files.text(cpuinfo, 1 << 16)),
        "memory_mib": memory_mib(sys + "/devices/system/memory"),
        "interfaces": interfaces(sys + "/class/net"),
        "cards": cards(sys, guests),
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
    for path in with_hardware(folder):
        parent = os.path.dirname(path)
        driver = os.path.basename(os.path.realpath(path + "/driver"))
        # a port of a bond shows the bond's address; only bonds tell in /sys what a port's own one is
        address = files.text(parent + "/bonding_slave/perm_hwaddr").strip() or files.text(parent + "/address").strip()
        found[os.path.basename(parent)] = "{} {}".format(
            address[:64], "" if driver == "driver" else driver[:64]
        ).strip()
    return found


def with_hardware(folder: str) -> List[str]:
    """The device behind each interface that has one of its own."""
    return sorted(path for path in glob.glob(folder + "/*/device") if not os.path.exists(path + "/physfn"))[:MOST]


def cards(sys: str, guests: str) -> Dict[str, List[str]]:
    """PCI address -> interfaces. A guest's hostdev with managed='yes' takes the card from the host's driver, and with
    it the interfaces, until the guest ends: then only the address tells which one it is."""
    found: Dict[str, List[str]] = {address: [] for address in lent(sys + "/bus/pci/drivers/vfio-pci", guests)}
    for path in with_hardware(sys + "/class/net"):
        addresses = [part for part in os.path.realpath(path).split("/") if PCI.match(part)]
        if addresses:  # the last: in front of it are the bridges that lead there
            found.setdefault(addresses[-1], []).append(os.path.basename(os.path.dirname(path)))
    return found


def lent(driver: str, guests: str) -> List[str]:
    """Whole network cards that guests have. Where there is none, no guest's file is read."""
    held = [
        os.path.basename(path)
        for path in glob.glob(driver + "/*:*:*.*")
        if files.text(path + "/class").startswith(NETWORK) and not os.path.exists(path + "/physfn")
    ]
    managed = taken_by_libvirt(guests) if held else set()
    return sorted(managed.intersection(held))[:MOST]


def taken_by_libvirt(folder: str) -> Set[str]:
    """The PCI addresses of all that libvirt took from the host's drivers for guests that run."""
    found = set()
    for path in glob.glob(folder + "/*.xml"):
        try:
            guest = ElementTree.fromstring(files.content(path, 4 << 20))
        except (OSError, ElementTree.ParseError):  # it ended meanwhile
            continue
        for address in guest.iterfind(".//hostdev[@type='pci'][@managed='yes']/source/address"):
            try:
                numbers = [int(address.get(part, "0"), 16) for part in ("domain", "bus", "slot", "function")]
            except ValueError:
                continue
            found.add("{:04x}:{:02x}:{:02x}.{:x}".format(*numbers))
    return found
