"""What can be booted. Each depth is a row: the parts of its domain, the milestones on its serial line, its patience.

A row is data; its `make` writes the files that the domain needs and says what only a guest that executes can answer.
"""

import html
import json
import os
import random
import re
from typing import Any, Callable, Dict, NamedTuple, Tuple

from . import bootimage, fatimage, files, shell
from .wish import Wish

SHELLS = ("/usr/share/efi-shell-x64/shellx64.efi", "/usr/share/edk2/ovmf/Shell.efi", "/usr/share/edk2/x64/Shell.efi")


class Unusable(Exception):
    """What was asked for cannot be booted on any host, so nothing is learned about this one."""


class Recipe(NamedTuple):
    """One row. Text in braces is filled in with the names of the boot, the luggage, and what `make` returns."""

    make: "Callable[[str, str, Wish], Dict[str, str]]"  # from the stem of file names, and a nonce
    milestones: Tuple[Tuple[str, str], ...]  # step, and the pattern on the serial line that shows it
    seconds: float  # of one attempt: a guest in an emulated host takes a hundred times as long as in hardware
    memory_mib: int = 64
    firmware: str = ""
    machine: str = ""  # libvirt's default, or an attribute of <type>
    system: str = "<boot dev='hd'/>"
    processor: str = ""
    disk: str = ""
    ends: bool = True  # the guest turns itself off; the others are destroyed after their last milestone


RAW = """<driver name='qemu' type='raw'/><source file='{stem}.img'/>"""
OVERLAY = """<driver name='qemu' type='qcow2'/><source file='{stem}.img'/>
      <backingStore type='file'>
        <format type='{format}'/>
        <source file='{image}'><seclabel model='dac' relabel='no'/></source>
      </backingStore>"""
DIRECT = "<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{line}</cmdline>"
NO_SECURE_BOOT = "<firmware><feature enabled='no' name='secure-boot'/></firmware><boot dev='hd'/>"
ALL_FEATURES = "<cpu mode='maximum'/>"  # the host's processor with KVM, whatever TCG knows without


def make_firmware(stem: str, nonce: str, wish: Wish) -> Dict[str, str]:
    create(stem + ".img", bootimage.image(nonce))
    return {"answer": nonce}


