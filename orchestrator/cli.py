"""The command line: arguments, printing and exit codes. Nothing else in this package prints or exits.

Heavy modules are imported inside the commands that need them, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import difflib
import functools
import getpass
import locale
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from orchestrator import __version__
from orchestrator.errors import KvmfleetError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console

    from orchestrator.inventory import AnsibleOptions, Fleet, Secrets
    from orchestrator.model import Boot, HostResult
    from orchestrator.report.progress import Board, Steps
    from orchestrator.rollout import Run

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": None}
DEPTHS = ("none", "proof", "firmware", "uefi", "alpine")


# -- options shared by commands -------------------------------------------------------------------------------------


def _apply(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator out of several, in the order in which --help should list them."""
    return lambda function: functools.reduce(lambda f, decorate: decorate(f), reversed(decorators), function)


connection_options = _apply(
    click.option(
        "-i",
        "--inventory",
        multiple=True,
        metavar="PATH",
        help="Inventory: a file, a folder, a script, or a comma-separated list of hosts. May be repeated.",
    ),
    click.option("-l", "--limit", default="", metavar="PATTERN", help="Only the hosts that match this pattern."),
    click.option(
        "-e", "--extra-vars", multiple=True, metavar="VARS", help="Variables: key=value, JSON, YAML or @file."
    ),
    click.option("-f", "--forks", type=click.IntRange(1, 10000), help="How many hosts at a time."),
    click.option("-u", "--user", default="", metavar="NAME", help="Log in as this user."),
    click.option("--private-key", "--key-file", default="", metavar="FILE", help="Log in with this key."),
    click.option(
        "-T", "--timeout", "timeout_s", type=click.IntRange(1, 3600), help="Seconds to wait for a connection."
    ),
    click.option("-b", "--become", is_flag=True, help="Become root on the hosts (the default of the playbooks)."),
    click.option("-k", "--ask-pass", is_flag=True, help="Ask for the login password."),
    click.option("-K", "--ask-become-pass", is_flag=True, help="Ask for the password of sudo."),
    click.option(
        "--vault-password-file", "--vault-pass-file", multiple=True, metavar="FILE", help="Holds the vault password."
    ),
    click.option("--vault-id", multiple=True, metavar="LABEL@SOURCE", help="Vault identity; SOURCE is a file."),
    click.option("-v", "--verbose", count=True, help="Say more: every finding, what Ansible says; -vvv all of it."),
)

playbook_options = _apply(
    click.option("-t", "--tags", multiple=True, metavar="TAGS", help="Only tasks with these tags."),
    click.option("--skip-tags", multiple=True, metavar="TAGS", help="All but the tasks with these tags."),
    click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change."),
    click.option("-D", "--diff", is_flag=True, help="Show the changes in files."),
)

report_options = _apply(
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON; nothing else on stdout."),
    click.option(
        "--junit", type=click.Path(dir_okay=False), metavar="FILE", help="Also write the report as JUnit XML."
    ),
    click.option("--strict", is_flag=True, help="Exit 2 for warnings as well."),
)


class _BootType(click.ParamType["Boot"]):
    """A depth, or `file=IMAGE` with an optional `,expect=REGEX` at its end."""

    name = "boot"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(DEPTHS)}|file=IMAGE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Boot:
        from orchestrator.model import Boot

        if isinstance(value, Boot):
            return value
        if value in DEPTHS:
            return Boot(value)
        kind, _, rest = value.partition("=")
        image, _, expect = rest.partition(",expect=")
        if kind != "file":
            self.fail(f"{value!r} is not one of {', '.join(DEPTHS)} and file=IMAGE.", param, ctx)
        if not image.startswith("/"):
            self.fail(f"{image!r} is not an absolute path: the image lies on the host, not here.", param, ctx)
        try:
            re.compile(expect)
        except re.error as e:
            self.fail(f"{expect!r} is not a regular expression: {e}.", param, ctx)
        return Boot("file", image=image, expect=expect)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in (*DEPTHS, "file=") if word.startswith(incomplete)]


boot_option = click.option(
    "--boot",
    type=_BootType(),
    default="firmware",
    show_default=True,
    help="How far the proof goes: no guest (which leaves every host unknown), a few instructions through /dev/kvm, "
    "or a libvirt guest that boots: a boot sector, the shell of UEFI firmware, an unmodified Linux, or IMAGE, a disk "
    "image on the host (file=IMAGE,expect=REGEX waits until its serial line says that).",
)


