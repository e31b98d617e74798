"""Fill every section of the evidence within its time, and print one document."""

import json
import sys
import time
from typing import Any, Callable, Dict, Tuple

from . import contract as contracts
from . import guest, inventory, kernel, kvm, libvirt, qemu, system
from .limits import Deadline, Expired, Stopped, bounded, heed_signals, within

SCHEMA = 1
BEGIN, END = "---- kvmfleet evidence ----", "---- end of kvmfleet evidence ----"


def collect(depth: str, timeout_s: float) -> Dict[str, Any]:
    """The whole document. A section that fails or is late is missing, and named in `errors`."""
    begun, deadline = time.monotonic(), Deadline(timeout_s)
    found: Dict[str, Any] = {"schema": SCHEMA, "collected_at_s": time.time()}
    errors: Dict[str, str] = {}

    def fill(section: str, seconds: float, look: Callable[[], Any]) -> None:
        seconds = min(seconds, deadline.left_s())
        if seconds <= 0:
            errors[section] = "not begun, the {:g} s for everything were over".format(timeout_s)
            return
        try:
            with within(seconds):
                found[section] = look()
        except Expired:
            errors[section] = "not done after {:.0f} s".format(seconds)
        except Exception as error:  # whatever it is, the other sections still answer
            errors[section] = "{}: {}".format(type(error).__name__, error)

    fill("contract", 3, contracts.look)
    contract = contracts.parsed(found.get("contract", {"text": ""}))
    sections: Tuple[Tuple[str, float, Callable[[], Any]], ...] = (
        ("system", 10, system.look),
        ("cpu", 3, system.cpu),
        ("kernel", 5, lambda: kernel.look(contract, found.get("system", {}).get("container", ""))),
        ("kvm", 15, lambda: kvm.look(contract, depth)),
        ("qemu", 20, lambda: qemu.look(contract)),
        ("libvirt", 40, lambda: libvirt.look(contract)),
        ("packages", 20, lambda: inventory.packages(contract)),
        ("files", 20, lambda: inventory.states(contract)),
        ("members", 10, lambda: inventory.members(contract)),
        ("guest", timeout_s, lambda: guest.look(contract, depth, found, deadline)),
    )
    for section, seconds, look in sections:
        fill(section, seconds, look)
    return dict(found, errors=errors, duration_ms=(time.monotonic() - begun) * 1000)


def main(depth: str, timeout_s: float, shape: Any) -> int:
    """Print the document between two lines that nothing else prints: a login shell may be chatty."""
    heed_signals()
    try:
        document = bounded(collect(depth, timeout_s), shape)
    except Stopped as stopped:
        return 128 + int(stopped.args[0])
    sys.stdout.write("\n{}\n{}\n{}\n".format(BEGIN, json.dumps(document), END))
    sys.stdout.flush()
    return 0
