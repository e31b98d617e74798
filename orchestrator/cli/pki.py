"""The fleet's CA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.fleet import ready, standards_of
from orchestrator.cli.options import (
    ansible,
    boot_option,
    connection_options,
    open_store,
    report_options,
    store_option,
    waivers_option,
)
from orchestrator.cli.output import Output, Reports, board, console, log, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.model.run import Boot

__all__ = ["pki"]

_PASSPHRASE = "Write the passphrase into its first line."


@click.group()
def pki() -> None:
    """Make and show the CA of the fleet, and rotate certificates.

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
    console().print(pki_report.status(made))


@pki.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def pki_status(as_json: bool) -> None:
    """Show the CA, and how long the certificates that it issued are valid. Exits 1 when there is no CA."""
    from orchestrator import pki as authority
    from orchestrator.report import pki as pki_report

    found = authority.status()
    if as_json:
        print_json(found)
    else:
        console().print(pki_report.status(found))


@pki.command("rotate", short_help="Give the hosts new keys and certificates now.")
@connection_options
@store_option
@boot_option
@waivers_option
@report_options
def pki_rotate(boot: Boot, waivers: str | None, **given: Any) -> None:
    """Give every host that offers tls a new key and certificate now, then prove each one.

    Nothing else is changed, and daemons read the new ones without a restart.
    """
    import msgspec

    from orchestrator import inventory, rollout

    reports = Reports.taken_from(given)
    reports.refuse_unwritable()
    options, secrets = ansible(given)
    log(options.verbosity)
    output = Output("pki rotate", reports, bool(options.verbosity))
    boot = ready(boot)
    fleet = inventory.load(options)  # before: what follows is no wish of the inventory's, and has no part in its digest
    rotate = msgspec.structs.replace(
        options, tags=("libvirt_remote",), extra_vars=(*options.extra_vars, '{"libvirt_remote_rotate": true}')
    )
    standards = standards_of(fleet, options, waivers)
    with board(fleet, "pki rotate") as shown:
        run = rollout.provision(
            fleet, rotate, secrets=secrets, boot=boot, standards=standards, on_event=shown.event,
            edges=rollout.Edges(store=open_store),
        )  # fmt: skip
    output.finish(run)


def _first_line(path: str) -> str:
    try:
        line = Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except OSError as e:
        raise UsageError(f"--passphrase-file {path}: {e.strerror}.", hint="Check its owner and mode.") from e
    except UnicodeDecodeError as e:  # which quotes a part of it
        raise UsageError(f"--passphrase-file {path} is not UTF-8 at byte {e.start}.", hint=_PASSPHRASE) from None
    if not line:
        raise UsageError(f"--passphrase-file {path}: its first line is empty.", hint=_PASSPHRASE)
    return line
