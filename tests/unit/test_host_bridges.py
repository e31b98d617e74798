"""Bridges of a host: the files for each network manager, and the module on a systemd-networkd that is ours."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.module_utils import bridge_change as change
from ansible_collections.kvmfleet.host.plugins.module_utils import bridges
from ansible_collections.kvmfleet.host.plugins.module_utils.bridge_host import Host
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
        "99-kvmfleet-br0.conf": bridges.WAIT_FOR_ALL,  # for netplan has boots wait until eth0 is routable
    }
    port = Port("eth0", MAC, "/etc/systemd/network/10-up.network", UPLINK)
    assert not [path for path in bridges.networkd(BR0, [port]) if "wait-online" in path]


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
        "kvmfleet-br0-eth0.nmconnection": "[connection]\nid=kvmfleet-br0-eth0\ntype=802-3-ethernet\n"
        "interface-name=eth0\nautoconnect-priority=100\nmaster=br0\nslave-type=bridge\n",
    }


def test_what_is_about_the_port_itself_stays_with_it() -> None:
    text = KEYFILE.replace("802-3-ethernet", "bond") + "\n[bond]\nmode=802.3ad\n"
    port = without_header(bridges.keyfiles(BR0, [Port("eth0", MAC, "x", text)]))["kvmfleet-br0-eth0.nmconnection"]
    assert "type=bond\n" in port
    assert port.endswith("slave-type=bridge\n\n[bond]\nmode=802.3ad\n")
    files = bridges.networkd(BR0, [Port("eth0", MAC, "x", f"{UPLINK}\n[Link]\nMTUBytes=9000\n")])
    assert "[Link]\nMTUBytes=9000\n\n[Network]\nBridge=br0\n" in files["/etc/systemd/network/00-kvmfleet-eth0.network"]
    with pytest.raises(BridgeError, match="a part of something else"):
        bridges.keyfiles(BR0, [Port("eth0", MAC, "x", "[connection]\nmaster=bond0\n")])


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
    mtu 9000
    up ip route add 198.51.100.0/24 via 192.0.2.1 dev eth0
    up ethtool -K eth0 gro off

iface eth0 inet6 auto
iface eth1 inet dhcp
source /etc/network/interfaces.d/*
"""


def eth0(*files: tuple[str, str], name: str = "eth0") -> Port:
    """A port of ifupdown."""
    return Port(name, MAC, files[0][0], files[0][1], dict(files))


def test_ifupdown_moves_the_stanzas_of_the_port_to_the_bridge() -> None:
    files = bridges.interfaces(BR0, [eth0(("/etc/network/interfaces", INTERFACES))])
    assert files["/etc/network/interfaces"] == (
        "# the loopback\nauto lo\niface lo inet loopback\n\nauto eth1\niface eth1 inet dhcp\n"
        "source /etc/network/interfaces.d/*\n"
    )
    own = files["/etc/network/interfaces.d/kvmfleet-br0"]
    assert own.startswith(f"{bridges.HEADER}auto br0\niface br0 inet static\n    pre-up ip link show dev br0 ")
    assert "    address 192.0.2.10/24\n    gateway 192.0.2.1\n" in own
    assert "    up ip route add 198.51.100.0/24 via 192.0.2.1 dev br0\n    up ethtool -K eth0 gro off\n" in own
    assert own.index("pre-up ip link set dev eth0 mtu 9000\n") < own.index(
        "pre-up ip link set dev eth0 master br0 up\n"
    )
    assert own.endswith("iface br0 inet6 auto\n")


def test_ifupdown_finds_what_names_the_port_in_every_file() -> None:
    main, other = "auto lo eth0\nsource interfaces.d/*\n", "iface eth0 inet dhcp\n"
    port = eth0(("/etc/network/interfaces.d/eth0", other), ("/etc/network/interfaces", main))
    files = bridges.interfaces(BR0, [port])
    assert files["/etc/network/interfaces"] == "auto lo\nsource interfaces.d/*\n"
    assert files["/etc/network/interfaces.d/eth0"] == ""
    assert "iface br0 inet dhcp\n" in files["/etc/network/interfaces.d/kvmfleet-br0"]


def test_ifupdown_takes_the_stanzas_of_all_ports_out_also_where_addresses_are_declared() -> None:
    ports = [eth0(("/etc/network/interfaces", INTERFACES), name=name) for name in ("eth0", "eth1")]
    wish = {"name": "br0", "ports": ["eth0", "eth1"], "addresses": ["192.0.2.10/24"]}
    text = bridges.interfaces(wish, ports)["/etc/network/interfaces"]
    assert text == "# the loopback\nauto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n"


