"""Converging, with the real Ansible on hosts that are this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from loopback import Sshd, sshd
from patience import until

from orchestrator.ansible_cfg import Settings
from orchestrator.converge import SILENCE, Progress, converge
from orchestrator.errors import ConvergeError, Interrupted
from orchestrator.inventory import AnsibleOptions, Fleet, Host, Secrets

pytestmark = pytest.mark.ansible

ROOT = Path(__file__).resolve().parents[2]
SECRET = f"hunter2-and-more-{os.getpid()}"
PLAIN = Settings()
SLEEP = f"- name: Sleep\n  ansible.builtin.command: sleep 97.{os.getpid()}"
ASLEEP = f"sleep\x0097.{os.getpid()}\0"
SLEPT_THERE = "- ansible.builtin.command: sleep 20"  # a host's own process goes on when we end


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; after each test neither a file nor a process of the run may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tempfile.mkdtemp(prefix="t-")  # short: sockets are made below it
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert left == []
    until(lambda: not processes_with(folder), limit_s=20)  # ssh tells that it ends, then it does; else it stays for 60


def processes_with(text: str) -> list[str]:
    """The command lines of other processes that carry `text` in their arguments or environment."""
    return [command for command, environment in _others() if text in command or text in environment]


def _others() -> Iterator[tuple[str, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                yield (entry / "cmdline").read_text(errors="replace"), (entry / "environ").read_text(errors="replace")
            except OSError:
                continue


def fleet(*names: str, settings: Settings = PLAIN, extra: str = "") -> Fleet:
    """Hosts that are this machine, in an inventory file of the working directory."""
    lines = [f"{name} ansible_connection=local ansible_python_interpreter={sys.executable} {extra}" for name in names]
    Path("hosts.ini").write_text("\n".join(["[kvm_hosts]", *lines, ""]))
    hosts = tuple(Host(name=name, address=name, connection="local") for name in names)
    return Fleet(hosts=hosts, sources=("hosts.ini",), settings=settings)


def playbook(tasks: str, head: str = "") -> str:
    """A playbook of `tasks` (YAML, from the first column) for the group."""
    indented = "\n".join(f"    {line}" for line in tasks.strip().splitlines())
    Path("play.yml").write_text(f"- hosts: kvm_hosts\n  gather_facts: false\n{head}  tasks:\n{indented}\n")
    return str(Path("play.yml").absolute())


def run(tasks: str, on: Fleet | None = None, **options: object) -> tuple[str, ...]:
    results = converge(playbook(tasks), on or fleet("h1"), AnsibleOptions(**options))  # type: ignore[arg-type]
    return tuple(r.failure.message if r.failure else r.outcome for r in results)


def test_a_host_that_fails_does_not_stop_the_others() -> None:
    name = playbook(
        """
- name: Break one
  ansible.builtin.command: sh -c 'echo the disk is full >&2; exit 3'
  when: inventory_hostname == 'h2'
- name: Go on
  ansible.builtin.command: "true"
