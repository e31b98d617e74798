"""The generated FAT disk, read back by a program that knows nothing of the writer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.collector import fatimage

CONTENTS = {
    "STARTUP.NSH": b"echo hi\r\n",
    "EFI/BOOT/BOOTX64.EFI": bytes(range(256)) * 4000,
    "EFI/BOOT/EMPTY.TXT": b"",
    "EFI/MANY/LAST.BIN": b"x" * (fatimage.CLUSTER + 1),
}

needs_mtools = pytest.mark.skipif(not shutil.which("mtype"), reason="mtools is not installed")
needs_fsck = pytest.mark.skipif(not shutil.which("fsck.vfat"), reason="dosfstools is not installed")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(fatimage.image(CONTENTS))
    return file


@needs_mtools
@pytest.mark.parametrize("path", CONTENTS)
def test_every_file_reads_back_as_it_was(disk: Path, path: str) -> None:
    read = subprocess.run(["mtype", "-i", disk, f"::{path}"], capture_output=True, check=True)
    assert read.stdout == CONTENTS[path]


@needs_fsck
def test_the_file_system_has_no_fault(disk: Path) -> None:
    done = subprocess.run(["fsck.vfat", "-n", "-v", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "FAT32" not in done.stdout
    assert "4000 data clusters" in done.stdout


def test_a_disk_is_the_same_every_time_and_larger_than_what_q35_hangs_on() -> None:
    assert fatimage.image(CONTENTS) == fatimage.image(dict(reversed(CONTENTS.items())))
    assert len(fatimage.image({})) == fatimage.SIZE > 1 << 20


@pytest.mark.parametrize("name", ["TOOLONGNAME.TXT", "A.TEXT"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(AssertionError, match=r"no 8\.3 name"):
        fatimage.image({name: b""})


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(AssertionError, match="do not fit"):
        fatimage.image({"A.BIN": bytes(fatimage.SIZE)})
