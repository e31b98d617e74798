"""What changed on the fleet as one message for people: short, plain text, the most important first."""

from __future__ import annotations

import bisect
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence

from orchestrator.model.drift import Drift
from orchestrator.model.run import Message
from orchestrator.notify.transitions import Transition
from orchestrator.text import counted, moment, printable

__all__ = ["message", "trial"]

BODY = 1800
"""In characters: less than the services that people read on take, and about what one reads on a telephone."""
TITLE = 120
DIGEST = 160  # of the hosts that there is no room for

WORDS = ("drifted", "changed", "unreachable", "unknown", "never-provisioned", "recovered")
"""The most important first."""

SAID = {"changed": "drifted further", "recovered": "in sync again"}
NAMED = 5  # hosts in a command
MENTION = re.compile(r"@(?=everyone|here|channel|all|room)|(?<!\w)@(?=[\w*\"])|<(?=[@!#])", re.IGNORECASE)
"""Groups wherever they are, and people where a word begins: libvirt-guests@1.service is none."""
LINK = re.compile(r"\](?=\()|<(?=[a-z][a-z+.-]*://|mailto:|tel:|(?:a|img)\s)", re.IGNORECASE)
"""What shows other words than the address that it leads to, or a picture: in Markdown, on Slack, in HTML."""


def message(transitions: Sequence[Transition], inventory: Sequence[str] = ()) -> Message:
    """One for the whole fleet, whatever its size. `inventory` is for the command to look closer."""
    ordered = sorted(transitions, key=lambda one: WORDS.index(_word(one)))
    foot = _foot(ordered, inventory)
    bad = any(one.kind != "recovered" for one in ordered)
    return Message(_title(ordered), _fit(ordered, BODY - len(foot)) + foot, "failure" if bad else "success")


def trial() -> Message:
    """To see whether messages arrive."""
    return Message(
        "kvmfleet: a test", f"`kvmfleet notify test` sent this from {_controller()}. No host has changed.", "info"
    )


def _title(ordered: Sequence[Transition]) -> str:
    if len(ordered) == 1:
        return f"kvmfleet: {_plain(ordered[0].host.host, 60)} {_said(ordered[0])}"[:TITLE]
    return f"kvmfleet: {_counts(ordered)}"[:TITLE]


def _fit(ordered: Sequence[Transition], room: int) -> str:
    """As much of each host as there is room for with all of them; else as many as there is room for, and a digest."""
    for items in (5, 2, 0):
        blocks = ["\n".join(_block(one, items)) for one in ordered]
        if len(text := "\n".join(blocks)) <= room:
            return text
    ends = list(itertools.accumulate(len(block) + 1 for block in blocks))
    shown = bisect.bisect_right(ends, room - DIGEST)
    rest = len(blocks) - shown
    return "\n".join([*blocks[:shown], f"and {counted(rest, 'host')} more: {_counts(ordered[shown:])}"])


def _block(one: Transition, items: int) -> Iterator[str]:
    host, more = one.host, len(one.items) - items
    first = f"{_plain(host.host, 80)}: {_said(one)}{_about(one)}"
    if not items:
        names = _plain(", ".join(item.item for item in one.items), 80)
        yield f"{first}: {names}" if names else first
        return
    yield first
    for item in one.items[:items]:
        yield f"  {_plain(item.item, 100)}: {_change(item)}, since {moment(item.since_s)}"
    if more > 0:
        yield f"  and {counted(more, 'item')} more"
    if one.gone:
        yield f"  as it should be again: {_plain(', '.join(one.gone), 160)}"


def _about(one: Transition) -> str:
    """What the first line says beside the state."""
    match one.kind:
        case "drifted":
            back = f", was {one.before.state}" if one.before and one.before.state != "drifted" else ""
            return f"{back}, {counted(len(one.items), 'item')}"
        case "changed":
            return f", {len(one.items)} new or changed, {len(one.gone)} as they should be again"
        case "recovered":
            was = f", was {one.before.state}" if one.before else ""
            unsent = "" if one.before and one.before.delivered else ", which could not be sent"
            return was + unsent + ("; a changed inventory is to be rolled out" if one.host.pending else "")
        case _:
            times = f"{counted(one.checks, 'check')} in a row"
            return f" since {moment(one.host.since_s)}, {times}: {_plain(one.host.problem, 160)}"


def _change(item: Drift) -> str:
    """Expected → seen; of long values from where they differ on."""
    expected, seen = item.expected, item.seen
    start = 0
    if expected is not None and seen is not None and max(len(expected), len(seen)) > 60:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(expected, seen, strict=False))
        start = max(sum(1 for _ in same) - 12, 0)
    return f"{_value(expected, start)} → {_value(seen, start)}"


def _value(value: str | None, start: int) -> str:
    return "nothing" if value is None else ("…" if start else "") + _plain(value[start:], 60)


def _foot(ordered: Sequence[Transition], inventory: Sequence[str]) -> str:
    """The command to look closer, who says all this, and when."""
    seen = moment(max(one.host.seen_s for one in ordered))
    return f"\n\n{_command(ordered, inventory)}\nSeen from {_controller()}, {seen}"


def _command(ordered: Sequence[Transition], inventory: Sequence[str]) -> str:
    where = "".join(f" -i {shlex.quote(path)}" for path in inventory)
    bad = [one.host.host for one in ordered if one.kind != "recovered"]
    limit = f" --limit {shlex.quote(','.join(bad))}" if 0 < len(bad) <= NAMED else ""
    return _plain(f"kvmfleet drift{where} --diff{limit}", 500)


def _counts(ordered: Sequence[Transition]) -> str:
    words = [_word(one) for one in ordered]
    return ", ".join(f"{words.count(word)} {SAID.get(word, word)}" for word in WORDS if word in words)


def _word(one: Transition) -> str:
    return one.host.state if one.kind == "untold" else one.kind


def _said(one: Transition) -> str:
    return SAID.get(_word(one), _word(one))


def _controller() -> str:
    return _plain(os.uname().nodename, 80)


def _plain(text: str, limit: int) -> str:
    """What a host said, without what services act on in plain text, too: a host calls nobody, and lures nobody away."""
    return LINK.sub(r"\g<0> ", MENTION.sub(r"\g<0> ", printable(text, limit)))
