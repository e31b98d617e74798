"""The documentation against what it documents."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMAND_LINE = re.compile(r"^(?:    |\$ )(?:sudo )?(?:\./)?kvmfleet((?: [^#\n|>]*)?)", re.MULTILINE)
INLINE = re.compile(r"`(?:\./)?kvmfleet( [^`\n]+)`")


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the tree with the words that lead to it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


TREE = list(walk(cli))
TITLES = [" ".join(("kvmfleet", *path)) for path, _ in TREE]


def parse(arguments: list[str], command: click.Command = cli, parent: click.Context | None = None) -> None:
    """What click does before it runs a command; raises UsageError for what it would refuse."""
    try:
        context = command.make_context(command.name or "kvmfleet", arguments, parent=parent)
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return  # --version, --help, or a group by its name
    rest = [*context._protected_args, *context.args]
    if isinstance(command, click.Group) and (rest or not command.invoke_without_command):
        _, child, rest = command.resolve_command(context, rest)
        assert child is not None
        parse(rest, child, context)


def command_lines() -> list[tuple[str, str]]:
    pages = [(page.name, page.read_text()) for page in PAGES]
    lines = [(name, line.strip()) for name, text in pages for p in (COMMAND_LINE, INLINE) for line in p.findall(text)]
    return [(name, line) for name, line in lines if "[" not in line]  # that is a synopsis, which the help texts are for


def names(pattern: str, text: str) -> set[str]:
    return {name.lower() for name in re.findall(pattern, text, re.MULTILINE)}


def test_the_help_texts_are_those_of_the_commands() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run scripts/docs\n{done.stderr}"


@pytest.mark.parametrize("title", TITLES)
def test_every_command_is_documented(title: str) -> None:
    assert f"$ {title} --help\n" in (ROOT / "docs/cli.md").read_text()


@pytest.mark.parametrize("command", [command for _, command in TREE], ids=TITLES)
def test_every_command_and_option_says_what_it_does(command: click.Command) -> None:
    assert command.help
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


@pytest.mark.parametrize("path", [path for path, command in TREE if isinstance(command, click.Group)])
def test_a_list_of_commands_cuts_no_sentence_short_in_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=80).output.split("\nCommands:\n")[1]
    assert [line for line in shown.splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_every_command_line_in_the_docs_parses(page: str, line: str) -> None:
    parse(shlex.split(line))


def test_a_command_line_that_is_wrong_does_not_parse() -> None:
    with pytest.raises(click.UsageError):
        parse(["validate", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["prove"])


def test_the_readme_shows_the_two_commands() -> None:
    lines = [line for page, line in command_lines() if page == "README.md"]
    assert "lab up --yes" in lines
    assert "    scripts/test\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_every_path_of_the_layout_exists() -> None:
    layout = (ROOT / "docs/architecture.md").read_text().split("## Layout")[1].split("##")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in layout.splitlines() if line.startswith("| `")]
    assert rows
    paths = [path if (ROOT / path).exists() else f"orchestrator/{path}" for row in rows for path in row]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_dependency_has_its_reason() -> None:
    table = (ROOT / "docs/architecture.md").read_text().split("## Dependencies")[1]
    reasons = names(r"^\| ([\w.-]+) \|.+\|.+\|$", table) - {"library"}
    assert reasons == names(r"^([\w.-]+)", (ROOT / "requirements.in").read_text())


def test_every_variable_that_the_code_reads_is_documented() -> None:
    code = [ROOT / "kvmfleet", ROOT / "scripts/venv", *(ROOT / "orchestrator").rglob("*.py")]
    reads = r"""(?:environ(?:\.get|\.pop)?[\[(]\s*["']|\$\{)(KVMFLEET_\w+)"""
    read = {name for file in code for name in names(reads, file.read_text())}
    documented = names(r"^\| `(KVMFLEET_\w+)` \|", (ROOT / "docs/cli.md").read_text())
    assert read == documented


def test_the_exit_codes_are_told_the_same_everywhere() -> None:
    tables = [
        (ROOT / page).read_text().split("## Exit codes")[1].split("##")[0] for page in ("README.md", "docs/cli.md")
    ]
    assert tables[0].strip() == tables[1].strip()
