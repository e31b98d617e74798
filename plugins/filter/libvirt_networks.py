"""Jinja filters of the role libvirt_networks: is the declaration right, and which subnets does `auto` stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.kvmfleet.host.plugins.module_utils import bridges
from ansible_collections.kvmfleet.host.plugins.module_utils import networks as declared


def wrong(networks: Any) -> list[str]:
    """What is wrong with the networks of one host, a sentence each."""
    return declared.wrong(networks)


def overlapping(fleet: Mapping[str, Any], host: str) -> list[str]:
    """The routed subnets of a host that other hosts have too."""
    return declared.fleet_collisions(host, fleet)


def resolved(
    networks: Sequence[Mapping[str, Any]], host: str, fleet: Mapping[str, Any], pool: str
) -> list[dict[str, Any]]:
    """The networks with subnets for `auto`."""
    try:
        chosen = declared.choose(fleet, pool) if any(map(declared.is_auto, networks)) else {}
    except declared.DeclarationError as error:
        raise AnsibleFilterError(str(error)) from error
    return declared.resolved(networks, {name: subnet for (owner, name), subnet in chosen.items() if owner == host})


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "libvirt_networks_wrong": wrong,
            "libvirt_networks_wrong_bridges": bridges.wrong,
            "libvirt_networks_overlapping": overlapping,
            "libvirt_networks_resolved": resolved,
        }
