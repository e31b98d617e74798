"""Ports, sockets and SELinux booleans: what the modules of libvirt_security do to a host that is ours."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.kvmfleet.host.plugins.filter import port_rules as filters
from ansible_collections.kvmfleet.host.plugins.module_utils import port_rules
from ansible_collections.kvmfleet.host.plugins.module_utils.record import open_record
from ansible_collections.kvmfleet.host.plugins.modules import port_guard, selinux_booleans, socket_access

from orchestrator.collector import security

RULES = port_rules.guard(["192.0.2.0/25", "192.0.2.128/25", "2001:db8::7"], ["16514", "49152-49215"], ["5900-5999"])


# --- the rules in one form


def test_networks_and_ports_have_one_form() -> None:
    assert RULES == {
        "sources4": ["192.0.2.0/24"],
        "sources6": ["2001:db8::7"],
        "opened": ["16514", "49152-49215"],
        "closed": ["5900-5999"],
    }
    assert port_rules.guard([], ["10-12", 13, "20"], ["12-21"])["closed"] == ["14-19", "21"], (
        "what is open is not closed"
    )


WRONG = {
    "no-network": ({"sources": ["hv1"]}, "hv1 is no network"),
    "host-bits": ({"sources": ["192.0.2.7/24"]}, "192.0.2.7/24 is no network"),
    "words": ({"closed": ["vnc"]}, "vnc is no port"),
    "backwards": ({"opened": ["20-10"]}, "20-10 is no port"),
    "too-large": ({"closed": ["70000"]}, "70000 is no port"),
    "ssh": ({"closed": ["1-1024"]}, "Port 22 carries ssh"),
    "text": ({"sources": "192.0.2.0/24"}, "sources must be lists"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_said(case: str) -> None:
    wish, words = WRONG[case]
    problems = filters.problems({"sources": [], "opened": [], "closed": [], **wish}, 22)
    assert len(problems) == 1
    assert words in problems[0]


def test_what_makes_sense_is_no_problem() -> None:
    assert filters.problems({"sources": ["::/0"], "opened": [16514], "closed": ["5900-6923"]}, "22") == []


# --- nftables, as it lists its tables: versions nest the flags of TCP differently


def listing(rules: Any, flags: Any) -> Any:
    """What `nft --json list table inet kvmfleet` prints when RULES are live."""

    def field(protocol: str, name: str) -> Any:
        return {"payload": {"protocol": protocol, "field": name}}

    def rule(verdict: str, *matches: Any) -> Any:
        parts = [{"match": {"op": op, "left": left, "right": right}} for op, left, right in matches]
        return {"rule": {"chain": "input", "handle": 7, "expr": [*parts, {verdict: None}]}}

    def element(text: str) -> Any:
        if "/" in text:
            return {"prefix": {"addr": text.split("/")[0], "len": int(text.split("/")[1])}}
        if "-" in text:
            return {"range": [int(end) for end in text.split("-")]}
        return int(text) if text.isdecimal() else text

    port = field("tcp", "dport")
    return {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "kvmfleet", "handle": 24}},
            *(
                {"set": {"name": name, "elem": [element(text) for text in texts]}}
                for name, texts in rules.items()
                if texts
            ),
            *({"set": {"name": name}} for name, texts in rules.items() if not texts),
            {"chain": {"name": "input", "type": "filter", "hook": "input", "prio": -10, "policy": "accept"}},
            rule("accept", ("==", {"meta": {"key": "iifname"}}, "lo")),
            rule("accept", ("!=", {"&": [field("tcp", "flags"), flags]}, "syn")),
            rule("accept", ("==", port, "@opened"), ("==", field("ip", "saddr"), "@sources4")),
            rule("accept", ("==", port, "@opened"), ("==", field("ip6", "saddr"), "@sources6")),
            rule("drop", ("==", port, "@opened")),
            rule("drop", ("==", port, "@closed")),
        ]
    }


FLAGS = {"1.0.6": ["fin", "syn", "rst", "ack"], "1.1.3": {"|": ["fin", "syn", "rst", "ack"]}}


@pytest.mark.parametrize("version", FLAGS)
@pytest.mark.parametrize("summary", [port_rules.summary, security.summary], ids=["module", "collector"])
def test_module_and_collector_read_what_the_contract_promises(summary: Any, version: str) -> None:
    for rules in (RULES, port_rules.guard([], [16514], [])):
        said = summary(listing(rules, FLAGS[version]))
        promised = filters.promise({"sources": [], "opened": [], "closed": []}, "nftables")
        assert said == port_rules.promised(rules)
        assert said["rules"] == promised["rules"]


def test_a_rule_that_is_not_ours_is_read_as_such() -> None:
    changed = listing(RULES, FLAGS["1.0.6"])
    changed["nftables"].append({"rule": {"expr": [{"counter": {"packets": 1}}, {"jump": {"target": "x"}}]}})
    changed["nftables"].append({"chain": {"name": "other"}})
    for summary in (port_rules.summary, security.summary):
        assert summary(changed)["rules"][-2:] == ["counter jump", "chain other"]


def test_the_file_replaces_the_table_in_one_step_and_names_no_empty_elements() -> None:
    text = port_rules.table(port_rules.guard([], [16514], []))
    lines = text.splitlines()
    assert lines[1:4] == ["table inet kvmfleet", "delete table inet kvmfleet", "table inet kvmfleet {"]
    assert "{ }" not in text
    assert "flush" not in text


def test_the_policy_of_firewalld_says_what_firewalld_lists() -> None:
    root = ElementTree.fromstring(port_rules.policy(RULES))
    assert (root.get("target"), root.find("egress-zone").get("name")) == ("CONTINUE", "HOST")  # type: ignore[union-attr]
    said = []
    for rule in root.findall("rule"):
        source, port = rule.find("source"), rule.find("port")
        origin = (
            f' family="{rule.get("family")}" source address="{source.get("address")}"' if source is not None else ""
        )
        verdict = "accept" if rule.find("accept") is not None else "drop"
        assert port is not None
        said.append(
            f'rule priority="{rule.get("priority")}"{origin} port port="{port.get("port")}" protocol="tcp" {verdict}'
        )
    assert sorted(said) == port_rules.rich_rules(RULES)


# --- the module that guards ports


class Machine:
    """A host below a folder, with an nft, a systemd and a ufw that only remember."""

    def __init__(self, root: Path, *commands: str) -> None:
        self.root, self.commands, self.calls = root, {"nft", "systemctl", *commands}, []
        self.live: Any = None
        self.unit = {"is-enabled": "disabled", "is-active": "inactive"}
        self.ufw: dict[str, str] = {}
        self.rich: list[str] = []
        (root / "run/systemd/system").mkdir(parents=True)

    def run(self, argv: list[str], given: str = "") -> tuple[int, str, str]:
        words = " ".join(argv)
        if argv[0] == "nft" and "list" in argv:
            return (0, json.dumps(self.live), "") if self.live else (1, "", "Error: No such file or directory")
        if argv[:2] == ["systemctl", "is-enabled"] or argv[:2] == ["systemctl", "is-active"]:
            return 0, self.unit[argv[1]] + "\n", ""
        if words == "ufw show added":
            return 0, "".join(f"ufw {rule}\n" for rule in self.ufw.values()), ""
        if words == "firewall-cmd --policy kvmfleet --list-rich-rules":
            return 0, "".join(f"{rule}\n" for rule in self.rich), ""
        if words != "firewall-cmd --state" and "--check" not in argv:
            self.calls.append(words)
        if words == "nft --file -":
            self.live = listing(self.now, FLAGS["1.1.3"])
        elif words.startswith(("nft delete", "systemctl disable --now")):
            self.live = None
        elif words.startswith("systemctl enable"):
            self.unit["is-enabled"] = "enabled"
        elif words.startswith("systemctl start"):
            self.unit["is-active"] = "active"
        elif words == "firewall-cmd --reload":
            self.rich = port_rules.rich_rules(self.now)
        elif words.startswith("ufw allow"):
            self.ufw[argv[5]] = f"allow from {argv[5]} to any port {argv[9]} proto tcp comment 'kvmfleet'"
        elif words.startswith("ufw --force delete"):
            del self.ufw[argv[7]]
        return 0, "", ""

    def settle(self, rules: Any = RULES, backend: str = "auto", *, check: bool = False) -> tuple[str, list[str]]:
        self.now = rules
        with open_record(str(self.root / "lib/record.json"), check=check) as record:
            which = {name: f"/usr/sbin/{name}" for name in self.commands}.get
            host = port_guard.Host(self.run, record, check, [], str(self.root), which)
            return port_guard.settle(host, backend, rules), host.done

    def recorded(self) -> Any:
        return json.loads((self.root / "lib/record.json").read_text())


def test_a_table_is_loaded_and_comes_back_after_a_boot(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.settle(check=True)[1]
    assert (machine.calls, list(tmp_path.glob("etc"))) == ([], []), "check mode touches nothing"
    backend, done = machine.settle()
    assert backend == "nftables"
    assert done
    assert machine.unit == {"is-enabled": "enabled", "is-active": "active"}
    assert (tmp_path / "etc/kvmfleet/firewall.nft").read_text() == port_rules.table(RULES)
    unit = (tmp_path / "etc/systemd/system/kvmfleet-firewall.service").read_text()
    assert "ReloadPropagatedFrom=nftables.service" in unit
    assert machine.settle() == ("nftables", [])
    assert machine.settle(check=True) == ("nftables", [])


def test_a_flushed_ruleset_is_loaded_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.settle()
    machine.live = None
    assert machine.settle()[1] == ["the rules are loaded"]


def test_a_table_without_its_declaration_is_taken_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "ufw")
    machine.settle()
    machine.settle(port_rules.guard([], [], []), "none")
    assert machine.live is None
    assert [path for path in (tmp_path / "etc").rglob("*") if path.is_file()] == []
    assert (machine.ufw, machine.recorded()) == ({}, {})
    assert machine.settle(port_rules.guard([], [], []), "none") == ("none", [])


def test_where_firewalld_runs_the_rules_are_a_policy_of_its(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.settle()
    machine.commands.add("firewall-cmd")  # installed since
    backend, _ = machine.settle()
    assert backend == "firewalld"
    assert machine.live is None, "one of them is enough"
    assert "firewall-cmd --reload" in machine.calls
    assert machine.settle() == ("firewalld", [])
    machine.rich = []
    assert machine.settle()[1] == ["firewalld reads its policies"]


def test_ufw_lets_the_sources_in_and_forgets_those_that_left(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "ufw")
    machine.ufw["theirs"] = "allow 22/tcp"
    machine.settle()
    assert set(machine.ufw) == {"theirs", "192.0.2.0/24", "2001:db8::7"}
    machine.settle(port_rules.guard(["198.51.100.0/24"], RULES["opened"], []))
    assert set(machine.ufw) == {"theirs", "198.51.100.0/24"}


def test_without_nft_the_module_says_what_to_install(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.commands.discard("nft")
    assert machine.settle(check=True)[1], "check mode on a bare host has no packages yet"
    with pytest.raises(port_guard.GuardError, match="Install the package nftables"):
        machine.settle()


# --- the module that keeps sockets


class Systemd:
    """A systemd whose units have the sockets of a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.active_tcp, self.group = root, [], False, ""
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "etc/systemd/system").mkdir(parents=True)
        self.path = root / "run/libvirt-sock"
        self.listener = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(self.path.parent)  # the path of a socket has little room
        self.listener.bind(self.path.name)
        os.chdir(here)
        self.path.chmod(0o666)

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[1] == "show":
            names = argv[argv.index("--") + 1 :]
            return 0, "\n\n".join(self.show(name) for name in names), ""
        self.calls.append(" ".join(argv[1:]))
        for name in argv[2:]:
            link = self.root / "etc/systemd/system" / name
            if argv[1] == "mask" and name != "--now":
                link.symlink_to("/dev/null")
            elif argv[1] == "unmask":
                link.unlink()
        return 0, "", ""

    def show(self, name: str) -> str:
        there = name in ("libvirtd.socket", "libvirtd-tcp.socket")
        active = "active" if self.active_tcp or name == "libvirtd.socket" else "inactive"
        return (
            f"Id={name}\nLoadState={'loaded' if there else 'not-found'}\nActiveState={active}\nUnitFileState=enabled\n"
            f"Listen=/run/libvirt-sock (Stream)\nSocketMode=0666\nSocketGroup={self.group}"
        )

    def settle(self, group: str = "", masked: Any = (), *, widen: bool = False, check: bool = False) -> Any:
        with open_record(str(self.root / "lib/record.json"), check=check) as record:
            host = socket_access.Host(self.run, record, check, [], [], str(self.root), lambda name: name)
            socket_access.settle(host, ["libvirtd.socket", "virtqemud.socket"], group, list(masked), widen=widen)
            return host

    @property
    def mode(self) -> int:
        return self.path.stat().st_mode & 0o777


