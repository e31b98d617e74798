"""Runs one playbook on one set of hosts; the only module that imports ansible_runner.

Everything that Ansible writes while it runs lies in one folder that only we can read, and goes with the run: ours and
its temporary files, the sockets of its ssh connections, and what ansible-runner would keep as artifacts.
"""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator import failure, paths, processes
from orchestrator.ansible_read import explain, program
from orchestrator.errors import ConvergeError, Interrupted
from orchestrator.inventory import AnsibleOptions, Fleet, Secrets
from orchestrator.model import HostConverged, TaskFailure
from orchestrator.text import printable, printable_lines

__all__ = ["Progress", "converge"]

MARKER = "KVMFLEET_RUN"  # in the environment of every process of a run
FORKS_PER_CPU = 4
TICK_S = 0.2
PATIENCE_S = 10.0
LONGEST_TEMPORARY = 50  # a socket's path has room for 108 bytes, and ssh adds 40 to its own
KEPT_LINES = 400

Outcome = Literal["task", "start", "ok", "changed", "skipped", "failed", "ignored", "unreachable", "text"]


class Progress(msgspec.Struct, frozen=True):
    """One step of a run, for whoever draws it: a task began, a host finished it, or Ansible had something to say."""

    outcome: Outcome
    task: str = ""  # "role : task"
    host: str = ""  # "" when a task begins
    done: int = 0  # tasks that this host has finished, skipped ones among them
    text: str = ""  # why a task failed; a diff (-D) or details (-v) with their line breaks


