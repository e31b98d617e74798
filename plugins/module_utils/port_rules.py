"""Which ports of a host are open to whom, in the words of nftables and firewalld.

Only connections to the host itself are meant, and of those only the ones to the ports that are named here. Everything
else, ssh first of all, is left to whoever rules over it today: a table of nftables can only forbid, since an accept
ends the search in its own table and a drop ends it everywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

TABLE = "kvmfleet"
RULES_FILE = "/etc/kvmfleet/firewall.nft"
OPENRC_FILE = "/etc/nftables.d/kvmfleet.nft"  # which Alpine's /etc/nftables.nft includes
POLICY_FILE = "/etc/firewalld/policies/kvmfleet.xml"
HEADER = "Written by kvmfleet, role libvirt_security. Changes made here are lost."
NEW = "tcp.flags != ack,fin,rst,syn accept"


class RulesError(ValueError):
    """A source that is no network or a port that is none; the message says which, and how one looks."""


def guard(sources: Iterable[Any], opened: Iterable[Any], closed: Iterable[Any]) -> dict[str, Any]:
    """The rules in one form: networks without overlaps and ports as ranges without overlaps, all as strings.

    `opened` are for the sources alone, `closed` for nobody but the host itself.

    Raises:
        RulesError: one of them makes no sense.
    """
    networks = [_network(source) for source in sources]
    openings = _ports(opened)
    return {
        "sources4": _collapsed([network for network in networks if network.version == 4]),
        "sources6": _collapsed([network for network in networks if network.version == 6]),
        "opened": _spans(openings),
        "closed": _spans(_ports(closed) - openings),
    }


def _network(text: Any) -> Any:
    try:
        return ipaddress.ip_network(str(text))
    except ValueError as error:
        raise RulesError(f"{text} is no network ({error}): they look like 192.0.2.0/24 or 2001:db8::/64.") from error


def _collapsed(networks: Any) -> list[str]:
    """A single address is written without its length, as nft prints it."""
    return [
        str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
        for network in ipaddress.collapse_addresses(networks)
    ]


def _ports(spans: Iterable[Any]) -> set[int]:
    ports: set[int] = set()
    for span in spans:
        first, dash, last = str(span).partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RulesError(f"{span} is no port: they look like 16514 or 49152-49215.")
        begin, end = int(first), int(last) if dash else int(first)
        if not 0 < begin <= end < 65536:
            raise RulesError(f"{span} is no port: they are between 1 and 65535, the lower one first.")
        ports.update(range(begin, end + 1))
    return ports


def _spans(ports: set[int]) -> list[str]:
    spans: list[list[int]] = []
    for port in sorted(ports):
        if spans and spans[-1][1] == port - 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]


def covers(spans: Iterable[str], port: int) -> bool:
    return port in _ports(spans)


def place(backend: str, *, systemd: bool) -> str:
    """The file that holds the rules."""
    return POLICY_FILE if backend == "firewalld" else RULES_FILE if systemd else OPENRC_FILE


# --- nftables


SETS = {"sources4": "ipv4_addr", "sources6": "ipv6_addr", "opened": "inet_service", "closed": "inet_service"}
RULES = (
    # as it is written, and as `summary` has it
    ('iifname "lo" accept', "iifname == lo accept"),
    # an answer to a connection that this host began may come to a port of ours, which is its own end
    ("tcp flags & (fin | syn | rst | ack) != syn accept", NEW),
    ("tcp dport @opened ip saddr @sources4 accept", "tcp.dport == @opened, ip.saddr == @sources4 accept"),
    ("tcp dport @opened ip6 saddr @sources6 accept", "tcp.dport == @opened, ip6.saddr == @sources6 accept"),
    ("tcp dport @opened drop", "tcp.dport == @opened drop"),
    ("tcp dport @closed drop", "tcp.dport == @closed drop"),
)


def table(rules: Mapping[str, list[str]]) -> str:
    """A file for `nft --file` that puts the table in place of an older one, in one step."""
    lines = [f"# {HEADER}", f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for name, kind in SETS.items():
        elements = f" elements = {{ {', '.join(rules[name])} }};" if rules[name] else ""
        lines.append(f"\tset {name} {{ type {kind}; flags interval;{elements} }}")
    lines += ["\tchain input {", "\t\ttype filter hook input priority -10; policy accept;"]
    lines += [f"\t\t{written}" for written, _ in RULES]
    return "\n".join([*lines, "\t}", "}", ""])


def promised(rules: Mapping[str, list[str]]) -> dict[str, Any]:
    """What `summary` says of the table when it is live."""
    return {"sets": {name: sorted(rules[name]) for name in SETS}, "rules": [said for _, said in RULES]}


def summary(listing: Any) -> dict[str, Any]:
    """What `nft --json list table` says: the elements of the sets, and one line a rule. Versions of nft nest alike
    things differently, so only the words count."""
    sets: dict[str, list[str]] = {}
    rules: list[str] = []
    for entry in listing.get("nftables", []):
        if "set" in entry:
            sets[entry["set"]["name"]] = sorted(_element(item) for item in entry["set"].get("elem", []))
        elif "chain" in entry and (entry["chain"].get("hook"), entry["chain"].get("policy")) != ("input", "accept"):
            rules.append(f"chain {entry['chain'].get('name')}")
        elif "rule" in entry:
            matches = [_match(part["match"]) for part in entry["rule"]["expr"] if "match" in part]
            verdicts = [next(iter(part)) for part in entry["rule"]["expr"] if "match" not in part]
            rules.append(f"{', '.join(matches)} {' '.join(verdicts)}".strip())
    return {"sets": sets, "rules": rules}


def _element(item: Any) -> str:
    if isinstance(item, dict) and "prefix" in item:
        return f"{item['prefix']['addr']}/{item['prefix']['len']}"
    if isinstance(item, dict) and "range" in item:
        return f"{item['range'][0]}-{item['range'][1]}"
    if isinstance(item, dict) and "elem" in item:
        return _element(item["elem"].get("val"))
    return str(item)


def _match(match: Any) -> str:
    words = sorted(_words(match["left"]) | _words(match["right"]))
    return f"{_field(match['left'])} {match['op']} {','.join(words)}"


def _field(left: Any) -> str:
    """tcp.dport, iifname: what is compared."""
    if isinstance(left, dict):
        for key, value in left.items():
            if key == "payload":
                return f"{value.get('protocol')}.{value.get('field')}"
            if key == "meta":
                return str(value.get("key"))
            found = _field(value)
            if found:
                return found
    if isinstance(left, list):
        return next((found for found in map(_field, left) if found), "")
    return ""


def _words(part: Any) -> set[str]:
    if isinstance(part, dict):
        return {word for key, value in part.items() if key not in ("payload", "meta") for word in _words(value)}
    if isinstance(part, list):
        return {word for value in part for word in _words(value)}
    return {str(part)}


# --- firewalld


def policy(rules: Mapping[str, list[str]]) -> str:
    """A policy of firewalld.policies(5) for what reaches the host, before its zones have a say."""
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        '<policy priority="-10" target="CONTINUE">',
        f"  <short>{TABLE}</short>",
        f"  <description>{HEADER}</description>",
        '  <ingress-zone name="ANY"/>',
        '  <egress-zone name="HOST"/>',
    ]
    for family, source, port, verdict in _rich(rules):
        where = f" family={quoteattr(family)}" if family else ""
        origin = f"<source address={quoteattr(source)}/>" if source else ""
        order = "-2" if source else "-1"
        lines.append(
            f'  <rule{where} priority="{order}">{origin}<port port={quoteattr(port)} protocol="tcp"/>'
            f"<{verdict}/></rule>"
        )
    return "\n".join([*lines, "</policy>", ""])


def rich_rules(rules: Mapping[str, list[str]]) -> list[str]:
    """The same as `firewall-cmd --list-rich-rules` prints them, sorted."""
    return sorted(
        f'rule priority="{"-2" if source else "-1"}"'
        + (f' family="{family}" source address="{source}"' if source else "")
        + f' port port="{port}" protocol="tcp" {verdict}'
        for family, source, port, verdict in _rich(rules)
    )


def _rich(rules: Mapping[str, list[str]]) -> list[tuple[str, str, str, str]]:
    """Family, source, port and verdict."""
    sources = [("ipv4", source) for source in rules["sources4"]] + [("ipv6", source) for source in rules["sources6"]]
    accepts = [(family, source, port, "accept") for family, source in sources for port in rules["opened"]]
    return accepts + [("", "", port, "drop") for port in [*rules["opened"], *rules["closed"]]]


# --- ufw


def ufw_rules(rules: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Ports and source of every rule that lets a source in; ufw itself drops the rest."""
    ports = ",".join(span.replace("-", ":") for span in rules["opened"])
    return [(ports, source) for source in [*rules["sources4"], *rules["sources6"]]] if ports else []