BOND = "auto bond0\niface bond0 inet {}\n    bond-slaves eth0 eth1\n    bond-mode 802.3ad\n"


def test_ifupdown_leaves_a_stanza_that_makes_the_port() -> None:
    wish = {"name": "br0", "ports": ["bond0"], "addresses": ["192.0.2.10/24"]}
    files = bridges.interfaces(wish, [eth0(("/etc/network/interfaces", BOND.format("manual")), name="bond0")])
    (own,) = files.values()
    assert "pre-up ip link show dev bond0 >/dev/null 2>&1 || ifup bond0\n" in own
    with pytest.raises(BridgeError, match=r"makes bond0 and gives it addresses in one stanza.* inet manual"):
        bridges.interfaces(wish, [eth0(("/etc/network/interfaces", BOND.format("dhcp")), name="bond0")])


@pytest.mark.parametrize(
    "text",
    [
        BOND.format("manual"),
        "iface br7 inet dhcp\n    bridge_ports eth0 eth5\n",
        "iface eth0 inet manual\n    bond-master bond0\n",
    ],
)
def test_ifupdown_takes_no_port_of_something_else(text: str) -> None:
    with pytest.raises(BridgeError, match="interfaces makes eth0 a part of something else"):
        bridges.interfaces(BR0, [eth0(("/etc/network/interfaces", text))])


def test_what_somebody_changed_in_the_file_since_is_kept_when_the_stanzas_come_back() -> None:
    ours = bridges.without(INTERFACES, ["eth0"])
    assert bridges.without_us(INTERFACES, ours, ["eth0"]) == INTERFACES
    edited = ours + "auto eth5\niface eth5 inet dhcp\n"
    back = bridges.without_us(INTERFACES, edited, ["eth0"])
    assert back.startswith(edited + "auto eth0\niface eth0 inet static\n    address 192.0.2.10/24\n")
    assert bridges.without(back, ["eth0"]) == edited
    assert bridges.without_us(INTERFACES, back, ["eth0"]) == back  # they are there already


def test_which_files_ifupdown_reads_is_in_its_own() -> None:
    text = "source /etc/network/interfaces.d/*.cfg\n  source-directory interfaces.d\n# source /etc/x\n"
    assert bridges.included(text) == ["/etc/network/interfaces.d/*.cfg", "/etc/network/interfaces.d/*"]


def test_ifupdown_takes_addresses_and_vlans_that_are_declared() -> None:
    wish = {**BR0, "vlan": 10, "addresses": ["192.0.2.10/24", "2001:db8::10/64"], "gateway": "192.0.2.1"}
    (text,) = bridges.interfaces(wish, [eth0(("/etc/network/interfaces", INTERFACES))]).values()
    assert "    address 192.0.2.10/24\n    gateway 192.0.2.1\n" in text
    assert "iface br0 inet6 static\n    address 2001:db8::10/64\n" in text
    assert "ip link add link eth0 name eth0.10 type vlan id 10" in text
    assert (
        "iface br0 inet dhcp"
        in bridges.interfaces({"name": "br0", "addresses": "dhcp"}, [])["/etc/network/interfaces.d/kvmfleet-br0"]
    )


# --- the module