def make_uefi(stem: str, nonce: str, wish: Wish) -> Dict[str, str]:
    """A script for the shell that joins two halves, and the shell where the distribution keeps it out of its OVMF."""
    # no digit after a %: %1 is an argument of the script
    lines = ("@echo -off", "set -v half " + nonce[16:], "echo KVMFLEET " + nonce[:16] + "%half%", "reset -s", "")
    contents = {"STARTUP.NSH": "\r\n".join(lines).encode("ascii")}
    found = [path for path in SHELLS if os.path.isfile(path)]
    if found:
        with open(found[0], "rb") as stream:
            contents["EFI/BOOT/BOOTX64.EFI"] = stream.read(fatimage.CLUSTERS * fatimage.CLUSTER // 2)
    create(stem + ".img", fatimage.image(contents))
    return {"answer": nonce}


def make_alpine(stem: str, nonce: str, wish: Wish) -> Dict[str, str]:
    """The kernel repeats its command line on the console, so the shell has to calculate what we wait for."""
    one, other = random.randrange(1 << 30, 1 << 31), random.randrange(1 << 30, 1 << 31)
    commands = "echo KVMFLEET $(({}*{})) $(busybox uname -sr); busybox poweroff -f".format(one, other)
    line = 'console=ttyS0 panic=-1 rdinit=/bin/busybox -- sh -c "{}"'.format(commands)
    return {"answer": str(one * other), "line": line}


def make_overlay(stem: str, nonce: str, wish: Wish) -> Dict[str, str]:
    """All writes of the guest go to a file of ours."""
    kind = image_format(wish.image)
    argv = [tool(), "create", "-q", "-f", "qcow2", "-b", wish.image, "-F", kind, stem + ".img"]
    answer = shell.run(argv, 20)
    if answer.code != 0:
        raise Unusable("no overlay can be made of it: {}".format(answer.err.strip()))
    # flags hold for the whole of a pattern that it begins with, and ours is around it
    expected = re.sub(r"(?s)^\(\?([imsx]+)\)(.*)$", r"(?\1:\2)", wish.expect)
    return {"image": wish.image, "format": kind, "answer": expected or r"[A-Za-z]{3}"}


RECIPES = {
    "firmware": Recipe(
        make_firmware,
        milestones=(("firmware", bootimage.GREETING), ("nonce", "{answer}")),
        seconds=60,
        disk=RAW,
    ),
    "uefi": Recipe(
        make_uefi,
        milestones=(("firmware", "BdsDxe: "), ("shell", "UEFI Interactive Shell"), ("nonce", "KVMFLEET {answer}")),
        seconds=120,
        memory_mib=128,
        firmware=" firmware='efi'",
        machine=" machine='q35'",
        system=NO_SECURE_BOOT,
        disk=RAW,
    ),
    "alpine": Recipe(
        make_alpine,
        milestones=(
            ("kernel", "Linux version "),
            ("init", "Run /bin/busybox as init process"),
            ("userspace", r"KVMFLEET {answer} (?P<said>.*\S)"),
        ),
        seconds=300,
        memory_mib=256,
        machine=" machine='q35'",
        system=DIRECT,
    ),
    "file": Recipe(
        make_overlay,
        milestones=(("console", r"(?m)^(?P<said>.*(?:{answer}).*)$"),),
        seconds=300,
        memory_mib=512,
        machine=" machine='q35'",
        processor=ALL_FEATURES,
        disk=OVERLAY,
        ends=False,
    ),
}  # fmt: skip


DOMAIN = """<domain type='{type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os{firmware}><type arch='x86_64'{machine}>hvm</type>{system}</os>
  <features><acpi/><apic/></features>
  {processor}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>{reboot}</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    {disk}
    <serial type='file'><source path='{stem}.log'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = """<disk type='file' device='disk'>
      {}
      <target dev='vda' bus='virtio'/>{}
    </disk>"""


def domain(recipe: Recipe, values: Dict[str, str]) -> bytes:
    """The XML of a domain; `values` go in escaped."""
    disk = DISK.format(recipe.disk, "<readonly/>" if recipe.disk == RAW else "") if recipe.disk else ""
    parts = {"disk": disk, "system": recipe.system, "processor": recipe.processor, "firmware": recipe.firmware}
    whole = replaced(DOMAIN, dict(parts, machine=recipe.machine, memory_mib=str(recipe.memory_mib)))
    reboot = "destroy" if recipe.ends else "restart"
    quoted = {key: html.escape(value) for key, value in values.items()}
    return replaced(whole, dict(quoted, reboot=reboot)).encode("utf-8")


def replaced(text: str, values: Dict[str, str]) -> str:
    """`text` with {key} filled in where the key is known; other braces stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group()), text)


def patterns(recipe: Recipe, values: Dict[str, str]) -> "Tuple[Tuple[str, Any], ...]":
    """The milestones, ready to search for."""
    return tuple((step, re.compile(replaced(pattern, values))) for step, pattern in recipe.milestones)


def create(path: str, content: bytes) -> None:
    """A new file that QEMU's user may read. Raises OSError where something has that name."""
    with os.fdopen(files.created(path), "wb") as stream:
        stream.write(content)


def tool() -> str:
    found = shell.which("qemu-img")
    if not found:
        raise OSError("there is no qemu-img")
    return found


def image_format(path: str) -> str:
    """qcow2 or raw. Raises Unusable where the file is missing or no disk that firmware could boot."""
    try:
        os.close(files.opened(path))
    except OSError as error:
        raise Unusable("{}: {}".format(path, (error.strerror or str(error)).lower())) from error
    # -U: somebody may have it open; we only read
    answer = shell.run([tool(), "info", "-U", "--output=json", "--", path], 20)
    try:
        kind = str(json.loads(answer.out)["format"]) if answer.code == 0 else ""
    except (ValueError, KeyError):
        kind = ""
    if kind not in ("qcow2", "raw"):
        said = answer.err.strip() or "its format is {}; `qemu-img convert -O qcow2` makes a copy".format(kind)
        raise Unusable("{}: {}".format(path, said))
    if kind == "raw" and not bootable(path):
        raise Unusable("{}: neither qcow2 nor a disk with a boot sector".format(path))
    return kind


def bootable(path: str) -> bool:
    """The two bytes with which PC firmware recognizes a boot sector, also before a GUID partition table."""
    fd = files.opened(path)
    try:
        return os.pread(fd, 2, 510) == b"\x55\xaa"
    finally:
        os.close(fd)
