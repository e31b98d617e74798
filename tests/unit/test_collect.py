"""Collecting from real sshd processes on loopback, honest and hostile."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from evidence import lasting
from loopback import SSHD, Sshd, make_key, sshd
from patience import longer, until

from orchestrator import payload
from orchestrator.collect import ask_all, ask_each, collect
from orchestrator.collector.marks import STEP
from orchestrator.errors import StoreError
from orchestrator.inventory import AnsibleOptions, Host
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Boot, Collected, Step
from orchestrator.payload import MAX_BYTES
from orchestrator.reach import turns
from orchestrator.reach.question import Question

pytestmark = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed")

EVIDENCE = Evidence(schema=1, collected_at_s=1.0, duration_ms=2.0)
DOCUMENT = msgspec.json.encode(EVIDENCE).decode()
PROGRAM = f"print({payload.BEGIN!r}); print({DOCUMENT!r}); print({payload.END!r})".encode()
QUESTION = Question(program=PROGRAM, decode=payload.decode, timeout_s=20.0)
LONG_S = 60  # nothing that is well takes so long
LOCAL = Host(name="here", address="localhost", connection="local")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("honest"), "127.0.0.1", "127.0.1.1", "127.0.1.2") as server:
        yield server


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the keys, the agent nor the configuration of whoever runs the tests."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def ask(*hosts: Host, question: Question = QUESTION, options: AnsibleOptions = AnsibleOptions()) -> list[Collected]:
    return list(ask_all(hosts, question, options))


def ask_hostile(folder: Path, force: str, *, timeout_s: float = 20.0) -> Collected:
    with sshd(folder / "hostile", force=force) as server:
        (answer,) = ask(server.host(), question=msgspec.structs.replace(QUESTION, timeout_s=timeout_s))
        return answer


def said(answer: Collected) -> Evidence:
    """What the host itself said, without what the controller noted beside it."""
    assert answer.evidence
    return msgspec.structs.replace(answer.evidence, asked_at_s=0.0, heard_at_s=0.0)


# --- hosts that answer


def test_a_host_answers_over_ssh_with_evidence_and_the_bytes_are_counted(honest: Sshd) -> None:
    (answer,) = ask(honest.host())
    assert answer.problem == ""
    assert (answer.path, said(answer)) == ("ssh", EVIDENCE)
    assert answer.bytes_sent == len(f"{len(PROGRAM)}\n") + len(PROGRAM)
    assert len(DOCUMENT) < answer.bytes_received < len(DOCUMENT) + 200
    assert answer.took_s


def test_this_machine_answers_without_ssh(honest: Sshd) -> None:
    (answer,) = ask(msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0}))
    assert (answer.problem, answer.path, said(answer)) == ("", "local", EVIDENCE)


# Reads what follows it, tells how far it is, and answers with the digest.
TRAVELLER = f"""
import hashlib, sys
print({STEP!r} + "\\x1b[31mhalf way", flush=True)
digest = hashlib.sha256(sys.stdin.buffer.read()).hexdigest()
said = {DOCUMENT!r}.replace('"hostname":""', '"hostname":"%s"' % digest)
print({payload.BEGIN!r}); print(said); print({payload.END!r})
""".encode()


@pytest.fixture
def luggage(tmp_path: Path) -> Path:
    file = tmp_path / "luggage"
    file.write_bytes(os.urandom(3 << 20) + b"\0\r\n\x1a")
    return file


def test_luggage_follows_the_program_unchanged_and_steps_are_told_on_the_way(honest: Sshd, luggage: Path) -> None:
    question = msgspec.structs.replace(QUESTION, program=TRAVELLER, luggage=luggage)
    local = msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0})
    told: list[Step] = []
    answers = ask_all([honest.host(), local], question, AnsibleOptions(), on_step=told.append)
    digest = hashlib.sha256(luggage.read_bytes()).hexdigest()
    assert [(a.problem, a.evidence and a.evidence.system.hostname) for a in answers] == [("", digest)] * 2
    assert {a.bytes_sent for a in answers} == {question.size}
    assert question.size > 3 << 20
    assert sorted(told, key=lambda step: step.host) == [
        Step("here", "\\x1b[31mhalf way"), Step(honest.host().name, "\\x1b[31mhalf way")
    ]  # fmt: skip


def test_a_host_need_not_take_the_luggage(honest: Sshd, luggage: Path) -> None:
    local = msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0})
    answers = ask(honest.host(), local, question=msgspec.structs.replace(QUESTION, luggage=luggage))
    assert [answer.problem for answer in answers] == ["", ""]


def test_answers_come_in_the_order_of_the_hosts_and_are_told_one_by_one(honest: Sshd) -> None:
    hosts = [honest.host(f"hv{i}", address=honest.addresses[i % 3]) for i in range(9)]
    told: list[str] = []
    answers = ask_all(hosts, QUESTION, AnsibleOptions(forks=2), on_answer=lambda answer: told.append(answer.host))
    assert [answer.host for answer in answers] == [host.name for host in hosts]
    assert sorted(told) == sorted(host.name for host in hosts)


def test_noise_of_a_login_shell_does_not_hide_the_evidence(tmp_path: Path) -> None:
    answer = ask_hostile(
        tmp_path, 'printf "Welcome\\n\\033[31mto hv1\\377\\n"; sh -c "$SSH_ORIGINAL_COMMAND"; echo bye'
    )
    assert said(answer) == EVIDENCE


def test_the_collector_says_the_same_over_ssh_and_locally(honest: Sshd) -> None:
    here = msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0})
    over_ssh, locally = collect([honest.host(), here], AnsibleOptions(), boot=Boot("none"))
    assert over_ssh.problem == locally.problem == ""
    assert lasting(over_ssh.evidence) == lasting(locally.evidence)


def test_a_user_without_rights_is_reported_as_such_by_the_collector(honest: Sshd) -> None:
    (answer,) = collect([honest.host(variables={"ansible_become": False})], AnsibleOptions(), boot=Boot("none"))
    assert answer.evidence
    assert answer.evidence.system.uid == os.geteuid()


# --- hosts that cannot be reached


def test_a_closed_port_is_told_from_a_host_that_is_off(honest: Sshd) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        (answer,) = ask(honest.host(port=port))
    assert answer.unreachable
    assert f"127.0.0.1 port {port} refused the connection" in answer.problem
    assert "sshd" in answer.hint


def test_a_host_that_accepts_and_says_nothing_is_given_up_after_the_connect_timeout(honest: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (answer,) = ask(honest.host(port=silent.getsockname()[1], connect_timeout_s=1))
    assert answer.unreachable
    assert "did not answer within 1 s" in answer.problem


def test_a_name_that_does_not_resolve_is_named(honest: Sshd) -> None:
    (answer,) = ask(honest.host(address="nowhere.invalid"))
    assert answer.unreachable
    assert "nowhere.invalid does not resolve" in answer.problem


def test_a_port_that_speaks_something_else_is_said_to(honest: Sshd, tmp_path: Path) -> None:
    talk = "import socket\ns = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
    talk += "while True:\n c, _ = s.accept(); c.sendall(b'\\x1b[31mBad\\r\\n' * 9999); c.recv(9)\n"
    with subprocess.Popen([sys.executable, "-c", talk], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        (answer,) = ask(honest.host(port=int(child.stdout.readline())))
        child.kill()
    assert answer.unreachable
    assert "ssh to 127.0.0.1" in answer.problem
    assert "\x1b" not in answer.problem


def test_a_wrong_key_names_the_user_and_what_was_tried(honest: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    locked = make_key(tmp_path / "locked", "secret")
    (answer,) = ask(
        honest.host(
            user="nobody-special",
            private_key=str(other),
            ssh_args=f"-o UserKnownHostsFile={honest.known_hosts} -i {locked} -i {tmp_path}/absent",
        )
    )
    assert answer.unreachable
    assert "does not let nobody-special in" in answer.problem
    assert str(other) in answer.problem
    assert f"{locked} (has a passphrase and is not in the agent)" in answer.problem
    assert f"{tmp_path}/absent (no such file or directory)" in answer.problem
    assert "ssh -p" in answer.hint


# --- host keys


def test_an_unknown_host_key_is_not_accepted_and_the_hint_accepts_it(honest: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    host = honest.host(ssh_args=f"-o UserKnownHostsFile={known}")
    (refused,) = ask(host)
    assert refused.unreachable
    assert "host key of [127.0.0.1]" in refused.problem
    assert fingerprint(honest.folder / "host_key") in refused.problem
    command = refused.hint.rpartition("accept it: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    (accepted,) = ask(host)
    assert accepted.problem == ""


def test_a_changed_host_key_is_told_from_an_unknown_one_and_the_hint_forgets_it(honest: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    wrong = make_key(tmp_path / "wrong").with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{honest.port} {wrong}")
    (answer,) = ask(honest.host(ssh_args=f"-o UserKnownHostsFile={known}"))
    assert answer.unreachable
    assert "has changed" in answer.problem
    assert fingerprint(honest.folder / "host_key") in answer.problem
    command = answer.hint.rpartition("accept the new one: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert known.read_text() == ""


@pytest.mark.parametrize("off", [{"host_key_checking": False}, {"more": "-o StrictHostKeyChecking=no"}])
def test_checking_of_host_keys_can_be_switched_off_as_ansible_does(
    honest: Sshd, tmp_path: Path, off: dict[str, object]
) -> None:
    arguments = f"-o UserKnownHostsFile={tmp_path}/none {off.pop('more', '')}"
    (answer,) = ask(honest.host(ssh_args=arguments, **off))
    assert answer.problem == ""


def test_accept_new_remembers_a_new_key_and_refuses_a_changed_one(honest: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "deep" / "known_hosts"
    host = honest.host(ssh_args=f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=accept-new")
    before = os.umask(0)
    try:
        assert ask(host)[0].problem == ""
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (known.parent, known)] == [0o700, 0o600]  # as ssh makes them
    assert known.read_text().startswith(f"[127.0.0.1]:{honest.port} ssh-ed25519 ")
    known.write_text(f"[127.0.0.1]:{honest.port} {make_key(tmp_path / 'wrong').with_suffix('.pub').read_text()}")
    assert "has changed" in ask(host)[0].problem


def test_known_hosts_none_in_the_configuration_trusts_nobody(honest: Sshd, tmp_path: Path) -> None:
    write_config(tmp_path, "UserKnownHostsFile none")
    (tmp_path / "home" / ".ssh" / "known_hosts").write_text(honest.known_hosts.read_text())
    (answer,) = ask(honest.host(ssh_args=""))
    assert "is not known" in answer.problem


def test_ssh_s_own_known_hosts_is_read(honest: Sshd, tmp_path: Path) -> None:
    write_config(tmp_path, "# nothing")
    (tmp_path / "home" / ".ssh" / "known_hosts").write_text(honest.known_hosts.read_text())
    (answer,) = ask(honest.host(ssh_args=""))
    assert answer.problem == ""


def test_a_stale_agent_does_not_stand_in_the_way(honest: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nonexistent/agent")
    (answer,) = ask(honest.host())
    assert answer.problem == ""


def fingerprint(key: Path) -> str:
    done = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


# --- the user's ssh configuration


def write_config(tmp_path: Path, *lines: str) -> None:
    folder = tmp_path / "home" / ".ssh"
    folder.mkdir()
    (folder / "config").write_text("\n".join(lines) + "\n")


def test_the_ssh_configuration_is_honoured(honest: Sshd, tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "Host alias",
        "  HostName 127.0.0.1",
        f"  Port {honest.port}",
        f"  IdentityFile {honest.key}",
        f"  UserKnownHostsFile {honest.known_hosts}",
    )
    (answer,) = ask(Host(name="alias", address="alias"))
    assert answer.problem == ""


def test_the_configuration_of_ssh_may_say_how_strict_to_be(honest: Sshd, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        f"Host 127.0.0.1\n  StrictHostKeyChecking no\n  UserKnownHostsFile {tmp_path}/no\n"
    )
    # ssh itself reads the home of the password database, so the file has to be named to both
    write_config(tmp_path, f"Include {tmp_path}/config")
    from orchestrator.reach import ssh_trust

    assert ssh_trust.ask_ssh("127.0.0.1", 0, "", config=str(tmp_path / "config")) == "off"
    assert ssh_trust.ask_ssh("127.0.0.2", 0, "", config=str(tmp_path / "config")) == "strict"


def test_a_broken_ssh_configuration_is_named(honest: Sshd, tmp_path: Path) -> None:
    write_config(tmp_path, "Port twenty-two")
    (answer,) = ask(honest.host())
    assert "ssh configuration" in answer.problem
    assert "line 1" in answer.problem


def test_a_host_behind_a_jump_host_is_reached_through_it_alone(honest: Sshd, tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "Host jump dead",
        "  HostName 127.0.1.1",
        f"  IdentityFile {honest.key}",
        f"  UserKnownHostsFile {honest.known_hosts}",
        "Host jump",
        f"  Port {honest.port}",
        "Host dead",
        "  Port 1",
    )
    known = f"-o UserKnownHostsFile={honest.known_hosts}"
    alive, dead = ask(
        *(honest.host(jump, address="127.0.1.2", ssh_args=f"-J {jump} {known}") for jump in ("jump", "dead"))
    )
    assert alive.problem == ""
    assert "(through dead) refused the connection" in dead.problem


# --- hosts that answer with anything but evidence

PRETEND = """\
mkdir -p "$0.bin"; cd "$0.bin"
printf '#!/bin/sh\\necho 1000\\n' > id; printf '#!/bin/sh\\n%s\\n' "{sudo}" > sudo; chmod +x id sudo
PATH="$0.bin:/usr/bin:/bin"; export PATH
{before}
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


