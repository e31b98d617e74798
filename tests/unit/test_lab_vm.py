"""The provider `vm`, as far as it can be told without a machine: arguments, ports, room, and what a host is told."""

import os
import shutil
import socket
import tarfile
from pathlib import Path

import msgspec
import pytest
import yaml

from orchestrator.errors import LabError
from orchestrator.lab import access, labs, record, seed, vm
from orchestrator.lab.accelerator import Accelerator
from orchestrator.lab.record import Lab
from orchestrator.lab.spec import LabSpec

needs_keys = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="openssh-client is not installed")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(vm, "_version", lambda: (8, 1))
    bare = Lab(name="red", id="0badcafe", provider="vm", subnet="10.213.4.0/24", created_at_s=1.5, memory_mib=512)
    hosts = (bare.planned(1, "debian-12"), msgspec.structs.replace(bare.planned(2, "image"), port=22002))
    return msgspec.structs.replace(bare, hosts=hosts, accelerator="tcg")


def arguments(lab, number, name="tcg"):
    return vm._machine(lab, lab.hosts[number], Accelerator(name, ""))


def test_no_two_hosts_share_a_hardware_address_or_a_control_socket(lab):
    words = [word for number in (0, 1) for word in arguments(lab, number)]
    addresses = [word.rpartition("mac=")[2] for word in words if "mac=" in word]
    assert len(set(addresses)) == len(addresses) == 4
    assert len({word for word in words if word.startswith("unix:")}) == 2


def test_hosts_of_a_lab_share_a_network_and_labs_do_not(lab):
    def network(of):
        return next(word for word in arguments(of, 0) if "mcast" in word)

    other = msgspec.structs.replace(lab, id="0badcaff")
    assert network(lab) == next(word for word in arguments(lab, 1) if "mcast" in word)
    assert network(lab) != network(other)
    assert "mcast=239.11.173.202:" in network(lab)
    assert network(lab).endswith("localaddr=127.0.0.1")


def test_hardware_and_software_are_different_arguments_and_nothing_else(lab):
    kvm, tcg = arguments(lab, 0, "kvm"), arguments(lab, 0, "tcg")
    assert [kvm[4:8], len(kvm)] == [["-accel", "kvm", "-cpu", "host"], len(tcg)]
    assert kvm[:4] + kvm[8:] == tcg[:4] + tcg[8:]


@pytest.mark.parametrize(
    ("version", "cpus", "threads"), [((7, 2), 1, "single"), ((8, 0), 1, "single"), ((8, 1), 2, "multi")]
)
def test_processors_in_software_share_no_code_where_qemu_mistranslates_it(lab, monkeypatch, version, cpus, threads):
    monkeypatch.setattr(vm, "_version", lambda: version)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert vm.Vm().shaped(lab, LabSpec()).cpus == cpus
    assert vm.Vm().shaped(lab, LabSpec(cpus=4)).cpus == 4
    assert f"tcg,thread={threads},tb-size=1024" in arguments(lab, 0)


def test_a_port_that_is_taken_is_given_up_for_a_free_one(lab):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = msgspec.structs.replace(lab.hosts[0], port=other.getsockname()[1])
        settled = vm.Vm().settled(lab, taken)
    assert settled.port in range(22001, 23000)
    assert settled.port != lab.hosts[1].port
    assert vm.Vm().settled(lab, settled) == settled, "a free one is kept"


def test_no_two_labs_get_the_same_port(lab):
    port = vm.Vm().settled(lab, lab.hosts[0]).port
    lab.folder.mkdir(parents=True)
    record.write(msgspec.structs.replace(lab, hosts=(msgspec.structs.replace(lab.hosts[0], port=port),)))
    other = msgspec.structs.replace(lab, name="blue", id="0badf00d", hosts=())
    assert vm.Vm().settled(other, other.planned(1, "debian-12")).port != port


def test_too_many_hosts_for_the_memory_are_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(vm, "_available_mib", lambda: 4000)
    spec = LabSpec(memory_mib=512, accelerator="tcg")
    vm.Vm().fit(Path("/tmp"), spec, None, 2)
    with pytest.raises(LabError, match="3 hosts need 5058 MiB of memory, 1686 each, and 4000 are available") as caught:
        vm.Vm().fit(Path("/tmp"), spec, None, 3)
    assert "--memory" in caught.value.hint


def test_a_full_disk_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(vm, "_HOST_MIB", 1 << 40)
    with pytest.raises(LabError, match=r"/tmp/not/made has \d+ MiB free, and 1099511627776 are needed"):
        vm.Vm().fit(Path("/tmp/not/made"), LabSpec(accelerator="tcg"), None, 1)


