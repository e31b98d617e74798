"""What must be one host's alone, out of its files."""

import base64
import hashlib

from orchestrator.collector import identity


def test_the_machine_id_does_not_leave_the_host(tmp_path):
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    found = identity.look(etc=str(tmp_path), cpuinfo="/nowhere")
    assert len(found["machine"]) == 32
    assert found["machine"] != "0123456789abcdef0123456789abcdef"
    assert found["machine"] == identity.machine(str(tmp_path / "machine-id"))


def test_a_machine_without_an_id_has_none(tmp_path):
    for text in ("", "uninitialized\n"):  # machine-id(5): before the first boot
        (tmp_path / "machine-id").write_text(text)
        assert identity.machine(str(tmp_path / "machine-id")) == ""


def test_ssh_keys_are_fingerprints_as_ssh_keygen_prints_them(tmp_path):
    raw = b"\x00\x00\x00\x0bssh-ed25519 and so on"
    (tmp_path / "ssh_host_ed25519_key.pub").write_text(f"ssh-ed25519 {base64.b64encode(raw).decode()} root@hv1\n")
    (tmp_path / "ssh_host_rsa_key.pub").write_text("ssh-rsa\n")
    (tmp_path / "ssh_host_ecdsa_key.pub").write_text("ecdsa %%%\n")
    (tmp_path / "ssh_host_dsa_key").write_text("private")
    digest = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    assert f"ssh-ed25519 SHA256:{digest}" in identity.host_keys(str(tmp_path))
    assert not any("private" in key for key in identity.host_keys(str(tmp_path)))


def test_flags_are_those_of_the_first_processor():
    assert identity.flags("flags\t\t: vmx avx2\n\nflags\t\t: other\n") == ["avx2", "vmx"]
    assert identity.flags("Features\t: asimd sve\n") == ["asimd", "sve"]
    assert identity.flags("") == []


def test_memory_is_what_is_online_in_blocks(tmp_path):
    (tmp_path / "block_size_bytes").write_text("8000000\n")  # hexadecimal: 128 MiB
    for number, state in enumerate(["online", "online", "offline"]):
        (tmp_path / f"memory{number}").mkdir()
        (tmp_path / f"memory{number}" / "state").write_text(state + "\n")
    assert identity.memory_mib(str(tmp_path)) == 256
    assert identity.memory_mib("/nowhere") == 0


def test_interfaces_are_those_with_hardware_behind_them(tmp_path):
    driver = tmp_path / "drivers" / "igb"
    driver.mkdir(parents=True)
    for name in ("eth0", "eth1", "br0"):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text("52:54:00:00:00:01\n")
    for name in ("eth0", "eth1"):
        (tmp_path / "net" / name / "device").mkdir()
    (tmp_path / "net" / "eth0" / "device" / "driver").symlink_to(driver)
    (tmp_path / "net" / "eth1" / "bonding_slave").mkdir()
    (tmp_path / "net" / "eth1" / "bonding_slave" / "perm_hwaddr").write_text("52:54:00:00:00:02\n")
    assert identity.interfaces(str(tmp_path / "net")) == {"eth0": "52:54:00:00:00:01 igb", "eth1": "52:54:00:00:00:02"}


def test_a_virtual_function_is_no_interface_of_the_host(tmp_path):
    """Its address is another one after each boot, and a guest that is given it takes it away (SR-IOV)."""
    for name in ("eth0", "eth0v0"):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "address").write_text("52:54:00:00:00:01\n")
    (tmp_path / "eth0v0" / "device" / "physfn").symlink_to(tmp_path / "eth0" / "device")
    assert identity.interfaces(str(tmp_path)) == {"eth0": "52:54:00:00:00:01"}


GUEST = """<domstatus state='running' reason='booted' pid='4711'>
  <domain type='kvm' id='1'>
    <name>router</name>
    <devices>
      <hostdev mode='subsystem' type='pci' managed='{managed}'>
        <driver name='vfio'/>
        <source>
          <address domain='0x0000' bus='0x3b' slot='0x00' function='{function}'/>
          <origstates><unbind/><reprobe/></origstates>
        </source>
        <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>
      </hostdev>
    </devices>
  </domain>
</domstatus>
"""


def machine(folder, *interfaces, held=()):
    """Its /sys: interfaces as name -> PCI address, and what vfio-pci drives as PCI address -> class."""
    devices, vfio = folder / "devices", folder / "bus" / "pci" / "drivers" / "vfio-pci"
    vfio.mkdir(parents=True)
    for name, address in interfaces:
        device = devices / "pci0000:3a" / "0000:3a:00.0" / address
        device.mkdir(parents=True, exist_ok=True)
        (folder / "class" / "net" / name).mkdir(parents=True)
        (folder / "class" / "net" / name / "device").symlink_to(device)
    for address, kind in held:
        (devices / address).mkdir(parents=True)
        (devices / address / "class").write_text(kind + "\n")
        (vfio / address).symlink_to(devices / address)
    return str(folder)


def test_a_network_card_is_told_by_its_address_with_all_its_interfaces(tmp_path):
    sys = machine(tmp_path, ("eth0", "0000:3b:00.0"), ("eth1", "0000:3b:00.0"), ("usb0", "1-1:1.0"))
    assert identity.cards(sys, str(tmp_path)) == {"0000:3b:00.0": ["eth0", "eth1"], "0000:3a:00.0": ["usb0"]}
    assert identity.look(sys=sys, guests="/nowhere")["cards"] == identity.cards(sys, "/nowhere")


def test_a_card_that_a_guest_has_is_there_without_interfaces(tmp_path):
    card, disk = ("0000:3b:00.0", "0x020000"), ("0000:3b:00.1", "0x010802")
    sys = machine(tmp_path / "sys", held=[card, disk])
    guests = tmp_path / "qemu"
    guests.mkdir()
    (guests / "half.xml").write_text("<domstatus>")
    assert identity.cards(sys, str(guests)) == {}, "somebody else gave it to vfio-pci"
    (guests / "router.xml").write_text(GUEST.format(managed="no", function="0x0"))
    assert identity.cards(sys, str(guests)) == {}, "so did whoever started this guest"
    (guests / "router.xml").write_text(GUEST.format(managed="yes", function="lots"))
    assert identity.cards(sys, str(guests)) == {}
    (guests / "disk.xml").write_text(GUEST.format(managed="yes", function="0x1"))
    assert identity.cards(sys, str(guests)) == {}, "no network card"
    (guests / "router.xml").write_text(GUEST.format(managed="yes", function="0x0"))
    assert identity.cards(sys, str(guests)) == {"0000:3b:00.0": []}
