"""Schedules under a real systemd: a host is the controller of itself, and its timer runs drift.

The tests of this file tell one story in order.
"""

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from waiting import until

pytestmark = pytest.mark.hosts

ROOT = Path(__file__).resolve().parents[2]
HOST, PYTHON = "story-1", "3.11"  # Debian 12
CHECKOUT = "/opt/kvm fleet"
KVMFLEET = (f"{CHECKOUT}/.venv/bin/python", "-P", "-m", "orchestrator")
FOLDER = """/srv/it's "100%" $x"""
STATE = "/root/.local/state/kvmfleet"
INVENTORY = f"kvm_hosts: {{hosts: {{{HOST}: {{ansible_connection: local}}}}}}\n"
SILENT = "kvm_hosts: {hosts: {silent: {ansible_host: 127.0.0.1, ansible_port: 2222}}}\n"
LISTEN = 'import socket, time; mute = socket.create_server(("127.0.0.1", 2222)); time.sleep(3600)'
"""Takes connections and says nothing, as a machine does that is out of memory."""
RECEIVER = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        title = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["title"]
        print(title, file=open("/root/told", "a"))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 2223), Handler).serve_forever()
"""
"""Keeps the titles of the messages that it gets."""
PROGRAMS = ("ansible-inventory", "ansible-config", "ansible-playbook")
LEFT_OUT = ("ansible_collections", "playwright", "mypy*", "*mypyc*")
"""Half a gigabyte that looking does not need."""


@pytest.fixture(scope="module")
def inside(kvmfleet, environment):
    """Runs a script as root on the host; gives the finished process."""
    root = Path(environment["KVMFLEET_STATE_DIR"]) / "labs/story/hosts" / HOST / "root"

    def run(script):
        (root / "root/step").write_text(f"cd {shlex.quote(FOLDER)} 2>/dev/null\n{script}\n")
        return kvmfleet("lab", "ssh", HOST, "sudo", "sh", "/root/step")

    run.root = root
    return run


@pytest.fixture(scope="module")
def controller(inside, kvmfleet, inventory, environment):
    """kvmfleet on the host, with the history of the lab, so that it knows how it was. Takes the words of a command."""
    up = kvmfleet("lab", "up", "story", "--boot", "proof")  # whatever the stories before left
    assert up.returncode in (0, 2), up.stderr
    checkout = Path(f"{inside.root}{CHECKOUT}")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    made = inside(f"python3 -m venv --without-pip {shlex.quote(CHECKOUT)}/.venv")
    assert made.returncode == 0, made.stderr
    libraries(checkout / f".venv/lib/python{PYTHON}/site-packages")
    for program in PROGRAMS:
        lines = (Path(sys.executable).parent / program).read_text().partition("\nimport ")[2]
        head = f'#!/bin/sh\n"exec" "{CHECKOUT}/.venv/bin/python" "$0" "$@"\nimport '
        (checkout / ".venv/bin" / program).write_text(head + lines)
        (checkout / ".venv/bin" / program).chmod(0o755)
    folder, state = Path(f"{inside.root}{FOLDER}"), Path(f"{inside.root}{STATE}")
    folder.mkdir()
    (folder / "hosts.yml").write_text(INVENTORY)
    (folder / "silent.yml").write_text(SILENT)
    state.mkdir(mode=0o700, parents=True)
    with (
        sqlite3.connect(Path(environment["KVMFLEET_STATE_DIR"]) / "history.sqlite3") as ours,
        sqlite3.connect(state / "history.sqlite3") as theirs,
    ):
        ours.backup(theirs)
    yield lambda *words: inside(shlex.join([*KVMFLEET, *words]))
    inside("systemctl stop mute.service")
    inside(f"rm -rf {shlex.quote(CHECKOUT)} {shlex.quote(FOLDER)} {STATE} /root/.ansible /root/step")


def libraries(target):
    """Those that run this test, where the host's Python is of the same kind; otherwise those that pip has for it."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        ignore = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(sysconfig.get_path("purelib"), target, ignore=ignore, dirs_exist_ok=True)
    else:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        asked = [f"--python-version={PYTHON}", f"--target={target}", "--upgrade", f"-r{ROOT}/requirements.lock"]
        subprocess.run([*pip, *asked], stdin=subprocess.DEVNULL, check=True)
    (target / "kvmfleet.pth").write_text(f"{CHECKOUT}\n")


@pytest.fixture
def mute(inside):
    """Starts what listens and says nothing."""

    def start():
        inside(f"systemd-run --quiet --collect --unit=mute python3 -c {shlex.quote(LISTEN)}")
        until(lambda: inside("ss -Hltn sport = :2222").stdout)

    return start


