"""The lab."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.fleet import provision_hosts
from orchestrator.cli.options import boot_option, report_options, yes_option
from orchestrator.cli.output import Output, Reports, console, ignore, log, print_json, steps
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.model.run import Boot

__all__ = ["lab"]


def _complete_lab(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab import record

    return [name for name in record.names() if name.startswith(typed)]


def _complete_lab_host(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab import record

    return [host.name for lab in record.labs() for host in lab.hosts if host.name.startswith(typed)]


def _complete_fault(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab.faults import catalogue

    return [fault.id for fault in catalogue.catalogue() if fault.id.startswith(typed)]


def _complete_fault_of_host(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.lab import record

    hosts = [host for lab in record.labs() for host in lab.hosts if host.name == context.params.get("host")]
    return [fault for host in hosts for fault in host.faults if fault.startswith(typed)]


lab_argument = click.argument("name", metavar="[LAB]", default="lab", shell_complete=_complete_lab)


@click.group()
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
@click.option(
    "--cpus",
    type=click.IntRange(1, 256),
    metavar="N",
    help="vm: processors of each host; 2, or 1 in software with a QEMU before 8.1.",
)
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
    verbose: int,
    yes: bool,
    **given: Any,
) -> None:
    """Make a lab, or what is missing of it, and prove its hosts.

    They are provisioned before. Running it again starts what was stopped and rebuilds nothing.
    """
    from orchestrator.inventory import AnsibleOptions, Secrets
    from orchestrator.lab import labs
    from orchestrator.lab.spec import LabSpec

    reports = Reports.taken_from(given)
    if bare and (reports.as_json or reports.files):
        raise UsageError(
            "Bare hosts are not proven, so there is no report.",
            hint=f"Leave out --bare, or look at the lab: kvmfleet lab status {name}",
        )
    reports.refuse_unwritable()
    log(verbose)
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
    with steps() as progress:
        made = labs.up(spec, progress=progress)
        progress(labs.status(name).limits)
        progress(f"inventory: {made.inventory}")
    if bare:
        return
    options = AnsibleOptions(inventory=(str(made.inventory),), verbosity=verbose)
    try:
        provision_hosts(options, Secrets(), boot, Output("lab up", reports, bool(verbose)))
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
    with steps() as progress:
        prerequisites.install(packages, progress)


@lab.command("status")
@lab_argument
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def lab_status(name: str, as_json: bool) -> None:
    """Show the hosts of a lab. Exits 1 when there is no such lab or one of its hosts does not run."""
    from orchestrator.lab import labs

    status = labs.status(name)
    if as_json:
        print_json(status)
    else:
        from orchestrator.report import lab as lab_report

        console().print(lab_report.status(status))
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

    with steps() as progress:
        labs.reboot(labs.lab_of(host), host, progress=progress)


@lab.command("console")
@click.argument("host", shell_complete=_complete_lab_host)
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes more, until Ctrl-C.")
def lab_console(host: str, follow: bool) -> None:
    """Show what a host has written to its console since it started."""
    from orchestrator.lab import labs
    from orchestrator.text import printable_lines

    for text in labs.console(labs.lab_of(host), host, follow=follow):
        click.echo(printable_lines(text), nl=text.endswith("\n"))


@lab.command("break")
@click.argument("host", required=False, shell_complete=_complete_lab_host)
@click.argument("fault", required=False, shell_complete=_complete_fault)
@click.option("--list", "listed", is_flag=True, help="Only tell which faults there are.")
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON.")
def lab_break(host: str | None, fault: str | None, listed: bool, as_json: bool) -> None:
    """Break a host of a lab on purpose, so that a check fails. `lab heal` takes it back."""
    from orchestrator.lab import drills
    from orchestrator.lab.faults import catalogue

    if listed:
        if host:
            raise UsageError("--list tells of all faults, whatever the host.", hint="Leave out the host, or --list.")
        if as_json:
            print_json(catalogue.catalogue())
        else:
            from orchestrator.report import lab as lab_report

            console().print(lab_report.faults(catalogue.catalogue()))
        return
    if as_json:
        raise UsageError("--json is of the list.", hint="Add --list.")
    if not host or not fault:
        what = "fault to break it with" if host else "host to break"
        raise UsageError(f"Which {what}?", hint="kvmfleet lab break HOST FAULT; --list shows the faults.")
    with steps() as progress:
        drills.inject(host, fault, progress=progress)


@lab.command("heal")
@click.argument("host", shell_complete=_complete_lab_host)
@click.argument("fault", required=False, shell_complete=_complete_fault_of_host)
def lab_heal(host: str, fault: str | None) -> None:
    """Take back a fault of a host, or all of them without FAULT."""
    from orchestrator.lab import drills

    with steps() as progress:
        if not drills.heal(host, fault, progress=progress):
            progress(f"{host}: nothing of it was broken")


@lab.command("down")
@lab_argument
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
def lab_down(name: str, dry_run: bool, yes: bool) -> None:
    """Remove a lab: its processes, interfaces, rules and files. Images stay in the cache."""
    from orchestrator.lab import labs

    if dry_run:
        for thing in labs.down(name, dry_run=True, progress=ignore):
            click.echo(f"would remove {thing}")
        return
    if not yes:
        labs.down(name, dry_run=True, progress=ignore)  # a lab that is not there is not asked about
        if not sys.stdin.isatty():
            raise UsageError(f"Removing lab {name} needs a yes, and there is no terminal to ask at.", hint="Add --yes.")
        if not click.confirm(f"Remove lab {name} with all that is in its hosts?", err=True):
            raise UsageError("Nothing was removed.")
    with steps() as progress:
        labs.down(name, dry_run=False, progress=progress)
    click.echo(f"Lab {name} is gone.", err=True)
