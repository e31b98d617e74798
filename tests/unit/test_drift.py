"""From what a host was and what it is to one word and a list."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from evidence import host

from orchestrator import drift, snapshot
from orchestrator.drift import Baseline
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.run import Collected

VERSION = "1.0"


def baseline(patch: Any = None, **more: str) -> Baseline:
    items = {**snapshot.take(host()).items, **(patch or {})}
    return Baseline(
        {k: v for k, v in items.items() if v is not None}, more.get("intent", "9f2c"), more.get("version", VERSION)
    )


def judged(evidence: Any = None, was: Baseline | None = None, intent: str = "9f2c") -> HostDrift:
    return drift.judge(Collected("hv1", "ssh", host(evidence)), was or baseline(), intent=intent, version=VERSION)


def test_an_untouched_host_is_in_sync() -> None:
    assert judged() == HostDrift("hv1", "in-sync")


def test_how_long_the_look_took_is_told_of_every_state() -> None:
    for collected in (Collected("hv1", "ssh", host(), took_s=0.5), Collected("hv1", "ssh", took_s=0.5)):
        assert drift.judge(collected, baseline(), intent="9f2c", version=VERSION).took_s == 0.5


def test_drift_names_what_was_expected_and_what_is_seen() -> None:
    found = judged({"packages": {"qemu-system-x86": "1:7.1"}})
    assert found.state == "drifted"
    assert found.items == (Drift("package:qemu-system-x86", "1:7.2+dfsg-7+deb12u13", "1:7.1"),)


def test_what_a_provision_left_is_named_until_it_is_something_else() -> None:
    item = "package:qemu-system-x86"
    was = msgspec.structs.replace(baseline(), left={item: "1:7.1", "package:ovmf": None})
    assert judged({"packages": {"qemu-system-x86": "1:7.1"}}, was).left == (item,)
    assert judged({"packages": {"qemu-system-x86": "1:7.0"}}, was).left == ()
    assert judged(was=was).left == ()


CARD, ETH1 = "hardware:card 0000:3b:00.0", "hardware:interface eth1"


def test_a_network_card_goes_to_a_guest_and_comes_back_without_drift() -> None:
    at_home, away = {CARD: "eth1", ETH1: "52:54:00:00:00:07 igb"}, {CARD: snapshot.WITH_A_GUEST}
    with_guest = {"identity": {"cards": {"0000:3b:00.0": []}}}
    back = {"identity": {"cards": {"0000:3b:00.0": ["eth1"]}, "interfaces": {"eth1": "52:54:00:00:00:07 igb"}}}
    assert judged(with_guest, baseline(at_home)).state == "in-sync"
    assert judged(back, baseline(away)).state == "in-sync"
    assert judged(with_guest, baseline(away)).state == "in-sync"


def test_a_network_card_that_is_gone_is_drift_wherever_the_others_are() -> None:
    other = {"identity": {"cards": {"0000:3c:00.0": []}}}
    was = baseline({CARD: "eth1", ETH1: "52:54:00:00:00:07 igb"})
    for now in ({}, other):
        assert [item.item for item in judged(now, was).items] == [ETH1]
    swapped = {"identity": {"cards": {"0000:3b:00.0": ["eth1"]}, "interfaces": {"eth1": "52:54:00:00:00:08 igb"}}}
    assert [item.item for item in judged(swapped, was).items] == [ETH1]


def test_a_baseline_that_knows_no_cards_yet_is_compared_by_interfaces() -> None:
    now = {"identity": {"cards": {"0000:3b:00.0": ["eth1"]}, "interfaces": {"eth1": "52:54:00:00:00:07 igb"}}}
    assert judged(now, baseline({ETH1: "52:54:00:00:00:07 igb"})).state == "in-sync"


def test_what_an_edited_contract_names_no_more_is_not_told_as_gone() -> None:
    path, package = "/etc/modules-load.d/kvmfleet.conf", "qemu-system-x86"
    unnamed = {"files": {path: None, "/etc/passwd": {"exists": True}}, "packages": {package: None}}
    named = {"files": {path: {"exists": False}}, "packages": {package: ""}}
    text = {"contract": {"text": "{}"}}
    assert [item.item for item in judged(unnamed | text).items] == ["contract"]
    assert [item.item for item in judged(named | text).items] == ["contract", f"file:{path}", f"package:{package}"]
    told = {item.item for item in judged(unnamed).items}
    assert told == {"file:/etc/passwd", f"file:{path}", f"package:{package}"}, "there is no other reason then"


def test_what_came_and_what_went_are_items() -> None:
    found = judged(was=baseline({"listener:16514": None, "sysctl:vm.swappiness": "live 10, next boot 10"}))
    assert found.items == (
        Drift("listener:16514", None, "open"),
        Drift("sysctl:vm.swappiness", "live 10, next boot 10", None),
    )


def test_another_intent_is_pending_and_drift_beside_it_stays_drift() -> None:
    assert (judged(intent="other").state, judged(intent="other").pending) == ("pending", True)
    found = judged({"packages": {"qemu-system-x86": ""}}, intent="other")
    assert (found.state, found.pending) == ("drifted", True)


def test_a_baseline_of_the_bare_playbook_knows_no_intent() -> None:
    assert judged(was=baseline(intent="")).state == "in-sync"


@pytest.mark.parametrize(("unreachable", "state"), [(True, "unreachable"), (False, "unknown")])
def test_a_silent_host_is_never_in_sync(unreachable: bool, state: str) -> None:
    silent = Collected("hv1", "ssh", problem="refused", hint="Look.", unreachable=unreachable)
    found = drift.judge(silent, baseline(), intent="9f2c", version=VERSION)
    assert (found.state, found.problem, found.hint) == (state, "refused", "Look.")


def test_without_a_baseline_there_is_nothing_to_compare_with() -> None:
    strange = drift.judge(Collected("hv1", "ssh", host()), None, intent="x", version=VERSION)
    assert strange.state == "never-provisioned"
    assert "another controller's" in strange.problem
    bare = drift.judge(Collected("hv1", "ssh", host({"contract": {"text": ""}})), None, intent="x", version=VERSION)
    assert bare.problem == "it is not provisioned"


def test_what_could_not_be_looked_at_is_not_in_sync_and_no_drift_either() -> None:
    found = judged({"errors": {"packages": "not done after 20 s"}, "packages": {"qemu-system-x86": None}})
    assert (found.state, found.items) == ("unknown", ())
    assert "packages: not done after 20 s" in found.problem
    both = judged({"errors": {"packages": "late"}, "members": {"libvirt": []}})
    assert (both.state, [item.item for item in both.items], both.problem) == (
        "drifted",
        ["member:libvirt"],
        "packages: late",
    )


def test_what_only_root_may_read_is_no_drift_for_another_user() -> None:
    unread = {"system": {"uid": 1000}, "files": {"/etc/modules-load.d/kvmfleet.conf": {"sha256": None}}}
    unread |= {"libvirt": {"settings": {}}, "contract": {"text": "", "error": "Permission denied"}}
    found = judged(unread)
    assert (found.state, found.items) == ("unknown", ())
    assert "collected as user 1000, most answers need root" in found.problem
    unread |= {"contract": {}, "packages": {"qemu-system-x86": ""}}
    assert [item.item for item in judged(unread).items] == ["package:qemu-system-x86"], "which everybody may see"


def test_what_an_older_kvmfleet_did_not_look_at_is_no_drift_after_the_upgrade() -> None:
    unknown = {name: None for name in snapshot.take(host()).items if name.startswith("member:")}
    assert judged(was=baseline(unknown, version="0.9")).state == "in-sync"
    assert judged(was=baseline(unknown)).state == "drifted"
    assert judged(was=baseline({"of a newer version:x": "y"}, version="2.0")).state == "in-sync"


def left(before: Any, after: Any, *, was: Baseline | None = None, intent: str = "9f2c") -> list[str]:
    looked = None if before is None else snapshot.take(host(before))
    found = drift.left(was or baseline(), looked, snapshot.take(host(after)), intent=intent, version=VERSION)
    return [item.item for item in found]


OLDER = {"packages": {"qemu-system-x86": "1:7.1"}}
ITEM = "package:qemu-system-x86"


def test_what_a_play_left_as_it_found_it_is_not_taken_for_granted() -> None:
    assert left(OLDER, OLDER) == [ITEM]
    assert left(OLDER, None) == [], "healed"
    assert left({}, OLDER) == [], "the play's own doing"
    assert left({"packages": {"qemu-system-x86": "1:7.0"}}, OLDER) == [], "changed again"
    assert left(OLDER, OLDER, intent="other") == [ITEM]


@pytest.mark.parametrize("before", [None, {"errors": {"packages": "late"}}], ids=["silent", "half blind"])
def test_what_nobody_saw_before_is_left_unless_the_play_was_asked_for_something_else(before: Any) -> None:
    assert left(before, OLDER) == [ITEM]
    assert left(before, OLDER, intent="other") == []


def test_of_a_machine_that_was_installed_anew_nothing_is_expected() -> None:
    was = baseline({"hardware:machine": "then"})
    assert left(OLDER, OLDER | {"identity": {"machine": "now"}}, was=was) == []
    assert left(OLDER, OLDER | {"identity": {"machine": "then"}}, was=was) == [ITEM]
    assert ITEM in left(OLDER, OLDER, was=was), "a machine that lost its name is no other"


def test_what_an_edited_contract_hid_from_the_look_before_the_play_is_left() -> None:
    """Otherwise who takes a file out of the contract has what is written into it expected after the next provision."""
    hidden = {"packages": {"qemu-system-x86": None}, "contract": {"text": "{}"}}
    assert left(hidden, OLDER) == [ITEM]
    assert left(hidden, OLDER, intent="other") == []
    assert left({"packages": {"qemu-system-x86": ""}}, OLDER) == [], "it was not installed, and the play did that"
