"""Faults of libvirt's networks, and of the host's bridges."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

VIRSH = "virsh -q -c qemu:///system"
NETWORK, BRIDGE = ("networks",), ("bridges",)
LINK = f'{VIRSH} net-info "$1" | sed -n "s/^Bridge: *//p" > $kept/bridge; bridge=$(cat $kept/bridge)'
RESTART = f'{VIRSH} net-destroy "$1" || true; {VIRSH} net-start "$1"'
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
        id="network-bridge-gone",
        says="The bridge of a network that runs was deleted.",
        check="network.link",
        inject=f"{LINK}; ip link delete $bridge",
        heal=RESTART,
        needs=NETWORK,
    ),
    Fault(
        id="network-bridge-down",
        says="The bridge of a network that runs is down.",
        check="network.link",
        inject=f"{LINK}; ip link set $bridge down",
        heal="ip link set $(cat $kept/bridge) up",
        needs=NETWORK,
    ),
    Fault(
        id="forwarding-off",
        says="The host does not forward packets any more.",
        check="network.forwarding",
        inject="sysctl -q -w net.ipv4.ip_forward=0",
        heal="sysctl -q -w net.ipv4.ip_forward=1",
        needs=NETWORK,
    ),
    Fault(
        id="rules-flushed",
        says="Somebody flushed the firewall, and libvirt's rules with it.",
        check="network.firewall",
        inject="iptables -F; iptables -t nat -F",
        heal="systemctl restart libvirtd.service",
        needs=NETWORK,
    ),
    Fault(
        id="dnsmasq-killed",
        says="The dnsmasq of a network was killed: guests get no addresses.",
        check="network.dnsmasq",
        inject='kill "$(cat /run/libvirt/network/$1.pid)"; sleep 0.3',
        heal=RESTART,
        needs=NETWORK,
    ),
    Fault(
        id="route-elsewhere",
        says="A route leads addresses of a network's guests to another device.",
        check="network.collisions",
        inject=f"{LINK}\nsubnet=$(ip -o -4 route show dev $bridge scope link | cut -d ' ' -f 1)\n"
        "ip link add kvmf-drill type bridge; ip link set kvmf-drill up\n"
        "ip route add $subnet dev kvmf-drill metric 50",
        heal="ip link delete kvmf-drill || true",
        needs=NETWORK,
    ),
    Fault(
        id="bridge-mtu",
        says="A bridge of the host lets in larger packets than its port takes.",
        check="network.mtu",
        inject="""\
ip link add kvmf-drill type veth peer name kvmf-drill2
ip link set kvmf-drill mtu 1400 master "$1" up; ip link set kvmf-drill2 mtu 1400 up
ip link set "$1" mtu 1500""",
        heal="ip link delete kvmf-drill || true",
        needs=BRIDGE,
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
