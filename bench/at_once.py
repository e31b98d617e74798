"""How many hosts to ask at once: `drift` with different --forks, from which the default was chosen.

Once on 60 addresses of the loopback interface behind real sshd processes, and once on 600 behind the servers of
bench/answers.py, which cost this machine less. Each host takes 0.3 s for its answer, as the collector does, but does
nothing in that time: it would share this machine's processors with the controller, as no real host does. Every host has
a baseline, and one has drifted, which each run has to find.

    .venv/bin/python bench/at_once.py [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from fleets import Access, Target, remember, write_inventory
from measure import COMMAND, ROOT, Run, by_turns, heading, median_cpu_s, median_wall_s, run, table
from scale import DRIFTED, prepare, server, targets, trust

from orchestrator.collect import CONCURRENCY

sys.path.insert(0, str(ROOT / "tests" / "unit"))

from evidence import host as recorded  # type: ignore[import-not-found]  # through the line above
from loopback import sshd  # type: ignore[import-not-found]

TAKES_S = 0.3
SSHDS, ADDRESSES = 4, 15  # sshd listens on at most 16
REAL = (5, 10, 20, 40, 60)
SERVERS, MANY = 2, 600
IN_PROCESS = (16, 32, 64, 128, 256)

# In the place of Python on the target: is ready, hears the program, takes its time, and answers.
ANSWER = f"""\
#!/bin/sh
echo "$4"
cat > /dev/null
sleep {TAKES_S}
set -- $SSH_CONNECTION
exec sed "s/@ADDRESS@/$3/" {{answer}}
"""


@contextmanager
def behind_sshd(folder: Path) -> Iterator[Path]:
    """An inventory of 60 addresses."""
    access = prepare(folder)
    python = folder / "python"
    python.write_text(ANSWER.format(answer=folder / "answer"))
    python.chmod(0o755)
    with ExitStack() as stack:
        hosts, known = [], ""
        for number in range(SSHDS):
            addresses = [f"127.0.1.{number * ADDRESSES + one + 1}" for one in range(ADDRESSES)]
            up = stack.enter_context(sshd(folder / f"sshd{number}", *addresses))
            shutil.copy(access.key.with_suffix(".pub"), up.key.with_suffix(".pub"))
            hosts += [Target(f"hv{address}", address, up.port) for address in addresses]
            known += up.known_hosts.read_text()
        access.known_hosts.write_text(known)
        yield with_baselines(folder, hosts, access._replace(python=str(python)))


@contextmanager
def in_process(folder: Path) -> Iterator[Path]:
    """An inventory of 600 addresses."""
    access = prepare(folder)
    with ExitStack() as stack:
        hosts = targets(MANY, [stack.enter_context(server(folder, TAKES_S)) for _ in range(SERVERS)])
        trust(access, folder, hosts)
        yield with_baselines(folder, hosts, access)


def with_baselines(folder: Path, hosts: list[Target], access: Access) -> Path:
    """Every host was found as it is, but for the first."""
    inventory = write_inventory(folder / "hosts.yml", hosts, access._replace(timeout_s=60))
    before = {one.name: f"host-{one.address}" for one in hosts} | {hosts[0].name: "before"}
    remember(inventory, lambda name: recorded({"system": {"hostname": before[name]}}))
    return inventory


def drift(inventory: Path, at_once: int) -> Run:
    return run(*COMMAND, "drift", "-i", inventory, f"--forks={at_once}", codes=(DRIFTED,))


def measured(inventory: Path, sizes: Iterable[int], rounds: int) -> dict[str, list[Run]]:
    drift(inventory, CONCURRENCY)  # not counted: what is seen of a host for the first time is more to write
    return by_turns({str(size): partial(drift, inventory, size) for size in sizes}, rounds)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    heading(f"Drift on hosts that take {TAKES_S:g} s each, with so many at once", rounds)
    for what, hosts, sizes in (
        (f"{SSHDS * ADDRESSES} hosts, real sshd", behind_sshd, REAL),
        (f"{MANY} hosts, servers in {SERVERS} processes", in_process, IN_PROCESS),
    ):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            os.environ["KVMFLEET_STATE_DIR"] = str(folder / "state")
            with hosts(folder) as inventory:
                show(what, measured(inventory, sizes, rounds))


def show(what: str, runs: Mapping[str, list[Run]]) -> None:
    most = median_wall_s(list(runs.values())[-1])
    rows = (
        (name, f"{median_wall_s(done):.1f} s", f"{median_wall_s(done) / most:.2f}", f"{median_cpu_s(done):.2f} s")
        for name, done in runs.items()
    )
    table((f"{what}; at once", "wall", "against the most", "controller's processor"), rows)


if __name__ == "__main__":
    main()