def pretend(sudo: str = "", before: str = "") -> str:
    """A host whose user is not root and whose sudo does this."""
    return PRETEND.format(sudo=sudo, before=before)


@pytest.mark.parametrize(
    ("complaint", "problem", "hint"),
    [
        ("sudo: a password is required", "sudo asks for a password", "-K"),
        ("Sorry, user amy may not run sudo on hv1.", "sudo does not know this user", "NOPASSWD"),
        ("amy is not in the sudoers file.", "sudo does not know this user", "NOPASSWD"),
        ("Sorry, user amy is not allowed to execute this.", "sudo does not allow this user to run Python", "NOPASSWD"),
        ("sudo: no password was given\nsudo: 1 incorrect password attempt", "sudo refuses the password: sudo: 1", "-K"),
        ("sudo: sorry, you must have a tty to run sudo", "sudo demands a terminal", "requiretty"),
    ],
)
def test_each_refusal_of_sudo_has_its_own_sentence(tmp_path: Path, complaint: str, problem: str, hint: str) -> None:
    answer = ask_hostile(tmp_path, pretend(sudo=f"echo '{complaint}' >&2; exit 1"))
    assert not answer.unreachable
    assert answer.problem.startswith(problem)
    assert hint in answer.hint


def test_sudo_runs_the_collector_where_the_user_is_not_root(tmp_path: Path) -> None:
    answer = ask_hostile(tmp_path, pretend(sudo='shift 2; exec \\"\\$@\\"'))
    assert answer.problem == ""


