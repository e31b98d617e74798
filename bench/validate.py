"""What looking costs: `validate` on the two hosts of a lab, and the proof alone on one of them.

Ansible's own `ping` of the same hosts is the peer: the least that a tool which asks through Ansible can cost. Makes the
lab `bench` when it is not there, and leaves it for the next time: `./kvmfleet lab down bench`.

    .venv/bin/python bench/validate.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

from measure import BIN, KVMFLEET, Run, by_turns, heading, median_cpu_s, median_wall_s, run, table

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
run(KVMFLEET, "lab", "up", "bench", "--provider", "container", "--yes", codes=(0, 2))
inventory = run(KVMFLEET, "lab", "status", "bench", "--json").report["inventory"]


def validate(*options: str) -> Callable[[], Run]:
    return partial(
        run, KVMFLEET, "validate", "-i", inventory, "--json", *options, codes=(0, 1, 2)
    )  # 1: --boot none determines nothing


candidates: dict[str, Callable[[], Run]] = {
    "validate, 2 hosts, no guest": validate("--boot", "none"),
    "validate, 2 hosts, the proof": validate("--boot", "proof"),
    "validate, 2 hosts, a libvirt guest boots": validate(),
    "validate, 1 host, no guest": validate("--boot", "none", "-l", "bench-1"),
    "validate, 1 host, the proof": validate("--boot", "proof", "-l", "bench-1"),
    "ansible-inventory --list": partial(run, BIN / "ansible-inventory", "-i", inventory, "--list"),
    "ansible -m ping, 2 hosts": partial(run, BIN / "ansible", "-i", inventory, "-m", "ping", "kvm_hosts"),
}
heading("Looking", rounds)
runs = by_turns(candidates, rounds)


def bytes_of(one: Run) -> str:
    """Sent and received, of all hosts together."""
    if '"kvmfleet":' not in one.stdout:
        return "-"
    collected = [host["collected"] for host in one.report["hosts"]]
    return f"{sum(c['bytes_sent'] for c in collected)} + {sum(c['bytes_received'] for c in collected)}"


base_s = median_cpu_s(runs["ansible -m ping, 2 hosts"])
table(
    ("command", "wall", "controller's processor", "against ping", "bytes sent + received"),
    (
        (
            name,
            f"{median_wall_s(r):.2f} s",
            f"{median_cpu_s(r):.2f} s",
            f"{median_cpu_s(r) / base_s:.2f}",
            bytes_of(r[-1]),
        )
        for name, r in runs.items()
    ),
)

alone = [host["evidence"] for one in runs["validate, 1 host, no guest"] for host in one.report["hosts"]]
table(
    ("looking without a guest", "median"),
    (("the whole collection, on the host", f"{statistics.median(e['duration_ms'] for e in alone):.0f} ms"),),
)

proofs = [host["evidence"]["kvm"] for one in runs["validate, 2 hosts, the proof"] for host in one.report["hosts"]]
table(
    ("the proof alone, on the host", "median"),
    (
        ("20 bytes of guest code", f"{statistics.median(p['execution']['duration_ms'] for p in proofs):.1f} ms"),
        ("telling hardware from emulation", f"{statistics.median(p['speed']['loop_ms'] for p in proofs):.1f} ms"),
    ),
)
