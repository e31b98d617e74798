"""Forwarding switched and put back, and rules found in the firewalls of others."""

import pytest

from orchestrator.lab import network


@pytest.fixture
def machine(tmp_path):
    """A copy of /proc/sys/net/ipv4/conf in which nothing forwards, and an empty /run/kvmfleet."""
    for device in ("all", "eth0", "kvmf-1"):
        (tmp_path / "conf" / device).mkdir(parents=True)
        (tmp_path / "conf" / device / "forwarding").write_text("0\n")
    (tmp_path / "run").mkdir()
    return {"conf": tmp_path / "conf", "state": tmp_path / "run"}


def forwards(machine, device):
    return (machine["conf"] / device / "forwarding").read_text() == "1\n"


def test_forwarding_is_switched_on_for_the_interfaces_only_and_put_back(machine):
    network.forward("1", ["kvmf-1", "eth0"], **machine)
    assert forwards(machine, "eth0")
    assert forwards(machine, "kvmf-1")
    assert not forwards(machine, "all")
    network.unforward("1", **machine)
    assert not forwards(machine, "eth0")
    assert not machine["state"].exists()


def test_the_last_lab_puts_forwarding_back_and_no_earlier_one(machine):
    network.forward("1", ["eth0"], **machine)
    network.forward("2", ["eth0"], **machine)
    network.unforward("1", **machine)
    assert forwards(machine, "eth0")
    network.unforward("2", **machine)
    assert not forwards(machine, "eth0")


def test_a_bridge_that_goes_with_its_lab_leaves_no_note_while_other_labs_stay(machine):
    network.forward("1", ["kvmf-1", "eth0"], **machine)
    network.forward("2", ["eth0"], **machine)
    network.unforward("1", **machine)
    assert sorted(path.name for path in machine["state"].rglob("*") if path.is_file()) == ["eth0", "lab-2"]


def test_forwarding_that_was_on_before_stays_on(machine):
    (machine["conf"] / "eth0" / "forwarding").write_text("1\n")
    network.forward("1", ["eth0"], **machine)
    network.unforward("1", **machine)
    assert forwards(machine, "eth0")


def test_forwarding_that_someone_switched_on_for_all_meanwhile_stays_on(machine):
    network.forward("1", ["eth0"], **machine)
    (machine["conf"] / "all" / "forwarding").write_text("1\n")
    network.unforward("1", **machine)
    assert forwards(machine, "eth0")
    assert not machine["state"].exists()


def test_an_interface_that_is_gone_is_no_error(machine):
    network.forward("1", ["kvmf-1"], **machine)
    (machine["conf"] / "kvmf-1" / "forwarding").unlink()
    network.unforward("1", **machine)
    assert not machine["state"].exists()


def test_doing_it_twice_keeps_the_first_former_value(machine):
    network.forward("1", ["eth0"], **machine)
    network.forward("1", ["eth0"], **machine)
    network.unforward("1", **machine)
    network.unforward("1", **machine)
    assert not forwards(machine, "eth0")


def chain(family, table, name, **more):
    return {"chain": {"family": family, "table": table, "name": name, "handle": 1, **more}}


def test_only_forwarding_chains_that_drop_are_opened():
    entries = [
        {"metainfo": {}},
        {"table": {"family": "ip", "name": "filter"}},
        chain("ip", "filter", "FORWARD", hook="forward", policy="drop"),
        chain("inet", "mine", "forward", hook="forward", policy="drop"),
        chain("ip", "other", "forward", hook="forward", policy="accept"),
        chain("ip", "filter", "INPUT", hook="input", policy="drop"),
        chain("ip6", "filter", "FORWARD", hook="forward", policy="drop"),
        chain("ip", "filter", "DOCKER-USER"),
    ]
    assert list(network._dropping(entries)) == [("ip", "filter", "FORWARD"), ("inet", "mine", "forward")]


def rule(handle, **more):
    return {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": handle, "expr": [], **more}}


def test_only_rules_with_the_labs_own_comment_are_its_own():
    entries = [
        rule(4),
        rule(5, comment="kvmfleet_00c0ffee"),
        rule(6, comment="kvmfleet_00c0ffe"),
        rule(7, comment="docker"),
    ]
    assert list(network._own_rules("00c0ffee", entries)) == [(("ip", "filter", "FORWARD"), 5)]


def test_the_names_of_interfaces_fit_into_what_linux_allows():
    assert len(network.bridge("00c0ffee")) <= 15
    assert len("vb-00c0ffee-100") <= 15