def test_a_host_without_sudo_is_told_so(tmp_path: Path) -> None:
    tools = 'mkdir -p t; for t in sh python3; do ln -sf "$(command -v $t)" t/$t; done; ln -sf ../id t/id; PATH=$PWD/t'
    answer = ask_hostile(tmp_path, pretend(before=tools))
    assert answer.problem == "sudo is not installed"
    assert "-u root" in answer.hint


def test_a_host_without_python_is_told_so(tmp_path: Path) -> None:
    answer = ask_hostile(
        tmp_path,
        'exec sh -c "$(echo "$SSH_ORIGINAL_COMMAND" | sed "s#[a-z/]*python3#/gone#g; s#[a-z/]*platform-py#/gone#g")"',
    )
    assert answer.problem == "no Python 3"
    assert not answer.unreachable


def test_a_named_interpreter_that_is_absent_is_named(honest: Sshd) -> None:
    (answer,) = ask(honest.host(python="/opt/none/bin/python3"))
    assert "no Python at /opt/none/bin/python3" in answer.problem
    assert not answer.unreachable


def test_a_named_interpreter_is_used(honest: Sshd) -> None:
    program = PROGRAM + b"\nimport sys; sys.exit('ran') if sys.executable != %r else None" % sys.executable
    question = msgspec.structs.replace(QUESTION, program=program)
    (answer,) = ask(honest.host(python=sys.executable), question=question)
    assert answer.problem == ""