# -- commands over a fleet ------------------------------------------------------------------------------------------


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kvmfleet")
def cli() -> None:
    """Turn bare Linux machines into KVM hosts, and prove each one by executing a guest on it.

    Exit codes: 0 all good; 2 a check failed; 1 could not determine; 130 interrupted.
    """


@cli.command(short_help="Make the hosts KVM hosts, then prove each one.")
@connection_options
@playbook_options
@boot_option
@report_options
def provision(boot: Boot, as_json: bool, junit: str | None, strict: bool, **given: Any) -> None:
    """Install and configure QEMU/KVM and libvirt on the hosts of the group kvm_hosts, then prove each one."""
    if given["check"] and junit:
        raise UsageError(
            "Check mode proves nothing, so there is no JUnit report.", hint="Leave out --junit or --check."
        )
    options, secrets = _ansible(given)
    _logging(options.verbosity)
    _provision(options, secrets, boot, _Output("provision", as_json, junit, strict, bool(options.verbosity)))


@cli.command(short_help="Prove the hosts as they are; changes nothing.")
@connection_options
@boot_option
@report_options
def validate(boot: Boot, as_json: bool, junit: str | None, strict: bool, **given: Any) -> None:
    """Prove the hosts as they are. Changes nothing; the guest that is booted cleans up after itself."""
    from orchestrator import inventory, rollout

    options, secrets = _ansible(given)
    _logging(options.verbosity)
    output = _Output("validate", as_json, junit, strict, bool(options.verbosity))
    boot = _ready(boot)
    fleet = inventory.load(options)
    with _board(fleet, "validate") as board:
        run = rollout.validate(fleet, options, secrets=secrets, boot=boot, on_event=board.event)
    output.finish(run)


@cli.command(short_help="Take back what was added to the hosts, and nothing else.")
@connection_options
@click.option("-C", "--check", "--dry-run", is_flag=True, help="Change nothing; say what would be taken back.")
@click.option("-D", "--diff", is_flag=True, help="Show the changes in files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON; nothing else on stdout.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def unprovision(as_json: bool, yes: bool, **given: Any) -> None:
    """Take back what was added to the hosts of the group kvm_hosts: packages, files, units, networks, pools.

    Nothing else is touched. Guests' definitions and disks stay, and a host on which guests run is left as it is, unless
    kvmfleet_allow_disruption is true. An interrupted run goes on when it is started again.
    """
    from orchestrator import inventory, rollout

    options, secrets = _ansible(given)
    _logging(options.verbosity)
    fleet = inventory.load(options)
    if not options.check:
        _agree(fleet, yes)
    with _board(fleet, "check mode" if options.check else "unprovision") as board:
        run = rollout.unprovision(fleet, options, secrets=secrets, on_event=board.event)
    _Output("unprovision", as_json, None, False, bool(options.verbosity)).finish_given_back(run, options.check)


def _agree(fleet: Fleet, yes: bool) -> None:
    """Asks before hosts are turned back, and goes on only after a yes."""
    names = [host.name for host in fleet.hosts]
    told = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"Unprovisioning {told} needs a yes, and there is no terminal to ask at.",
            hint="Add --yes, or --dry-run to see what would be taken back.",
        )
    if not click.confirm(f"Turn {told} back into what they were before kvmfleet?", err=True):
        raise UsageError("Nothing was taken back.")


def _provision(options: AnsibleOptions, secrets: Secrets, boot: Boot, output: _Output) -> None:
    """Load, roll out, report: what `provision` and `lab up` share."""
    from orchestrator import inventory, rollout

    boot = boot if options.check else _ready(boot)
    fleet = inventory.load(options)
    with _board(fleet, "check mode" if options.check else "provision") as board:
        run = rollout.provision(fleet, options, secrets=secrets, boot=boot, on_event=board.event)
    if options.check:
        output.finish_pretended(run)
    output.finish(run)


def _ready(boot: Boot) -> Boot:
    """With what it needs from the network: before any host is asked, or changed."""
    if boot.depth != "alpine":
        return boot
    from orchestrator import assets

    with _steps() as progress:
        return assets.alpine(progress)


# -- commands that need no host -------------------------------------------------------------------------------------


