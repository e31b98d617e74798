"""How this machine reaches the distribution's archive, read from its own apt, for images and hosts to do the same."""

from __future__ import annotations

import re

from orchestrator.lab.command import run

__all__ = ["options", "sources"]

_FIELDS = ("ORIGIN", "CODENAME", "REPO_URI", "COMPONENT", "CREATED_BY")
_POCKETS = ("", "-updates", "-security")
_KEPT = re.compile(r"(?i)Acquire::(https?::Proxy(::.+)?|Check-Valid-Until|Check-Date|(https?::)?Timeout|Retries)")
_LINE = re.compile(r'(\S+) "([^"]*)";')


def sources(suite: str, *, targets: str | None = None) -> tuple[str, ...]:
    """Lines of sources.list for a suite, from the index targets of this machine's apt, if it has any.

    A machine that serves another suite of the same distribution has a mirror of it: its addresses are used with the
    suite's name put in.
    """
    if targets is None:
        targets = run(["apt-get", "indextargets", "--format", "|".join(f"$({field})" for field in _FIELDS)])
    rows = [row for row in (line.split("|") for line in targets.splitlines()) if len(row) == len(_FIELDS)]
    served = [
        row for row in rows if row[0] == "Debian" and row[3:] == ["main", "Packages"] and _pocket(row[1]) in _POCKETS
    ]
    own = {row[1].partition("-")[0] for row in served}
    lines = (_line(row, suite) for row in served if row[1].partition("-")[0] == (suite if suite in own else min(own)))
    return tuple(dict.fromkeys(lines))


def _line(row: list[str], suite: str) -> str:
    _, codename, uri, component, _ = row
    return f"deb {uri} {suite}{_pocket(codename)} {component}"


def _pocket(codename: str) -> str:
    return "".join(codename.partition("-")[1:])


def options(dump: str | None = None) -> str:
    """What of this machine's apt.conf decides whether the archive can be reached: proxies and checks of dates."""
    if dump is None:
        dump = run(["apt-config", "dump"])
    pairs = (match.groups() for match in map(_LINE.fullmatch, dump.splitlines()) if match)
    return "".join(f'{key} "{value}";\n' for key, value in pairs if value and _KEPT.fullmatch(key))