def test_garbage_is_quoted_without_its_terminal_escapes(tmp_path: Path) -> None:
    answer = ask_hostile(
        tmp_path, 'printf "\\033]0;owned\\007\\377\\376 no\\n"; printf "\\033[2J\\377 why\\n" >&2; exit 3'
    )
    assert answer.evidence is None
    assert not answer.unreachable
    assert "exit status 3" in answer.problem
    assert answer.problem.isprintable()
    assert len(answer.problem) < 700


def test_a_document_with_invalid_utf8_is_refused(tmp_path: Path) -> None:
    document = '{"schema":1,"collected_at_s":1,"duration_ms":1,"system":{"hostname":"\\377"}}'
    answer = ask_hostile(tmp_path, f"printf '%b\\n' '{payload.BEGIN}' '{document}' '{payload.END}'")
    assert answer.evidence is None
    assert "utf-8" in answer.problem.lower()


def test_a_hundred_megabytes_are_not_read_and_do_not_grow_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = ask_hostile(tmp_path, "head -c 100000000 /dev/zero")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "more than 1 MiB" in answer.problem
    assert answer.bytes_received < 2 * MAX_BYTES
    assert grown_kib < 32 * 1024


def test_a_flood_on_stderr_is_not_read_either(tmp_path: Path) -> None:
    answer = ask_hostile(tmp_path, "head -c 100000000 /dev/zero >&2")
    assert "more than 1 MiB" in answer.problem


