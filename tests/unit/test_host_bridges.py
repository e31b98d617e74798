"""Bridges of a host: the files for each network manager, and the module on a systemd-networkd that is ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.module_utils import bridges
from ansible_collections.kvmfleet.host.plugins.module_utils.bridges import BridgeError, Port
from ansible_collections.kvmfleet.host.plugins.module_utils.record import open_record
from ansible_collections.kvmfleet.host.plugins.modules import host_bridges as module

BR0 = {"name": "br0", "ports": ["eth0"]}
MAC = "52:54:00:12:34:56"

# --- declarations


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"name": "br0", "port": "eth0"}, "there is no field port"),
        ({"name": "br0", "ports": "eth0"}, "ports is a list"),
        ({"name": "br/0"}, "'br/0' is no name of a network device"),
        ({"name": "br0", "ports": ["a-name-that-is-too-long"]}, "no name of a network device"),
        ({"name": "br0", "vlan": 4095}, "between 1 and 4094"),
        ({"name": "br0", "vlan": 100, "ports": ["enp130s0f1np1"]}, "more than 15 characters"),
        ({"name": "br0", "addresses": ["192.0.2.300/24"]}, "addresses is dhcp or a list"),
        ({"name": "br0", "gateway": "192.0.2.1"}, "need addresses"),
    ],
)
def test_a_wrong_declaration_is_refused_with_the_reason(declaration: dict[str, Any], words: str) -> None:
    (said,) = bridges.wrong([declaration])
    assert words in said


def test_a_port_is_at_one_bridge() -> None:
    assert bridges.wrong([BR0, {"name": "br1", "ports": ["eth0"]}]) == ["eth0 is declared twice."]
    assert bridges.wrong([{**BR0, "vlan": 10}, {"name": "br1", "ports": ["eth0"], "vlan": 20}]) == []
    assert "list of tables" in bridges.wrong({"name": "br0"})[0]


# --- files


def without_header(files: dict[str, str]) -> dict[str, str]:
    assert all(text.startswith(bridges.HEADER) for text in files.values())
    return {path.rpartition("/")[2]: text[len(bridges.HEADER) :] for path, text in files.items()}


UPLINK = """# the provider's
[Match]
MACAddress=52:54:00:12:34:56

[Network]
Address=192.0.2.10/24
DNS=192.0.2.53

[Route]
Gateway=192.0.2.1
"""


def test_networkd_gives_the_bridge_what_the_port_had() -> None:
    files = without_header(
        bridges.networkd(BR0, [Port("eth0", MAC, "/run/systemd/network/10-netplan-eth0.network", UPLINK)])
    )
    assert files == {
        "00-kvmfleet-br0.netdev": f"[NetDev]\nName=br0\nKind=bridge\nMACAddress={MAC}\n\n[Bridge]\nSTP=no\n",
        "00-kvmfleet-eth0.network": "[Match]\nName=eth0\n\n[Network]\nBridge=br0\nLinkLocalAddressing=no\n",
        "00-kvmfleet-br0.network": "[Match]\nName=br0\n\n[Network]\nAddress=192.0.2.10/24\nDNS=192.0.2.53\n\n"
        "[Route]\nGateway=192.0.2.1\n",
    }


def test_networkd_leaves_the_port_its_addresses_beside_a_vlan() -> None:
    port = Port("eth0", MAC, "/etc/systemd/network/10-up.network", UPLINK)
    files = bridges.networkd({**BR0, "vlan": 10}, [port])
    assert files["/etc/systemd/network/10-up.network.d/kvmfleet-eth0.10.conf"].endswith("[Network]\nVLAN=eth0.10\n")
    assert "Id=10" in files["/etc/systemd/network/00-kvmfleet-eth0.10.netdev"]
    assert "Bridge=br0" in files["/etc/systemd/network/00-kvmfleet-eth0.10.network"]
    assert "Address" not in files["/etc/systemd/network/00-kvmfleet-br0.network"].replace("LinkLocalAddressing", "")


def test_networkd_takes_addresses_that_are_declared() -> None:
    wish = {**BR0, "addresses": ["192.0.2.10/24", "2001:db8::10/64"], "gateway": "192.0.2.1", "dns": ["192.0.2.53"]}
    text = bridges.networkd(wish, [Port("eth0", MAC, "", UPLINK)])["/etc/systemd/network/00-kvmfleet-br0.network"]
    for line in ("Address=192.0.2.10/24", "Address=2001:db8::10/64", "Gateway=192.0.2.1", "DNS=192.0.2.53"):
        assert line in text.splitlines()
    assert (
        "DHCP=yes" in bridges.networkd({**BR0, "addresses": "dhcp"}, [])["/etc/systemd/network/00-kvmfleet-br0.network"]
    )


def test_a_port_of_something_else_is_not_taken() -> None:
    with pytest.raises(BridgeError, match="a part of something else"):
        bridges.networkd(BR0, [Port("eth0", MAC, "10.network", "[Match]\nName=eth0\n[Network]\nBond=bond0\n")])


KEYFILE = """[connection]
id=Wired
uuid=27afa607-ee36-43f0-b8c3-9d245cdc4bb3
type=802-3-ethernet

