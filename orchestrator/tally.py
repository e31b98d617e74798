"""Counts, from Ansible's events, what a playbook did to each host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from orchestrator import changes, failure
from orchestrator.ansible_read import explain
from orchestrator.errors import ConvergeError
from orchestrator.inventory import AnsibleOptions
from orchestrator.model.run import Change, HostConverged, TaskFailure
from orchestrator.text import printable, printable_lines

__all__ = ["Progress", "Tally"]

KEPT_LINES = 400
NOTE = 4000  # characters: one names a hundred packages
CHANGES = 100  # of one host
DIFFS = 100_000  # characters of one host

Outcome = Literal["task", "start", "ok", "changed", "skipped", "failed", "ignored", "unreachable", "text"]


class Progress(msgspec.Struct, frozen=True):
    """One step of a run, for whoever draws it: a task began, a host finished it, or Ansible had something to say."""

    outcome: Outcome
    task: str = ""  # "role : task"
    host: str = ""  # "" when a task begins
    done: int = 0  # tasks that this host has finished, skipped ones among them
    text: str = ""  # why a task failed; a diff (-D) or details (-v) with their line breaks


class _Present(msgspec.Struct):
    """What is known of the task that a host is at, before it ends."""

    failed_item: Mapping[str, Any] | None = None  # result of the first item of a loop that failed
    things: tuple[str, ...] = ()  # that items of a loop changed
    diff: str = ""


class _Counts(msgspec.Struct):
    ok: int = 0
    changed: int = 0
    skipped: int = 0
    failed: int = 0
    unreachable: bool = False
    failure: TaskFailure | None = None
    notes: tuple[str, ...] = ()
    changes: list[Change] = msgspec.field(default_factory=list)
    present: _Present = msgspec.field(default_factory=_Present)


_HOST_EVENTS: Mapping[str, Outcome] = {
    "runner_on_start": "start",
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}


class Tally:
    """Counts for itself: ansible-runner has no statistics when its events are not kept, or when the run was ended."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = {host: _Counts() for host in hosts}
        self._lines: list[str] = []
        self._finished = False

    def count(self, event: Mapping[str, Any], options: AnsibleOptions) -> Iterator[Progress]:
        """What an event means to whoever draws the run: mostly one step, or nothing."""
        name, data = event.get("event", ""), event.get("event_data") or {}
        text = event.get("stdout") or ""
        if name == "playbook_on_task_start":
            yield Progress("task", task=_title(data))
        elif name == "playbook_on_stats":
            self._settle(data)
        elif name in {"verbose", "error", "warning", "deprecated", "system_warning"}:
            self._lines = [*self._lines[-KEPT_LINES:], text]
        elif data.get("host") in self._hosts:
            present = self._hosts[data["host"]].present
            if name == "runner_item_on_failed":
                present.failed_item = present.failed_item or data.get("res")
            elif name == "runner_item_on_ok":
                _add_item(present, data.get("res") or {})
            elif name == "runner_on_file_diff":
                text = changes.diff(text)
                if len(present.diff) < DIFFS:
                    present.diff = "\n".join(filter(None, (present.diff, text)))
            elif name in _HOST_EVENTS:
                yield self._step(_HOST_EVENTS[name], data, options)
        if text and (options.verbosity or (options.diff and name == "runner_on_file_diff")):
            yield Progress("text", task=_title(data), host=data.get("host", ""), text=printable_lines(text))

    def _step(self, outcome: Outcome, data: Mapping[str, Any], options: AnsibleOptions) -> Progress:
        counts, result, why = self._hosts[data["host"]], data.get("res") or {}, ""
        if outcome == "start":
            counts.present = _Present()
        if isinstance(said := result.get("kvmfleet_notes"), list):
            counts.notes = tuple(printable(str(sentence), NOTE) for sentence in said[:KEPT_LINES])
        if outcome == "failed" and data.get("ignore_errors"):
            outcome = "ignored"
        elif outcome == "ok" and result.get("changed"):
            outcome = "changed"
        counts.ok += outcome in {"ok", "changed", "ignored"}
        counts.changed += outcome == "changed"
        counts.skipped += outcome == "skipped"
        counts.failed += outcome == "failed"
        counts.unreachable |= outcome == "unreachable"
        if options.check and (outcome == "changed" or (outcome == "ok" and "censored" in result)):
            _add_change(counts, data, result)
        if outcome in {"failed", "unreachable"}:
            # A loop's own result says no more than that an item failed, and since ansible-core 2.21 not even which.
            culprit = counts.present.failed_item or result
            why = failure.message(culprit)
            role = data.get("role", "")
            counts.failure = TaskFailure(task=_title(data), message=why, role=role, item=failure.item(culprit))
        done = counts.ok + counts.skipped + counts.failed
        return Progress(outcome, task=_title(data), host=data["host"], done=done, text=why)

    def _settle(self, data: Mapping[str, Any]) -> None:
        """Ansible's own totals are right where events are not: it knows what a `rescue` has mended."""
        self._finished = True
        for host, counts in self._hosts.items():
            changed = data["changed"].get(host, 0)
            if changed <= counts.changed:  # what was hidden changed nothing
                counts.changes = [change for change in counts.changes if not change.hidden]
            counts.ok, counts.changed = data["ok"].get(host, 0), changed
            counts.skipped, counts.failed = data["skipped"].get(host, 0), data["failures"].get(host, 0)
            counts.unreachable = bool(data["dark"].get(host))
            if not counts.failed and not counts.unreachable:
                counts.failure = None

    def results(self, status: int) -> tuple[HostConverged, ...]:
        """One for each host. Raises ConvergeError when the playbook ended for a reason that is no host's."""
        results = tuple(_result(host, counts) for host, counts in self._hosts.items())
        if not self._finished or (status and not any(r.outcome in {"failed", "unreachable"} for r in results)):
            reason, position = explain("\n".join(self._lines))
            where = f"{position}: " if position else ""
            raise ConvergeError(
                f"{where}{reason or f'Ansible ended with status {status} and gave no reason'}",
                hint="Nothing is known about the hosts of this run. Run it again with -vvv to see more.",
            )
        return results