SQUEEZED = """
import asyncio, asyncssh
from asyncssh.packet import String
class Open(asyncssh.SSHServer):
    def begin_auth(self, username): return False
async def flood(process):
    process.channel.get_connection().send_packet(2, String(bytes(200 << 20)))  # SSH_MSG_IGNORE
    await asyncio.sleep(5)
async def serve():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen("127.0.0.1", 0, server_factory=Open, server_host_keys=[key], process_factory=flood,
                                   compression_algs=["zlib@openssh.com"])
    print(server.get_port(), flush=True)
    await asyncio.sleep(60)
asyncio.run(serve())
"""


def test_nothing_is_unpacked_for_a_host(honest: Sshd) -> None:
    """Its 200 kB would be 200 MiB in one packet, before anybody could count them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with subprocess.Popen([sys.executable, "-c", SQUEEZED], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        (answer,) = ask(honest.host(port=int(child.stdout.readline()), host_key_checking=False))
        child.kill()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    refused = ("No matching compression algorithm", "closed the connection before ssh was established")
    assert any(words in answer.problem for words in refused), answer.problem  # whoever of the two notices it first
    assert grown_kib < 32 * 1024


def test_a_host_that_hangs_up_halfway_gave_no_evidence(tmp_path: Path) -> None:
    answer = ask_hostile(tmp_path, f'echo "{payload.BEGIN}"; echo "{{"; kill -9 $PPID')
    assert answer.evidence is None
    assert answer.problem


class Enough(Exception):
    """All that a test waited for was heard."""


def first_heard(number: int, hosts: Sequence[Host], options: AnsibleOptions) -> list[Collected]:
    """The answers that come first; then nobody is waited for any more, however long a dead host may be."""
    heard: list[Collected] = []

    def hear(answer: Collected) -> None:
        heard.append(answer)
        if len(heard) == number:
            raise Enough

    question = msgspec.structs.replace(QUESTION, silence_s=LONG_S, timeout_s=LONG_S)
    with pytest.raises(Enough):
        ask_all(hosts, question, options, on_answer=hear)
    return heard


def test_a_hanging_host_is_given_up_at_its_deadline_and_the_others_are_not_held_up(
    honest: Sshd, tmp_path: Path
) -> None:
    with sshd(tmp_path / "hanging", force="exec sleep 60") as hanging:
        alive = [honest.host(f"hv{i}") for i in range(4)]
        heard = first_heard(4, [hanging.host("slow"), *alive], AnsibleOptions())
        (answer,) = ask(hanging.host("slow"), question=msgspec.structs.replace(QUESTION, timeout_s=2.0))
    assert {a.host: a.problem for a in heard} == {host.name: "" for host in alive}
    assert "no evidence within 2 s" in answer.problem


@pytest.mark.parametrize("noise", ["", "echo Welcome; "])
def test_a_host_whose_login_shell_hangs_is_given_up_when_it_was_silent_for_long(tmp_path: Path, noise: str) -> None:
    question = msgspec.structs.replace(QUESTION, silence_s=1.0)
    with sshd(tmp_path / "hanging", force=f"{noise}exec sleep 60") as hanging:
        (answer,) = ask(hanging.host(), question=question)
    assert answer.problem == "no word from its login shell, sudo or Python for 1 s"
    assert not answer.unreachable


def test_a_host_that_works_for_long_is_not_silent(honest: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "began"
    for silence_s in longer(3.0, mark.exists):
        program = f"import time; open({str(mark)!r}, 'w').close(); time.sleep({silence_s + 1})\n".encode()
        question = msgspec.structs.replace(QUESTION, program=program + PROGRAM, silence_s=silence_s, timeout_s=180.0)
        (answer,) = ask(honest.host(), question=question)
    assert answer.problem == ""


def test_a_local_program_that_cannot_begin_is_given_up_too(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    here = msgspec.structs.replace(LOCAL, python=str(python), variables={"ansible_become": False})
    (answer,) = ask(here, question=msgspec.structs.replace(QUESTION, silence_s=1.0))
    assert answer.problem == "no word from its login shell, sudo or Python for 1 s"


def test_an_sshd_that_stops_in_the_middle_is_given_up_when_it_was_silent_for_long(honest: Sshd, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    program = f"""
import os, signal, time
sshd = os.getppid()
while "sshd" not in open(f"/proc/{{sshd}}/comm").read():
    sshd = int(open(f"/proc/{{sshd}}/stat").read().rpartition(")")[2].split()[1])
