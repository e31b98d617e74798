"""Findings that somebody answers for until a date: `waivers.yml`, a list in YAML beside the inventory.

Whatever cannot be understood ends the command with its file and line: a waiver with a slip of the pen in it would
otherwise fail a host, or worse, go on after its date.
"""

from __future__ import annotations

import datetime
import fnmatch
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import yaml

from orchestrator.checks.catalogue import catalogue, meant, topics
from orchestrator.errors import WaiverError
from orchestrator.inventory import Fleet
from orchestrator.model.finding import Waiver
from orchestrator.text import printable

__all__ = ["MAX_BYTES", "Waivers", "beside", "load", "read"]

log = logging.getLogger(__name__)

FILE = "waivers.yml"
MAX_BYTES = 1 << 20
MAX_ENTRIES = 2000
MAX_PATTERNS = 2000

_KEYS = ("check", "hosts", "reason", "owner", "expires")
_NEVER = ("host.reachable", "host.evidence")
"""Without these nothing is known about a host, and nothing can be waived that nobody knows."""

_EXAMPLE = "A waiver is: {check: kvm.hardware, hosts: [hv1, 'rack3*'], reason: …, owner: …, expires: 2027-01-31}"


class _Entry(msgspec.Struct, frozen=True):
    """One waiver of a file."""

    place: str  # file:line
    check: str
    hosts: tuple[str, ...]
    reason: str
    owner: str
    expires: datetime.date  # the last day on which it holds


class Waivers(msgspec.Struct, frozen=True):
    """All waivers of a run, and the day on which it judges."""

    entries: tuple[_Entry, ...] = ()
    today: datetime.date = datetime.date.min

    def of(self, host: str, groups: Iterable[str]) -> Mapping[str, Waiver]:
        """Check -> its waiver on this host; where there are several, the one that holds longest."""
        names = (host, *groups)
        found: dict[str, _Entry] = {}
        for entry in self.entries:
            if any(_matches(pattern, names) for pattern in entry.hosts) and (
                entry.check not in found or found[entry.check].expires < entry.expires
            ):
                found[entry.check] = entry
        return {
            check: Waiver(entry.reason, entry.owner, entry.expires.isoformat(), holds=entry.expires >= self.today)
            for check, entry in found.items()
        }

    def warn_about_strangers(self, fleet: Fleet) -> None:
        """Says which patterns match no host: a typing error, or a host that went."""
        for entry in self.entries:
            for pattern in entry.hosts:
                if not any(_matches(pattern, (host.name, *host.groups)) for host in fleet.hosts):
                    log.warning("%s: no host or group matches %s, so nothing is waived there", entry.place, pattern)


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return pattern == "all" or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def load(given: str | None, sources: Sequence[str]) -> Waivers:
    """Those of the file that the user named, or else of every file beside an inventory.

    Raises:
        WaiverError: a file cannot be read or understood.
    """
    return read([Path(given)] if given else beside(sources))


def beside(sources: Sequence[str]) -> list[Path]:
    """The files beside these inventories. For a folder that is next to it: what is inside, Ansible takes for hosts."""
    places = {Path(source).absolute().with_name(FILE): None for source in sources if "," not in source}
    return [place for place in places if place.exists()]


def read(files: Sequence[Path], today: datetime.date | None = None) -> Waivers:
    """What these files hold, to be judged as of `today`, by default in UTC."""
    entries = [entry for file in files for entry in _entries(file)]
    first: dict[tuple[str, str], str] = {}
    for entry in entries:
        for pattern in entry.hosts:
            if before := first.get((entry.check, pattern)):
                raise WaiverError(
                    f"{entry.place}: {entry.check} is waived for {pattern} already, at {before}.", hint="Remove one."
                )
            first[entry.check, pattern] = entry.place
    return Waivers(tuple(entries), today or datetime.datetime.now(datetime.UTC).date())


