"""Storage pools as an inventory declares them: what is wrong with a list of them, and what libvirt is told about each.

Nothing here touches a host. What libvirt is told and what it says are compared as facts: a flat table from the place in
the XML to its value, such as "source/host@name" -> "nas1".
"""

from __future__ import annotations

import base64
import binascii
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Pool = Mapping[str, Any]
"""One entry of libvirt_storage_pools."""

Facts = dict[str, str]


class Kind(NamedTuple):
    """One type of pool: the fields of `source` that it needs and that it may have, words separated by spaces."""

    needs: str = ""
    may_have: str = ""
    format: str = ""  # what libvirt assumes
    path: str = ""  # where volumes appear when nobody says where; {} is the name of the source
    files: bool = False  # volumes are files in a folder of the host
    named: bool = False  # a source without a name has that of the pool


KINDS = {
    "dir": Kind(files=True),
    "fs": Kind("devices", "format", format="auto", files=True),
    "netfs": Kind("hosts dir", "format protocol_version", format="auto", files=True),
    "logical": Kind("", "name devices format", format="lvm2", path="/dev/{}", named=True),
    "iscsi": Kind("hosts devices", "initiator username secret", path="/dev/disk/by-path"),
    "rbd": Kind("hosts", "name username secret", named=True),
    "zfs": Kind("", "name devices", path="/dev/zvol/{}", named=True),
}
BUILDABLE = ("logical", "zfs")
AUTH = {"iscsi": "chap", "rbd": "ceph"}
SECRET_OF = {"iscsi": "iscsi", "rbd": "ceph"}  # type of pool -> type of its secret
VOLATILE = ("name", "uuid", "capacity", "allocation", "available")
OF_THE_FOLDER = ("permissions", "timestamps")  # libvirt says here what it found on the disk

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
PLAIN = re.compile(r"[\w./+@:=,~ -]+")
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?")
# Pools there would hide or change what the system itself needs.
NO_POOLS_IN = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var")
NO_POOLS_BELOW = ("/dev", "/etc", "/proc", "/sys")


# --- what libvirt is told


def kind(pool: Pool) -> str:
    """The type of a pool, also of one that is given as XML."""
    if not pool.get("xml"):
        return str(pool.get("type") or "")
    return parsed(pool["xml"]).get("type", "")


def parsed(text: str) -> ElementTree.Element:
    """Raises ValueError where it is no XML."""
    try:
        return ElementTree.fromstring(text.strip())
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error


def element(pool: Pool) -> ElementTree.Element:
    """What libvirt is told about a pool that has nothing wrong."""
    if pool.get("xml"):
        return parsed(pool["xml"])
    type, source = str(pool["type"]), pool.get("source") or {}
    root = ElementTree.Element("pool", {"type": type})
    ElementTree.SubElement(root, "name").text = pool["name"]
    told = ElementTree.SubElement(root, "source")
    for address in source.get("hosts") or []:
        found = HOST.fullmatch(address)
        given = found.groupdict() if found else {"name": address}
        attributes = {"name": given["name"].strip("[]"), "port": given.get("port")}
        ElementTree.SubElement(told, "host", {key: value for key, value in attributes.items() if value})
    for device in source.get("devices") or []:
        ElementTree.SubElement(told, "device", {"path": device})
    if source.get("dir"):
        ElementTree.SubElement(told, "dir", {"path": clean(source["dir"])})
    if source.get("initiator"):
        initiator = ElementTree.SubElement(told, "initiator")
        ElementTree.SubElement(initiator, "iqn", {"name": source["initiator"]})
    if source.get("username"):
        auth = ElementTree.SubElement(told, "auth", {"type": AUTH[type], "username": source["username"]})
        ElementTree.SubElement(auth, "secret", {"usage": source["secret"]})
    if KINDS[type].named:
        ElementTree.SubElement(told, "name").text = source_name(pool)
    if source.get("format"):
        ElementTree.SubElement(told, "format", {"type": source["format"]})
    if source.get("protocol_version"):
        ElementTree.SubElement(told, "protocol", {"ver": str(source["protocol_version"])})
    if path(pool):
        ElementTree.SubElement(ElementTree.SubElement(root, "target"), "path").text = path(pool)
    return root


def source_name(pool: Pool) -> str:
    """The volume group, zpool or Ceph pool."""
    return str((pool.get("source") or {}).get("name") or pool["name"])


def path(pool: Pool) -> str:
    """Where the volumes appear; "" for a pool that has no such place."""
    if pool.get("xml"):
        found = facts(element(pool))
        type, name = found["type"], found.get("source/name", str(pool["name"]))
        given = found.get("target/path", "")
    else:
        type, name, given = str(pool["type"]), source_name(pool), str(pool.get("path") or "")
    if type == "rbd":
        return ""
    default = KINDS[type].path if type in KINDS else ""
    # libvirt itself overrides what is said about these two
    return default.format(name) if type in BUILDABLE or not given else clean(given)


