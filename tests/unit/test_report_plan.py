"""The plan, for people and machines."""

import json

import pytest
from test_report import show

from orchestrator.model.run import Change, HostConverged, TaskFailure
from orchestrator.report import plan as report

SOCKET = Change("libvirt : Start", "libvirt", ("libvirtd.socket", "virtlogd.socket"))
PACKAGES = Change("qemu_kvm : Install", "qemu_kvm", tuple(f"package-{n}" for n in range(8)))
SECRET = Change("libvirt : Write the settings", "libvirt", hidden=True)
CONVERGED = (
    HostConverged("hv1", "ok", ok=9, changed=2, changes=(SOCKET, PACKAGES)),
    HostConverged("hv2", "ok", ok=9),
    HostConverged("hv3", "ok", ok=9, changed=2, changes=(SOCKET, PACKAGES)),
    HostConverged("hv4", "unreachable", failure=TaskFailure("Gather", "connection refused")),
    HostConverged(
        "hv5", "failed", changed=1, changes=(SOCKET,), failure=TaskFailure("libvirt : Look", "no rule", item="a")
    ),
    HostConverged("hv6", "ok", ok=9),
    HostConverged("hv7", "skipped"),
)


def shown(*converged, **options):
    return show(report.report(report.plan(converged), **options), width=80)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([("ok", 0)], 0),
        ([("ok", 0), ("ok", 1)], 2),
        ([("ok", 1), ("unreachable", 0)], 1),
        ([("failed", 1)], 1),
        ([("ok", 0), ("skipped", 0)], 1),
        ([], 1),
    ],
)
def test_the_exit_code_says_whether_anything_would_change_and_not_knowing_wins(outcomes, code):
    hosts = [HostConverged(f"h{n}", outcome, changed=changed) for n, (outcome, changed) in enumerate(outcomes)]
    assert report.exit_code(report.plan(hosts)) == code


def test_hosts_of_which_the_same_is_to_be_told_are_told_once():
    text = shown(*CONVERGED)
    assert text.count("hv2, hv6: nothing to change\n") == 1
    assert text.count("hv1, hv3: would change: 2 tasks\n") == 1
    assert "  libvirt : Start\n      libvirtd.socket, virtlogd.socket\n" in text
    assert "package-5 and 2 more, see -v" in " ".join(text.split())
    assert "package-7" in shown(*CONVERGED, verbose=True)
    assert text.index("hv2") < text.index("hv1") < text.index("hv4")


def test_a_host_that_cannot_be_planned_says_why_and_what_was_seen_before():
    text = shown(*CONVERGED)
    assert "hv4: cannot be planned: unreachable: Gather: connection refused\n" in text
    assert "hv5: cannot be planned: failed in check mode: libvirt : Look (a): no rule\n" in text
    assert "  before that, would change: 1 task\n  libvirt : Start\n" in text
    assert "hv7: cannot be planned: no task was run on it; --tags" in text
    assert "\n7 hosts: 2 nothing to change, 2 would change, 3 cannot be planned\n" in text


def test_what_check_mode_cannot_see_is_said_once_and_nothing_is_called_drift():
    text = shown(*CONVERGED)
    assert text.count("Check mode sees what is there now") == 1
    assert "drift" not in text


@pytest.mark.parametrize(("changed", "said"), [(2, False), (1, True)])
def test_a_hidden_task_says_so_and_where_it_is_not_sure_how_many_of_them(changed, said):
    text = shown(HostConverged("hv1", "ok", changed=changed, changes=(SECRET, SECRET)))
    assert text.count("hidden, as it may hold a secret (no_log)") == 2
    assert ("of the hidden ones only 1 task\n" in text) == said


def test_a_list_that_was_cut_says_how_much_is_missing():
    assert "  and 149 more\n" in shown(HostConverged("hv1", "ok", changed=150, changes=(SOCKET,)))


def test_diffs_are_shown_at_their_task():
    change = Change("libvirt : Write", "libvirt", ("/etc/a",), "--- before\n+++ after: /etc/a\n@@ -0,0 +1 @@\n+a\tb")
    text = shown(HostConverged("hv1", "ok", changed=1, changes=(change,)))
    assert (
        "  libvirt : Write\n      /etc/a\n      --- before\n      +++ after: /etc/a\n      @@ -0,0 +1 @@\n      +a"
        in text
    )


def test_a_digest_that_every_host_has_of_its_own_does_not_keep_hosts_apart():
    def host(name, digest, swap=10):
        diff = f'--- before\n+++ after\n-  "intent_digest": "old",\n+  "intent_digest": "{digest}",\n+  "swap": {swap}'
        return HostConverged(
            name, "ok", changed=1, changes=(Change("host_contract : Write", "host_contract", (), diff),)
        )

    text = shown(host("hv1", "1a"), host("hv2", "2b"), host("hv3", "3c", swap=20))
    assert "hv1, hv2: would change: 1 task\n" in text
    assert "hv3: would change: 1 task\n" in text


def test_programs_get_every_host_with_its_state_and_its_changes():
    document = json.loads(report.render(report.plan(CONVERGED)))
    assert document["command"] == "plan"
    assert document["summary"] == {"unchanged": 2, "changes": 2, "unknown": 3}
    states = [host["state"] for host in document["hosts"]]
    assert states == ["changes", "unchanged", "changes", "unknown", "unknown", "unchanged", "unknown"]
    assert document["hosts"][0]["changes"][0] == {
        "task": "libvirt : Start",
        "role": "libvirt",
        "things": ["libvirtd.socket", "virtlogd.socket"],
        "diff": "",
        "hidden": False,
    }
