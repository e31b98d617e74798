"""What check mode would change, from events as Ansible really sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator import changes
from orchestrator.inventory import AnsibleOptions
from orchestrator.model.run import Change, HostConverged
from orchestrator.tally import CHANGES, DIFFS, Progress, Tally

CHECK = AnsibleOptions(check=True, diff=True)
CENSORED = {"censored": "the output has been hidden due to the fact that 'no_log: true' was specified for this result"}


@pytest.mark.parametrize(
    ("result", "named"),
    [
        ({"path": "/etc/kvmfleet", "invocation": {"module_args": {"path": "/etc/other"}}}, ("/etc/kvmfleet",)),
        ({"invocation": {"dest": "/etc/x.conf", "module_args": {"src": "x"}}}, ("/etc/x.conf",)),
        ({"name": "libvirtd.service", "_ansible_item_label": "the daemon"}, ("the daemon",)),
        ({"item": {"key": "a"}, "_ansible_item_label": "/etc/x.conf"}, ("/etc/x.conf",)),
        ({"noted": ["unit a", "file /b"], "invocation": {"module_args": {"name": "c"}}}, ("unit a", "file /b")),
        ({"done": [], "path": "/x"}, ("/x",)),
        ({"commands": [["systemctl", "enable", "--", "a"]]}, ("systemctl enable -- a",)),
        ({"changes": {"virt_use_nfs": True}}, ("virt_use_nfs: True",)),
        ({"pools": {"disks": ["defined", "started"]}}, ("disks: defined, started",)),
        ({"diff": [{"after_header": "/etc/x.conf"}, {"after_header": "live"}, 7]}, ("/etc/x.conf", "live")),
        (
            {
                "diff": [
                    {"after_header": "/etc/sysctl.d/60-kvmfleet.conf", "before": "", "after": "vm.swappiness = 10\n"},
                    {"after_header": "live", "before": "", "after": ""},  # of a container, whose kernel is another's
                ]
            },
            ("/etc/sysctl.d/60-kvmfleet.conf",),
        ),
        (
            {"stdout": "Reading…\nInst htop (3.2)\nConf htop\n", "invocation": {"module_args": {"name": ["a", "b"]}}},
            ("htop",),
        ),
        ({"invocation": {"module_args": {"name": ["qemu-utils", "swtpm"]}}}, ("qemu-utils", "swtpm")),
        ({"msg": "Command would have run if not in check mode", "stdout": "", "cmd": "secret"}, ()),
        (CENSORED, ()),
        ({"path": {"a": {"b": []}}, "diff": [{"after_header": {}}], "pools": [{}, []]}, ("a:",)),
        ({"path": 7, "done": True, "invocation": "none", "diff": "none"}, ()),
    ],
)  # fmt: skip
def test_a_result_names_what_it_is_about(result: Mapping[str, Any], named: tuple[str, ...]) -> None:
    assert changes.things(result) == named


def test_what_a_host_names_is_short_and_cannot_act_on_a_terminal() -> None:
    named = changes.things({"done": ["\x1b[2J" + "x" * 100_000, *(str(n) for n in range(100_000))]})
    assert len(named) == changes.THINGS
    assert named[0].startswith("\\x1b[2J")
    assert len(named[0]) < 500


def test_secrets_and_keys_do_not_show_in_a_diff() -> None:
    shown = changes.diff(
        "--- before: /etc/libvirt/qemu.conf\r\n+++ after: /etc/libvirt/passwd.conf\r\n@@ -1,3 +1,2 @@\r\n"
        '-vnc_password = "hunter2"\r\n--- password = hunter5\r\n+max_files = 4096\r\n+   "key": "hunter3"\r\n'
        "-----BEGIN RSA PRIVATE KEY-----\r\n"
        "-hunter4\r\n------END RSA PRIVATE KEY-----\r\n keyfile = /etc/pki/key.pem\r\n"
        "+QVFBbEFuNWZhbkFuQWdBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\r\n+after\r\n"
    )
    assert shown.splitlines() == [
        "--- before: /etc/libvirt/qemu.conf",
        "+++ after: /etc/libvirt/passwd.conf",
        "@@ -1,3 +1,2 @@",
        *[f"-{changes.HIDDEN}"] * 2,
        "+max_files = 4096",
        f"+{changes.HIDDEN}",
        *[f"-{changes.HIDDEN}"] * 3,
        " keyfile = /etc/pki/key.pem",
        f"+{changes.HIDDEN}",
        "+after",
    ]


def test_a_diff_of_a_host_is_bounded_and_cannot_act_on_a_terminal() -> None:
    shown = changes.diff("+\x1b[2J\n" + "+x\n" * 100_000)
    assert shown.startswith("+\\x1b[2J\n+x")
    assert shown.endswith("…")
    assert len(shown) < changes.DIFF + 100


def event(name: str, task: str, res: Mapping[str, Any] | None = None, *, stdout: str = "") -> dict[str, Any]:
    return {"event": name, "stdout": stdout, "event_data": {"host": "h1", "task": task, "role": "libvirt", "res": res}}


def told(
    *events: dict[str, Any], changed: int, options: AnsibleOptions = CHECK
) -> tuple[HostConverged, list[Progress]]:
    """What comes of these events of host h1, and of stats that say that so many tasks changed something."""
    tally = Tally(["h1"])
    stats = {"ok": {"h1": 9}, "changed": {"h1": changed}, "skipped": {}, "failures": {}, "dark": {}}
    seen = [p for e in (*events, {"event": "playbook_on_stats", "event_data": stats}) for p in tally.count(e, options)]
    (result,) = tally.results(0)
    return result, seen


def test_the_changes_of_a_host_come_with_their_role_their_items_and_their_diff() -> None:
    shown = "--- before\r\n+++ after: /etc/a\r\n@@ -0,0 +1 @@\r\n+password = hunter2"
    result, seen = told(
        event("runner_on_start", "Write"),
        event("runner_on_file_diff", "Write", stdout=shown),
        event("runner_item_on_ok", "Write", {"changed": True, "_ansible_item_label": "/etc/a"}),
        event("runner_item_on_ok", "Write", {"changed": False, "_ansible_item_label": "/etc/b"}),
        event("runner_on_ok", "Write", {"changed": True, "msg": "All items completed"}),
        event("runner_on_start", "Look"),
        event("runner_on_ok", "Look", {"changed": False, "path": "/etc/c"}),
        event("runner_on_start", "Start"),
        event("runner_on_ok", "Start", {"changed": True, "name": "libvirtd.socket"}),
        changed=2,
    )
    assert [(change.task, change.role, change.things) for change in result.changes] == [
        ("libvirt : Write", "libvirt", ("/etc/a",)),
        ("libvirt : Start", "libvirt", ("libvirtd.socket",)),
    ]
    diff = f"--- before\n+++ after: /etc/a\n@@ -0,0 +1 @@\n+{changes.HIDDEN}"
    assert [change.diff for change in result.changes] == [diff, ""]
    assert [progress.text for progress in seen if progress.outcome == "text"] == [diff]


@pytest.mark.parametrize(("changed", "hidden"), [(1, [False]), (2, [True, False])])
def test_a_silent_task_counts_where_the_totals_say_that_it_would_change_something(
    changed: int, hidden: list[bool]
) -> None:
    result, _ = told(
        event("runner_item_on_ok", "Write the settings", CENSORED),
        event("runner_on_ok", "Write the settings", CENSORED),
        event("runner_on_ok", "Start", {"changed": True, "name": "libvirtd.socket"}),
        changed=changed,
    )
    assert [change.hidden for change in result.changes] == hidden
    assert result.changed == changed


def test_a_run_that_changes_hosts_keeps_no_list() -> None:
    done = event("runner_on_ok", "Start", {"changed": True, "name": "libvirtd.socket"})
    assert told(done, changed=1, options=AnsibleOptions())[0].changes == ()


def test_the_list_of_a_host_is_bounded() -> None:
    one = [
        event("runner_on_start", "Write"),
        event("runner_on_file_diff", "Write", stdout="+x\n" * 5000),
        event("runner_on_ok", "Write", {"changed": True, "path": "/etc/x"}),
    ]
    result, _ = told(*(one * 150), changed=150)
    assert (len(result.changes), result.changed) == (CHANGES, 150)
    assert sum(len(change.diff) for change in result.changes) <= DIFFS + CHANGES
    assert result.changes[-1] == Change("libvirt : Write", "libvirt", ("/etc/x",), "…")