os.symlink(str(sshd), {str(stopped)!r})
os.kill(sshd, signal.SIGSTOP)
time.sleep(20)
"""
    host = honest.host(variables={"ansible_become": os.geteuid() == 0})
    for silence_s in longer(2.0, stopped.is_symlink):
        question = msgspec.structs.replace(QUESTION, program=program.encode(), silence_s=silence_s, timeout_s=60.0)
        (answer,) = ask(host, question=question)
    os.kill(int(os.readlink(stopped)), signal.SIGKILL)
    assert answer.unreachable
    assert "nothing was heard from 127.0.0.1" in answer.problem
    assert f"for {silence_s:g} s, after it had let us in" in answer.problem


def test_dead_hosts_of_every_kind_do_not_keep_the_turns_from_the_others(
    honest: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One turn, and before the hosts that answer, those that let us wait."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as accepts,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        sshd(tmp_path / "stopped") as stopped,
        sshd(tmp_path / "hanging", force="exec sleep 60") as hanging,
        occupied(full),
    ):
        stopped.process.send_signal(signal.SIGSTOP)
        dead = [
            honest.host("mute", port=accepts.getsockname()[1]),
            honest.host("blackhole", port=full.getsockname()[1]),
            stopped.host("stopped"),
            hanging.host("hangs"),
        ]
        patient, hasty = ([msgspec.structs.replace(host, connect_timeout_s=s) for host in dead] for s in (LONG_S, 1))
        alive = [honest.host(f"hv{number}") for number in range(4)]
        try:
            heard = first_heard(4, [*patient, *alive], AnsibleOptions(forks=1))
            answers = ask(*hasty[:3], hanging.host("hangs"), question=msgspec.structs.replace(QUESTION, silence_s=1.0))
        finally:
            stopped.process.send_signal(signal.SIGCONT)
    assert {answer.host: answer.problem for answer in heard} == {host.name: "" for host in alive}
    for answer in answers[:3]:
        assert "did not answer within 1 s" in answer.problem
    assert "no word from its login shell" in answers[3].problem


@contextmanager
def occupied(listening: socket.socket) -> Iterator[None]:
    """Nobody accepts, and the queue of connections is full: the next one gets no answer, as from a host that is off."""
    with contextlib.ExitStack() as callers:
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listening.getsockname())
        yield


def test_no_more_hosts_work_at_once_than_there_are_turns_however_slowly_they_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is slower to speak than its turn lasts, so that all of them are on the way at once; their work is not."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    log = tmp_path / "log"
    program = f"""
