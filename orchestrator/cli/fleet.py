"""Commands over a fleet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from orchestrator.cli.options import (
    ansible,
    boot_option,
    connection_options,
    open_store,
    playbook_options,
    replay_options,
    report_options,
    store_option,
    waivers_option,
)
from orchestrator.cli.output import Output, Reports, board, log, steps
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import AnsibleOptions, Fleet, Secrets
    from orchestrator.model.contract import Profile
    from orchestrator.model.run import Boot
    from orchestrator.probe import Which
    from orchestrator.rollout import Run, Standards

__all__ = ["provision", "provision_hosts", "ready", "standards_of", "unprovision", "validate"]

REPLAY = ("recorded", "profile", "waivers", "verbose", "as_json", "junit", "html", "strict")
"""Options that have a meaning where no host is asked."""


@click.command(short_help="Make the hosts KVM hosts, then prove each one.")
@connection_options
@store_option
@playbook_options
@boot_option
@click.option("--force", is_flag=True, help="Run the playbook also on hosts that are as it would make them.")
@click.option("--drifted", is_flag=True, help="Run the playbook only on hosts that drifted; touch no other.")
@waivers_option
@report_options
def provision(boot: Boot, force: bool, drifted: bool, waivers: str | None, **given: Any) -> None:
    """Install and configure QEMU/KVM and libvirt on the hosts of the group kvm_hosts, then prove each one.

    Hosts are looked at first. One that is as it was when it was last good, and of which the inventory and the roles ask
    for nothing else since, is reported as unchanged and left alone.
    """
    which = _which(force, drifted, given["check"])
    reports = Reports.taken_from(given)
    if given["check"] and reports.files:
        named = " and ".join(reports.files)
        raise UsageError(f"Check mode proves nothing to write with {named}.", hint=f"Leave out {named} or --check.")
    reports.refuse_unwritable()
    options, secrets = ansible(given)
    log(options.verbosity)
    provision_hosts(options, secrets, boot, Output("provision", reports, bool(options.verbosity)), waivers, which)


def _which(force: bool, drifted: bool, check: bool) -> Which:
    if force and drifted:
        raise UsageError("--force is for every host, and --drifted only for some.", hint="Leave out one of them.")
    if drifted and check:
        raise UsageError(
            "--check looks at nothing, so it cannot tell which hosts --drifted is about.",
            hint="`kvmfleet drift --diff` says what drifted, and changes nothing.",
        )
    return "all" if force else "drifted" if drifted else "needed"


@click.command(short_help="Prove the hosts as they are; changes nothing.")
@connection_options
@store_option
@boot_option
@click.option(
    "--active",
    is_flag=True,
    help="Also try what leaves a mark while it lasts: a small volume in each storage pool is made and deleted.",
)
@waivers_option
@report_options
@replay_options
@click.pass_context
def validate(
    context: click.Context,
    /,
    boot: Boot,
    active: bool,
    recorded: tuple[str, ...],
    profile: Profile | None,
    waivers: str | None,
    **given: Any,
) -> None:
    """Prove the hosts as they are. Changes nothing; the guest that is booted cleans up after itself."""
    import msgspec

    from orchestrator import inventory

    reports = Reports.taken_from(given)
    output = Output("validate", reports, bool(given["verbose"]))
    if recorded:
        _refuse_beside_a_replay(context)
    reports.refuse_unwritable()
    if recorded:
        log(given["verbose"])
        output.finish(_replay(recorded, profile, waivers))
    options, secrets = ansible(given)
    log(options.verbosity)
    boot = msgspec.structs.replace(ready(boot), active=active)
    with inventory.reading(options) as fleet_read:  # in a third of a second, which the imports need as well
        from orchestrator import collect, rollout

        collect.get_ready()
        fleet = fleet_read()
    standards = standards_of(fleet, options, waivers, profile)
    with board(fleet, "validate") as shown:
        run = rollout.validate(
            fleet, options, secrets=secrets, boot=boot, standards=standards, on_event=shown.event,
            edges=rollout.Edges(store=open_store),
        )  # fmt: skip
    output.finish(run)


def _replay(recorded: Sequence[str], profile: Profile | None, waivers_file: str | None) -> Run:
    from orchestrator import recording, rollout, waivers

    return rollout.replay(recording.read(recorded), rollout.Standards(profile, waivers.load(waivers_file, ())))


def _refuse_beside_a_replay(context: click.Context) -> None:
    """What is about hosts, or would pass old evidence off as news, has nothing to do beside --from."""
    typed = [
        option.opts[-1]
        for option in context.command.params
        if option.name not in REPLAY and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise UsageError(
            f"--from judges recorded evidence and asks no host, so {' and '.join(typed)} cannot be beside it.",
            hint="Leave that out, or --from.",
        )


@click.command(short_help="Take back what was added to the hosts, and nothing else.")
@connection_options
@store_option
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

    options, secrets = ansible(given)
    log(options.verbosity)
    fleet = inventory.load(options)
    if not options.check:
        _agree(fleet, yes)
    with board(fleet, "check mode" if options.check else "unprovision") as shown:
        edges = rollout.Edges(store=open_store)
        run = rollout.unprovision(fleet, options, secrets=secrets, on_event=shown.event, edges=edges)
    Output("unprovision", Reports(as_json), bool(options.verbosity)).finish_given_back(run, options.check)


def _agree(fleet: Fleet, yes: bool) -> None:
    """Asks before hosts are turned back, and goes on only after a yes."""
    from orchestrator.text import listed

    if yes:
        return
    told = listed([host.name for host in fleet.hosts], 10)
    if not sys.stdin.isatty():
        raise UsageError(
            f"Unprovisioning {told} needs a yes, and there is no terminal to ask at.",
            hint="Add --yes, or --dry-run to see what would be taken back.",
        )
    if not click.confirm(f"Turn {told} back into what they were before kvmfleet?", err=True):
        raise UsageError("Nothing was taken back.")


def provision_hosts(
    options: AnsibleOptions,
    secrets: Secrets,
    boot: Boot,
    output: Output,
    waivers: str | None = None,
    which: Which = "needed",
) -> None:
    """Load, roll out, report: what `provision` and `lab up` share."""
    from orchestrator import inventory, rollout

    boot = boot if options.check else ready(boot)
    fleet = inventory.load(options)
    standards = standards_of(fleet, options, waivers)
    with board(fleet, "check mode" if options.check else "provision") as shown:
        run = rollout.provision(
            fleet, options, secrets=secrets, boot=boot, standards=standards, which=which, on_event=shown.event,
            edges=rollout.Edges(store=open_store),
        )  # fmt: skip
    if options.check:
        output.finish_pretended(run)
    output.finish(run)


def standards_of(
    fleet: Fleet, options: AnsibleOptions, waivers_file: str | None, profile: Profile | None = None
) -> Standards:
    """What the fleet is judged by. Read before any host is asked or changed: a slip of the pen costs nothing then."""
    from orchestrator import waivers
    from orchestrator.rollout import Standards

    found = waivers.load(waivers_file, fleet.sources or fleet.settings.inventory)
    if not options.limit:  # else the hosts are not all there
        found.warn_about_strangers(fleet)
    return Standards(profile, found)


def ready(boot: Boot) -> Boot:
    """With what it needs from the network: before any host is asked, or changed."""
    if boot.depth != "alpine":
        return boot
    from orchestrator import assets

    with steps() as progress:
        return assets.alpine(progress)