@needs_keys
def test_what_makes_a_host_is_root_s_and_holds_its_own_key(lab, tmp_path):
    key = access.host_key(tmp_path / "key", "red-1")
    lab.folder.mkdir(parents=True)
    vm._write_seed(lab, lab.hosts[0], key, tmp_path / "seed.tar")
    with tarfile.open(tmp_path / "seed.tar") as tar:
        held = {entry.name: entry for entry in tar}
        assert {(entry.uid, entry.gid) for entry in held.values()} == {(0, 0)}
        assert held["etc/ssh/ssh_host_ed25519_key"].mode == 0o600
        assert tar.extractfile("etc/ssh/ssh_host_ed25519_key").read() == key.read_bytes()
        assert b"Address=10.213.4.11/24" in tar.extractfile("etc/systemd/network/20-lan.network").read()
        assert b"10.213.4.12 red-2" in tar.extractfile("etc/hosts").read()
    assert (tmp_path / "seed.tar").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "seed.tar").stat().st_size % 512 == 0


@needs_keys
def test_cloud_init_is_told_the_same(lab, tmp_path):
    key = access.host_key(tmp_path / "key", "red-2")
    lab.folder.mkdir(parents=True)
    vm._write_cloud_config(lab, lab.hosts[1], key, tmp_path / "seed")
    told = {path.name: yaml.safe_load(path.read_text()) for path in (tmp_path / "seed").iterdir()}
    assert (tmp_path / "seed/user-data").read_text().startswith("#cloud-config\n")
    assert told["user-data"]["ssh_keys"]["ed25519_private"] == key.read_text()
    assert told["user-data"]["users"][0]["name"] == record.USER
    assert told["network-config"]["ethernets"]["lan"]["addresses"] == ["10.213.4.12/24"]
    assert told["meta-data"]["local-hostname"] == "red-2"
    assert (tmp_path / "seed/user-data").stat().st_mode & 0o777 == 0o600


@needs_keys
def test_ssh_and_ansible_go_to_the_forwarded_port_and_know_the_key_there(lab):
    lab.host_folder(lab.hosts[1]).mkdir(parents=True)
    access.host_key(lab.host_folder(lab.hosts[1]) / "key", "red-2")
    assert "HostName 127.0.0.1\n  Port 22002\n" in access.ssh_config(lab)
    host = yaml.safe_load(access.inventory(lab))["all"]["children"]["kvm_hosts"]["hosts"]["red-2"]
    assert host == {"ansible_host": "127.0.0.1", "ansible_port": 22002}
    assert access._known_hosts(lab).startswith("[127.0.0.1]:22002,red-2 ssh-ed25519 ")


def test_a_wish_for_a_machine_is_no_wish_for_a_container(lab):
    from orchestrator.lab.container import Container

    for wish in ({"image": "x"}, {"memory_mib": 512}, {"cpus": 1}, {"accelerator": "tcg"}):
        with pytest.raises(LabError, match="about virtual machines"):
            Container().fit(lab.folder, LabSpec(**wish), None, 1)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"image": "https://images.example/x.qcow2"}, "needs --sha256"),
        ({"image": "https://images.example/x.qcow2", "sha256": "12"}, "is no SHA-256"),
        ({"image": "/nowhere.qcow2"}, "/nowhere.qcow2: No such file or directory"),
        ({"image": "/"}, "/: Is a directory"),
    ],
)
def test_an_image_that_cannot_be_had_leaves_no_trace(wish, says, lab, tmp_path, monkeypatch):
    monkeypatch.setattr(vm.Vm, "require", lambda *_: None)
    with pytest.raises(LabError, match=says):
        labs.up(LabSpec(provider="vm", accelerator="tcg", **wish), progress=lambda *_: None)
    assert not (tmp_path / "state").exists()


def test_a_folder_with_too_long_a_name_for_a_socket_is_refused(tmp_path):
    with pytest.raises(LabError, match="too long a name"):
        vm.Vm().fit(tmp_path / ("x" * 100), LabSpec(accelerator="tcg"), None, 1)


def test_an_old_qemu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vm.prerequisites, "require", lambda provider: None)
    monkeypatch.setattr(vm, "_version", lambda: (4, 2))
    monkeypatch.setattr(vm.platform, "machine", lambda: "x86_64")
    with pytest.raises(LabError, match=r"QEMU 4\.2 is too old"):
        vm.Vm().require(tmp_path)


def test_files_are_written_whole_below_a_root(tmp_path):
    (tmp_path / "etc").mkdir()
    seed.plant({"etc/hostname": seed.File("red-1\n", 0o640)}, tmp_path)
    assert (tmp_path / "etc/hostname").read_text() == "red-1\n"
    assert (tmp_path / "etc/hostname").stat().st_mode & 0o777 == 0o640
