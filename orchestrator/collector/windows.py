"""What Windows asks of its host: a machine q35, firmware with secure boot, a TPM 2.0, enlightenments, drivers."""

import glob
import json
import os
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, Tuple

from . import files, qemu, shell
from .contract import Contract
from .libvirt import URI

DRIVERS = ("/usr/share/virtio-win/virtio-win.iso", "/var/lib/libvirt/images/virtio-win.iso")


def look(contract: Contract, found: Dict[str, Any]) -> Dict[str, Any]:
    """What libvirt says that QEMU can do here, and the files that it would use."""
    drivers = next((path for path in DRIVERS if os.path.isfile(path)), "")
    answer: Dict[str, Any] = {"enrolled": enrolled(os.uname().machine), "drivers": drivers}
    if not found.get("libvirt", {}).get("connected"):
        return dict(answer, error="libvirt does not answer")
    kind = "kvm" if "kvm" in found["libvirt"].get("domain_types", []) else "qemu"
    text, error = heard(contract, found["libvirt"], kind)
    if not text:
        return dict(answer, error=error.strip().replace("error: ", "").replace("\n", ": "))
    return dict(answer, **capabilities(text))


def heard(contract: Contract, libvirt: Dict[str, Any], kind: str) -> Tuple[str, str]:
    """The document, or why there is none: what the section libvirt heard, if that is an answer for this kind."""
    text, error = libvirt.get("of_guests", ""), libvirt.get("of_guests_error", "")
    if "<domain>{}</domain>".format(kind) in text or (error and not text):
        return text, error
    virsh = [shell.which("virsh"), "-c", contract.text("libvirt.uri", URI)]
    said = shell.run([*virsh, "domcapabilities", "--machine", "q35", "--virttype", kind], 25)
    return ("", said.err) if said.code else (said.out, "")


def capabilities(text: str) -> Dict[str, Any]:
    """The parts of domcapabilities that matter. libvirt before 9.2 does not tell about enlightenments: no list then."""
    root = ElementTree.fromstring(text.strip())
    return {
        "machine": root.findtext("machine") or "",
        "firmware": values(root, "os", "firmware"),
        "secure": values(root, "os/loader", "secure"),
        "tpm_models": values(root, "devices/tpm", "model"),
        "tpm_backends": values(root, "devices/tpm", "backendModel"),
        "tpm_versions": values(root, "devices/tpm", "backendVersion"),
        "tells_hyperv": root.find("features/hyperv") is not None,
        "hyperv": values(root, "features/hyperv", "features"),
        "cpu_modes": [mode.get("name", "") for mode in root.findall("cpu/mode[@supported='yes']")],
    }


def values(root: ElementTree.Element, path: str, name: str) -> List[str]:
    """One enumeration, empty where the element is absent or not supported."""
    element = root.find(path)
    if element is None or element.get("supported") == "no":
        return []
    return [value.text or "" for value in element.findall("enum[@name='{}']/value".format(name))]


def enrolled(machine: str) -> List[str]:
    """Names of firmware descriptors with secure boot and Microsoft's keys, whose files are there."""
    paths = [path for folder in qemu.FOLDERS for path in glob.glob(folder + "/*.json")]
    return sorted({os.path.basename(path)[:-5] for path in paths if has_keys(files.text(path), machine)})


def has_keys(descriptor: str, machine: str) -> bool:
    try:
        found = json.loads(descriptor)
        here = any(target["architecture"] == machine for target in found["targets"])
        parts = [found["mapping"][part]["filename"] for part in ("executable", "nvram-template")]
        return here and {"secure-boot", "enrolled-keys"} <= set(found["features"]) and all(map(os.path.isfile, parts))
    except (ValueError, KeyError, TypeError):
        return False