import time
with open({str(log)!r}, "a") as log:
    log.write("begin\\n"); log.flush(); time.sleep(0.3); log.write("end\\n")
""".encode()
    question = msgspec.structs.replace(QUESTION, program=program + PROGRAM)
    with sshd(tmp_path / "slow", force='sleep 1; exec sh -c "$SSH_ORIGINAL_COMMAND"') as slow:
        started = time.monotonic()
        answers = ask_all([slow.host(f"hv{i}") for i in range(4)], question, AnsibleOptions(forks=1))
        took_s = time.monotonic() - started
    assert [answer.problem for answer in answers] == [""] * 4
    assert log.read_text().split() == ["begin", "end"] * 4
    assert took_s < 60


def test_a_listener_that_waits_makes_no_host_late(honest: Sshd, tmp_path: Path) -> None:
    """As one does whose database somebody else is writing to: another host begins meanwhile, and is served."""
    heard, served = tmp_path / "heard", tmp_path / "served"

    def slow(answer: Collected) -> None:
        heard.touch()
        until(served.exists, limit_s=LONG_S / 2)

    slowly = f'until test -e {heard}; do sleep 0.05; done; sh -c "$SSH_ORIGINAL_COMMAND" && touch {served}'
    question = msgspec.structs.replace(QUESTION, timeout_s=LONG_S, silence_s=LONG_S)
    with sshd(tmp_path / "late", force=slowly) as late:
        answers = ask_all([honest.host("hv1"), late.host("hv2")], question, AnsibleOptions(), on_answer=slow)
    assert [answer.problem for answer in answers] == ["", ""]


def test_what_a_listener_raises_ends_the_run_and_reaches_the_caller(honest: Sshd) -> None:
    told: list[str] = []

    def full(answer: Collected) -> None:
        told.append(answer.host)
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"):
        ask_each([honest.host(f"hv{i}") for i in range(8)], QUESTION, AnsibleOptions(forks=1), on_answer=full)
    assert len(told) == 1  # whichever was first: a host that is slow lends its turn


def test_answers_are_dropped_once_they_were_told(honest: Sshd) -> None:
    alive: list[int] = []
    hosts = [honest.host(f"hv{i}") for i in range(12)]
    gc.freeze()  # what was there before is not counted, and need not be looked at each time
    try:
        ask_each(hosts, QUESTION, AnsibleOptions(forks=2), on_answer=lambda _: alive.append(kept_evidence()))
    finally:
        gc.unfreeze()
    assert len(alive) == 12
    assert 1 <= max(alive) <= 4


def kept_evidence() -> int:
    return sum(isinstance(thing, Evidence) and thing.asked_at_s > 0 for thing in gc.get_objects())


def give_up(program: str, mark: Path) -> Collected:
    """A program on this machine that never ends, and leaves this link when it has begun."""
    here = msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0})
    for timeout_s in longer(2.0, mark.is_symlink):
        (answer,) = ask(here, question=msgspec.structs.replace(QUESTION, program=program.encode(), timeout_s=timeout_s))
    return answer


def test_a_hanging_local_program_leaves_no_process_behind(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = f"""
import os, subprocess
child = subprocess.Popen(["sleep", "90"])
os.symlink(str(child.pid), {str(child)!r})
child.wait()
"""
    assert "no evidence within " in give_up(program, child).problem
    until(lambda: has_ended(int(os.readlink(child))))


def test_a_local_program_that_is_given_up_may_clean_up(tmp_path: Path) -> None:
    began, guest = tmp_path / "began", tmp_path / "guest"
    program = f"""