@pytest.fixture
def systemd(tmp_path: Path) -> Any:
    found = Systemd(tmp_path)
    yield found
    found.listener.close()


MY_GROUP = socket_access._group(os.getgid())
TCP = ["libvirtd-tcp.socket", "virtproxyd-tcp.socket"]


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_a_socket_is_closed_at_once_and_opened_only_when_told_so(systemd: Any) -> None:
    dropin = systemd.root / "etc/systemd/system/libvirtd.socket.d/kvmfleet-access.conf"
    assert systemd.settle(MY_GROUP, check=True).done
    assert (systemd.mode, dropin.exists()) == (0o666, False)
    assert systemd.settle(MY_GROUP).wider == []
    assert systemd.mode == 0o660
    assert f"SocketMode=0660\nSocketGroup={MY_GROUP}\n" in dropin.read_text()
    assert systemd.settle(MY_GROUP).done == []

    host = systemd.settle("")
    assert host.done
    assert host.wider
    assert (systemd.mode, dropin.exists()) == (0o660, True), "the daemon may not ask yet who comes"
    systemd.settle("", widen=True)
    assert (systemd.mode, dropin.exists()) == (0o666, False)
    assert systemd.settle("").done == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_a_socket_that_was_opened_by_hand_is_closed_again(systemd: Any) -> None:
    systemd.settle(MY_GROUP)
    systemd.path.chmod(0o777)
    assert len(systemd.settle(MY_GROUP).done) == 1
    assert systemd.mode == 0o660