class Machine:
    """A host with eth0, to which the ssh connection comes. It executes what the module has systemd execute."""

    active = "systemd-networkd"
    files: tuple[tuple[str, str], ...] = ()

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.deaf = root, [], False
        self.put("sys/class/net/eth0/ifindex", "2\n")
        self.put("sys/class/net/eth0/address", f"{MAC}\n")
        self.put("run/systemd/system/x", "")
        for path, text in self.files:
            self.put(path, text)
        self.put_up()

    def put(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def device(self, name: str) -> Path:
        return self.root / "sys/class/net" / name

    def bridge(self, name: str, *ports: str) -> None:
        for path in ("bridge", "brif"):
            (self.device(name) / path).mkdir(parents=True, exist_ok=True)
        for port in ports:
            (self.device(name) / "brif" / port).mkdir(exist_ok=True)

    def put_up(self) -> None:
        """The default route goes where the address is."""
        owner = "br0" if self.device("br0").exists() else "eth0"
        self.put("proc/net/route", f"head\n{owner} 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n")

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        words = " ".join(argv)
        self.calls.append(words)
        if words.startswith("systemctl is-active"):
            return (0 if argv[-1] == self.active else 3), ""
        if words.startswith("ip -o addr"):
            carrier = "br0" if self.device("br0").exists() else "eth0"
            return 0, f"2: {argv[5]}    inet 192.0.2.10/24 scope global" if argv[5] == carrier else ""
        if words.startswith("ip link delete"):
            if not self.device(argv[-1]).exists():
                return 1, "Cannot find device"
            shutil.rmtree(self.device(argv[-1]))
        if argv[0] == "systemd-run" and "--wait" in argv:
            return self.execute(argv[-1]) if argv[-1].endswith("change.sh") else self.roll_back()
        done = self.manage(argv)
        self.put_up()
        return done

    def manage(self, argv: Sequence[str]) -> tuple[int, str]:
        """What the host's manager of its network does."""
        return 0, ""

    def execute(self, script: str) -> tuple[int, str]:
        strict = False
        for line in (self.root / script[1:]).read_text().splitlines():
            strict = strict or line == "set -e"
            if line.startswith(("cp", "rm", "mkdir")):
                subprocess.run(["sh", "-c", re.sub(r"(?<= )/", f"{self.root}/", line)], check=True)
            elif line.startswith("/bin/sh"):
                self.execute(line.split()[1])
            elif not line.startswith(("again()", "exec", "exit", "set", "systemctl kill")):
                code, out = self.run(shlex.split(line.replace("again ", "").replace(" || true", "")))
                if code and strict:
                    self.put(f"{script[1:].rpartition('/')[0]}/log", out)
                    return code, ""
        return 0, ""

    def roll_back(self, script: str = "undo.sh") -> tuple[int, str]:
        """What the timer would execute; with `files.sh`, the next boot."""
        for folder in sorted((self.root / change.FOLDER[1:]).glob("*/"), reverse=True):
            self.execute(f"/{folder.relative_to(self.root)}/{script}")
        shutil.rmtree(self.root / change.FOLDER[1:])
        for path in (change.BOOT, change.BOOT_LINK):
            (self.root / path[1:]).unlink()
        return 0, ""

    def settle(self, *wanted: Any, came_to: str = "192.0.2.10", **options: Any) -> Any:
        assert bridges.wrong(wanted) == []
        self.calls.clear()
        with open_record(str(self.root / "record/record.json"), check=options.get("check", False)) as record:
            return module.settle(self.host(came_to), record, list(wanted), **options)

    def confirm(self) -> bool:
        with open_record(str(self.root / "record/record.json")) as record:
            return module.confirm(self.host(), record)

    def host(self, came_to: str = "") -> Host:
        return Host(self.run, str(self.root), lambda name: f"/bin/{name}", 0.3, came_to)


class Networkd(Machine):
    files = (
        ("run/systemd/netif/links/2", "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/10-up.network\n"),
        ("etc/systemd/network/10-up.network", UPLINK),
    )

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "etc/systemd/network").iterdir())

    def manage(self, argv: Sequence[str]) -> tuple[int, str]:
        for name in [file[12:-7] for file in self.names if file.endswith(".netdev")]:
            if list(argv) == ["networkctl", "reload"] and not self.deaf:
                self.bridge(name, *(["eth0"] if name == "br0" else []))
        return 0, ""


class Ifupdown(Machine):
    """It believes what it did itself, and not what is: see `ifup` below."""

    active = "networking"
    files = (
        ("etc/network/interfaces", INTERFACES),
        ("run/network/ifstate", "eth0\neth1"),
        ("sys/class/net/eth1/address", MAC),
    )

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    @property
    def up(self) -> set[str]:
        return set(self.read("run/network/ifstate").split())

    def manage(self, argv: Sequence[str]) -> tuple[int, str]:
        name = argv[-1]
        text = "".join(path.read_text() for path in sorted((self.root / "etc/network").rglob("*")) if path.is_file())
        if argv[0] not in ("ifup", "ifdown"):
            return 0, ""
        if not bridges.configures(text, name):
            return 1, f"{argv[0]}: unknown interface {name}"
        if argv[0] == "ifup" and name in self.up:
            return 0, f"ifup: interface {name} already configured"
        if self.deaf and argv == ["ifup", "br0"]:
            return 1, "RTNETLINK answers: No such device"
        if argv[0] == "ifup" and name.startswith("br"):
            self.bridge(name, *re.findall(rf"set dev (\S+) master {name}", text))
        if argv[0] == "ifdown" and name.startswith("br") and self.device(name).exists():
            for port in re.findall(r"set dev (\S+) nomaster", text):
                if (self.device(name) / "brif" / port).exists():
                    (self.device(name) / "brif" / port).rmdir()
            if not list((self.device(name) / "brif").iterdir()):
                shutil.rmtree(self.device(name))
        self.put("run/network/ifstate", "\n".join(self.up | {name} if argv[0] == "ifup" else self.up - {name}))
        return 0, ""