def _result(host: str, counts: _Counts) -> HostConverged:
    outcome: Literal["ok", "failed", "unreachable", "skipped"] = "ok" if counts.ok or counts.skipped else "skipped"
    if counts.unreachable:
        outcome = "unreachable"
    elif counts.failed:
        outcome = "failed"
    return HostConverged(
        host=host,
        outcome=outcome,
        ok=counts.ok,
        changed=counts.changed,
        skipped=counts.skipped,
        failed=counts.failed,
        failure=counts.failure,
        notes=counts.notes if outcome == "ok" else (),
        changes=tuple(counts.changes),
    )


def _add_item(present: _Present, result: Mapping[str, Any]) -> None:
    if result.get("changed") and len(present.things) < changes.THINGS:
        present.things += changes.things(result)


def _add_change(counts: _Counts, data: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """What the task that a host has just finished changed. The censored result of a silent task says nothing of it."""
    if len(counts.changes) >= CHANGES:
        return
    diff, room = counts.present.diff, max(0, DIFFS - sum(len(change.diff) for change in counts.changes))
    counts.changes.append(
        Change(
            task=_title(data),
            role=printable(str(data.get("role") or ""), 100),
            things=counts.present.things or changes.things(result),
            diff=diff if len(diff) <= room else f"{diff[:room]}…",
            hidden="censored" in result,
        )
    )


def _title(data: Mapping[str, Any]) -> str:
    task = printable(str(data.get("task") or data.get("name") or ""), 200)
    role = printable(str(data.get("role") or ""), 100)
    return f"{role} : {task}" if role and not task.startswith(f"{role} : ") else task