"""
    )
    one, two, three = converge(name, fleet("h1", "h2", "h3"), AnsibleOptions())
    assert [one.outcome, two.outcome, three.outcome] == ["ok", "failed", "ok"]
    assert (one.ok, one.changed, one.skipped, one.failed) == (1, 1, 1, 0)
    assert one.failure is None
    assert two.failure
    assert two.failure.task == "Break one"
    assert two.failure.message.endswith("non-zero return code: the disk is full")  # 2.21 puts words before it


def test_results_follow_the_fleet_and_not_the_answers() -> None:
    on = fleet("quick", "slow")
    reverse = Fleet(hosts=on.hosts[::-1], sources=on.sources)
    results = converge(playbook("- ansible.builtin.debug: {msg: hello}"), reverse, AnsibleOptions())
    assert [r.host for r in results] == ["slow", "quick"]


def test_a_host_that_the_playbook_leaves_out_is_skipped() -> None:
    on = fleet("h1", "h2")
    Path("play.yml").write_text(
        "- hosts: h1\n  gather_facts: false\n  tasks: [{ansible.builtin.debug: {msg: hello}}]\n"
    )
    assert [r.outcome for r in converge("play.yml", on, AnsibleOptions())] == ["ok", "skipped"]


def test_only_the_hosts_of_the_fleet_are_touched() -> None:
    on = fleet("h1", "h2")
    only = Fleet(hosts=on.hosts[:1], sources=on.sources)
    converge(
        playbook(
            '- ansible.builtin.file: {path: \'{{ lookup("env", "HOME") }}/{{ inventory_hostname }}\', state: touch}'
        ),
        only,
        AnsibleOptions(),
    )
    assert Path("h1").exists()
    assert not Path("h2").exists()


def test_a_host_without_an_answer_is_unreachable_and_not_failed() -> None:
    on = fleet("h1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        Path("hosts.ini").write_text(f"[kvm_hosts]\nh1 ansible_host=127.0.0.1 ansible_port={port}\n")
        (result,) = converge(playbook("- ansible.builtin.ping:"), on, AnsibleOptions())
    assert result.outcome == "unreachable"
    assert result.failure
    assert "Connection refused" in result.failure.message


@pytest.fixture
def ssh_fleet(tmp_path: Path) -> Iterator[tuple[Sshd, Fleet]]:
    """A host that is this machine, by ssh."""
    with sshd(tmp_path / "sshd") as server:
        on = fleet("h1")
        Path("hosts.ini").write_text(
            f"[kvm_hosts]\nh1 ansible_host=127.0.0.1 ansible_port={server.port} ansible_private_key_file={server.key}"
            f" ansible_ssh_common_args='-F none -o UserKnownHostsFile={server.known_hosts}'"
            f" ansible_python_interpreter={sys.executable}\n"
        )
        yield server, on


STOP_MY_SSHD = """\
- name: Go silent
  ansible.builtin.shell: |
    p=$PPID
    until [ "$(cat /proc/$p/comm)" = sshd ]; do p=$(cut -d ' ' -f 4 /proc/$p/stat); done
    echo $p > {file}
    kill -STOP $p
    sleep 20
"""


def test_a_host_that_goes_silent_in_the_middle_of_a_task_is_given_up(
    ssh_fleet: tuple[Sshd, Fleet], tmp_path: Path
) -> None:
    _, on = ssh_fleet
    on = msgspec.structs.replace(on, settings=Settings(ssh_extra_args="-o ServerAliveInterval=1"))  # not two minutes
    try:
        (result,) = converge(playbook(STOP_MY_SSHD.format(file=tmp_path / "pid")), on, AnsibleOptions())
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert result.outcome == "unreachable"


def test_what_the_user_adds_to_sshs_arguments_wins_over_ours() -> None:
    on = fleet("h1", settings=Settings(ssh_extra_args="-o ServerAliveInterval=1"))
    (message,) = run("- ansible.builtin.fail: {msg: \"{{ lookup('env', 'ANSIBLE_SSH_EXTRA_ARGS') }}\"}", on)
    assert message == f"-o ServerAliveInterval=1 {SILENCE}"  # ssh takes the first of two


def test_ssh_connections_that_ansible_keeps_open_end_with_the_run(ssh_fleet: tuple[Sshd, Fleet], place: Path) -> None:
    kept: set[str] = set()

    def look(progress: Progress) -> None:
        kept.update(socket.stem for socket in place.glob("*/cp/*"))  # it gets its name once it listens

    tasks = "- ansible.builtin.ping:\n- ansible.builtin.ping:"
    (result,) = converge(playbook(tasks), ssh_fleet[1], AnsibleOptions(), on_event=look)
    assert result.outcome == "ok", result
    assert len(kept) == 1


def test_an_interrupted_run_keeps_no_ssh_connection(ssh_fleet: tuple[Sshd, Fleet]) -> None:
    def press(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        converge(playbook(f"- ansible.builtin.ping:\n{SLEPT_THERE}"), ssh_fleet[1], AnsibleOptions(), on_event=press)


def test_a_host_with_an_unknown_key_is_not_trusted(ssh_fleet: tuple[Sshd, Fleet]) -> None:
    server, on = ssh_fleet
    server.known_hosts.write_text("")
    (result,) = converge(playbook("- ansible.builtin.ping:"), on, AnsibleOptions())
    assert result.outcome == "unreachable"
    assert result.failure
    assert result.failure.message.endswith("Host key verification failed.")


def test_what_a_rescue_mended_is_no_failure() -> None:
    tasks = """
- block: [{ansible.builtin.fail: {msg: broken}}]
  rescue: [{ansible.builtin.debug: {msg: mended}}]
