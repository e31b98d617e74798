"""`drift` on 60 ssh targets against other ways to learn the same: the least that ssh costs, Ansible, pyinfra, OpenSSH.

The targets are 60 ports of one lab host, Debian 12 and provisioned: real sshd processes behind which the collector, our
roles in check mode and pyinfra's facts find a real KVM host. It shares this machine's processors with the controller,
so that the host's own work decides the wall time. Therefore the ways that run the collector are measured once more with
a program in its place that gives a recorded answer at once: this shows what the controller can do.

`drift` knows a baseline of each target, and that of the first differs in one item, which each run has to find. Check
mode runs on fewer hosts, and what it took is multiplied. pyinfra goes into a folder of its own, from PyPI. All ways
talk to equally many targets at once: to more of them, one systemd and one libvirt do not answer in time.

Makes the lab `bench-drift` when it is not there, and leaves it for the next time: `./kvmfleet lab down bench-drift`.

    .venv/bin/python bench/drift.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from fleets import Access, Target, remember, write_inventory
from measure import BIN, COMMAND, ROOT, Run, by_turns, heading, median_cpu_s, median_wall_s, run, table

from orchestrator import payload
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Boot
from orchestrator.reach.question import Question, argv, command_line

LAB, HOST = "bench-drift", "bench-drift-1"
SERVERS, PORTS = 4, 15  # sshd listens on at most 16
AT_ONCE = 20  # sessions, forks, processes
CHECKED = 20  # hosts, in check mode
FOLDER = "/root/kvmfleet-bench"  # on the target
DRIFTED = 2  # exit code

# Each sshd of the lab host that we start, and the program that answers at once in the place of Python.
SET_UP = f"""
set -e; rm -rf {FOLDER}; mkdir -m 0700 {FOLDER}; cd {FOLDER}; mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f host_key
cat > key.pub <<'KEY'
@KEY@
KEY
for server in $(seq {SERVERS}); do
    {{
        for port in $(seq {PORTS}); do echo "Port $((2000 + server * 100 + port))"; done
        echo "AddressFamily inet
HostKey {FOLDER}/host_key
AuthorizedKeysFile {FOLDER}/key.pub
PidFile {FOLDER}/$server.pid
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 500:30:1000
LogLevel ERROR"
    }} > $server.conf
    /usr/sbin/sshd -f {FOLDER}/$server.conf
done
printf '#!/bin/sh\\necho "$4"\\ncat > /dev/null\\nexec cat {FOLDER}/answer\\n' > at-once
chmod 0755 at-once
cat host_key.pub
"""
TEAR_DOWN = f"cat {FOLDER}/*.pid 2>/dev/null | xargs -r kill; rm -rf {FOLDER}"

# What pyinfra has facts for, of what the collector asks. It has none for libvirt, QEMU, KVM's proof, or kernel options
# that act at the next boot.
FACTS = """\
from pyinfra import host
from pyinfra.facts.deb import DebPackages
from pyinfra.facts.files import File, Sha256File
from pyinfra.facts.hardware import Cpus, Memory, NetworkDevices
from pyinfra.facts.server import Groups, Hostname, Kernel, KernelModules, LinuxDistribution, Sysctl, Users
from pyinfra.facts.systemd import SystemdEnabled, SystemdStatus

for fact in (Hostname, Kernel, LinuxDistribution, Cpus, Memory, NetworkDevices, Users, Groups):
    assert host.get_fact(fact), fact
host.get_fact(KernelModules)  # empty where /proc/modules is absent
assert host.get_fact(DebPackages)["python3"]
assert host.get_fact(Sysctl)
assert host.get_fact(SystemdStatus) and host.get_fact(SystemdEnabled)
for path in {files!r}:
    assert host.get_fact(File, path=path) is not None, path
    assert host.get_fact(Sha256File, path=path), path
