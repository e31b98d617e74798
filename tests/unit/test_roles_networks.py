"""The role libvirt_networks in the real Ansible, with a fleet of invented hosts: what it chooses, and what it refuses.

Only the preflight runs, on this machine, and nothing is changed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.ansible

ROOT = Path(__file__).parents[2]
PLAYBOOK = """
- hosts: kvm_hosts
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.import_role: {name: libvirt_networks, tasks_from: preflight}
    - ansible.builtin.debug:
        msg: "{{ __libvirt_networks_resolved }}"
"""
ROUTED = {"name": "dmz", "mode": "route", "subnet": "203.0.113.0/25"}
AUTO = {"name": "free", "subnet": "auto", "dhcp": True}
HOSTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "auto-1": {"libvirt_networks": [AUTO, {**AUTO, "name": "more"}]},
    "auto-2": {"libvirt_networks": [AUTO]},
    "routed-1": {"libvirt_networks": [ROUTED]},
    "routed-2": {"libvirt_networks": [{"name": "other", "mode": "open", "subnet": "203.0.113.64/26"}]},
    "text": {"libvirt_networks": "lab"},
    "bad": {"libvirt_networks": [{"name": "a b"}], "libvirt_networks_bridges": [{"name": "br0", "vlan": 5000}]},
    "no-device": {"libvirt_networks": [{"name": "office", "mode": "bridge", "bridge": "nobr7"}]},
    "no-pool": {"libvirt_networks": [AUTO], "libvirt_networks_auto_pool": "10.0.0.0/25"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Host -> what its last task said. One host of the inventory is not in the play."""
    folder = tmp_path_factory.mktemp("networks")
    away = {"auto-away": {"libvirt_networks": [AUTO]}}
    inventory = {
        "kvm_hosts": {"hosts": HOSTS, "vars": {"ansible_python_interpreter": sys.executable}},
        "others": {"hosts": away},
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": inventory}}))
    (folder / "play.yml").write_text(PLAYBOOK)
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts.yml", folder / "play.yml"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    said: dict[str, dict[str, Any]] = {}
    for task in json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]:
        said |= {host: result for host, result in task["hosts"].items() if not result.get("skipped")}
    return said


def test_every_auto_of_the_fleet_is_another_subnet(answers: dict[str, dict[str, Any]]) -> None:
    chosen = [network["subnet"][0] for host in ("auto-1", "auto-2") for network in answers[host]["msg"]]
    assert len(set(chosen)) == 3
    for subnet in chosen:
        assert ipaddress.ip_network(subnet).subnet_of(ipaddress.ip_network("172.24.0.0/13"))
        assert ipaddress.ip_network(subnet).prefixlen == 24
    assert answers["nothing"]["msg"] == []


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (
            "routed-1",
            ["network dmz: its routed subnet 203.0.113.0/25 overlaps 203.0.113.64/26 of the network other on routed-2"],
        ),
        ("routed-2", ["overlaps 203.0.113.0/25 of the network dmz on routed-1"]),
        ("text", ["libvirt_networks", "dict"]),
        ("bad", ["network a b: a name has up to", "libvirt_networks_bridges: bridge br0: vlan is a number"]),
        ("no-device", ["this host has no nobr7", "libvirt_networks_bridges"]),
        ("no-pool", ["libvirt_networks_auto_pool", "smaller than a /24"]),
    ],
)
def test_what_cannot_work_is_refused(answers: dict[str, dict[str, Any]], host: str, words: list[str]) -> None:
    assert answers[host].get("failed"), answers[host]
    assert [word for word in words if word not in answers[host]["msg"]] == []
