"""Every row of docs/connections.md: the way that a setting takes, and that it is honoured there, with real sshd's.

Each row has a host that ends otherwise without its setting, which is tried, too: a test that would pass where a setting
is ignored tests nothing.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from loopback import SSHD, Sshd, make_key, sshd
from patience import longer, until
from test_collect import has_ended, pretend

from orchestrator import ansible_cfg, inventory, payload
from orchestrator.ansible_cfg import Settings
from orchestrator.collect import ask_all
from orchestrator.inventory import AnsibleOptions, Host, Secrets
from orchestrator.model.run import Collected
from orchestrator.reach import ssh_trust
from orchestrator.reach.question import Question
from orchestrator.reach.route import AnsibleRoute, choose

pytestmark = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "connections.md"
ROOT = os.geteuid() == 0
ME = getpass.getuser()
NAME = "hv1.invalid"  # does not resolve, RFC 6761

# Evidence that says where it was asked, by which Python and as whom.
PROGRAM = f"""
import json, os, sys
where = (os.environ.get("SSH_CONNECTION") or "- - this-machine -").split()[2]
said = " ".join(["answered on", where, "with", sys.executable, "as", str(os.getuid()), os.environ.get("BY", "")])
print({payload.BEGIN!r})
print(json.dumps({{"schema": 1, "collected_at_s": 1, "duration_ms": 1, "system": {{"hostname": said}}}}))
print({payload.END!r})
""".encode()
QUESTION = Question(program=PROGRAM, decode=payload.decode, timeout_s=60.0)

# What ProxyCommand runs in the tests: copies between its own streams and the address in its arguments.
RELAY = """\
import os, socket, sys, threading
host, port = sys.argv[1:]
there = socket.create_connection((host, int(port)))
def send():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


class World(NamedTuple):
    """Servers of several kinds, and a place with a home of its own."""

    place: Path
    open: Sshd
    guarded: Sshd  # lets in only those who come from 127.0.0.1
    jump: Sshd  # has keys of its own
    silent: Sshd  # accepts connections, and says nothing
    unprivileged: Sshd  # its user is not root, and its sudo wants to run without a password
    other_key: Path  # that no server knows
    agent: Path  # the socket of an agent that has the key of `open`

    @property
    def known(self) -> str:
        return f"-o UserKnownHostsFile={self.open.known_hosts}"

    @property
    def unknown(self) -> str:
        return f"-o UserKnownHostsFile={self.place}/none"

    @property
    def relay(self) -> str:
        return f"{sys.executable} {self.place}/relay.py"


class Words(NamedTuple):
    """What is said about a host, in each of the places where it can be said. A variable that is None is not."""

    variables: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}  # of the command line
    cfg: Mapping[str, Any] = {}  # ansible.cfg, or the environment
    ssh: Mapping[str, str] = {}  # files of ~/.ssh
    agent: bool = False

    def __or__(self, more: Words) -> Words:
        return Words(
            {**self.variables, **more.variables}, {**self.options, **more.options}, {**self.cfg, **more.cfg},
            {**self.ssh, **more.ssh}, self.agent or more.agent,
        )  # fmt: skip


class Row(NamedTuple):
    """A setting in every spelling, and a host to which it makes a difference."""

    settings: tuple[Words, ...]
    host: Words = Words()  # all else that is said about it
    ends: str = "answered"  # part of how asking ends with the setting, and of no other end


def v(**variables: Any) -> Words:
    return Words(variables=variables)


def arguments(text: str) -> Words:
    """Added to the host's own, which go into another variable."""
    return v(ansible_ssh_extra_args=text)


def config(*lines: str) -> Words:
    return Words(ssh={"config": "\n".join(lines) + "\n"})


def beyond(setting: str) -> Words:
    """What ansible_cfg finds in ansible.cfg, or in the environment, and only Ansible obeys."""
    return Words(cfg={"beyond": (setting,)})


def plain(world: World) -> Words:
    """A host that answers over ssh."""
    return v(
        ansible_host="127.0.0.1", ansible_port=world.open.port, ansible_user=ME, ansible_become=ROOT,
        ansible_ssh_private_key_file=str(world.open.key), ansible_ssh_common_args=world.known,
    )  # fmt: skip


