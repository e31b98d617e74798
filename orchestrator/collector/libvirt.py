"""The libvirt daemons: their units, whether one answers, and the settings that the contract names."""

import contextlib
import glob
import os
import re
import time
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, Iterable, List, Set, Tuple

from . import files, inventory, shell
from .contract import Contract

FOLDER = "/etc/libvirt/"
URI = "qemu:///system"
FAMILY = ("libvirtd", "virtqemud")
MODULAR = (
    "virtnetworkd",
    "virtnodedevd",
    "virtnwfilterd",
    "virtsecretd",
    "virtstoraged",
    "virtinterfaced",
    "virtproxyd",
)
UNIT_FOLDERS = (  # where systemd looks for files, systemd.unit(5), and where it notes what it started
    *("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient"),
    *("/run/systemd/generator.early", "/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system"),
    *("/run/systemd/system.attached", "/run/systemd/generator", "/usr/local/lib/systemd/system"),
    *("/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/generator.late", "/run/systemd/units"),
)
SHOWN = "Id,LoadState,ActiveState,UnitFileState,MainPID,FragmentPath,DropInPaths"
HOOKS = ("daemon", "qemu", "network", "lxc", "libxl")  # https://libvirt.org/hooks.html
ADMINISTRATORS = ("/etc/", "/run/")  # the folders for units that no package brought, systemd.unit(5)
OF_THE_DAEMON = "version --daemon; capabilities"
OF_GUESTS = "domcapabilities --machine q35"  # with KVM where libvirt offers it; to ask for more is an error in its log
SECRET = re.compile(r"passw|secret|credential", re.IGNORECASE)


def look(contract: Contract) -> Dict[str, Any]:
    unit = [contract.text("guests.unit")] if contract.text("guests.unit") else []
    names = wanted(contract.names("libvirt.sockets") + contract.names("libvirt.services") + unit)
    shown = units(names)
    found: Dict[str, Any] = {
        "units": {
            name: {"load": unit["LoadState"], "active": unit["ActiveState"], "enabled": unit["UnitFileState"]}
            for name, unit in shown.items()
            if unit["LoadState"] != "not-found" and (name in names or unit["ActiveState"] != "failed")
        },
        "unit_files": unit_files(shown, names),
        "hooks": hooks(),
        "failed_units": failed(shown),  # for the section upkeep; it does not leave the host
        "settings": settings(contract.table("libvirt.settings")),
        "stale": stale({name: int(unit["MainPID"] or 0) for name, unit in shown.items()}),
    }
    found.update(connection(contract.text("libvirt.uri", URI)))
    return found


def wanted(extra: Iterable[str]) -> List[str]:
    """The units of both families that are somewhere: to ask for others takes as long, and most are nowhere."""
    names = [
        base + kind for base in FAMILY + MODULAR for kind in (".service", ".socket", "-ro.socket", "-admin.socket")
    ]
    names += ["libvirtd-tcp.socket", "libvirtd-tls.socket", "virtproxyd-tcp.socket", "virtproxyd-tls.socket"]
    names += ["virtlogd.service", "virtlogd.socket", "virtlockd.service", "virtlockd.socket"]
    names = somewhere(names)
    names += sorted(name for name in set(extra) - set(names) if re.match(r"[\w.@-]+$", name) and name[0] != "-")
    return names[:120]


def units(names: List[str], running: str = "/run/systemd/system") -> Dict[str, Dict[str, str]]:
    """LoadState and the others of these units, and of all that failed: --state holds for what a pattern matches.

    Nothing where systemd does not run. Raises OSError where it does not answer: its units are not gone then.
    """
    if not shell.which("systemctl") or not os.path.isdir(running):
        return {}
    answer = shell.run(["systemctl", "show", "--state=failed", "--property=" + SHOWN, "--", *names, "*"])
    if answer.code and not answer.out.strip():
        raise OSError("systemctl: " + (" ".join(answer.err.split()) or "exit {}".format(answer.code)))
    blocks = [dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE)) for block in answer.out.split("\n\n")]
    return {block["Id"]: {key: block.get(key, "") for key in SHOWN.split(",")} for block in blocks if "Id" in block}


def unit_files(
    shown: Dict[str, Dict[str, str]], names: List[str], folders: Tuple[str, ...] = ADMINISTRATORS
) -> Dict[str, str]:
    """Whole units and drop-ins that stand in front of what packages brought -> SHA-256. A mask is no file."""
    told = " ".join(shown[name]["FragmentPath"] + " " + shown[name]["DropInPaths"] for name in names if name in shown)
    digests = {path: files.sha256(path) for path in sorted(set(told.split()))[:256] if path.startswith(folders)}
    return {path: digest for path, digest in digests.items() if digest}


def hooks(folder: str = FOLDER + "hooks/") -> Dict[str, Dict[str, Any]]:
    """The scripts that the daemons run as root when they start, and when a guest or a network does -> their states."""
    found = [path for name in HOOKS for path in (folder + name, *sorted(glob.glob(folder + name + ".d/*")))]
    runs = [path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)]
    return {path: inventory.state(path) for path in runs[:64]}


def failed(shown: Dict[str, Dict[str, str]]) -> List[str]:
    """In the order of `systemctl list-units`: by type, then by name."""
    names = [name for name, unit in shown.items() if unit["ActiveState"] == "failed"]
    return sorted(names, key=lambda name: (name.rpartition(".")[2], name.lower()))


def somewhere(names: List[str], folders: Iterable[str] = UNIT_FOLDERS) -> List[str]:
    """Those that have a file, or were started from one that is gone."""
    known: Set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):  # most of these folders are not there
            known.update(name.replace("invocation:", "") for name in os.listdir(folder))
    return [name for name in names if name in known]


