"""What provisioning costs against the least that it could cost: apt-get installing the same packages over ssh.

Each round makes a lab of two bare Debian 12 hosts. One is provisioned, and then again; the other gets the packages that
the first one's contract names, with one `apt-get install` by ssh. Who goes first changes with the round.

Both sides fetch the package index, as a bare machine has to.

Where `provision` leaves alone what shows no drift, a third one is forced to converge it all the same.

A lab gives its hosts the packages that earlier labs downloaded. They are thrown away first, so that both sides download
from the distribution's archive, as on a machine of one's own; `cache` as a second argument keeps them, which shows
what we add when nothing has to be downloaded.

    .venv/bin/python bench/provision.py [ROUNDS [cache]]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile

from measure import KVMFLEET, Run, heading, run, table

LAB = "bench-provision"
OURS, TWIN = f"{LAB}-1", f"{LAB}-2"
INSTALL = "sudo apt-get -q update && sudo DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends"


def bare_lab() -> str:
    """The inventory of a lab in which nothing was installed yet."""
    run(KVMFLEET, "lab", "down", LAB, "--yes", codes=(0, 1))
    run(KVMFLEET, "lab", "up", LAB, "--provider", "container", "--os", "debian-12", "--hosts", "2", "--bare", "--yes")
    return str(run(KVMFLEET, "lab", "status", LAB, "--json").report["inventory"])


def forget_packages() -> None:
    for host in (OURS, TWIN):
        run(KVMFLEET, "lab", "ssh", host, "sudo apt-get clean")


def can_force() -> bool:
    return "--force" in run(KVMFLEET, "provision", "--help").stdout


def provision(inventory: str, *more: str) -> Run:
    options = ("-i", inventory, "-l", OURS, "--boot", "proof", "--json", "-e", "qemu_kvm_cache_valid_time=0", *more)
    return run(KVMFLEET, "provision", *options, codes=(0, 2))


def apt(packages: list[str]) -> Run:
    return run(KVMFLEET, "lab", "ssh", TWIN, f"{INSTALL} {' '.join(packages)}")


def the_host(one: Run) -> dict[str, object]:
    (host,) = one.report["hosts"]
    return dict(host)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    cached = sys.argv[2:] == ["cache"]
    source = "a cache on the host" if cached else "the distribution's archive"
    heading(f"Provisioning one bare Debian 12 host, packages from {source}", rounds)
    firsts, seconds, forced, apts = [], [], [], []
    with tempfile.TemporaryDirectory() as state:  # the history of whoever runs this learns nothing of it
        os.environ["KVMFLEET_STATE_DIR"] = state
        try:
            packages: list[str] = the_host(provision(bare_lab()))["contract"]["packages"]  # type: ignore[index]
            apt(packages)  # not counted: it fills the cache, and warms up what is between us and the archive
            for number in range(rounds):
                inventory = bare_lab()
                if not cached:
                    forget_packages()
                if number % 2:
                    apts.append(apt(packages))
                firsts.append(provision(inventory))
                seconds.append(provision(inventory))
                if can_force():
                    forced.append(provision(inventory, "--force"))
                if not number % 2:
                    apts.append(apt(packages))
        finally:
            run(KVMFLEET, "lab", "down", LAB, "--yes", codes=(0, 1))
    show(apts, firsts, seconds, forced)


def show(apts: list[Run], firsts: list[Run], seconds: list[Run], forced: list[Run]) -> None:
    base_s = statistics.median(one.wall_s for one in apts)
    rows = []
    for name, runs in (
        ("`apt-get install` of the same packages by ssh", apts),
        ("first `provision`", firsts),
        ("second `provision`", seconds),
        ("`provision --force` after it", forced),
    ):
        if not runs:
            continue
        wall_s = statistics.median(one.wall_s for one in runs)
        cpu_s = statistics.median(one.cpu_s for one in runs)
        rows.append((name, f"{wall_s:.1f} s", f"{wall_s / base_s:.2f}", f"{cpu_s:.1f} s"))
    table(("command", "wall", "against apt-get", "controller's processor"), rows)
    if forced:
        gain = statistics.median(one.wall_s for one in forced) / statistics.median(one.wall_s for one in seconds)
        print(
            f"The second run, which finds that nothing is to be done, is {gain:.1f} times faster than the forced one."
        )
    converged: dict[str, int] = the_host((forced or seconds)[-1])["converged"]  # type: ignore[assignment]
    print(f"The last run: {converged['ok']} tasks, {converged['changed']} changed.")


if __name__ == "__main__":
    main()
