"""Runs one playbook on one set of hosts; the only module that imports ansible_runner.

Everything that Ansible writes while it runs lies in one folder that only we can read, and goes with the run: ours and
its temporary files, the sockets of its ssh connections, and what ansible-runner would keep as artifacts.
"""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from orchestrator import paths, processes, scratch
from orchestrator.ansible_read import program
from orchestrator.errors import ConvergeError, Interrupted
from orchestrator.inventory import AnsibleOptions, Fleet, Secrets
from orchestrator.model.run import HostConverged
from orchestrator.tally import Progress, Tally
from orchestrator.text import printable

__all__ = ["Progress", "converge"]

FORKS_PER_CPU = 4
TICK_S = 0.2
PATIENCE_S = 10.0
COLLECTION = "kvmfleet/host"  # galaxy.yml
# A host that went silent in the middle of a task, as a reboot can leave it, ends the task after two minutes. Without
# these ssh would wait for ever, as nothing is sent that could go unanswered.
SILENCE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=8"
LONGEST_TEMPORARY = 46  # a socket's path has room for 108 bytes, and ssh adds 40 to its own


def converge(
    playbook: str,
    fleet: Fleet,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
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
    tally = Tally(host.name for host in fleet.hosts)
    with _folder(fleet, secrets, intents) as folder:
        command = [*_arguments(folder, fleet, options, secrets), _playbook(playbook)]
        run = _Run(folder, command, _environment(folder, fleet))
        try:
            for event in run.events(cancelled):
                for progress in tally.count(event, options):
                    if on_event:
                        on_event(progress)
                _forget_secrets(folder, event)
        except KeyboardInterrupt as e:
            raise _interrupted() from e
        finally:
            run.stop()
            _end_connections(folder)
    return tally.results(run.status)


@contextmanager
def _folder(fleet: Fleet, secrets: Secrets, intents: Mapping[str, str]) -> Iterator[Path]:
    """The folder of a run with its inputs. What is raised while it is used is not about the folder, and passes."""
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY else "/tmp"
    with ExitStack() as stack:
        with _wanting_room(place):
            folder = stack.enter_context(scratch.folder(place))
            _write_inputs(folder, fleet, secrets, intents)
            _offer_collection(folder)
        yield folder


@contextmanager
def _wanting_room(place: str) -> Iterator[None]:
    try:
        yield
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


def _offer_collection(folder: Path) -> None:
    """Our modules and filters have full names, which Ansible looks up in folders of this form only."""
    place = folder / "collections" / "ansible_collections" / COLLECTION
    place.parent.mkdir(parents=True)
    place.symlink_to(paths.content())


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
        _limit(folder),
        f"--forks={forks}",
        *(flag for flag, wanted in flags.items() if wanted),
        *(f"{name}={value}" for name, value in values.items() if value),
        *(f"--vault-password-file={file}" for file in options.vault_password_files),
        *(f"--vault-id={vault_id}" for vault_id in options.vault_ids),
        *(["-" + "v" * options.verbosity] if options.verbosity else []),
        *(f"--extra-vars={extra}" for extra in options.extra_vars),
        f"--extra-vars=@{folder / 'vars'}",
    ]


def _limit(folder: Path) -> str:
    """An argument that only the processes of this run have."""
    return f"--limit=@{folder / 'limit'}"


def _environment(folder: Path, fleet: Fleet) -> dict[str, str]:
    """What we set on top of the caller's environment. Where the user's ansible.cfg has an answer, it wins."""
    settings, content = fleet.settings, paths.content()
    return {
        "ANSIBLE_ROLES_PATH": ":".join([str(content / "roles"), *settings.roles_path]),
        "ANSIBLE_COLLECTIONS_PATH": ":".join([str(folder / "collections"), *settings.collections_path]),
        "ANSIBLE_PIPELINING": str(settings.pipelining is not False),
        "ANSIBLE_PYTHON_INTERPRETER": settings.interpreter or "auto_silent",
        # ansible-runner turns checking off unless it is told otherwise here.
        "ANSIBLE_HOST_KEY_CHECKING": str(settings.host_key_checking),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        # The user's own, which come before, win.
        "ANSIBLE_SSH_EXTRA_ARGS": f"{settings.ssh_extra_args} {SILENCE}".strip(),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "KVMFLEET_STATE_DIR": str(paths.state().absolute()),  # the role libvirt_remote finds the CA there
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
        # Else a host sets variables of the inventory, inventory_hostname too, with the facts that any module may bring.
        "ANSIBLE_INJECT_FACT_VARS": "False",
        # Nobody is at the terminal that ansible-runner makes: a question would wait for ever.
        "ANSIBLE_ASK_PASS": "False",
        "ANSIBLE_BECOME_ASK_PASS": "False",
        "ANSIBLE_ASK_VAULT_PASS": "False",
        "ANSIBLE_FORCE_COLOR": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_NOCOWS": "True",
    }


def _mortal() -> tuple[str, ...]:
    """Words before a command that end it when the thread that started it is killed with us, as by kill -9.

    Our locks on its hosts go with us, and the next run must not meet it there. ansible-runner lets it ignore SIGHUP.
    """
    setpriv = shutil.which("setpriv")  # of util-linux
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()


class _Run:
    """ansible-playbook in a thread of its own, as ansible-runner pumps its output in the thread that calls it.

    The caller's thread stays free to draw, to hear Ctrl-C, and to end the run in an orderly way.
    """

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self._folder = folder
        self._command = command
        self._environment = environment
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._killed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ansible-runner", daemon=True)
        self._problem: Exception | None = None
        self.status = -1

    def events(self, cancelled: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
        self._thread.start()
        while True:
            if cancelled and cancelled():
                raise _interrupted()
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
        """Ends what still runs, or is about to. A second Ctrl-C while Ansible is asked to end makes it a kill.

        Ansible may fork a worker in the moment in which it ends, so the run is over when a look finds none.
        """
        try:
            while (ours := self._processes()) or self._thread.is_alive():
                processes.end(ours)
                if self._thread.is_alive():
                    self._thread.join(TICK_S)
        except KeyboardInterrupt:
            processes.end(self._processes(), term_s=0)
            raise
        finally:
            self._killed.set()
            if self._thread.is_alive():
                self._thread.join(PATIENCE_S)

    def _processes(self) -> list[int]:
        return processes.running(_limit(self._folder))

    def _work(self) -> None:
        try:
            import ansible_runner

            command = [*_mortal(), program("ansible-playbook"), *self._command]
            runner = ansible_runner.run(
                private_data_dir=str(self._folder),
                project_dir=os.getcwd(),
                binary=command[0],
                cmdline=shlex.join(command[1:]),
                envvars=self._environment,
                settings={"pexpect_timeout": 0.5, "suppress_output_file": True},
                fact_cache_type="",  # anything but its "jsonfile" leaves the user's own cache alone
                quiet=True,
                event_handler=self._hear,
                status_handler=self._scrub,
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

    @staticmethod
    def _scrub(status: Mapping[str, Any], runner_config: Any) -> None:
        """Removes the dump of the whole environment that ansible-runner makes before it starts anything."""
        if status["status"] == "running":
            Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)


def _interrupted() -> Interrupted:
    return Interrupted("interrupted while Ansible ran", hint="Start it again: what is done stays done.")


def _end_connections(folder: Path) -> None:
    """Ends the ssh processes that Ansible keeps in the background for a minute."""
    for socket in (folder / "cp").glob("*"):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "kvmfleet"],
                capture_output=True,
                check=False,
                timeout=5,
            )