[ipv4]
method=manual
address1=192.0.2.10/24,192.0.2.1
dns=192.0.2.53;

[ipv6]
method=disabled
"""


def test_networkmanager_gives_the_bridge_what_the_port_had() -> None:
    files = without_header(bridges.keyfiles(BR0, [Port("eth0", MAC, "Wired.nmconnection", KEYFILE)]))
    assert files == {
        "kvmfleet-br0.nmconnection": "[connection]\nid=kvmfleet-br0\ntype=bridge\ninterface-name=br0\n"
        f"autoconnect-priority=100\n\n[bridge]\nstp=false\nmac-address={MAC}\n\n"
        "[ipv4]\nmethod=manual\naddress1=192.0.2.10/24,192.0.2.1\ndns=192.0.2.53;\n\n[ipv6]\nmethod=disabled\n",
        "kvmfleet-br0-eth0.nmconnection": "[connection]\nid=kvmfleet-br0-eth0\ntype=ethernet\ninterface-name=eth0\n"
        "autoconnect-priority=100\nmaster=br0\nslave-type=bridge\n",
    }


def test_networkmanager_takes_addresses_and_vlans_that_are_declared() -> None:
    wish = {**BR0, "vlan": 10, "addresses": ["192.0.2.10/24"], "gateway": ["192.0.2.1"], "dns": "192.0.2.53"}
    files = without_header(bridges.keyfiles(wish, [Port("eth0", MAC)]))
    text = files["kvmfleet-br0.nmconnection"]
    assert "[ipv4]\nmethod=manual\naddress1=192.0.2.10/24\ngateway=192.0.2.1\ndns=192.0.2.53;\n" in text
    assert "[ipv6]\nmethod=disabled\n" in text
    assert "[vlan]\nid=10\nparent=eth0\n" in files["kvmfleet-br0-eth0.10.nmconnection"]


INTERFACES = """# the loopback
auto lo
iface lo inet loopback

auto eth0 eth1
allow-hotplug eth0
iface eth0 inet static
    address 192.0.2.10/24
    gateway 192.0.2.1