@pytest.fixture
def status(controller):
    """The exit code of `schedule status`, and what it says of the schedule."""

    def ask(name="drift"):
        done = controller("schedule", "status", name, "--json")
        assert done.stdout, done.stderr
        (found,) = json.loads(done.stdout)
        return done.returncode, found

    return ask


def test_a_schedule_is_installed_from_a_folder_of_any_name(controller, inside, status):
    done = controller("schedule", "install", "-i", "hosts.yml", "--every", "6h")
    assert done.returncode == 0, done.stderr
    assert "drift: installed kvmfleet-drift.timer, every 6h" in done.stderr
    verified = inside("systemd-analyze verify /etc/systemd/system/kvmfleet-drift.* 2>&1 | grep -i kvmfleet-drift")
    assert verified.stdout == ""
    code, found = status()
    assert (code, found["result"], found["active"]) == (1, "never-run", True)
    assert found["command"] == ["kvmfleet", "drift", f"--inventory={FOLDER}/hosts.yml"]


def test_installing_again_changes_what_is_there_and_the_timer_runs_it(controller, inside, status):
    done = controller("schedule", "install", "-i", "hosts.yml", "--calendar", "*-*-* *:*:00/15")
    assert "drift: when: every 6h → *-*-* *:*:00/15" in done.stderr
    until(lambda: status()[1]["last"] is not None, pause_s=1)
    code, found = status()
    said = inside("journalctl --sync; journalctl -u kvmfleet-drift.service --output=cat").stdout
    assert (code, found["result"]) == (0, "in-sync"), said
    assert f"{HOST}: answered" in said
    done = controller("schedule", "install", "-i", "hosts.yml", "--every", "1d")
    assert "drift: when: *-*-* *:*:00/15 → every 1d" in done.stderr
    assert controller("schedule", "install", "-i", "hosts.yml", "--every", "1d").stderr.startswith("drift: unchanged")
    state = "systemctl show --property=ActiveState --value kvmfleet-drift.service"
    until(lambda: inside(state).stdout == "inactive\n")  # a run may have begun just before the timer was another one


def test_drift_is_shown_and_is_no_failure_of_the_service(controller, inside, status):
    inside("cp -p /etc/libvirt/qemu.conf /root/qemu.conf; echo max_queued = 3 >> /etc/libvirt/qemu.conf")
    done = controller("schedule", "run-now")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "file:/etc/libvirt/qemu.conf" in done.stdout
    code, found = status()
    assert (code, found["result"], found["problem"]) == (2, "drift", "")
    assert inside("systemctl is-failed kvmfleet-drift.service").stdout.strip() == "inactive"
    inside("mv /root/qemu.conf /etc/libvirt/qemu.conf")
    assert controller("schedule", "run-now").returncode == 0
    assert status()[0] == 0


def test_the_timer_tells_a_transition_once_and_a_repeat_never(controller, inside, status):
    inside(f"systemd-run --quiet --collect --unit=receiver python3 -c {shlex.quote(RECEIVER)}; touch /root/told")
    inside("umask 077; echo json://127.0.0.1:2223/ > receivers")

    def told_after(*commands, runs):
        """The titles that had come when so many runs of the timer had begun and ended after the commands."""
        for command in commands:
            inside(command)
        for _ in range(runs):
            last = status("told")[1]["last"]
            until(lambda last=last: status("told")[1]["last"] != last, pause_s=1)
        return inside("cat /root/told").stdout.splitlines()

    words = ("-i", "hosts.yml", "--notify", "receivers", "--calendar", "*-*-* *:*:00/10", "--name", "told")
    assert controller("schedule", "install", *words).returncode == 0
    assert told_after(runs=2) == []
    drifted = [f"kvmfleet: {HOST} drifted"]
    assert told_after("cp -p /etc/libvirt/qemu.conf /root; echo '# x' >> /etc/libvirt/qemu.conf", runs=4) == drifted
    healed = [*drifted, f"kvmfleet: {HOST} in sync again"]
    assert told_after("mv /root/qemu.conf /etc/libvirt/qemu.conf", runs=3) == healed
    assert controller("schedule", "remove", "told").returncode == 0
    inside("systemctl stop receiver.service; rm /root/told")