@pytest.fixture
def ifupdown(tmp_path: Path) -> Ifupdown:
    return Ifupdown(tmp_path)


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
    assert f"systemctl stop {change.UNIT}-*.timer" in networkd.calls
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
    assert networkd.calls[starts[2] - 1] == f"systemctl stop {change.UNIT}-*.timer"  # timer, change, timer, change
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


def test_a_host_that_boots_before_anybody_confirmed_finds_its_files_as_they_were(networkd: Networkd) -> None:
    networkd.settle(BR0)
    link = networkd.root / change.BOOT_LINK[1:]
    assert os.readlink(link) == change.BOOT
    unit = (networkd.root / change.BOOT[1:]).read_text()
    assert "Before=network-pre.target networking.service systemd-networkd.service NetworkManager.service" in unit
    assert networkd.confirm()
    assert not link.is_symlink()
    assert not list((networkd.root / "etc/systemd/system").glob("**/kvmfleet*"))

    networkd.settle({**BR0, "addresses": ["192.0.2.10/24"]})
    commands = len(networkd.calls)
    networkd.roll_back("files.sh")
    assert len(networkd.calls) == commands  # nothing of the network is up yet
    assert networkd.settle(BR0).done == []


def test_a_port_whose_vlan_could_not_be_made_is_configured_anew(networkd: Networkd) -> None:
    with pytest.raises(BridgeError, match=r"eth0\.10 is not at it"):
        networkd.settle({**BR0, "vlan": 10})
    assert networkd.calls.index("networkctl reconfigure eth0") > networkd.calls.index("ip link delete dev br0")


def test_steps_of_one_run_are_taken_back_the_last_one_first(networkd: Networkd) -> None:
    assert networkd.settle({"name": "br9"}, BR0).done == ["br9: made", "br0: made"]
    folders = sorted(path.name for path in (networkd.root / change.FOLDER[1:]).glob("*/"))
    assert folders == ["00-br9", "01-br0"]
    script = (networkd.root / change.FOLDER[1:] / "rollback.sh").read_text()
    assert "$(ls -rd" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_ifupdown_takes_the_old_configuration_down_and_the_new_one_up(ifupdown: Ifupdown) -> None:
    made = ifupdown.settle(BR0)
    assert (made.done, made.manager, ifupdown.up) == (["br0: made"], "ifupdown", {"eth1", "br0"})
    assert ifupdown.confirm()
    assert ifupdown.settle(BR0).done == []
    wish = {"name": "br0", "ports": ["eth0", "eth1"], "addresses": ["192.0.2.10/24"]}
    assert ifupdown.settle(wish).done == ["br0: changed"]
    down, up = ifupdown.calls.index("ifdown --force br0"), ifupdown.calls.index("ifup br0")
    assert down < ifupdown.calls.index("ifdown --force eth1") < up
    assert ifupdown.host().devices("br0") == ["eth0", "eth1"]

    ifupdown.roll_back()  # nobody confirmed
    assert ifupdown.host().devices("br0") == ["eth0"]
    assert ifupdown.up == {"br0", "eth1"}
    assert ifupdown.settle(BR0).done == []
    assert ifupdown.settle().done == ["br0: removed"]
    assert ifupdown.confirm()
    assert ifupdown.read("etc/network/interfaces") == INTERFACES
    assert ifupdown.up == {"eth0", "eth1"}


def test_what_ifupdown_says_is_in_the_message_and_the_interface_comes_back(ifupdown: Ifupdown) -> None:
    ifupdown.deaf = True
    with pytest.raises(BridgeError, match=r"ended with 1: RTNETLINK answers: No such device\. .* is as it was before"):
        ifupdown.settle(BR0)
    assert ifupdown.read("etc/network/interfaces") == INTERFACES
    assert ifupdown.up == {"eth0", "eth1"}


def test_files_keep_their_mode_and_what_is_moved_gets_the_same(ifupdown: Ifupdown) -> None:
    (ifupdown.root / "etc/network/interfaces").chmod(0o600)  # stanzas may hold passwords
    files = ifupdown.settle(BR0).files
    for path in ("/etc/network/interfaces", "/etc/network/interfaces.d/kvmfleet-br0"):
        assert (ifupdown.root / path[1:]).stat().st_mode & 0o777 == files[path]["mode"] == 0o600