iface eth0 inet6 auto
iface eth1 inet dhcp
source /etc/network/interfaces.d/*
"""


def test_ifupdown_moves_the_stanzas_of_the_port_to_the_bridge() -> None:
    files = bridges.interfaces(BR0, [Port("eth0", MAC, "/etc/network/interfaces", INTERFACES)])
    assert files["/etc/network/interfaces"] == (
        "# the loopback\nauto lo\niface lo inet loopback\n\nauto eth1\niface eth1 inet dhcp\n"
        "source /etc/network/interfaces.d/*\n"
    )
    own = files["/etc/network/interfaces.d/kvmfleet-br0"]
    assert own.startswith(
        f"{bridges.HEADER}auto br0\niface br0 inet static\n    address 192.0.2.10/24\n    gateway 192.0.2.1\n"
    )
    assert "pre-up ip link set dev eth0 master br0 up\n" in own
    assert own.endswith("iface br0 inet6 auto\n")


def test_ifupdown_takes_addresses_and_vlans_that_are_declared() -> None:
    wish = {**BR0, "vlan": 10, "addresses": ["192.0.2.10/24", "2001:db8::10/64"], "gateway": "192.0.2.1"}
    (text,) = bridges.interfaces(wish, [Port("eth0", MAC, "/etc/network/interfaces", INTERFACES)]).values()
    assert "iface br0 inet static\n    address 192.0.2.10/24\n    gateway 192.0.2.1\n" in text
    assert "iface br0 inet6 static\n    address 2001:db8::10/64\n" in text
    assert "ip link add link eth0 name eth0.10 type vlan id 10" in text
    assert (
        "iface br0 inet dhcp"
        in bridges.interfaces({"name": "br0", "addresses": "dhcp"}, [])["/etc/network/interfaces.d/kvmfleet-br0"]
    )


# --- the module


class Networkd:
    """A host with eth0, to which the ssh connection comes. `networkctl reload` does to /sys what networkd would do."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.deaf = root, [], False
        for path, text in {
            "sys/class/net/eth0/ifindex": "2\n",
            "sys/class/net/eth0/address": f"{MAC}\n",
            "run/systemd/netif/links/2": "NETWORK_FILE=/etc/systemd/network/10-up.network\n",
            "etc/systemd/network/10-up.network": UPLINK,
            "run/systemd/system/x": "",
            "proc/net/route": "head\n",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        self.reload()

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "etc/systemd/network").iterdir())

    def reload(self) -> None:
        net = self.root / "sys/class/net"
        for name in [file[12:-7] for file in self.names if file.endswith(".netdev") and not self.deaf]:
            (net / name / "bridge").mkdir(parents=True, exist_ok=True)
            (net / name / "brif").mkdir(parents=True, exist_ok=True)
        if (net / "br0").exists():
            (net / "br0/brif/eth0").mkdir(exist_ok=True)
        owner = "br0" if (net / "br0").exists() else "eth0"
        (self.root / "proc/net/route").write_text(f"head\n{owner} 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n")

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        words = " ".join(argv)
        self.calls.append(words)
        if words.startswith("ip -o addr"):
            carrier = "br0" if (self.root / "sys/class/net/br0").exists() else "eth0"
            return 0, f"2: {argv[5]}    inet 192.0.2.10/24 scope global" if argv[5] == carrier else ""
        if words == "networkctl reload":
            self.reload()
        if words.startswith("ip link delete"):
            shutil.rmtree(self.root / "sys/class/net" / argv[-1])
        if words.startswith("/bin/sh"):
            return self.roll_back()
        return (3 if words.endswith("NetworkManager") else 0), ""

    def roll_back(self) -> tuple[int, str]:
        """What the timer would run, with its paths below our root and its commands given to us."""
        folder = self.root / module.FOLDER[1:]
        for line in [line for undo in sorted(folder.glob("*/undo.sh")) for line in undo.read_text().splitlines()]:
            if line.startswith(("cp", "rm")):
                inner = re.sub(r"(?<= )/", f"{self.root}/", line)
                subprocess.run(["sh", "-c", inner], check=True)
            else:
                words = line.replace(" || true", "").split()
                if words[:3] != ["ip", "link", "delete"] or (self.root / "sys/class/net" / words[-1]).exists():
                    self.run(words)
        shutil.rmtree(folder)
        return 0, ""

    def settle(self, *wanted: Any, came_to: str = "192.0.2.10", **options: Any) -> Any:
        assert bridges.wrong(wanted) == []
        self.calls.clear()
        with open_record(str(self.root / "record/record.json"), check=options.get("check", False)) as record:
            return module.settle(self.host(came_to), record, list(wanted), **options)

    def confirm(self) -> bool:
        with open_record(str(self.root / "record/record.json")) as record:
            return module.confirm(self.host(), record)

    def host(self, came_to: str = "") -> module.Host:
        return module.Host(self.run, str(self.root), lambda name: f"/bin/{name}", 0.3, came_to)


@pytest.fixture
def networkd(tmp_path: Path) -> Networkd:
    return Networkd(tmp_path)


