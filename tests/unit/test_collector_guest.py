"""The boot of a domain, against a virsh that plays libvirt: its milestones, its failures, its cleaning up."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from patience import longer

from orchestrator.collector import boots, guest
from orchestrator.collector.contract import Contract
from orchestrator.collector.limits import Deadline, Stopped, heed_reader
from orchestrator.collector.main import proof_of_boot
from orchestrator.collector.wish import Wish
from orchestrator.model.run import Depth

# Speaks as virsh does on a pipe. MODE is what the guest does; the file `alive` is the domain. It plays the guest by
# what it was given to boot: a boot sector, a script for a shell, or a command line.
VIRSH = """
import pathlib, re, sys, time
mode, alive = sys.argv[1], pathlib.Path(sys.argv[2])
if "domstate" in sys.argv or "destroy" in sys.argv:
    if "destroy" in sys.argv and mode != "immortal":
        alive.unlink()
    if alive.exists():
        sys.exit(print("paused" if mode == "paused" else "running"))
    sys.exit("error: failed to get domain 'x'")
path, flag = sys.stdin.readline().split()[1:]
assert flag == "--autodestroy"
xml = pathlib.Path(path).read_text()
log = pathlib.Path(re.search("<source path='(.*?)'", xml).group(1))
def disk():
    return pathlib.Path(re.search("<source file='(.*?)'", xml).group(1)).read_bytes()
def says():
    if "<cmdline>" in xml:
        one, other = re.search(r"(\\d+)\\*(\\d+)", xml).groups()
        yield "Linux version 6.18\\r\\n"
        yield "Run /bin/busybox as init process\\nKVMFLEET %d Linux 6.18\\r\\n" % (int(one) * int(other))
    elif "firmware='efi'" in xml:
        half, rest = re.search(rb"half (\\w+)\\r\\necho KVMFLEET (\\w+)%half%", disk()).groups()
        yield "BdsDxe: loading\\n\\x1b[2J\\x1b[01;01HUEFI Interactive Shell v2.2\\n"
        yield "KVMFLEET " + (rest + half).decode()
    elif "backingStore" in xml:
        yield "BTX loader\\n"
        yield "FreeBSD/amd64 (vm) (ttyu0)\\n\\nlogin: "
    else:
        said = re.search(rb"KVMFLEET \\w+", bytes(byte ^ 0x5A for byte in disk()[:512])).group()
        yield said[:20].decode()
        yield said[20:].decode()
if mode == "refused":
    print("error: Failed to create domain from x\\nerror: internal error: no such machine", file=sys.stderr, flush=True)
elif mode == "ends":
    sys.exit()
else:
    alive.touch()
    print("Domain 'x' created from", path, flush=True)
    parts = list(says())
    log.write_text("".join([] if mode in ("silent", "paused") else parts if mode not in ("cut", "dies") else parts[:1]))
    if mode in ("works", "dies"):
        alive.unlink()
sys.stdin.read()
if mode not in ("immortal", "stays"):
    alive.unlink(missing_ok=True)