"""


class Bench(NamedTuple):
    """What all candidates need."""

    folder: Path
    targets: tuple[Target, ...]
    access: Access
    evidence: Evidence  # of the lab host

    def inventory(self, name: str, number: int | None = None, python: str = "/usr/bin/python3") -> Path:
        return write_inventory(self.folder / f"{name}.yml", self.targets[:number], self.access._replace(python=python))


def on_lab(config: Path, script: str) -> str:
    """What the script, run by root on the lab host, printed."""
    command = ["ssh", "-F", str(config), HOST, "sudo", "sh", "-s"]
    return subprocess.run(command, input=script, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def prepared(folder: Path) -> Iterator[Bench]:
    run(
        *COMMAND, "lab", "up", LAB, "--provider", "container", "--os", "debian-12", "--hosts", "1", "--yes",
        codes=(0, 2),
    )  # fmt: skip
    lab = run(*COMMAND, "lab", "status", LAB, "--json").report
    (host,) = lab["hosts"]
    place = Path(lab["folder"])
    key, config = place / "key" / "id_ed25519", place / "ssh_config"
    public = key.with_suffix(".pub").read_text().strip()
    try:
        host_key = " ".join(on_lab(config, SET_UP.replace("@KEY@", public)).split()[:2])
        ports = (2000 + server * 100 + port for server in range(1, SERVERS + 1) for port in range(1, PORTS + 1))
        targets = tuple(Target(f"target{port}", host["address"], port) for port in ports)
        access = Access(key, folder / "known_hosts", timeout_s=60)
        access.known_hosts.write_text("".join(f"[{one.address}]:{one.port} {host_key}\n" for one in targets))
        yield Bench(folder, targets, access, recorded(folder, targets[0], access))
    finally:
        on_lab(config, TEAR_DOWN)


def ssh(access: Access, address: str, port: str, command: str) -> str:
    """A shell's words for one session of OpenSSH."""
    return f"ssh -F /dev/null -o BatchMode=yes {access.arguments} -i {access.key} -p {port} root@{address} {command}"


def recorded(folder: Path, target: Target, access: Access) -> Evidence:
    """What the lab host says, which is also put where it can be given at once."""
    answer, program = folder / "answer", folder / "program"
    question = Question(payload.payload(Boot("none"), timeout_s=115.0), payload.decode, 120.0)
    program.write_bytes(question.spoken)
    asked = shlex.quote(command_line(sudo=False, password=False, python=""))
    subprocess.run(
        f"{ssh(access, target.address, str(target.port), asked)} < {program} > {answer} &&"
        f" {ssh(access, target.address, str(target.port), shlex.quote(f'cat > {FOLDER}/answer'))} < {answer}",
        shell=True,
        check=True,
    )
    return payload.decode(answer.read_bytes())


def drift(inventory: Path) -> Run:
    return run(*COMMAND, "drift", "-i", inventory, f"--forks={AT_ONCE}", codes=(DRIFTED,))


def limit(bench: Bench, targets: Path) -> Run:
    words = (BIN / "python", ROOT / "bench" / "limit.py", AT_ONCE, bench.access.key, bench.access.known_hosts)
    return run("sh", "-c", f"exec {' '.join(map(str, words))} < {targets}")


def openssh(bench: Bench, targets: Path, python: str) -> Run:
    """As many at once as our own sessions; every answer has to be whole."""
    asked = shlex.quote(command_line(sudo=False, password=False, python=python))
    script = bench.folder / "ask"
    script.write_text(
        f"#!/bin/sh\nexec {ssh(bench.access, '$1', '$2', asked)} < {bench.folder}/program > {bench.folder}/said.$2\n"
    )
    script.chmod(0o755)
    done = run("xargs", "-a", targets, "-n", "2", "-P", str(AT_ONCE), script)
    for target in bench.targets:
        payload.decode((bench.folder / f"said.{target.port}").read_bytes())
    return done


def ansible(bench: Bench, *arguments: str | Path) -> Run:
    """Pipelined, as ansible.cfg says, on new connections. The processes that keep these open are not counted."""
    with tempfile.TemporaryDirectory() as connections:
        environment = {"ANSIBLE_SSH_CONTROL_PATH_DIR": connections, "ANSIBLE_TIMEOUT": "60"}
        try:
            return run(BIN / "ansible-playbook", f"--forks={AT_ONCE}", *arguments, environment=environment)
        finally:
            for socket in Path(connections).iterdir():
                command = ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "target"]
                subprocess.run(command, capture_output=True, check=False)


def check(bench: Bench, inventory: Path) -> Run:
    """Our roles in check mode, told what the lab was told; what it took for all hosts, in proportion."""
    told = {"kvmfleet_profile": "lab", "libvirt_users": ["kvmfleet"]} | {
        f"{role}_cache_valid_time": 30 * 24 * 3600 for role in ("qemu_kvm", "libvirt")
    }
    done = ansible(bench, "-i", inventory, "--check", "-e", json.dumps(told), "playbooks/provision.yml")
    share = len(bench.targets) / CHECKED
    return done._replace(wall_s=done.wall_s * share, cpu_s=done.cpu_s * share)


