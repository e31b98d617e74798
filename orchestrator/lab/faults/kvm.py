"""Faults of /dev/kvm, and of the emulator that uses it."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

NODE = "mknod -m 0660 /dev/kvm c 10 232; chgrp kvm /dev/kvm"
UNCOVER = "mountpoint -q /dev/kvm && umount /dev/kvm || true"
QEMU = "/usr/bin/qemu-system-x86_64"
FIRMWARE = "/usr/share/qemu/firmware"


def _replaced(path: str, script: str) -> str:
    """A program that is now a script. The true one stays in its folder, from which QEMU finds its files."""
    return f"""\
mv -T {path} {path}.drill
cat > {path} <<END
#!/bin/sh
{script}
END
chmod 0755 {path}"""


def _restored(path: str) -> str:
    return f"[ ! -e {path}.drill ] || mv -f -T {path}.drill {path}"


FAULTS = (
    Fault(
        id="kvm-gone",
        says="There is no /dev/kvm.",
        check="kvm.node",
        inject="umount /dev/kvm 2>/dev/null || true; rm /dev/kvm",
        heal=f"[ -e /dev/kvm ] || {{ {NODE}; }}",
    ),
    Fault(
        id="kvm-another-device",
        says="/dev/kvm is the node of another device.",
        check="kvm.node",
        inject="mount --bind /dev/null /dev/kvm",
        heal=UNCOVER,
    ),
    Fault(
        id="kvm-a-file",
        says="/dev/kvm is a plain file, as a careless script leaves it.",
        check="kvm.node",
        inject="touch $kept/file; mount --bind $kept/file /dev/kvm",
        heal=UNCOVER,
    ),
    Fault(
        id="kvm-root-only",
        says="Only root may open /dev/kvm.",
        check="kvm.permission",
        inject="stat -c %a /dev/kvm > $kept/mode; chmod 0600 /dev/kvm",
        heal="chmod $(cat $kept/mode) /dev/kvm",
    ),
    Fault(
        id="kvm-wrong-group",
        says="/dev/kvm belongs to a group in which QEMU's user is not.",
        check="kvm.permission",
        inject="stat -c '%G %a' /dev/kvm > $kept/owner; chgrp daemon /dev/kvm; chmod 0660 /dev/kvm",
        heal="read -r group mode < $kept/owner; chgrp $group /dev/kvm; chmod $mode /dev/kvm",
    ),
    Fault(
        id="qemu-user-left-kvm",
        says="QEMU's user is not in the group of /dev/kvm any more.",
        check="kvm.open_as",
        inject="keep /etc/passwd /etc/group; stat -c %a /dev/kvm > $kept/mode; chmod 0660 /dev/kvm\n"
        "usermod -g nogroup libvirt-qemu; gpasswd -d libvirt-qemu kvm 2>/dev/null || true",
        heal="back /etc/passwd /etc/group; chmod $(cat $kept/mode) /dev/kvm",
    ),
    Fault(
        id="qemu-gone",
        says="The emulator's file is gone, although its package is installed.",
        check="qemu.binary",
        inject=f"hide {QEMU}",
        heal=f"back {QEMU}",
    ),
    Fault(
        id="qemu-does-not-start",
        says="The emulator ends at once, as with a library that is missing.",
        check="qemu.binary",
        inject=_replaced(QEMU, "echo 'error while loading shared libraries: libpixman-1.so.0' >&2; exit 127"),
        heal=_restored(QEMU),
    ),
    Fault(
        id="qemu-of-somebody-else",
        says="The emulator is of another version than its package.",
        check="qemu.version",
        inject=_replaced(
            QEMU,
            f"""\
case "\\$*" in
    --version) echo QEMU emulator version 99.1.0 ;;
    *"-qmp stdio") {QEMU}.drill "\\$@" | sed 's/"major": [0-9]*/"major": 99/' ;;
    *) exec {QEMU}.drill "\\$@" ;;
esac""",
        ),
        heal=_restored(QEMU),
    ),
    Fault(
        id="qemu-without-kvm",
        says="The emulator was built without KVM.",
        check="qemu.kvm",
        inject=_replaced(
            QEMU,
            f"""\
case "\\$*" in
    "-accel help") echo tcg ;;
    *"-qmp stdio") echo "-machine none,accel=kvm: invalid accelerator kvm" >&2; exit 1 ;;
    *) exec {QEMU}.drill "\\$@" ;;
esac""",
        ),
        heal=_restored(QEMU),
    ),
    Fault(
        id="qemu-img-gone",
        says="qemu-img is gone, although its package is installed.",
        check="qemu.img",
        inject="hide /usr/bin/qemu-img",
        heal="back /usr/bin/qemu-img",
    ),
    Fault(
        id="firmware-descriptors-gone",
        says="The descriptors by which libvirt finds UEFI firmware are gone.",
        check="qemu.firmware",
        inject=f"hide {FIRMWARE}",
        heal=f"back {FIRMWARE}",
    ),
    Fault(
        id="firmware-of-another-machine",
        says="All firmware descriptors are for another architecture.",
        check="qemu.firmware",
        inject=f"keep {FIRMWARE}; sed -i 's/x86_64/riscv64/' {FIRMWARE}/*.json",
        heal=f"back {FIRMWARE}",
    ),
    Fault(
        id="swtpm-gone",
        says="The emulated TPM is gone, although its package is installed.",
        check="qemu.tpm",
        inject="hide /usr/bin/swtpm",
        heal="back /usr/bin/swtpm",
    ),
    Fault(
        id="swtpm-does-not-start",
        says="The emulated TPM ends at once.",
        check="qemu.tpm",
        inject=_replaced("/usr/bin/swtpm", "exit 127"),
        heal=_restored("/usr/bin/swtpm"),
    ),
    Fault(
        id="secure-boot-keys-gone",
        says="No firmware has Microsoft's keys enrolled, which the contract's Windows guests need.",
        check="windows.firmware",
        inject=f"hide $(grep -l enrolled-keys {FIRMWARE}/*.json)",
        heal=f"cd $kept{FIRMWARE}; for file in *.json; do back {FIRMWARE}/$file; done",
        needs=("qemu/windows",),
    ),
)
