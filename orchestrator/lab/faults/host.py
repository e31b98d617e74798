"""Faults of the host itself and of what the last provision left on it."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

CONTRACT = "/etc/kvmfleet/contract.json"

FAULTS = (
    Fault(
        id="python-gone",
        says="No Python answers to the names that the collector tries.",
        check="host.evidence",
        inject="hide /usr/bin/python3",
        heal="back /usr/bin/python3",
    ),
    Fault(
        id="contract-gone",
        says="Somebody removed the contract.",
        check="contract.present",
        inject=f"hide {CONTRACT}",
        heal=f"back {CONTRACT}",
    ),
    Fault(
        id="contract-garbled",
        says="The contract is cut off in the middle.",
        check="contract.present",
        inject=f"keep {CONTRACT}; truncate -s 100 {CONTRACT}",
        heal=f"back {CONTRACT}",
    ),
    Fault(
        id="contract-of-tomorrow",
        says="A newer kvmfleet wrote the contract, in a schema that this one does not read.",
        check="contract.present",
        inject=f"""keep {CONTRACT}; sed -i 's/"schema": *[0-9]*/"schema": 99/' {CONTRACT}; grep -q 99 {CONTRACT}""",
        heal=f"back {CONTRACT}",
    ),
    Fault(
        id="contract-writable",
        says="Everybody may write the contract, so it proves nothing.",
        check="contract.present",
        inject=f"keep {CONTRACT}; chmod 0666 {CONTRACT}",
        heal=f"back {CONTRACT}",
    ),
    Fault(
        id="contract-of-a-user",
        says="The contract belongs to a user who is not root.",
        check="contract.present",
        inject=f"keep {CONTRACT}; chown nobody {CONTRACT}",
        heal=f"back {CONTRACT}",
    ),
    Fault(
        id="package-removed",
        says="The package of the UEFI firmware was removed, and its files with it.",
        check="contract.packages",
        inject="dpkg --remove --force-depends ovmf",
        heal="DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ovmf",
    ),
    Fault(
        id="package-of-the-tpm-removed",
        says="The package of the emulated TPM was removed, and its files with it.",
        check="contract.packages",
        inject="dpkg --remove --force-depends swtpm",
        heal="DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends swtpm",
    ),
    Fault(
        id="disk-full",
        says="The file system with the logs is full.",
        check="upkeep.disk",
        inject="mount -t tmpfs -o size=4m drill /var/log\nhead -c 5000000 /dev/zero > /var/log/filler || true",
        heal="mountpoint -q /var/log && umount --lazy /var/log || true",
    ),
    Fault(
        id="file-edited",
        says="Somebody wrote into a file that the provision manages.",
        check="contract.files",
        inject="keep /etc/modules-load.d/kvmfleet.conf; echo '# by hand' >> /etc/modules-load.d/kvmfleet.conf",
        heal="back /etc/modules-load.d/kvmfleet.conf",
    ),
    Fault(
        id="file-gone",
        says="Somebody removed a file that the provision manages.",
        check="contract.files",
        inject="hide /etc/modprobe.d/kvmfleet.conf",
        heal="back /etc/modprobe.d/kvmfleet.conf",
    ),
    Fault(
        id="file-open-to-all",
        says="Everybody may write libvirt's configuration.",
        check="contract.files",
        inject="keep /etc/libvirt/libvirtd.conf; chmod 0666 /etc/libvirt/libvirtd.conf",
        heal="back /etc/libvirt/libvirtd.conf",
    ),
    Fault(
        id="file-of-a-user",
        says="QEMU's configuration belongs to the user whom QEMU runs as.",
        check="contract.files",
        inject="keep /etc/libvirt/qemu.conf; chown libvirt-qemu /etc/libvirt/qemu.conf",
        heal="back /etc/libvirt/qemu.conf",
    ),
)