def task(bench: Bench, inventory: Path, pythons: Sequence[str]) -> Run:
    """The collector as the only task of a play."""
    asked = {
        "argv": argv(sudo=False, pythons=pythons),
        "stdin": f"{{{{ lookup('ansible.builtin.file', '{bench.folder}/program', rstrip=false) }}}}",
        "stdin_add_newline": False,
    }
    play = {"hosts": "kvm_hosts", "gather_facts": False, "tasks": [{"ansible.builtin.command": asked}]}
    playbook = bench.folder / "task.yml"
    playbook.write_text(json.dumps([play]))
    return ansible(bench, "-i", inventory, playbook)


def install_pyinfra(folder: Path) -> tuple[Path, str]:
    """The command, and its version."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "--quiet", "pyinfra")
    said = run(folder / "bin" / "python", "-c", "from importlib.metadata import version; print(version('pyinfra'))")
    return folder / "bin" / "pyinfra", said.stdout.strip()


def pyinfra(bench: Bench, command: Path) -> Callable[[], Run]:
    files = sorted(path for path, state in bench.evidence.files.items() if state.exists)
    deploy, inventory = bench.folder / "facts.py", bench.folder / "hosts.py"
    deploy.write_text(FACTS.format(files=files))
    data = {
        "ssh_user": "root",
        "ssh_key": str(bench.access.key),
        "ssh_known_hosts_file": str(bench.access.known_hosts),
    }
    hosts = [(one.name, {"ssh_hostname": one.address, "ssh_port": one.port, **data}) for one in bench.targets]
    inventory.write_text(f"targets = {hosts!r}\n")
    return partial(run, command, "-y", "--parallel", str(AT_ONCE), inventory, deploy)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as place, prepared(Path(place)) as bench:
        os.environ["KVMFLEET_STATE_DIR"] = str(bench.folder / "state")
        command, version = install_pyinfra(bench.folder / "pyinfra")
        targets = bench.folder / "targets"
        targets.write_text("".join(f"{one.address} {one.port}\n" for one in bench.targets))
        inventory = bench.inventory("all")
        at_once = bench.inventory("at-once", python=f"{FOLDER}/at-once")
        remember(inventory, partial(baseline, bench))
        drift(inventory)  # not counted: what is seen of a host for the first time is more to write
        working: dict[str, Callable[[], Run]] = {
            "the limit: `true` with asyncssh": partial(limit, bench, targets),
            "`kvmfleet drift`": partial(drift, inventory),
            "OpenSSH processes, collector": partial(openssh, bench, targets, "/usr/bin/python3"),
            "Ansible, one task with the collector": partial(task, bench, inventory, ["/usr/bin/python3"]),
            "pyinfra, facts": pyinfra(bench, command),
            "`ansible-playbook --check`": partial(check, bench, bench.inventory("few", CHECKED)),
        }
        answering: dict[str, Callable[[], Run]] = {
            "the limit: `true` with asyncssh": partial(limit, bench, targets),
            "`kvmfleet drift`": partial(drift, at_once),
            "OpenSSH processes, collector": partial(openssh, bench, targets, f"{FOLDER}/at-once"),
            "Ansible, one task with the collector": partial(task, bench, inventory, [f"{FOLDER}/at-once"]),
        }
        worked, answered = by_turns(working, rounds), by_turns(answering, rounds)
    title = f"Drift on {len(bench.targets)} ssh targets, {AT_ONCE} at once"
    heading(title, rounds, f"pyinfra {version}")
    show("the targets do their work", worked)
    show("the targets answer at once", answered)
    print(f"Check mode ran on {CHECKED} of the targets; its figures are those times {len(bench.targets) / CHECKED:g}.")


def baseline(bench: Bench, name: str) -> Evidence:
    if name != bench.targets[0].name:
        return bench.evidence
    system = msgspec.structs.replace(bench.evidence.system, hostname="before")
    return msgspec.structs.replace(bench.evidence, system=system)


def show(what: str, runs: dict[str, list[Run]]) -> None:
    ours = next(done for name, done in runs.items() if "drift" in name)
    wall_s, cpu_s = median_wall_s(ours), median_cpu_s(ours)
    rows = (
        (
            name,
            f"{median_wall_s(done):.1f} s",
            f"{median_wall_s(done) / wall_s:.2f}",
            f"{median_cpu_s(done):.2f} s",
            f"{median_cpu_s(done) / cpu_s:.2f}",
        )
        for name, done in runs.items()
    )
    table((what, "wall", "against drift", "controller's processor", "against drift"), rows)


if __name__ == "__main__":
    main()