def test_two_bridges_take_their_ports_out_of_one_file_and_give_them_back(ifupdown: Ifupdown) -> None:
    br1 = {"name": "br1", "ports": ["eth1"]}
    (ifupdown.root / "etc/network/interfaces").write_text(INTERFACES + "iface eth7 inet dhcp\n")
    ifupdown.settle(BR0, br1)
    assert "eth0" not in ifupdown.read("etc/network/interfaces")
    assert "eth1" not in ifupdown.read("etc/network/interfaces")
    ifupdown.confirm()
    assert ifupdown.settle(BR0, br1).done == []
    ifupdown.settle()
    assert ifupdown.read("etc/network/interfaces") == INTERFACES + "iface eth7 inet dhcp\n"


def test_ifupdown_must_read_the_file_of_the_bridge(ifupdown: Ifupdown) -> None:
    (ifupdown.root / "etc/network/interfaces").write_text(INTERFACES.replace("interfaces.d/*", "interfaces.d/*.cfg"))
    with pytest.raises(BridgeError, match=r"does not read /etc/network/interfaces\.d/kvmfleet-br0: add the line"):
        ifupdown.settle(BR0)


def test_an_interface_that_two_configure_is_nobody_s_to_move(ifupdown: Ifupdown) -> None:
    run = ifupdown.run
    for path, text in Networkd.files:
        ifupdown.put(path, text)
    ifupdown.run = lambda argv: (0, "") if argv[-1] == "systemd-networkd" else run(argv)  # type: ignore[method-assign]
    with pytest.raises(
        BridgeError,
        match=r"eth0 is configured by networkd \(/etc/systemd/network/10-up.network\) and by ifupdown \(/etc/network",
    ):
        ifupdown.settle(BR0)
    (ifupdown.root / "sys/class/net/eth1/ifindex").write_text("3")
    (ifupdown.root / "run/systemd/netif/links/2").write_text("ADMIN_STATE=unmanaged\n")
    ifupdown.put("run/systemd/netif/links/3", "NETWORK_FILE=/etc/systemd/network/20.network\n")
    ifupdown.put("etc/network/interfaces", INTERFACES.replace("iface eth1 inet dhcp\n", ""))
    with pytest.raises(
        BridgeError, match=r"eth0 is configured by ifupdown and eth1 is configured by networkd: one bri"
    ):
        ifupdown.settle({"name": "br0", "ports": ["eth0", "eth1"]})


def test_a_host_with_no_manager_that_is_known_is_told_what_was_found(networkd: Networkd) -> None:
    networkd.active = "wicked"
    with pytest.raises(
        BridgeError, match="no NetworkManager, systemd-networkd or ifupdown is active on this host, only w"
    ):
        networkd.settle(BR0)
    networkd.active = ""
    with pytest.raises(BridgeError, match="nothing else that is known"):
        networkd.settle(BR0)


def test_a_port_of_another_bridge_is_refused(networkd: Networkd) -> None:
    (networkd.root / "sys/class/net/br7").mkdir()
    (networkd.root / "sys/class/net/eth0/master").symlink_to("../br7")
    with pytest.raises(BridgeError, match="br0: eth0 is a part of br7 already"):
        networkd.settle(BR0)
    with open_record(str(networkd.root / "record/record.json")) as record:
        record.note("bridge", "br7", {"manager": "networkd", "files": {}, "ports": {"eth0": ""}})
    with pytest.raises(BridgeError, match=r"eth0 is at br7, which was made here\. Take it out there, provision, then"):
        networkd.settle(BR0)


def test_addresses_that_no_file_configures_are_not_lost(networkd: Networkd) -> None:
    (networkd.root / "run/systemd/netif/links/2").unlink()
    with pytest.raises(BridgeError, match="eth0 has addresses that no file configures"):
        networkd.settle(BR0)


def test_a_change_that_takes_the_ssh_connection_s_address_away_is_refused(networkd: Networkd) -> None:
    networkd.settle({**BR0, "addresses": ["192.0.2.10/24"]})
    networkd.confirm()
    with pytest.raises(BridgeError, match=r"goes to 192\.0\.2\.10, which br0 has and would lose"):
        networkd.settle({**BR0, "addresses": ["192.0.2.11/24"]})


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