"""
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions())
    assert (result.outcome, result.failure) == ("ok", None)


def test_an_ignored_error_is_no_failure() -> None:
    assert run("- ansible.builtin.fail: {msg: broken}\n  ignore_errors: true") == ("ok",)


def test_the_role_is_part_of_the_name_of_the_task() -> None:
    tasks = Path("roles/pump/tasks")
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text("- name: Prime\n  ansible.builtin.fail: {msg: dry}\n")
    (result,) = converge(playbook("- ansible.builtin.include_role: {name: pump}"), fleet("h1"), AnsibleOptions())
    assert result.failure
    assert (result.failure.task, result.failure.role, result.failure.message) == ("pump : Prime", "pump", "dry")


def test_a_loop_names_the_item_that_failed() -> None:
    tasks = "- ansible.builtin.command: sh -c 'test {{ item }} != b || { echo no b >&2; exit 1; }'\n  loop: [a, b, c]"
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions())
    assert result.failure
    assert result.failure.item == "b"
    assert result.failure.message.endswith("non-zero return code: no b")


def test_a_task_after_a_loop_does_not_inherit_its_item() -> None:
    tasks = """
- ansible.builtin.command: sh -c 'exit 1'
  loop: [a]
  ignore_errors: true
- ansible.builtin.fail: {msg: the second}
"""
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions())
    assert result.failure
    assert (result.failure.item, result.failure.message) == ("", "the second")


def test_an_assertion_says_what_was_not_so() -> None:
    (message,) = run("- ansible.builtin.assert: {that: [1 == 2]}")
    assert message == "not so: 1 == 2"


def test_a_host_without_python_says_so() -> None:
    on = fleet("h1", extra="ansible_python_interpreter=/nonexistent/python3")
    (message,) = run("- ansible.builtin.ping:", on)
    assert "/nonexistent/python3" in message


def test_terminal_escapes_of_a_host_do_not_get_through() -> None:
    (message,) = run("- ansible.builtin.command: printf 'a\\033]0;owned\\007b' \n  failed_when: true")
    assert message.isprintable()
    (message,) = run('- ansible.builtin.fail: {msg: "a\\e[31mred"}')
    assert message == "a\\x1b[31mred"


def test_no_log_hides_what_a_failed_task_said() -> None:
    events: list[Progress] = []
    tasks = f"- ansible.builtin.command: sh -c 'echo {SECRET} >&2; exit 1'\n  no_log: true"
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions(verbosity=3, diff=True), on_event=events.append)
    assert result.failure
    assert "no_log" in result.failure.message
    assert SECRET not in repr([e for e in events if "play.yml" not in e.text])


def test_no_log_hides_the_item_of_a_loop() -> None:
    tasks = f"- ansible.builtin.fail: {{msg: '{{{{ item }}}}'}}\n  loop: [{SECRET}]\n  no_log: true"
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions())
    assert result.failure
    assert SECRET not in repr(result)


def test_a_playbook_with_a_syntax_error_is_an_error_with_its_line() -> None:
    with pytest.raises(ConvergeError, match=r"play\.yml:4:\d+: .*(conflicting action|unknown|no module)"):
        run("- ansible.builtin.debug: {msg: a}\n  ansible.builtin.command: 'true'")


def test_a_playbook_that_is_not_yaml_is_an_error_with_its_line() -> None:
    on = fleet("h1")
    Path("play.yml").write_text("- hosts: kvm_hosts\n  tasks:\n   - x: [\n")
    with pytest.raises(ConvergeError, match=r"play\.yml:4"):
        converge("play.yml", on, AnsibleOptions())


def test_a_missing_playbook_is_an_error() -> None:
    with pytest.raises(ConvergeError, match=r"nowhere\.yml: no such file"):
        converge("nowhere.yml", fleet("h1"), AnsibleOptions())


def test_a_playbook_for_nobody_of_the_fleet_leaves_all_skipped() -> None:
    on = fleet("h1")
    Path("play.yml").write_text("- hosts: no_such_group\n  tasks: []\n")
    assert [r.outcome for r in converge("play.yml", on, AnsibleOptions())] == ["skipped"]


def test_an_error_of_the_listener_is_not_taken_for_a_full_disk() -> None:
    def gone(_: Progress) -> None:
        raise BrokenPipeError("whoever read the progress has left")

    with pytest.raises(BrokenPipeError):
        converge(playbook("- ansible.builtin.debug: {msg: hello}"), fleet("h1"), AnsibleOptions(), on_event=gone)


def test_a_full_disk_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")  # takes no folder, as a full disk does
    with pytest.raises(ConvergeError, match="/proc/self: "):
        run("- ansible.builtin.ping:")


def test_check_mode_changes_nothing_and_diff_shows_what_would_change() -> None:
    events: list[Progress] = []
    tasks = '- ansible.builtin.copy: {dest: \'{{ lookup("env", "HOME") }}/new\', content: "line one\\n"}'
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions(check=True, diff=True), on_event=events.append)
    assert result.changed == 1
    assert not Path("new").exists()
    assert any("+line one" in e.text.splitlines() for e in events if e.outcome == "text")


def test_tags_choose_tasks() -> None:
    tasks = "- ansible.builtin.debug: {msg: a}\n  tags: a\n- ansible.builtin.debug: {msg: b}\n  tags: b"
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions(tags=("a",)))
    assert result.ok == 1
    (result,) = converge(playbook(tasks), fleet("h1"), AnsibleOptions(skip_tags=("a", "b")))
    assert result.ok == 0


def test_extra_variables_come_in_the_users_order_and_intents_come_last() -> None:
    Path("more.yml").write_text("who: file\n")
    tasks = """