def _entries(file: Path) -> Iterator[_Entry]:
    root = _composed(file)
    if root is None:  # an empty file, or only comments
        return
    if not isinstance(root, yaml.SequenceNode):
        raise _mistake(file, root, "a list of waivers is wanted here", _EXAMPLE)
    if len(root.value) > MAX_ENTRIES:
        raise _mistake(file, root, f"more than {MAX_ENTRIES} waivers", "Waive by group or by pattern.")
    for node in root.value:
        yield _entry(file, node)


def _composed(file: Path) -> yaml.Node | None:
    """The nodes of the document, which know their lines; nothing in it is ever constructed."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as e:
        raise WaiverError(f"{file}: {e.strerror}.", hint="Check --waivers, or the owner and mode of the file.") from e
    if len(raw) > MAX_BYTES:
        raise WaiverError(f"{file}: larger than {MAX_BYTES >> 20} MiB.", hint="Waive by group or by pattern.")
    try:
        return yaml.compose(raw, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise WaiverError(f"{file}:{line}: no YAML: {printable(e.problem or str(e))}.", hint=_EXAMPLE) from e
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise WaiverError(f"{file}: no YAML: {printable(str(e))}.", hint=_EXAMPLE) from e


def _entry(file: Path, node: yaml.Node) -> _Entry:
    if not isinstance(node, yaml.MappingNode):
        raise _mistake(file, node, "a waiver is wanted here", _EXAMPLE)
    values: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        if name not in _KEYS:
            raise _mistake(file, key, f"unknown key {printable(name, 60)!a}", f"Known are: {', '.join(_KEYS)}.")
        if name in values:
            raise _mistake(file, key, f"{name} is given twice", "Remove one.")
        values[name] = value
    if missing := [key for key in _KEYS if key not in values]:
        raise _mistake(file, node, f"the waiver has no {' and no '.join(missing)}", _EXAMPLE)
    return _Entry(
        place=f"{file}:{node.start_mark.line + 1}",
        check=_check(file, values["check"]),
        hosts=_hosts(file, values["hosts"]),
        reason=_text(file, values["reason"], "reason"),
        owner=_text(file, values["owner"], "owner"),
        expires=_date(file, values["expires"]),
    )


def _check(file: Path, node: yaml.Node) -> str:
    check = _text(file, node, "check")
    if check in _NEVER:
        raise _mistake(file, node, f"{check} cannot be waived", "Without it nothing is known about the host.")
    if check in {topic.id for topic in topics()} - {known.id for known in catalogue()}:
        raise _mistake(file, node, f"{check} cannot be waived", "Only what a check finds on one host can be.")
    if check not in {known.id for known in catalogue()}:
        raise _mistake(file, node, f"there is no check {check!a}", meant(check))
    return check


def _hosts(file: Path, node: yaml.Node) -> tuple[str, ...]:
    hint = "Give a list of names, of patterns with * and ?, and of groups: hosts: [hv1, 'rack3*', storage]"
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _mistake(file, node, "hosts is a list, and not empty", hint)
    if len(node.value) > MAX_PATTERNS:
        raise _mistake(file, node, f"more than {MAX_PATTERNS} patterns", "Waive by group.")
    patterns = tuple(_text(file, item, "a pattern") for item in node.value)
    for pattern, item in zip(patterns, node.value, strict=True):
        if re.search(r"^[!&~@]|[,\s]", pattern):
            raise _mistake(file, item, f"{pattern!a} is no pattern that is understood here", hint)
    return patterns


def _text(file: Path, node: yaml.Node, what: str) -> str:
    text = printable(node.value, 1000) if isinstance(node, yaml.ScalarNode) else ""
    if not text or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        raise _mistake(file, node, f"{what} is a text, and not empty", _EXAMPLE)
    return text


def _date(file: Path, node: yaml.Node) -> datetime.date:
    text = _text(file, node, "expires")
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            raise ValueError(text)
        return datetime.date.fromisoformat(text)
    except ValueError as e:
        raise _mistake(
            file, node, f"{printable(text, 60)!a} is no date", "Write the last day on which it holds as 2027-01-31."
        ) from e


def _mistake(file: Path, node: yaml.Node, what: str, hint: str) -> WaiverError:
    return WaiverError(f"{file}:{node.start_mark.line + 1}: {what}.", hint=hint)