@contextmanager
def agent(path: Path, key: Path) -> Iterator[None]:
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        until(path.exists)
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=os.environ | {"SSH_AUTH_SOCK": str(path)})
        yield
        process.terminate()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("connections")
    sudo = 'test \\"\\$1\\" = -n || exit 1; shift 2; BY=sudo exec \\"\\$@\\"'
    with ExitStack() as stack:

        def server(name: str, *addresses: str, **more: str) -> Sshd:
            return stack.enter_context(sshd(place / name, *addresses, **more))

        world = World(
            place,
            open=server("open", "127.0.0.1", "127.0.1.1", "::1"),
            guarded=server("guarded", more="AllowUsers *@127.0.0.1"),
            jump=server("jump", "127.0.1.2"),
            silent=server("silent"),
            unprivileged=server("unprivileged", force=pretend(sudo=sudo)),
            other_key=make_key(place / "other"),
            agent=place / "agent",
        )
        stack.enter_context(agent(world.agent, world.open.key))
        (place / "relay.py").write_text(RELAY)
        world.silent.process.send_signal(signal.SIGSTOP)
        stack.callback(world.silent.process.send_signal, signal.SIGCONT)
        yield world


# Real ssh looks for its configuration in the home of the password database, whatever HOME says.
SSH = """\
#!/bin/sh
echo "$*" >> "$HOME/ssh.log"
test -e "$HOME/.ssh/config" && set -- -F "$HOME/.ssh/config" "$@"
exec {ssh} "$@"
"""