def converge(
    playbook: str,
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    intents: Mapping[str, str] = {},
    on_event: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[HostConverged, ...]:
    """What `playbook` did to each host of the fleet, in the fleet's order. A host that fails is a value.

    `playbook` is a path, or the name of one of ours in playbooks/.

    Raises:
        ConvergeError: Ansible could not run the playbook at all.
        Interrupted: by KeyboardInterrupt or because `cancelled` said so; nothing of the run is left.
    """
    tally = _Tally(fleet)
    with _folder() as folder:
        _write_inputs(folder, fleet, secrets, intents)
        command = [*_arguments(folder, fleet, options, secrets), _playbook(playbook)]
        run = _Run(folder, command, _environment(folder, fleet))
        try:
            for event in run.events(cancelled):
                for progress in tally.count(event, options):
                    if on_event:
                        on_event(progress)
                _forget_secrets(folder, event)
        except KeyboardInterrupt as e:
            raise Interrupted("interrupted while converging") from e
        finally:
            run.stop()
            _end_connections(folder)
    return tally.results(run.status)


@contextmanager
def _folder() -> Iterator[Path]:
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY else "/tmp"
    try:
        with tempfile.TemporaryDirectory(prefix="kvmfleet-", dir=place, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as e:
        raise ConvergeError(
            f"{place}: {e.strerror}", hint="Ansible needs room for its files there; TMPDIR names another folder."
        ) from e


def _playbook(name: str) -> str:
    ours = paths.content() / "playbooks" / name
    path = ours if ours.exists() else Path(name).absolute()
    if not path.is_file():
        raise ConvergeError(f"playbook {name}: no such file", hint="Name a playbook by its path.")
    return str(path)


def _write_inputs(folder: Path, fleet: Fleet, secrets: Secrets, intents: Mapping[str, str]) -> None:
    """What has no place in argv, where every user of this machine can read it, or is too long for it."""
    wanted = {host.name: intents[host.name] for host in fleet.hosts if host.name in intents}
    inputs = {
        "limit": "".join(f"{host.name}\n" for host in fleet.hosts),
        "vars": msgspec.json.encode({"kvmfleet_intents": wanted}).decode(),
        "connection": secrets.connection,
        "become": secrets.become,
    }
    for name, content in inputs.items():
        if content:
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(content, encoding="utf-8")


def _forget_secrets(folder: Path, event: Mapping[str, Any]) -> None:
    """Ansible has read the passwords by the time it starts the playbook."""
    if event.get("event") == "playbook_on_start":
        for name in ("connection", "become"):
            (folder / name).unlink(missing_ok=True)


def _arguments(folder: Path, fleet: Fleet, options: AnsibleOptions, secrets: Secrets) -> list[str]:
    """The user's -e go as they came: they are in our own argv already, and only Ansible knows how to read them."""
    forks = options.forks or fleet.settings.forks or min(len(fleet.hosts), FORKS_PER_CPU * (os.cpu_count() or 1))
    flags = {"--check": options.check, "--diff": options.diff, "--become": options.become}
    values = {
        "--user": options.user,
        "--private-key": options.private_key,
        "--timeout": options.timeout_s,
        "--tags": ",".join(options.tags),
        "--skip-tags": ",".join(options.skip_tags),
        "--connection-password-file": secrets.connection and folder / "connection",
        "--become-password-file": secrets.become and folder / "become",
    }
    return [
        *(f"--inventory={source}" for source in fleet.sources),
        f"--limit=@{folder / 'limit'}",
        f"--forks={forks}",
        *(flag for flag, wanted in flags.items() if wanted),
        *(f"{name}={value}" for name, value in values.items() if value),
        *(f"--vault-password-file={file}" for file in options.vault_password_files),
        *(f"--vault-id={vault_id}" for vault_id in options.vault_ids),
        *(["-" + "v" * options.verbosity] if options.verbosity else []),
        *(f"--extra-vars={extra}" for extra in options.extra_vars),
        f"--extra-vars=@{folder / 'vars'}",
    ]


def _environment(folder: Path, fleet: Fleet) -> dict[str, str]:
    """What we set on top of the caller's environment. Where the user's ansible.cfg has an answer, it wins."""
    settings, content = fleet.settings, paths.content()
    return {
        MARKER: str(folder),
        "ANSIBLE_ROLES_PATH": ":".join([str(content / "roles"), *settings.roles_path]),
        "ANSIBLE_LIBRARY": ":".join([str(content / "plugins" / "modules"), *settings.library]),
        "ANSIBLE_PIPELINING": str(settings.pipelining is not False),
        "ANSIBLE_PYTHON_INTERPRETER": settings.interpreter or "auto_silent",
        # ansible-runner turns checking off unless it is told otherwise here.
        "ANSIBLE_HOST_KEY_CHECKING": str(settings.host_key_checking),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        # Nobody is at the terminal that ansible-runner makes: a question would wait for ever.
        "ANSIBLE_ASK_PASS": "False",
        "ANSIBLE_BECOME_ASK_PASS": "False",
        "ANSIBLE_ASK_VAULT_PASS": "False",
        "ANSIBLE_FORCE_COLOR": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_NOCOWS": "True",
    }


class _Run:
    """ansible-playbook in a thread of its own, as ansible-runner pumps its output in the thread that calls it.

    The caller's thread stays free to draw, to hear Ctrl-C, and to end the run in an orderly way.
    """

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self._folder = folder
        self._command = command
        self._environment = environment
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._killed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ansible-runner", daemon=True)
        self._problem: Exception | None = None
        self.status = -1

    def events(self, cancelled: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
        self._thread.start()
        while True:
            if cancelled and cancelled():
                raise Interrupted("interrupted while converging")
            try:
                event = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if event is None:
                break
            yield event
        if self._problem:
            raise ConvergeError(f"Ansible could not be run: {printable(str(self._problem))}") from self._problem

    def stop(self) -> None:
        """Ends what still runs. A second Ctrl-C while Ansible is asked to end makes it a kill."""
        self._stopping.set()
        try:
            while self._thread.is_alive():
                processes.end(processes.children(os.getpid(), str(self._folder)))
                self._thread.join(TICK_S)
        finally:
            self._killed.set()
            if self._thread.is_alive():
                self._thread.join(PATIENCE_S)

    def _work(self) -> None:
        try:
            import ansible_runner

            runner = ansible_runner.run(
                private_data_dir=str(self._folder),
                project_dir=os.getcwd(),
                binary=program("ansible-playbook"),
                cmdline=shlex.join(self._command),
                envvars=self._environment,
                settings={"pexpect_timeout": 0.5, "suppress_output_file": True},
                fact_cache_type="",  # anything but its "jsonfile" leaves the user's own cache alone
                quiet=True,
                event_handler=self._hear,
                status_handler=self._about_to_start,
                cancel_callback=self._killed.is_set,
            )
            self.status = runner.rc
        except Exception as e:
            self._problem = e
        finally:
            self._queue.put(None)

    def _hear(self, event: dict[str, Any]) -> bool:
        """Only passes on: what raises here ends the run, and what is slow here becomes a time-out. False: keep none."""
        self._queue.put(event)
        return False

    def _about_to_start(self, status: Mapping[str, Any], runner_config: Any) -> None:
        """The last moment before there is a process: removes the dump that was made of the whole environment."""
        if status["status"] == "running":
            Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)
            if self._stopping.is_set():
                raise Interrupted("interrupted before Ansible started")


def _end_connections(folder: Path) -> None:
    """Ends the ssh processes that Ansible keeps in the background for a minute."""
    for socket in (folder / "cp").glob("*"):
        subprocess.run(
            ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "kvmfleet"],
            capture_output=True,
            check=False,
            timeout=5,
        )


class _Counts(msgspec.Struct):
    ok: int = 0
    changed: int = 0
    skipped: int = 0
    failed: int = 0
    unreachable: bool = False
    failure: TaskFailure | None = None


_HOST_EVENTS: Mapping[str, Outcome] = {
    "runner_on_start": "start",
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}


class _Tally:
    """Counts for itself: ansible-runner has no statistics when its events are not kept, or when the run was ended."""

    def __init__(self, fleet: Fleet) -> None:
        self._hosts = {host.name: _Counts() for host in fleet.hosts}
        self._lines: list[str] = []
        self._finished = False

    def count(self, event: Mapping[str, Any], options: AnsibleOptions) -> Iterator[Progress]:
        name, data = event.get("event", ""), event.get("event_data") or {}
        text = event.get("stdout") or ""
        if name == "playbook_on_task_start":
            yield Progress("task", task=_title(data))
        elif name == "playbook_on_stats":
            self._settle(data)
        elif name in _HOST_EVENTS and data.get("host") in self._hosts:
            yield self._step(_HOST_EVENTS[name], data)
        elif name in {"verbose", "error", "warning", "deprecated", "system_warning"}:
            self._lines = [*self._lines[-KEPT_LINES:], text]
        if text and (options.verbosity or (options.diff and name == "runner_on_file_diff")):
            yield Progress("text", task=_title(data), host=data.get("host", ""), text=printable_lines(text))

    def _step(self, outcome: Outcome, data: Mapping[str, Any]) -> Progress:
        counts, result, why = self._hosts[data["host"]], data.get("res") or {}, ""
        if outcome == "failed" and data.get("ignore_errors"):
            outcome = "ignored"
        elif outcome == "ok" and result.get("changed"):
            outcome = "changed"
        counts.ok += outcome in {"ok", "changed", "ignored"}
        counts.changed += outcome == "changed"
        counts.skipped += outcome == "skipped"
        counts.failed += outcome == "failed"
        counts.unreachable |= outcome == "unreachable"
        if outcome in {"failed", "unreachable"}:
            why = failure.message(result)
            role = data.get("role", "")
            counts.failure = TaskFailure(task=_title(data), message=why, role=role, item=failure.item(result))
        done = counts.ok + counts.skipped + counts.failed
        return Progress(outcome, task=_title(data), host=data["host"], done=done, text=why)

    def _settle(self, data: Mapping[str, Any]) -> None:
        """Ansible's own totals are right where events are not: it knows what a `rescue` has mended."""
        self._finished = True
        for host, counts in self._hosts.items():
            counts.ok, counts.changed = data["ok"].get(host, 0), data["changed"].get(host, 0)
            counts.skipped, counts.failed = data["skipped"].get(host, 0), data["failures"].get(host, 0)
            counts.unreachable = bool(data["dark"].get(host))
            if not counts.failed and not counts.unreachable:
                counts.failure = None

    def results(self, status: int) -> tuple[HostConverged, ...]:
        """One for each host. Raises ConvergeError when the playbook ended for a reason that is no host's."""
        results = tuple(_result(host, counts) for host, counts in self._hosts.items())
        if not self._finished or (status and not any(r.outcome in {"failed", "unreachable"} for r in results)):
            reason, position = explain("\n".join(self._lines))
            where = f"{position}: " if position else ""
            raise ConvergeError(
                f"{where}{reason or f'Ansible ended with status {status} and gave no reason'}",
                hint="Nothing is known about the hosts of this run. Run it again with -vvv to see more.",
            )
        return results


def _result(host: str, counts: _Counts) -> HostConverged:
    outcome: Literal["ok", "failed", "unreachable", "skipped"] = "ok" if counts.ok or counts.skipped else "skipped"
    if counts.unreachable:
        outcome = "unreachable"
    elif counts.failed:
        outcome = "failed"
    return HostConverged(
        host=host,
        outcome=outcome,
        ok=counts.ok,
        changed=counts.changed,
        skipped=counts.skipped,
        failed=counts.failed,
        failure=counts.failure,
    )


def _title(data: Mapping[str, Any]) -> str:
    task = printable(str(data.get("task") or data.get("name") or ""), 200)
    role = printable(str(data.get("role") or ""), 100)
    return f"{role} : {task}" if role and not task.startswith(f"{role} : ") else task
