"""What a lab should be, and what cannot be asked for."""

import pytest

from orchestrator.errors import LabError
from orchestrator.lab.spec import LabSpec, check_name, systems_of


@pytest.mark.parametrize("name", ["lab", "a", "my-lab-2"])
def test_a_plain_name_is_a_name(name):
    check_name(name)


@pytest.mark.parametrize("name", ["", "Lab", "1lab", "lab-", "-lab", "a/b", "..", "a b", "x" * 31, "lab\n", "läb"])
def test_a_name_that_cannot_be_a_folder_and_a_host_name_is_refused(name):
    with pytest.raises(LabError, match="cannot be the name"):
        check_name(name)


def test_a_new_lab_has_one_host_of_each_system():
    assert systems_of(LabSpec()) == ("debian-12", "debian-13")


def test_more_hosts_get_the_systems_in_turn():
    assert systems_of(LabSpec(systems=("debian-13", "debian-12"), hosts=3)) == ("debian-13", "debian-12", "debian-13")


def test_a_lab_that_is_there_stays_as_it_is_when_nothing_is_asked_for():
    assert systems_of(LabSpec(), ("debian-12", "debian-12", "debian-12")) == ("debian-12",) * 3


def test_more_hosts_are_added_to_those_that_are_there():
    assert systems_of(LabSpec(hosts=2), ("debian-13",)) == ("debian-13", "debian-13")


def test_a_lab_never_loses_a_host_to_up():
    with pytest.raises(LabError, match="has 2 hosts") as caught:
        systems_of(LabSpec(hosts=1), ("debian-12", "debian-13"))
    assert "lab down" in caught.value.hint


def test_a_lab_never_changes_its_system():
    with pytest.raises(LabError, match="runs debian-12; debian-13 was asked for"):
        systems_of(LabSpec(systems=("debian-13",)), ("debian-12",))


def test_an_unknown_system_is_refused_with_the_known_ones():
    with pytest.raises(LabError, match="No host can run 'beos'") as caught:
        systems_of(LabSpec(systems=("beos",)))
    assert "debian-12" in caught.value.hint


@pytest.mark.parametrize("hosts", [0, -1, 101])
def test_a_senseless_number_of_hosts_is_refused(hosts):
    with pytest.raises(LabError, match="1 to 100"):
        systems_of(LabSpec(hosts=hosts))