def at_home(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Neither the keys, the agent nor the configuration of whoever runs the tests."""
    (place / "home" / ".ssh").mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin" / "ssh").write_text(SSH.format(ssh=shutil.which("ssh")))
    (place / "bin" / "ssh").chmod(0o755)
    patch.setenv("HOME", str(place / "home"))
    patch.setenv("PATH", f"{place}/bin:{os.environ['PATH']}")
    patch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def world(servers: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    at_home(tmp_path, monkeypatch)
    return servers


def fast(w: World) -> dict[str, Row]:
    """Of the rows that are honoured in our own session."""
    jump = (
        "Host jump", "  HostName 127.0.1.2", f"  Port {w.jump.port}", "Match host 127.0.1.2",
        f"  IdentityFile {w.jump.key}", f"  UserKnownHostsFile {w.jump.known_hosts}",
    )  # fmt: skip
    address = f"HostName 127.0.1.1\n  User {ME}"
    (w.place / "included").write_text(f"Host {NAME}\n  {address}\n  Port {w.open.port}\n")
    return {
        "ansible_host": Row((v(ansible_host="127.0.1.1"), v(ansible_ssh_host="127.0.1.1")), v(ansible_host=None)),
        "IPv6 address": Row((v(ansible_host="::1"),), v(ansible_host=None), "answered on ::1"),
        "ansible_port": Row(
            (
                v(ansible_port=w.open.port), v(ansible_ssh_port=w.open.port), Words(cfg={"port": w.open.port}),
                arguments(f"-p {w.open.port}"), arguments(f"-o Port={w.open.port}"),
            ),
            v(ansible_port=None) | config("Port 1"),
        ),
        "ansible_user": Row(
            (
                v(ansible_user=ME), v(ansible_ssh_user=ME), Words(options={"user": ME}), Words(cfg={"user": ME}),
                arguments(f"-l {ME}"), arguments(f"-o User={ME}"),
            ),
            v(ansible_user=None) | config("User nobody-special"),
        ),
        "ansible_ssh_private_key_file": Row(
            (
                v(ansible_ssh_private_key_file=str(w.open.key)), v(ansible_private_key_file=str(w.open.key)),
                Words(options={"private_key": str(w.open.key)}), Words(cfg={"private_key": str(w.open.key)}),
            ),
            v(ansible_ssh_private_key_file=None),
        ),
        "agent": Row((Words(agent=True),), v(ansible_ssh_private_key_file=None)),
        "ansible_timeout": Row(
            (
                v(ansible_timeout=1), v(ansible_ssh_timeout=1),
                Words(options={"timeout_s": 1}), Words(cfg={"timeout_s": 1}),
            ),
            v(ansible_port=w.silent.port),
            "did not answer within 1 s",
        ),
        "ansible_host_key_checking": Row(
            (
                v(ansible_host_key_checking=False), v(ansible_ssh_host_key_checking=False),
                Words(cfg={"host_key_checking": False}),
            ),
            v(ansible_ssh_common_args=w.unknown),
        ),
        "known_hosts": Row(
            (
                Words(ssh={"known_hosts": w.open.known_hosts.read_text()}), arguments(w.known),
                arguments(f"-o GlobalKnownHostsFile={w.open.known_hosts}"),
                config(f"UserKnownHostsFile {w.open.known_hosts}"),
                config(f"GlobalKnownHostsFile {w.open.known_hosts}"),
            ),
            v(ansible_ssh_common_args=None),
        ),
        "StrictHostKeyChecking": Row(
            (
                arguments("-o StrictHostKeyChecking=no"), arguments("-o StrictHostKeyChecking=accept-new"),
                config("StrictHostKeyChecking no"), config("StrictHostKeyChecking accept-new"),
            ),
            v(ansible_ssh_common_args=w.unknown),
        ),
        "ssh configuration": Row(
            (
                config(f"Host {NAME}", f"  {address}", f"  Port {w.open.port}"),
                config(f"Match originalhost {NAME}", f"  {address}", f"  Port {w.open.port}"),
                config(f"Include {w.place}/included"),
            ),
            v(ansible_host=None, ansible_port=None, ansible_user=None,
              ansible_ssh_common_args=f"-o UserKnownHostsFile={w.open.known_hosts}"),
        ),
        "IdentityFile": Row(
            (
                arguments(f"-i {w.open.key}"), arguments(f"-o IdentityFile={w.open.key}"),
                config(f"IdentityFile {w.open.key}"),
            ),
            v(ansible_ssh_private_key_file=None),
        ),
        "IdentitiesOnly": Row(
            (arguments("-o IdentitiesOnly=yes"), config("IdentitiesOnly yes")),
            v(ansible_ssh_private_key_file=str(w.other_key)) | Words(agent=True),
            "does not let",
        ),
        "ProxyJump": Row(
            (
                arguments("-J jump"), arguments("-o ProxyJump=jump"), arguments(f"-J {ME}@127.0.1.2:{w.jump.port}"),
                config(*jump, "Host 127.0.0.1", "  BindAddress 127.0.0.9", "  ProxyJump jump"),
            ),
            v(ansible_port=w.guarded.port, ansible_ssh_private_key_file=str(w.guarded.key),
              ansible_ssh_common_args=f"-o UserKnownHostsFile={w.guarded.known_hosts}")
            | config(*jump, "Host 127.0.0.1", "  BindAddress 127.0.0.9"),
        ),
        "ProxyCommand": Row(
            (
                config(f"ProxyCommand {w.relay} 127.0.1.1 %p"),
                config(f"ProxyCommand {w.relay} 127.0.1.1 %p 2>/dev/null"),  # needs a shell
            ),
            v(ansible_host=None, ansible_ssh_common_args=w.unknown, ansible_host_key_checking=False),
            "answered on 127.0.1.1",
        ),
        "ansible_python_interpreter": Row(
            (v(ansible_python_interpreter=sys.executable), Words(cfg={"interpreter": sys.executable})),
            ends=f"with {sys.executable} ",
        ),
        "ansible_become false": Row(
            (v(ansible_become=False), v(ansible_become="no")), beyond_root(w), f"as {os.geteuid()} \n",
        ),
        "become_method sudo": Row(
            (v(ansible_become_method="sudo"), v(ansible_become_method="ansible.builtin.sudo")),
            beyond_root(w) | Words(cfg={"become_method": "su"}),
            f"as {os.geteuid()} sudo\n",
        ),
        "ansible_connection local": Row(
            (v(ansible_connection="local"), Words(cfg={"connection": "local"})), v(ansible_port=1), "on this-machine",
        ),
    }  # fmt: skip


def beyond_root(w: World) -> Words:
    """A host on which our user would have to become root."""
    return v(
        ansible_port=w.unprivileged.port, ansible_ssh_private_key_file=str(w.unprivileged.key), ansible_become=None,
        ansible_ssh_common_args=f"-o UserKnownHostsFile={w.unprivileged.known_hosts}",
    )  # fmt: skip


NOTHING = {
    "ControlMaster": (
        arguments("-o ControlMaster=auto -o ControlPath=/nonexistent/%r -o ControlPersist=60s"),
        v(ansible_control_path="/nonexistent/%r", ansible_control_path_dir="/nonexistent"),
    ),
    "ServerAliveInterval": (
        arguments("-o ServerAliveInterval=5 -o ServerAliveCountMax=9 -o TCPKeepAlive=no -o ConnectTimeout=9"),
        arguments("-C -o Compression=yes -o ConnectionAttempts=2 -o BatchMode=yes -o NumberOfPasswordPrompts=1"),
        arguments("-q -v -o LogLevel=QUIET -o VisualHostKey=no -o HashKnownHosts=yes -o UpdateHostKeys=no"),
        arguments("-T -n -x -a -k -o ForwardAgent=no -o ForwardX11=no -o ClearAllForwardings=yes"),
        arguments("-o AddKeysToAgent=no -o CheckHostIP=no"),
    ),
    "ansible_pipelining": (
        v(ansible_pipelining=True), v(ansible_ssh_pipelining=True), v(ansible_ssh_retries=3),
        v(ansible_ssh_transfer_method="scp"), v(ansible_ssh_use_tty=False), v(ansible_scp_extra_args="-O"),
        v(ansible_sftp_extra_args="-C"), v(ansible_sftp_batch_mode=False),
    ),
}  # fmt: skip
"""Settings that make no difference."""

PASSWORDS = {"ansible_password", "ansible_become_password"}  # below, and in tests/hosts/test_passwords.py


def through(w: World) -> dict[str, Row]:
    """Of the rows that go through Ansible."""
    wrapper = w.place / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nexec ssh -p {w.open.port} "$@"\n')
    wrapper.chmod(0o755)
    (w.place / "other_config").write_text(f"Host {NAME}\n  HostName 127.0.1.1\n")
    (w.place / "alias").write_text(f"hv-alias {(w.open.folder / 'host_key.pub').read_text()}")
    secret = VaultLib([("default", VaultSecret(VAULT.encode()))]).encrypt(str(w.open.key)).decode()
    anybody = f"{w.unknown} -o StrictHostKeyChecking=no"
    return {
        "ProxyCommand in ssh arguments": Row(
            (arguments(f"-o ProxyCommand='{w.relay} 127.0.1.1 %p 2>/dev/null'"),),
            v(ansible_host=NAME, ansible_ssh_common_args=anybody),
            "answered on 127.0.1.1",
        ),
        "other become_method": Row(
            (
                v(ansible_become_method="su", ansible_become_user="nobody", ansible_become_flags="-s /bin/sh"),
                v(ansible_become_method="doas"), Words(cfg={"become_method": "su"}),
            ),
            v(ansible_become=True),
            ends=f"as {pwd.getpwnam('nobody').pw_uid} ",
        ),
        "other become_user": Row(
            (v(ansible_become_user="amy"), Words(cfg={"become_user": "amy"})), v(ansible_become=True)
        ),
        "ansible_become_flags": Row(
            (
                v(ansible_become_flags="-H -S"), v(ansible_become_exe="/opt/sudo"), v(ansible_sudo_pass="x"),
                beyond("ANSIBLE_BECOME_PASS"),
            ),
            v(ansible_become=True),
        ),
        "-F": Row(
            (arguments(f"-F {w.place}/other_config"),),
            v(ansible_host=NAME, ansible_ssh_common_args=anybody),
            "answered on 127.0.1.1",
        ),
        "other ssh options": Row(
            (arguments("-o HostKeyAlias=hv-alias"),),
            v(ansible_ssh_common_args=f"-o UserKnownHostsFile={w.place}/alias"),
        ),
        "RevokedHostKeys": Row(
            (
                config("RevokedHostKeys /nonexistent"), config("Host other", "  KnownHostsCommand=/bin/true"),
                config("verifyhostkeydns yes"), config("PKCS11Provider none"), config("SecurityKeyProvider none"),
                config("BindInterface lo"), config("ProxyUseFdpass no"),
                Words(ssh={"config": 'Include "on? two.conf" # ours\n', "one two.conf": "\tRevokedHostKeys = none\n"}),
            ),
            config("# RevokedHostKeys none"),
        ),
        "two values for one option": Row(
            (v(ansible_ssh_args=f"-l {ME}"),), v(ansible_user="nobody-special", ansible_become=False)
        ),
        "ansible_ssh_executable": Row(
            (v(ansible_ssh_executable=str(wrapper)), beyond("ssh_executable")), v(ansible_port=None)
        ),
        "ansible_ssh_pkcs11_provider": Row(
            (v(ansible_ssh_pkcs11_provider=TOKEN), beyond("pkcs11_provider")), v(ansible_password="1234")
        ),
        "ansible_private_key": Row(
            (v(ansible_private_key=w.open.key.read_text()), beyond("private_key"), beyond("private_key_passphrase")),
            v(ansible_ssh_private_key_file=None),
        ),
        "templates and vault": Row(
            (v(ansible_user=f"{{{{ '{ME}' | trim }}}}", ansible_ssh_private_key_file={"__ansible_vault": secret}),),
            v(ansible_user=None, ansible_ssh_private_key_file=None),
        ),
        "other connection plugins": Row(
            (v(ansible_connection="community.general.chroot", ansible_host="/"),),
            v(ansible_port=1),
            "on this-machine",
        ),
    }  # fmt: skip


VAULT, TOKEN = "open-sesame", "/nonexistent/token.so"
PYTHON = {"ansible_python_interpreter": "/usr/bin/python3"}  # that of the tests may be in a folder of root's
SUDO = {"other become_user", "ansible_become_flags"}
"""Whole in tests/hosts/test_passwords.py, as they need users and the real sudo."""
OF_ALL = {"RevokedHostKeys"}
"""Alone, as it is for all hosts of a run."""
AS_ROOT = {"other become_method", "other connection plugins"}


def rows() -> dict[str, str]:
    table = PAGE.read_text().split("## Which way")[1].split("##")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    return {setting: way for _, setting, way, *_ in cells if setting != "setting"}


WAYS = {way: [setting for setting, its in rows().items() if its == way] for way in ("fast", "nothing", "Ansible")}


def test_every_row_has_a_test_and_every_test_its_row(world: World) -> None:
    assert set(WAYS["fast"]) == fast(world).keys() | PASSWORDS
    assert set(WAYS["nothing"]) == NOTHING.keys()
    assert set(WAYS["Ansible"]) == through(world).keys()
    assert len(rows()) == sum(map(len, WAYS.values()))


def said(words: Words) -> dict[str, Any]:
    return {name: value for name, value in words.variables.items() if value is not None}


def described(world: World, words: Words, name: str = NAME) -> Host:
    """The host as the inventory would give it."""
    words = plain(world) | words
    listing = {"kvm_hosts": {"hosts": [name]}, "_meta": {"hostvars": {name: said(words)}}}
    options, settings = AnsibleOptions(**words.options), Settings(**words.cfg)
    (host,) = inventory.decode(json.dumps(listing).encode(), options, settings).hosts
    return host


def ends(world: World, words: Words) -> str:
    """How asking the host ends: in its own words, in a problem, or with the way through Ansible, which is not taken."""
    home = Path.home() / ".ssh"
    for file in home.iterdir():
        file.unlink()
    for file_name, text in (plain(world) | words).ssh.items():
        (home / file_name).write_text(text)
    (world.place / "none").unlink(missing_ok=True)
    ssh_trust.ask_ssh.cache_clear()
    host = described(world, words)
    if isinstance(way := choose(host, Secrets()), AnsibleRoute):
        return f"through Ansible: {way.reason}"
    with pytest.MonkeyPatch.context() as patch:
        if words.agent:
            patch.setenv("SSH_AUTH_SOCK", str(world.agent))
        return end(ask(host))


def end(answer: Collected) -> str:
    return f"{answer.evidence.system.hostname}\n" if answer.evidence else answer.problem


def ask(host: Host, secrets: Secrets = Secrets()) -> Collected:
    (answer,) = ask_all([host], QUESTION, AnsibleOptions(), secrets=secrets)
    return answer


@pytest.mark.parametrize("name", [name for name in WAYS["fast"] if name not in PASSWORDS])
def test_a_setting_is_honoured_in_our_own_session_and_makes_the_difference(name: str, world: World) -> None:
    row = fast(world)[name]
    assert row.ends not in ends(world, row.host)
    for setting in row.settings:
        assert row.ends in ends(world, row.host | setting), setting


@pytest.mark.parametrize("name", WAYS["nothing"])
def test_a_setting_that_makes_no_difference_leaves_the_host_in_our_own_session(name: str, world: World) -> None:
    for setting in NOTHING[name]:
        assert not isinstance(choose(described(world, setting), Secrets()), AnsibleRoute), setting
    everything = Words()
    for setting in NOTHING[name]:
        everything |= setting
    assert "answered" in ends(world, everything)


@pytest.mark.parametrize("name", WAYS["Ansible"])
def test_a_setting_that_only_ansible_knows_leads_through_ansible_and_nothing_else_does(name: str, world: World) -> None:
    row = through(world)[name]
    assert "through Ansible" not in ends(world, row.host)
    for setting in row.settings:
        assert "through Ansible" in ends(world, row.host | setting), setting


@pytest.fixture(scope="module")
def brought(servers: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Collected]]:
    """Row -> what Ansible brought from its host; all of them in one run, as Ansible takes seconds to start."""
    place = tmp_path_factory.mktemp("ansible")
    with pytest.MonkeyPatch.context() as patch:
        at_home(place, patch)
        patch.setenv("ANSIBLE_SSH_AGENT", "auto")  # for a key in a variable, Ansible wants an agent of its own
        (place / "vault").write_text(VAULT)
        left_out = SUDO | OF_ALL if ROOT else SUDO | OF_ALL | AS_ROOT
        hosts = {name: plain(servers) | row.host | row.settings[0] for name, row in through(servers).items()}
        listed = {name: said(words) | PYTHON for name, words in hosts.items() if name not in left_out}
        names = {name: f"hv{number}" for number, name in enumerate(listed)}
        (place / "hosts.json").write_text(json.dumps(
            {"kvm_hosts": {"hosts": {names[name]: variables for name, variables in listed.items()}}}
        ))  # fmt: skip
        options = AnsibleOptions(inventory=(f"{place}/hosts.json",), vault_password_files=(f"{place}/vault",))
        fleet = inventory.load(options)
        answers = {answer.host: answer for answer in ask_all(fleet.hosts, QUESTION, options, settings=fleet.settings)}
        yield {name: answers[host] for name, host in names.items()}
        assert f"PKCS11Provider={TOKEN}" in (place / "home" / "ssh.log").read_text()  # without its token ssh goes on


@pytest.mark.ansible
@pytest.mark.parametrize("name", [name for name in WAYS["Ansible"] if name not in SUDO | OF_ALL])
def test_ansible_brings_evidence_from_where_the_setting_leads(
    name: str, servers: World, brought: dict[str, Collected]
) -> None:
    if name not in brought:
        pytest.skip("needs root")
    answer = brought[name]
    assert (answer.path, answer.problem) == ("ansible", "")
    assert through(servers)[name].ends in end(answer)


def test_ssh_arguments_may_be_stricter_about_host_keys_than_the_ssh_configuration(world: World) -> None:
    lax = v(ansible_ssh_common_args=world.unknown) | config("StrictHostKeyChecking no")
    assert "answered" in ends(world, lax)
    assert "is not known" in ends(world, lax | arguments("-o StrictHostKeyChecking=yes"))


def test_a_proxycommand_that_leads_nowhere_is_named_and_ends_with_its_host(world: World, tmp_path: Path) -> None:
    began = tmp_path / "began"
    hangs = config(f"ProxyCommand sh -c 'ln -s $$ {began}; sleep 90'")
    for timeout_s in longer(1, began.is_symlink):
        late = f"(through its ProxyCommand) did not answer within {timeout_s} s"
        assert late in ends(world, v(ansible_timeout=timeout_s) | hangs)
    until(lambda: has_ended(int(os.readlink(began))))
    assert "(through its ProxyCommand) closed the connection" in ends(world, config("ProxyCommand /nonexistent"))


def test_proxyjump_none_in_ssh_arguments_is_left_to_ansible(world: World) -> None:
    assert "proxyjump" in ends(world, arguments("-J none") | config("ProxyJump nowhere.invalid"))


@pytest.mark.ansible
def test_a_revoked_host_key_is_not_believed(world: World, tmp_path: Path) -> None:
    (tmp_path / "revoked").write_text((world.open.folder / "host_key.pub").read_text())
    (tmp_path / "home" / ".ssh" / "config").write_text(f"RevokedHostKeys {tmp_path}/revoked\n")
    (tmp_path / "hosts.json").write_text(json.dumps({"kvm_hosts": {"hosts": {"hv1": said(plain(world)) | PYTHON}}}))
    options = AnsibleOptions(inventory=(f"{tmp_path}/hosts.json",))
    fleet = inventory.load(options)
    (answer,) = ask_all(fleet.hosts, QUESTION, options, settings=fleet.settings)
    assert (answer.path, answer.unreachable, answer.evidence) == ("ansible", True, None)
    assert "revoked" in answer.problem


def test_what_ansible_cfg_and_the_environment_say_to_ansible_alone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = [{"ssh": [{"name": "ssh_executable", "value": "/opt/ssh"}, {"name": "timeout", "value": 5}]}]
    assert ansible_cfg.decode(ssh=msgspec.json.encode(dump)).beyond == ("ssh_executable",)
    monkeypatch.setenv("ANSIBLE_BECOME_PASS", "x")
    assert ansible_cfg.decode().beyond == ("ANSIBLE_BECOME_PASS",)


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
SUDO_WITH_PASSWORD = """\
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
def test_ansible_become_password(
    world: World, tmp_path: Path, secrets: Secrets, host_variables: dict[str, str], problem: str
) -> None:
    """It is in no argument and no variable of the environment of whatever runs on the host."""
    sudo = tmp_path / "sudo"
    sudo.write_text(f'#!/bin/sh\n{{ env; echo "$@"; }} >{tmp_path}/seen\n{SUDO_WITH_PASSWORD}')
    sudo.chmod(0o755)
    with sshd(tmp_path / "asking", force=pretend(before=f'ln -sf {sudo} "$0.bin/sudo"')) as server:
        answer = ask(server.host(variables=host_variables), secrets)
    assert answer.problem.startswith(problem)
    assert bool(answer.problem) == bool(problem)
    seen = (tmp_path / "seen").read_text()
    assert "kvmfleet needs the password" in seen
    assert "open-sesame" not in seen
    assert "open-sesame" not in answer.problem


def test_sudo_that_needs_no_password_gets_none(tmp_path: Path) -> None:
    with sshd(tmp_path / "free", force=pretend(sudo='shift 4; exec \\"\\$@\\"')) as server:
        answer = ask(server.host(), Secrets(become="open-sesame"))
    assert answer.problem == ""


def test_ansible_password(world: World, tmp_path: Path) -> None:
    """An sshd for whom the account of the tests has no password lets nobody in; that it was tried is said."""
    with sshd(tmp_path / "asks", more="PasswordAuthentication yes") as server:
        answer = ask(server.host(private_key=str(world.other_key)), Secrets(connection="open-sesame"))
    assert answer.path == "ssh"
    assert "a password" in answer.problem
    assert "open-sesame" not in answer.problem + answer.hint