def _complete_check(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.checks import catalogue

    return [topic.id for topic in catalogue.topics() if topic.id.startswith(typed)]


@cli.command(short_help="Tell what a check proves, how, and what to do.")
@click.argument("check_id", metavar="CHECK-ID", required=False, shell_complete=_complete_check)
def explain(check_id: str | None) -> None:
    """Tell what a check proves, how, and what to do when it fails. Without CHECK-ID, list all checks."""
    from orchestrator.checks import catalogue
    from orchestrator.report import check as check_report

    if check_id is None:
        width = max(len(topic.id) for topic in catalogue.topics())
        for topic in catalogue.topics():
            click.echo(f"{topic.id:<{width}}  {topic.title}")
        return
    found = catalogue.explain(check_id)
    if found is None:
        near = difflib.get_close_matches(check_id, [topic.id for topic in catalogue.topics()], n=3)
        known = f"Did you mean {' or '.join(near)}?" if near else "`kvmfleet explain` lists all checks."
        raise UsageError(f"There is no check {check_id!a}.", hint=known)
    _console().print(check_report.explanation(found))


@cli.command(short_help="Show every problem of this controller, each with its fix.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def doctor(as_json: bool) -> None:
    """Show every problem of this controller at once, each with its fix."""
    from orchestrator import doctor as surgery

    problems = surgery.problems()
    if as_json:
        _print_json(problems)
    else:
        for problem in problems:
            click.echo(f"{problem.level:<7} {problem.what}\n        {problem.fix}")
        click.echo("No problem found." if not problems else f"{len(problems)} found.")
    if any(problem.level == "error" for problem in problems):
        raise SystemExit(1)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: kvmfleet completion bash > ~/.local/share/bash-completion/completions/kvmfleet
    zsh:  kvmfleet completion zsh > "${fpath[1]}/_kvmfleet"
    fish: kvmfleet completion fish > ~/.config/fish/completions/kvmfleet.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(cli, {}, "kvmfleet", "_KVMFLEET_COMPLETE").source())


# -- the fleet's CA -------------------------------------------------------------------------------------------------


@cli.group()
def pki() -> None:
    """Make and look at the CA of the fleet, and rotate the certificates of its hosts.

    Hosts use them where the role libvirt_remote is told to offer tls; they are issued by `kvmfleet provision`.
    """


@pki.command("init")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Encrypt the CA's key with the first line of this file. Give it to the hosts' runs as the variable "
    "libvirt_remote_ca_passphrase, from a vault.",
)
@click.option("--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long it is valid.")
def pki_init(passphrase_file: str | None, days: int) -> None:
    """Make the CA. Its key stays on this machine, and is the only private key here."""
    from orchestrator import pki as authority
    from orchestrator.report import pki as pki_report

    made = authority.init(passphrase=_first_line(passphrase_file) if passphrase_file else "", days=days)
    _console().print(pki_report.status(made))


@pki.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def pki_status(as_json: bool) -> None:
    """Show the CA, and how long the certificates that it issued are valid. Exits 1 when there is no CA."""
    from orchestrator import pki as authority
    from orchestrator.report import pki as pki_report

    found = authority.status()
    if as_json:
        _print_json(found)
    else:
        _console().print(pki_report.status(found))


@pki.command("rotate", short_help="Give the hosts new keys and certificates now.")
@connection_options
@boot_option
@report_options
def pki_rotate(boot: Boot, as_json: bool, junit: str | None, strict: bool, **given: Any) -> None:
    """Give every host that offers tls a new key and certificate now, then prove each one.

    Nothing else is changed, and daemons read the new ones without a restart.
    """
    import msgspec

    from orchestrator import inventory, rollout

    options, secrets = _ansible(given)
    _logging(options.verbosity)
    output = _Output("pki rotate", as_json, junit, strict, bool(options.verbosity))
    boot = _ready(boot)
    fleet = inventory.load(options)  # before: what follows is no wish of the inventory's, and has no part in its digest
    rotate = msgspec.structs.replace(
        options, tags=("libvirt_remote",), extra_vars=(*options.extra_vars, '{"libvirt_remote_rotate": true}')
    )
    with _board(fleet, "pki rotate") as board:
        run = rollout.provision(fleet, rotate, secrets=secrets, boot=boot, on_event=board.event)
    output.finish(run)


