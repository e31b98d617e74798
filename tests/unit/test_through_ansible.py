"""The same question through Ansible, for hosts that only Ansible can reach."""

from __future__ import annotations

import getpass
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from evidence import host, lasting
from loopback import SSHD, Sshd, sshd
from patience import until

from orchestrator import payload
from orchestrator.collect import ask_all, collect
from orchestrator.inventory import AnsibleOptions, load
from orchestrator.model.run import Boot
from orchestrator.reach.question import Question

pytestmark = [pytest.mark.ansible, pytest.mark.skipif(not SSHD, reason="openssh-server is not installed")]

ONLY_ANSIBLE = "-o Ciphers=aes128-ctr"  # an option of ssh that the fast way does not know

INVENTORY = """\
kvm_hosts:
  vars:
    ansible_host: 127.0.0.1
    ansible_port: {port}
    ansible_user: {user}
    ansible_become: {become}
    ansible_python_interpreter: {python}
    ansible_ssh_private_key_file: {key}
    ansible_ssh_common_args: -o UserKnownHostsFile={known_hosts}
  hosts:
{hosts}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


def write(folder: Path, server: Sshd, hosts: str) -> Path:
    file = folder / "hosts.yml"
    lines = "\n".join(f"    {line}" for line in hosts.strip().splitlines())
    root, user = os.geteuid() == 0, getpass.getuser()
    known = server.known_hosts
    python = os.path.realpath(sys.executable)  # what Ansible would find by itself is another machine's affair
    file.write_text(
        INVENTORY.format(
            port=server.port, user=user, become=root, python=python, key=server.key, known_hosts=known, hosts=lines
        )
    )
    return file


def test_all_three_ways_bring_the_same_evidence(server: Sshd, tmp_path: Path) -> None:
    hosts = f"""
over-ssh:
through-ansible: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}}}
locally: {{ansible_connection: local}}
local-ansible: {{ansible_connection: local, ansible_become_method: su}}
"""
    options = AnsibleOptions(inventory=(str(write(tmp_path, server, hosts)),))
    fleet = load(options)
    answers = collect(fleet.hosts, options, boot=Boot("none"), settings=fleet.settings)
    assert [(a.host, a.path) for a in answers] == [
        ("over-ssh", "ssh"),
        ("through-ansible", "ansible"),
        ("locally", "local"),
        ("local-ansible", "ansible" if os.geteuid() == 0 else "local"),
    ]
    first, *others = [msgspec.to_builtins(lasting(answer.evidence)) for answer in answers]
    for other in others:
        assert {name: value for name, value in other.items() if first[name] != value} == {}
    sizes = {answer.bytes_sent for answer in answers}
    assert len(sizes) == 1


def test_each_failure_keeps_to_its_own_host(server: Sshd, tmp_path: Path) -> None:
    hosts = f"""
good: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}}}
down: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}, ansible_port: 1}}
no-python: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}, ansible_python_interpreter: /opt/none/python3}}
"""
    options = AnsibleOptions(inventory=(str(write(tmp_path, server, hosts)),), check=True, tags=("nothing",))
    fleet = load(options)
    good, down, no_python = collect(fleet.hosts, options, boot=Boot("none"), settings=fleet.settings)
    assert good.evidence
    assert down.unreachable
    assert "refused" in down.problem
    assert no_python.evidence is None
    assert not no_python.unreachable
    assert "/opt/none/python3" in no_python.problem


def test_luggage_goes_along_unchanged_and_is_removed(server: Sshd, tmp_path: Path) -> None:
    luggage = tmp_path / "luggage"
    luggage.write_bytes(os.urandom(1 << 20) + b"\0\r\n")
    program = f"""
import hashlib, json, os
path = os.environ["KVMFLEET_LUGGAGE"]
said = {{"schema": 1, "collected_at_s": 1, "duration_ms": 1,
        "system": {{"hostname": hashlib.sha256(open(path, "rb").read()).hexdigest(), "os_name": path}}}}
