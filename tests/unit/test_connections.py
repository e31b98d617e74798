"""Every row of docs/connections.md: the way that a setting takes, the fast ones to real sshd processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from loopback import SSHD, Sshd, make_key, sshd
from test_collect import LOCAL, QUESTION, pretend, wait_for

from orchestrator import ansible_cfg
from orchestrator.collect import ask_all
from orchestrator.inventory import AnsibleOptions, Host, Secrets
from orchestrator.model import Collected
from orchestrator.reach.route import AnsibleRoute, choose

pytestmark = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "connections.md"
ROOT = os.geteuid() == 0


class World(NamedTuple):
    """Where a row is tried: a server, and a place with a home of its own."""

    server: Sshd
    place: Path

    @property
    def known(self) -> str:
        return f"-o UserKnownHostsFile={self.server.known_hosts}"

    def configure(self, *lines: str) -> None:
        (self.place / "home" / ".ssh").mkdir()
        (self.place / "home" / ".ssh" / "config").write_text("\n".join(lines) + "\n")


class Case(NamedTuple):
    """A host to which the setting makes a difference, and what it would end in if it were not honoured."""

    host: Callable[[World], Host]
    secrets: Secrets = Secrets()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("server"), "127.0.0.1", "127.0.1.1", "::1", more="AllowTcpForwarding yes") as up:
        yield up


@pytest.fixture
def world(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return World(server, tmp_path)


def plain(**fields: Any) -> Case:
    return Case(lambda world: world.server.host(**fields))


def arguments(text: str) -> Case:
    return Case(lambda world: world.server.host(ssh_args=f"{world.known} {text}"))


def variables(**values: Any) -> Case:
    return plain(variables=values)


def configured(world: World, *lines: str, **more: Any) -> Host:
    """A host that only the ssh configuration knows how to reach."""
    server = world.server
    world.configure(
        "Host alias", "  HostName 127.0.0.1", f"  Port {server.port}", f"  UserKnownHostsFile {server.known_hosts}",
        *(f"  {line}" for line in lines),
    )  # fmt: skip
    return Host(name="hv1", address="alias", **more)


def strict(world: World, option: str) -> Host:
    return world.server.host(ssh_args=f"-o UserKnownHostsFile={world.place}/none {option}")


def jumping(world: World) -> Host:
    """The name of the host means something only to the jump host's side of the configuration."""
    world.configure(
        "Host jump", "  HostName 127.0.1.1", f"  Port {world.server.port}", f"  IdentityFile {world.server.key}",
        f"  UserKnownHostsFile {world.server.known_hosts}",
    )  # fmt: skip
    return world.server.host(ssh_args=f"{world.known} -J jump")


CASES: dict[str, Case] = {
    "ansible_host": plain(name="nowhere.invalid", address="127.0.1.1"),
    "IPv6 address": plain(address="::1"),
    "ansible_port": Case(lambda world: world.server.host(port=world.server.port)),
    "ansible_user": Case(lambda world: configured(world, "User nobody-special", private_key=str(world.server.key),
                                                  user=os.environ.get("USER") or ("root" if ROOT else ""))),
    "ansible_ssh_private_key_file": Case(lambda world: world.server.host(private_key=str(world.server.key))),
    "ansible_timeout": plain(connect_timeout_s=7),
    "ansible_host_key_checking": Case(
        lambda world: msgspec.structs.replace(strict(world, ""), host_key_checking=False)
    ),
    "known_hosts": Case(lambda world: world.server.host(ssh_args=world.known)),
    "StrictHostKeyChecking": Case(lambda world: strict(world, "-o StrictHostKeyChecking=no")),
    "ssh configuration": Case(lambda world: configured(world, private_key=str(world.server.key))),
    "IdentityFile": Case(
        lambda world: world.server.host(private_key="", ssh_args=f"{world.known} -i {world.server.key}")
    ),
    "IdentitiesOnly": arguments("-o IdentitiesOnly=yes"),
    "ProxyJump": Case(jumping),
    "ProxyCommand": arguments("-o ProxyCommand='nc %h %p'"),
    "ControlMaster": arguments("-o ControlMaster=auto -o ControlPath=/nonexistent/%r -o ControlPersist=60s"),
    "ServerAliveInterval": arguments("-o ServerAliveInterval=5 -C"),
    "ansible_pipelining": variables(ansible_pipelining=True, ansible_ssh_retries=3, ansible_ssh_transfer_method="scp"),
    "ansible_python_interpreter": plain(python=sys.executable),
    "ansible_become false": variables(ansible_become=False),
    "become_method sudo": plain(become_method="sudo"),
    "other become_method": plain(become_method="doas"),
    "other become_user": plain(become_user="amy"),
    "ansible_become_flags": variables(ansible_become_flags="-E"),
    "-F": arguments("-F other"),
    "other ssh options": arguments("-o Ciphers=aes128-ctr"),
    "two values for one option": arguments("-p 23"),
    "ansible_ssh_executable": variables(ansible_ssh_executable="/opt/ssh"),
    "ansible_ssh_pkcs11_provider": variables(ansible_ssh_pkcs11_provider="/lib/x.so"),
    "ansible_private_key": plain(beyond=("private_key",)),
    "templates and vault": plain(templated=("ansible_user",)),
    "other connection plugins": plain(connection="community.docker.docker"),
    "ansible_connection local": Case(lambda world: msgspec.structs.replace(LOCAL, variables={"ansible_become": ROOT})),
}  # fmt: skip
ELSEWHERE = {"agent", "ansible_password", "ansible_become_password"}  # they need more than a host; below


