"""Accounts with passwords on real hosts: the real sudo, su and sshd, on our own way and through Ansible.

A lab of its own, whose two hosts, Debian 12 and 13, have different versions of sudo. A password that was given is
looked for where it must not be: in the arguments and the environment of every process while kvmfleet runs, those of the
hosts too, then in what it says, in its state, and in the logs of the hosts.
"""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import KVMFLEET, ROOT

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn"),
]

HOSTS = ("passwords-1", "passwords-2")
AMY, ROOTS, WRONG = "wagtail-7", "wren-9", "sparrow-5"  # passwords
ONLY_ANSIBLE = "-o Ciphers=aes128-ctr"  # an option of ssh that our own way does not know

# The lab's user needs no password for sudo, amy needs hers, bob has no right to it, dave a right to something else.
# Their login shell notes what it is given: it lives too short a time to be caught at it.
SET_UP = f"""
cat > /usr/local/bin/noting <<"END"
#!/bin/bash
{{ env; echo "$0" "$@"; }} >> /var/log/shells
exec /bin/bash "$@"
END
chmod 0755 /usr/local/bin/noting
install -m 0666 /dev/null /var/log/shells
for user in amy bob dave; do useradd --create-home --shell /usr/local/bin/noting $user; done
usermod --append --groups sudo amy
for user in amy bob dave; do echo "$user:{AMY}" | chpasswd; done
echo "root:{ROOTS}" | chpasswd
echo "dave ALL=(root) /bin/true" > /etc/sudoers.d/dave
echo "PasswordAuthentication yes" > /etc/ssh/sshd_config.d/00-passwords.conf
systemctl reload ssh
/usr/sbin/sshd -p 2222 -o ListenAddress=127.0.0.1 -o PidFile=none
"""


@pytest.fixture(scope="module")
def lab(kvmfleet, environment):
    up = kvmfleet("lab", "up", "passwords", "--provider", "container", "--yes", "--bare")
    try:
        assert up.returncode == 0, up.stderr
        for host in HOSTS:
            command = [*KVMFLEET, "lab", "ssh", host, "sudo", "sh", "-es"]
            subprocess.run(command, cwd=ROOT, env=environment, input=SET_UP, text=True, check=True, timeout=120)
        yield json.loads(kvmfleet("lab", "status", "passwords", "--json").stdout)
    finally:
        down = kvmfleet("lab", "down", "passwords", "--yes")
        assert down.returncode == 0, down.stderr


@pytest.fixture
def run(lab, environment, tmp_path):
    """Looks at both hosts with such variables, or functions of a host.

    Gives path, problem and the uid of the collector for each, and all that was shown.
    """

    def run(typed="", home=Path.home(), **variables):  # noqa: B008 - the same for all calls
        env = environment | {"HOME": str(home)}
        file, out = tmp_path / "hosts.json", tmp_path / "out"
        file.write_text(json.dumps(inventory(lab, variables)))
        command = [*KVMFLEET, "validate", "-i", str(file), "--boot", "none", "--json", "-vv"]
        shown = in_terminal([*command, "-K"], typed, out, env) if typed else without(command, out, env)
        ends = {}
        for host in json.loads(out.read_text())["hosts"]:
            said, evidence = host["collected"], host["evidence"]
            ends[host["name"]] = (said["path"], said["problem"], evidence and evidence["system"]["uid"])
        assert ends.keys() == set(HOSTS)
        return list(ends.values()), shown + out.read_text()

    return run


def inventory(lab, variables):
    folder = Path(lab["folder"])
    plain = {
        "ansible_user": "kvmfleet",
        "ansible_ssh_private_key_file": f"{folder}/key/id_ed25519",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={folder}/known_hosts -o IdentitiesOnly=yes",
    }
    hosts = {host["name"]: {"ansible_host": host["address"], **plain} for host in lab["hosts"]}
    for host in lab["hosts"]:
        own = {name: value(host) if callable(value) else value for name, value in variables.items()}
        hosts[host["name"]].update(own)
    return {"kvm_hosts": {"hosts": hosts}}


def without(command, out, environment):
    with out.open("w") as stdout:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
            text=True, timeout=300,
        )  # fmt: skip
    return done.stderr