"""
FIRMWARE, UEFI, ALPINE = Wish("firmware"), Wish("uefi"), Wish("alpine")
PARTS = {"kernel": "/images/k", "initrd": "/images/i"}


def boot(
    mode: str, folder: Path, seconds: float = 10, wish: Wish = FIRMWARE, tell: guest.Tell = print
) -> dict[str, Any]:
    script = folder / "virsh.py"
    script.write_text(VIRSH)
    (folder / "images").mkdir(exist_ok=True)
    virsh = [sys.executable, str(script), mode, str(folder / "alive")]
    images, emulator = str(folder / "images"), "/usr/bin/qemu-system-x86_64"
    answer = guest.boot(wish, PARTS, virsh, images, "kvm", emulator, seconds, tell)
    assert list((folder / "images").iterdir()) == [], "every boot removes its files"
    return answer


WAYS = [
    (FIRMWARE, ["image", "create", "nonce", "poweroff"], ""),
    (UEFI, ["image", "create", "nonce", "poweroff"], ""),
    (ALPINE, ["image", "create", "userspace", "poweroff"], "Linux 6.18"),
]


@pytest.mark.parametrize(("wish", "steps", "said"), WAYS, ids=lambda value: getattr(value, "depth", ""))
def test_a_guest_that_says_what_only_it_can_know_and_turns_itself_off_works(
    wish: Wish, steps: list[str], said: str, tmp_path: Path
) -> None:
    told: list[str] = []
    answer = boot("works", tmp_path, wish=wish, tell=told.append)
    assert (answer["outcome"], answer["step"], answer["detail"], answer["leftovers"]) == ("works", "poweroff", "", [])
    assert (answer["depth"], answer["said"]) == (wish.depth, said)
    assert sorted(answer["milestones"], key=answer["milestones"].get) == steps, "a fast guest is seen at its last one"
    assert told == [f"{wish.depth} with kvm: {step}" for step in steps]


@pytest.mark.parametrize(
    ("wish", "mode", "step", "detail"),
    [
        (FIRMWARE, "refused", "image", "internal error: no such machine"),
        (FIRMWARE, "ends", "image", "virsh ended by itself"),
        (FIRMWARE, "silent", "create", "time is over after the step create"),
        (FIRMWARE, "cut", "firmware", "time is over after the step firmware"),
        (FIRMWARE, "stays", "nonce", "time is over after the step nonce"),
        (FIRMWARE, "paused", "create", "it is paused"),
        (FIRMWARE, "dies", "firmware", "stopped before it had said what it should"),
        (UEFI, "cut", "shell", "last line: UEFI Interactive Shell v2.2"),
        (ALPINE, "cut", "kernel", "last line: Linux version 6.18"),
    ],
)
def test_a_guest_that_stops_on_the_way_is_named_by_its_last_step(
    wish: Wish, mode: str, step: str, detail: str, tmp_path: Path
) -> None:
    answers: list[dict[str, Any]] = []
    for limit_s in longer(1.5, lambda: answers[-1]["step"] == step and detail in answers[-1]["detail"]):
        answers.append(boot(mode, tmp_path, limit_s, wish))
    (*_, answer) = answers
    assert (answer["outcome"], answer["step"]) == ("broken", step)
    assert detail in answer["detail"]
    assert answer["leftovers"] == []
    assert not (tmp_path / "alive").exists()


def test_a_domain_that_cannot_be_destroyed_is_reported(tmp_path: Path) -> None:
    leftovers: list[str] = []
    for limit_s in longer(1.5, lambda: leftovers):
        leftovers.extend(boot("immortal", tmp_path, limit_s)["leftovers"])
    (leftover,) = leftovers
    assert leftover.startswith("domain kvmfleet-proof-")


@pytest.mark.parametrize("pair", [os.pipe, lambda: [end.detach() for end in socket.socketpair()]])
def test_a_reader_that_has_gone_stops_the_collector_and_nothing_else_does(pair: Callable[[], Sequence[int]]) -> None:
    reader, writer = pair()
    heed_reader(writer)
    os.close(reader)
    with pytest.raises(Stopped):
        heed_reader(writer)
    os.close(writer)


def test_a_controller_that_has_said_all_may_still_be_listening() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        heed_reader(ours.fileno())


FOUND: dict[str, Any] = {
    "kvm": {"execution": {"outcome": "works"}, "speed": {"outcome": "hardware"}},
    "qemu": {"binary": "/usr/bin/qemu-system-x86_64"},
    "libvirt": {"connected": True, "domain_types": ["kvm"]},
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"qemu": {"binary": ""}}, "there is no QEMU"),
        ({"libvirt": {"connected": False}}, "libvirt does not answer"),
        ({"libvirt": {"connected": True, "domain_types": ["xen"]}}, "no usable type of domain"),
    ],
)
def test_no_boot_is_tried_where_it_cannot_work(change: dict[str, Any], reason: str) -> None:
    answer = guest.look(Contract(None), FIRMWARE, {**FOUND, **change}, Deadline(60), print)
    assert answer["outcome"] == "skipped"
    assert reason in answer["detail"]


@pytest.mark.parametrize("depth", get_args(Depth))
def test_a_boot_is_skipped_exactly_where_none_was_asked_for(depth: str) -> None:
    name, _, look = proof_of_boot(Wish(depth), Deadline(60))
    skipped = look({}).get("detail") == "not asked for"
    assert (name, skipped) == ("guest", depth not in boots.RECIPES)


def test_a_boot_that_has_no_time_is_not_begun() -> None:
    with pytest.raises(OSError, match="too few to boot a guest"):
        guest.look(Contract(None), FIRMWARE, FOUND, Deadline(4), print)
