"""What is booted: the files that are made for it, the domain, and images that are none."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.collector import boots, guest, luggage
from orchestrator.collector.boots import RECIPES, Unusable
from orchestrator.collector.contract import Contract
from orchestrator.collector.wish import Wish
from orchestrator.model.run import Depth

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw disk with a boot sector, in a folder whose name is hard on XML."""
    folder = tmp_path / "it's <here> & {there}"
    folder.mkdir()
    file = folder / "disk.raw"
    file.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return file


def domain(depth: str, **values: str) -> ElementTree.Element:
    names = {"type": "kvm", "name": "n", "uuid": "u", "stem": "/images/n", "emulator": "/usr/bin/qemu", **values}
    text = boots.domain(RECIPES[depth], names).decode()
    assert set(re.findall(r"\{\w+\}", text)) <= {"{there}"}, "every name of ours is filled in"
    return ElementTree.fromstring(text)


def test_every_depth_but_the_shallow_ones_has_a_recipe() -> None:
    assert set(get_args(Depth)) - {"none", "proof"} == set(RECIPES)


def test_a_uefi_guest_gets_firmware_without_secure_boot_and_the_disk_read_only() -> None:
    found = domain("uefi")
    assert found.find("os") is not None
    assert found.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert found.find("os/firmware/feature").attrib == {"enabled": "no", "name": "secure-boot"}  # type: ignore[union-attr]
    assert found.find("devices/disk/readonly") is not None


def test_a_linux_guest_has_a_kernel_and_no_disk() -> None:
    found = domain("alpine", kernel="/images/k", initrd="/images/i", line='sh -c "echo $((1*2)) & <x>"')
    assert [found.findtext(f"os/{part}") for part in ("kernel", "initrd", "cmdline")] == [
        "/images/k", "/images/i", 'sh -c "echo $((1*2)) & <x>"'
    ]  # fmt: skip
    assert found.find("devices/disk") is None


def test_an_image_is_only_the_backing_file_and_keeps_its_owner(image: Path) -> None:
    found = domain("file", image=str(image), format="raw")
    assert found.find("devices/disk/source").get("file") == "/images/n.img"  # type: ignore[union-attr]
    backing = found.find("devices/disk/backingStore/source")
    assert backing is not None
    assert backing.get("file") == str(image)
    assert backing.find("seclabel").attrib == {"model": "dac", "relabel": "no"}  # type: ignore[union-attr]


def test_no_nonce_turns_the_script_of_the_shell_into_another_one(tmp_path: Path) -> None:
    for number in range(16):
        nonce, stem = uuid.uuid4().hex, str(tmp_path / str(number))
        boots.make_uefi(stem, nonce, Wish("uefi"))
        script = re.search(rb"set -v half (\w+)\r\necho (KVMFLEET \w+%half%)\r\n", Path(stem + ".img").read_bytes())
        assert script, "the script is one piece, so that it can be read without a file system"
        half, said = (part.decode() for part in script.groups())
        assert not re.search(r"%\d", said), "an argument of the script"
        assert said.replace("%half%", half) == f"KVMFLEET {nonce}"


def test_what_the_linux_guest_must_say_is_not_on_its_command_line(tmp_path: Path) -> None:
    made = boots.make_alpine(str(tmp_path / "x"), "", Wish("alpine"))
    one, other = map(int, re.search(r"\$\(\((\d+)\*(\d+)\)\)", made["line"]).groups())  # type: ignore[union-attr]
    assert made["answer"] == str(one * other)
    assert made["answer"] not in made["line"]
    assert one * other < 1 << 63, "the shell calculates with 64 bits"


# --- images of the user's


