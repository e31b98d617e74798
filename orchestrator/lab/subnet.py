"""A private subnet that collides with nothing that this machine knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from orchestrator.errors import LabError
from orchestrator.lab.command import run

__all__ = ["CANDIDATES", "choose", "collision", "in_use", "resolver"]

CANDIDATES: tuple[IPv4Network, ...] = tuple(
    IPv4Network(f"{prefix}.{third}.0/24")
    for prefix, thirds in (("10.213", range(64)), ("172.29", range(64, 96)), ("192.168", range(200, 232)))
    for third in thirds
)
"""Tried in this order; of all three private ranges, away from what libvirt, Docker and home routers take."""

_TUNNEL_BITS = 8
"""A shorter prefix is a default route in pieces (a VPN's 0.0.0.0/1 and 128.0.0.0/1), not a network to keep off."""


def choose(used: Iterable[IPv4Network]) -> IPv4Network:
    """The first candidate that overlaps nothing in use."""
    taken = tuple(used)
    for candidate in CANDIDATES:
        if collision(candidate, taken) is None:
            return candidate
    raise LabError(
        f"None of {len(CANDIDATES)} private subnets is free: routes, addresses or other labs of this machine "
        "overlap every one.",
        hint="See them with: ip route show table all. Remove a route or a lab that is not needed.",
    )


def collision(own: IPv4Network, used: Iterable[IPv4Network]) -> IPv4Network | None:
    """The network in use that a subnet overlaps."""
    return next((other for other in used if other.prefixlen >= _TUNNEL_BITS and other.overlaps(own)), None)


def in_use() -> tuple[IPv4Network, ...]:
    """Networks of all routes in all tables, of all addresses, and the name servers."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    links = json.loads(run(["ip", "-json", "-4", "address"]) or "[]")
    return (*of_routes(routes), *of_links(links), *map(IPv4Network, _nameservers(resolver())))


def of_routes(routes: Iterable[dict[str, Any]]) -> Iterator[IPv4Network]:
    """From `ip -json route`."""
    for route in routes:
        if route["dst"] != "default":
            yield IPv4Network(route["dst"], strict=False)


def of_links(links: Iterable[dict[str, Any]]) -> Iterator[IPv4Network]:
    """From `ip -json address`."""
    for link in links:
        for address in link.get("addr_info", ()):
            if "local" in address:
                yield IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False)


def resolver(etc: Path = Path("/etc/resolv.conf"), upstream: Path = Path("/run/systemd/resolve/resolv.conf")) -> str:
    """The resolv.conf(5) that means the same in a host: not the one that names a stub on this machine."""
    text = etc.read_text(errors="replace") if etc.exists() else ""
    if upstream.exists() and all(server.is_loopback for server in _nameservers(text)):
        return upstream.read_text(errors="replace")
    return text


def _nameservers(text: str) -> tuple[IPv4Address, ...]:
    """IPv4 name servers of a resolv.conf(5)."""
    words = (line.split() for line in text.splitlines())
    return tuple(IPv4Address(w[1]) for w in words if len(w) > 1 and w[0] == "nameserver" and _is_ipv4(w[1]))


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