print({payload.BEGIN!r}); print(json.dumps(said)); print({payload.END!r})
""".encode()
    options = AnsibleOptions(
        inventory=(str(write(tmp_path, server, f"through: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}}}")),)
    )
    fleet = load(options)
    question = Question(program, payload.decode, 60.0, luggage=luggage)
    (answer,) = ask_all(fleet.hosts, question, options, settings=fleet.settings)
    assert answer.evidence, answer.problem
    assert answer.evidence.system.hostname == hashlib.sha256(luggage.read_bytes()).hexdigest()
    assert answer.bytes_sent == question.size
    assert answer.evidence.system.os_name.startswith("/var/tmp/kvmfleet-proof-")
    assert not Path(answer.evidence.system.os_name).exists()


def test_a_host_that_hangs_is_given_up_at_its_deadline(server: Sshd, tmp_path: Path) -> None:
    options = AnsibleOptions(
        inventory=(str(write(tmp_path, server, f"slow: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}}}")),)
    )
    fleet = load(options)
    question = Question(b"import time; time.sleep(300)", lambda raw: pytest.fail("no answer was due"), 3.0)
    start = time.monotonic()
    (answer,) = ask_all(fleet.hosts, question, options, settings=fleet.settings)
    assert answer.path == "ansible"
    assert answer.evidence is None
    assert answer.problem == "no evidence within 3 s"
    assert time.monotonic() - start < 100


def test_an_interrupt_ends_ansible_too(server: Sshd, tmp_path: Path) -> None:
    inventory = write(tmp_path, server, f"slow: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}}}")
    mark = tmp_path / "began"
    script = f"""
import sys
from orchestrator.collect import ask_all
from orchestrator.inventory import AnsibleOptions, load
from orchestrator.reach.question import Question
options = AnsibleOptions(inventory=({str(inventory)!r},))
program = b"import time; open({str(mark)!r}, 'w').close(); time.sleep(300)"
try:
    ask_all(load(options).hosts, Question(program, lambda raw: None, 300.0), options)
except KeyboardInterrupt:
    sys.exit(42)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "KVMFLEET_TEST": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment) as child:
        until(lambda: mark.exists() or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 42, errors
    until(lambda: not processes_with(f"KVMFLEET_TEST={tmp_path}"), limit_s=20)  # ssh's own would stay for a minute
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("kvmfleet-")] == []


def processes_with(variable: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_a_silent_host_with_the_name_of_a_file_of_the_run_is_silent(server: Sshd, tmp_path: Path) -> None:
    hosts = f"program.py: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}, ansible_port: 1}}"
    options = AnsibleOptions(inventory=(str(write(tmp_path, server, hosts)),))
    fleet = load(options)
    (answer,) = collect(fleet.hosts, options, boot=Boot("none"), settings=fleet.settings)
    assert answer.unreachable
    assert "refused" in answer.problem


@pytest.mark.parametrize("name", ["silent", "../elsewhere"])
def test_a_host_does_not_answer_in_the_name_of_another_one(server: Sshd, tmp_path: Path, name: str) -> None:
    """What a module brings as facts counts as variables of the host unless that is switched off, also its name."""
    said = "\n".join((payload.BEGIN, msgspec.json.encode(host()).decode(), payload.END))
    facts = {"inventory_hostname": name, "kvmfleet_answers": str(tmp_path)}
    module = {"rc": 0, "stdout": said, "stderr": "", "changed": False, "ansible_facts": facts}
    evil = tmp_path / "python3"
    evil.write_text(f"#!/bin/sh\ncat > /dev/null\ncat << 'END'\n{msgspec.json.encode(module).decode()}\nEND\n")
    evil.chmod(0o755)
    hosts = f"""
evil: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}, ansible_python_interpreter: {evil}}}
silent: {{ansible_ssh_extra_args: {ONLY_ANSIBLE}, ansible_port: 1}}
"""
    options = AnsibleOptions(inventory=(str(write(tmp_path, server, hosts)),))
    fleet = load(options)
    answers = {answer.host: answer for answer in collect(fleet.hosts, options, boot=Boot("none"))}
    assert answers["silent"].evidence is None
    assert answers["silent"].unreachable
    assert answers["evil"].evidence