@needs_qemu_img
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_image_is_never_written(image: Path, tmp_path: Path, kind: str) -> None:
    disk = image
    if kind == "qcow2":
        disk = tmp_path / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", kind, image, disk], check=True)
    before = (disk.stat(), hashlib.sha256(disk.read_bytes()).digest())
    made = boots.make_overlay(str(tmp_path / "over"), "", Wish("file", str(disk), "login:"))
    assert (made["format"], made["answer"]) == (kind, "login:")
    after = disk.stat()
    assert hashlib.sha256(disk.read_bytes()).digest() == before[1]
    assert (after.st_mtime_ns, after.st_uid, after.st_mode) == (
        before[0].st_mtime_ns, before[0].st_uid, before[0].st_mode
    )  # fmt: skip
    shown = subprocess.run(["qemu-img", "info", tmp_path / "over.img"], capture_output=True, text=True).stdout
    assert f"backing file format: {kind}" in shown


@needs_qemu_img
@pytest.mark.parametrize(
    ("expect", "said"), [("", "FreeBSD/amd64"), ("(?i)LOGIN:$", "vm login:"), ("#", ""), ("amd|vm", "FreeBSD/amd64")]
)
def test_what_an_image_should_say_is_any_pattern_and_its_line_is_kept(
    image: Path, tmp_path: Path, expect: str, said: str
) -> None:
    made = boots.make_overlay(str(tmp_path / "over"), "", Wish("file", str(image), expect))
    ((step, pattern),) = boots.patterns(RECIPES["file"], made)
    found = pattern.search("\n- \nFreeBSD/amd64\nvm login:")
    assert step == "console"
    assert (found.group("said") if found else "") == said


def test_an_image_that_is_missing_or_no_file_is_unusable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("none", "no such file or directory"), ("", "not a regular file"), ("fifo", "not a regular")):
        with pytest.raises(Unusable, match=reason):
            boots.image_format(str(tmp_path / name))


@needs_qemu_img
def test_what_is_no_disk_is_unusable(tmp_path: Path, image: Path) -> None:
    text, vmdk = tmp_path / "notes.txt", tmp_path / "disk.vmdk"
    text.write_text("no disk\n" * 200)
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", image, vmdk], check=True)
    with pytest.raises(Unusable, match="neither qcow2 nor a disk with a boot sector"):
        boots.image_format(str(text))
    with pytest.raises(Unusable, match="its format is vmdk; `qemu-img convert -O qcow2`"):
        boots.image_format(str(vmdk))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_image_that_qemu_cannot_read_is_unusable_before_libvirt_is_asked(image: Path) -> None:
    contract = Contract({"qemu": {"user": "nobody"}})
    image.parent.parent.chmod(0o755)
    image.chmod(0o600)
    with pytest.raises(Unusable, match="QEMU's user nobody cannot read it: permission denied"):
        guest.refuse_unreadable(str(image), contract)


# --- luggage


def test_luggage_is_unpacked_for_the_guest_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sent").write_bytes(b"kkkkkii and nobody asked for this")
    monkeypatch.setenv(luggage.VARIABLE, str(tmp_path / "sent"))
    with luggage.unpacked((("kernel", 5), ("initrd", 2)), str(tmp_path / "x")) as parts:
        assert {name: Path(path).read_bytes() for name, path in parts.items()} == {"kernel": b"kkkkk", "initrd": b"ii"}
    assert list(tmp_path.iterdir()) == []


def test_luggage_that_does_not_arrive_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sent").write_bytes(b"kkkkki")
    monkeypatch.setenv(luggage.VARIABLE, str(tmp_path / "sent"))
    wanted = (("kernel", 5), ("initrd", 2))
    with pytest.raises(OSError, match="the initrd did not arrive, 1 of its 2 bytes are missing"):
        luggage.unpacked(wanted, str(tmp_path / "x")).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_large_luggage_is_copied_in_pieces() -> None:
    target = io.BytesIO()
    luggage.copy(io.BytesIO(bytes(3 * luggage.CHUNK)), target, 2 * luggage.CHUNK + 1, "kernel")
    assert len(target.getvalue()) == 2 * luggage.CHUNK + 1
