"""Jinja filters of the role libvirt_storage: what its pools are, for the packages and for the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.kvmfleet.host.plugins.module_utils import storage_pools


def types(pools: Iterable[Mapping[str, Any]]) -> list[str]:
    """The types of pools that are declared, sorted."""
    return sorted({storage_pools.kind(pool) for pool in pools} - {""})


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"storage_pool_types": types, "storage_pool_contract": storage_pools.contract}