def test_plain_tcp_is_masked_and_only_our_own_mask_is_taken_back(systemd: Any) -> None:
    (systemd.root / "etc/systemd/system/virtproxyd-tcp.socket").symlink_to("/dev/null")  # theirs
    assert systemd.settle("", TCP).done == ["libvirtd-tcp.socket is masked"]
    assert systemd.calls == ["mask libvirtd-tcp.socket"]
    assert systemd.settle("", TCP).done == []
    assert systemd.settle("", []).done == ["libvirtd-tcp.socket is no longer masked"]
    assert systemd.settle("", []).done == []


def test_a_daemon_that_holds_the_tcp_socket_is_restarted(systemd: Any) -> None:
    systemd.active_tcp = True
    systemd.settle("", TCP[:1])
    assert systemd.calls[1] == "try-restart libvirtd.service"


@pytest.mark.parametrize("calls", range(3))
def test_a_daemon_does_not_keep_the_tcp_socket_because_a_run_was_killed(systemd: Any, calls: int) -> None:
    systemd.active_tcp, whole = True, systemd.run
    with open_record(str(systemd.root / "lib/record.json")) as record:  # somebody started it later
        record.note("unit", TCP[0], {"enabled": False, "active": False, "masked": False})

    def killed(argv: list[str]) -> tuple[int, str, str]:
        if argv[1] != "show" and len(systemd.calls) == calls:
            raise KeyboardInterrupt
        systemd.active_tcp &= argv[1] != "stop"
        answer: tuple[int, str, str] = whole(argv)
        return answer

    systemd.run = killed
    with pytest.raises(KeyboardInterrupt):
        systemd.settle("", TCP[:1])
    systemd.run = whole
    systemd.settle("", TCP[:1])
    assert "try-restart libvirtd.service" in systemd.calls
    assert systemd.calls[-1] == "mask libvirtd-tcp.socket"
    assert systemd.settle("", TCP[:1]).done == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_a_dropin_that_a_killed_run_left_unread_is_read(systemd: Any) -> None:
    systemd.settle(MY_GROUP)
    systemd.calls.clear()
    systemd.group = MY_GROUP
    systemd.settle(MY_GROUP)
    assert systemd.calls == []
    systemd.group = ""
    systemd.settle(MY_GROUP)
    assert systemd.calls == ["daemon-reload"]


