"""What the next boot will run, from the files that bootloaders read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.collector import boot

DEBIAN = """
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux-simple-71b0' {
\tload_video
\tif [ x$grub_platform = xxen ]; then insmod xzio; fi
\techo\t'Loading Linux 6.1.0-38-amd64 ...'
\tlinux\t/boot/vmlinuz-6.1.0-38-amd64 root=UUID=71b0 ro  quiet hugepages=8 $vt_handoff
\tinitrd\t/boot/initrd.img-6.1.0-38-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-71b0' {
\tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-38-amd64' $menuentry_id_option 'gnulinux-6.1.0-38-advanced-71b0' {
\t\tlinux\t/boot/vmlinuz-6.1.0-38-amd64 root=UUID=71b0 ro  quiet hugepages=8
\t}
\tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-37-amd64' $menuentry_id_option 'gnulinux-6.1.0-37-advanced-71b0' {
\t\tlinux\t/boot/vmlinuz-6.1.0-37-amd64 root=UUID=71b0 ro  quiet
\t}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
\tfwsetup
}
"""
ENTRY = "title Fedora\nversion {0}\nlinux /vmlinuz-{0}\ninitrd /initramfs-{0}.img\noptions {1}\n"


def looked(root: Path, **files: str) -> dict[str, Any]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return boot.look(str(root))


def debian(root: Path, default: str, environment: str = "") -> dict[str, Any]:
    config = DEBIAN.replace('set default="0"', f'set default="{default}"')
    return looked(root, **{"boot/grub/grub.cfg": config, "boot/grub/grubenv": environment})


def test_the_default_entry_of_grub_is_the_next_boot(tmp_path: Path) -> None:
    assert debian(tmp_path, "0") == {
        "source": "/boot/grub/grub.cfg",
        "kernel": "6.1.0-38-amd64",
        "cmdline": "root=UUID=71b0 ro quiet hugepages=8",
        "required_by": [],
    }


@pytest.mark.parametrize(
    "default",
    [
        "1>1",
        "gnulinux-advanced-71b0>gnulinux-6.1.0-37-advanced-71b0",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-37-amd64",
    ],
)
def test_an_entry_is_named_by_number_id_or_title(tmp_path: Path, default: str) -> None:
    assert debian(tmp_path, default)["kernel"] == "6.1.0-37-amd64"
    assert debian(tmp_path, "${saved_entry}", f"saved_entry={default}\n")["kernel"] == "6.1.0-37-amd64"


@pytest.mark.parametrize("default", ["1", "uefi-firmware", "7", "no such entry"])
def test_what_names_no_kernel_leads_to_the_first_one_below_it_or_at_all(tmp_path: Path, default: str) -> None:
    assert debian(tmp_path, default)["kernel"] == "6.1.0-38-amd64"


def test_an_entry_for_one_boot_wins(tmp_path: Path) -> None:
    assert debian(tmp_path, "0", "next_entry=1>1\n####\n")["kernel"] == "6.1.0-37-amd64"
    assert debian(tmp_path, "0", "next_entry=\n")["kernel"] == "6.1.0-38-amd64"


def test_fedoras_grub_reads_one_file_for_each_entry(tmp_path: Path) -> None:
    files = {
        "boot/grub2/grub.cfg": 'set default="${saved_entry}"\ninsmod blscfg\nblscfg\n',
        "boot/grub2/grubenv": "kernelopts=root=/dev/vda3 ro \ntuned_params=\n",
        "boot/loader/entries/71b0-6.9.1.conf": ENTRY.format("6.9.1", "$kernelopts $tuned_params"),
        "boot/loader/entries/71b0-6.12.1.conf": ENTRY.format("6.12.1", "$kernelopts hugepages=8"),
    }
    assert looked(tmp_path, **files) == {
        "source": "/boot/grub2/grub.cfg",
        "kernel": "6.12.1",
        "cmdline": "root=/dev/vda3 ro hugepages=8",
        "required_by": [],
    }
    assert looked(tmp_path, **{"boot/grub2/grubenv": "saved_entry=71b0-6.9.1\n"})["kernel"] == "6.9.1"


def test_systemd_boot_starts_its_default_or_the_newest(tmp_path: Path) -> None:
    files = {f"efi/loader/entries/71b0-{v}.conf": ENTRY.format(v, "rw") for v in ("6.9.1", "6.12.1")}
    assert looked(tmp_path, **files)["source"] == "/efi/loader/entries/71b0-6.12.1.conf"
    assert looked(tmp_path, **{"efi/loader/loader.conf": "timeout 3\ndefault 71b0-6.9*\n"})["kernel"] == "6.9.1"


def test_a_grub_that_did_not_start_this_machine_is_not_asked(tmp_path: Path) -> None:
    debian(tmp_path, "0")
    files = {"efi/loader/entries/a.conf": ENTRY.format("6.12.1", "rw")}
    assert looked(tmp_path, **files)["kernel"] == "6.1.0-38-amd64"
    name = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    files = {name: "\6\0\0\0" + "".join(f"{letter}\0" for letter in "systemd-boot 257.7")}
    assert looked(tmp_path, **files)["kernel"] == "6.12.1"


def test_extlinux_has_labels(tmp_path: Path) -> None:
    labels = (
        "DEFAULT lts\nLABEL old\n  LINUX vmlinuz-6.1.0\nLABEL lts\n  LINUX vmlinuz-lts\n  APPEND root=/dev/vda1 quiet\n"
    )
    assert looked(tmp_path, **{"boot/extlinux.conf": labels}) == {
        "source": "/boot/extlinux.conf",
        "kernel": "",  # Alpine's file names say no release
        "cmdline": "root=/dev/vda1 quiet",
        "required_by": [],
    }


def test_packages_ask_for_a_reboot(tmp_path: Path) -> None:
    assert looked(tmp_path, **{"run/reboot-required": ""})["required_by"] == ["the system"]
    names = "linux-image-amd64\nlibc6\nlinux-image-amd64\n"
    assert looked(tmp_path, **{"run/reboot-required.pkgs": names})["required_by"] == ["libc6", "linux-image-amd64"]


def test_without_a_bootloader_nothing_is_known(tmp_path: Path) -> None:
    assert looked(tmp_path) == {"source": "", "kernel": "", "cmdline": "", "required_by": []}


@pytest.mark.parametrize("text", ["}}}}\n", "submenu 'a' {\n", "menuentry 'a' {\nlinux\n}", "set default=", "\0\377"])
def test_a_broken_configuration_is_no_crash(tmp_path: Path, text: str) -> None:
    assert looked(tmp_path, **{"boot/grub/grub.cfg": text})["cmdline"] == ""
