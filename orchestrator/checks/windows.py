"""Could this host run Windows guests? Nothing here fails: where Windows is not asked for, what lacks is no matter."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.checks.registry import Case, Check, check, not_applicable, passed, warned
from orchestrator.model.evidence import Windows
from orchestrator.model.finding import Finding

Look = Callable[[Windows], tuple[str, str]]
"""What is there, "" when it is not enough; then what to do about it."""

OFFERED = "domcapabilities of libvirt for a machine q35"
NEEDED = ("relaxed", "vapic", "spinlocks")
DISTRIBUTED = ("rhel", "centos", "almalinux", "rocky", "ol")  # they have a package virtio-win


def _readiness(
    id: str, title: str, *, explained_by: tuple[str, ...], proves: str, how: str, todo: str
) -> Callable[[Look], Check]:
    """A check that passes with what is there, warns where the contract asks for Windows, and is silent elsewhere."""

    def make(look: Look) -> Check:
        def find(case: Case) -> Finding:
            seen, lacks = look(case.evidence.windows)
            if seen:
                return passed(seen)
            if not case.wishes.qemu.windows:
                return not_applicable(f"not ready for Windows guests, and not asked for: {lacks}")
            return warned(f"not ready for Windows guests: {lacks}", expected=title, seen=lacks, fix=todo)

        return check(
            id,
            title,
            sections=("windows",),
            requires=("libvirt.connect",),
            explained_by=explained_by,
            proves=proves,
            how=how,
            todo=todo,
        )(find)

    return make


@_readiness(
    "windows.q35",
    "Guests can have a q35 machine",
    explained_by=("qemu.binary", "qemu.kvm"),
    proves="libvirt offers the machine with PCI Express and SMM, which secure boot needs.",
    how=f"{OFFERED}.",
    todo="Install the distribution's QEMU for x86_64.",
)
def q35(found: Windows) -> tuple[str, str]:
    return (found.machine if "q35" in found.machine else ""), found.error or "libvirt offers no machine q35"


@_readiness(
    "windows.firmware",
    "Guests can have secure boot",
    explained_by=("qemu.binary", "qemu.kvm", "qemu.firmware"),
    proves="There is UEFI firmware with secure boot in which Microsoft's keys are enrolled, and libvirt can select it.",
    how=f"{OFFERED}; and firmware descriptors with the features secure-boot and enrolled-keys, whose files are there.",
    todo="Install the package ovmf or edk2-ovmf, as the distribution calls it.",
)
def firmware(found: Windows) -> tuple[str, str]:
    if "efi" not in found.firmware or "yes" not in found.secure:
        return "", found.error or "libvirt offers no firmware with secure boot"
    return ", ".join(found.enrolled), "no firmware has Microsoft's keys enrolled"


@_readiness(
    "windows.tpm",
    "Guests can have a TPM 2.0",
    explained_by=("qemu.binary", "qemu.kvm", "qemu.tpm"),
    proves="libvirt can give a guest an emulated TPM 2.0, which Windows 11 demands.",
    how=f"{OFFERED}: backend emulator, version 2.0. Where libvirt tells no version, swtpm's is 2.0.",
    todo="Install swtpm and swtpm-tools, then restart the libvirt daemon: it looks only once.",
)
def tpm(found: Windows) -> tuple[str, str]:
    if "emulator" not in found.tpm_backends:
        return "", found.error or "libvirt offers no emulated TPM"
    versions = ", ".join(found.tpm_versions)
    if versions and "2.0" not in found.tpm_versions:
        return "", f"the emulated TPM is of version {versions}"
    return f"emulator{versions and ' '}{versions} as {', '.join(found.tpm_models)}", ""


@_readiness(
    "windows.hyperv",
    "Guests can have Hyper-V enlightenments",
    explained_by=("qemu.binary", "libvirt.kvm"),
    proves="KVM offers the interfaces with which Windows keeps time and waits for locks without wasting the processor.",
    how=f"{OFFERED}: {', '.join(NEEDED)} at least. Where libvirt tells of none of this, that is what lacks.",
    todo="They come with KVM on x86_64: make the checks of kvm pass first.",
)
def hyperv(found: Windows) -> tuple[str, str]:
    missing = [name for name in NEEDED if name not in found.hyperv]
    if not found.error and not found.tells_hyperv:
        return "", "this libvirt does not tell which enlightenments it offers"
    if missing:
        return "", found.error or f"without {', '.join(missing)}"
    return f"{len(found.hyperv)} enlightenments: {', '.join(found.hyperv)}", ""


@check(
    "windows.drivers",
    "The drivers for Windows guests are here",
    sections=("windows", "system"),
    proves="The image with the virtio drivers, which Windows lacks, is on this host.",
    how="/usr/share/virtio-win/virtio-win.iso, where the package virtio-win puts it, or virtio-win.iso in libvirt's "
    f"images. Distributions with that package: {', '.join(DISTRIBUTED)}; elsewhere its absence is not judged.",
    todo="Install the package virtio-win.",
)
def drivers(case: Case) -> Finding:
    found, system = case.evidence.windows.drivers, case.evidence.system.os_id
    if found:
        return passed(found)
    if system not in DISTRIBUTED:
        return not_applicable(f"{system or 'this system'} has no package virtio-win")
    if not case.wishes.qemu.windows:
        return not_applicable("no virtio-win, and Windows guests are not asked for")
    return warned("no virtio-win", expected="virtio-win.iso", seen="absent", fix="Install the package virtio-win.")


CHECKS = (q35, firmware, tpm, hyperv, drivers)
