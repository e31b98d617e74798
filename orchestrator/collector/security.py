"""What keeps guests apart from each other and from the host, and who can reach libvirt from outside."""

import glob
import json
import os
import re
import stat
from typing import Any, Dict, Iterator, List, Optional, Set

from . import files, inventory, libvirt, processes, shell
from .contract import Contract

LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
MOST_GUESTS = 512
CONFINING = (
    "user",
    "group",
    "security_driver",
    "security_default_confined",
    "clear_emulator_capabilities",
    "seccomp_sandbox",
    "namespaces",
    "relaxed_acs_check",
)
BOOLEANS = "/sys/fs/selinux/booleans/"


def look(contract: Contract) -> Dict[str, Any]:
    enforce = files.text("/sys/fs/selinux/enforce").strip()
    return {
        "selinux": {"1": "enforcing", "0": "permissive"}.get(enforce, ""),
        "apparmor": files.text("/sys/module/apparmor/parameters/enabled").strip() == "Y",
        "booleans": booleans(contract.names("security.booleans")),
        "guests": guests(),
        "sockets": sockets(),
        "asks": {name: asks(name) for name in libvirt.FAMILY},
        "polkit": bool(shell.which("pkcheck")),
        "tcp": [line for path in ("tcp", "tcp6") for line in listening(processes.sockets("/proc/net/" + path))],
        "firewall": firewall(contract.text("security.firewall.backend")),
        "qemu_conf": qemu_conf(),
    }


def booleans(names: List[str]) -> Dict[str, str]:
    """SELinux booleans as the kernel has them now: "1 1" is the value, and the one that waits for a commit."""
    found = {name: files.text(BOOLEANS + name).split() for name in names if re.match(r"\w+$", name)}
    return {name: "on" if words[0] == "1" else "off" for name, words in found.items() if words}


def guests(proc: str = "/proc") -> List[Dict[str, Any]]:
    """The QEMU processes: whose they are, their label, and whether the kernel filters their system calls."""
    found: List[Dict[str, Any]] = []
    everybodys = filters(proc + "/1")  # those of a container; not ours, for a service may have been given some
    for folder in glob.glob(proc + "/[0-9]*"):
        try:
            binary = os.readlink(folder + "/exe")
            if not processes.QEMU.search(binary):
                continue
            owner = os.stat(folder).st_uid
        except OSError:  # a thread of the kernel, or gone meanwhile
            continue
        found.append(
            {
                "pid": int(os.path.basename(folder)),
                "name": processes.guest_name(files.text(folder + "/cmdline", 65536).split("\0")),
                "user": inventory.user_name(owner),
                "uid": owner,
                "binary": binary,
                "label": files.text(folder + "/attr/current").strip("\0\n "),
                "sandboxed": filters(folder) > everybodys,
            }
        )
    return sorted(found, key=lambda guest: guest["pid"])[:MOST_GUESTS]


def filters(folder: str) -> int:
    """How many filters of system calls a process has. In a container every process has those of the container."""
    status = dict(re.findall(r"^(Seccomp|Seccomp_filters):\s*(\d+)", files.text(folder + "/status"), re.MULTILINE))
    # before Linux 5.9 only the mode is shown, and 2 means that there are some
    return int(status.get("Seccomp_filters", status.get("Seccomp", "0") == "2"))


def sockets(folder: str = "/run/libvirt") -> Dict[str, Any]:
    """The local sockets through which guests can be changed: not those for reading and for administration."""
    found = {}
    for path in glob.glob(folder + "/*-sock"):
        if not re.search(r"/(libvirt|virt(?!lo)[a-z]+d)-sock$", path):
            continue
        try:
            info = os.lstat(path)
        except FileNotFoundError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(info.st_mode):
            owner, group = inventory.user_name(info.st_uid), inventory.group_name(info.st_gid)
            found[path] = {"exists": True, "mode": stat.S_IMODE(info.st_mode), "owner": owner, "group": group}
    return found


def asks(daemon: str) -> str:
    """auth_unix_rw of a daemon; "" where its file is silent, which means polkit where libvirt was built with it."""
    return libvirt.parse(files.text(libvirt.FOLDER + daemon + ".conf", 1 << 20)).get("auth_unix_rw", "").strip('"')


def qemu_conf(path: str = libvirt.FOLDER + "qemu.conf") -> Optional[Dict[str, str]]:
    """The settings that confine guests, as far as they are set; None where the file cannot be read. It has passwords,
    too: only the names above leave the host."""
    text = files.known(path, 1 << 20)
    if text is None:
        return None
    values = libvirt.parse(text)
    return {name: values[name] for name in CONFINING if name in values}


