"""Fill every section of the evidence within its time, and print one document."""

import json
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Tuple

from . import (
    ceilings,
    clock,
    cpu,
    daemons,
    guests,
    identity,
    inventory,
    iommu,
    kernel,
    kvm,
    leaks,
    libvirt,
    memory,
    network,
    processes,
    qemu,
    remote,
    security,
    storage,
    system,
    tuning,
    upkeep,
    windows,
)
from . import contract as contracts
from .limits import SOFTWARE, Deadline, Expired, Patience, Stopped, bounded, heed_signals, patient, within
from .marks import BEGIN, END, STEP
from .wish import Wish

SCHEMA = 1

Found = Dict[str, Any]
Section = Tuple[str, float, Callable[[Found], Any]]


def sections(wish: Wish, deadline: Deadline) -> List[Section]:
    """Name, seconds, and what fills it from what was found before."""
    return [
        ("contract", 3, lambda found: contracts.look()),
        ("system", 10, lambda found: this_machine()),
        ("cpu", 3, lambda found: cpu.look()),
        ("kernel", 5, lambda found: kernel.look(contract(found), found.get("system", {}).get("container", ""))),
        ("kvm", 15, lambda found: kvm.look(contract(found), wish.depth)),
        ("qemu", 20, lambda found: qemu.look(contract(found), found.get("kvm", {}).get("node", {}))),
        ("libvirt", 40, lambda found: libvirt.look(contract(found))),
        ("daemons", 20, lambda found: daemons.look(found.get("libvirt", {}))),
        (
            "storage",
            90 if wish.active else 40,
            lambda found: storage.look(contract(found), wish.active, found.get("libvirt", {})),
        ),
        ("network", 30, lambda found: network.look(contract(found), found.get("libvirt", {}))),
        ("tuning", 5, lambda found: tuning.look(contract(found))),
        ("memory", 3, lambda found: memory.look()),
        ("iommu", 3, lambda found: iommu.look()),
        ("security", 20, lambda found: security.look(contract(found))),
        ("remote", 15, lambda found: remote.look(contract(found))),
        ("guests", 5, lambda found: guests.look(contract(found), found)),
        ("identity", 3, lambda found: identity.look()),
        ("packages", 20, lambda found: inventory.packages(contract(found))),
        ("files", 20, lambda found: inventory.states(contract(found))),
        ("members", 10, lambda found: inventory.members(contract(found))),
        ("windows", 30, lambda found: windows.look(contract(found), found)),
        ("clock", 3, lambda found: clock.look(found.get("system", {}).get("container", ""))),
        ("cgroups", 3, lambda found: ceilings.cgroups()),
        ("processes", 10, lambda found: processes.look()),
        ("limits", 5, lambda found: ceilings.limits()),
        ("leaks", 3, lambda found: leaks.look()),
        ("upkeep", 15, lambda found: upkeep.look(found.get("libvirt", {}))),
        proof_of_boot(wish, deadline),
    ]


def contract(found: Found) -> contracts.Contract:
    return contracts.parsed(found.get("contract", {"text": ""}))


def proof_of_boot(wish: Wish, deadline: Deadline) -> Section:
    """What a boot needs is loaded only for one: that takes longer than most sections."""
    if not wish.boots:
        return "guest", 3, lambda found: {"outcome": "skipped", "detail": "not asked for"}
    from . import guest

    return "guest", guest.limit_s(wish), lambda found: guest.look(contract(found), wish, found, deadline, tell)


def this_machine() -> Found:
    """The section system; what comes after it has more time where QEMU executes the processor's instructions itself."""
    found = system.look()
    if found["virtual"] == "qemu":  # "kvm" where hardware does, systemd-detect-virt(1)
        Patience.factor = SOFTWARE
    return found


def gather(wanted: Iterable[Section], deadline: Deadline) -> Found:
    """The sections. One that fails or is late is missing, and named in `errors`."""
    found: Found = {}
    errors: Dict[str, str] = {}
    for name, seconds, look in wanted:
        seconds = min(patient(seconds), deadline.left_s())
        if seconds <= 0:
            errors[name] = "not begun, the time for everything was over"
            continue
        try:
            with within(seconds):
                found[name] = look(found)
        except Expired:
            errors[name] = "not done after {:.0f} s".format(seconds)
        except Exception as error:  # whatever it is, the other sections still answer
            errors[name] = "{}: {}".format(type(error).__name__, error)
    return dict(found, errors=errors)


def collect(wish: Wish, timeout_s: float) -> Found:
    """The whole document."""
    begun, deadline = time.monotonic(), Deadline(timeout_s)
    head = {"schema": SCHEMA, "collected_at_s": time.time()}
    found = gather(sections(wish, deadline), deadline)
    return dict(head, duration_ms=(time.monotonic() - begun) * 1000, **found)


def tell(step: str) -> None:
    """How far a guest has come, for whoever reads along; the document holds it, too."""
    try:
        sys.stdout.write("{}{}\n".format(STEP, step))
        sys.stdout.flush()
    except OSError:  # nobody reads any more
        pass


def main(wish: Dict[str, Any], timeout_s: float, shape: Any) -> int:
    """Print the document between two lines that nothing else prints: a login shell may be chatty."""
    heed_signals()
    try:
        document = bounded(collect(Wish(**wish), timeout_s), shape)
    except Stopped as stopped:
        return 128 + int(stopped.args[0])
    sys.stdout.write("\n{}\n{}\n{}\n".format(BEGIN, json.dumps(document), END))
    sys.stdout.flush()
    return 0
