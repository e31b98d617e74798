"""Jinja filters of the role libvirt_security: which ports are open to whom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.kvmfleet.host.plugins.module_utils import port_rules


def problems(wish: Mapping[str, Any], ssh: Any) -> list[str]:
    """What is wrong with {sources, opened, closed}, one sentence each; `ssh` is the port that must stay as it is."""
    found = []
    texts = [name for name in ("sources", "opened", "closed") if isinstance(wish[name], str)]
    if texts:
        return [f"{' and '.join(texts)} must be lists."]
    for name in wish:
        try:
            rules = port_rules.guard(**{"sources": [], "opened": [], "closed": [], name: wish[name]})
        except port_rules.RulesError as error:
            found.append(str(error))
            continue
        if any(port_rules.covers(rules[key], int(ssh)) for key in ("opened", "closed")):
            found.append(f"Port {ssh} carries ssh, and would be cut off.")
    return found


def promise(wish: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """What a host whose ports are guarded so shows, for its contract."""
    rules = port_rules.guard(**wish)
    if backend == "firewalld":
        return {"backend": backend, "rules": port_rules.rich_rules(rules), "ufw": []}
    allowed = [f"{ports} {source}" for ports, source in port_rules.ufw_rules(rules)]
    return {"backend": backend, **port_rules.promised(rules), "ufw": sorted(allowed)}


def files(wish: Mapping[str, Any], backend: str, systemd: bool) -> dict[str, dict[str, Any]]:
    """The files that hold the rules for the next boot, with their digests, for the contract."""
    rules = port_rules.guard(**wish)
    text = {"nftables": port_rules.table, "firewalld": port_rules.policy}[backend](rules)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {port_rules.place(backend, systemd=systemd): {"sha256": digest, "mode": 0o644}}


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"port_problems": problems, "port_promise": promise, "port_files": files}
