"""Faults of what happens to guests when their host starts and stops, and of what a guest boots with."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

POLICY, SERVICE = ("guests/file",), ("guests/unit",)

FAULTS = (
    Fault(
        id="guests-policy-changed",
        says="A line at the end of libvirt-guests' file wins over the contract's policy.",
        check="guests.policy",
        inject='keep "$1"; echo ON_SHUTDOWN=suspend >> "$1"',
        heal='back "$1"',
        needs=POLICY,
    ),
    Fault(
        id="guests-policy-gone",
        says="The file with the shutdown policy of guests is gone.",
        check="guests.policy",
        inject='hide "$1"',
        heal='back "$1"',
        needs=POLICY,
    ),
    Fault(
        id="guests-service-stopped",
        says="Nobody would look after the guests at the next shutdown: the service is stopped.",
        check="guests.service",
        inject='systemctl stop "$1"',
        heal='systemctl start "$1"',
        needs=SERVICE,
    ),
    Fault(
        id="guests-service-not-at-boot",
        says="The service that looks after guests is not enabled for the next boot.",
        check="guests.service",
        inject='systemctl disable "$1"',
        heal='systemctl enable "$1"',
        needs=SERVICE,
    ),
    Fault(
        id="guests-service-masked",
        says="Somebody masked the service that looks after guests.",
        check="guests.service",
        inject='systemctl stop "$1"; systemctl mask "$1"',
        heal='systemctl unmask "$1"; systemctl enable --now "$1"',
        needs=SERVICE,
    ),
    Fault(
        id="guest-not-at-boot",
        says="A guest that should start with the host does not.",
        check="guests.autostart",
        inject='virsh -q -c qemu:///system autostart --disable "$1"',
        heal='virsh -q -c qemu:///system autostart "$1"',
        needs=("guests/autostart",),
    ),
    Fault(
        id="guest-undefined",
        says="A guest that should start with the host does not exist any more.",
        check="guests.autostart",
        inject='virsh -q -c qemu:///system dumpxml --inactive "$1" > $kept/guest.xml\n'
        'virsh -q -c qemu:///system undefine "$1"',
        heal='virsh -q -c qemu:///system define $kept/guest.xml; virsh -q -c qemu:///system autostart "$1"',
        needs=("guests/autostart",),
    ),
    Fault(
        id="bios-gone",
        says="The firmware that boots guests from a disk is gone.",
        check="guest.boot",
        inject="hide /usr/share/seabios/bios-256k.bin",
        heal="back /usr/share/seabios/bios-256k.bin",
        depth="firmware",
    ),
)