def clean(text: str) -> str:
    """A path as libvirt keeps it: without a slash at the end, or two in a row."""
    return re.sub(r"/+", "/", text).rstrip("/") or "/"


def facts(root: ElementTree.Element) -> Facts:
    """What a pool is, from its XML, without what changes by itself. orchestrator/collector/storage.py does the same."""
    found = {"type": root.get("type", "")}
    for child in root:
        if child.tag not in VOLATILE:
            _walk(child, child.tag, found)
    return found


def _walk(node: ElementTree.Element, place: str, found: Facts) -> None:
    text = (node.text or "").strip()
    if text:
        found[place] = text
    for key, value in node.attrib.items():
        found[f"{place}@{key}"] = value
    seen: dict[str, int] = {}
    for child in node:
        if place == "target" and child.tag in OF_THE_FOLDER:
            continue
        number = seen[child.tag] = seen.get(child.tag, 0) + 1
        _walk(child, f"{place}/{child.tag}" + (f"[{number}]" if number > 1 else ""), found)


def wanted(pool: Pool) -> Facts:
    """The facts of a declared pool as libvirt will say them: with what it adds by itself."""
    found = facts(element(pool))
    known = KINDS.get(found["type"], Kind())
    if known.format:
        found.setdefault("source/format@type", known.format)
    if known.named:
        found.setdefault("source/name", str(pool["name"]))
    if path(pool):
        found["target/path"] = path(pool)
    if "source/dir@path" in found:
        found["source/dir@path"] = clean(found["source/dir@path"])
    return found


def contract(pools: Iterable[Pool]) -> dict[str, Any]:
    """What the contract says about each pool, by name. No secret is among the fields of a pool."""
    return {
        str(pool["name"]): {
            "type": kind(pool),
            "path": path(pool),
            "files": holds_files(pool),
            "facts": wanted(pool),
            "autostart": _answer(pool, "autostart"),
            "active": _answer(pool, "active"),
            "owner": str(pool.get("owner") or ""),
            "group": str(pool.get("group") or ""),
            "mode": int(pool["mode"], 8) if pool.get("mode") else None,
        }
        for pool in pools
    }


def _answer(pool: Pool, field: str) -> bool:
    value = pool.get(field)
    return value is None or bool(value)


def holds_files(pool: Pool) -> bool:
    """Whether volumes are files that QEMU finds below the path of the pool."""
    return KINDS.get(kind(pool), Kind()).files


def secret_bytes(secret: Mapping[str, Any]) -> bytes:
    """What libvirt is to keep: Ceph writes its keys in base64, iSCSI has passwords. Raises ValueError."""
    text = str(secret["value"])
    if secret["type"] != "ceph":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the value is not a Ceph key in base64, as `ceph auth get-key` prints it.") from None


# --- what is wrong


def problems(pools: Any, secrets: Any = ()) -> list[str]:
    """What is wrong with what was declared, one sentence each. No sentence holds the value of a secret."""
    found = [f"libvirt_storage_secrets: {text}" for text in _wrong_secrets(secrets)]
    for number, pool in enumerate(pools):
        title = pool.get("name") or f"number {number + 1}"
        wrong = [*_wrong(pool)]
        # the rest looks into fields that must be right for it
        found += [f"libvirt_storage_pools: {title}: {text}" for text in wrong or [*_wrong_secret(pool, secrets)]]
    if not found:
        found += [f"libvirt_storage_pools: {text}" for text in _clashes(pools)]
    return found


def _wrong_secrets(secrets: Any) -> Iterator[str]:
    seen = set()
    for secret in secrets:
        usage = secret["usage"]
        if not usage or re.search(r"[\x00-\x1f\x7f]", usage):
            yield "a usage must be a name on one line."
        if (secret["type"], usage) in seen:
            yield f"{usage} is there twice."
        seen.add((secret["type"], usage))
        if not secret.get("value"):
            yield f"{usage} has no value."
            continue
        try:
            secret_bytes(secret)
        except ValueError as error:
            yield f"{usage}: {error}"


