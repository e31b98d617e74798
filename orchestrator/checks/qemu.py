"""Is the emulator complete, does it use KVM, and is it the one that guests run on?"""

from __future__ import annotations

import re

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.finding import Finding
from orchestrator.text import listed

PACKAGE = re.compile(r"qemu-(system-\w+|x86|arm|kvm|base)")
"""The package that brings the emulator, by its name on every platform: not its parts, nor what lies beside it."""


@check(
    "qemu.binary",
    "QEMU starts",
    sections=("qemu",),
    explained_by=("contract.packages",),
    proves="The QEMU that libvirt will start is installed and starts.",
    how="The contract's binary, or the first of those that distributions install, is started and tells its version.",
    todo=PROVISION,
)
def binary(case: Case) -> Finding:
    found, wanted = case.evidence.qemu, case.wishes.qemu.binary
    if not found.binary:
        name = wanted or "QEMU"
        return failed(f"{name} is not installed", expected=wanted or "a system emulator", seen="absent", fix=PROVISION)
    if found.error or not found.version:
        why = found.error or "it prints no version"
        return failed(
            f"{found.binary} does not start: {why}", expected="starts", seen=why, fix="Install the package again."
        )
    return passed(f"{found.binary} {found.version}")


def numbers(version: str) -> tuple[int, ...]:
    """The upstream version of a package, or of a program, as numbers: 1:7.2+dfsg-7 is 7, 2."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(number) for number in found.group(1).split(".")) if found else ()


@check(
    "qemu.version",
    "QEMU is the one of its package",
    sections=("qemu", "packages"),
    requires=("contract.present", "qemu.binary"),
    explained_by=("contract.packages",),
    proves="The QEMU that libvirt starts has the version of the installed package, and not one that somebody put there "
    "beside it, which gets no security updates.",
    how="Major and minor number of its version, against the version of the contract's package.",
    todo="Find out where it comes from: `dpkg -S PATH` or `rpm -qf PATH`. Install the package again.",
)
def version(case: Case) -> Finding:
    found = case.evidence.qemu
    packages = {name: text for name, text in case.evidence.packages.items() if PACKAGE.fullmatch(name) and text}
    if not packages:
        return not_applicable("the contract names no installed package of QEMU")
    known = {numbers(text)[:2] for text in packages.values()} - {()}
    if not known:
        return undecided(f"no number in {next(iter(packages.values()))}", fix="Compare by hand; please report it.")
    if numbers(found.version)[:2] not in known:
        name, text = next(iter(packages.items()))
        return warned(
            f"{found.binary} is {found.version}, the package {name} is {text}",
            expected=text,
            seen=found.version,
            fix=f"Find out where {found.binary} comes from, and install the package {name} again.",
        )
    return passed(f"{found.version}, of {', '.join(packages)}")


@check(
    "qemu.kvm",
    "QEMU can use KVM",
    sections=("qemu",),
    requires=("qemu.binary",),
    proves="This QEMU was built with KVM.",
    how="QEMU names its accelerators: over QMP, or with `-accel help` where it gets no KVM.",
    todo="Install the distribution's QEMU for the host's own architecture.",
)
def kvm(case: Case) -> Finding:
    found = case.evidence.qemu
    if "kvm" not in found.accelerators:
        seen = ", ".join(found.accelerators) or "none"
        return failed(
            f"{found.binary} has no KVM, only: {seen}",
            expected="kvm",
            seen=seen,
            fix="Install the distribution's QEMU.",
        )
    return passed(f"accelerators: {', '.join(found.accelerators)}")


REASONS = {
    "Permission denied": "Let QEMU's user open /dev/kvm: it belongs to the group of kvm.permission.",
    "Device or resource busy": "Another hypervisor (VirtualBox, VMware) holds the processor's virtualization: stop it.",
    "No such file or directory": "Load the module kvm_intel or kvm_amd.",
}


@check(
    "qemu.accel",
    "QEMU uses KVM",
    sections=("qemu", "kvm"),
    requires=("qemu.binary", "qemu.kvm", "kvm.node"),
    explained_by=("kvm.permission", "kvm.api", "kvm.open_as", "kvm.exec"),
    warns_in=("lab",),
    proves="This QEMU, as the user that guests run as, really gets KVM from the kernel.",
    how="QEMU is started without a machine and with KVM, asked over QMP (query-kvm), and quit: some 50 ms.",
    todo="Start it yourself, it says why: `runuser -u libvirt-qemu -- qemu-system-x86_64 -machine none,accel=kvm "
    "-display none`. What confines it has its say in `dmesg`.",
)
def accel(case: Case) -> Finding:
    found = case.evidence.qemu.accel
    who = f" as {found.user}" if found.user else ""
    if found.outcome == "skipped":
        return undecided("QEMU was not asked", fix="Run `kvmfleet validate` again.")
    if found.outcome == "broken":
        seen = "it runs without" if found.enabled is False else found.detail or "no answer"
        fix = next((text for reason, text in REASONS.items() if reason in seen), "Start it by hand: it says why.")
        return failed(f"QEMU does not get KVM{who}: {seen}", expected="enabled", seen=seen, fix=fix)
    return passed(f"QEMU {found.version} uses KVM{who}")


@check(
    "qemu.current",
    "Guests run on the installed QEMU",
    sections=("security", "qemu"),
    requires=("qemu.binary",),
    proves="No guest runs on a QEMU that was replaced or removed meanwhile: it would lack the security updates.",
    how="/proc/PID/exe of every QEMU, which says (deleted) when its file is gone or another one has its name.",
    todo="End such a guest and start it again, or migrate it away and back: a reboot from inside is not enough.",
)
def current(case: Case) -> Finding:
    guests = case.evidence.security.guests
    unread = [guest for guest in guests if not guest.binary]
    if unread:
        return undecided(f"{len(unread)} guests do not tell their program", fix="Validate as root (become).")
    old = [guest.name or f"process {guest.pid}" for guest in guests if guest.binary.endswith(" (deleted)")]
    if old:
        return warned(
            f"{len(old)} of {len(guests)} guests run on a QEMU that was replaced: {listed(old)}",
            expected=case.evidence.qemu.version,
            seen="an older one",
            fix="Shut those guests down and start them again, or migrate them away and back.",
        )
    return passed(f"{len(guests)} guests run on the installed QEMU" if guests else "no guest runs")


@check(
    "qemu.img",
    "Disk images can be made",
    sections=("qemu",),
    explained_by=("contract.packages",),
    proves="qemu-img is installed; libvirt's storage pools need it.",
    how="The command is looked up in root's search path.",
    todo=PROVISION,
)
def img(case: Case) -> Finding:
    if not case.evidence.qemu.img:
        return failed(f"{case.wishes.qemu.img} is not installed", expected="installed", seen="absent", fix=PROVISION)
    return passed(case.evidence.qemu.img)


@check(
    "qemu.firmware",
    "UEFI guests have firmware",
    sections=("qemu",),
    requires=("qemu.binary",),
    explained_by=("contract.packages",),
    proves="There is UEFI firmware for this architecture that libvirt can select by itself.",
    how="Descriptors in /usr/share/qemu/firmware and /etc/qemu/firmware that name the host's architecture.",
    todo="Install the package ovmf, edk2-ovmf or qemu-efi-aarch64, as the distribution calls it.",
)
def firmware(case: Case) -> Finding:
    if not case.wishes.qemu.firmware:
        return not_applicable("not asked for")
    found = case.evidence.qemu.firmware
    if not found:
        return failed("no UEFI firmware", expected="a firmware descriptor", seen="none", fix=PROVISION)
    return passed(f"{len(found)} firmware descriptors")


@check(
    "qemu.tpm",
    "Guests can have a TPM",
    sections=("qemu",),
    requires=("qemu.binary",),
    explained_by=("contract.packages",),
    proves="swtpm is installed and starts, so that guests can have a TPM 2.0.",
    how="swtpm is looked up in root's search path and run with --version.",
    todo="Install swtpm (and swtpm-tools where it is a package of its own).",
)
def tpm(case: Case) -> Finding:
    if not case.wishes.qemu.swtpm:
        return not_applicable("not asked for")
    found = case.evidence.qemu
    if not found.swtpm:
        return failed("swtpm is not installed", expected="swtpm", seen="absent", fix=PROVISION)
    if not found.swtpm_version:
        return failed(
            f"{found.swtpm} does not start", expected="a version", seen="none", fix="Install the package again."
        )
    return passed(f"{found.swtpm} {found.swtpm_version}")


CHECKS = (binary, version, kvm, accel, current, img, firmware, tpm)
