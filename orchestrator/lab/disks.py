"""Disks that virtual machines start from: built from the distribution's archive without root, or an image as it is.

A built disk has what a server's has: a partition, GRUB in the gap before it, a kernel with its initramfs. So the tools
of the distribution change its kernel arguments, and the next boot obeys them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import LabError
from orchestrator.lab import debs, images
from orchestrator.lab.command import run
from orchestrator.lab.spec import IMAGE, SYSTEMS, Progress

__all__ = ["DISK_MIB", "build", "disk", "index", "info", "refuse", "take"]

DISK_MIB = 8192
"""What a built disk offers; its file holds only what was written."""

_SEED_UNIT = """[Unit]
Description=Files that make this machine a host of its lab
ConditionPathExists=!/etc/lab-host
Requires=dev-disk-by\\x2did-virtio\\x2dseed.device
After=dev-disk-by\\x2did-virtio\\x2dseed.device
Before=systemd-networkd.service ssh.service

[Service]
Type=oneshot
ExecStart=tar --extract --file=/dev/disk/by-id/virtio-seed --directory=/
ExecStart=hostname --file /etc/hostname
ExecStart=touch /etc/lab-host

[Install]
WantedBy=multi-user.target
"""

_SETUP = f"""
cat > /etc/systemd/system/lab-seed.service <<'END'
{_SEED_UNIT}END
systemctl --quiet enable lab-seed.service
echo 'LABEL=lab / ext4 defaults,noatime 0 0' > /etc/fstab
cat > /etc/default/grub <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=quiet
GRUB_CMDLINE_LINUX="console=ttyS0 mitigations=off"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
END
# What grub-install does, but into files: there is no disk yet. The first update-grub replaces grub.cfg.
mkdir -p /boot/grub/i386-pc
cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst /usr/lib/grub/i386-pc/boot.img /boot/grub/i386-pc/
grub-mkimage --format=i386-pc --output=/boot/grub/i386-pc/core.img --prefix='(hd0,msdos1)/boot/grub' \\
  biosdisk part_msdos ext2
cat > /boot/grub/grub.cfg <<'END'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry Debian {{
  linux /vmlinuz root=LABEL=lab ro quiet console=ttyS0 mitigations=off
  initrd /initrd.img
}}
END
"""

RECIPE = images.Recipe(
    "vm",
    (*images.PACKAGES, "linux-image-cloud-amd64", "initramfs-tools", "zstd", "grub2-common", "grub-pc-bin", "hostname"),
    images.SETUP + _SETUP,
)

# In a mount namespace whose tmpfs goes with it, so that nothing of the tree is left, whoever owns its files.
_FILL = """
tree=$1 archive=$2 disk=$3
mount -t tmpfs -o mode=0755 tmpfs "$tree"
tar --extract --file "$archive" --directory "$tree" --numeric-owner
mkdir "$tree/dev"  # device nodes are left out, for a user may not make them; the kernel brings its own
mke2fs -q -t ext4 -L lab -E "offset=$4,lazy_itable_init=1,lazy_journal_init=1" -d "$tree" "$disk" "${5}M"
"""

_GAP_MIB = 1  # before the first partition, as every partitioner leaves it; GRUB's core is in it
_SECTOR, _BOOT_CODE = 512, 440  # what of the first sector is code; the partition table follows
_CHUNK = 1 << 20
_SIGNATURE = b"\x55\xaa"  # of a sector that PC firmware starts
_FORMATS = ("qcow2", "raw")
_IMAGE_HINT = "--image takes a cloud image, qcow2 or raw, from a file or an http(s) address."
_ROOM = "Make room there, or let KVMFLEET_CACHE_DIR name another place."


def disk(image: str) -> Path:
    """An image's disk. Overlays are made on it, so nothing ever writes to it."""
    return images.folder(image) / "disk"


def index(image: str) -> Path:
    """A root that holds nothing but the package index of a built disk, whose signature was verified."""
    return images.folder(image) / "index"


def build(system: str, progress: Progress) -> str:
    """Builds the disk of a system unless it is there; returns its key. Needs no root.

    Raises:
        LabError: mmdebstrap or mke2fs failed; the hint holds their last lines.
    """
    image = images.key(system, RECIPE)

    def make(work: Path, meter: images.Meter) -> Path:
        archive = images.bootstrap(system, RECIPE, work, meter, tar=True)
        progress(f"image of {SYSTEMS[system].title}: writing the disk")
        return _written(archive, work, index(image))

    return images.once(image, disk(image), f"{SYSTEMS[system].title} with a kernel", progress, make)


def _written(archive: Path, work: Path, index_root: Path) -> Path:
    target, tree = work / "disk", work / "tree"
    tree.mkdir()
    with tarfile.open(archive) as tar:
        boot, core = (_member(tar, f"./boot/grub/i386-pc/{name}") for name in ("boot.img", "core.img"))
        _keep_index(tar, index_root / debs.LISTS)
    with target.open("wb") as file:
        file.truncate((DISK_MIB + _GAP_MIB) * _CHUNK)
    namespaces = ("--mount", "--pid", "--fork", "--kill-child=KILL")
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user", "--map-auto")
    fill = ("sh", "-euc", _FILL, "sh", str(tree), str(archive), str(target), str(_GAP_MIB * _CHUNK), str(DISK_MIB))
    run(["unshare", *namespaces, *user, *fill], timeout_s=1200)
    run(["sfdisk", "--quiet", str(target)], stdin=f"start={_GAP_MIB}MiB, type=83, bootable\n")
    with target.open("r+b") as file:
        file.write(boot[:_BOOT_CODE])
        file.seek(_SECTOR)
        file.write(core)
    return target