def _wrong(pool: Pool) -> Iterator[str]:
    name = pool.get("name") or ""
    if not NAME.fullmatch(name):
        yield "a name has letters, digits and any of _ . + - and begins with a letter or digit."
    if pool.get("xml"):
        yield from _wrong_xml(pool)
        return
    type, source = pool.get("type") or "", pool.get("source") or {}
    if type not in KINDS:
        yield f"type {type or '(none)'} is none of {', '.join(KINDS)}. Others can be declared with `xml`."
        return
    known = KINDS[type]
    given = {key for key, value in source.items() if value not in (None, "", [])}
    lacking = [word for word in known.needs.split() if word not in given]
    if lacking:
        yield f"a pool of type {type} needs {' and '.join(f'source.{word}' for word in lacking)}."
    foreign = given - {*known.needs.split(), *known.may_have.split()}
    if foreign:
        yield f"a pool of type {type} has no {' or '.join(f'source.{word}' for word in sorted(foreign))}."
    if ("username" in given) != ("secret" in given):
        yield "source.username and source.secret belong together."
    if type in ("fs", "iscsi") and len(source.get("devices") or []) > 1:
        yield f"a pool of type {type} has one device."
    if type in ("netfs", "iscsi") and len(source.get("hosts") or []) > 1:
        yield f"a pool of type {type} has one host."
    for address in source.get("hosts") or []:
        if not HOST.fullmatch(address):
            yield f"{address} is no host: use a name, an address, or one of them with :port; IPv6 in brackets."
    if source.get("name") and not re.fullmatch(r"[\w.+/-]+", source["name"]):
        yield f"source.name {source['name']} is no name of a volume group, zpool or Ceph pool."
    if source.get("dir") and not source["dir"].startswith("/"):
        yield f"source.dir {source['dir']} is not absolute."
    yield from _wrong_path(type, pool.get("path") or "", path_of_source=known.path.format(source_name(pool)))
    yield from _wrong_folder(pool, files=known.files)
    if pool.get("build") and type not in BUILDABLE:
        yield f"build makes volume groups and zpools, nothing of type {type}."
    if pool.get("build") and type in BUILDABLE and "devices" not in given:
        yield "build needs source.devices."


def _wrong_xml(pool: Pool) -> Iterator[str]:
    others = [key for key in ("type", "path", "source") if pool.get(key)]
    if others:
        yield f"with xml, {' and '.join(others)} would not be read: take them out, or the xml."
    try:
        root = parsed(pool["xml"])
    except ValueError as error:
        yield f"xml is not well formed: {error}."
        return
    if root.tag != "pool" or not root.get("type"):
        yield "xml must be an element <pool type='…'>."
    elif root.findtext("name") != pool["name"]:
        yield f"xml is about a pool called {root.findtext('name')!r}: the names must be the same."
    elif root.find("uuid") is not None:
        yield "xml must have no uuid: libvirt chooses one for each host."
    elif holds_files(pool):
        yield from _wrong_path(root.get("type", ""), path(pool))
        yield from _wrong_folder(pool, files=True)
    if pool.get("build"):
        yield "build does not go with xml."


def _wrong_path(type: str, given: str, path_of_source: str = "") -> Iterator[str]:
    if type == "rbd":
        if given:
            yield "a pool of type rbd has no path."
        return
    if path_of_source and type in BUILDABLE:
        if given and clean(given) != path_of_source:
            yield f"path: its volumes appear in {path_of_source} and nowhere else. Leave path out."
        return
    if not given and not path_of_source:
        yield "it needs a path."
    elif given and not given.startswith("/"):
        yield f"path {given} is not absolute."
    elif given and (".." in given.split("/") or not PLAIN.fullmatch(given)):
        yield f"path {given} must be plain: no `..`, no quotes, nothing that a shell or a pattern reads otherwise."
    elif type in KINDS and KINDS[type].files:
        where = clean(given)
        if where in NO_POOLS_IN or any(where.startswith(top + "/") for top in NO_POOLS_BELOW):
            yield f"path {given} belongs to the system. Use a folder of its own, such as /srv/images."


def _wrong_folder(pool: Pool, *, files: bool) -> Iterator[str]:
    fields = [field for field in ("owner", "group", "mode") if pool.get(field) not in (None, "")]
    if fields and not files:
        yield f"{' and '.join(fields)} are about a folder, and this type of pool has none."
    mode = pool.get("mode")
    if mode not in (None, "") and not (isinstance(mode, str) and re.fullmatch(r"0?[0-7]{3,4}", mode)):
        yield f"mode {mode} must be octal and quoted, such as '0711'."
    for field in ("owner", "group"):
        if pool.get(field) and not re.fullmatch(r"[A-Za-z0-9_][\w.-]*\$?", str(pool[field])):
            yield f"{field} {pool[field]} is no name of an account."


def _wrong_secret(pool: Pool, secrets: Any) -> Iterator[str]:
    usage = (pool.get("source") or {}).get("secret")
    if not usage:
        return
    type = SECRET_OF[str(pool["type"])]
    others = [secret["type"] for secret in secrets if secret["usage"] == usage and secret["type"] != type]
    if others and not any(secret["usage"] == usage and secret["type"] == type for secret in secrets):
        yield f"secret {usage} is declared with type {others[0]}, and this pool needs one of type {type}."


def _clashes(pools: Any) -> Iterator[str]:
    names: set[str] = set()
    places: dict[str, str] = {}
    for pool in pools:
        if pool["name"] in names:
            yield f"{pool['name']} is there twice."
        names.add(pool["name"])
        place = path(pool)
        # all iSCSI targets of a host share one folder of links
        if not place or kind(pool) in ("iscsi", "scsi", "disk", "mpath"):
            continue
        for other, name in places.items():
            if place == other:
                yield f"{name} and {pool['name']} have one path, {place}."
            elif place.startswith(other + "/") or other.startswith(place + "/"):
                yield f"{name} and {pool['name']} lie in each other: {other} and {place}."
        places[place] = pool["name"]