def in_terminal(command, typed, out, environment):
    """Runs it in a terminal of its own, types a password at its prompt, and gives what the terminal shows."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        os.execve(command[0], command, environment)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo terminal
        while chunk := os.read(terminal, 1024):
            shown += chunk
            if shown.endswith(b"password: ") and typed:
                os.write(terminal, f"{typed}\n".encode())
                typed = ""
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode()


@pytest.fixture
def unseen(on, environment):
    """No password is in any process while the test runs, nor afterwards in our state and the logs of the hosts."""
    over, seen = threading.Event(), set()
    watch = threading.Thread(target=watch_processes, args=(over, seen))
    watch.start()
    yield
    over.set()
    watch.join()
    assert not seen
    state = Path(environment["KVMFLEET_STATE_DIR"])
    kept = [file for file in state.glob("*") if file.is_file() and holds_password(file.read_bytes())]
    assert not kept
    for host in HOSTS:
        assert "COMMAND=" in on(host, "journalctl --no-pager --identifier=sudo")
        assert "/bin/sh -c" in on(host, "cat /var/log/shells")
        words = " ".join(f"-e {secret[0]}[{secret[1]}]{secret[2:]}" for secret in (AMY, ROOTS, WRONG))  # not themselves
        assert on(host, f"journalctl --no-pager | grep {words} || true; grep -rl {words} /var/log /tmp || true") == ""


def watch_processes(over, seen):
    while not over.wait(0.01):
        for process in Path("/proc").glob("[0-9]*"):
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    if holds_password((process / file).read_bytes()):
                        seen.add((process / "cmdline").read_bytes())


def holds_password(raw):
    return any(secret.encode() in raw for secret in (AMY, ROOTS, WRONG))


WAYS = pytest.mark.parametrize(("way", "more"), [("ssh", ""), ("ansible", ONLY_ANSIBLE)])


@WAYS
def test_the_right_password_makes_root_of_a_user_and_is_seen_nowhere(way, more, run, unseen):
    ends, shown = run(typed=AMY, ansible_user="amy", ansible_ssh_extra_args=more)
    assert ends == [(way, "", 0)] * 2
    assert AMY not in shown


@WAYS
def test_a_wrong_password_is_refused_told_and_seen_nowhere(way, more, run, unseen):
    ends, shown = run(typed=WRONG, ansible_user="amy", ansible_ssh_extra_args=more)
    for path, problem, uid in ends:
        assert (path, uid) == (way, None)
        assert problem.startswith("sudo refuses the password: ")
        assert "ncorrect" in problem
    assert WRONG not in shown


def test_a_password_in_the_inventory_is_for_sudo_as_well(run, unseen):
    ends, shown = run(ansible_user="amy", ansible_become_password=AMY)
    assert ends == [("ssh", "", 0)] * 2
    assert AMY not in shown


@WAYS
def test_without_a_password_a_user_who_needs_one_is_told(way, more, run):
    ends, _ = run(ansible_user="amy", ansible_ssh_extra_args=more)
    for path, problem, uid in ends:
        assert (path, uid) == (way, None)
        assert problem.startswith("sudo asks for a password: ")


@pytest.mark.parametrize("typed", ["", WRONG])
@WAYS
def test_nopasswd_needs_none_and_takes_no_notice_of_one(typed, way, more, run):
    ends, _ = run(typed=typed, ansible_ssh_extra_args=more)
    assert ends == [(way, "", 0)] * 2


@pytest.mark.parametrize(
    ("user", "way", "more", "words"),
    [
        ("bob", "ssh", "", "sudo does not know this user: "),
        ("bob", "ansible", ONLY_ANSIBLE, "sudo does not know this user: "),
        ("dave", "ssh", "", "sudo does not allow this user to run Python as root: "),
        ("dave", "ansible", ONLY_ANSIBLE, "Module result deserialization failed"),  # Ansible drops what sudo said
    ],
)
def test_a_user_without_the_right_to_it_is_told_from_one_with_a_wrong_password(user, way, more, words, run):
    ends, _ = run(typed=AMY, ansible_user=user, ansible_ssh_extra_args=more)
    for path, problem, uid in ends:
        assert (path, uid) == (way, None)
        assert problem.startswith(words)
        assert AMY not in problem


def test_su_makes_root_of_a_user_with_root_s_password_through_ansible(run, unseen):
    su = {"ansible_user": "bob", "ansible_become_method": "su"}
    ends, shown = run(typed=ROOTS, **su)
    assert ends == [("ansible", "", 0)] * 2
    assert ROOTS not in shown
    ends, shown = run(typed=WRONG, **su)
    assert [(path, bool(problem), uid) for path, problem, uid in ends] == [("ansible", True, None)] * 2
    assert WRONG not in shown


@pytest.mark.parametrize("setting", [{"ansible_become_user": "amy"}, {"ansible_become_flags": "-H -S -n -g daemon"}])
def test_what_else_sudo_can_do_goes_through_ansible(setting, run, on):
    ends, _ = run(**setting)
    uid = int(on(HOSTS[0], "id -u amy")) if "ansible_become_user" in setting else 0
    assert ends == [("ansible", "", uid)] * 2


def test_without_become_a_user_stays_who_it_is(run, on):
    ends, _ = run(ansible_become=False)
    assert ends == [("ssh", "", int(on(HOSTS[0], "id -u kvmfleet")))] * 2


@WAYS
def test_a_password_lets_a_user_in_who_has_no_key_and_is_seen_nowhere(way, more, run, unseen, tmp_path):
    """Ansible needs no sshpass for it: its ssh asks a program of Ansible's own."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "strange")], check=True)
    amy = {"ansible_user": "amy", "ansible_ssh_private_key_file": f"{tmp_path}/strange", "ansible_ssh_extra_args": more}
    ends, shown = run(**amy, ansible_password=AMY, ansible_become_password=AMY)
    assert ends == [(way, "", 0)] * 2
    assert AMY not in shown
    ends, shown = run(**amy, ansible_password=WRONG, ansible_become_password=AMY)
    assert [(path, uid) for path, _, uid in ends] == [(way, None)] * 2
    assert WRONG not in shown + str(ends)


def test_a_second_sshd_that_only_its_host_reaches_is_reached_through_that_host(lab, run, on, tmp_path):
    """It listens on the loopback interface of each host, and ours has nothing at that port."""
    folder = Path(lab["folder"])
    keys = [line.split(" ", 1)[1] for line in (folder / "known_hosts").read_text().splitlines()]
    (tmp_path / "inner").write_text("".join(f"[127.0.0.1]:2222 {key}\n" for key in keys))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(
        f"Host 10.*\n  User kvmfleet\n  IdentityFile {folder}/key/id_ed25519\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n"
    )
    ends, _ = run(
        home=tmp_path, ansible_host="127.0.0.1", ansible_port=2222, ansible_user="amy", ansible_become=False,
        ansible_ssh_common_args=lambda host: f"-o UserKnownHostsFile={tmp_path}/inner -J {host['address']}",
    )  # fmt: skip
    assert ends == [("ssh", "", int(on(HOSTS[0], "id -u amy")))] * 2