def listening(table: str) -> List[int]:
    """Ports of libvirt that others can reach, from /proc/net/tcp: 0A is LISTEN."""
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == "0A":
            address, _, port = words[1].partition(":")
            if int(port, 16) in (16509, 16514) and address not in LOOPBACK:
                found.append(int(port, 16))
    return found


def firewall(backend: str) -> Dict[str, Any]:
    """The live rules of the backend that the contract names; without one nothing is asked."""
    found: Dict[str, Any] = {"backend": backend}
    try:
        if backend == "nftables":
            found.update(nftables())
        elif backend == "firewalld":
            # firewall-cmd(1): 112 is a policy that is not there, 252 a daemon that does not run
            answer = shell.run(["firewall-cmd", "--policy=kvmfleet", "--list-rich-rules"], 10)
            found["rules"] = sorted(answer.out.splitlines())
            found["error"] = answer.err.strip() if answer.code else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        found["error"] = str(error)
    if backend and shell.which("ufw"):
        found["ufw"] = ufw(files.text("/etc/ufw/user.rules") + files.text("/etc/ufw/user6.rules"))
        found["ufw_installed"] = True
        found["ufw_active"] = "ENABLED=yes" in files.text("/etc/ufw/ufw.conf")
    return found


def nftables(running: str = "/run/systemd/system") -> Dict[str, Any]:
    """The unit that loads the rules is told also where they are gone."""
    asked = ["systemctl", "is-enabled", "kvmfleet-firewall.service"]
    enabled = shell.run(asked).out.strip() if os.path.isdir(running) else "enabled"
    # nft(8) ends with 1 where there is no such table
    answer = shell.run(["nft", "--json", "list", "table", "inet", "kvmfleet"])
    if answer.code:
        error = answer.err.strip().splitlines()[0] if answer.err.strip() else "no such table"
        return {"error": error, "unit": enabled}
    chains = json.loads(shell.run(["nft", "--json", "list", "chains"]).out)["nftables"]
    return dict(
        summary(json.loads(answer.out)),
        unit=enabled,
        closed_by=sorted(
            "{family} {table} {name}".format(**entry["chain"])
            for entry in chains
            if entry.get("chain", {}).get("hook") == "input" and entry["chain"].get("policy") == "drop"
        ),
    )


def summary(listing: Any) -> Dict[str, Any]:
    """As module_utils/port_rules.py, whose words the contract has: elements of the sets, and one line a rule."""
    sets: Dict[str, List[str]] = {}
    rules: List[str] = []
    for entry in listing.get("nftables", []):
        if "set" in entry:
            sets[entry["set"]["name"]] = sorted(element(item) for item in entry["set"].get("elem", []))
        elif "chain" in entry and (entry["chain"].get("hook"), entry["chain"].get("policy")) != ("input", "accept"):
            rules.append("chain {}".format(entry["chain"].get("name")))
        elif "rule" in entry:
            parts = entry["rule"]["expr"]
            matches = [match(part["match"]) for part in parts if "match" in part]
            verdicts = [next(iter(part)) for part in parts if "match" not in part]
            rules.append("{} {}".format(", ".join(matches), " ".join(verdicts)).strip())
    return {"sets": sets, "rules": rules}


def element(item: Any) -> str:
    if isinstance(item, dict) and "prefix" in item:
        return "{}/{}".format(item["prefix"]["addr"], item["prefix"]["len"])
    if isinstance(item, dict) and "range" in item:
        return "{}-{}".format(*item["range"])
    return element(item["elem"].get("val")) if isinstance(item, dict) and "elem" in item else str(item)


def match(part: Any) -> str:
    names = [
        "{protocol}.{field}".format(**value) if key == "payload" else str(value.get("key"))
        for key, value in nested(part["left"])
    ]
    words = sorted(strings(part["left"]) | strings(part["right"]))
    return "{} {} {}".format("".join(names[:1]), part["op"], ",".join(words))


def nested(part: Any) -> Iterator[Any]:
    """What is compared, however deep."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if key in ("payload", "meta"):
            yield key, value
        else:
            yield from nested(value)


def strings(part: Any) -> Set[str]:
    if isinstance(part, dict):
        return {word for key, value in part.items() if key not in ("payload", "meta") for word in strings(value)}
    if isinstance(part, list):
        return {word for value in part for word in strings(value)}
    return {str(part)}


def ufw(rules: str) -> List[str]:
    """Ports and source of what is let in, from the lines in which ufw keeps its own rules."""
    found = re.findall(r"^### tuple ### allow tcp (\S+) \S+ any (\S+) in", rules, re.MULTILINE)
    return sorted("{} {}".format(*pair) for pair in found)