def connection(uri: str, timeout_s: float = 25) -> Dict[str, Any]:
    """Ask the daemon for its version and capabilities. Through its socket, which starts an idle daemon."""
    virsh = shell.which("virsh")
    if not virsh:
        return {"connected": False, "error": "there is no virsh"}
    begun = time.monotonic()
    try:
        answer = asked([virsh, "-c", uri], timeout_s)
    except OSError as error:
        return {"connected": False, "error": str(error)}
    answer_ms = (time.monotonic() - begun) * 1000
    capabilities = re.search("<capabilities>.*</capabilities>", answer.out, re.DOTALL)
    if answer.code != 0 or not capabilities:
        problem = re.sub(r"^error: ", "", answer.err.strip(), flags=re.MULTILINE).replace("\n", ": ")
        return {"connected": False, "error": problem or "exit {}".format(answer.code)}
    daemon = re.search(r"daemon: (\S+)", answer.out)
    guests = re.search("<domainCapabilities>.*</domainCapabilities>", answer.out, re.DOTALL)
    return {
        # for the section windows; they do not leave the host
        "of_guests": guests.group() if guests else "",
        "of_guests_error": "\nerror: ".join(answer.err.split("\nerror: ")[:2]),  # what failed, and why; then of others
        "connected": True,
        "answer_ms": answer_ms - aside_ms(answer.out),
        "version": daemon.group(1) if daemon else "",
        "host_uuid": host_uuid(capabilities.group()),
        "domain_types": domain_types(capabilities.group()),
        "confined_by": confined_by(capabilities.group()),
    }


def asked(client: List[str], timeout_s: float) -> shell.Result:
    """What the sections libvirt and windows ask, from one virsh: to start it takes longer than either answer.

    Where that is not done in time, the daemon is asked alone, for the rest of the time: what hangs may be the question
    of the other section.
    """
    try:
        return shell.run([*client, "--timing", "{}; {}".format(OF_GUESTS, OF_THE_DAEMON)], timeout_s * 0.8)
    except OSError:
        return shell.run([*client, OF_THE_DAEMON], timeout_s * 0.2)


def aside_ms(printed: str) -> float:
    """How long the question for the section windows took, the first that is timed."""
    timed = re.search(r"^\(Time: (\d+\.\d+) ms\)$", printed, re.MULTILINE)
    return float(timed.group(1)) if timed else 0.0


def domain_types(capabilities: str) -> List[str]:
    """The types that a guest of the host's own architecture may have: kvm, qemu."""
    root = ElementTree.fromstring(capabilities.strip())
    arch = root.findtext("host/cpu/arch") or os.uname().machine
    return sorted(
        {
            domain.get("type", "")
            for offered in root.findall("guest/arch")
            if offered.get("name") == arch
            for domain in offered.findall("domain")
        }
    )


def host_uuid(capabilities: str) -> str:
    """By which libvirt tells whether a guest is asked to move to where it is."""
    return (ElementTree.fromstring(capabilities.strip()).findtext("host/uuid") or "").strip().lower()


def confined_by(capabilities: str) -> List[str]:
    """The security models that the driver for guests uses: selinux, apparmor, dac, none."""
    root = ElementTree.fromstring(capabilities.strip())
    return [model.text or "" for model in root.findall("host/secmodel/model")]


def settings(wished: Dict[str, Any], folder: str = FOLDER) -> Dict[str, Dict[str, str]]:
    """Values of the keys that the contract names, and of no others: these files may hold passwords."""
    found = {}
    for name, keys in wished.items():
        path = os.path.normpath(os.path.join(folder, name))
        if path.startswith(folder) and isinstance(keys, dict):
            values = parse(files.text(path, 1 << 20))
            found[name] = {key: values[key] for key in keys if key in values and not SECRET.search(key)}
    return found


def parse(text: str) -> Dict[str, str]:
    """`key = value` where the value is a number, a "string" or a [ list ] that may span lines. The first wins, as in
    libvirt."""
    plain = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    pairs = re.findall(r'^\s*(\w+)\s*=\s*(\[[^\]]*\]|"[^"\n]*"|[^\s#]+)', plain, re.MULTILINE)
    return {key: " ".join(value.split()) for key, value in reversed(pairs)}


def stale(pids: Dict[str, int]) -> List[str]:
    """Services whose configuration was written after their start: what they obey is not what the files say.

    Not virtlogd and virtlockd: they hold what guests need, so they are reloaded, of which their start tells nothing.
    """
    booted = re.search(r"^btime (\d+)$", files.text("/proc/stat", 4 << 20), re.MULTILINE)
    if not booted:
        return []
    tick = os.sysconf("SC_CLK_TCK")
    found = []
    for unit, pid in pids.items():
        name = unit.rsplit(".", 1)[0]
        # the fields after the command's name, which may hold spaces; starttime is number 22 of all, proc(5)
        fields = files.text("/proc/{}/stat".format(pid)).rpartition(")")[2].split()
        if unit.endswith(".service") and not unit.startswith("virtlo") and pid and len(fields) > 19:
            started = int(booted.group(1)) + int(fields[19]) / float(tick)
            if any(written(path) > started + 1.5 for path in configuration(name)):  # btime has whole seconds
                found.append(unit)
    return sorted(found)


def configuration(daemon: str) -> List[str]:
    """The files that a daemon reads when it starts."""
    drivers = (
        ["qemu", "network"]
        if daemon == "libvirtd"
        else {"virtqemud": ["qemu"], "virtnetworkd": ["network"]}.get(daemon, [])
    )
    return [FOLDER + name + ".conf" for name in [daemon, *drivers]]


def written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
