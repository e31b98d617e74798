"""One spelling for the XML of a libvirt network, so that what libvirt adds by itself is no difference.

The module on the host decides by it whether to change a network, and the collector tells by it what a network is:
orchestrator/collector/network_xml.py is a link to this file. So: the syntax of Python 3.6, no import of ours.
"""

import ipaddress
import xml.etree.ElementTree as ElementTree
from typing import List, Optional

# What libvirt writes where nothing was said: path below <network>, attribute, value.
DEFAULTS = (
    ("bridge", "stp", "on"),
    ("bridge", "delay", "0"),
    ("domain", "localOnly", "no"),
    ("dns", "enable", "yes"),
    ("dns", "forwardPlainNames", "yes"),
    ("ip", "family", "ipv4"),
    ("ip", "localPtr", "no"),
    ("portgroup", "default", "no"),
    ("vlan", "trunk", "yes"),
)
# Counters and what only says which driver is behind it.
NOISE = (("network", "connections"), ("interface", "connections"), ("forward", "driver"), ("forward", "managed"))


class NetworkXmlError(ValueError):
    """The text is no <network>."""


def parse(text: str) -> ElementTree.Element:
    """The element <network>. Raises NetworkXmlError."""
    try:
        root = ElementTree.fromstring(text.strip())
    except (ElementTree.ParseError, ValueError) as error:
        raise NetworkXmlError("it is no XML: {}".format(error)) from error
    if root.tag != "network":
        raise NetworkXmlError("it is a <{}>, not a <network>".format(root.tag))
    return root


def normal(text: str, wished: Optional[str] = None) -> str:
    """Indented lines, sorted, without defaults. With `wished`, also without what libvirt chose because that is silent.

    Raises NetworkXmlError.
    """
    root = parse(text)
    if wished is not None:
        _forget_choices(root, parse(wished))
    for element in root.findall("uuid"):
        root.remove(element)
    _plain(root)
    return "\n".join(_lines(root, 0)) + "\n"


def _forget_choices(root: ElementTree.Element, wished: ElementTree.Element) -> None:
    for element in root.findall("mac") if wished.find("mac") is None else []:
        root.remove(element)
    bridge, wished_bridge = root.find("bridge"), wished.find("bridge")
    if bridge is not None and (wished_bridge is None or not wished_bridge.get("name")):
        bridge.attrib.pop("name", None)


def _plain(element: ElementTree.Element) -> None:
    for tag, attribute in NOISE:
        if element.tag == tag:
            element.attrib.pop(attribute, None)
    if element.tag == "ip":
        _plain_address(element)
    if element.tag == "forward":
        _plain_device(element)
    if element.tag == "mac" and element.get("address"):
        element.set("address", str(element.get("address")).lower())
    if element.tag == "host" and element.get("mac"):
        element.set("mac", str(element.get("mac")).lower())
    for tag, attribute, value in DEFAULTS:
        if element.tag == tag and element.get(attribute) == value:
            del element.attrib[attribute]
    for child in list(element):
        _plain(child)
        if _says_nothing(element, child):
            element.remove(child)
    element.text = (element.text or "").strip()


def _plain_address(element: ElementTree.Element) -> None:
    """netmask='255.255.255.0' and prefix='24' are the same."""
    netmask = element.attrib.pop("netmask", "")
    size = netmask or element.get("prefix") or ""
    try:
        address = ipaddress.ip_interface(str(element.get("address")) + ("/" + size if size else ""))
    except ValueError:
        return
    element.set("address", str(address.ip))
    element.set("prefix", str(address.network.prefixlen))


def _plain_device(forward: ElementTree.Element) -> None:
    """Without a mode it is nat. libvirt names the first interface as the device, and a device as the one interface."""
    forward.set("mode", forward.get("mode") or "nat")
    interfaces = forward.findall("interface")
    if interfaces:
        forward.attrib.pop("dev", None)
    if len(interfaces) == 1 and interfaces[0].get("dev"):
        forward.set("dev", str(interfaces[0].get("dev")))
        forward.remove(interfaces[0])


def _says_nothing(parent: ElementTree.Element, child: ElementTree.Element) -> bool:
    """Elements that libvirt adds, and that are the same as their absence."""
    if parent.tag == "nat" and child.tag == "port":
        return child.attrib == {"start": "1024", "end": "65535"}
    if (parent.tag, child.tag) == ("network", "bridge"):
        return not child.attrib
    return child.tag in ("nat", "dns", "dhcp", "parameters") and not child.attrib and not len(child)


def _lines(element: ElementTree.Element, depth: int) -> List[str]:
    """One line an element. Where libvirt wants an order, it keeps it by itself."""
    pad = "  " * depth
    words = [element.tag] + ['{}="{}"'.format(key, _quoted(value)) for key, value in sorted(element.attrib.items())]
    opened = " ".join(words)
    if not len(element):
        text = _quoted(element.text or "")
        return [pad + ("<{}>{}</{}>".format(opened, text, element.tag) if text else "<{}/>".format(opened))]
    inner = sorted(_lines(child, depth + 1) for child in element)
    return [pad + "<" + opened + ">"] + [line for lines in inner for line in lines] + [pad + "</" + element.tag + ">"]


def _quoted(text: str) -> str:
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "&#10;")):
        text = text.replace(character, name)
    return text
