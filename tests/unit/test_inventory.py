"""Reading the fleet, with the real Ansible; every mistake a user can make is one line with a way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from patience import until

from orchestrator import ansible_cfg, inventory, paths, processes
from orchestrator.ansible_cfg import Settings
from orchestrator.ansible_read import explain
from orchestrator.errors import InventoryError
from orchestrator.inventory import AnsibleOptions, Fleet, Host

pytestmark = pytest.mark.ansible

Write = Callable[..., str]
THREE = "[kvm_hosts]\nb\na\nc\n"
NO_OPTIONS = AnsibleOptions()
NO_SETTINGS = Settings()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and a home of our own, and no setting of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("ANSIBLE_")]:
        monkeypatch.delenv(name)


def write(text: str, name: str = "hosts.ini", mode: int = 0o644) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return name


def load(*sources: str, limit: str = "", **options: object) -> Fleet:
    return inventory.load(AnsibleOptions(inventory=sources, limit=limit, **options))  # type: ignore[arg-type]


def names(*sources: str, limit: str = "") -> list[str]:
    return [host.name for host in load(*sources, limit=limit).hosts]


def host(options: AnsibleOptions = NO_OPTIONS, settings: Settings = NO_SETTINGS, **variables: object) -> Host:
    """One host with these variables, without asking Ansible."""
    return listed({"h1": variables}, options, settings)


def listed(
    hosts: dict[str, dict[str, object]], options: AnsibleOptions = NO_OPTIONS, settings: Settings = NO_SETTINGS
) -> Host:
    answer = {"all": {"children": ["kvm_hosts"]}, "kvm_hosts": {"hosts": [*hosts]}, "_meta": {"hostvars": hosts}}
    return inventory.decode(json.dumps(answer).encode(), options, settings).hosts[0]


def refusal(*sources: str, limit: str = "", **options: object) -> InventoryError:
    with pytest.raises(InventoryError) as caught:
        load(*sources, limit=limit, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# -- which hosts ----------------------------------------------------------------------------------------------------


def test_hosts_come_in_the_order_of_the_inventory() -> None:
    assert names(write(THREE)) == ["b", "a", "c"]


def test_groups_below_the_group_count_and_each_host_once() -> None:
    head = "[kvm_hosts]\nz\n[kvm_hosts:children]\neast\nwest\n"
    source = write(head + "[east]\nb\na\n[west]\na\nc\n[west:children]\nrack\n[rack]\nr\n")
    assert names(source) == ["z", "b", "a", "c", "r"]
    assert names(source, limit="west:!rack") == ["a", "c"]


def test_a_group_inside_another_group_is_found() -> None:
    assert names(write("[site:children]\nkvm_hosts\n[kvm_hosts]\na\n")) == ["a"]


def test_hosts_outside_the_group_are_left_alone() -> None:
    assert names(write("[kvm_hosts]\na\n[others]\nb\n"), limit="a:b") == ["a"]


@pytest.mark.parametrize(
    ("limit", "left"),
    [("a", ["a"]), ("a,c", ["a", "c"]), ("all:!a", ["b", "c"]), ("kvm_hosts[0]", ["b"]), ("~[bc]", ["b", "c"])],
)
def test_the_limit_is_a_pattern_of_ansible(limit: str, left: list[str]) -> None:
    assert names(write(THREE), limit=limit) == left


def test_the_limit_may_be_a_retry_file() -> None:
    write("c\nb\n", "provision.retry")
    assert names(write(THREE), limit="@provision.retry") == ["b", "c"]


def test_several_sources_are_one_fleet() -> None:
    assert names(write(THREE), "d,", write("[kvm_hosts]\nd\n", "more.ini")) == ["b", "a", "c", "d"]


def test_the_hosts_of_lists_alone_are_all_meant() -> None:
    assert names("b,a") == ["b", "a"]
    assert names("b,", "a,") == ["b", "a"]
    assert names("b,a", limit="a") == ["a"]
    assert "the limit names c," in refusal("b,a", limit="c").message
    assert "no group kvm_hosts" in refusal("b,a", write("[web]\nc\n")).message


def test_a_folder_is_an_inventory() -> None:
    write(THREE, "site/one")
    write("[kvm_hosts]\nd\n", "site/two")
    assert names("site") == ["b", "a", "c", "d"]


def test_a_script_is_an_inventory() -> None:
    write('#!/bin/sh\necho \'{"kvm_hosts": {"hosts": ["s1"]}, "_meta": {"hostvars": {"s1": {"x": 1}}}}\'\n', "s", 0o755)
    (only,) = load("s").hosts
    assert (only.name, only.variables["x"]) == ("s1", 1)


def test_ansible_cfg_names_the_inventory_where_the_user_does_not() -> None:
    write(THREE)
    write("[defaults]\ninventory = hosts.ini\n", "ansible.cfg")
    assert names() == ["b", "a", "c"]


# -- how to reach them ----------------------------------------------------------------------------------------------


def test_a_host_without_variables_is_reached_by_its_name() -> None:
    plain = host()
    assert (plain.address, plain.connection, plain.port, plain.user, plain.templated) == ("h1", "ssh", None, "", ())


def test_variables_win_over_options_and_options_over_ansible_cfg() -> None:
    options, settings = AnsibleOptions(user="option", private_key="/option"), Settings(user="cfg", private_key="/cfg")
    assert host(settings=settings).user == "cfg"
    assert host(options, settings).user == "option"
    said = host(options, settings, ansible_user="variable", ansible_ssh_private_key_file="/variable")
    assert (said.user, said.private_key) == ("variable", "/variable")


def test_ansible_cfg_and_extra_variables_reach_the_host() -> None:
    cfg = "[defaults]\nremote_user = cfg\nprivate_key_file = /cfg\n[ssh_connection]\nssh_args = -o A=1\nport = 26\n"
    write(cfg, "ansible.cfg")
    (said,) = load(write("[kvm_hosts]\nh1 x=inventory\n"), extra_vars=("ansible_port=24", '{"x": "extra"}')).hosts
    assert (said.user, said.private_key, said.ssh_args, said.port) == ("cfg", "/cfg", "-o A=1", 24)
    assert said.variables["x"] == "extra"


def test_an_option_of_ssh_from_anywhere_is_passed_on() -> None:
    said = host(settings=Settings(ssh_args="-o A=1"), ansible_ssh_common_args="-o B=2", ansible_ssh_extra_args="-o C=3")
    assert said.ssh_args == "-o A=1 -o B=2 -o C=3"


def test_host_keys_are_checked_unless_somebody_said_otherwise() -> None:
    off = Settings(host_key_checking=False)
    assert host().host_key_checking is True
    assert host(ansible_ssh_host_key_checking=False).host_key_checking is False
    assert host(settings=off).host_key_checking is False
    assert host(settings=off, ansible_host_key_checking="yes").host_key_checking is True


def test_the_environment_may_turn_host_key_checking_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_HOST_KEY_CHECKING", "False")
    assert load(write(THREE)).hosts[0].host_key_checking is False


def test_names_of_connections_are_told_apart_by_what_they_are() -> None:
    assert host(ansible_connection="ansible.builtin.local").connection == "local"
    assert host(ansible_connection="smart").connection == "ssh"
    assert host(ansible_connection="community.general.lxd").connection == "community.general.lxd"
    assert host(settings=Settings(connection="local")).connection == "local"


def test_jinja_in_the_way_to_a_host_is_marked_and_not_guessed() -> None:
    said = host(ansible_host="{{ nowhere }}", ansible_port="{{ p }}", motd="{{ x }}")
    assert said.templated == ("ansible_host", "ansible_port")
    assert said.port is None


def test_a_variable_encrypted_in_place_is_marked_and_a_value_marked_unsafe_is_taken_as_it_is() -> None:
    text = "h1: {ansible_password: !vault '$ANSIBLE_VAULT;1.1;AES256', ansible_user: !unsafe 'a{{b', x: '{{ y }}'}"
    (said,) = load(write(f"kvm_hosts: {{hosts: {{{text}}}}}\n", "h.yml")).hosts
    assert said.templated == ("ansible_password",)
    assert said.user == "a{{b"


def test_group_vars_beside_the_inventory_and_vault_work() -> None:
    write("pw\n", "password")
    vault(write("secret: hidden\n", "group_vars/kvm_hosts.yml"), "password")
    for given in ({"vault_password_files": ("password",)}, {"vault_ids": ("site@password",)}):
        said = load(write(THREE), **given).hosts[0]
        assert said.variables["secret"] == "hidden"
        assert "hidden" not in repr(said)


def vault(file: str, password: str) -> None:
    program = str(Path(sys.executable).parent / "ansible-vault")
    subprocess.run([program, "encrypt", "--vault-password-file", password, file], check=True, capture_output=True)


def test_group_vars_of_the_working_directory_do_not_count_as_a_playbooks() -> None:
    write("stray: true\n", "group_vars/kvm_hosts.yml")
    assert "stray" not in load(write(THREE, "site/hosts.ini")).hosts[0].variables


def test_what_ansible_cfg_says_about_paths_reaches_the_run() -> None:
    write("[defaults]\nroles_path = mine\nforks = 7\n[ssh_connection]\npipelining = false\n", "ansible.cfg")
    settings = load(write(THREE)).settings
    assert settings.roles_path == (str(Path("mine").absolute()),)
    assert (settings.forks, settings.pipelining) == (7, False)


def test_ansible_config_is_not_asked_where_there_is_nothing_to_learn() -> None:
    assert ansible_cfg.questions() == {}
    ours = (paths.content() / "ansible.cfg").read_text()
    write(ours, "ansible.cfg")
    assert ansible_cfg.questions() == {}
    for theirs in ("remote_user = admin", "pipelining = false", "no section"):
        write(ours.replace("pipelining = true", theirs), "ansible.cfg")
        assert ansible_cfg.questions().keys() == {"base", "ssh"}


# -- mistakes -------------------------------------------------------------------------------------------------------


def test_a_missing_source_is_named() -> None:
    assert refusal("nowhere.yml").message == "inventory nowhere.yml: no such file or folder"
    assert refusal("~nobody-at-all/x.yml").message == "inventory ~nobody-at-all/x.yml: no such file or folder"


def test_one_missing_source_of_two_is_no_smaller_fleet() -> None:
    assert "nowhere.yml" in refusal(write(THREE), "nowhere.yml").message


def test_an_unreadable_source_says_why() -> None:
    write(THREE, "closed/hosts.ini")
    folder = Path("closed")
    folder.chmod(0)
    if os.access(folder, os.X_OK):  # root passes every mode: a loop of links stops even root
        folder.chmod(0o755)
        Path("closed/hosts.ini").unlink()
        Path("closed/hosts.ini").symlink_to("hosts.ini")
    assert "Permission denied" in (why := refusal("closed/hosts.ini").message) or "symbolic links" in why
    folder.chmod(0o755)


def test_an_empty_source_is_named() -> None:
    assert refusal(write("")).message == "inventory hosts.ini: is empty"


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("inventory", {"inventory": ("",)}),
        ("extra variables", {"extra_vars": ("@",)}),
        ("vault password", {"vault_password_files": ("",)}),
        ("vault password", {"vault_ids": ("dev@",)}),
    ],
)
def test_an_empty_name_is_not_this_folder(what: str, given: dict[str, tuple[str, ...]]) -> None:
    write("[kvm_hosts]\na\n")
    with pytest.raises(InventoryError) as caught:
        inventory.load(AnsibleOptions(**{"inventory": ("hosts.ini",), **given}))
    assert caught.value.message == f"{what}: an empty name"


def test_an_empty_folder_is_named() -> None:
    Path("site").mkdir()
    assert refusal("site").message == "inventory site: is empty"


def test_a_folder_with_nothing_that_is_an_inventory_is_named() -> None:
    write("hello", "site/readme.txt~")
    assert "/site: " in refusal("site").message


def test_a_yaml_error_is_shown_with_its_line() -> None:
    message = refusal(write("kvm_hosts:\n  hosts:\n    a:\n      x: 1\n     y: 2\n", "h.yml")).message
    assert "h.yml:5:" in message
    assert "did not find expected" in message
    assert "y: 2" in message


def test_an_ini_error_says_what_is_wrong_and_where() -> None:
    message = refusal(write("[kvm_hosts:offspring]\na\n")).message
    assert "hosts.ini" in message
    assert "[kvm_hosts:offspring] has unknown type: offspring" in message


def test_one_bad_source_of_two_is_no_smaller_fleet() -> None:
    assert "bad.ini" in refusal(write(THREE), write("[kvm_hosts:offspring]\n", "bad.ini")).message


def test_a_failing_script_is_quoted() -> None:
    message = refusal(write("#!/bin/sh\necho the cloud is down >&2\nexit 3\n", "s.sh", 0o755)).message
    assert "non-zero return code 3" in message.replace("exit code", "return code")
    assert "the cloud is down" in message


def test_a_script_that_prints_no_json_is_named() -> None:
    assert "JSON" in refusal(write("#!/bin/sh\necho '{nope'\n", "s.sh", 0o755)).message


def test_a_script_that_prints_terminal_escapes_cannot_use_them() -> None:
    assert refusal(write("#!/bin/sh\nprintf '\\033[2Jx' >&2\nexit 3\n", "s.sh", 0o755)).message.isprintable()


def test_a_missing_group_is_named_beside_those_that_there_are() -> None:
    error = refusal(write("[web]\na\n[db]\nb\n"))
    assert error.message == "inventory: there is no group kvm_hosts (groups: db, web)"


def test_a_group_without_hosts_is_told_from_a_missing_one() -> None:
    assert "kvm_hosts has no hosts" in refusal(write("[kvm_hosts]\n[web]\na\n")).message


def test_no_inventory_at_all_asks_for_one() -> None:
    assert refusal().hint == "Name one with -i, or in ansible.cfg as `inventory`."


@pytest.mark.parametrize("limit", ["a:&c", "web"])
def test_a_limit_that_leaves_nobody_is_an_error(limit: str) -> None:
    error = refusal(source := write(THREE + "[web]\nd\n"), limit=limit)
    assert error.message == f"inventory: the limit {limit} leaves no host of the group kvm_hosts"
    assert error.hint.endswith(f"/ansible-inventory --inventory={source} --graph kvm_hosts"), "PATH may have none"


@pytest.mark.parametrize(
    ("limit", "named", "near"),
    [
        ("hv4", "hv4", "Did you mean hv2 or hv1?"),
        ("hv1,hv4", "hv4", "Did you mean hv2 or hv1?"),
        ("all:!kvm_host", "kvm_host", "Did you mean kvm_hosts?"),
        ("hv1,zebra*", "zebra*", "See what there is with: "),
    ],
)
def test_a_limit_that_names_what_is_not_there_is_an_error(limit: str, named: str, near: str) -> None:
    error = refusal(write("[kvm_hosts]\nhv1\nhv2\n"), limit=limit)
    assert error.message == f"inventory: the limit names {named}, and no host or group is called so"
    assert error.hint.startswith(near)


def test_who_told_ansible_to_ignore_such_names_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_HOST_PATTERN_MISMATCH", "ignore")
    assert names(write(THREE), limit="a,zebra") == ["a"]


@pytest.mark.parametrize(("name", "limit"), [("hosts.yml", ""), ("hosts.ini", "@latin")])
def test_what_is_not_utf_8_is_to_be_written_anew(name: str, limit: str) -> None:
    write(THREE, "hosts.ini")
    for file in ("hosts.yml", "latin"):
        Path(file).write_bytes(b"kvm_hosts: {hosts: {h\xff: {}}}\n")
    assert refusal(name, limit=limit).hint == "Write the file anew, in UTF-8."


def test_a_limit_that_cannot_be_read_is_an_error() -> None:
    assert "~(" in refusal(write(THREE), limit="~(").message
    assert "missing.retry" in refusal(write(THREE), limit="@missing.retry").message


def test_a_missing_vault_password_asks_for_one() -> None:
    write("pw\n", "password")
    vault(write("x: 1\n", "group_vars/all.yml"), "password")
    error = refusal(write(THREE))
    assert "no vault secrets found" in error.message
    assert "--vault-password-file" in error.hint


def test_a_wrong_vault_password_is_told_from_a_missing_one() -> None:
    write("pw\n", "password")
    write("other\n", "wrong")
    vault(write("x: 1\n", "group_vars/all.yml"), "password")
    assert "is not the one" in refusal(write(THREE), vault_password_files=("wrong",)).hint


def test_a_vault_password_file_must_be_there() -> None:
    message = refusal(write(THREE), vault_password_files=("nowhere",)).message
    assert message == "vault password nowhere: no such file or folder"
    assert "nowhere" in refusal(write(THREE), vault_ids=("site@nowhere",)).message


def test_a_vault_password_cannot_be_prompted_for() -> None:
    assert "only once" in refusal(write(THREE), vault_ids=("site@prompt",)).message


def test_a_pipe_cannot_be_read_twice() -> None:
    os.mkfifo("pipe")
    assert "only once" in refusal(write(THREE), vault_password_files=("pipe",)).message


def test_extra_variables_that_cannot_be_read_are_named() -> None:
    assert "nowhere.yml: no such file" in refusal(write(THREE), extra_vars=("@nowhere.yml",)).message
    assert "bad.yml:2" in refusal(write(THREE), extra_vars=("@" + write("a: [\n", "bad.yml"),)).message
    error = refusal(write(THREE), extra_vars=("{bad",))
    assert error.message.startswith("extra variables: ")
    assert "key=value" in error.hint


@pytest.mark.parametrize(
    "name", ["a b", "$(id)", "../../etc", "-rf", "x/y", "*", "a;b", "a:b", "", "a\n", "fe80::1%$(id)", "fe80::1%\nh2"]
)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(InventoryError, match="cannot be the name of a host"):
        listed({name: {}})


@pytest.mark.parametrize("name", ["fe80::1", "fe80::1%eth0.5", "10.0.0.1", "hv-1.example.org", "hv_1", "höst"])
def test_ordinary_names_and_addresses_are_taken(name: str) -> None:
    assert listed({name: {}}).name == name


@pytest.mark.parametrize("port", [0, 65536, "ssh", "-1"])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(InventoryError, match=f"h1: ansible_port is '{port}'"):
        host(ansible_port=port)


def test_an_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(InventoryError, match="no JSON"):
        inventory.decode(b"[WARNING] hello {}", NO_OPTIONS, NO_SETTINGS)


LASTS = f"93.{os.getpid()}"  # seconds that nobody else sleeps


def test_a_hanging_script_is_ended_and_named() -> None:
    write(f"#!/bin/sh\nsleep {LASTS}\n", "s", 0o755)
    with pytest.raises(InventoryError, match="within 2 s"):
        inventory.load(AnsibleOptions(inventory=("s",)), timeout_s=2)
    until(lambda: not processes.running(LASTS))


def test_ansible_reads_while_its_caller_works_and_ends_with_it() -> None:
    write(f"#!/bin/sh\nexec sleep {LASTS}\n", "s", 0o755)
    with suppress(KeyboardInterrupt), inventory.reading(AnsibleOptions(inventory=("s",))):
        until(lambda: processes.running(LASTS))
        raise KeyboardInterrupt
    until(lambda: not processes.running(LASTS))


def test_a_file_in_the_current_folder_is_not_taken_for_a_module_of_ansible() -> None:
    write(THREE)
    for module in ("runpy.py", "yaml.py"):
        write("raise SystemExit('this was run')\n", module)
    assert set(names("hosts.ini")) == {"a", "b", "c"}


def test_what_ansible_says_without_a_pattern_is_still_said() -> None:
    assert explain("[ERROR]: Something new happened\n") == ("Something new happened", "")


def test_a_host_knows_the_groups_it_is_in_and_those_above_them():
    listing = {
        "all": {"children": ["kvm_hosts", "site"]},
        "kvm_hosts": {"hosts": ["hv1", "hv2"]},
        "site": {"children": ["rack1"]},
        "rack1": {"hosts": ["hv1"]},
    }
    hosts = inventory.decode(json.dumps(listing).encode(), NO_OPTIONS, NO_SETTINGS).hosts
    assert {host.name: set(host.groups) for host in hosts} == {
        "hv1": {"all", "kvm_hosts", "site", "rack1"},
        "hv2": {"all", "kvm_hosts"},
    }


def test_an_inventory_that_ansible_cfg_names_is_known(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text(THREE)
    (tmp_path / "ansible.cfg").write_text("[defaults]\ninventory = hosts.ini\n")
    assert inventory.load(NO_OPTIONS).settings.inventory == (str(tmp_path / "hosts.ini"),)
