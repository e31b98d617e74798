"""Options that several commands share, and the values they become."""

from __future__ import annotations

import functools
import getpass
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.errors import StoreError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from orchestrator.history.store import Store
    from orchestrator.inventory import AnsibleOptions, Secrets
    from orchestrator.model.run import Boot

__all__ = [
    "BootType",
    "PlaceType",
    "ansible",
    "any_store_option",
    "boot_option",
    "connection_options",
    "open_store",
    "playbook_options",
    "program_options",
    "replay_options",
    "report_options",
    "store_option",
    "store_url",
    "tags_options",
    "waivers_option",
    "yes_option",
]

F = TypeVar("F", bound=Callable[..., Any])

DEPTHS = ("none", "proof", "firmware", "uefi", "alpine")
PROFILES = ("lab", "production", "multi-tenant")
STORE = "kvmfleet.store"  # in click's meta, which a command shares with its group


def _apply(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator out of several, in the order in which --help should list them."""
    return lambda function: functools.reduce(lambda f, decorate: decorate(f), reversed(decorators), function)


def _keep_store(context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """For `open_store`. What is wrong with it is said before any host is asked, and with KVMFLEET_STORE as well."""
    url = url or context.meta.get(STORE) or ""
    if context.resilient_parsing or not (url or os.environ.get("KVMFLEET_STORE")):
        context.meta[STORE] = url
        return url
    from orchestrator.history import address

    if address.secret(address.chosen(url)) and url:
        raise UsageError(
            "--store holds a password, which every user of this machine can see in the list of processes.",
            hint="Leave it out: libpq reads ~/.pgpass, PGPASSFILE and service files. Or set KVMFLEET_STORE to the URL.",
        )
    context.meta[STORE] = url
    return url


def _keep_any_store(context: click.Context, option: click.Parameter, url: str | None) -> None:
    """For who says what is wrong with it beside all else."""
    try:
        _keep_store(context, option, url)
    except StoreError:
        context.meta[STORE] = url


def store_url() -> str:
    """What --store says, "" where it says nothing."""
    return click.get_current_context().meta.get(STORE) or ""


def open_store() -> Store:
    """The history that --store, else KVMFLEET_STORE names; every command opens it here."""
    from orchestrator.history.store import Store

    return Store(store_url())


def _store_option(keep: Callable[[click.Context, click.Parameter, str | None], object]) -> Callable[[F], F]:
    return click.option(
        "--store",
        metavar="URL",
        expose_value=False,
        callback=keep,
        help="The history: sqlite:////FILE or postgresql://USER@HOST/DATABASE, instead of KVMFLEET_STORE or a file in "
        "the state folder.",
    )


store_option = _store_option(_keep_store)
any_store_option = _store_option(_keep_any_store)

connection_options = _apply(
    click.option(
        "-i",
        "--inventory",
        multiple=True,
        metavar="PATH",
        help="Inventory: a file, a folder, a script, or a comma-separated list of hosts, which without a file are all "
        "meant. May be repeated.",
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


def _known_tags(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if values and not context.resilient_parsing:
        from orchestrator import tags

        tags.refuse_unknown(max(option.opts, key=len), values)
    return values


def _tags_option(*names: str, help: str) -> Callable[[F], F]:
    return click.option(*names, multiple=True, metavar="TAGS", callback=_known_tags, help=help)


tags_options = _apply(
    _tags_option("-t", "--tags", help="Only tasks with these tags."),
    _tags_option("--skip-tags", help="All but the tasks with these tags."),
)

playbook_options = _apply(
    tags_options,
    click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change."),
    click.option("-D", "--diff", is_flag=True, help="Show the changes in files."),
)


class PlaceType(click.Path):
    """A path. An empty one would be this folder, or mean that the option was not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty name. A variable of the shell may not be set.", param, ctx)
        return super().convert(value, param, ctx)


program_options = _apply(
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON; nothing else on stdout."),
    click.option("--junit", type=PlaceType(dir_okay=False), metavar="FILE", help="Also write the report as JUnit XML."),
    click.option(
        "--prometheus",
        type=PlaceType(dir_okay=False),
        metavar="FILE",
        help="Also write metrics for node_exporter's textfile collector, which reads FILEs that end in .prom.",
    ),
)

report_options = _apply(
    program_options,
    click.option(
        "--html", type=PlaceType(dir_okay=False), metavar="FILE", help="Also write the report as one web page."
    ),
    click.option(
        "--save-evidence",
        type=PlaceType(file_okay=False),
        metavar="DIR",
        help="Also write what each host said about itself to a file of its own, for `validate --from`.",
    ),
    click.option("--strict", is_flag=True, help="Exit 2 for warnings as well."),
)


replay_options = _apply(
    click.option(
        "--from",
        "recorded",
        type=PlaceType(),
        multiple=True,
        metavar="FILE|DIR",
        help="Ask no host: judge what --save-evidence wrote. May be repeated.",
    ),
    click.option(
        "--profile",
        type=click.Choice(PROFILES),
        help="Judge by this profile instead of the one that each host was told to have.",
    ),
)


class BootType(click.ParamType["Boot"]):
    """A depth, or `file=IMAGE` with an optional `,expect=REGEX` at its end."""

    name = "boot"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(DEPTHS)}|file=IMAGE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Boot:
        from orchestrator.model.run import Boot

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
    type=BootType(),
    default="firmware",
    show_default=True,
    help="How far the proof goes: no guest (which leaves every host unknown), a few instructions through /dev/kvm, "
    "or a libvirt guest that boots: a boot sector, the shell of UEFI firmware, an unmodified Linux, or IMAGE, a disk "
    "image on the host (file=IMAGE,expect=REGEX waits until its serial line says that).",
)


waivers_option = click.option(
    "--waivers",
    type=PlaceType(dir_okay=False),
    metavar="FILE",
    help="Findings that somebody answers for until a date; by default waivers.yml beside the inventory.",
)

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def ansible(given: dict[str, Any]) -> tuple[AnsibleOptions, Secrets]:
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
