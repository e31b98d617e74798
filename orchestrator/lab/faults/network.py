"""Faults of libvirt's networks, and of the host's bridges."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

VIRSH = "virsh -q -c qemu:///system"
NETWORK, BRIDGE = ("networks",), ("bridges",)
EDIT = "s|</network>|<domain name='edited.example'/></network>|"
DUMP = f'{VIRSH} net-dumpxml --inactive "$1" > $kept/network.xml'
AGAIN = f'{VIRSH} net-define $kept/network.xml; {VIRSH} net-autostart "$1"'
RUN = f'{VIRSH} net-start "$1"'

FAULTS = (
    Fault(
        id="network-stopped",
        says="A network of the contract does not run.",
        check="network.active",
        inject=f'{VIRSH} net-destroy "$1"',
        heal=f"{RUN} || true",
        needs=NETWORK,
    ),
    Fault(
        id="network-not-at-boot",
        says="A network of the contract does not start with the host.",
        check="network.active",
        inject=f'{VIRSH} net-autostart --disable "$1"',
        heal=f'{VIRSH} net-autostart "$1"',
        needs=NETWORK,
    ),
    Fault(
        id="network-gone",
        says="A network of the contract was removed.",
        check="network.active",
        inject=f'{DUMP}; {VIRSH} net-destroy "$1"; {VIRSH} net-undefine "$1"',
        heal=f"{AGAIN}; {RUN} || true",
        needs=NETWORK,
    ),
    Fault(
        id="network-only-running",
        says="A network of the contract runs, and is gone when it stops: its definition was removed.",
        check="network.active",
        inject=f'{DUMP}; {VIRSH} net-undefine "$1"',
        heal=AGAIN,
        needs=NETWORK,
    ),
    Fault(
        id="network-edited",
        says="Somebody edited the definition of a network, for the next start.",
        check="network.equal",
        inject=f'{DUMP}\nsed "{EDIT}" $kept/network.xml > $kept/edited\n{VIRSH} net-define $kept/edited',
        heal=AGAIN,
        needs=NETWORK,
    ),
    Fault(
        id="network-changed-live",
        says="Somebody changed a network as it runs; its definition says what the contract says.",
        check="network.equal",
        inject=f"""\
{VIRSH} net-update "$1" add dns-txt "<txt name='drill.example' value='drill'/>" --live""",
        heal=f"""\
{VIRSH} net-update "$1" delete dns-txt "<txt name='drill.example' value='drill'/>" --live || true""",
        needs=NETWORK,
    ),
    Fault(
        id="bridge-gone",
        says="A bridge of the host is gone.",
        check="network.bridge",
        inject='ip link delete "$1"',
        heal='ip link show "$1" >/dev/null 2>&1 || networkctl reload; sleep 0.5\n'
        'ip link show "$1" >/dev/null 2>&1 || systemctl restart systemd-networkd',
        needs=BRIDGE,
    ),
)
