"""Faults of what keeps guests apart, and strangers out."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault
from orchestrator.lab.faults.libvirt import QEMU

PROGRAM = "/usr/bin/qemu-system-x86_64"
EMULATOR = f"{PROGRAM} -machine none -nodefaults -display none"
UNIT = "kvmfleet-drill-guest"
GUEST = f"systemd-run --quiet --collect --unit={UNIT} --property=Type=exec --property=SuccessExitStatus=143"
"""Returns when the program is executed."""

SANDBOXED = f"""
filters() {{ sed -n 's/^Seccomp_filters:.//p' "/proc/$1/status"; }}
pid=$(systemctl show -P MainPID {UNIT})
for try in $(seq 250); do [ "$(filters "$pid")" -le "$(filters $$)" ] || break; sleep 0.1; done
"""
"""Until it has begun with its sandbox, or has ended; no longer than 25 s."""

LISTENER = """\
systemd-run --quiet --collect --unit=kvmfleet-drill-listener python3 -c '
import socket, time
server = socket.create_server(("0.0.0.0", 16509))
time.sleep(86400)'
until ss -Hltn 2>/dev/null | grep -q ':16509 ' || grep -qi ':407D 00000000:0000 0A' /proc/net/tcp; do sleep 0.1; done"""

FAULTS = (
    Fault(
        id="guest-as-root",
        says="A QEMU runs as root.",
        check="security.user",
        inject=f"{GUEST} {EMULATOR} -sandbox on{SANDBOXED}",
        heal=f"systemctl stop {UNIT} || true",
    ),
    Fault(
        id="guest-without-sandbox",
        says="A QEMU runs without its sandbox.",
        check="security.sandbox",
        inject=f"{GUEST} --uid=libvirt-qemu {EMULATOR}",
        heal=f"systemctl stop {UNIT} || true",
        needs=("security/sandbox",),
    ),
    Fault(
        id="sandbox-off",
        says="QEMU's sandbox is switched off in QEMU's file.",
        check="libvirt.settings",
        inject=f"keep {QEMU}; sed -i 's/^seccomp_sandbox *=.*/seccomp_sandbox = 0/' {QEMU}",
        heal=f"back {QEMU}",
        needs=("security/sandbox",),
    ),
    Fault(
        id="guest-on-removed-qemu",
        says="A guest runs on a QEMU that was replaced since.",
        check="qemu.current",
        inject=f"{GUEST} --uid=libvirt-qemu {EMULATOR} -sandbox on{SANDBOXED}"
        f"keep {PROGRAM}; cp -a {PROGRAM} {PROGRAM}.new; mv -f {PROGRAM}.new {PROGRAM}",
        heal=f"systemctl stop {UNIT} || true; back {PROGRAM}",
    ),
    Fault(
        id="qemu-conf-root",
        says="QEMU's file tells libvirt to start guests as root, from the daemon's next start on.",
        check="security.qemu_conf",
        inject=f"keep {QEMU}; echo 'user = \"root\"' >> {QEMU}; touch -r $kept{QEMU} {QEMU}",
        heal=f"back {QEMU}",
    ),
    Fault(
        id="qemu-user-in-libvirt",
        says="QEMU's user is in libvirt's group, so that a guest that breaks out becomes root.",
        check="security.members",
        inject="usermod -aG libvirt libvirt-qemu",
        heal="gpasswd -d libvirt-qemu libvirt || true",
    ),
    Fault(
        id="socket-open-to-all",
        says="Everybody may open the socket through which guests are changed.",
        check="security.sockets",
        inject="stat -c %a /run/libvirt/libvirt-sock > $kept/mode; chmod 0666 /run/libvirt/libvirt-sock",
        heal="chmod $(cat $kept/mode) /run/libvirt/libvirt-sock",
        needs=("security/socket_group",),
    ),
    Fault(
        id="socket-of-another-group",
        says="The socket through which guests are changed belongs to a group of ordinary users.",
        check="security.sockets",
        inject="stat -c %G /run/libvirt/libvirt-sock > $kept/group; chgrp users /run/libvirt/libvirt-sock",
        heal="chgrp $(cat $kept/group) /run/libvirt/libvirt-sock",
        needs=("security/socket_group",),
    ),
    Fault(
        id="plain-tcp",
        says="Something listens on libvirt's port for plain TCP, for all addresses.",
        check="security.sockets",
        inject=LISTENER,
        heal="systemctl stop kvmfleet-drill-listener || true",
    ),
    Fault(
        id="firewall-flushed",
        says="Somebody flushed the rules that guard libvirt's ports.",
        check="security.firewall",
        inject="nft delete table inet kvmfleet",
        heal="systemctl restart kvmfleet-firewall",
        needs=("security/firewall/rules",),
    ),
    Fault(
        id="firewall-opened",
        says="Somebody let the whole world in among the sources that may migrate guests here.",
        check="security.firewall",
        inject="nft add element inet kvmfleet sources4 '{ 203.0.113.0/24 }'",
        heal="systemctl restart kvmfleet-firewall",
        needs=("security/firewall/rules",),
    ),
    Fault(
        id="firewall-rule-added",
        says="Somebody put a rule of his own before ours.",
        check="security.firewall",
        inject="chain=$(nft list table inet kvmfleet | sed -n 's/^.chain \\([a-z0-9_-]*\\) .*/\\1/p' | head -n 1)\n"
        "nft insert rule inet kvmfleet $chain tcp dport 5900 accept",
        heal="systemctl restart kvmfleet-firewall",
        needs=("security/firewall/rules",),
    ),
    Fault(
        id="firewall-not-at-boot",
        says="Nothing loads the rules at the next boot.",
        check="security.firewall",
        inject="systemctl disable kvmfleet-firewall",
        heal="systemctl enable kvmfleet-firewall",
        needs=("security/firewall/rules",),
    ),
)