- ansible.builtin.fail: {msg: "{{ who }} {{ kvmfleet_intents[inventory_hostname] }}"}
"""
    options = AnsibleOptions(extra_vars=("who=word", "@more.yml", '{"kvmfleet_intents": {}}'))
    (result,) = converge(playbook(tasks), fleet("h1"), options, intents={"h1": "abc", "other": "def"})
    assert result.failure
    assert result.failure.message == "file abc"


def test_the_live_view_hears_of_every_task_and_host() -> None:
    events: list[Progress] = []
    tasks = "- name: One\n  ansible.builtin.debug: {msg: a}\n- name: Two\n  ansible.builtin.command: 'true'"
    converge(playbook(tasks), fleet("h1", "h2"), AnsibleOptions(), on_event=events.append)
    assert [e.task for e in events if e.outcome == "task"] == ["One", "Two"]
    assert [(e.outcome, e.done) for e in events if e.host == "h2"] == [
        ("start", 0), ("ok", 1), ("start", 1), ("changed", 2),
    ]  # fmt: skip


def test_the_users_ansible_cfg_and_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("filter_plugins").mkdir()
    Path("filter_plugins/loud.py").write_text(
        "class FilterModule:\n    def filters(self):\n        return {'loud': str.upper}\n"
    )
    Path("ansible.cfg").write_text("[defaults]\nfilter_plugins = filter_plugins\n")
    monkeypatch.setenv("WHO", "env")
    assert run("- ansible.builtin.fail: {msg: \"{{ lookup('env', 'WHO') | loud }}\"}") == ("ENV",)


@pytest.mark.parametrize("checking", [True, False])
def test_host_keys_are_checked_unless_the_user_said_otherwise(checking: bool) -> None:
    on = fleet("h1", settings=Settings(host_key_checking=checking))
    (message,) = run("- ansible.builtin.fail: {msg: \"{{ lookup('config', 'HOST_KEY_CHECKING') | string }}\"}", on)
    assert message == str(checking)


def test_passwords_are_in_no_argument_and_in_no_environment() -> None:
    seen: list[bool] = []

    def look(progress: Progress) -> None:
        if progress.outcome == "start":
            seen.append(bool(processes_with("ansible-playbook")) and not processes_with(SECRET))
            Path(f"seen{len(seen)}").touch()

    tasks = "".join(
        f"- ansible.builtin.wait_for: {{path: {Path(f'seen{number}').absolute()}, sleep: 1}}\n" for number in (1, 2)
    )
    secrets = Secrets(connection=SECRET, become=SECRET)
    converge(playbook(tasks), fleet("h1"), AnsibleOptions(), secrets=secrets, on_event=look)
    assert seen == [True, True]


def holds_the_secret(path: Path) -> bool:
    """Ansible writes and renames while we look."""
    try:
        return path.is_file() and SECRET in path.read_text(errors="replace")
    except FileNotFoundError:
        return False


def test_passwords_leave_the_disk_once_ansible_has_read_them(place: Path) -> None:
    held: list[bool] = []

    def look(progress: Progress) -> None:
        if progress.outcome == "start":
            held.append(any(holds_the_secret(path) for path in place.rglob("*")))

    secrets = Secrets(connection=SECRET, become=SECRET)
    converge(
        playbook("- ansible.builtin.command: sleep 1"), fleet("h1"), AnsibleOptions(), secrets=secrets, on_event=look
    )
    assert held == [False]


def test_a_password_that_was_typed_reaches_the_become_plugin() -> None:
    on = fleet("h1")
    Path("become_plugins").mkdir()
    Path("become_plugins/ours.py").write_text(OURS)
    Path("ansible.cfg").write_text(
        "[defaults]\nbecome_plugins = become_plugins\n[privilege_escalation]\nbecome_allow_same_user = true\n"
    )
    name = playbook("- ansible.builtin.command: 'true'\n  become: true\n  become_method: ours")
    (result,) = converge(name, on, AnsibleOptions(), secrets=Secrets(become="open sesame"))
    assert result.outcome == "ok"
    assert Path("heard").read_text() == "open sesame"


OURS = '''
import os

from ansible.plugins.become import BecomeBase

DOCUMENTATION = """
name: ours
short_description: writes down the password that it was given
options:
  become_user: {description: user, default: root, keyword: [{name: become_user}]}
  become_exe: {description: exe, default: "", keyword: [{name: become_exe}]}
  become_flags: {description: flags, default: "", keyword: [{name: become_flags}]}
  become_pass: {description: password, required: false, vars: [{name: ansible_become_password}]}
