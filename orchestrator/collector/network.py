"""The networks of libvirt that the contract names, as they are defined and as they run; and the host's bridges."""

import os
import re
from typing import Any, Dict, List

from . import network_live, shell
from .contract import Contract
from .libvirt import URI
from .network_xml import NetworkXmlError, normal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
LISTED = re.compile(r" *(\S+) +(active|inactive) +(yes|no) +(yes|no) *$", re.MULTILINE)
DUMPED = re.compile(r"kvmfleet (configured|live) (\S+) *(<network.*?</network>)", re.DOTALL)


def look(contract: Contract, libvirt: Dict[str, Any]) -> Dict[str, Any]:
    """libvirt, as it was found, is asked for the networks of the contract if it answers; the system for what runs."""
    names = contract.names("bridges")
    return dict(of_libvirt(contract, libvirt), bridges=bridges(names), **network_live.look(names))


def bridges(names: List[str]) -> Dict[str, List[str]]:
    """Bridge -> what is at it; one that is not there is missing."""
    found = {}
    for name in names:
        ports = os.path.join(network_live.LINKS, name, "brif")
        if DEVICE.match(name) and os.path.isdir(ports):
            found[name] = sorted(os.listdir(ports))
    return found


def of_libvirt(contract: Contract, libvirt: Dict[str, Any]) -> Dict[str, Any]:
    """Its networks, or why it does not tell them."""
    names = [name for name in contract.names("networks") if NAME.match(name)][:128]
    if not names:
        return {}
    if not libvirt.get("connected"):
        return {"error": libvirt.get("error") or "libvirt was not reached"}
    answer = shell.run([shell.which("virsh"), "-q", "-c", contract.text("libvirt.uri", URI), questions(names)], 25)
    if "kvmfleet live" not in answer.out:
        return {"error": " ".join(answer.err.split()) or "exit {}".format(answer.code)}
    return {"networks": networks(names, answer.out)}


def questions(names: List[str]) -> str:
    """One virsh asks them all: an error ends none of the others."""
    asked = ["net-list --all"]
    for name in names:
        asked += ["echo kvmfleet configured {0}".format(name), "net-dumpxml {} --inactive".format(name)]
        asked += ["echo kvmfleet live {0}".format(name), "net-dumpxml {}".format(name)]
    return "; ".join(asked)


def networks(names: List[str], out: str) -> Dict[str, Any]:
    """Name -> what libvirt says; one that it does not know is missing."""
    dumped = {(kind, name): text for kind, name, text in DUMPED.findall(out)}
    found = {}
    for name, active, autostart, persistent in LISTED.findall(out.partition("kvmfleet")[0]):
        if name in names:
            found[name] = {
                "active": active == "active",
                "autostart": autostart == "yes",
                "configured": spelled(dumped.get(("configured", name), "")) if persistent == "yes" else "",
                "live": spelled(dumped.get(("live", name), "")) if active == "active" else "",
            }
    return found


def spelled(xml: str) -> str:
    """In one spelling; what is no XML as it is."""
    try:
        return normal(xml)
    except NetworkXmlError:
        return xml