# --- SELinux


class Selinux:
    """A kernel with booleans as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "booleans").mkdir()
        self.set("virt_use_nfs", False)

    def set(self, name: str, value: bool) -> None:
        (self.root / "booleans" / name).write_text(f"{int(value)} {int(value)}")

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        assert argv[:2] == ["setsebool", "-P"]
        for pair in argv[2:]:
            self.set(pair.split("=")[0], pair.endswith("=on"))
        return 0, "", ""

    def settle(self, booleans: Any, *, check: bool = False) -> Any:
        with open_record(str(self.root / "lib/record.json"), check=check) as record:
            return selinux_booleans.settle(
                selinux_booleans.Host(self.run, record, check, str(self.root / "booleans")), booleans
            )


def test_a_boolean_is_set_and_given_back(tmp_path: Path) -> None:
    selinux = Selinux(tmp_path)
    assert selinux.settle({"virt_use_nfs": True}, check=True) == {"virt_use_nfs": True}
    assert selinux.settle({"virt_use_nfs": True}) == {"virt_use_nfs": True}
    assert selinux.settle({"virt_use_nfs": True}) == {}
    assert selinux.settle({}) == {"virt_use_nfs": False}
    assert selinux.settle({}) == {}


def test_a_boolean_that_the_policy_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(selinux_booleans.BooleanError, match="no boolean virt_use_zfs"):
        Selinux(tmp_path).settle({"virt_use_zfs": True})


def test_without_selinux_nothing_is_asked_for(tmp_path: Path) -> None:
    with open_record(str(tmp_path / "lib/record.json")) as record:
        host = selinux_booleans.Host(None, record, False, str(tmp_path / "none"))
        assert selinux_booleans.settle(host, {"virt_use_nfs": True}) == {}


# --- what the collector sees


def test_listeners_that_only_the_host_itself_reaches_do_not_count() -> None:
    table = """  sl  local_address rem_address   st
   0: 00000000:407D 00000000:0000 0A
   1: 0100007F:4082 00000000:0000 0A
   2: 00000000:0016 00000000:0000 0A
   3: 0B03D50A:407D 0103D50A:9722 01
