"""The inventory, known hosts and ssh configuration of a lab, read by the programs that they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from orchestrator.errors import LabError
from orchestrator.lab import access
from orchestrator.lab.record import Lab

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="openssh-client is not installed")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    bare = Lab(name="blue", id="00c0ffee", provider="container", subnet="10.213.4.0/24", created_at_s=1.5)
    lab = msgspec.structs.replace(bare, hosts=(bare.planned(1, "debian-12"), bare.planned(2, "debian-13")))
    for host in lab.hosts:
        lab.host_folder(host).mkdir(parents=True)
        access.host_key(lab.host_folder(host) / "key", host.name)
    access.write(lab)
    return lab


def test_the_login_key_is_made_once_and_is_private(lab):
    key = access.login_key(lab)
    content = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert access.login_key(lab).read_bytes() == content


def test_half_a_key_of_a_killed_run_is_replaced(lab):
    half = lab.folder / "other.partial"
    half.mkdir()
    (half / "id_ed25519").write_text("half")
    key = access.host_key(lab.folder / "other", "x")
    assert "half" not in key.read_text()
    assert not half.exists()


def test_known_hosts_holds_the_key_of_each_host_under_address_and_name(lab):
    for host in lab.hosts:
        public = (lab.host_folder(host) / "key" / "id_ed25519.pub").read_text().split()[1]
        for name in (host.address, host.name):
            found = subprocess.run(
                ["ssh-keygen", "-F", name, "-f", lab.folder / "known_hosts"], capture_output=True, text=True, check=True
            )
            assert public in found.stdout


def test_a_host_that_is_not_made_yet_has_no_known_key(lab):
    third = msgspec.structs.replace(lab, hosts=(*lab.hosts, lab.planned(3, "debian-12")))
    access.write(third)
    assert "blue-3" not in (lab.folder / "known_hosts").read_text()


def test_ssh_takes_the_configuration_and_keeps_checking_host_keys(lab):
    shown = subprocess.run(
        ["ssh", "-G", "-F", lab.ssh_config, "blue-2"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "hostname 10.213.4.12" in shown
    assert "user kvmfleet" in shown
    assert f"identityfile {access.login_key(lab)}" in shown
    assert f"userknownhostsfile {lab.folder / 'known_hosts'}" in shown
    assert "stricthostkeychecking true" in shown


def test_ansible_takes_the_inventory(lab):
    shown = subprocess.run(
        [Path(sys.executable).with_name("ansible-inventory"), "-i", lab.inventory, "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = msgspec.json.decode(shown.stdout)
    assert listed["kvm_hosts"]["hosts"] == ["blue-1", "blue-2"]
    host = listed["_meta"]["hostvars"]["blue-1"]
    assert host["ansible_host"] == "10.213.4.11"
    assert host["ansible_become"] is True
    assert host["kvmfleet_profile"] == "lab"
    assert "StrictHostKeyChecking=yes" in host["ansible_ssh_common_args"]


def test_the_inventory_is_plain_yaml(lab):
    assert list(yaml.safe_load(lab.inventory.read_text())) == ["all"]


def test_every_host_knows_the_names_of_all(lab):
    assert "10.213.4.11 blue-1\n10.213.4.12 blue-2\n" in access.hosts_file(lab)


@pytest.mark.parametrize("folder", ["/a b", "/a:b", "/a%h", "/a'b", '/a"b', "/a,b", "/ä", "/a\nb"])
def test_a_folder_that_ssh_or_nspawn_would_misread_is_refused(folder):
    with pytest.raises(LabError, match="cannot be kept in") as caught:
        access.check_folder(Path(folder))
    assert "KVMFLEET_STATE_DIR" in caught.value.hint


def test_an_ordinary_folder_is_fine():
    access.check_folder(Path("/root/.local/state/kvmfleet/labs/my-lab_1+2@x"))
