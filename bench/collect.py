"""What one more host costs the controller: collecting and judging hosts over ssh, in one process whose time is counted.

The hosts are addresses of this machine's loopback behind one sshd of the tests, which executes the collector for real;
what that costs is not counted.

    .venv/bin/python bench/collect.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, heading, table

sys.path.insert(0, str(ROOT / "tests" / "unit"))

from loopback import Sshd, sshd  # type: ignore[import-not-found]  # through the line above

from orchestrator.collect import collect
from orchestrator.inventory import AnsibleOptions, load
from orchestrator.judge import judge, read_contract
from orchestrator.model.run import Boot

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
FEW, MANY = 4, 32
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 17)]  # more than sshd listens on at once there are not

INVENTORY = """\
kvm_hosts:
  vars:
    ansible_port: {port}
    ansible_user: root
    ansible_ssh_private_key_file: {key}
    ansible_ssh_common_args: -o UserKnownHostsFile={known}
    ansible_python_interpreter: {python}
  hosts:
"""


def spent_s(server: Sshd, folder: Path, number: int) -> float:
    """The processor time of this process for so many hosts; the inventory is read before."""
    file = folder / f"{number}.yml"
    head = INVENTORY.format(port=server.port, key=server.key, known=server.known_hosts, python=sys.executable)
    hosts = (f"    hv{host}: {{ansible_host: {ADDRESSES[host % len(ADDRESSES)]}}}\n" for host in range(number))
    file.write_text(head + "".join(hosts))
    options = AnsibleOptions(inventory=(str(file),))
    fleet = load(options)
    begun = time.process_time()
    for answer in collect(fleet.hosts, options, boot=Boot("none"), settings=fleet.settings):
        assert answer.evidence, answer.problem
        judge(answer.evidence, read_contract(answer.evidence), "production")
    return time.process_time() - begun


with tempfile.TemporaryDirectory() as place, sshd(Path(place) / "sshd", *ADDRESSES) as server:
    spent_s(server, Path(place), 2)  # what is imported once is no host's
    spent = {number: [spent_s(server, Path(place), number) for _ in range(rounds)] for number in (FEW, MANY)}

heading("Collecting and judging over ssh", rounds)
few, many = (statistics.median(spent[number]) for number in (FEW, MANY))
table(
    ("controller's processor", "median"),
    (
        (f"{FEW} hosts", f"{few * 1000:.0f} ms"),
        (f"{MANY} hosts", f"{many * 1000:.0f} ms"),
        ("one more host", f"{(many - few) / (MANY - FEW) * 1000:.1f} ms"),
    ),
)
