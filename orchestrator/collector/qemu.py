"""The emulator and what it needs beside it."""

import glob
import json
import os
import re
from typing import Any, Dict, List

from . import files, shell
from .contract import Contract

FOLDERS = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")


def look(contract: Contract) -> Dict[str, Any]:
    binary = find(contract.text("qemu.binary"))
    found: Dict[str, Any] = {
        "binary": binary,
        "img": shell.which(contract.text("qemu.img", "qemu-img")),
        "firmware": firmware(os.uname().machine),
        "swtpm": shell.which("swtpm"),
    }
    if binary:
        found.update(ask(binary))
    if found["swtpm"]:
        # "TPM emulator version 0.7.1, Copyright ..."
        found["swtpm_version"] = version(shell.run([found["swtpm"], "--version"]).out)
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
        shown = shell.run([binary, "--version"])
        offered = shell.run([binary, "-accel", "help"])
    except OSError as error:
        return {"error": str(error)}
    if shown.code != 0:
        return {"error": shown.err.strip() or "exit {}".format(shown.code)}
    return {
        "version": version(shown.out),
        # one name a line under "Accelerators supported in QEMU binary:"
        "accelerators": sorted(set(re.findall(r"^(\w+)$", offered.out, re.MULTILINE))),
    }


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
