"""The network of a lab: a bridge, masquerading, and forwarding as far as the hosts need it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from orchestrator.errors import LabError
from orchestrator.lab import subnet, tree
from orchestrator.lab.command import run
from orchestrator.lab.record import Lab
from orchestrator.lab.spec import Progress

__all__ = ["bridge", "connect", "disconnect", "machine", "traces"]

_RUN = Path("/run/kvmfleet")
_CONF = Path("/proc/sys/net/ipv4/conf")


def bridge(lab_id: str) -> str:
    """The name of a lab's bridge: 13 of the 15 characters that Linux allows."""
    return f"kvmf-{lab_id}"


def table(lab_id: str) -> str:
    """The name of a lab's nftables table."""
    return f"kvmfleet_{lab_id}"


@contextlib.contextmanager
def machine() -> Iterator[None]:
    """Held around `connect` and `disconnect`. A folder in /run, which a reboot clears together with the network."""
    with tree.hold(_RUN, wait=True):
        yield
        with contextlib.suppress(OSError):  # labs are noted in it
            _RUN.rmdir()


def connect(lab: Lab, progress: Progress) -> None:
    """Makes the lab's network, or what is missing of it.

    Raises:
        LabError: The subnet of a lab that was stopped meanwhile collides with a new route.
    """
    name = bridge(lab.id)
    if name not in _links():
        _refuse_collision(lab)
        run(["ip", "link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0"])
    run(["ip", "link", "set", name, "addrgenmode", "none"])
    run(["ip", "address", "replace", f"{lab.gateway}/24", "dev", name])
    run(["ip", "link", "set", name, "up"])
    for link in _links():
        if link.startswith(f"vb-{lab.id}-"):  # of a running host whose bridge someone took away
            run(["ip", "link", "set", link, "master", name, "up"])
    run(["nft", "--file", "-"], stdin=_ruleset(lab))
    _open_firewalls(lab, progress)
    forward(lab.id, (name, *_uplinks()))


def disconnect(lab: Lab) -> None:
    """Removes the lab's network and puts forwarding back when no other lab needs it."""
    for chain, handle in _own_rules(lab.id, _ruleset_now()):
        run(["nft", "delete", "rule", *chain, "handle", str(handle)])
    if table(lab.id) in run(["nft", "list", "tables"]):
        run(["nft", "delete", "table", "ip", table(lab.id)])
    unforward(lab.id)
    if bridge(lab.id) in _links():
        run(["ip", "link", "delete", bridge(lab.id)])


def traces(lab: Lab) -> tuple[str, ...]:
    """What `disconnect` would remove."""
    found = [f"interface {bridge(lab.id)}"] if bridge(lab.id) in _links() else []
    if table(lab.id) in run(["nft", "list", "tables"]):
        found.append(f"nftables table ip {table(lab.id)}")
    found += [f"rule in nftables chain {' '.join(where)}" for where, _ in _own_rules(lab.id, _ruleset_now())]
    return tuple(found)


def _refuse_collision(lab: Lab) -> None:
    if (other := subnet.collision(IPv4Network(lab.subnet), subnet.in_use())) is not None:
        raise LabError(
            f"The subnet {lab.subnet} of lab {lab.name} collides with {other}, which this machine has by now.",
            hint=f"Remove that route, or make the lab anew: kvmfleet lab down {lab.name}, then lab up.",
        )


def _ruleset(lab: Lab) -> str:
    """Hosts reach out; nothing from outside reaches in, though this machine forwards now."""
    own, name = table(lab.id), bridge(lab.id)
    return f"""
add table ip {own}
delete table ip {own}
table ip {own} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {lab.subnet} oifname != "{name}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{name}" iifname != "{name}" ct state != {{ established, related }} drop
  }}
}}
"""


def _links() -> tuple[str, ...]:
    return tuple(path.name for path in Path("/sys/class/net").iterdir())


def _uplinks() -> tuple[str, ...]:
    """Interfaces of the default routes; none on a machine without a network, where a lab can still run."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "default"]) or "[]")
    hops = (hop for route in routes for hop in (route, *route.get("nexthops", ())))
    return tuple(dict.fromkeys(hop["dev"] for hop in hops if "dev" in hop))


# Firewalls of others. A chain with policy drop (Docker makes one) drops what our own table accepted, so the lab's
# traffic has to be accepted there. Our rules bear the lab's id as their comment, and only those are removed.

_Chain = tuple[str, str, str]
"""Family, table, name."""


def _ruleset_now() -> list[dict[str, Any]]:
    listed = json.loads(run(["nft", "--json", "--handle", "list", "ruleset"]) or "{}")
    return list(listed.get("nftables", ()))


def _dropping(entries: Iterable[dict[str, Any]]) -> Iterator[_Chain]:
    for chain in (entry["chain"] for entry in entries if "chain" in entry):
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet"):
            yield chain["family"], chain["table"], chain["name"]


def _own_rules(lab_id: str, entries: Iterable[dict[str, Any]]) -> Iterator[tuple[_Chain, int]]:
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        if rule.get("comment") == table(lab_id):
            yield (rule["family"], rule["table"], rule["chain"]), rule["handle"]


def _open_firewalls(lab: Lab, progress: Progress) -> None:
    entries = _ruleset_now()
    have = {chain for chain, _ in _own_rules(lab.id, entries)}
    for chain in _dropping(entries):
        if chain not in have:
            progress(f"letting the lab through {' '.join(chain)}, which drops what it forwards")
            for side in ("iifname", "oifname"):
                run(["nft", "insert", "rule", *chain, side, bridge(lab.id), "accept", "comment", f'"{table(lab.id)}"'])
    if any(entry.get("table", {}).get("name") == "firewalld" for entry in entries):
        progress(f"firewalld may reject the lab: firewall-cmd --zone=trusted --add-interface={bridge(lab.id)}")
    if "filter" in _legacy_tables():
        progress(f"old iptables rules may drop the lab: iptables-legacy -I FORWARD -i {bridge(lab.id)} -j ACCEPT")


def _legacy_tables() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return Path("/proc/net/ip_tables_names").read_text().split()
    return []


# Forwarding. Linux forwards a packet when forwarding is on for the interface it came in through, so it is switched on
# for the bridge and the uplinks only. Former values are kept in /run, next to the ids of the labs that need them.


def forward(lab_id: str, devices: Iterable[str], *, conf: Path = _CONF, state: Path = _RUN) -> None:
    """Switches forwarding on, having written down what it was."""
    (state / "former").mkdir(parents=True, exist_ok=True)
    (state / f"lab-{lab_id}").touch()
    for device in devices:
        switch = conf / device / "forwarding"
        if switch.read_text().strip() == "0":
            if device != bridge(lab_id):  # which goes with its lab, long before the last one
                tree.write(state / "former" / device, "0\n")
            switch.write_text("1\n")


def unforward(lab_id: str, *, conf: Path = _CONF, state: Path = _RUN) -> None:
    """Forgets a lab; after the last one every interface gets its former value, unless forwarding is on for all now."""
    (state / f"lab-{lab_id}").unlink(missing_ok=True)
    if any(state.glob("lab-*")):
        return
    for_all = (conf / "all" / "forwarding").read_text().strip() == "1"
    for former in (state / "former").glob("*"):
        switch = conf / former.name / "forwarding"
        if not for_all and switch.exists():
            switch.write_text(former.read_text())
        former.unlink()
    for folder in (state / "former", state):
        with contextlib.suppress(OSError):
            folder.rmdir()
