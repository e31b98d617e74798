"""Is the emulator complete?"""

from __future__ import annotations

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed
from orchestrator.model import Finding


@check(
    "qemu.binary",
    "QEMU starts",
    sections=("qemu",),
    explained_by=("contract.packages",),
    proves="The QEMU that libvirt will start is installed and starts.",
    how="The contract's binary, or the first of those that distributions install, run with --version.",
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


@check(
    "qemu.kvm",
    "QEMU can use KVM",
    sections=("qemu",),
    requires=("qemu.binary",),
    proves="This QEMU was built with KVM.",
    how="`-accel help` lists kvm.",
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


CHECKS = (binary, kvm, img, firmware, tpm)