def test_a_bridge_is_made_behind_a_timer_that_a_confirmation_stops(networkd: Networkd) -> None:
    assert networkd.settle(BR0, check=True).done == ["br0: made"]
    assert networkd.names == ["10-up.network"]
    made = networkd.settle(BR0, rollback_after_s=9)
    assert (made.done, made.bridges, made.manager) == (["br0: made"], {"br0": ["eth0"]}, "networkd")
    timer = next(i for i, call in enumerate(networkd.calls) if "systemd-run" in call and "--on-active=9s" in call)
    assert timer < networkd.calls.index("networkctl reload")
    assert networkd.confirm()
    assert f"systemctl stop {module.UNIT}.timer" in networkd.calls
    assert not networkd.confirm()
    again = networkd.settle(BR0)
    assert (again.done, again.files) == ([], made.files)


def test_what_nobody_confirms_is_taken_back_whole(networkd: Networkd) -> None:
    networkd.settle(BR0)
    networkd.roll_back()
    assert networkd.names == ["10-up.network"]
    assert not (networkd.root / "sys/class/net/br0").exists()
    assert not networkd.confirm()
    assert networkd.settle().done == []  # nothing is left to be removed
    assert networkd.settle(BR0).done == ["br0: made"]


def test_two_bridges_of_one_run_are_taken_back_together(networkd: Networkd) -> None:
    assert networkd.settle(BR0, {"name": "br9"}).done == ["br0: made", "br9: made"]
    starts = [number for number, call in enumerate(networkd.calls) if call.startswith("systemd-run")]
    assert networkd.calls[starts[1] - 1] == f"systemctl stop {module.UNIT}.timer"  # or systemd refuses the second
    networkd.roll_back()
    assert networkd.names == ["10-up.network"]
    assert not {"br0", "br9"} & {path.name for path in (networkd.root / "sys/class/net").iterdir()}


def test_a_bridge_that_does_not_come_up_is_taken_back_at_once(networkd: Networkd) -> None:
    networkd.deaf = True
    with pytest.raises(BridgeError, match=r"br0: after 0\.3 s it is not there.* is as it was before"):
        networkd.settle(BR0)
    assert networkd.names == ["10-up.network"]


def test_a_bridge_that_left_the_list_is_taken_back_unless_a_guest_is_at_it(networkd: Networkd) -> None:
    networkd.settle(BR0)
    networkd.confirm()
    guest = networkd.root / "sys/class/net/br0/brif/vnet0"
    guest.mkdir()
    assert "because vnet0 is at it" in networkd.settle().pending[0]
    guest.rmdir()
    assert networkd.settle().done == ["br0: removed"]
    assert networkd.names == ["10-up.network"]
    networkd.roll_back()  # nobody confirmed that either
    assert len(networkd.names) == 4
    networkd.settle()
    assert networkd.confirm()
    assert networkd.settle().done == []


def test_a_bridge_that_takes_the_ssh_connection_away_is_refused(networkd: Networkd) -> None:
    other = {**BR0, "addresses": ["198.51.100.7/24"]}
    with pytest.raises(BridgeError, match=r"goes through eth0 to 192\.0\.2\.10, and would be lost"):
        networkd.settle(other, check=True)
    with pytest.raises(BridgeError, match="goes through eth0, and would be lost"):
        networkd.settle(other, came_to="", check=True)  # whoever comes another way goes where the default route goes
    assert networkd.settle({**BR0, "addresses": ["192.0.2.10/24"]}, check=True).done == ["br0: made"]
    assert networkd.settle({**other, "vlan": 10}, check=True).done == ["br0: made"]


def test_what_others_made_is_left_alone(networkd: Networkd) -> None:
    (networkd.root / "sys/class/net/br0").mkdir()
    with pytest.raises(BridgeError, match="br0 is there already, and was not made here"):
        networkd.settle(BR0)
    with pytest.raises(BridgeError, match="this host has no eth9"):
        networkd.settle({"name": "br1", "ports": ["eth9"]})


def test_the_address_of_the_ssh_connection_comes_from_the_session(tmp_path: Path) -> None:
    for pid, parent, environ in (
        (os.getpid(), 40, "A=1"),
        (40, 30, "B=2\0SSH_CONNECTION=192.0.2.1 4 192.0.2.10 22\0C=3"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"{pid}/environ").write_text(environ)
        (tmp_path / f"{pid}/status").write_text(f"Name:\tx\nPPid:\t{parent}\n")
    assert module.ssh_address(str(tmp_path)) == "192.0.2.10"
    (tmp_path / "40/environ").write_text("B=2")
    assert module.ssh_address(str(tmp_path)) == ""