def _first_line(path: str) -> str:
    try:
        line = Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--passphrase-file {path} cannot be read: {e}.") from e
    if not line:
        raise UsageError(f"--passphrase-file {path}: its first line is empty.")
    return line


# -- the lab --------------------------------------------------------------------------------------------------------


def _complete_lab(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab import record

    return [name for name in record.names() if name.startswith(typed)]


def _complete_lab_host(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab import record

    labs = [lab for name in record.names() if (lab := record.read(name))]
    return [host.name for lab in labs for host in lab.hosts if host.name.startswith(typed)]


lab_argument = click.argument("name", metavar="[LAB]", default="lab", shell_complete=_complete_lab)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@cli.group()
def lab() -> None:
    """Make, look at and remove a lab of KVM hosts on this machine."""


@lab.command("up")
@lab_argument
@click.option("--os", "systems", multiple=True, metavar="SYSTEM", help="debian-12 or debian-13; may be repeated.")
@click.option("--hosts", type=int, metavar="N", help="How many hosts. Default: one of each system.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "container", "vm"]),
    default="auto",
    show_default=True,
    help="What the hosts are: QEMU machines with kernels of their own, or systemd-nspawn containers, which need root "
    "and share this machine's kernel. auto: machines where this one executes guests in hardware, otherwise containers "
    "for root, otherwise machines in software.",
)
@click.option("--image", default="", metavar="FILE|URL", help="vm: boot this cloud image (qcow2 or raw, cloud-init).")
@click.option("--sha256", default="", metavar="HEX", help="vm: of the image; needed for a URL.")
@click.option("--memory", "memory_mib", type=click.IntRange(256), metavar="MIB", help="vm: of each host; 2048.")
@click.option("--cpus", type=click.IntRange(1, 256), metavar="N", help="vm: processors of each host; 2.")
@click.option(
    "--accel",
    "accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    help="vm: what executes the hosts: hardware (kvm), software (tcg), or kvm where it works (auto, the default).",
)
@click.option("--bare", is_flag=True, help="Stop when the hosts run; do not provision them.")
@boot_option
@report_options
@click.option("-v", "--verbose", count=True, help="Say more: every finding, what Ansible says; -vvv all of it.")
@yes_option
def lab_up(
    name: str,
    systems: tuple[str, ...],
    hosts: int | None,
    provider: str,
    image: str,
    sha256: str,
    memory_mib: int | None,
    cpus: int | None,
    accelerator: str | None,
    bare: bool,
    boot: Boot,
    as_json: bool,
    junit: str | None,
    strict: bool,
    verbose: int,
    yes: bool,
) -> None:
    """Make a lab, or bring back what is missing of it; then provision and prove its hosts.

    Running it again starts what was stopped and rebuilds nothing.
    """
    from orchestrator.inventory import AnsibleOptions, Secrets
    from orchestrator.lab import labs
    from orchestrator.lab.spec import LabSpec

    if bare and (as_json or junit):
        raise UsageError(
            "Bare hosts are not proven, so there is no report.",
            hint=f"Leave out --bare, or look at the lab: kvmfleet lab status {name}",
        )
    _logging(verbose)
    if sha256 and not image:
        raise UsageError("--sha256 is of an image.", hint="Add --image, or leave it out.")
    wish = LabSpec(
        name=name,
        systems=systems,
        hosts=hosts,
        provider=provider,
        image=image,
        sha256=sha256,
        memory_mib=memory_mib,
        cpus=cpus,
        accelerator=accelerator or "",
    )
    spec, why = labs.chosen(wish)
    if why:
        click.echo(why, err=True)
    _install_prerequisites(spec.provider, yes)
    with _steps() as progress:
        made = labs.up(spec, progress=progress)
        progress(labs.status(name).limits)
        progress(f"inventory: {made.inventory}")
    if bare:
        return
    options = AnsibleOptions(inventory=(str(made.inventory),), verbosity=verbose)
    try:
        _provision(options, Secrets(), boot, _Output("lab up", as_json, junit, strict, bool(verbose)))
    finally:
        labs.harvest(made)


def _install_prerequisites(provider: str, yes: bool) -> None:
    """Installs the system packages that a lab needs: after asking, without asking, or not at all."""
    from orchestrator.lab import prerequisites

    packages = prerequisites.missing(provider)
    if not packages or (provider == "container" and os.geteuid() != 0):  # which labs.up says
        return
    command = " ".join(prerequisites.install_command(packages))
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            prerequisites.require(provider)
        click.echo(f"A lab needs packages that this machine lacks. This command installs them:\n  {command}", err=True)
        if not click.confirm("Run it?", err=True):
            prerequisites.require(provider)
    with _steps() as progress:
        prerequisites.install(packages, progress)


@lab.command("status")
@lab_argument
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def lab_status(name: str, as_json: bool) -> None:
    """Show the hosts of a lab. Exits 1 when there is no such lab or one of its hosts does not run."""
    from orchestrator.lab import labs

    status = labs.status(name)
    if as_json:
        _print_json(status)
    else:
        from orchestrator.report import lab as lab_report

        _console().print(lab_report.status(status))
    if any(host.state != "running" for host in status.hosts):
        raise SystemExit(1)


@lab.command("ssh", context_settings={"ignore_unknown_options": True})
@click.argument("host", shell_complete=_complete_lab_host)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lab_ssh(host: str, command: tuple[str, ...]) -> None:
    """Log in to a host of a lab, or run a command there."""
    from orchestrator.lab import labs

    argv = labs.ssh_argv(labs.lab_of(host), host, command)
    os.execvp(argv[0], argv)


@lab.command("reboot")
@click.argument("host", shell_complete=_complete_lab_host)
def lab_reboot(host: str) -> None:
    """Boot a host of a lab again, and wait until it answers."""
    from orchestrator.lab import labs

    with _steps() as progress:
        labs.reboot(labs.lab_of(host), host, progress=progress)


@lab.command("console")
@click.argument("host", shell_complete=_complete_lab_host)
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes more, until Ctrl-C.")
def lab_console(host: str, follow: bool) -> None:
    """Show what a host of a lab has written to its console since its last start."""
    from orchestrator.lab import labs
    from orchestrator.text import printable_lines

    for text in labs.console(labs.lab_of(host), host, follow=follow):
        click.echo(printable_lines(text), nl=text.endswith("\n"))


@lab.command("down")
@lab_argument
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
def lab_down(name: str, dry_run: bool, yes: bool) -> None:
    """Remove a lab: its processes, interfaces, rules and files. Images stay in the cache."""
    from orchestrator.lab import labs

    if dry_run:
        for thing in labs.down(name, dry_run=True, progress=_ignore):
            click.echo(f"would remove {thing}")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"Removing lab {name} needs a yes, and there is no terminal to ask at.", hint="Add --yes.")
        if not click.confirm(f"Remove lab {name} with all that is in its hosts?", err=True):
            raise UsageError("Nothing was removed.")
    with _steps() as progress:
        labs.down(name, dry_run=False, progress=progress)
    click.echo(f"Lab {name} is gone.", err=True)


# -- printing -------------------------------------------------------------------------------------------------------


class _Output:
    """Where the report of one command goes, and the exit code that it means."""

    def __init__(self, command: str, as_json: bool, junit: str | None, strict: bool, verbose: bool) -> None:
        self._command = command
        self._json = as_json
        self._junit = junit
        self._strict = strict
        self._verbose = verbose

    def finish(self, run: Run) -> NoReturn:
        """Prints the report before anything is written, so that a full disk loses nothing of it; then exits."""
        from orchestrator.report import json, summary, terminal

        if self._json:
            click.echo(json.render(run.results, command=self._command))
        else:
            _console().print(terminal.report(run.results, verbose=self._verbose))
        code = summary.exit_code(run.results, strict=self._strict)
        if self._junit:
            code = self._write_junit(self._junit, run.results) or code
        for note in run.notes:
            _complain(note)
            code = note.exit_code
        raise SystemExit(code)

    def finish_pretended(self, run: Run) -> NoReturn:
        """The same for check mode, which proves nothing and leaves nothing to write."""
        from orchestrator.report import json, summary, terminal

        if self._json:
            click.echo(json.render_pretended(run.converged, command=self._command))
        else:
            _console().print(terminal.pretended(run.converged))
        raise SystemExit(summary.pretended_exit_code(run.converged))

    def finish_given_back(self, run: Run, check: bool) -> NoReturn:
        """For hosts that are no KVM hosts any more, so that nothing was proven."""
        from orchestrator.report import json, summary, terminal

        if self._json:
            click.echo(json.render_pretended(run.converged, command=self._command, check_mode=check))
        else:
            _console().print(terminal.given_back(run.converged, check=check))
        code = summary.pretended_exit_code(run.converged)
        for note in run.notes:
            _complain(note)
            code = note.exit_code
        raise SystemExit(code)

    def _write_junit(self, path: str, results: Sequence[HostResult]) -> int:
        from orchestrator.report import junit

        try:
            Path(path).write_text(junit.render(results), encoding="utf-8")
        except OSError as e:
            problem = KvmfleetError(f"{path}: {e.strerror}.", hint="Give --junit a file that can be written.")
            _complain(problem)
            return problem.exit_code
        return 0


def _console(*, stderr: bool = False) -> Console:
    """A terminal of the width it has; a pipe or a file gets wide lines and no colours."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def _board(fleet: Fleet, title: str) -> Board:
    from orchestrator.report.progress import Board

    return Board([host.name for host in fleet.hosts], title=title, console=_console(stderr=True))


def _steps() -> Steps:
    from orchestrator.report.progress import Steps

    return Steps(_console(stderr=True))


def _ignore(message: str, fraction: float | None = None) -> None:
    """Progress that nobody looks at."""


def _print_json(document: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _complain(error: KvmfleetError) -> None:
    """What, where and why; then what to do next."""
    click.echo(f"kvmfleet: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


# -- from arguments to values ---------------------------------------------------------------------------------------


def _ansible(given: dict[str, Any]) -> tuple[AnsibleOptions, Secrets]:
    """The options of Ansible out of what click parsed, and what the user typed at the prompts they ask for."""
    from orchestrator.inventory import AnsibleOptions, Secrets

    connection = _ask("SSH password: ") if given.pop("ask_pass") else ""
    default = "[defaults to SSH password]" if connection else ""
    become = _ask(f"BECOME password{default}: ") or connection if given.pop("ask_become_pass") else ""
    options = AnsibleOptions(
        vault_password_files=given.pop("vault_password_file"),
        vault_ids=given.pop("vault_id"),
        verbosity=given.pop("verbose"),
        **given,
    )
    return options, Secrets(connection=connection, become=become)


def _ask(prompt: str) -> str:
    """A password that is typed at the terminal; where there is no terminal, the next line of stdin."""
    try:
        Path("/dev/tty").open("rb").close()
    except OSError:
        line = sys.stdin.readline() if sys.stdin else ""
    else:
        return getpass.getpass(prompt)
    if not line:
        raise UsageError(
            f"{prompt.rstrip(': ')}: there is no terminal to type it at, and nothing on stdin.",
            hint="Run this at a terminal, or hand the password over on stdin.",
        )
    return line.rstrip("\n")


def _logging(verbosity: int) -> None:
    """The story on stderr: warnings, with -v what we do, with -vv what we decide."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("orchestrator").setLevel(level)


def main() -> None:
    """Runs the command line; the only place where an exception becomes an exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # an orderly end is the same as Ctrl-C
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) leaves SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        _prepare()
        code = cli.main(prog_name="kvmfleet", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        click.echo("kvmfleet: interrupted", err=True)
        code = 130
    except click.ClickException as e:
        e.show()
        code = 1  # click's own 2 means here that a check failed
    except KvmfleetError as e:
        _complain(e)
        code = e.exit_code
    except OSError as e:
        if not isinstance(e, BrokenPipeError) and _writable():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        if not isinstance(e, BrokenPipeError):  # whoever closed the pipe wants no more words
            _complain(KvmfleetError(f"standard output: {e.strerror}.", hint="Send it to where there is room."))
        code = 1
    sys.exit(code)


def _writable() -> bool:
    """Stdout still takes something, so an error of writing came from elsewhere."""
    try:
        click.echo()
    except OSError:
        return False
    return True


def _prepare() -> None:
    """Sees to what every command, and each program that it starts, takes for granted: a place, UTF-8, and sbin."""
    try:
        Path.cwd()
    except FileNotFoundError as e:
        raise UsageError("The current folder is no longer there.", hint="Go to one that is: cd") from e
    if locale.getencoding().lower().replace("-", "") != "utf8":  # LC_ALL=C in a crontab, with which Ansible refuses
        os.environ["LC_ALL"] = "C.UTF-8"
    # Where nft and ip are; a crontab, `su` and the users of Debian have it not.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