def _keep_index(tar: tarfile.TarFile, folder: Path) -> None:
    """Python's own extraction is safe with a filter only, which the 3.11 of Debian 12 does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in tar:
        if entry.isreg() and entry.name.startswith(f"./{debs.LISTS}/") and entry.name.endswith("_Packages"):
            (folder / Path(entry.name).name).write_bytes(_member(tar, entry.name))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, name
    with file:
        return file.read()


def info(path: Path, name: str = "") -> Mapping[str, Any]:
    """What QEMU says about a disk image, which it does not open for writing; `name` is what its user calls it.

    Raises:
        LabError: It is none that a lab can use.
    """
    name = name or str(path)
    try:
        told: Mapping[str, Any] = msgspec.json.decode(run(["qemu-img", "info", "--output=json", str(path)]))
    except LabError as e:
        raise LabError(f"{name} is no disk image that QEMU reads.", hint=e.hint) from e
    beyond = [word for word in ("backing-filename", "full-backing-filename") if word in told]
    data = told.get("format-specific", {}).get("data", {})
    if beyond or data.get("data-file"):  # it could name any file of this machine, and a host would read it
        raise LabError(f"{name} is not whole: it refers to another file.", hint="Make it whole: qemu-img convert")
    if told["format"] not in _FORMATS:
        raise LabError(
            f"{name} is in the format {told['format']}; a lab takes {' and '.join(_FORMATS)}.",
            hint=f"Convert it: qemu-img convert -O qcow2 {name} image.qcow2",
        )
    if told["format"] == "raw" and not _boots(path):  # as QEMU calls whatever it does not know
        raise LabError(f"{name} is no disk image: it does not begin with a boot sector.", hint=_IMAGE_HINT)
    return told


def _boots(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_SECTOR)[-len(_SIGNATURE) :] == _SIGNATURE


def refuse(source: str, sha256: str) -> None:
    """What can be told of an image before anything is made.

    Raises:
        LabError: Its address has no checksum, the checksum is none, or the file cannot be read.
    """
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise LabError(f"{sha256!a} is no SHA-256.", hint="It has 64 hexadecimal digits; sha256sum prints it.")
    if not _remote(source):
        _readable(Path(source)).close()
    elif not sha256:
        raise LabError(
            "An image from an address needs --sha256: nothing else tells that it is the right one.",
            hint="Whoever publishes an image publishes its SHA-256, often in a file SHA256SUMS beside it.",
        )


def _remote(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def take(source: str, sha256: str, progress: Progress) -> str:
    """Copies an image into the cache, from a file or an address; returns its key, which is of its content.

    Raises:
        LabError: It cannot be had, is not what `sha256` says, or is no image.
    """
    refuse(source, sha256)
    remote, sha256 = _remote(source), sha256.lower()
    if not remote:
        found = _sha256_of(Path(source))
        _compare(source, found, sha256 or found)
        sha256 = found
    image = f"{IMAGE}-{sha256}"  # whole: an image that is kept is not compared again

    def make(work: Path, meter: images.Meter) -> Path:
        target = work / "disk"
        with _opened(source, remote) as (stream, size):
            if size > (free := shutil.disk_usage(work).free):
                raise LabError(f"{source} has {size >> 20} MiB, and {work} has {free >> 20} MiB free.", hint=_ROOM)
            found = _copied(stream, target, size, lambda share: progress(f"image {source}: copying", share))
        _compare(source, found, sha256)
        info(target, source)
        return target

    return images.once(image, disk(image), source, progress, make, does="copying it, once for all labs")


def _compare(source: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise LabError(
            f"{source} has the SHA-256 {found}, and {wanted} was asked for.",
            hint="It is another version, was damaged on its way, or somebody changed it. Nothing was kept.",
        )


def _sha256_of(path: Path) -> str:
    with _readable(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as e:
        raise LabError(f"{path}: {e.strerror}.", hint=_IMAGE_HINT) from e


@contextmanager
def _opened(source: str, remote: bool) -> Iterator[tuple[Any, int]]:
    """The stream and its size in bytes, 0 where a server does not tell."""
    if not remote:
        with _readable(Path(source)) as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    try:
        with urllib.request.urlopen(source, timeout=60) as answer:
            yield answer, int(answer.headers.get("Content-Length") or 0)
    except urllib.error.HTTPError as e:
        raise LabError(f"{source}: the server answers {e.code} {e.reason}.", hint="Check the address.") from e
    except (OSError, HTTPException) as e:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # of our side
        reason = getattr(e, "reason", None) or getattr(e, "strerror", None) or str(e) or type(e).__name__
        hint = "Check the address, the network and the proxy (https_proxy)."
        raise LabError(f"{source}: {reason}.", hint=hint) from e


def _copied(stream: Any, target: Path, size: int, tell: Any) -> str:
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            tell(min(done / size, 1.0) if size else None)
    if size and done < size:
        raise OSError(f"it ended after {done} of {size} bytes")
    return digest.hexdigest()