import os, signal, time
def clean(*_):
    time.sleep(0.3)
    os.unlink({str(guest)!r})
    os._exit(0)
signal.signal(signal.SIGTERM, clean)
open({str(guest)!r}, "w").close()
os.symlink("guest", {str(began)!r})
time.sleep(90)
"""
    give_up(program, began)
    assert not guest.exists()


def test_a_local_flood_is_not_read(tmp_path: Path) -> None:
    question = msgspec.structs.replace(QUESTION, program=b"while True: print('x' * 65536)")
    (answer,) = ask(msgspec.structs.replace(LOCAL, variables={"ansible_become": os.geteuid() == 0}), question=question)
    assert "more than 1 MiB" in answer.problem
    assert answer.bytes_received < 2 * MAX_BYTES


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_interrupt_ends_everything_promptly(honest: Sshd, tmp_path: Path) -> None:
    """Ctrl-C for a process that waits for a local program and for a host, both of which hang."""
    mark = tmp_path / "pids"
    program = f"""
import os, time
open({str(mark)!r}, "a").write("%s %d\\n" % ("there" if "SSH_CONNECTION" in os.environ else "here", os.getpid()))
time.sleep(90)
"""
    root = os.geteuid() == 0
    script = f"""
import sys
from orchestrator.collect import ask_all
from orchestrator.inventory import AnsibleOptions, Host
from orchestrator.reach.question import Question
question = Question({program.encode()!r}, lambda raw: None, 300.0)
become = {{"ansible_become": {root}}}
known = "-o UserKnownHostsFile={honest.known_hosts}"
hosts = [
    Host(name="here", address="localhost", connection="local", variables=become),
    Host(name="there", address="127.0.0.1", port={honest.port}, private_key={str(honest.key)!r}, ssh_args=known,
         variables=become),
]
try:
    ask_all(hosts, question, AnsibleOptions())
except KeyboardInterrupt:
    sys.exit(42)
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as child:
        until(lambda: mark.exists() and len(mark.read_text().splitlines()) == 2)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 42, errors
    assert errors == ""
    pids = dict(line.split() for line in mark.read_text().splitlines())
    assert set(pids) == {"here", "there"}
    until(lambda: has_ended(int(pids["here"])))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        until(path.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield
        process.terminate()


def test_an_agent_is_asked_for_its_keys(honest: Sshd, agent: None) -> None:
    (refused,) = ask(honest.host(private_key=""))
    assert "the agent's keys" in refused.problem
    subprocess.run(["ssh-add", "-q", str(honest.key)], check=True)
    (answer,) = ask(honest.host(private_key=""))
    assert answer.problem == ""


def test_a_key_with_a_passphrase_is_used_through_the_agent(honest: Sshd, agent: None, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.write_bytes(honest.key.read_bytes())
    locked.chmod(0o600)
    (tmp_path / "locked.pub").write_text(honest.key.with_suffix(".pub").read_text())
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(locked)], check=True)
    subprocess.run(["ssh-add", "-q", str(honest.key)], check=True)
    known = f"-o UserKnownHostsFile={honest.known_hosts} -o IdentitiesOnly=yes"
    (answer,) = ask(honest.host(private_key=str(locked), ssh_args=known))
    assert answer.problem == ""


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("place", ["arguments", "configuration"])
def test_identitiesonly_keeps_the_agent_s_other_keys_back(
    honest: Sshd, agent: None, tmp_path: Path, place: str, beside: bool
) -> None:
    other = make_key(tmp_path / "other")
    if not beside:
        other.with_suffix(".pub").unlink()
    subprocess.run(["ssh-add", "-q", str(honest.key)], check=True)
    write_config(tmp_path, "IdentitiesOnly yes" if place == "configuration" else "# nothing")
    more = " -o IdentitiesOnly=yes" if place == "arguments" else ""
    known = f"-o UserKnownHostsFile={honest.known_hosts}{more}"
    (answer,) = ask(honest.host(private_key=str(other), ssh_args=known))
    assert "does not let" in answer.problem
