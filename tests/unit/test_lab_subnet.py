"""The choice of a subnet against route tables."""

from ipaddress import IPv4Network as Net

import pytest

from orchestrator.errors import LabError
from orchestrator.lab import subnet


def test_a_machine_without_routes_gets_the_first_candidate():
    assert subnet.choose(()) == subnet.CANDIDATES[0]


def test_a_smaller_network_inside_a_candidate_rules_it_out():
    assert subnet.choose([Net("10.213.0.128/30")]) == subnet.CANDIDATES[1]


def test_a_network_around_all_of_10_moves_the_lab_to_another_private_range():
    assert subnet.choose([Net("10.0.0.0/8")]).subnet_of(Net("172.16.0.0/12"))


def test_two_ranges_in_use_leave_the_third():
    assert subnet.choose([Net("10.0.0.0/8"), Net("172.16.0.0/12")]).subnet_of(Net("192.168.0.0/16"))


def test_default_routes_rule_nothing_out_not_even_in_two_halves():
    assert subnet.choose([Net("0.0.0.0/0"), Net("0.0.0.0/1"), Net("128.0.0.0/1")]) == subnet.CANDIDATES[0]


def test_no_free_subnet_is_said_with_the_command_that_shows_why():
    with pytest.raises(LabError, match="free") as caught:
        subnet.choose([Net("10.0.0.0/8"), Net("172.16.0.0/12"), Net("192.168.0.0/16")])
    assert "ip route show table all" in caught.value.hint


def test_candidates_keep_off_each_other_and_off_what_libvirt_takes():
    taken_by_libvirt = [Net(f"192.168.{third}.0/24") for third in range(122, 129)]
    networks = [*subnet.CANDIDATES, *taken_by_libvirt]
    assert not [(a, b) for i, a in enumerate(networks) for b in networks[i + 1 :] if a.overlaps(b)]
    assert all(network.is_private for network in subnet.CANDIDATES)


def test_routes_of_every_type_and_table_count():
    routes = [
        {"dst": "default", "gateway": "10.9.9.1", "dev": "eth0"},
        {"dst": "10.9.9.0/24", "dev": "eth0", "table": "vpn"},
        {"type": "local", "dst": "10.1.2.3", "dev": "lo", "table": "local"},
        {"type": "blackhole", "dst": "172.20.0.0/16"},
    ]
    assert list(subnet.of_routes(routes)) == [Net("10.9.9.0/24"), Net("10.1.2.3/32"), Net("172.20.0.0/16")]


def test_an_address_without_a_route_counts_with_its_network():
    links = [{"ifname": "dummy0", "addr_info": [{"local": "172.29.64.7", "prefixlen": 24}]}, {"ifname": "down0"}]
    assert list(subnet.of_links(links)) == [Net("172.29.64.0/24")]


def test_this_machine_can_be_asked():
    assert Net("127.0.0.1/32") in subnet.in_use()


def test_a_stub_resolver_is_passed_over_for_what_is_behind_it(tmp_path):
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    upstream.write_text("nameserver 192.0.2.53\n")
    assert subnet.resolver(stub, upstream) == "nameserver 192.0.2.53\n"


def test_a_real_resolver_is_taken_as_it_is(tmp_path):
    etc, upstream = tmp_path / "etc", tmp_path / "upstream"
    etc.write_text("search example.org\nnameserver 192.0.2.1\nnameserver ::1\nnameserver\n")
    upstream.write_text("nameserver 192.0.2.53\n")
    assert subnet.resolver(etc, upstream) == etc.read_text()


def test_a_machine_without_any_resolver_is_no_error(tmp_path):
    assert subnet.resolver(tmp_path / "none", tmp_path / "none") == ""
