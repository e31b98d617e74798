"""Kernel modules and arguments: live, and as the next boot will have them."""

import glob
import os
import re
import shlex
import stat
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from . import boot, files, kvm
from .contract import Contract

INTERESTING = (
    *("kvm", "kvm_intel", "kvm_amd", "vhost", "vhost_net", "vhost_vsock", "tun"),
    *("vfio", "vfio_iommu_type1"),
)
DEVICES = {"tun": "/dev/net/tun", "vhost_net": "/dev/vhost-net", "vhost_vsock": "/dev/vhost-vsock"}
OTHERS = ("vboxdrv", "vmmon", "mshv_root")  # VirtualBox, VMware, Hyper-V
CAP_SYS_MODULE = 1 << 16
Options = Dict[str, Dict[str, str]]


def look(contract: Contract, container: str) -> Dict[str, Any]:
    cmdline = files.text("/proc/cmdline", 4096).strip()
    next_boot = {} if container else boot.look()  # a container boots with its host
    later = next_boot["cmdline"] if next_boot.get("source") else cmdline
    options, blacklisted = configured(files.dropins("modprobe.d"), later)
    names = set(INTERESTING) | {plain(name) for name in contract.names("modules")}
    names |= {os.path.basename(path) for path in glob.glob("/sys/module/kvm*")}
    found = modules(names)
    return {
        "modules": found,
        "configured_options": {name: options[name] for name in sorted(names & set(options))},
        "load_at_boot": load_at_boot(files.dropins("modules-load.d"), files.text("/etc/modules"), later),
        "blacklisted": sorted(blacklisted & names),
        "cmdline": cmdline,
        "next_boot": next_boot,
        "lockdown": "".join(re.findall(r"\[(.*?)\]", files.text("/sys/kernel/security/lockdown"))),
        "can_load": can_load() and not container,
        "devices": {node: opens(node) for name, node in DEVICES.items() if found[name]["state"] != "absent"},
        "hypervisors": hypervisors(files.text("/proc/modules", 1 << 20)),
    }


def opens(node: str, misc: str = "/sys/class/misc") -> str:
    """The errno of opening a node, ENODEV where it is something else, such as a file or the node of another device."""
    why = kvm.attempt(node)
    if why:
        return why
    info = os.stat(node)
    number = files.text("{}/{}/dev".format(misc, os.path.basename(node))).strip()  # "" where sysfs is not to be seen
    same = number in ("", "{}:{}".format(os.major(info.st_rdev), os.minor(info.st_rdev)))
    return "" if stat.S_ISCHR(info.st_mode) and same else "ENODEV"


def hypervisors(listing: str, modules: str = "/sys/module", xen: str = "/proc/xen/capabilities") -> Optional[List[str]]:
    """Others than KVM that are in the kernel, or below it. None where modules cannot be seen, as in some containers."""
    loaded = {line.split()[0] for line in listing.splitlines() if line.split()}
    if not loaded and not os.path.isdir(modules):
        return None
    found = [name for name in OTHERS if name in loaded or os.path.isdir("{}/{}".format(modules, name))]
    return found + (["xen"] if "control_d" in files.text(xen) else [])


def plain(name: str) -> str:
    """The kernel's spelling of a module's name."""
    return name.replace("-", "_")


def modules(names: Iterable[str]) -> Dict[str, Any]:
    folder = "/lib/modules/{}/".format(os.uname().release)
    builtin = set(module_names(files.text(folder + "modules.builtin", 1 << 20)))
    loadable = set(module_names(files.text(folder + "modules.dep", 8 << 20)))
    loaded = {line.split()[0] for line in files.text("/proc/modules", 1 << 20).splitlines() if line.split()}
    devices = {plain(word) for word in files.text("/proc/misc").split()}
    return {
        name: {
            "state": state(name, name in loaded, name in builtin, name in devices),
            "available": name in builtin or name in loadable,
            "params": parameters(name),
            "users": users(name),
        }
        for name in sorted(names)
    }


def state(name: str, loaded: bool, builtin: bool, device: bool) -> str:
    """Only a loaded module has an initstate. A builtin one shows by its parameters or by its device."""
    if loaded or os.path.exists("/sys/module/{}/initstate".format(name)):
        return "loaded"
    if builtin or device or os.path.isdir("/sys/module/" + name):
        return "builtin"
    return "absent"


def users(name: str) -> int:
    """What uses a module beside other modules: guests, open devices. The kernel unloads none that has a user."""
    holders = glob.glob("/sys/module/{}/holders/*".format(name))
    return max(int(files.text("/sys/module/{}/refcnt".format(name)).strip() or 0) - len(holders), 0)


def module_names(listing: str) -> List[str]:
    """Names in modules.dep ("kernel/a/b.ko.xz: ...") or modules.builtin ("kernel/a/b.ko")."""
    return [plain(name) for name in re.findall(r"^\S*?([^/\s]+)\.ko(?:\.\w+)?(?::|$)", listing, re.MULTILINE)]


def parameters(name: str) -> Dict[str, str]:
    paths = glob.glob("/sys/module/{}/parameters/*".format(name))
    return {os.path.basename(path): files.text(path, 4096).strip() for path in paths}


def configured(dropins: Iterable[Tuple[str, str]], cmdline: str) -> Tuple[Options, Set[str]]:
    """Options and blacklisted names as modprobe(8) will see them. A later value wins; the command line comes last."""
    options: Options = {}
    blacklisted = set()
    for _, content in dropins:
        for line in content.replace("\\\n", " ").splitlines():
            words = line.split()
            if (len(words) >= 2 and words[0] == "blacklist") or (
                len(words) >= 3 and words[0] == "install" and os.path.basename(words[2]) in ("false", "true")
            ):
                blacklisted.add(plain(words[1]))
            elif len(words) >= 3 and words[0] == "options":
                options.setdefault(plain(words[1]), {}).update(pair(word) for word in words[2:])
    for word in split(cmdline):
        found = re.match(r"([\w-]+)\.(\w+)(?:=(.*))?$", word)
        if found and found.group(1) not in ("modprobe", "systemd"):
            options.setdefault(plain(found.group(1)), {})[found.group(2)] = found.group(3) or ""
        if word.startswith(("modprobe.blacklist=", "module_blacklist=")):
            blacklisted.update(plain(name) for name in word.split("=", 1)[1].split(","))
    return options, blacklisted


def load_at_boot(dropins: Iterable[Tuple[str, str]], etc_modules: str, cmdline: str) -> List[str]:
    """Modules that modules-load.d(5), /etc/modules or modules_load= bring in."""
    lines = [line.strip() for _, content in dropins for line in content.splitlines()]
    lines += [line.split()[0] for line in etc_modules.splitlines() if line.split()]
    for word in split(cmdline):
        if re.match(r"modules[-_]load=", word):
            lines += word.split("=", 1)[1].split(",")
    return sorted({plain(line) for line in lines if line and line[0] not in "#;"})


def pair(word: str) -> Tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value.strip('"')


def split(cmdline: str) -> List[str]:
    try:
        return shlex.split(cmdline)
    except ValueError:  # a lone quote
        return cmdline.split()


def can_load() -> bool:
    """This process may load modules, and the kernel has not been closed for them."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", files.text("/proc/self/status"), re.MULTILINE)
    capable = bool(found and int(found.group(1), 16) & CAP_SYS_MODULE)
    closed = files.text("/proc/sys/kernel/modules_disabled").strip() == "1"
    return capable and not closed and os.path.exists("/proc/modules")