def rows() -> dict[str, str]:
    table = PAGE.read_text().split("## Which way")[1].split("##")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    return {setting: way for _, setting, way, *_ in cells if setting != "setting"}


def test_every_row_has_a_test_and_every_test_its_row() -> None:
    assert rows().keys() == CASES.keys() | ELSEWHERE


@pytest.mark.parametrize("row", CASES)
def test_the_way_that_a_setting_takes_is_that_of_the_table(row: str, world: World) -> None:
    host, way = CASES[row].host(world), rows()[row]
    if way == "Ansible":
        assert isinstance(choose(host, CASES[row].secrets), AnsibleRoute)
        return
    answer = ask(host, CASES[row].secrets)
    assert answer.problem == ""
    assert answer.path == ("local" if row == "ansible_connection local" else "ssh")


def test_what_ansible_cfg_and_the_environment_say_to_ansible_alone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = [{"ssh": [{"name": "ssh_executable", "value": "/opt/ssh"}, {"name": "timeout", "value": 5}]}]
    assert ansible_cfg.decode(ssh=msgspec.json.encode(dump)).beyond == ("ssh_executable",)
    monkeypatch.setenv("ANSIBLE_BECOME_PASS", "x")
    assert ansible_cfg.decode().beyond == ("ANSIBLE_BECOME_PASS",)


def ask(host: Host, secrets: Secrets = Secrets()) -> Collected:  # noqa: B008
    (answer,) = ask_all([host], QUESTION, AnsibleOptions(), secrets=secrets)
    return answer


def test_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.place / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        wait_for(path.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        subprocess.run(["ssh-add", "-q", str(world.server.key)], check=True)
        answer = ask(world.server.host(private_key=""))
        process.terminate()
    assert (answer.problem, answer.path) == ("", "ssh")


def test_a_link_local_address_keeps_its_zone(tmp_path: Path) -> None:
    told = subprocess.run(["ip", "-o", "-6", "addr", "show", "scope", "link"], capture_output=True, text=True).stdout
    words = told.split()
    if not words:
        pytest.skip("no interface has a link-local address")
    address = f"{words[3].partition('/')[0]}%{words[1]}"
    with ExitStack() as stack:
        try:
            server = stack.enter_context(sshd(tmp_path / "zone", address))
        except (AssertionError, socket.gaierror):  # of its start alone: what is asked below has to hold
            pytest.skip(f"sshd cannot listen on {address}")
        answer = ask(server.host(host_key_checking=False))
    assert (answer.problem, answer.path) == ("", "ssh")


# Like sudo -S -p: asks until the word is right, reads no further than the end of its line, and gives up at the end.
SUDO = """\
shift 2; prompt=$1; shift 2
while printf %s "$prompt" >&2; read -r word; do
  test "$word" = open-sesame && exec "$@"
  echo Sorry, try again. >&2
done
echo "sudo: 1 incorrect password attempt" >&2; exit 1
"""


@pytest.mark.parametrize(
    ("secrets", "host_variables", "problem"),
    [
        (Secrets(become="open-sesame"), {}, ""),
        (Secrets(become="typed"), {"ansible_become_password": "open-sesame"}, ""),
        (Secrets(become="wrong"), {}, "sudo refuses the password"),
    ],
)
def test_ansible_become_password(world: World, secrets: Secrets, host_variables: dict[str, str], problem: str) -> None:
    """It is in no argument and no variable of the environment of whatever runs on the host."""
    sudo = world.place / "sudo"
    sudo.write_text(f'#!/bin/sh\n{{ env; echo "$@"; }} >{world.place}/seen\n{SUDO}')
    sudo.chmod(0o755)
    with sshd(world.place / "asking", force=pretend(before=f'ln -sf {sudo} "$0.bin/sudo"')) as server:
        answer = ask(server.host(variables=host_variables), secrets)
    assert answer.problem.startswith(problem)
    assert bool(answer.problem) == bool(problem)
    seen = (world.place / "seen").read_text()
    assert "kvmfleet needs the password" in seen
    assert "open-sesame" not in seen
    assert "open-sesame" not in answer.problem


def test_sudo_that_needs_no_password_gets_none(tmp_path: Path) -> None:
    with sshd(tmp_path / "free", force=pretend(sudo='shift 4; exec \\"\\$@\\"')) as server:
        answer = ask(server.host(), Secrets(become="open-sesame"))
    assert answer.problem == ""


def test_ansible_password(world: World) -> None:
    """An sshd for whom the account of the tests has no password lets nobody in; that it was tried is said."""
    with sshd(world.place / "asks", more="PasswordAuthentication yes") as server:
        answer = ask(server.host(private_key=str(make_key(world.place / "other"))), Secrets(connection="open-sesame"))
    assert answer.path == "ssh"
    assert "a password" in answer.problem
    assert "open-sesame" not in answer.problem + answer.hint