"""


class BecomeModule(BecomeBase):
    name = "ours"

    def build_become_command(self, cmd, shell):
        open(os.path.expanduser("~/heard"), "w").write(self.get_option("become_pass") or "")
        return cmd
'''


def test_the_environment_is_not_left_in_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_TOKEN", SECRET)
    held: list[str] = []

    def look(progress: Progress) -> None:
        held.extend(str(path) for path in place.rglob("*") if holds_the_secret(path))

    converge(playbook("- ansible.builtin.debug: {msg: a}"), fleet("h1"), AnsibleOptions(), on_event=look)
    assert held == []


def test_everybody_else_is_kept_out_of_the_folder_of_a_run(place: Path) -> None:
    modes: set[int] = set()

    def look(progress: Progress) -> None:
        modes.update(folder.stat().st_mode & 0o777 for folder in place.iterdir())

    converge(playbook("- ansible.builtin.debug: {msg: a}"), fleet("h1"), AnsibleOptions(), on_event=look)
    assert modes == {0o700}


def test_cancelling_ends_ansible_its_workers_and_what_they_started() -> None:
    asleep = threading.Event()

    def cancelled() -> bool:
        if processes_with(ASLEEP):
            asleep.set()
        return asleep.is_set()

    began = time.monotonic()
    with pytest.raises(Interrupted):
        converge(playbook(SLEEP), fleet("h1", "h2"), AnsibleOptions(), cancelled=cancelled)
    assert time.monotonic() - began < 97, "they slept to their end"
    assert processes_with(ASLEEP) == []


def test_ctrl_c_becomes_interrupted_and_leaves_nothing() -> None:
    def press(progress: Progress) -> None:
        if progress.outcome == "start":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        converge(playbook(SLEEP), fleet("h1"), AnsibleOptions(), on_event=press)
    assert processes_with(ASLEEP) == []
    assert "stays done" in caught.value.hint, "whoever pressed it wants to know how the hosts were left"


def test_cancelling_before_ansible_has_started_leaves_nothing() -> None:
    with pytest.raises(Interrupted):
        converge(playbook(SLEEP), fleet("h1"), AnsibleOptions(), cancelled=lambda: True)


def test_a_broken_display_ends_the_run_and_is_heard_of() -> None:
    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        converge(playbook(SLEEP), fleet("h1"), AnsibleOptions(), on_event=broken)


KILLED = """
import os, sys
from pathlib import Path
from orchestrator.converge import converge
from orchestrator.inventory import AnsibleOptions, Fleet, Host
on = Fleet(hosts=(Host(name="h1", address="h1", connection="local"),), sources=("hosts.ini",))
converge(str(Path("play.yml").absolute()), on, AnsibleOptions())
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is not installed")
def test_a_run_whose_kvmfleet_was_killed_works_on_no_host_any_more(place: Path) -> None:
    fleet("h1")
    playbook(SLEEP)
    folder = place / "theirs"
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environment) as killed:
        until(lambda: processes_with(ASLEEP))
        killed.kill()
    until(lambda: not processes_with(str(folder)))
    shutil.rmtree(folder)


def test_a_daemon_that_a_task_started_outlives_the_run(tmp_path: Path) -> None:
    tasks = "- ansible.builtin.shell: (setsid sleep 96.5 > /dev/null 2>&1 < /dev/null & echo $! > pid)"
    converge(playbook(tasks), fleet("h1"), AnsibleOptions())
    pid = int((tmp_path / "pid").read_text())
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill(pid, 9)
    time.sleep(0.1)
    assert b"96.5" in command