def test_a_sealed_service_looks_at_hosts_over_ssh_and_systemd_finds_it_sealed(controller, inside, status):
    done = controller("schedule", "install", "-i", "silent.yml", "-T", "600", "--every", "1d", "--name", "silent")
    assert done.returncode == 0, done.stderr
    assert "not sealed" not in done.stderr
    said = inside("systemd-analyze security --no-pager kvmfleet-silent.service").stdout
    assert float(re.search(r"exposure level for kvmfleet-silent.service: ([\d.]+)", said)[1]) < 3


# The second run says that it waits for the first, then the silent host hangs up, which ends the first.
JOINED = f"""
{shlex.join(KVMFLEET)} schedule run-now silent 2> said &
for try in $(seq 1000); do grep -q "waiting for that run" said && break; sleep 0.3; done
systemctl stop mute.service
wait $!; code=$?
cat said >&2; rm said
exit $code
"""


def test_runs_of_one_schedule_never_overlap(controller, inside, status, mute):
    mute()
    inside("systemctl start --no-block kvmfleet-silent.service")
    until(lambda: status("silent")[1]["running_since_s"] is not None)
    beside = controller("schedule", "run", "--name", "silent", "-i", "silent.yml", "-T", "600")
    assert (beside.returncode, beside.stdout) == (1, "")
    assert "schedule silent: a run of it goes on (process " in beside.stderr
    joined = inside(JOINED)
    assert "is running already; waiting for that run" in joined.stderr
    assert joined.returncode == 1
    assert "silent: unreachable" in joined.stdout
    began = inside("journalctl --sync; journalctl -u kvmfleet-silent.service --output=cat | grep -c ^Starting")
    assert began.stdout == "1\n"
    code, found = status("silent")
    assert (code, found["result"], found["problem"]) == (1, "could-not-tell", "")
    assert inside("systemctl is-failed kvmfleet-silent.service").stdout.strip() == "failed"


def test_a_run_that_was_missed_is_caught_up(inside, status):
    before = status()[1]["last"]["began_s"]
    inside("systemctl stop kvmfleet-drift.timer")
    code, found = status()
    assert (code, found["active"], found["problem"]) == (1, False, "its timer is inactive")
    inside('touch -d "3 days ago" /var/lib/systemd/timers/stamp-kvmfleet-drift.timer')
    # Since a boot that is not long ago the delay counts that is left to chance.
    inside("mkdir /run/systemd/system/kvmfleet-drift.timer.d")
    inside('printf "[Timer]\\nRandomizedDelaySec=0\\n" > /run/systemd/system/kvmfleet-drift.timer.d/now.conf')
    inside("systemctl daemon-reload; systemctl start kvmfleet-drift.timer")
    until(lambda: status()[1]["last"]["began_s"] > before)
    assert status()[0] == 0
    inside("rm -r /run/systemd/system/kvmfleet-drift.timer.d; systemctl daemon-reload")


def test_a_run_that_is_killed_is_not_taken_for_the_one_before(inside, status, mute):
    mute()
    inside("systemctl start --no-block kvmfleet-silent.service")
    until(lambda: status("silent")[1]["running_since_s"] is not None)
    inside("systemctl kill --signal=KILL kvmfleet-silent.service")
    until(lambda: status("silent")[1]["running_since_s"] is None)
    code, found = status("silent")
    assert (code, found["result"]) == (1, "could-not-tell")
    assert found["problem"].endswith("left no result: signal 9")


def test_a_service_that_cannot_start_is_said(controller, inside, status):
    inside("mv hosts.yml aside.yml")
    assert controller("schedule", "run-now", "drift").returncode == 1
    assert status()[1]["result"] == "could-not-tell"
    inside("mv aside.yml hosts.yml")
    assert controller("schedule", "run-now", "drift").returncode == 0
    environment = f"{STATE}/schedules/drift.env"
    inside(f"mv {environment} {environment}.aside")
    done = controller("schedule", "run-now", "drift")
    assert (done.returncode, "resources" in done.stderr) == (1, True), done.stderr
    code, found = status()
    assert (code, found["problem"].startswith("systemd could not run it: resources")) == (1, True), found
    inside(f"mv {environment}.aside {environment}")


def test_what_is_removed_is_gone(controller, inside):
    for name in ("drift", "silent"):
        assert controller("schedule", "remove", name).returncode == 0
    places = f"/etc/systemd /run/systemd/system /var/lib/systemd {STATE}/schedules"
    left = inside(f"find {places} -name '*kvmfleet-*' -o -name 'drift*' -o -name 'silent*'")
    assert left.stdout == ""
    assert inside("systemctl list-units --all --no-legend 'kvmfleet-*'").stdout == ""
    done = controller("schedule", "status")
    assert done.returncode == 1
    assert "There is no schedule on this machine" in done.stderr
