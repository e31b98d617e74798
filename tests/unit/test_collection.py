"""The roles as a collection of Ansible's: what is in it, and that it works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_packaging import tracked

import orchestrator

ROOT = Path(__file__).resolve().parents[2]
GALAXY: dict[str, Any] = yaml.safe_load((ROOT / "galaxy.yml").read_text())
PROGRAMS = Path(sys.executable).parent


def run(program: str, *arguments: str | Path, cwd: Path, paths: Path | None = None) -> str:
    """One of Ansible's programs, in a folder that knows nothing of the checkout; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment |= {"HOME": str(cwd), "NO_COLOR": "1"} | ({"ANSIBLE_COLLECTIONS_PATH": str(paths)} if paths else {})
    done = subprocess.run([PROGRAMS / program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run("ansible-galaxy", "collection", "build", ROOT, "--output-path", folder, cwd=folder)
    return folder / f"kvmfleet-host-{orchestrator.__version__}.tar.gz"


def test_its_version_is_that_of_the_orchestrator() -> None:
    assert GALAXY["version"] == orchestrator.__version__


def test_it_asks_for_the_ansible_that_the_roles_ask_for() -> None:
    asked = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"]
    for meta in ROOT.glob("roles/*/meta/main.yml"):
        oldest = yaml.safe_load(meta.read_text())["galaxy_info"]["min_ansible_version"]
        assert asked == f">={oldest}.0"


def test_it_names_every_collection_that_it_uses() -> None:
    files = [ROOT / name for name in tracked("roles", "playbooks") if name.endswith(".yml")]
    text = "".join(path.read_text() for path in files)
    used = {name for name in ("community.general", "ansible.posix", "community.libvirt") if f"{name}." in text}
    assert used == set(GALAXY["dependencies"])


@pytest.mark.ansible
def test_it_holds_the_content_and_nothing_of_the_orchestrator(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        held = {entry.name for entry in tar.getmembers() if entry.isfile()}
    content = tracked("plugins", "roles", "playbooks", "meta/runtime.yml") - {"playbooks/collect.yml"}
    own = {"MANIFEST.json", "FILES.json", "LICENSE", "CHANGELOG.md", "docs/collection.md", "docs/platforms.md"}
    assert held == content | own


@pytest.mark.parametrize("name", ["evidence/hv1.json", "report.html", "kvmfleet.prom", "waivers.yml", "hosts.yml"])
def test_it_does_not_take_along_what_a_user_put_into_the_checkout(name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in GALAXY["build_ignore"])


@pytest.fixture(scope="module")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed collection. What it needs is there already, as with the package `ansible`."""
    folder = tmp_path_factory.mktemp("installed")
    run("ansible-galaxy", "collection", "install", archive, "-p", folder, "--offline", cwd=folder)
    return folder


@pytest.mark.ansible
def test_its_playbook_finds_its_roles_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("kvm_hosts: {hosts: {hv1: {ansible_connection: local}}}\n")
    play = ("ansible-playbook", "-i", "hosts.yml", "kvmfleet.host.provision", "--list-tasks")
    listed = run(*play, cwd=tmp_path, paths=installed)
    for name in {file.split("/")[1] for file in tracked("roles")}:
        assert f"kvmfleet.host.{name} : " in listed


@pytest.mark.ansible
def test_every_module_says_what_it_does(installed: Path, tmp_path: Path) -> None:
    """Filters are the roles' own business."""
    listed = run("ansible-doc", "-t", "module", "-l", "kvmfleet.host", cwd=tmp_path, paths=installed)
    assert listed.startswith("kvmfleet.host.")
    assert "UNDOCUMENTED" not in listed
