"""The boot of a domain, against a virsh that plays libvirt: its milestones, its failures, its cleaning up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.collector import guest
from orchestrator.collector.contract import Contract
from orchestrator.collector.limits import Deadline

# Speaks as virsh does on a pipe. MODE is what the guest does; the file `alive` is the domain.
VIRSH = """
import pathlib, re, sys, time
mode, alive = sys.argv[1], pathlib.Path(sys.argv[2])
if "domstate" in sys.argv or "destroy" in sys.argv:
    if "destroy" in sys.argv and mode != "immortal":
        alive.unlink()
    if alive.exists():
        sys.exit(print("running"))
    sys.exit("error: failed to get domain 'x'")
path, flag = sys.stdin.readline().split()[1:]
assert flag == "--autodestroy"
xml = pathlib.Path(path).read_text()
disk, log = (pathlib.Path(re.search(f"<source {kind}='(.*?)'", xml).group(1)) for kind in ("file", "path"))
if mode == "refused":
    print("error: Failed to create domain from x\\nerror: internal error: no such machine", file=sys.stderr, flush=True)
elif mode == "ends":
    sys.exit()
else:
    alive.touch()
    print("Domain 'x' created from", path, flush=True)
    image = bytes(byte ^ 0x5A for byte in disk.read_bytes()[:512])
    said = re.search(rb"KVMFLEET \\w+", image).group()
    log.write_bytes(b"" if mode == "silent" else said if mode != "cut" else said[:20])
    if mode == "works":
        alive.unlink()
sys.stdin.read()
if mode not in ("immortal", "stays"):
    alive.unlink(missing_ok=True)
"""


def boot(mode: str, folder: Path, seconds: float = 10) -> dict[str, Any]:
    script = folder / "virsh.py"
    script.write_text(VIRSH)
    (folder / "images").mkdir()
    virsh = [sys.executable, str(script), mode, str(folder / "alive")]
    answer = guest.boot(virsh, str(folder / "images"), "kvm", "/usr/bin/qemu-system-x86_64", seconds)
    assert list((folder / "images").iterdir()) == [], "every boot removes its files"
    return answer


def test_a_guest_that_says_the_nonce_and_turns_itself_off_works(tmp_path: Path) -> None:
    answer = boot("works", tmp_path)
    assert (answer["outcome"], answer["step"], answer["detail"], answer["leftovers"]) == ("works", "poweroff", "", [])


@pytest.mark.parametrize(
    ("mode", "step", "detail"),
    [
        ("refused", "image", "internal error: no such machine"),
        ("ends", "image", "virsh ended by itself"),
        ("silent", "create", "time is over after the step create"),
        ("cut", "firmware", "time is over after the step firmware"),
        ("stays", "nonce", "time is over after the step nonce"),
    ],
)
def test_a_guest_that_stops_on_the_way_is_named_by_its_last_step(
    mode: str, step: str, detail: str, tmp_path: Path
) -> None:
    answer = boot(mode, tmp_path, 1.5)
    assert (answer["outcome"], answer["step"]) == ("broken", step)
    assert detail in answer["detail"]
    assert answer["leftovers"] == []
    assert not (tmp_path / "alive").exists()


def test_a_domain_that_cannot_be_destroyed_is_reported(tmp_path: Path) -> None:
    (leftover,) = boot("immortal", tmp_path, 1.5)["leftovers"]
    assert leftover.startswith("domain kvmfleet-proof-")


FOUND: dict[str, Any] = {
    "kvm": {"execution": {"outcome": "works"}, "speed": {"outcome": "hardware"}},
    "qemu": {"binary": "/usr/bin/qemu-system-x86_64"},
    "libvirt": {"connected": True, "domain_types": ["kvm"]},
}


@pytest.mark.parametrize(
    ("depth", "change", "reason"),
    [
        ("proof", {}, "not asked for"),
        ("firmware", {"qemu": {"binary": ""}}, "there is no QEMU"),
        ("firmware", {"libvirt": {"connected": False}}, "libvirt does not answer"),
        ("firmware", {"libvirt": {"connected": True, "domain_types": ["xen"]}}, "no usable type of domain"),
    ],
)
def test_no_boot_is_tried_where_it_cannot_work(depth: str, change: dict[str, Any], reason: str) -> None:
    answer = guest.look(Contract(None), depth, {**FOUND, **change}, Deadline(60))
    assert answer["outcome"] == "skipped"
    assert reason in answer["detail"]


def test_a_boot_that_has_no_time_is_not_begun() -> None:
    with pytest.raises(OSError, match="too few to boot a guest"):
        guest.look(Contract(None), "firmware", FOUND, Deadline(4))
