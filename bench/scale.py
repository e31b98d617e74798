"""What many hosts cost: `drift` on 100, 1,000 and 5,000 ssh targets, and on 1,000 of which every tenth is dead.

The targets are addresses of the loopback interface. Servers in other processes answer at once with recorded evidence,
each address as another host, so that what is seen is the controller's own cost. They share this machine's processors
with it, and need more of them than it does: the wall times are theirs, too. The dead ones accept no connection, or
accept it and say nothing. Every host has a baseline, and one has drifted, which each run has to find.

    .venv/bin/python bench/scale.py [ROUNDS]
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec
from answers import loopback
from fleets import Access, Target, remember, write_inventory
from measure import COMMAND, ROOT, Run, by_turns, heading, median_cpu_s, median_wall_s, run, table

sys.path.insert(0, str(ROOT / "tests" / "unit"))

from evidence import host as recorded  # type: ignore[import-not-found]  # through the line above
from loopback import make_key  # type: ignore[import-not-found]

from orchestrator.collector.marks import BEGIN, END

SIZES = (1, 100, 1000, 5000)
MIXED = 1000  # hosts, when every tenth is dead
REPEATED = 7  # times in a round, with fewer hosts than that
SERVERS = 2
TIMEOUT_S = 5  # to connect
MEMORY_MIB, FLAT = 286, 1.15  # the aims; so many MiB are 300 MB

DRIFTED, UNKNOWN = 2, 1  # exit codes


def evidence(address: str) -> bytes:
    return msgspec.json.encode(recorded({"system": {"hostname": f"host-{address}"}}))


@contextmanager
def server(folder: Path, takes_s: float = 0) -> Iterator[int]:
    """Its port."""
    command = [sys.executable, str(ROOT / "bench" / "answers.py"), str(folder), str(takes_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.terminate()


@contextmanager
def dead() -> Iterator[tuple[int, int]]:
    """Two ports: the connections that one accepts stay silent; the other drops them, as its queue is full."""
    with ExitStack() as stack:
        silent, full = (stack.enter_context(loopback()) for _ in range(2))
        silent.listen(socket.SOMAXCONN)
        full.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", full.getsockname()[1]))
        yield silent.getsockname()[1], full.getsockname()[1]


def targets(number: int, ports: list[int], dead_ports: tuple[int, ...] = ()) -> list[Target]:
    """So many hosts, always the same ones; with `dead_ports`, every tenth is behind one of them."""
    found = []
    for host in range(number):
        choice = ports[host % len(ports)]
        if dead_ports and host % 10 == 9:
            choice = dead_ports[host // 10 % len(dead_ports)]
        found.append(Target(f"hv{host:04}", f"127.2.{host // 250}.{host % 250 + 1}", choice))
    return found


def drift(inventory: Path, code: int) -> Run:
    return run(*COMMAND, "drift", "-i", inventory, codes=(code,))


def steady(inventory: Path, size: int) -> Run:
    """Few hosts several times, and the run in the middle: their cost is a difference as small as the noise of one."""
    runs = [drift(inventory, DRIFTED) for _ in range(REPEATED if size < MIXED else 1)]
    return sorted(runs, key=lambda done: done.cpu_s)[len(runs) // 2]


def prepare(folder: Path) -> Access:
    """Keys for both sides, and what every server answers."""
    access = Access(make_key(folder / "key"), folder / "known_hosts", timeout_s=TIMEOUT_S)
    make_key(folder / "host_key")
    answer = b"%b\n%b\n%b\n" % (BEGIN.encode(), evidence("@ADDRESS@"), END.encode())
    (folder / "answer").write_bytes(answer)
    return access


def trust(access: Access, folder: Path, hosts: list[Target]) -> None:
    public = " ".join((folder / "host_key.pub").read_text().split()[:2])
    access.known_hosts.write_text("".join(f"[{one.address}]:{one.port} {public}\n" for one in hosts))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        os.environ["KVMFLEET_STATE_DIR"] = str(folder / "state")
        access = prepare(folder)
        ports = [stack.enter_context(server(folder)) for _ in range(SERVERS)]
        everybody = targets(max(SIZES), ports)
        trust(access, folder, everybody)
        inventories = {size: write_inventory(folder / f"{size}.yml", everybody[:size], access) for size in SIZES}
        mixed = targets(MIXED, ports, stack.enter_context(dead()))
        partly_dead = write_inventory(folder / "dead.yml", mixed, access)
        addresses = {one.name: one.address for one in everybody}
        addresses[everybody[0].name] = "before"
        remember(inventories[max(SIZES)], lambda name: recorded({"system": {"hostname": f"host-{addresses[name]}"}}))
        # not counted: what is seen of a host for the first time is more to write
        drift(inventories[max(SIZES)], DRIFTED)
        candidates = {f"{size:,}": partial(steady, file, size) for size, file in inventories.items()}
        candidates[f"{MIXED:,}, every tenth dead"] = partial(drift, partly_dead, UNKNOWN)
        show(by_turns(candidates, rounds), rounds)


def show(runs: dict[str, list[Run]], rounds: int) -> None:
    heading(f"Drift on many hosts that answer at once, {SERVERS} servers, connections given {TIMEOUT_S} s", rounds)
    one_s = median_cpu_s(runs["1"])
    rows, costs = [], {}
    for name, done in runs.items():
        number = int(name.partition(" ")[0].strip(",").replace(",", ""))
        cpu_s, peak_mib = median_cpu_s(done), max(each.peak_mib for each in done)
        more = "-"
        if number > 1:
            costs[name] = (cpu_s - one_s) / (number - 1)
            more = f"{costs[name] * 1000:.1f} ms"
        rows.append((name, f"{median_wall_s(done):.1f} s", f"{cpu_s:.1f} s", more, f"{peak_mib:.0f} MiB"))
    table(("hosts", "wall", "controller's processor", "one more host", "peak memory"), rows)
    alive = [cost for name, cost in costs.items() if "dead" not in name]
    peak_mib = max(each.peak_mib for done in runs.values() for each in done)
    added_s = median_wall_s(runs[f"{MIXED:,}, every tenth dead"]) - median_wall_s(runs[f"{MIXED:,}"])
    table(
        ("aim", "seen", ""),
        (
            aim(f"one more host costs the same, within {FLAT - 1:.0%}", max(alive) / min(alive), FLAT, "{:.2f} times"),
            aim(f"less than {MEMORY_MIB} MiB at {max(SIZES):,} hosts", peak_mib, MEMORY_MIB, "{:.0f} MiB"),
            aim(f"dead hosts add at most {TIMEOUT_S} s", added_s, TIMEOUT_S, "{:+.1f} s"),
        ),
    )


def aim(words: str, seen: float, most: float, form: str) -> tuple[str, str, str]:
    return words, form.format(seen), "met" if seen <= most else "missed"


if __name__ == "__main__":
    main()
