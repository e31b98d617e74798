"""The root of the command line; the only place where an exception becomes an exit code."""

from __future__ import annotations

import gc
import locale
import os
import signal
import sys
from pathlib import Path

import click

from orchestrator import __version__
from orchestrator.cli.drift import drift, history
from orchestrator.cli.fleet import provision, unprovision, validate
from orchestrator.cli.lab import lab
from orchestrator.cli.notify import notify
from orchestrator.cli.output import complain
from orchestrator.cli.pki import pki
from orchestrator.cli.plan import plan
from orchestrator.cli.schedule import schedule
from orchestrator.cli.tools import completion, doctor, explain
from orchestrator.errors import KvmfleetError, UsageError

__all__ = ["cli", "main"]

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": None}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kvmfleet")
def cli() -> None:
    """Turn bare Linux machines into KVM hosts, and prove each one by executing a guest on it.

    Exit codes: 0 all good; 2 a check failed or a host drifted; 1 could not determine; 130 interrupted.
    """


for command in (
    provision, plan, validate, drift, schedule, notify, history, unprovision, explain, doctor, completion, pki, lab,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Runs the command line; the only place where an exception becomes an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # an orderly end is the same as Ctrl-C
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
        complain(e)
        code = e.exit_code
    except OSError as e:
        if not isinstance(e, BrokenPipeError) and _writable():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        if not isinstance(e, BrokenPipeError):  # whoever closed the pipe wants no more words
            complain(KvmfleetError(f"standard output: {e.strerror}.", hint="Send it to where there is room."))
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
    """Sees to what every command, and each program that it starts, takes for granted: a place, UTF-8, room, and sbin.

    And to garbage: looking for cycles as often as Python does costs a tenth of asking a host, for next to nothing.
    """
    gc.set_threshold(10_000, 20, 100)
    try:
        Path.cwd()
    except FileNotFoundError as e:
        raise UsageError("The current folder is no longer there.", hint="Go to one that is: cd") from e
    if locale.getencoding().lower().replace("-", "") != "utf8":  # LC_ALL=C in a crontab, with which Ansible refuses
        os.environ["LC_ALL"] = "C.UTF-8"
    if not os.environ.get("COLUMNS", "80").strip("0"):  # as a terminal without a size has it; nothing fits into that
        del os.environ["COLUMNS"]
    # Where nft and ip are; a crontab, `su` and the users of Debian have it not.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
