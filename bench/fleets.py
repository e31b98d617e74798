"""Inventories of many ssh targets, and a history in which each of them was found good, for drift to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator import intent, inventory
from orchestrator.history.store import Store
from orchestrator.inventory import AnsibleOptions
from orchestrator.judge import read_contract
from orchestrator.model.evidence import Evidence
from orchestrator.model.finding import Judgement
from orchestrator.model.run import Collected, HostResult

__all__ = ["Access", "Target", "remember", "write_inventory"]


class Target(NamedTuple):
    """One host of an inventory."""

    name: str
    address: str
    port: int


class Access(NamedTuple):
    """How all targets are reached."""

    key: Path
    known_hosts: Path
    python: str = sys.executable  # on the target
    timeout_s: int = 10  # for a connection

    @property
    def arguments(self) -> str:
        """For ssh. Nobody's own configuration has a say, and a host that is not known is not talked to."""
        options = (f"UserKnownHostsFile={self.known_hosts}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes")
        return " ".join(f"-o {option}" for option in options)


def write_inventory(file: Path, targets: Iterable[Target], access: Access) -> Path:
    """A YAML inventory as people write them: what is common once, and a line a host."""
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": access.key,
        "ansible_ssh_common_args": access.arguments,
        "ansible_python_interpreter": access.python,
        "ansible_timeout": access.timeout_s,
    }
    lines = ["kvm_hosts:", "  vars:", *(f"    {name}: {value}" for name, value in common.items()), "  hosts:"]
    lines += (f"    {one.name}: {{ansible_host: {one.address}, ansible_port: {one.port}}}" for one in targets)
    file.write_text("\n".join(lines) + "\n")
    return file


def remember(file: Path, evidence_of: Callable[[str], Evidence]) -> None:
    """Writes into the history that every host of the inventory was provisioned, and was like this afterwards."""
    fleet = inventory.load(AnsibleOptions(inventory=(str(file),)))
    intents = intent.digests(fleet)
    with Store() as store:
        run = store.begin("provision")
        for host in fleet.hosts:
            evidence = evidence_of(host.name)
            contract = read_contract(evidence)
            assert contract, f"{host.name} has no contract"
            told = msgspec.structs.replace(contract, intent_digest=intents[host.name])
            collected = Collected(host.name, "ssh", evidence=evidence)
            run.record(HostResult(host.name, Judgement("proven", ()), collected, told), baseline=True)
        run.finish("finished")
