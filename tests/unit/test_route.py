"""Which way leads to a host, for every shape that an inventory may give it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.inventory import Host, Secrets
from orchestrator.reach.route import AnsibleRoute, LocalRoute, SshRoute, choose
from orchestrator.reach.ssh_arguments import parse


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the ssh configuration of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def ssh(secrets: Secrets = Secrets(), **fields: Any) -> SshRoute:
    way = choose(Host(name="hv1", address="192.0.2.1", **fields), secrets)
    assert isinstance(way, SshRoute), way
    return way


def reason(secrets: Secrets = Secrets(), **fields: Any) -> str:
    way = choose(Host(name="hv1", address="192.0.2.1", **fields), secrets)
    assert isinstance(way, AnsibleRoute), way
    return way.reason


def test_a_plain_host_is_asked_over_ssh_and_its_ssh_configuration_decides_the_rest() -> None:
    assert ssh() == SshRoute(address="192.0.2.1")


def test_what_the_inventory_says_is_in_the_route() -> None:
    way = ssh(port=2222, user="amy", private_key="/k", python="/usr/bin/python3.9", connect_timeout_s=3)
    assert (way.port, way.user, way.keys, way.python) == (2222, "amy", ("/k",), "/usr/bin/python3.9")
    assert way.connect_timeout_s == 3


@pytest.mark.parametrize(
    "name", ["$(id)", "a;id", "`id`", "a b", "-oProxyCommand=id", "a\nb", "a|id", "a'", 'a"', "a\\"]
)
def test_a_name_that_a_shell_would_act_on_is_left_to_ssh_which_refuses_it(name: str) -> None:
    """A ProxyCommand of the ssh configuration is a line for a shell, with the address and the user in it."""
    assert choose(Host(name="hv1", address=name), Secrets()) == AnsibleRoute(reason="its address is an odd one")
    assert reason(user=name) == "its user is an odd one"


@pytest.mark.parametrize("user", ["amy", "amy@example.org", r"EXAMPLE\amy", "amy.b-c+d", "höst"])
def test_ordinary_users_are_asked_for_over_ssh(user: str) -> None:
    assert ssh(user=user).user == user


def test_a_local_host_ignores_what_concerns_ssh() -> None:
    here = Host(name="here", address="x", connection="local", ssh_args="-o Ciphers=x", variables={"ansible_ssh_x": 1})
    assert choose(here, Secrets()) == LocalRoute()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"connection": "community.docker.docker"}, "its connection is community.docker.docker"),
        ({"templated": ("ansible_user",)}, "ansible_user is a template"),
        ({"become_method": "doas"}, "it becomes root with doas"),
        ({"become_user": "amy"}, "it becomes amy"),
        ({"variables": {"ansible_sudo_pass": "x"}}, "ansible_sudo_pass is set"),
        ({"variables": {"ansible_become_flags": "-E"}}, "ansible_become_flags is set"),
        ({"variables": {"ansible_ssh_executable": "/opt/ssh"}}, "ansible_ssh_executable is set"),
        ({"variables": {"ansible_ssh_pkcs11_provider": "/lib/x.so"}}, "ansible_ssh_pkcs11_provider is set"),
        ({"ssh_args": "-o Ciphers=aes128-ctr"}, "its ssh arguments hold ciphers"),
        ({"ssh_args": "-F other"}, "its ssh arguments hold -F"),
        ({"ssh_args": "-o ProxyCommand='nc %h %p'"}, "its ssh arguments hold proxycommand"),
        ({"ssh_args": "-o UserKnownHostsFile=/%h"}, "its ssh arguments hold userknownhostsfile"),
        ({"ssh_args": "-o 'unfinished"}, "its ssh arguments hold"),
        ({"ssh_args": "-l bob", "user": "amy"}, "different users"),
        ({"ssh_args": "-p 23", "port": 22}, "different ports"),
        ({"ssh_args": "-p ssh"}, "odd port"),
        ({"ssh_args": "-l '$(id)'"}, "its user is an odd one"),
    ],
)
def test_what_only_ansible_understands_goes_through_ansible_and_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in reason(**fields)


@pytest.mark.parametrize("name", ["ansible_become_password", "ansible_become_pass"])
def test_a_become_password_is_for_sudo_alone_and_is_never_shown(name: str) -> None:
    typed = Secrets(become="typed")
    assert ssh(typed).become_password == "typed"
    assert ssh(typed, variables={name: "written"}).become_password == "written"
    assert ssh(typed, variables={"ansible_become": False}).become_password == ""
    here = choose(Host(name="here", address="x", connection="local", variables={name: "written"}), typed)
    assert isinstance(here, LocalRoute)
    assert here.become_password == "written"
    assert "written" not in repr(here)
    assert "written" not in repr(ssh(variables={name: "written"}))


@pytest.mark.parametrize("value", [False, "no", "False", "0", 0])
def test_sudo_is_left_out_where_the_inventory_forbids_it(value: object) -> None:
    assert not ssh(variables={"ansible_become": value}).sudo


@pytest.mark.parametrize("value", [True, "yes", "true", 1])
def test_sudo_is_used_otherwise(value: object) -> None:
    assert ssh(variables={"ansible_become": value}).sudo
    assert ssh().sudo


@pytest.mark.parametrize("name", ["ansible_password", "ansible_ssh_pass", "ansible_ssh_password"])
def test_a_password_of_the_inventory_comes_before_the_one_that_was_typed_and_is_never_shown(name: str) -> None:
    way = ssh(Secrets(connection="typed"), variables={name: "written"})
    assert way.password == "written"
    assert ssh(Secrets(connection="typed")).password == "typed"
    assert "written" not in repr(way)


@pytest.mark.parametrize(
    ("fields", "trust"),
    [
        ({}, "config"),
        ({"host_key_checking": False}, "off"),
        ({"host_key_checking": False, "ssh_args": "-o StrictHostKeyChecking=yes"}, "off"),
        ({"ssh_args": "-o StrictHostKeyChecking=no"}, "off"),
        ({"ssh_args": "-o StrictHostKeyChecking=accept-new"}, "accept-new"),
        ({"ssh_args": "-o StrictHostKeyChecking=ask"}, "strict"),
        ({"ssh_args": "-o StrictHostKeyChecking=YES -o StrictHostKeyChecking=no"}, "strict"),
    ],
)
def test_how_far_a_host_key_is_trusted(fields: dict[str, Any], trust: str) -> None:
    assert ssh(**fields).trust == trust


@pytest.mark.parametrize(
    "text",
    [
        "-o User=amy -o Port=23 -o IdentityFile=/a -o IdentityFile=/b -o ProxyJump=j",
        "-l amy -p 23 -i /a -i /b -J j",
        "-lamy -p23 -i/a -i/b -Jj",
        "-o 'User amy' -o'Port 23' -o 'identityfile = /a' -oIdentityFile=\"/b\" -oPROXYJUMP=j -C -q",
    ],
)
def test_ssh_arguments_are_understood_however_they_are_spelt(text: str) -> None:
    assert parse(text) == {"user": ("amy",), "port": ("23",), "identityfile": ("/a", "/b"), "proxyjump": ("j",)}


def test_arguments_that_only_tune_the_connection_are_left_out() -> None:
    assert parse("-C -o ControlMaster=auto -o ControlPersist=60s -o ControlPath=/x/%r -o ServerAliveInterval=5") == {}


@given(st.text())
def test_arguments_are_either_understood_or_refused_with_valueerror(text: str) -> None:
    try:
        values = parse(text)
    except ValueError:
        return
    assert all(value for several in values.values() for value in several)