"""
    assert security.listening(table) == [16509]


def test_a_guest_is_seen_with_its_owner_and_its_sandbox(tmp_path: Path) -> None:
    for pid, exe in (("7", "/usr/bin/qemu-system-x86_64 (deleted)"), ("8", "/usr/bin/qemu-img"), ("9", "/usr/bin/sh")):
        folder = tmp_path / pid
        (folder / "attr").mkdir(parents=True)
        (folder / "exe").symlink_to(exe)
        (folder / "cmdline").write_bytes(b"qemu\0-name\0guest=web,debug-threads=on\0-S\0")
        (folder / "status").write_text("Name:\tqemu\nSeccomp:\t2\nSeccomp_filters:\t9\n")
        (folder / "attr/current").write_text("libvirt-1 (enforce)\n")
    # a look that a hardened service takes has more filters than any guest
    for name, count in (("1", 8), ("self", 12)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status").write_text(f"Seccomp:\t2\nSeccomp_filters:\t{count}\n")
    (guest,) = security.guests(str(tmp_path))
    assert (guest["pid"], guest["name"], guest["sandboxed"]) == (7, "web", True)
    (tmp_path / "1/status").write_text("Seccomp:\t2\nSeccomp_filters:\t9\n")
    assert security.guests(str(tmp_path))[0]["sandboxed"] is False, "a container filters for everybody in it"
    assert (guest["label"], guest["uid"]) == ("libvirt-1 (enforce)", os.getuid())


def test_ufw_s_own_file_tells_who_is_let_in() -> None:
    rules = """### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow tcp 16514,49152:49215 0.0.0.0/0 any 192.0.2.0/24 in comment=6b766d666c656574
-A ufw-user-input -p tcp -j ACCEPT
"""
    assert security.ufw(rules) == ["16514,49152:49215 192.0.2.0/24", "22 0.0.0.0/0"]
