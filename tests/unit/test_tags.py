"""What may stand after --tags and --skip-tags."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator import paths, tags
from orchestrator.ansible_read import program


@pytest.mark.ansible
def test_tags_are_known_as_ansible_knows_them(tmp_path: Path) -> None:
    """Those in the files of roles as well, which are not read."""
    (tmp_path / "hosts").write_text("[kvm_hosts]\nhv1\n")
    command = [program("ansible-playbook"), "-i", str(tmp_path / "hosts"), "--list-tags", "playbooks/provision.yml"]
    listed = subprocess.run(command, cwd=paths.content(), capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"TASK TAGS: \[(.*)\]", listed)
    assert tags.known() == set(found.split(", "))


@pytest.mark.parametrize("given", ["libvirt", "libvirt,packages", " libvirt , packages,", "all", "untagged,never"])
def test_what_ansible_takes_is_taken(given: str) -> None:
    tags.refuse_unknown("--tags", [given])
