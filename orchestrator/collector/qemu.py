"""The emulator and what it needs beside it."""

import glob
import json
import os
import re
import time
from typing import Any, Callable, Dict, List, Optional

from . import files, kvm, shell
from .contract import Contract

FOLDERS = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
OTHERS = ("tcg", "xen", "mshv")  # accelerators of Linux beside KVM; to list what it has, QEMU loads all its modules
QUESTIONS = b"".join(
    json.dumps(question).encode("ascii") + b"\n"
    for question in (
        {"execute": "qmp_capabilities"},
        {"execute": "query-version"},
        {"execute": "query-kvm"},
        *(
            {"execute": "qom-list-properties", "arguments": {"typename": name + "-accel"}, "id": name}
            for name in OTHERS
        ),
        {"execute": "quit"},
    )
)


def look(contract: Contract, node: Dict[str, Any]) -> Dict[str, Any]:
    """`node` is /dev/kvm, as the section kvm found it. A QEMU that gets KVM tells everything at once."""
    binary = find(contract.text("qemu.binary"))
    usable = bool(binary and node.get("exists") and not node.get("errno"))
    said = accel(binary, kvm.qemu_user(contract) if os.geteuid() == 0 else None) if usable else {}
    accelerators = said.pop("accelerators", [])
    found: Dict[str, Any] = {
        "binary": binary,
        "img": shell.which(contract.text("qemu.img", "qemu-img")),
        "firmware": firmware(os.uname().machine),
        "swtpm": shell.which("swtpm"),
    }
    if accelerators:
        found.update(version=said.get("version", ""), accelerators=accelerators)
    elif binary:
        found.update(ask(binary))
    if found["swtpm"]:
        # "TPM emulator version 0.7.1, Copyright ..."
        found["swtpm_version"] = version(shell.run([found["swtpm"], "--version"]).out)
    if usable and "kvm" in found.get("accelerators", []):
        found["accel"] = said
    return found


def find(wanted: str) -> str:
    """The contract's binary, or nothing; without a contract the first of those that distributions install."""
    machine = os.uname().machine
    known = ["/usr/libexec/qemu-kvm", "qemu-system-" + machine, "qemu-kvm", "kvm"]
    found = [shell.which(name) for name in ([wanted] if wanted else known)]
    return next((path for path in found if path), "")


def ask(binary: str) -> Dict[str, Any]:
    """Version and accelerators. A binary that does not start says why on stderr."""
    try:
        with shell.ahead([binary, "--version"], [binary, "-accel", "help"]) as pending:
            shown, offered = [one.result() for one in pending]
    except OSError as error:
        return {"error": str(error)}
    if shown.code != 0:
        return {"error": shown.err.strip() or "exit {}".format(shown.code)}
    return {
        "version": version(shown.out),
        # one name a line under "Accelerators supported in QEMU binary:"
        "accelerators": sorted(set(re.findall(r"^(\w+)$", offered.out, re.MULTILINE))),
    }


def accel(binary: str, user: Optional[kvm.User], timeout_s: float = 8.0) -> Dict[str, Any]:
    """A QEMU without a machine, asked over QMP whether it uses KVM; as the user that guests run as."""
    argv = [binary, "-machine", "none,accel=kvm", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    found: Dict[str, Any] = {"user": user.name if user else ""}
    begun = time.monotonic()
    try:
        said = shell.talk(argv, QUESTIONS, timeout_s, becoming(user) if user else None)
    except OSError as error:
        return dict(found, outcome="broken", detail=str(error))
    return dict(found, duration_ms=(time.monotonic() - begun) * 1000, **answers(said))


def becoming(user: kvm.User) -> Callable[[], None]:
    def become() -> None:
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)

    return become


def answers(said: shell.Result) -> Dict[str, Any]:
    """Of query-version, query-kvm and for OTHERS; or why there is none, which QEMU says on stderr."""
    found: Dict[str, Any] = {}
    there: Dict[str, bool] = {}
    for line in said.out.splitlines():
        try:
            reply = json.loads(line)
            if "id" in reply and ("return" in reply or reply["error"]["class"] == "DeviceNotFound"):
                there[reply["id"]] = "return" in reply
            answer = reply["return"]
            if "qemu" in answer:
                found["version"] = "{major}.{minor}.{micro}".format(**answer["qemu"])
            if "enabled" in answer:
                found["enabled"] = bool(answer["enabled"])
        except (ValueError, KeyError, TypeError):  # the greeting, an event, an error
            continue
    if found.get("enabled") and set(there) == set(OTHERS):
        found["accelerators"] = sorted(["kvm", *(name for name in OTHERS if there[name])])
    if "enabled" in found:
        return dict(found, outcome="works" if found["enabled"] else "broken", detail="")
    lines = [line.strip() for line in said.err.splitlines() if line.strip()]
    return dict(found, outcome="broken", detail=" ".join(lines)[-500:] or "exit {}".format(said.code))


def version(text: str) -> str:
    found = re.search(r"version (\d[\w.+~-]*)", text)
    return found.group(1).rstrip(".,") if found else ""


def firmware(machine: str) -> List[str]:
    """Names of the firmware descriptors (QEMU's docs/interop/firmware.json) that fit this architecture."""
    paths = [path for folder in FOLDERS for path in glob.glob(folder + "/*.json")]
    return sorted({os.path.basename(path)[:-5] for path in paths if machine in architectures(files.text(path))})


def architectures(descriptor: str) -> List[str]:
    try:
        return [target["architecture"] for target in json.loads(descriptor)["targets"]]
    except (ValueError, KeyError, TypeError):
        return []
